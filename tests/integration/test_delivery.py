"""A worker hands answers over: in order, whatever the provider refuses or loses, once."""

import asyncio
import time
from itertools import pairwise

import pytest
from aiohttp import web

from app.sandbox import scripts
from app.sandbox.faults import Fault
from app.sandbox.numbers import Ladder
from app.sandbox.numbers import now as sandbox_now
from app.sandbox.people import Spoken
from tests import world as shared
from tests.world import (
    FAST,
    NUMBER,
    OTHER,
    PERSON,
    SILENT,
    World,
    alerts,
    ladder,
    through_gate,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

world = shared.world


# --- in order ---


async def test_a_long_answer_goes_out_in_order_each_part_after_the_last_was_delivered(world: World) -> None:
    """Part two is posted only once part one's `delivered` has come."""
    ladder(world, Ladder(sent=0.0, delivered=0.3, read=None))
    await world.worker(order_wait_seconds=8.0)
    await world.say("tok#way/3")
    texts = await world.got(3)
    assert [text.split()[0] for text in texts] == ["way#1/3", "way#2/3", "way#3/3"]
    assert " ".join(texts).split() == " ".join(scripts.parts("way", 3)).split()
    times = [line.t for line in world.lines()]
    assert all(0.3 <= later - earlier < 2.0 for earlier, later in pairwise(times))


async def test_without_statuses_the_next_part_waits_for_the_bounded_time(world: World) -> None:
    """No status at all: each part goes out `order_wait_seconds` after the last, so does the next turn's answer."""
    ladder(world, SILENT)
    await world.worker()
    await world.say("tok#slow/2")
    await world.got(2)
    await world.say("hi")
    texts = await world.got(3)
    assert [text.split()[0] for text in texts] == ["slow#1/2", "slow#2/2", "Hello!"]
    times = [line.t for line in world.lines()]
    assert all(0.95 <= later - earlier < 2.5 for earlier, later in pairwise(times))


async def test_the_gates_wait_runs_while_the_assistant_writes(world: World) -> None:
    """The bounded wait counts from the last part's acceptance, not from the end of the next answer."""
    ladder(world, SILENT)
    await world.worker(order_wait_seconds=1.5)
    await world.say("hi")
    await world.got(1)
    world.sandbox.faults.queue("assistant", [Fault(kind="slow", seconds=1.0)])
    await world.say("question")
    await world.got(2)
    first, second = world.lines()
    assert 1.4 <= second.t - first.t < 2.3


# --- what the provider refuses ---


async def test_a_dead_refusal_fails_the_part_and_cancels_the_rest(world: World) -> None:
    """131026 is final: the chunk has failed, the rest is never sent, the lane goes on, somebody is told."""
    before = alerts("chunk_failed")
    world.sandbox.faults.queue("send", [Fault(kind="graph_error", code=131026)])
    await world.worker()
    await world.say("tok#dead/3")
    await world.until("SELECT count(*) = 3 FROM chunks")
    await world.at_rest()
    assert await world.rows("SELECT state, code FROM chunks ORDER BY no") == [
        ("failed", 131026),
        ("cancelled", None),
        ("cancelled", None),
    ]
    assert len(world.lines()) == 1
    assert alerts("chunk_failed") == before + 1
    await world.say("hi")
    assert await world.got(1) == ["Hello! How can we help?"]


async def test_a_failed_status_fails_the_part_and_cancels_the_rest(world: World) -> None:
    """What was accepted and then failed by status is not sent again, nor is what would follow it."""
    world.sandbox.faults.queue("send", [Fault(kind="status_failed", code=131026)])
    await world.worker(order_wait_seconds=8.0)
    await world.say("tok#gone/2")
    await world.until("SELECT count(*) = 2 FROM chunks")
    await world.at_rest()
    assert await world.rows("SELECT state, code FROM chunks ORDER BY no") == [("failed", 131026), ("cancelled", None)]
    assert len(world.lines()) == 1


async def test_too_many_to_one_person_is_sent_again_later(world: World) -> None:
    """131056 says not now: the same chunk, four seconds on, and everything after it waits."""
    world.sandbox.faults.queue("send", [Fault(kind="graph_error", code=131056)])
    await world.worker()
    await world.say("hi")
    await world.until("SELECT extract(epoch FROM due_at - now()) BETWEEN 2 AND 4 FROM chunks WHERE state = 'ready'")
    await world.until("SELECT run_at > now() + interval '2 seconds' FROM lanes WHERE owner IS NULL")
    await world.act("UPDATE chunks SET due_at = now()")
    await world.act("UPDATE lanes SET run_at = now()")
    assert await world.got(1) == ["Hello! How can we help?"]
    assert [(line.outcome, line.attempt) for line in world.lines()] == [("131056", 0), ("ok", 1)]


async def test_a_channel_that_must_be_mended_holds_what_it_has_until_apply(world: World) -> None:
    """190 holds the chunk and alerts; the new token of `qasid apply` sends it, and only the new one is tried."""
    before = alerts("channel_held")
    ladder(world, FAST, token="token-2")
    await world.worker()
    await world.say("hi")
    await world.until("SELECT due_at > now() + interval '10 seconds' FROM chunks WHERE state = 'ready' AND code = 190")
    assert alerts("channel_held") == before + 1
    await world.apply(token="env:NEW")
    assert await world.got(1) == ["Hello! How can we help?"]
    assert await world.rows("SELECT n, code FROM attempts ORDER BY n") == [(1, 190), (2, None)]
    assert alerts("channel_held") == before + 1


async def test_a_code_that_no_integer_holds_is_in_doubt_and_settled_by_silence(world: World) -> None:
    """An error whose code makes no sense cannot stop a lane: it says nothing of the send."""
    await through_gate(world)
    calls = 0
    forward = world.gate.call

    async def nonsense(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        if calls > 1:
            return await forward(request)
        return web.Response(status=400, body=b'{"error":{"code":%s,"message":"x"}}' % (b"9" * 40))

    runner = web.AppRunner(site := web.Application(), access_log=None, shutdown_timeout=0.1)
    site.router.add_post("/{path:.*}", nonsense)
    await runner.setup()
    world.stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    world.gate.url, url = f"http://127.0.0.1:{runner.addresses[0][1]}", world.gate.url
    await world.apply()
    world.gate.url = url
    await world.worker()
    await world.say("hi")
    assert await world.got(1, timeout=5) == ["Hello! How can we help?"]
    assert await world.rows("SELECT n, state FROM attempts ORDER BY n LIMIT 1") == [(1, "in_doubt")]


# --- in doubt ---


async def test_a_status_resolves_what_was_in_doubt_without_a_second_post(world: World) -> None:
    """Accepted, the answer lost: the status says so, and nothing is sent twice."""
    ladder(world, Ladder(sent=0.2, delivered=0.3, read=None))
    world.sandbox.faults.queue("send", ["rst_after_accept"])
    await world.worker()
    await world.say("hi")
    await world.until("SELECT count(*) = 1 FROM attempts WHERE state = 'in_doubt'")
    assert await world.got(1) == ["Hello! How can we help?"]
    await world.until("SELECT state = 'delivered' FROM chunks")
    assert len(world.lines()) == 1


async def test_a_status_before_the_answer_of_the_post_stands(world: World) -> None:
    """The status overtakes the POST's answer, which then never comes: there is no doubt at all."""
    world.sandbox.faults.queue("send", [Fault(kind="no_answer", seconds=3)])
    await world.worker()
    await world.say("hi")
    await world.got(1)
    assert await world.rows("SELECT c.state, a.state FROM chunks c JOIN attempts a ON a.chunk_id = c.id") == [
        ("delivered", "delivered")
    ]
    assert len(world.lines()) == 1


async def test_after_silence_it_is_sent_again(world: World) -> None:
    """Never accepted, the answer lost, no status: after QASID_IN_DOUBT_SECONDS it goes out again."""
    world.sandbox.faults.queue("send", ["rst_before_accept"])
    await world.worker()
    await world.say("hi")
    assert await world.got(1) == ["Hello! How can we help?"]
    first, second = world.lines()
    assert (first.accepted, second.accepted) == (False, True)
    assert 0.6 <= second.t - first.t < 3.0


async def test_under_the_policy_park_silence_ends_in_a_visible_count(world: World) -> None:
    """`park` sends nothing twice: the chunk is parked, the rest cancelled, somebody told; the lane goes on."""
    before = alerts("chunk_parked")
    await world.apply(in_doubt="park")
    world.sandbox.faults.queue("send", ["rst_before_accept"])
    await world.worker()
    await world.say("tok#park/2")
    await world.until("SELECT count(*) = 2 FROM chunks")
    await world.at_rest()
    assert await world.rows("SELECT state FROM chunks ORDER BY no") == [("parked",), ("cancelled",)]
    assert len(world.lines()) == 1
    assert alerts("chunk_parked") == before + 1
    await world.say("hi")
    assert await world.got(1) == ["Hello! How can we help?"]


# --- once ---


async def test_a_webhook_twenty_times_at_two_doors_is_one_answer(world: World) -> None:
    """Duplicates, at once and at different processes, cost nothing: one call, one answer."""
    await world.open_door()
    await world.worker()
    await world.worker()
    number = world.sandbox.numbers[NUMBER]
    spoken = [Spoken(phone_number_id=NUMBER, sender=PERSON, text="once", id="wamid.one", timestamp=int(sandbox_now()))]
    await asyncio.gather(
        world.sandbox.say(*spoken, copies=10), world.sandbox.say(*spoken, copies=10, url=world.gate.webhooks(1))
    )
    assert await world.got(1) == ["You said: once"]
    assert world.asked == [("once",)] and number.phone_number_id == NUMBER
    assert await world.rows("SELECT count(*) FROM messages WHERE direction = 'in'") == [(1,)]


async def test_two_workers_share_the_lanes_and_double_nothing(world: World) -> None:
    """Forty people, two workers, every answer once."""
    people = [f"1555001{n:04}" for n in range(40)]
    await world.worker()
    await world.worker()
    await asyncio.gather(*(world.say(f"from {person}", sender=person) for person in people))
    await asyncio.gather(*(world.sandbox.ledger.wait(person, 1, 10) for person in people))
    await world.at_rest()
    assert sorted(line.text for line in world.sandbox.ledger.lines()) == sorted(f"You said: from {p}" for p in people)
    assert world.sandbox.assistant.count == 40


# --- what a number must wait for, what a conversation may get ---


async def test_what_one_lane_is_told_to_wait_binds_the_number_and_no_other(world: World) -> None:
    """A 429 with Retry-After: until it ends nobody is sent anything from this number, whichever worker asks."""
    await world.worker()
    await world.worker()
    world.sandbox.faults.queue("send", [Fault(kind="http_429", seconds=2)], only=PERSON)
    await world.say("hi")
    await world.until("SELECT count(*) = 1 FROM holds WHERE until > now()")
    [first] = world.sandbox.ledger.lines()
    await world.say("hi", sender=OTHER)
    assert len(await world.got(1)) == 1
    assert len(await world.got(1, sender=OTHER)) == 1
    later = [line.t for line in world.sandbox.ledger.lines(accepted=True)]
    assert min(later) - first.t >= 2.0


async def test_a_wait_that_a_person_ends_is_ended_in_the_worker_that_was_told_of_it(world: World) -> None:
    """An hour without sends, for a reason that is mended: after `qasid apply` nobody waits out the rest of it."""
    await world.worker()
    world.sandbox.faults.queue("send", [Fault(kind="http_429", seconds=3600)], only=PERSON)
    await world.say("hi")
    await world.until("SELECT count(*) = 1 FROM holds WHERE until > now() + interval '1 minute'")
    await world.apply(deadline=11)
    began = time.monotonic()
    await world.say("hi", sender=OTHER)
    assert len(await world.got(1, sender=OTHER)) == 1
    assert len(await world.got(1)) == 1
    assert time.monotonic() - began < 30.0
