"""Who has which lane: claim, release, bury, disown, and the fence, as the database keeps them.

Each test works beside a twin tenant whose ids are the same and whose rows may not move (tests/ground.py).
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.db import Connection
from app.store import chunks, lanes, turns
from app.store.chunks import Intent
from app.store.lanes import Claim, Release
from tests import ground as shared
from tests.ground import Ground

pytestmark = pytest.mark.anyio

here = shared.here


async def intended(conn: Connection, worker: UUID, rows: Sequence[Intent]) -> list[str]:
    """What the fence says to each intent."""
    return [permission.fence for permission in await chunks.intend(conn, worker, rows)]


# --- claim ---


async def test_only_what_is_due_and_unowned_is_claimed_the_oldest_first(here: Ground) -> None:
    """Not a lane without a time, nor one of later, nor another's; and no more than asked for."""
    never, later, new, old, owned = [await here.lane() for _ in range(5)]
    for lane, run_at in ((later, 60), (new, -1), (old, -6), (owned, -9)):
        await here.act(
            "UPDATE lanes SET run_at = now() + %s * interval '1 second' WHERE tenant_id = %s AND conversation_id = %s",
            *(run_at, here.tenant, lane),
        )
    await here.act(
        "UPDATE lanes SET owner = %s WHERE tenant_id = %s AND conversation_id = %s", uuid4(), here.tenant, owned
    )
    worker = await here.worker()
    assert [claim.conversation_id for claim in await here.claim(worker, 1)] == [old]
    assert [claim.conversation_id for claim in await here.claim(worker)] == [new]
    assert await here.claim(worker) == []
    assert {(await here.row(lane))["owner"] for lane in (never, later)} == {None}


async def test_only_a_live_worker_claims(here: Ground) -> None:
    """Who never registered, or whose lease has ended, gets nothing, and so does who said farewell."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    assert await here.claim(uuid4()) == []
    worker = await here.worker(lease=5.0)
    await here.pass_time(5.1)
    assert await here.claim(worker) == []
    gone = await here.worker()
    await lanes.leave(here.conn, gone)
    assert await here.claim(gone) == []
    assert len(await here.claim(await here.worker())) == 1


async def test_each_claim_raises_token_and_attempts_and_clears_the_time(here: Ground) -> None:
    """The token is how the work of a former claim is told from this one's."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    for n in (1, 2, 3):
        [claim] = await here.claim(worker)
        assert (claim.token, claim.attempts) == (n, n)
        row = await here.row(lane)
        assert (row["owner"], row["run_at"], row["token"]) == (worker, None, n)
        assert await here.release(worker, claim, again_in=0.0, failed=True)


async def test_a_full_tenant_is_passed_over(here: Ground) -> None:
    """A tenant with its share of a worker's slots gets no more of them while it is named as full."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    assert await here.claim(worker, full=[here.tenant]) == []
    assert len(await here.claim(worker, full=[here.twin])) == 1


async def test_workers_that_claim_at_once_share_without_waiting(here: Ground) -> None:
    """Four at a time, sixty lanes: each lane goes to exactly one."""
    made = [await here.lane() for _ in range(60)]
    await here.ingest(*(here.placed(lane) for lane in made))
    workers = [await here.worker() for _ in range(4)]
    conns = [await here.another() for _ in workers]
    try:
        rounds = [
            await asyncio.gather(*(lanes.claim(c, w, 7) for c, w in zip(conns, workers, strict=True))) for _ in range(4)
        ]
    finally:
        for conn in conns:
            await conn.close()
    claimed = [claim.conversation_id for each in rounds for claims in each for claim in claims]
    assert sorted(claimed) == sorted(made)


# --- release ---


async def test_what_arrived_meanwhile_is_not_forgotten(here: Ground) -> None:
    """A message that comes while the lane is owned makes it due at the release."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    [outcome] = await here.ingest(here.placed(lane))
    assert not outcome.woke
    assert await here.release(worker, claim, done_seq=1)
    row = await here.row(lane)
    assert (row["done_seq"], row["head_seq"], row["owner"], row["due"]) == (1, 2, None, True)


async def test_a_lane_that_is_done_sleeps_until_somebody_writes(here: Ground) -> None:
    """Nothing left: no time, no owner; the next message wakes it."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    assert not await here.release(worker, claim, done_seq=1)
    row = await here.row(lane)
    assert (row["run_at"], row["owner"], row["attempts"]) == (None, None, 0)
    [outcome] = await here.ingest(here.placed(lane))
    assert outcome.woke


async def test_a_lane_that_is_done_is_not_due_by_what_woke_it_before(here: Ground) -> None:
    """The status of its last chunk may come while its worker is still about to give it back: nothing is left to look at."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    await here.act("UPDATE lanes SET run_at = qasid_now() WHERE owner IS NOT NULL")  # a status, say
    assert not await here.release(worker, claim, done_seq=1)
    assert (await here.row(lane))["run_at"] is None
    assert await here.claim(worker) == []


async def test_a_wait_ends_when_it_should_or_when_somebody_ends_it(here: Ground) -> None:
    """`again_in` is kept, unless what came meanwhile wants the lane sooner."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    assert not await here.release(worker, claim, again_in=30.0)
    assert 28 < (await here.row(lane))["runs_in"] <= 30
    assert await here.claim(worker) == []
    await here.pass_time(31)
    [claim] = await here.claim(worker)
    await here.act("UPDATE lanes SET run_at = qasid_now() WHERE owner IS NOT NULL")  # a status, say
    assert await here.release(worker, claim, again_in=30.0)


async def test_a_release_after_the_lane_was_lost_changes_nothing(here: Ground) -> None:
    """Under an older token, or another worker's name, nothing is settled or given back."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    first, second = await here.worker(), await here.worker()
    [old] = await here.claim(first)
    await lanes.leave(here.conn, first)
    await lanes.bury(here.conn)
    [new] = await here.claim(second)
    before = await here.row(lane)
    assert not await here.release(first, old, done_seq=1)
    assert not await here.release(second, old, done_seq=1)
    assert await here.row(lane) == before
    assert not await here.release(second, new, done_seq=1)
    assert (await here.row(lane))["done_seq"] == 1


async def sent_by_hand(here: Ground, lane: UUID, *bodies: str) -> list[UUID]:
    """An entry 'send' with its chunks, as a replay makes it."""
    ids = [uuid4() for _ in bodies]
    await here.act(
        "UPDATE lanes SET head_seq = head_seq + 1, run_at = coalesce(run_at, now()) WHERE tenant_id = %s AND conversation_id = %s",
        *(here.tenant, lane),
    )
    key = "tenant_id, conversation_id, head_seq"
    of = "FROM lanes WHERE tenant_id = %s AND conversation_id = %s"
    await here.act(
        f"INSERT INTO outbox (tenant_id, conversation_id, seq, kind, message_id) SELECT {key}, 'send', uuidv7() {of}",
        *(here.tenant, lane),
    )
    for no, (id, body) in enumerate(zip(ids, bodies, strict=True), 1):
        await here.act(
            "INSERT INTO chunks (tenant_id, conversation_id, seq, id, channel_id, no, body) "
            f"SELECT {key}, %s, channel_id, %s, %s {of}",
            *(id, no, body, here.tenant, lane),
        )
    return ids


async def test_a_turn_ends_before_an_entry_that_is_no_answer(here: Ground) -> None:
    """What was written by hand is sent in its place: after the answers before it, before those behind."""
    lane = await here.lane()
    await here.ingest(here.placed(lane), here.placed(lane))
    [text] = await sent_by_hand(here, lane, "by hand")
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    opening = await here.open(claim)
    assert opening.turn and (opening.kind, opening.turn.last_seq, opening.chunks) == ("answer", 2, [])
    await here.settle(worker, claim, opening.turn, "answer")
    assert [chunk.body for chunk in (await here.open(claim)).chunks] == ["answer"]
    await here.release(worker, claim, done_seq=2)
    [claim] = await here.claim(worker)
    opening = await here.open(claim)
    assert (opening.kind, opening.turn, [chunk.id for chunk in opening.chunks if chunk.seq > 2]) == (
        "send",
        None,
        [text],
    )
    await here.release(worker, claim, done_seq=3)
    [claim] = await here.claim(worker)
    opening = await here.open(claim)
    assert opening.turn and (opening.turn.first_seq, opening.turn.last_seq) == (4, 4)


async def test_a_pause_does_not_stop_what_a_person_sends(here: Ground) -> None:
    """It is there so that a person can speak."""
    lane = await here.lane()
    [text] = await sent_by_hand(here, lane, "by hand")
    assert await lanes.pause(here.conn, (here.tenant, lane), datetime.now(UTC) + timedelta(hours=1)) is False
    worker = await here.worker()
    [claim] = await here.claim(worker)
    assert await intended(here.conn, worker, [Intent(claim, text, 1)]) == ["paused"]
    assert await intended(here.conn, worker, [Intent(claim, text, 1, manual=True)]) == ["ok"]


async def test_a_pause_makes_due_what_waits(here: Ground) -> None:
    """It settles as left to a person at once: nothing waits for a resume, and an idle lane stays idle."""
    lane, idle = await here.lane(), await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    await here.release(worker, claim, again_in=500.0)
    until = datetime.now(UTC) + timedelta(hours=1)
    for each in (lane, idle):
        assert await lanes.pause(here.conn, (here.tenant, each), until) is False
    [claim] = await here.claim(worker)
    assert (await here.open(claim)).paused
    assert await lanes.pause(here.conn, (here.tenant, lane), None) and not (await here.open(claim)).paused
    assert await lanes.pause(here.conn, (here.tenant, uuid4()), None) is None


async def test_replies_of_the_last_minute_are_counted_for_the_brake(here: Ground) -> None:
    """Answers with a text, of this conversation; not those left to a person, not older ones."""
    lane, other = await here.lane(), await here.lane()
    worker = await here.worker(600.0)

    async def turn(of: UUID, *bodies: str) -> int:
        await here.ingest(here.placed(of))
        [claim] = await here.claim(worker)
        opening = await here.open(claim, brake=3)
        assert opening.turn
        await here.settle(worker, claim, opening.turn, *bodies)
        await here.release(worker, claim, done_seq=opening.turn.last_seq)
        return opening.replied

    assert [await turn(lane, "a"), await turn(lane), await turn(other, "b"), await turn(lane, "c")] == [0, 1, 0, 1]
    await here.pass_time(30)
    assert await turn(lane, "d") == 2
    await here.pass_time(61)
    assert await turn(lane, "e") == 1


# --- ingest ---


async def test_the_outbox_is_gapless_whoever_writes_at_once(here: Ground) -> None:
    """Six connections, thirty batches with duplicates inside and across: seqs 1 to n, each message once."""
    lane, other = await here.lane(), await here.lane()
    conns = [await here.another() for _ in range(6)]

    async def write(conn: Any, n: int) -> None:
        wanted = [here.placed(lane, id=f"m{n + i}") for i in range(3)] + [
            here.placed(lane, id=f"m{n}"),
            here.placed(other),
        ]
        while wanted:
            outcomes = await here.ingest(*wanted, conn=conn)
            wanted = [row for row, outcome in zip(wanted, outcomes, strict=True) if outcome.verdict == "later"]

    try:
        for n in range(5):
            await asyncio.gather(*(write(conn, 2 * n + i) for i, conn in enumerate(conns)))
    finally:
        for conn in conns:
            await conn.close()
    for conversation, most in ((lane, 16), (other, 30)):
        seqs = await here.all("SELECT seq FROM outbox WHERE conversation_id = %s ORDER BY 1", conversation)
        assert [row["seq"] for row in seqs] == list(range(1, most + 1))
        assert (await here.row(conversation))["head_seq"] == most
        [stored] = await here.all("SELECT count(*) AS n FROM messages WHERE conversation_id = %s", conversation)
        assert stored["n"] == most


async def test_a_lane_that_somebody_holds_says_later_and_its_neighbours_go_on(here: Ground) -> None:
    """Nobody waits for a locked row: its items come back, all of them and nothing of them stored."""
    held, free = await here.lane(), await here.lane()
    rows = [here.placed(held, id="a"), here.placed(free, id="b"), here.placed(held, id="c"), here.placed(free, id="b")]
    async with await psycopg.AsyncConnection.connect(here.superuser_url) as holder:
        await holder.execute("SELECT FROM lanes WHERE conversation_id = %s FOR NO KEY UPDATE", (held,))
        outcomes = await here.ingest(*rows)
        assert [each.verdict for each in outcomes] == ["later", "stored", "later", "duplicate"]
        await holder.rollback()
    assert [each.verdict for each in await here.ingest(*rows)] == ["stored", "duplicate", "stored", "duplicate"]


async def test_a_lane_that_is_no_more_says_gone(here: Ground) -> None:
    """So that the item is placed anew."""
    assert [each.verdict for each in await here.ingest(here.placed(uuid4()))] == ["gone"]


async def test_what_nobody_expects_an_answer_to_wakes_nobody(here: Ground) -> None:
    """A reaction is stored; an edit raises the version; neither is an entry or makes the lane due."""
    lane = await here.lane()
    assert [o.woke for o in await here.ingest(here.placed(lane, kind="reaction", about="x"))] == [False]
    assert [o.woke for o in await here.ingest(here.placed(lane, kind="edit", about="x"))] == [False]
    row = await here.row(lane)
    assert (row["head_seq"], row["run_at"], row["version"]) == (0, None, 1)


# --- the lease ---


async def test_a_beat_prolongs_a_lease_and_never_revives_one(here: Ground) -> None:
    """Once ended, a lease stays ended: the worker registers anew under a new id."""
    worker = await here.worker(lease=5.0)
    await here.pass_time(4)
    assert await lanes.beat(here.conn, worker, 5.0)
    await here.pass_time(8)
    assert await lanes.beat(here.conn, worker, 5.0)
    await here.pass_time(13.1)
    assert not await lanes.beat(here.conn, worker, 5.0)
    assert not await lanes.beat(here.conn, uuid4(), 5.0)


async def test_the_dead_are_buried_and_their_lanes_freed_the_living_are_not(here: Ground) -> None:
    """Also lanes of owners whose row was lost long ago."""
    dead, living, forgotten = [await here.lane() for _ in range(3)]
    await here.ingest(here.placed(dead))
    one = await here.worker(lease=5.0)
    await here.claim(one)
    await here.ingest(here.placed(living))
    two = await here.worker(lease=60.0)
    await here.claim(two)
    await here.ingest(here.placed(forgotten))
    await here.act("UPDATE lanes SET owner = %s, run_at = NULL WHERE run_at IS NOT NULL", uuid4())
    assert await lanes.bury(here.conn) == 1
    await here.pass_time(6)
    assert await lanes.bury(here.conn) == 1
    assert await lanes.bury(here.conn) == 0
    assert [(await here.row(lane))["due"] for lane in (dead, living, forgotten)] == [True, False, True]
    assert (await here.row(living))["owner"] == two


async def test_disown_gives_back_all_but_what_is_held(here: Ground) -> None:
    """A claim whose answer was lost is given back; what is worked on, and what is another's, is not."""
    made = [await here.lane() for _ in range(3)]
    await here.ingest(*(here.placed(lane) for lane in made))
    worker, other = await here.worker(), await here.worker()
    claims = {claim.conversation_id for claim in await here.claim(worker, 2)}
    [theirs] = await here.claim(other)
    keep = claims.pop()
    assert await lanes.disown(here.conn, worker, [(here.tenant, keep)]) == 1
    assert (await here.row(keep))["owner"] == worker
    assert (await here.row(theirs.conversation_id))["owner"] == other
    assert (await here.row(claims.pop()))["due"]


# --- the fence ---


async def test_who_lost_the_lane_can_neither_settle_nor_intend(here: Ground) -> None:
    """After the lease has ended and another has claimed, what the first one wants to commit is lost."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    first, second = await here.worker(lease=5.0), await here.worker()
    [old] = await here.claim(first)
    opening = await here.open(old)
    assert opening.turn
    await here.pass_time(6)
    await lanes.bury(here.conn)
    assert (await here.settle(first, old, opening.turn, "x"))[0] == "lost"
    [new] = await here.claim(second)
    assert (await here.settle(first, old, opening.turn, "x"))[0] == "lost"
    assert (await here.settle(second, old, opening.turn, "x"))[0] == "lost"
    assert await here.all("SELECT FROM chunks") == await here.all("SELECT FROM usage") == []
    fence, [chunk] = await here.settle(second, new, opening.turn, "x")
    assert fence == "ok"
    for worker, claim in ((first, old), (second, old)):
        assert await intended(here.conn, worker, [Intent(claim, chunk, 1)]) == ["lost"]
    assert await chunks.abandon(here.conn, first, old, 1, "x") == []
    assert await here.all("SELECT FROM attempts") == []
    assert await intended(here.conn, second, [Intent(new, chunk, 1)]) == ["ok"]


async def test_a_raised_version_turns_the_answer_away_unless_it_is_the_last_resort(here: Ground) -> None:
    """An edit between the opening and the settlement: changed; without a version it is settled all the same."""
    lane = await here.lane()
    await here.ingest(here.placed(lane, id="m"))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    opening = await here.open(claim)
    assert opening.turn
    await here.ingest(here.placed(lane, "better", kind="edit", about="m"))
    assert (await here.settle(worker, claim, opening.turn, "x", version=opening.version))[0] == "changed"
    again = await here.open(claim)
    assert (again.turn, again.version, [asked.body for asked in again.asked]) == (opening.turn, 1, ["better"])
    assert (await here.settle(worker, claim, opening.turn, "x", version=None))[0] == "ok"


async def test_a_pause_stops_what_would_be_sent_and_nothing_else(here: Ground) -> None:
    """Paused: no text is settled or intended, but a turn may end without one; a pause that is over holds nothing."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    turn = (await here.open(claim)).turn
    assert turn
    await here.act("UPDATE lanes SET paused_until = now() + interval '1 minute' WHERE tenant_id = %s", here.tenant)
    assert (await here.open(claim)).paused
    assert (await here.settle(worker, claim, turn, "x"))[0] == "paused"
    await here.pass_time(61)
    _, [chunk] = await here.settle(worker, claim, turn, "x")
    await here.pass_time(0)
    assert await intended(here.conn, worker, [Intent(claim, chunk, 1)]) == ["paused"]
    await here.pass_time(61)
    assert await intended(here.conn, worker, [Intent(claim, chunk, 1)]) == ["ok"]
    await here.act("UPDATE lanes SET paused_until = NULL WHERE tenant_id = %s", here.tenant)


async def test_a_paused_turn_may_end_without_a_text(here: Ground) -> None:
    """That is how it is left to a person, so that nothing waits for a resume."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    turn = (await here.open(claim)).turn
    await here.act("UPDATE lanes SET paused_until = now() + interval '1 minute' WHERE tenant_id = %s", here.tenant)
    assert turn and (await here.settle(worker, claim, turn, outcome="left"))[0] == "ok"
    await here.act("UPDATE lanes SET paused_until = NULL WHERE tenant_id = %s", here.tenant)


async def test_each_row_of_a_batch_gets_its_own_word(here: Ground) -> None:
    """One statement, several lanes: the fence of one is not another's."""
    made = [await here.lane() for _ in range(3)]
    await here.ingest(*(here.placed(lane) for lane in made))
    worker = await here.worker()
    claims = {claim.conversation_id: claim for claim in await here.claim(worker)}
    ids = {}
    for lane in made:
        turn = (await here.open(claims[lane])).turn
        assert turn
        _, [ids[lane]] = await here.settle(worker, claims[lane], turn, "x")
    await here.act(
        "UPDATE lanes SET owner = NULL, run_at = now() WHERE conversation_id = %s AND tenant_id = %s",
        *(made[1], here.tenant),
    )
    wanted = [Intent(claims[lane], ids[lane], 1) for lane in made]
    assert await intended(here.conn, worker, wanted) == ["ok", "lost", "ok"]
    given = [Release(claim=claims[lane], done_seq=1, again_in=None if lane == made[0] else 0.0) for lane in made]
    assert await lanes.release(here.conn, worker, given) == [None, None, 0.0]


async def test_a_turns_membership_is_fixed_by_its_first_opening(here: Ground) -> None:
    """What comes later waits for the next turn, whoever opens the lane again."""
    lane = await here.lane()
    await here.ingest(here.placed(lane, "one"), here.placed(lane, "two"))
    worker, other = await here.worker(lease=5.0), await here.worker()
    [claim] = await here.claim(worker)
    first = await here.open(claim)
    await here.ingest(here.placed(lane, "three"))
    await here.pass_time(6)
    await lanes.bury(here.conn)
    [claim] = await here.claim(other)
    again = await here.open(claim)
    assert first.turn == again.turn
    assert [asked.body for asked in again.asked] == ["one", "two"]
    assert again.turn and (again.turn.first_seq, again.turn.last_seq) == (1, 2)


# --- the invariant ---

OPERATIONS = st.one_of(
    st.tuples(st.just("ingest"), st.integers(1, 3)),
    st.tuples(st.just("edit"), st.just(0)),
    st.tuples(st.just("claim"), st.integers(0, 1)),
    st.tuples(st.just("release"), st.integers(0, 1)),
    st.tuples(st.just("release one"), st.integers(0, 1)),
    st.tuples(st.just("fail"), st.integers(0, 1)),
    st.tuples(st.just("wait"), st.integers(0, 1)),
    st.tuples(st.just("die"), st.integers(0, 1)),
    st.tuples(st.just("bury"), st.just(0)),
    st.tuples(st.just("disown"), st.integers(0, 1)),
    st.tuples(st.just("time"), st.integers(1, 40)),
)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(OPERATIONS, min_size=5, max_size=25))
async def test_what_is_left_to_do_has_an_owner_or_a_time(here: Ground, operations: list[tuple[str, int]]) -> None:
    """After whatever happens: `done_seq < head_seq` means somebody has the lane, or it comes up by itself.

    And at the end, once the dead are buried and time has passed, a new worker gets all of it.
    """
    lane = await here.lane()
    passed = 0.0
    workers = [await here.worker(60.0 + passed), await here.worker(60.0 + passed)]
    claims: list[Claim | None] = [None, None]
    for name, n in operations:
        if name == "ingest":
            await here.ingest(*(here.placed(lane) for _ in range(n)))
        elif name == "edit":
            await here.ingest(here.placed(lane, kind="edit", about="m"))
        elif name == "claim":
            claims[n] = next(iter(await here.claim(workers[n])), claims[n])
        elif name == "die":
            await lanes.leave(here.conn, workers[n])
            workers[n] = await here.worker()
        elif name == "bury":
            await lanes.bury(here.conn)
        elif name == "disown":
            await lanes.disown(here.conn, workers[n], [])
        elif name == "time":
            passed += n
            await here.pass_time(passed)
        elif claim := claims[n]:  # each of them may be of a lane that was lost long ago
            row = await here.row(lane)
            how: dict[str, Any] = {
                "release": {"done_seq": row["head_seq"]},
                "release one": {"done_seq": min(row["done_seq"] + 1, row["head_seq"])},
                "fail": {"again_in": 2.0, "failed": True},
                "wait": {"again_in": 30.0},
            }[name]
            await here.release(workers[n], claim, **how)
        row = await here.row(lane)
        assert row["done_seq"] <= row["head_seq"]
        assert row["done_seq"] == row["head_seq"] or row["owner"] or row["run_at"] is not None, (name, row)
    for worker in workers:
        await lanes.leave(here.conn, worker)
    await lanes.bury(here.conn)
    await here.pass_time(passed + 100)
    row = await here.row(lane)
    found = await here.claim(await here.worker())
    assert bool(found) >= (row["done_seq"] < row["head_seq"])
    await here.act("DELETE FROM workers")
    await lanes.bury(here.conn)
    await here.act("UPDATE lanes SET run_at = NULL, done_seq = head_seq WHERE tenant_id = %s", here.tenant)
    await here.pass_time(0)


async def test_an_opening_that_another_overtakes_never_ends_an_answer(here: Ground) -> None:
    """A statement whose client is gone may still begin the turn: who opens meanwhile sees an answer without its turn."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    async with await psycopg.AsyncConnection.connect(here.superuser_url) as stale:
        await stale.execute(
            "INSERT INTO turns (tenant_id, conversation_id, first_seq, last_seq) VALUES (%s, %s, 1, 1)",
            (here.tenant, lane),
        )
        overtaken = asyncio.create_task(here.open(claim))
        async with asyncio.timeout(5):
            while not await here.all("SELECT FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
        await stale.commit()
    opening = await overtaken
    assert (opening.kind, opening.turn) == ("answer", None)
    assert (await here.open(claim)).turn


@pytest.mark.timeout(60)
async def test_a_backlog_of_tens_of_thousands_is_opened_like_any_other(here: Ground) -> None:
    """A number that is held for hours piles them up: what is read of before must not grow with the square of them."""
    lane = await here.lane()
    for _ in range(60):
        await here.ingest(*(here.placed(lane) for _ in range(500)))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    await here.act("ANALYZE")
    began = time.monotonic()
    opening = await here.open(claim)
    assert time.monotonic() - began < 1.0
    assert opening.turn and (opening.turn.first_seq, opening.turn.last_seq) == (1, turns.MOST_MEMBERS)
    assert opening.said == []


async def test_a_channel_that_is_back_wakes_what_waits_for_it_and_nobody_else(here: Ground) -> None:
    """Those due first before the others, a fiftieth of a second apart; idle lanes, other channels and the twin stay as they are."""
    beside = await here.channel_beside()
    waiting = [await here.lane() for _ in range(3)]
    other, idle = await here.lane(channel=beside), await here.lane()
    for lane in (*waiting, other):
        await here.ingest(here.placed(lane))
    before = await here.twins()
    worker = await here.worker()
    wait = {lane: 30.0 - n for n, lane in enumerate([*waiting, other])}
    for claim in await here.claim(worker):
        await here.release(worker, claim, again_in=wait[claim.conversation_id])
    assert await lanes.wake_channel(here.conn, here.tenant, here.channel) == 3
    rows = await here.all("SELECT conversation_id, run_at FROM lanes WHERE tenant_id = %s", here.tenant)
    at = {row["conversation_id"]: row["run_at"] for row in rows}
    first = at[waiting[2]]
    assert [(at[lane] - first).total_seconds() for lane in waiting] == pytest.approx([0.04, 0.02, 0.0])
    assert (await here.row(waiting[2]))["due"] and (await here.row(other))["runs_in"] > 20 and at[idle] is None
    assert await here.twins() == before
