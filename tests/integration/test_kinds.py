"""Each kind of message from the webhook to the answer."""

import asyncio
import re
from typing import Any

import msgspec
import pytest

from app.apply import apply
from app.sandbox.faults import Fault
from app.sandbox.files import SAID, File
from app.sandbox.people import FILES, Spoken
from app.vault import Vault
from tests import world as shared
from tests.world import ENVIRON, KEY, LOCATION, OTHER, PERSON, UNSUPPORTED, World
from workers import hearing, room

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

world = shared.world

TRANSCRIPTION = """
[tenants.noor.transcription]
base_url = "{url}"
api_key = "env:AI_KEY"
model = "whisper-1"
"""


async def with_transcription(world: World, *replaced: tuple[str, str]) -> None:
    """The tenant has somebody who writes down voice messages; besides, these words of its file are others."""
    path = world.folder / "voice.toml"
    text = (world.folder / "qasid.toml").read_text() + TRANSCRIPTION.format(url=world.sandbox.transcription_url)
    for old, new in replaced:
        text = text.replace(old, new)
    path.write_text(text)
    await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)


# --- kinds ---


async def test_a_place_is_asked_in_words(world: World) -> None:
    """Name, coordinates and a link, as the assistant and every later question see them."""
    await world.worker()
    await world.say("Kaaba", kind="location")
    [answer] = await world.got(1)
    assert "Kaaba\n21.422500, 39.826200\nhttps://www.google.com/maps?q=21.422500,39.826200" in world.asked[0][0]
    assert "Kaaba" in answer and answer != LOCATION
    await world.say("how far is it?")
    await world.got(2)
    assert world.shown()[0].startswith("Kaaba\n21.422500")


async def test_a_place_is_thanked_for_where_nobody_can_be_asked(world: World) -> None:
    """A tenant without an assistant has a sentence for it."""
    await world.without_assistant("1002")
    await world.worker()
    place = Spoken(phone_number_id="1002", sender=PERSON, kind="location")
    assert (await world.sandbox.say(place, url=world.gate.webhooks(1))).status == 200
    assert await world.got(1) == [LOCATION]


async def test_cards_buttons_and_rows_are_asked_in_words(world: World) -> None:
    """Names and numbers of a card, titles of what was pressed or chosen."""
    await world.worker()
    for n, (kind, words) in enumerate(
        [("contacts", "Amal Haddad"), ("interactive", "Yes"), ("list_reply", "Row"), ("button", "Go")], 1
    ):
        await world.say(words, kind=kind)
        await world.got(n)
        assert words in world.asked[-1][0]
    assert "+1 555 000 3333" in world.asked[0][0]


async def test_a_picture_reaches_the_assistant(world: World) -> None:
    """It is fetched by its id, through Meta's two steps, and asked about with its caption."""
    await world.worker()
    await world.say("what is this?", kind="image")
    [answer] = await world.got(1)
    assert re.fullmatch(r"You said:\n\n1\. \[image/jpeg, \d+ bytes\]\n2\. what is this\?", answer)
    assert [each.what for each in world.sandbox.files.fetched] == ["where", "download"]


async def test_a_picture_that_is_not_the_one_that_was_sent_is_not_shown(world: World) -> None:
    """Its digest in the webhook is another: whatever Graph says of the file that lies there now, nobody is shown it."""
    await world.say(kind="image")
    sent = world.sandbox.files.by_id[FILES["image"]]
    world.sandbox.files.by_id[FILES["image"]] = msgspec.structs.replace(sent, data=sent.data + b"\0")
    await world.worker()
    assert await world.got(1, timeout=30) == [UNSUPPORTED]
    assert world.sandbox.files.count("download") > 1 and world.asked == []


async def test_a_picture_that_points_inside_is_told_so_and_costs_nothing_else(world: World) -> None:
    """A media URL that leads inside: the person reads the kind sentence, an operator gets an alert, the lane goes on."""
    before = shared.alerts("media_forbidden")
    world.sandbox.faults.queue("media", [Fault(kind="inside")])
    await world.worker()
    await world.say(kind="image")
    assert await world.got(1) == [UNSUPPORTED]
    assert shared.alerts("media_forbidden") == before + 1
    await world.say("and now?")
    assert (await world.got(2))[1] == "You said: and now?"


async def test_a_voice_message_is_answered_by_its_words_and_remembered(world: World) -> None:
    """Written down once, kept as the message's words, and part of every later question, from memory and from the database."""
    await with_transcription(world)
    await world.worker()
    await world.say(kind="audio")
    assert await world.got(1) == ["You said: Where is the clinic?"]
    assert await world.rows("SELECT body FROM messages WHERE kind = 'audio'") == [("Where is the clinic?",)]
    for n in (2, 3):
        await world.say(f"and question {n}?")
        await world.got(n)
        assert world.shown()[0] == "Where is the clinic?"
        await world.act("UPDATE lanes SET version = version + 1")  # what is remembered stands no more
    assert len(world.sandbox.transcriptions.calls) == 1


async def test_a_crash_repeats_no_transcript(world: World) -> None:
    """The worker dies while the assistant writes: its successor asks with the words that are kept, and hears nothing anew."""
    await with_transcription(world)
    world.sandbox.faults.queue("assistant", [Fault(kind="no_answer")])
    first = await world.process()
    await world.say(kind="audio")
    assert await world.sandbox.assistant.wait(1, 10.0)
    first.kill()
    await world.worker()
    assert await world.got(1, timeout=15) == ["You said: Where is the clinic?"]
    assert len(world.sandbox.transcriptions.calls) == 1
    assert world.sandbox.files.count("download") == 1


async def test_a_voice_message_is_told_so_where_nobody_writes_it_down(world: World) -> None:
    """The service fails for good: the sentence for its kind, or the general one."""
    await with_transcription(world, ("texts = {", 'texts = { audio = "Please write to us.",'))
    world.sandbox.faults.queue("transcription", [Fault(kind="http_401")])
    await world.worker()
    await world.say(kind="audio")
    assert await world.got(1) == ["Please write to us."]
    assert world.asked == []


async def test_silence_in_a_hostile_script_is_kept_as_words(world: World) -> None:
    """Zero bytes, an override of direction, a quotation mark: stored and asked, and nothing fails."""
    await with_transcription(world)
    world.sandbox.files.by_id["9"] = File(
        media_type="audio/ogg", data=b"OggS\0" + SAID + "a\0'; \u202eb \ud83d".encode("utf-8", "replace")
    )
    await world.worker()
    await world.say(kind="audio", file="9")
    [answer] = await world.got(1)
    assert answer.startswith("You said: a ")


async def test_voice_messages_that_find_no_place_in_time_are_heard_when_there_is_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who write them down are well, and take them one by one: each person is answered by their own words, none is told
    that they cannot be read.
    """
    monkeypatch.setattr(hearing, "AT_ONCE_OF_A_TENANT", 1)
    monkeypatch.setattr(room, "PATIENCE", 0.5)
    await with_transcription(world, ("deadline_seconds = 10", "deadline_seconds = 3"))
    faults = [Fault(kind="slow", seconds=0.5)] * 8
    world.sandbox.faults.queue("transcription", faults)
    await world.worker()
    people = [f"1555000{n:04d}" for n in range(len(faults))]
    await asyncio.gather(*(says(world, f"I am {person}", sender=person) for person in people))
    for person in people:
        assert await world.got(1, sender=person, timeout=20) == [f"You said: I am {person}"]
    assert len(world.sandbox.transcriptions.calls) == len(faults)
    [(claims,)] = await world.rows("SELECT sum(token)::int FROM lanes")
    assert claims > len(people)  # some were given back


async def test_all_voice_messages_of_a_turn_are_heard_and_leave_time_for_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight of one person, one after another: hearing them takes longer than an answer may, and it is made all the same."""
    monkeypatch.setattr(hearing, "AT_ONCE_OF_A_TENANT", 1)
    await with_transcription(world, ("deadline_seconds = 10", "deadline_seconds = 3"))
    world.sandbox.faults.queue("transcription", [Fault(kind="slow", seconds=0.5)] * 8)
    said = [f"word {n}" for n in range(8)]
    for words in said:
        await says(world, words)
    await world.worker()
    await world.got(1, timeout=20)
    assert world.asked == [("\n\n".join(said),)]


# --- words that are not typed ---

STOPPING = (
    'intents = [{ match = ["hi", "hello"], reply = "Hello! How can we help?" }]',
    """intents = [
      { match = ["hi"], reply = "Hello!" },
      { match = ["agent"], reply = "One moment.", then = "hand_over" },
      { match = ["stop"], reply = "No more answers.", then = "stop" },
      { match = ["start"], reply = "Welcome back.", then = "start" },
    ]""",
)


async def says(world: World, words: str, **more: Any) -> None:
    """A voice message of these words."""
    files = world.sandbox.files.by_id
    file = str(1_000 + len(files))
    files[file] = File(media_type="audio/ogg", data=b"OggS\0" + SAID + words.encode())
    await world.say(kind="audio", file=file, **more)


async def test_a_stop_and_a_start_are_heard_in_voice_messages(world: World) -> None:
    """Nobody is asked; between the two nobody is answered, whatever they say; behind the start all is as before."""
    await with_transcription(world, STOPPING)
    await world.worker()
    await says(world, "Stop.")
    assert await world.got(1) == ["No more answers."]
    assert await world.rows("SELECT stopped_at IS NOT NULL FROM lanes") == [(True,)]
    for n, words in enumerate(("hi", "Where is it?"), 2):
        await says(world, words)
        await world.until("SELECT count(*) = %s FROM usage", n)
    assert len(world.lines()) == 1 and world.asked == []
    await says(world, "Start!")
    assert (await world.got(2))[1] == "Welcome back."
    await says(world, "Where are you?")
    assert (await world.got(3))[2] == "You said: Where are you?"
    assert [each for (each,) in await world.rows("SELECT outcome FROM usage ORDER BY turn_id")] == [
        "intent",
        "stopped",
        "stopped",
        "intent",
        "answered",
    ]


async def test_a_voice_message_of_an_intents_words_is_that_intent(world: World) -> None:
    """Alone it is answered by its reply, and hands over; a stop is heard beside a question, too."""
    await with_transcription(world, STOPPING)
    await says(world, "Hi!")
    await world.worker()
    assert await world.got(1) == ["Hello!"]
    await says(world, "agent")
    assert (await world.got(2))[1] == "One moment."
    assert await world.rows("SELECT paused_until > now() FROM lanes") == [(True,)]
    await says(world, "stop", sender=OTHER)
    await world.say("where are you?", sender=OTHER)
    assert "No more answers." in await world.got(1, sender=OTHER)
    assert world.asked == [] or world.asked == [("where are you?",)]


@pytest.mark.parametrize("kind", ["image", "video"])
async def test_a_stop_is_heard_in_a_caption(world: World, kind: str) -> None:
    """The picture is not even fetched; other intents are not taken from captions."""
    await with_transcription(world, STOPPING)
    end = await world.worker()
    await world.say("stop", kind=kind)
    assert await world.got(1) == ["No more answers."]
    await world.say("hi")
    await world.until("SELECT count(*) = 2 FROM usage")
    assert world.asked == [] and world.sandbox.files.fetched == []
    await end()
    await world.say("hi", kind="image", sender=OTHER)
    await world.worker()
    [answer] = await world.got(1, sender=OTHER)
    assert answer.startswith("You said:") and answer.endswith("hi")


async def test_who_has_stopped_has_nothing_written_down_beyond_the_days_limit(world: World) -> None:
    """A start is looked for in as many voice messages as a day allows messages."""
    await with_transcription(world, STOPPING, ("limits = {", "limits = { messages_per_contact_per_day = 2,"))
    await world.worker()
    await world.say("stop")
    await world.got(1)
    for n in (2, 3, 4):
        await says(world, f"Where is {n}?")
        await world.until("SELECT count(*) = %s FROM usage", n)
    assert len(world.sandbox.transcriptions.calls) == 1 and len(world.lines()) == 1
