"""What a worker answers with what: intents, the assistant, texts of the tenant, changes and pauses."""

import time

import msgspec
import pytest

from app.sandbox.faults import Fault
from app.sandbox.numbers import now as sandbox_now
from tests import world as shared
from tests.world import FAILURE, OTHER, UNSUPPORTED, World, alerts, through_gate

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

world = shared.world


# --- what is answered with what ---


async def test_an_intent_is_answered_without_the_assistant(world: World) -> None:
    """What an intent matches gets its reply, once, and nobody is asked."""
    await world.worker()
    await world.say("  Hi!! ")
    assert await world.got(1) == ["Hello! How can we help?"]
    assert world.asked == []
    assert await world.rows("SELECT outcome, messages, chunks FROM usage") == [("intent", 1, 1)]


async def test_the_assistant_is_shown_the_session_and_nothing_from_before_its_gap(world: World) -> None:
    """The conversation so far goes with the question, back to a gap longer than `session_gap_hours`."""
    await world.worker()
    await world.say("long ago", timestamp=int(sandbox_now()) - 5 * 3600)
    await world.got(1)
    await world.act("UPDATE messages SET sent_at = sent_at - interval '5 hours' WHERE direction = 'out'")
    await world.act("UPDATE lanes SET version = version + 1")
    await world.say("first")
    await world.got(2)
    await world.say("second")
    assert await world.got(3) == ["You said: long ago", "You said: first", "You said: second"]
    body = msgspec.json.decode(world.sandbox.assistant.calls[-1].body)
    assert [(line["role"], line["content"]) for line in body["messages"]] == [
        ("user", "first"),
        ("assistant", "You said: first"),
        ("user", "second"),
    ]


async def test_what_comes_during_a_turn_becomes_one_turn_in_the_providers_order(world: World) -> None:
    """Three messages, the later two while the first is being answered: two turns; equal seconds keep their order."""
    await through_gate(world)
    await world.worker()
    hold = world.gate.hold("assistant", "one")
    at = int(sandbox_now())
    await world.say("one", timestamp=at)
    await hold.reached()
    await world.say("three", timestamp=at + 2)
    await world.say("two", timestamp=at + 1)
    await world.say("four", timestamp=at + 2)
    hold.open.set()
    await world.got(2)
    assert [len(asked) for asked in world.asked] == [1, 1]
    assert world.asked[1] == ("two\n\nthree\n\nfour",)
    assert await world.rows("SELECT first_seq, last_seq FROM turns ORDER BY 1") == [(1, 1), (2, 4)]


@pytest.mark.parametrize("kind", ["audio", "video", "sticker", "unsupported"])
async def test_what_cannot_be_read_is_told_so(world: World, kind: str) -> None:
    """A kind that we cannot read gets the tenant's own words, without the assistant."""
    await world.worker()
    await world.say(kind=kind)
    assert await world.got(1) == [UNSUPPORTED]
    assert world.asked == []


async def test_a_reaction_is_answered_by_nobody(world: World) -> None:
    """What a person expects no answer to gets none, and is stored."""
    await world.worker()
    said = await world.say("question")
    await world.got(1)
    await world.say("👍", kind="reaction", target=said.ids[0])
    assert await world.got(1) == ["You said: question"]
    assert await world.rows("SELECT count(*) FROM messages WHERE kind = 'reaction'") == [(1,)]


async def test_an_assistant_that_fails_costs_one_sentence_and_an_alert(world: World) -> None:
    """After a refusal people read the tenant's failure text once, and somebody is told."""
    before = alerts("assistant_failed")
    world.sandbox.faults.queue("assistant", ["http_401"])
    await world.worker()
    await world.say("question")
    assert await world.got(1) == [FAILURE]
    assert world.sandbox.assistant.count == 1
    assert alerts("assistant_failed") == before + 1
    assert await world.rows("SELECT outcome FROM usage") == [("failed",)]
    await world.say("and now?")
    assert (await world.got(2))[1] == "You said: and now?"


async def test_an_assistant_that_never_ends_is_left_at_the_deadline(world: World) -> None:
    """A stream that stalls ends at `deadline_seconds`; nobody waits longer."""
    await world.apply(deadline=1)
    world.sandbox.faults.queue("assistant", [Fault(kind="stall")])
    await world.worker()
    began = time.monotonic()
    await world.say("question")
    assert await world.got(1) == [FAILURE]
    assert 0.9 < time.monotonic() - began < 3.0


@pytest.mark.parametrize("change", ["edit", "revoke"])
async def test_a_change_before_the_turn_changes_what_is_asked(world: World, change: str) -> None:
    """An edit is asked in its new words; with the only message revoked nobody is answered."""
    said = await world.say("the old words")
    await world.say("the new words", kind=change, target=said.ids[0])
    await world.worker()
    if change == "edit":
        assert await world.got(1) == ["You said: the new words"]
    else:
        await world.at_rest()
        assert world.lines() == [] and world.asked == []
        assert await world.rows("SELECT outcome FROM usage") == [("revoked",)]


@pytest.mark.parametrize("change", ["edit", "revoke"])
async def test_a_change_that_comes_before_its_message_holds_too(world: World, change: str) -> None:
    """Providers promise no order: the message is asked as it stands by then, or not at all."""
    await world.worker()
    await world.say("the new words", kind=change, target="wamid.late")
    await world.at_rest()
    assert world.lines() == []  # nothing is answered that is no message
    await world.say("the old words", id="wamid.late")
    if change == "edit":
        assert await world.got(1) == ["You said: the new words"]
        assert world.asked == [("the new words",)]
    else:
        await world.until("SELECT count(*) = 1 FROM usage WHERE outcome = 'revoked'")
        await world.at_rest()
        assert world.lines() == [] and world.asked == []


async def test_the_last_edit_by_the_providers_time_stands(world: World) -> None:
    """Edits may come in any order; and what was taken back stays so, whatever is edited later."""
    at = int(sandbox_now()) - 60
    said = await world.say("first", timestamp=at)
    await world.say("third", kind="edit", target=said.ids[0], timestamp=at + 20)
    await world.say("second", kind="edit", target=said.ids[0], timestamp=at + 10)
    gone = await world.say("gone", timestamp=at + 1)
    await world.say(kind="revoke", target=gone.ids[0], timestamp=at + 2)
    await world.say("back again?", kind="edit", target=gone.ids[0], timestamp=at + 30)
    await world.worker()
    assert await world.got(1) == ["You said: third"]


async def test_an_edit_that_cannot_be_read_takes_no_words_away(world: World) -> None:
    """What was written, or edited before, is asked; the edit is set aside, where it can be replayed from."""
    said = [await world.say(words) for words in ("Where is", "the clinic?")]
    await world.say("the doctor?", kind="edit", target=said[1].ids[0])
    for each in said:
        new = {"original_message_id": each.ids[0], "message": {"type": "unsupported"}}
        await world.say(kind="edit", target=each.ids[0], extra={"edit": new})
    await world.worker()
    assert await world.got(1) == ["You said: Where is\n\nthe doctor?"]
    assert (
        await world.rows("SELECT part, reason FROM quarantine")
        == [("message", "message: an edit into what cannot be read")] * 2
    )


async def test_nobody_changes_what_another_said(world: World) -> None:
    """An edit names a message by an id that others may learn of: only one's own, in one's own conversation, changes."""
    said = await world.say("the question")
    await world.say("another question", kind="edit", target=said.ids[0], sender=OTHER)
    await world.say(kind="revoke", target=said.ids[0], sender=OTHER)
    await world.worker()
    assert await world.got(1) == ["You said: the question"]


async def test_a_message_that_is_taken_back_during_its_turn_is_not_answered(world: World) -> None:
    """The answer that is on its way is dropped; another message of the same turn is asked without it."""
    await through_gate(world)
    await world.worker()
    hold = world.gate.hold("assistant", "taken back")
    said = await world.say("to be taken back")
    await hold.reached()
    await world.say(kind="revoke", target=said.ids[0])
    hold.open.set()
    await world.at_rest()
    assert world.lines() == []
    assert await world.rows("SELECT outcome FROM usage") == [("revoked",)]


async def test_an_edit_during_the_turn_starts_it_again(world: World) -> None:
    """The answer to what no longer stands is not sent: the turn is asked again with the new words."""
    await through_gate(world)
    await world.worker()
    hold = world.gate.hold("assistant", "old words")
    said = await world.say("the old words")
    await hold.reached()
    await world.say("the new words", kind="edit", target=said.ids[0])
    hold.open.set()
    assert await world.got(1) == ["You said: the new words"]
    assert [each[0] for each in world.asked] == ["the old words", "the new words"]


async def test_a_paused_lane_is_left_to_a_person(world: World) -> None:
    """While paused, messages settle unanswered, so that nothing waits for a resume."""
    await through_gate(world)
    await world.worker()
    hold = world.gate.hold("assistant", "first")
    await world.say("first")
    await hold.reached()
    await world.act("UPDATE lanes SET paused_until = now() + interval '1 hour'")
    hold.open.set()
    await world.at_rest()
    await world.say("second")
    await world.at_rest()
    assert world.lines() == []
    assert await world.rows("SELECT outcome FROM usage") == [("left",), ("left",)]
    await world.act("UPDATE lanes SET paused_until = NULL")
    await world.say("third")
    [answer] = await world.got(1)
    assert answer.endswith("third")


async def test_a_loop_is_braked_and_left_to_a_person(world: World) -> None:
    """Two machines that answer each other: so many replies a minute, then silence, an alert, and the next minute."""
    before = alerts("loop_brake")
    await world.apply(brake=2)
    await world.worker()
    for n in (1, 2):
        await world.say("hi")
        await world.got(n)
    await world.say("hi")
    await world.until("SELECT count(*) = 1 FROM usage WHERE outcome = 'left'")
    assert alerts("loop_brake") == before + 1
    assert len(world.lines()) == 2
    await world.act("UPDATE usage SET at = at - interval '61 seconds'")
    await world.say("hi")
    assert len(await world.got(3)) == 3
