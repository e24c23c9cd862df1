"""A worker is killed, paused, stopped, left without SAQ, or fed poison: answered all the same, once.

The moment of each is one that a test holds open; it is never hit by chance.
"""

import asyncio
import signal
import time

import httpx
import psycopg
import pytest

from app.sandbox.numbers import Ladder
from app.store.lanes import MOST_CLAIMS, MOST_ERRORS
from tests import world as shared
from tests.world import (
    FAILURE,
    OTHER,
    PERSON,
    World,
    alerts,
    ladder,
    through_gate,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

world = shared.world


# --- killed, paused, stopped ---


async def test_killed_between_memo_and_settle_nobody_is_asked_again(world: World) -> None:
    """The memo outlives the worker: another settles and sends what was answered, in one POST."""
    await through_gate(world)
    child = await world.process()
    hold = world.gate.hold("assistant")
    await world.say("question")
    await hold.reached()
    async with world.lane_held() as reached:
        hold.open.set()
        pid = await reached()
        assert await world.rows("SELECT step FROM steps") == [("answer",)]
        child.kill()
        await world.rows("SELECT pg_terminate_backend(%s)", pid)  # or the server would settle for the dead
    await world.worker()
    assert await world.got(1) == ["You said: question"]
    assert world.asked == [("question",)]
    assert len(world.lines()) == 1


async def test_killed_in_mid_post_is_in_doubt_and_ends_in_one_message(world: World) -> None:
    """Two people, one POST accepted and one not when the worker dies: each ends with one message."""
    await through_gate(world)
    ladder(world, Ladder(sent=0.0, delivered=0.1, read=None))
    taken, lost = world.gate.hold("send", PERSON, after=True), world.gate.hold("send", OTHER)
    child = await world.process()
    await world.say("hi")
    await world.say("hi", sender=OTHER)
    await taken.reached()
    await lost.reached()
    child.kill()
    await child.wait()
    await world.worker()
    lost.open.set()
    assert await world.got(1) == ["Hello! How can we help?"]
    assert await world.got(1, sender=OTHER) == ["Hello! How can we help?"]
    assert (len(world.lines()), len(world.lines(OTHER))) == (1, 1)
    states = await world.rows("SELECT n, state FROM attempts ORDER BY n, state")
    assert [n for n, _ in states] == [1, 1, 2] and "in_doubt" in [state for _, state in states]


async def test_paused_while_it_asks_it_finds_its_lane_another_s(world: World) -> None:
    """Paused beyond its lease; another answers. When it goes on, the fence turns its answer away."""
    await through_gate(world)
    child = await world.process()
    [(old,)] = await world.rows("SELECT id FROM workers")
    hold = world.gate.hold("assistant")
    await world.say("question")
    await hold.reached()
    child.send_signal(signal.SIGSTOP)
    await world.worker()
    hold.open.set()
    assert await world.got(1) == ["You said: question"]
    child.send_signal(signal.SIGCONT)
    await world.until("SELECT count(*) = 2 AND count(*) FILTER (WHERE id = %s) = 0 FROM workers", old)
    await world.say("hi")  # whatever the first had in hand is done by the time that this is
    assert await world.got(2) == ["You said: question", "Hello! How can we help?"]
    assert len(world.lines()) == 2
    assert len(world.asked) == 2  # the answer was not committed: it had to be asked again


async def test_paused_between_intent_and_post_it_does_not_send_any_more(world: World) -> None:
    """The intent is committed, then the process stands still beyond its lease: the last check keeps the POST back."""
    await through_gate(world)
    child = await world.process()
    [(old,)] = await world.rows("SELECT id FROM workers")
    hold = world.gate.hold("assistant")
    await world.say("question")
    await hold.reached()
    async with world.lane_held() as reached:
        hold.open.set()
        await reached()
        child.send_signal(signal.SIGSTOP)
    await world.until("SELECT state = 'sending' FROM chunks")
    await world.worker()
    assert await world.got(1) == ["You said: question"]
    child.send_signal(signal.SIGCONT)
    await world.until("SELECT count(*) = 2 AND count(*) FILTER (WHERE id = %s) = 0 FROM workers", old)
    await world.say("hi")  # whatever the first had in hand is done by the time that this is
    await world.got(2)
    assert [line.text for line in world.lines()] == ["You said: question", "Hello! How can we help?"]
    [(one, why), (two, _)] = await world.rows(
        "SELECT n, a.reason FROM attempts a JOIN chunks c ON c.id = chunk_id AND seq = 1 ORDER BY n"
    )
    # Woken, it sees first either that its settlement is through (a check of its lease, the last before the write) or that it
    # took too long.
    assert (one, two) == (1, 2)
    assert (
        "lease" in why
        or "held back at the last moment" in why
        or why
        in (
            "the worker that sent it is gone",
            "the answer to its intent was lost, nothing was sent",
        )
    )


async def test_without_time_left_in_its_lease_a_worker_does_not_send(world: World) -> None:
    """Its beats get no answer: what is settled stays unsent, recorded as never left, until the lease holds again."""
    await through_gate(world)
    lanes = await world.parts(lease_seconds=3.0)
    hold = world.gate.hold("assistant")
    await world.say("question")
    lanes.ring()
    await hold.reached()
    async with await psycopg.AsyncConnection.connect(world.superuser_url) as conn:
        await conn.execute("SELECT FROM workers FOR UPDATE")
        async with asyncio.timeout(5):
            while lanes.may_send():
                await asyncio.sleep(0.01)
        hold.open.set()
        await world.until("SELECT count(*) = 1 FROM attempts WHERE state = 'never_left'")
        await world.until("SELECT due_at > now() FROM chunks WHERE state = 'ready'")  # not tried again and again
        assert world.lines() == []
        await conn.rollback()
    assert await world.got(1) == ["You said: question"]
    assert world.asked == [("question",)]
    assert len(world.lines()) == 1


async def test_sigterm_lets_the_turn_at_work_end(world: World) -> None:
    """A worker told to stop finishes what it has, claims nothing more, says farewell and ends with 0."""
    await through_gate(world)
    child = await world.process()
    hold = world.gate.hold("assistant")
    await world.say("question")
    await hold.reached()
    child.send_signal(signal.SIGTERM)
    await world.until("SELECT count(*) > 0 FROM workers")
    hold.open.set()
    assert await asyncio.wait_for(child.wait(), 10) == 0
    assert [line.text for line in world.lines()] == ["You said: question"]
    assert await world.rows("SELECT owner, done_seq, head_seq FROM lanes") == [(None, 1, 1)]
    assert await world.rows("SELECT count(*) FROM workers") == [(0,)]
    await world.say("hi")
    assert len(world.lines()) == 1


# --- without SAQ, and beside poison ---


async def test_without_saqs_tables_answers_come_a_second_later(world: World) -> None:
    """Wake-ups carry no truth: with their tables gone before and while a worker runs, nobody is forgotten."""
    await world.worker()
    await world.say("hi")
    await world.got(1)
    await world.act("ALTER TABLE saq_jobs RENAME TO saq_gone")
    await world.act("ALTER TABLE saq_stats RENAME TO saq_stats_gone")
    began = time.monotonic()
    await world.say("question")
    assert await world.got(2) == ["Hello! How can we help?", "You said: question"]
    assert time.monotonic() - began < 2.5
    stop = await world.worker()
    await world.say("hi")
    assert len(await world.got(3)) == 3
    began = time.monotonic()
    await stop()
    assert time.monotonic() - began < 3.0


class Poison(httpx.AsyncBaseTransport):
    """An assistant that breaks what asks it, in a way that nobody foresaw; or one that answers, where that is not the poison."""

    def __init__(self, *, breaks: bool) -> None:
        self.tries = 0
        self.breaks = breaks

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.tries += 1
        if self.breaks:
            raise RuntimeError("nobody foresaw this")
        said = (
            b'data: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":1,"output_tokens":1}}}\n\n'
            b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"fine"}}\n\n'
            b'data: {"type":"message_stop"}\n\n'
        )
        return httpx.Response(200, stream=httpx.ByteStream(said))


@pytest.mark.parametrize("breaks", [True, False], ids=["the assistant breaks us", "no table takes the answer"])
async def test_what_fails_at_every_try_is_parked_and_its_lane_goes_on(world: World, breaks: bool) -> None:
    """Five errors, each later than the last; then the head is parked with the failure text and an alert."""
    before = alerts("turn_parked")
    poison = Poison(breaks=breaks)
    if not breaks:
        await world.act("ALTER TABLE usage ADD CHECK (outcome <> 'answered')")
    broken = await world.stack.enter_async_context(httpx.AsyncClient(transport=poison))
    lanes = await world.parts(broken)
    await world.say("question")
    for n in range(1, 6):
        counted = n if n < MOST_ERRORS else MOST_CLAIMS
        await world.until("SELECT attempts = %s AND owner IS NULL AND run_at > now() FROM lanes", counted)
        assert world.lines() == []
        await world.act("UPDATE lanes SET run_at = now()")
        lanes.ring()
    assert await world.got(1) == [FAILURE]
    assert poison.tries == (5 if breaks else 1)  # an answer that is remembered is not asked for again
    assert alerts("turn_parked") == before + 1
    assert await world.rows("SELECT outcome FROM usage") == [("parked",)]
    await world.say("hi")
    lanes.ring()
    assert await world.got(2) == [FAILURE, "Hello! How can we help?"]


@pytest.mark.parametrize(("deaths", "answer"), [(MOST_CLAIMS - 1, "Hello! How can we help?"), (MOST_CLAIMS, FAILURE)])
async def test_who_was_at_work_when_workers_died_is_tried_until_the_eighth(
    world: World, deaths: int, answer: str
) -> None:
    """The last try that is let to it is an ordinary one; after that the person is told so."""
    await world.say("hi")
    await world.act(f"UPDATE lanes SET attempts = {deaths}")
    await world.parts()
    assert await world.got(1) == [answer]


async def test_what_cannot_even_be_read_is_parked_and_its_lane_goes_on(world: World) -> None:
    """Rows that no build of ours can open: after as many tries their end is written unread, and told of."""
    before = alerts("turn_parked")
    await world.say("question")
    await world.act("UPDATE messages SET sent_at = 'infinity'")
    lanes = await world.parts()
    for _ in range(6):
        await world.act("UPDATE lanes SET run_at = now() WHERE done_seq < head_seq")
        lanes.ring()
        await world.until("SELECT owner IS NULL AND (run_at > now() OR done_seq = head_seq) FROM lanes")
    assert await world.rows("SELECT outcome FROM usage") == [("parked",)]
    assert alerts("turn_parked") == before + 1
    await world.act("UPDATE messages SET sent_at = now()")
    await world.say("hi")
    assert await world.got(1) == ["Hello! How can we help?"]
