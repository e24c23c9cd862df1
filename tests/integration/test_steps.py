"""The steps from a voice message to a translated, cited answer: a crash between any two of them repeats none that is done.

Nor one between the calls that an answer is made of.
"""

from collections import Counter

import pytest

from app.apply import apply
from app.crashpoints import NAMES
from app.sandbox.assistant_calls import Pace
from app.sandbox.faults import Fault
from app.sandbox.files import SAID, File
from app.sandbox.translator_calls import Speed
from app.vault import Vault
from tests import world as shared
from tests.tenants import configure
from tests.world import ENVIRON, KEY, OTHER, PERSON, World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

world = shared.world

# An assistant answers it in English, with three citations in Arabic; its person reads Urdu.
QUESTION = "cite#3 آپ کہاں ہیں؟"
# Behind `answer.asked` nothing is committed yet: that call alone may be made again. `answer.continued` has its own test.
OTHERS = ("answer.asked", "answer.continued")
POINTS = [name for name in NAMES if name.startswith(("question.", "answer.")) and name not in OTHERS]
# Long enough for half of its answer to be gone on from.
LONG = " ".join(["Tell me all about the opening hours of each of your branches, and how to get there by bus."] * 3)
TABLES = """
[tenants.noor.translation]
provider = "libretranslate"
base_url = "{url}/libretranslate"
{more}
[tenants.noor.transcription]
base_url = "{url}/openai/v1"
api_key = "env:AI_KEY"
model = "whisper-1"
"""


async def with_translator(world: World, more: str = "") -> None:
    """The tenant has its sources translated, and voice messages written down."""
    path = world.folder / "more.toml"
    path.write_text('[tenants.noor]\nname = "Noor"\n' + TABLES.format(url=world.sandbox.url, more=more))
    await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)


def translated(world: World, kind: str = "translate") -> Counter[str]:
    """How often the translator was asked about each text."""
    return Counter(call.text for call in world.sandbox.translator.calls if call.kind == kind)


async def say_aloud(world: World, words: str) -> None:
    """A voice message that says this."""
    world.sandbox.files.by_id["9"] = File(media_type="audio/ogg", data=b"OggS\0" + SAID + words.encode())
    await world.say(kind="audio", file="9")


# --- what people read ---


async def test_a_cited_answer_comes_with_its_sources_translated(world: World) -> None:
    """Marks in the text, below it each source once: title, the quotation as it stands, its translation."""
    await with_translator(world)
    await world.worker()
    await world.say("cite#2")
    [text] = await world.got(1)
    head, title, first, second = text.split("\n\n")
    assert head == "Here is what the sources say: point 1 [1]; point 2 [2]."
    assert title == "*Sources*"
    assert first.splitlines()[0].startswith("[1] ") and "Sahih al-Bukhari 1" in first
    assert "إِنَّمَا الأَعْمَالُ بِالنِّيَّاتِ" in first.splitlines()[1]
    assert first.splitlines()[2].startswith("Translation: ") and second.splitlines()[2].startswith("Translation: ")
    assert sorted(translated(world).values()) == [1, 1]


async def test_whoever_writes_in_a_language_of_the_tenants_reads_all_of_it_in_that(world: World) -> None:
    """The answer itself and what stands below its quotations."""
    await with_translator(world, 'answers = ["ur"]')
    await world.worker()
    await world.say(QUESTION)
    [text] = await world.got(1)
    assert text.startswith("[ur] Here is what the sources say: point 1 [1]")
    assert text.count("[ur] ") == 4


async def test_without_a_translator_sources_stand_as_they_are(world: World) -> None:
    """Nothing is said of a translation that nobody wants."""
    await world.worker()
    await world.say("cite#1")
    [text] = await world.got(1)
    assert "*Sources*" in text and "Translation" not in text and "not translated" not in text
    assert world.sandbox.translator.count == 0


async def test_an_answer_does_not_fail_for_a_translation(world: World) -> None:
    """Whoever cannot be translated for reads the original, and is told so."""
    await with_translator(world)
    world.sandbox.faults.queue("translator", [Fault(kind="http_403")])
    await world.worker()
    await world.say("cite#1")
    [text] = await world.got(1)
    assert text.endswith("(not translated)")


async def test_whoever_cannot_be_answered_in_their_language_is_told_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the answer, above its sources; after a crash it is the same answer, and nobody is asked again."""
    await with_translator(world, 'answers = ["ur"]')
    await configure(world, '[tenants.noor.texts]\nuntranslated = "(غیر مترجم)"\n')
    world.sandbox.faults.queue(
        "translator", ["ok", "http_403"], only="point 1"
    )  # asked for its language, and translated
    monkeypatch.setenv("CRASHPOINT", "answer.finished:1")
    child = await world.process()
    monkeypatch.delenv("CRASHPOINT")
    await world.say(QUESTION)
    assert await child.wait() == -9
    asked = world.sandbox.translator.count
    await world.process()
    [text] = await world.got(1, timeout=20)
    head, note, title, *_ = text.split("\n\n")
    assert head.startswith("Here is what the sources say") and (note, title) == ("(غیر مترجم)", "*Sources*")
    assert world.sandbox.translator.count == asked


async def test_sources_that_were_translated_for_one_person_are_not_for_the_next(world: World) -> None:
    """The memory is the tenant's: the second answer asks the assistant alone."""
    await with_translator(world)
    await world.worker()
    await world.say("cite#2")
    first = await world.got(1)
    await world.say("cite#2", sender=OTHER)
    assert await world.got(1, sender=OTHER) == first
    assert sorted(translated(world).values()) == [1, 1]


async def test_what_a_translation_cost_counts_with_its_turn(world: World) -> None:
    """An assistant that translates is paid like one that answers."""
    path = world.folder / "more.toml"
    path.write_text('[tenants.noor]\nname = "Noor"\n[tenants.noor.translation]\nprovider = "assistant"\n')
    await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)
    await world.worker()
    await world.say("cite#1")
    [text] = await world.got(1)
    assert "Translation: " in text and "[translated] " in text
    [(tokens,)] = await world.rows("SELECT input_tokens + output_tokens FROM usage")
    calls = world.sandbox.assistant.calls
    assert len(calls) == 2
    assert tokens == sum(call.input_tokens + call.output_tokens for call in calls)


# --- crashes ---


@pytest.mark.parametrize("point", POINTS)
async def test_a_crash_between_two_steps_repeats_nothing_that_is_done(
    world: World, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind a step, the next worker goes on from there: each finished call was made once, and one answer comes."""
    await with_translator(world, 'answers = ["ur"]\nat_once = 1')
    monkeypatch.setenv("CRASHPOINT", f"{point}:1")
    child = await world.process()
    monkeypatch.delenv("CRASHPOINT")
    await say_aloud(world, QUESTION)
    assert await child.wait() == -9
    steps = {step for (step,) in await world.rows("SELECT step FROM steps")}
    remembered = {text.removeprefix("[ur] ") for (text,) in await world.rows("SELECT body FROM translations")}
    await world.process()
    [text] = await world.got(1, timeout=20)
    assert text.startswith("[ur] Here is what the sources say: point 1 [1]") and text.count("[ur] ") == 4
    assert len(world.sandbox.transcriptions.calls) == 1
    if point != "question.heard":
        assert "answer" in steps
    assert len(world.asked) == 1
    asked, recognised = translated(world), translated(world, "detect")
    assert all(asked[quotation] == 1 for quotation in remembered)
    if "answer_translated" in steps:
        assert sum(count for quotation, count in asked.items() if "point 1" in quotation) == 1
    if "citations" in steps:
        assert sum(count for quotation, count in asked.items() if "point 1" not in quotation) == 3
    if "language/words" in steps:
        assert recognised[QUESTION] == 1
    if point == "answer.finished":
        assert steps >= {"answer", "citations", "answer_translated", "language/words", "language/answer"}
        assert set(asked.values()) == set(recognised.values()) == {1}
    assert len(world.lines(PERSON)) == 1


@pytest.mark.parametrize("how", ["edit", "crash"])
async def test_a_voice_message_without_words_is_written_down_once(
    world: World, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it has none is kept as words are: neither an edit beside it nor a crash behind it has it heard, and paid for, again."""
    await with_translator(world)
    await say_aloud(world, "")
    said = await world.say("the old words")
    if how == "edit":
        world.sandbox.assistant.pace = Pace(first_token=2.0)
        await world.worker()
        assert await world.sandbox.assistant.wait(1, 10.0)
        await world.say("the old words, edited", kind="edit", target=said.ids[0])
    else:
        monkeypatch.setenv("CRASHPOINT", "question.heard:1")
        child = await world.process()
        monkeypatch.delenv("CRASHPOINT")
        assert await child.wait() == -9
        await world.process()
    [text] = await world.got(1, timeout=20)
    assert "A voice message, which cannot be read here." in text and text.count("edited") == (how == "edit")
    assert len(world.sandbox.transcriptions.calls) == 1


async def test_what_was_finished_while_the_database_took_nothing_is_not_done_again(world: World) -> None:
    """The worker has each step at hand for as long as it lives, and commits it when that can be done: all is paid for once."""
    await with_translator(world, 'answers = ["ur"]')
    world.sandbox.translator.speed = Speed(seconds=0.3)
    await world.worker()
    await world.say(QUESTION)
    await world.until("SELECT count(*) = 1 FROM steps")
    await world.act("REVOKE INSERT ON steps, translations FROM qasid_courier")
    await world.until("SELECT token >= 3 FROM lanes")
    await world.act("GRANT INSERT ON steps TO qasid_courier")
    await world.until("SELECT count(*) = 3 FROM steps")
    await world.act("REVOKE INSERT ON steps FROM qasid_courier")
    [(token,)] = await world.rows("SELECT token FROM lanes")
    await world.until("SELECT token >= %s FROM lanes", token + 3)
    assert world.lines(PERSON) == []
    await world.act("GRANT INSERT ON steps, translations TO qasid_courier")
    [text] = await world.got(1)
    assert text.startswith("[ur] Here is") and text.count("[ur] ") == 4
    asked, recognised = translated(world), translated(world, "detect")
    assert (len(asked), len(recognised)) == (4, 2)
    assert set(asked.values()) == set(recognised.values()) == {1}
    assert {step for (step,) in await world.rows("SELECT step FROM steps")} >= {"citations", "answer_translated"}


async def test_a_translation_that_failed_is_not_tried_again_behind_its_memo(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands untranslated stands so for every worker: a finished step, too."""
    await with_translator(world)
    world.sandbox.faults.queue("translator", [Fault(kind="http_403")])
    monkeypatch.setenv("CRASHPOINT", "answer.cited:1")
    child = await world.process()
    monkeypatch.delenv("CRASHPOINT")
    await world.say("cite#1")
    assert await child.wait() == -9
    await world.process()
    [text] = await world.got(1, timeout=20)
    assert text.endswith("(not translated)")
    assert world.sandbox.translator.count == 1


@pytest.mark.parametrize("kind", ["max_tokens", "pause_turn"])
async def test_a_crash_between_two_parts_of_an_answer_has_the_second_asked_for_alone(
    world: World, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is finished and paid for: the next worker goes on from it, and what both cost counts with the turn."""
    await killed_between_parts(world, kind, monkeypatch)
    await world.process()
    assert await world.got(1, timeout=20) == [f"You said: {LONG}"]
    first, second = world.sandbox.assistant.calls
    assert first.before == 0 and second.before > first.said - 20
    assert await world.rows("SELECT input_tokens, output_tokens FROM usage") == [
        (first.input_tokens + second.input_tokens, first.output_tokens + second.output_tokens)
    ]


async def test_a_part_that_follows_another_is_found_behind_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name rests on the content of the one before, and PostgreSQL has the keys of that in another order than it came."""
    await killed_between_parts(world, "pause_turn", monkeypatch, parts=2)
    await world.process()
    assert await world.got(1, timeout=20) == [f"You said: {LONG}"]
    befores = [call.before for call in world.sandbox.assistant.calls]
    assert len(befores) == 3 and befores[0] == 0 < befores[1] < befores[2]


async def test_an_edited_question_goes_on_from_no_answer_to_the_old_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was said to other words is nobody's: all of it is asked for anew."""
    [said] = await killed_between_parts(world, "max_tokens", monkeypatch)
    await world.say("Where are you?", kind="edit", target=said)
    await world.process()
    assert await world.got(1, timeout=20) == ["You said: Where are you?"]
    assert [call.before for call in world.sandbox.assistant.calls] == [0, 0]


async def test_an_answer_of_one_call_is_one_step(world: World) -> None:
    """Nothing is kept of a part that nobody goes on from."""
    await world.worker()
    await world.say("question")
    await world.got(1)
    assert await world.rows("SELECT step FROM steps") == [("answer",)]


async def killed_between_parts(
    world: World, kind: str, monkeypatch: pytest.MonkeyPatch, *, parts: int = 1
) -> list[str]:
    """A worker that died with so many parts of an answer; the ids of its question."""
    world.sandbox.faults.queue("assistant", [Fault(kind=kind)] * parts)  # type: ignore[arg-type]
    monkeypatch.setenv("CRASHPOINT", f"answer.continued:{parts}")
    child = await world.process()
    monkeypatch.delenv("CRASHPOINT")
    said = await world.say(LONG)
    assert await child.wait() == -9
    return list(said.ids)
