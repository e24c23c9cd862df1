"""Intents with consequences: a question that is asked back, a hand-over, stop and start."""

import pytest

from app.apply import apply
from app.sandbox.faults import Fault
from app.sandbox.numbers import now as sandbox_now
from app.vault import Vault
from tests import world as shared
from tests.tenants import INTENTS, configure, outcomes
from tests.world import ENVIRON, KEY, OTHER, PERSON, World, alerts, ladder

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

world = shared.world

HOUR = 3600


async def test_a_question_is_asked_back_and_its_answer_understood_once(world: World) -> None:
    """Yes after the question is its answer; the same yes a second time is a question for the assistant."""
    await configure(world, INTENTS)
    await world.worker()
    for n, text in enumerate(("Cancel!", "yes", "yes"), 1):
        await world.say(text)
        await world.got(n)
    assert await world.got(3) == ["Cancel it?", "Cancelled.", "You said: yes"]
    assert await outcomes(world) == ["intent", "intent", "answered"]


async def test_a_question_is_forgotten_with_its_session(world: World) -> None:
    """A yes after the gap is no answer to what was asked before it."""
    await configure(world, INTENTS)
    await world.worker()
    await world.say("cancel", timestamp=int(sandbox_now()) - 5 * HOUR)
    await world.got(1)
    await world.act("UPDATE messages SET sent_at = sent_at - interval '5 hours' WHERE direction = 'out'")
    await world.say("yes")
    assert (await world.got(2))[1] == "You said: yes"


async def test_a_question_that_could_not_be_sent_is_answered_by_no_yes(world: World) -> None:
    """WhatsApp refuses it for good: nobody has read it, and a yes to something else cancels nothing."""
    await configure(world, INTENTS)
    world.sandbox.faults.queue("send", [Fault(kind="graph_error", code=131047)])
    await world.worker()
    await world.say("cancel")
    await world.until("SELECT state = 'failed' FROM chunks")
    await world.at_rest()
    await world.say("yes")
    [answer] = await world.got(1)
    assert answer != "Cancelled."
    assert await outcomes(world) == ["intent", "answered"]


async def test_a_hand_over_is_told_to_both_and_then_leaves_the_conversation_to_people(world: World) -> None:
    """The person reads the reply although the pause has begun; what they write then is left; nobody else is touched."""
    before = alerts("handed_over")
    await configure(world, INTENTS)
    await world.worker()
    await world.say("agent")
    assert await world.got(1) == ["One moment."]
    assert alerts("handed_over") == before + 1
    await world.say("hello?")
    await world.until("SELECT count(*) = 2 FROM usage")
    await world.say("hi", sender=OTHER)
    assert await world.got(1, sender=OTHER) == ["Hello! How can we help?"]
    assert len(world.lines()) == 1
    assert (await outcomes(world))[:2] == ["intent", "left"]
    [(hours,)] = await world.rows(
        "SELECT extract(epoch FROM paused_until - now()) / 3600 FROM lanes WHERE paused_until IS NOT NULL"
    )
    assert 1.9 < hours <= 2


async def test_a_hand_overs_reply_goes_out_behind_a_closed_gate(world: World) -> None:
    """What was sent before it is not delivered yet: the reply waits for that, not for the end of the pause."""
    await configure(world, INTENTS)
    ladder(world, shared.SILENT)
    await world.worker(order_wait_seconds=1.5)
    await world.say("hi")
    await world.sandbox.ledger.wait(PERSON, 1, 5)
    await world.say("agent")
    assert await world.got(2) == ["Hello! How can we help?", "One moment."]


async def test_who_wants_no_answers_gets_none_until_they_want_them(world: World) -> None:
    """Durably: another worker knows it too. Everything is stored, nobody is asked."""
    await configure(world, INTENTS)
    end = await world.worker()
    await world.say("stop")
    await world.got(1)
    await end()
    await world.worker()
    for n, text in enumerate(("hi", "a question"), 2):
        await world.say(text)
        await world.until("SELECT count(*) = %s FROM usage", n)
    assert len(world.lines()) == 1 and world.asked == []
    await world.say("Start!")
    await world.got(2)
    await world.say("a question")
    assert await world.got(3) == ["No more answers.", "Welcome back.", "You said: a question"]
    assert await outcomes(world) == ["intent", "stopped", "stopped", "intent", "answered"]
    assert await world.rows("SELECT count(*) FROM messages WHERE direction = 'in'") == [(5,)]


async def test_a_stop_counts_where_nobody_answers_it(world: World) -> None:
    """While the conversation is people's the word is kept, without a reply."""
    await configure(world, INTENTS)
    await world.worker()
    await world.say("agent")
    await world.got(1)
    await world.say("stop")
    await world.until("SELECT stopped_at IS NOT NULL FROM lanes")
    await world.at_rest()
    assert len(world.lines()) == 1


async def test_a_word_on_stopping_is_heard_in_a_turn_with_a_question(world: World) -> None:
    """Stopped with a remark beside it, nobody is asked; started with a question beside it, that is answered."""
    await configure(world, INTENTS)
    await world.say("stop")
    await world.say("leave me alone")
    end = await world.worker()
    assert await world.got(1) == ["No more answers."]
    assert world.asked == [] and await outcomes(world) == ["intent"]
    await end()
    await world.say("start")
    await world.say("where are you?")
    await world.worker()
    [_, answer] = await world.got(2)
    assert answer.startswith("You said: ") and "where are you?" in answer
    assert await world.rows("SELECT stopped_at FROM lanes") == [(None,)]


async def test_nobody_is_stuck_where_no_word_takes_a_stop_back(world: World) -> None:
    """A tenant whose intents are gone answers those who had stopped, and apply says so; with a start word the stop counts."""
    await configure(world, INTENTS)
    end = await world.worker()
    await world.say("stop")
    await world.got(1)
    await end()
    path = world.folder / "none.toml"
    path.write_text('[tenants.noor]\nname = "Noor"\nintents = []')
    applied = await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)
    assert [warning for warning in applied.warnings if "whoever had stopped is answered again" in warning]
    end = await world.worker()
    await world.say("where are you?")
    assert await world.got(2) == ["No more answers.", "You said: where are you?"]
    await end()
    await configure(world, INTENTS)
    await world.worker()
    await world.say("hi")
    await world.until("SELECT count(*) = 3 FROM usage")
    assert await outcomes(world) == ["intent", "answered", "stopped"]


async def test_a_start_word_opens_no_door_past_the_days_limit(world: World) -> None:
    """It is heard, and the question beside it is too much for the day like any other."""
    await configure(world, INTENTS + "[tenants.noor.limits]\nmessages_per_contact_per_day = 1\n")
    end = await world.worker()
    await world.say("stop")
    await world.got(1)
    await end()
    await world.say("start")
    await world.say("where are you?")
    await world.worker()
    assert (await world.got(2))[1].startswith("Sorry, I cannot answer any more")
    assert world.asked == []
    assert await world.rows("SELECT stopped_at FROM lanes") == [(None,)]
