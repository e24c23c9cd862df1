"""What a person, a tenant and a conversation may have in a day or a minute, and what it costs."""

import time
from contextlib import suppress
from uuid import uuid4

import pytest

from app import db, dead
from app.errors import DatabaseUnavailable
from app.replay import Replays
from app.sandbox.assistant_calls import Pace
from app.sandbox.faults import Fault
from tests import tenants
from tests import world as shared
from tests.conftest import Database
from tests.tenants import ASSISTANT, INTENTS, Script, channel, configure, outcomes
from tests.world import FAILURE, OTHER, UNSUPPORTED, World, alerts, through_gate
from workers.spending import Spending

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

world = shared.world
script = tenants.script


async def test_beyond_the_days_messages_a_person_is_told_once(world: World) -> None:
    """Two a day: the third is stored and told, the fourth stored; a stop is heard; the next day all is as before."""
    before = alerts("limit_reached")
    await configure(world, INTENTS + "[tenants.noor.limits]\nmessages_per_contact_per_day = 2\n")
    await world.worker()
    for n, text in enumerate(("one", "two", "three", "four", "hi"), 1):
        await world.say(text)
        await world.until("SELECT count(*) = %s FROM usage", n)
    await world.say("again", sender=OTHER)
    assert await world.got(1, sender=OTHER) == ["You said: again"]
    answers = await world.got(3)
    assert answers[:2] == ["You said: one", "You said: two"] and answers[2].startswith(
        "Sorry, I cannot answer any more"
    )
    assert (await outcomes(world))[:5] == ["answered", "answered", "limited", "limited", "limited"]
    assert alerts("limit_reached") == before + 1
    assert await world.rows("SELECT count(*) FROM messages WHERE direction = 'in'") == [(6,)]
    await world.say("stop")
    assert (await world.got(4))[3] == "No more answers."
    await world.say("start")
    await world.got(5)
    await world.act("UPDATE turns SET begun_at = begun_at - interval '25 hours'")
    await world.say("five")
    assert (await world.got(6))[5] == "You said: five"


async def test_a_stop_that_asks_back_is_heard_beyond_the_days_messages(world: World) -> None:
    """The question, and the yes to it."""
    unsubscribe = """
[[tenants.noor.intents]]
match = ["unsubscribe"]
reply = "No more answers?"
then = "confirm"
yes = "Goodbye."
no = "Good."
yes_then = "stop"
"""
    await configure(world, INTENTS + unsubscribe + "[tenants.noor.limits]\nmessages_per_contact_per_day = 1\n")
    await world.worker()
    for n, text in enumerate(("one", "two", "unsubscribe", "yes"), 1):
        await world.say(text)
        await world.got(n)
    assert (await world.got(4))[2:] == ["No more answers?", "Goodbye."]
    assert await world.rows("SELECT stopped_at IS NOT NULL FROM lanes") == [(True,)]


@pytest.mark.parametrize(
    "limit", ["messages_per_contact_per_day = 1", "tokens_per_day = 1", "replies_per_conversation_per_minute = 1"]
)
async def test_no_limit_takes_a_replay(world: World, limit: str) -> None:
    """Who replays a dead letter is told that it is asked again: it was counted when it came, and would be listed no more."""
    await configure(world, f"[tenants.noor.limits]\n{limit}\n")
    world.sandbox.faults.queue("assistant", [Fault(kind="http_401")])
    end = await world.worker()
    await world.say("a question")
    assert await world.got(1) == [FAILURE]
    await end()
    await world.act("UPDATE usage SET input_tokens = 20")
    async with db.pool(world.url, "qasid_app", name="test", max_size=1) as pool:
        [letter] = await dead.every(pool)
        async with Replays(pool, world.url, world.settings()) as replays:
            assert (await replays.replay(letter)).done
    await world.worker()
    assert (await world.got(2))[1] == "You said: a question"


async def test_what_was_entered_anew_takes_nothing_of_the_day(world: World) -> None:
    """Two a day: one message, replayed by an operator, leaves its person the second."""
    await configure(world, "[tenants.noor.limits]\nmessages_per_contact_per_day = 2\n")
    world.sandbox.faults.queue("assistant", [Fault(kind="http_401")])
    await world.worker()
    await world.say("one")
    assert await world.got(1) == [FAILURE]
    async with db.pool(world.url, "qasid_app", name="test", max_size=1) as pool:
        [letter] = await dead.every(pool)
        async with Replays(pool, world.url, world.settings()) as replays:
            assert (await replays.replay(letter)).done
    await world.got(2)
    await world.say("two")
    assert (await world.got(3))[1:] == ["You said: one", "You said: two"]
    await world.say("three")
    await world.got(4)
    assert await outcomes(world) == ["failed", "answered", "answered", "limited"]


async def test_what_is_paid_for_is_sent_whatever_the_day_allows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the memo of its answer a turn is not refused any more, however much was written meanwhile."""
    await configure(world, "[tenants.noor.limits]\nmessages_per_contact_per_day = 2\n")
    monkeypatch.setenv("CRASHPOINT", "answer.remembered:2")
    child = await world.process()
    monkeypatch.delenv("CRASHPOINT")
    await world.say("one")
    await world.got(1)
    await world.say("two")
    assert await child.wait() == -9
    await configure(world, "[tenants.noor.limits]\nmessages_per_contact_per_day = 1\n")
    await world.process()
    assert await world.got(2, timeout=20) == ["You said: one", "You said: two"]
    assert len(world.asked) == 2


async def test_an_answer_that_the_database_did_not_take_is_not_asked_for_again(world: World) -> None:
    """The worker has it at hand for as long as it lives, pays once, and commits it when that can be done; no limit takes it."""
    await configure(world, "[tenants.noor.limits]\ntokens_per_day = 1\n")
    await world.worker()
    await world.act("REVOKE INSERT ON steps FROM qasid_courier")
    await world.say("question")
    await world.until("SELECT token >= 3 FROM lanes")
    assert await world.rows("SELECT step FROM steps") == []
    await world.act("GRANT INSERT ON steps TO qasid_courier")
    assert await world.got(1) == ["You said: question"]
    [call] = world.sandbox.assistant.calls
    assert await world.rows("SELECT step FROM steps") == [("answer",)]
    assert await world.rows("SELECT input_tokens FROM usage") == [(call.input_tokens,)]


async def test_what_an_edit_makes_useless_is_paid_for_all_the_same(world: World, script: Script) -> None:
    """Two answers were asked for, one is sent: the turn has cost both."""
    scripted = script()
    scripted.takes = 1.0
    await world.worker()
    said = await world.say("question")
    await world.until("SELECT count(*) = 1 FROM turns")
    await world.say("a better question", kind="edit", target=said.ids[0])
    scripted.takes = 0.01
    await world.got(1)
    assert len(scripted.asked) == 2
    assert await world.rows("SELECT input_tokens, output_tokens, outcome FROM usage") == [(6, 8, "answered")]


async def test_an_answer_that_is_dropped_is_paid_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind its memo the worker dies, and then the channel is disabled: nobody reads it, and the tenant's day knows of it."""
    monkeypatch.setenv("CRASHPOINT", "answer.remembered:1")
    child = await world.process()
    monkeypatch.delenv("CRASHPOINT")
    await world.say("question")
    assert await child.wait() == -9
    await channel(world, "enabled = false")
    await world.process()
    await world.until("SELECT count(*) = 1 FROM usage")
    [call] = world.sandbox.assistant.calls
    assert await world.rows("SELECT outcome, input_tokens, output_tokens FROM usage") == [
        ("left", call.input_tokens, call.output_tokens)
    ]


async def test_what_is_being_spent_counts_before_its_turn_is_settled(database: Database) -> None:
    """A look at the table in between knows nothing of it, and takes nothing away; behind the turn it is not counted twice."""
    tenant = uuid4()
    async with db.pool(database.url, "qasid_courier", name="test", max_size=1) as pool:
        spending = Spending(pool)
        with spending.turn(tenant) as spent, spending.turn(tenant) as other:
            spent.add(5, 2)
            other.add(1, 0)
            assert await spending.today(tenant) == 8
            assert await spending.today(uuid4()) == 0
        assert await spending.today(tenant) == 8


async def test_a_turn_that_is_left_by_an_error_is_counted_once(database: Database) -> None:
    """Its answer is kept, its settlement is not, three times: the fourth claim counts what it cost, as its settlement does."""
    tenant = uuid4()
    async with db.pool(database.url, "qasid_courier", name="test", max_size=1) as pool:
        spending = Spending(pool)
        await spending.today(tenant)
        for _ in range(3):
            with suppress(DatabaseUnavailable), spending.turn(tenant) as spent:
                spent.add(5, 2)
                assert await spending.today(tenant) == 7
                raise DatabaseUnavailable("the settlement was not answered")
        with spending.turn(tenant) as spent:
            spent.add(5, 2)
        assert await spending.today(tenant) == 7


async def test_beyond_the_days_tokens_nobody_is_asked(world: World) -> None:
    """What the table `usage` says counts, whichever worker wrote it; what needs no assistant is answered as ever."""
    await configure(world, "[tenants.noor.limits]\ntokens_per_day = 20\n")
    end = await world.worker()
    await world.say("a question of some length")
    await world.got(1)
    assert world.sandbox.assistant.count == 1
    await world.act("UPDATE usage SET input_tokens = 20")
    await end()
    await world.worker()
    count = world.sandbox.assistant.count
    await world.say("question", sender=OTHER)
    assert (await world.got(1, sender=OTHER))[0].startswith("Sorry, I cannot answer any more")
    await world.say("hi", sender=OTHER)
    assert (await world.got(2, sender=OTHER))[1] == "Hello! How can we help?"
    assert world.sandbox.assistant.count == count


@pytest.mark.parametrize("limit", [2, 0])
async def test_calls_beyond_the_places_wait_their_turn(world: World, script: Script, limit: int) -> None:
    """Six people ask at once, two are asked for at a time, and all are answered. 0: more at a time."""
    await configure(world, f"[tenants.noor.limits]\nassistant_calls_at_once = {limit}\n")
    scripted = script()
    scripted.takes = 0.3
    people = [f"1555000777{n}" for n in range(6)]
    for person in people:
        await world.say("question", sender=person)
    await world.worker()
    for person in people:
        assert await world.got(1, sender=person) == ["Fine."]
    assert scripted.most_at_once == limit if limit else scripted.most_at_once > 2


ONE_AT_A_TIME = "[tenants.noor.limits]\nassistant_calls_at_once = 1\n[tenants.noor.assistant]"


async def test_who_waits_for_a_place_for_longer_than_an_answer_may_take_is_answered(world: World) -> None:
    """Their time begins with their place: eight people, one at a time, twice as long together as any of them has."""
    await configure(world, ONE_AT_A_TIME + ASSISTANT.format(url=world.sandbox.url, model="m", deadline=2))
    world.sandbox.assistant.pace = Pace(first_token=0.5)
    people = [f"1555000777{n}" for n in range(8)]
    for person in people:
        await world.say("question", sender=person)
    await world.worker()
    for person in people:
        assert await world.got(1, sender=person, timeout=30) == ["You said: question"]
    assert len(world.asked) == 8


async def test_who_waits_for_a_place_of_those_who_wait_in_vain_is_told_in_time(world: World) -> None:
    """The assistant is away: one has the place and waits for it, the others for them; nobody waits for all of the others' time."""
    await configure(world, ONE_AT_A_TIME + ASSISTANT.format(url="http://127.0.0.1:9", model="m", deadline=2))
    people = [f"1555000777{n}" for n in range(8)]
    for person in people:
        await world.say("question", sender=person)
    await world.worker()
    began = time.monotonic()
    for person in people:
        assert await world.got(1, sender=person, timeout=30) == [FAILURE]
    assert time.monotonic() - began < 8


async def test_who_needs_no_assistant_waits_for_no_place(world: World) -> None:
    """A kind that cannot be read is told so while the one place is another's."""
    await through_gate(world)
    await configure(world, ONE_AT_A_TIME + ASSISTANT.format(url=world.gate.url, model="m", deadline=20))
    hold = world.gate.hold("assistant")
    await world.worker()
    await world.say("question")
    await hold.reached()
    await world.say(kind="sticker", sender=OTHER)
    await world.sandbox.ledger.wait(OTHER, 1, 4.0)
    assert [line.text for line in world.lines(OTHER)] == [UNSUPPORTED]
    hold.open.set()
    assert await world.got(1) == ["You said: question"]
