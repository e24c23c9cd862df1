"""Read receipts and typing, beside the answers of a worker: who is told, of what, and that nothing else notices."""

import asyncio
from collections.abc import Callable
from functools import partial

import pytest
from prometheus_client import REGISTRY

import workers.main
from app.sandbox.faults import Fault
from app.sandbox.numbers import now as sandbox_now
from app.sandbox.people import Spoken
from app.store.lanes import MOST_CLAIMS
from tests import world as shared
from tests.tenants import channel, configure, outcomes
from tests.world import FAILURE, NUMBER, PERSON, World, through_gate
from workers import typing
from workers.typing import Typing

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

world = shared.world


def counted(metric: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(metric, labels) or 0.0


def reads(world: World) -> list[tuple[str, bool]]:
    return [(read.message_id, read.typing) for read in world.sandbox.ledger.reads]


async def test_typing_is_shown_while_the_assistant_writes(world: World) -> None:
    """Of the newest message, at once; the turn is answered as ever."""
    await through_gate(world)
    await world.worker()
    hold = world.gate.hold("assistant", "first")
    first = await world.say("first")
    await hold.reached()
    assert await world.sandbox.ledger.tally.reach(("read", NUMBER), 1, 5.0)
    await world.say("second")
    third = await world.say("third")
    hold.open.set()
    await world.got(2)
    assert reads(world) == [(first.ids[0], True), (third.ids[0], True)]


async def test_what_is_answered_at_once_is_read_without_typing(world: World) -> None:
    """An intent's reply or a kind's sentence is there before typing could show; the receipt comes behind it."""
    await world.worker()
    one = await world.say("hi")
    await world.got(1)
    other = await world.say(kind="sticker")
    await world.got(2)
    assert await world.sandbox.ledger.tally.reach(("read", NUMBER), 2, 5.0)
    assert reads(world) == [(one.ids[0], False), (other.ids[0], False)]


async def test_nobody_is_told_of_what_gets_no_answer(world: World) -> None:
    """Reactions, edits, revocations, and what is left to a person: that nobody has read it is the truth."""
    await world.worker()
    said = await world.say("hi")
    await world.got(1)
    assert await world.sandbox.ledger.tally.reach(("read", NUMBER), 1, 5.0)
    await world.act("UPDATE lanes SET paused_until = now() + interval '1 hour'")
    await world.say("\N{THUMBS UP SIGN}", kind="reaction", target=said.ids[0])
    await world.say("hello", kind="edit", target=said.ids[0])
    await world.say(kind="revoke", target=said.ids[0])
    await world.say("left to a person")
    await world.until("SELECT count(*) = 1 FROM usage WHERE outcome = 'left'")
    await world.at_rest()
    assert len(reads(world)) == 1


async def behind(world: World, number: str = NUMBER) -> list[tuple[str, bool]]:
    """What the provider has been told once the first receipt has come, and whatever comes behind it."""
    assert await world.sandbox.ledger.tally.reach(("read", number), 1, 8.0)
    await world.at_rest()
    return reads(world)


async def test_who_is_told_that_it_came_too_late_was_read(world: World) -> None:
    """The receipt comes behind the notice; of what is answered by silence there is none."""
    await channel(world, 'answer_within_hours = 1\nlate = "notice"')
    said = await world.say("question")
    await world.act("UPDATE messages SET sent_at = sent_at - interval '3 hours'")
    await world.worker()
    await world.got(1)
    assert await behind(world) == [(said.ids[0], False)]
    await world.say("and now?", timestamp=int(sandbox_now()) - 2 * 3600)
    await world.until("SELECT count(*) = 2 FROM usage")
    await world.at_rest()
    assert await outcomes(world) == ["late", "late"] and len(reads(world)) == 1


async def test_who_is_told_that_it_is_enough_was_read(world: World) -> None:
    """And no more than that: what is only stored from then on is not."""
    await configure(world, "limits = { messages_per_contact_per_day = 1 }")
    await world.worker()
    await world.say("hi")
    await world.got(1)
    said = await world.say("question")
    await world.got(2)
    assert await world.sandbox.ledger.tally.reach(("read", NUMBER), 2, 8.0)
    assert reads(world)[1] == (said.ids[0], False)
    await world.say("question")
    await world.until("SELECT count(*) = 3 FROM usage")
    await world.at_rest()
    assert await outcomes(world) == ["intent", "limited", "limited"] and len(reads(world)) == 2


async def test_whose_turn_is_parked_was_read(world: World) -> None:
    """They read the failure text, so it is no secret."""
    said = await world.say("question")
    await world.act(f"UPDATE lanes SET attempts = {MOST_CLAIMS}")
    await world.worker()
    assert await world.got(1) == [FAILURE]
    assert await behind(world) == [(said.ids[0], False)]


async def test_who_is_answered_by_a_failure_was_read_though_nobody_is_asked(world: World) -> None:
    """A tenant without an assistant: typing was let through while nobody wrote, or the receipt comes behind."""
    await world.without_assistant("1002")
    await world.worker()
    said = await world.sandbox.say(
        Spoken(phone_number_id="1002", sender=PERSON, text="question"), url=world.gate.webhooks(1)
    )
    assert await world.got(1) == [FAILURE]
    assert (said.ids[0], False) in await behind(world, "1002")


async def test_whoever_typing_did_not_reach_is_told_behind_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same message, without typing."""
    monkeypatch.setattr(typing, "QUIET", 0.0)
    await through_gate(world)
    world.sandbox.faults.queue("read", [Fault(kind="http_500_json")])
    failed = counted("qasid_typing_total", result="failed")
    await world.worker()
    hold = world.gate.hold("assistant")
    said = await world.say("question")
    await hold.reached()
    await until(lambda: counted("qasid_typing_total", result="failed") > failed)
    hold.open.set()
    await world.got(1)
    assert await behind(world) == [(said.ids[0], False)]


async def test_typing_ends_for_what_was_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the assistant still writes: it is shown once more at the most, and again for nobody."""
    monkeypatch.setattr(workers.main, "Typing", partial(Typing, life=0.1))
    await through_gate(world)
    await world.worker()
    hold = world.gate.hold("assistant", "taken back")
    said = await world.say("to be taken back")
    await hold.reached()
    assert await world.sandbox.ledger.tally.reach(("read", NUMBER), 2, 5.0)  # renewed, as long as it stands
    await world.say(kind="revoke", target=said.ids[0])
    shown = len(reads(world))
    assert not await world.sandbox.ledger.tally.reach(("read", NUMBER), shown + 2, 2.0)
    hold.open.set()
    await world.at_rest()
    assert await outcomes(world) == ["revoked"] and len(reads(world)) <= shown + 1


@pytest.mark.parametrize(
    ("fault", "heard"),
    [
        (Fault(kind="no_answer"), 12),
        (Fault(kind="http_500_json"), 12),
        (Fault(kind="graph_error", code=190), 1),  # after the first the number is left alone
    ],
    ids=["hangs", "fails", "is refused"],
)
async def test_an_answer_waits_for_no_receipt(
    world: World, fault: Fault, heard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hang, fail or are refused, as many as would open a breaker: answers come as ever, the channel is none the worse."""
    monkeypatch.setattr(typing, "QUIET", 0.0)
    monkeypatch.setattr(typing, "TIMEOUT", 0.3)
    await through_gate(world)
    world.sandbox.faults.queue("read", [fault] * 100)
    failed = counted("qasid_typing_total", result="failed")
    opened = counted("qasid_breaker_opened_total", dependency="channel")
    await world.worker()
    hold = world.gate.hold("assistant")
    people = [f"155500040{n:02}" for n in range(12)]
    for person in people:
        await world.say("question", sender=person)
    await until(lambda: counted("qasid_typing_total", result="failed") >= failed + heard)
    hold.open.set()
    for person in people:
        assert await world.got(1, sender=person) == ["You said: question"]
    assert {line.outcome for line in world.sandbox.ledger.lines()} == {"ok"}
    assert await world.rows("SELECT count(*) FROM holds") == [(0,)]
    assert counted("qasid_breaker_opened_total", dependency="channel") == opened


async def test_an_answer_comes_while_its_receipt_hangs(world: World) -> None:
    """The receipt has five seconds, the answer does not wait for its end."""
    await through_gate(world)
    world.sandbox.faults.queue("read", ["no_answer"])
    failed = counted("qasid_typing_total", result="failed")
    await world.worker()
    await world.say("question")
    assert await world.got(1, timeout=3) == ["You said: question"]
    assert counted("qasid_typing_total", result="failed") == failed


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not reached():
            await asyncio.sleep(0.01)
