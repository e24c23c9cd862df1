"""What the database decides of a turn: its session, what its lane remembers, who comes first, and what is never mixed up."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app import db
from app.errors import LaneLost
from app.store import lanes, spending, steps, turns
from app.store.lanes import Claim, Release
from app.store.settlements import Marks
from app.store.steps import Memo
from app.store.turns import Opening
from tests import ground as shared
from tests.ground import NOW, Ground
from workers.commits import Commits

pytestmark = pytest.mark.anyio

here = shared.here


async def turn(here: Ground, worker: UUID, *bodies: str, outcome: str = "answered", **more: Any) -> Opening:
    """The next turn of the one lane that is due, settled and released."""
    [claim] = await here.claim(worker)
    found = await here.open(claim)
    assert found.turn
    fence, _ = await here.settle(worker, claim, found.turn, *bodies, outcome=outcome, **more)
    assert fence == "ok"
    await here.act("UPDATE chunks SET state = 'delivered'")
    await lanes.release(here.conn, worker, [Release(claim=claim, done_seq=found.turn.last_seq)])
    return found


# --- sessions ---


async def test_a_session_is_decided_once_as_its_turn_is_made(here: Ground) -> None:
    """Whoever opens the turn again sees the same, whatever the channel's gap has become."""
    lane = await here.lane()
    worker = await here.worker()
    await here.ingest(here.placed(lane, sent_at=NOW))
    first = await turn(here, worker, "answer")
    await here.act("UPDATE messages SET sent_at = %s WHERE direction = 'out'", NOW)
    await here.ingest(here.placed(lane, sent_at=NOW + timedelta(hours=2)))
    [claim] = await here.claim(worker)
    second = await here.open(claim)
    await here.act("UPDATE channels SET session_gap_hours = 1 WHERE tenant_id = %s", here.tenant)
    await here.ingest(here.placed(lane, "late news", sent_at=NOW - timedelta(days=1)))
    again = await here.open(claim)
    assert first.session_at == second.session_at == again.session_at == NOW


async def test_a_gap_begins_a_session_and_its_earliest_message_dates_it(here: Ground) -> None:
    """Three messages after four hours of silence, stored in another order than they were sent."""
    lane = await here.lane()
    worker = await here.worker()
    await here.ingest(here.placed(lane, sent_at=NOW))
    await turn(here, worker, "answer")
    await here.act("UPDATE messages SET sent_at = %s WHERE direction = 'out'", NOW)
    later = NOW + timedelta(hours=4)
    await here.ingest(*(here.placed(lane, sent_at=later + timedelta(seconds=n)) for n in (1, 0, 2)))
    found = await turn(here, worker, "answer")
    assert found.session_at == later
    await here.ingest(here.placed(lane, sent_at=later + timedelta(hours=1)))
    assert (await turn(here, worker, "answer")).session_at == later


async def test_a_message_that_comes_late_ends_no_session(here: Ground) -> None:
    """Between two live ones, and answered by nobody, there are messages of yesterday: they are not what silence is reckoned from.
    After them a gap is a gap all the same.
    """
    lane = await here.lane()
    worker = await here.worker()
    await here.ingest(here.placed(lane, sent_at=NOW))
    await turn(here, worker, "answer")
    await here.act("UPDATE messages SET sent_at = %s WHERE direction = 'out'", NOW)
    for n in range(3):
        await here.ingest(here.placed(lane, sent_at=NOW - timedelta(days=1, minutes=n)))
        await turn(here, worker, outcome="late")
    await here.ingest(here.placed(lane, "by phone", direction="echo", sent_at=NOW - timedelta(days=2)))
    await here.ingest(here.placed(lane, sent_at=NOW + timedelta(minutes=7)))
    assert (await turn(here, worker, outcome="left")).session_at == NOW
    await here.ingest(here.placed(lane, sent_at=NOW - timedelta(hours=20)))
    await turn(here, worker, outcome="late")
    later = NOW + timedelta(hours=4)
    await here.ingest(here.placed(lane, sent_at=later))
    assert (await turn(here, worker, "answer")).session_at == later


async def test_a_session_goes_on_from_what_its_assistant_noted_last_in_it(here: Ground) -> None:
    """Of a turn that it answered: neither an intent nor another's answer is a conversation that it could go on with; nor is
    one of the session before. However much was said since it answered. Of two each has its own.
    """
    lane = await here.lane()
    worker = await here.worker(lease=1e6)

    async def last(outcome: str, step: str = "", *, said: datetime = NOW) -> Any:
        await here.ingest(here.placed(lane, sent_at=said))
        [claim] = await here.claim(worker)
        [text] = await turns.open_lanes(
            here.conn, [turns.Open(claim, 0, noted=("ours ", "fallback/theirs "))], 10.0, 30.0
        )
        found = turns.opening(text)
        assert found.turn
        if step:
            assert await steps.memo(here.conn, worker, [Memo(claim, found.turn.id, step, 0, f'"{step}"')]) == [True]
        await here.settle(worker, claim, found.turn, outcome=outcome)
        await lanes.release(here.conn, worker, [Release(claim=claim, done_seq=found.turn.last_seq)])
        assert found.last.keys() <= {"ours ", "fallback/theirs "}
        return found.last.get("ours "), found.last.get("fallback/theirs ")

    for outcome, step in (("intent", ""), ("failed", "ours x"), ("answered", "ours x")):
        assert await last(outcome, step) == (None, None)
    assert [await last("intent") for _ in range(25)] == [("ours x", None)] * 25
    assert await last("answered", "ours y") == ("ours x", None)
    assert await last("answered", "fallback/theirs x") == ("ours y", None)
    assert await last("failed", "fallback/theirs y") == ("ours y", "fallback/theirs x")
    assert await last("answered", "fallback/theirs x", said=NOW + timedelta(hours=5)) == (None, None)
    assert await last("answered", "ours z", said=NOW + timedelta(hours=5)) == (None, "fallback/theirs x")
    assert await last("answered", said=NOW + timedelta(hours=5)) == ("ours z", "fallback/theirs x")


# --- what a lane remembers ---


async def test_what_a_turn_marks_its_lane_remembers(here: Ground) -> None:
    """Each mark by itself, under the fence of the settlement; a question is forgotten by the next turn."""
    lane = await here.lane()
    worker = await here.worker()
    seen = []
    for marks in (
        Marks(asks="cancel"),
        Marks(stops=True),
        Marks(notices=True),
        Marks(limits=True, stops=False),
        Marks(pauses=2.0),
        Marks(),
    ):
        await here.ingest(here.placed(lane))
        found = await turn(here, worker, outcome="told", marks=marks)
        seen.append((found.asking, found.stopped, found.noticed_at is not None, found.limited, found.paused))
    assert seen == [
        (None, False, False, False, False),
        ("cancel", False, False, False, False),
        (None, True, False, False, False),
        (None, True, True, False, False),
        (None, False, True, True, False),
        (None, False, True, True, True),
    ]
    await here.pass_time(25 * 3600)
    await here.ingest(here.placed(lane))
    found = await turn(here, await here.worker(), outcome="told")
    assert (found.limited, found.paused) == (False, False)


async def test_whoever_lost_the_lane_marks_nothing(here: Ground) -> None:
    """A stop that was settled under another's token was never said."""
    lane = await here.lane()
    worker = await here.worker()
    await here.ingest(here.placed(lane))
    [claim] = await here.claim(worker)
    found = await here.open(claim)
    assert found.turn
    await here.act("UPDATE lanes SET token = token + 1 WHERE tenant_id = %s", here.tenant)
    fence, _ = await here.settle(worker, claim, found.turn, "Bye.", marks=Marks(stops=True, pauses=1.0))
    row = await here.row(lane)
    assert (fence, row["stopped_at"], row["paused_until"]) == ("lost", None, None)


async def test_whoever_lost_the_lane_remembers_nothing(here: Ground, database: Any) -> None:
    """A step that was finished under another's token would stand before what its heir goes on with; who made it stops."""
    lane = await here.lane()
    worker, heir = await here.worker(), await here.worker()
    await here.ingest(here.placed(lane))
    [lost] = await here.claim(worker)
    found = await here.open(lost)
    assert found.turn
    await lanes.release(here.conn, worker, [Release(claim=lost, done_seq=None, again_in=0.0)])
    [held] = await here.claim(heir)

    def memo(claim: Claim, result: str) -> Memo:
        assert found.turn
        return Memo(claim, found.turn.id, "answer", found.version, result)

    async with db.pool(database.url, "qasid_courier", name="test", max_size=1) as pool:

        def commits(worker: UUID) -> Commits:
            return Commits(pool, worker, order_wait=1.0, silence=1.0, patience=5.0)

        with pytest.raises(LaneLost):
            await commits(worker).memo(memo(lost, '"late"'))
        await commits(heir).memo(memo(held, '"ours"'))
        with pytest.raises(LaneLost):
            await commits(heir).memo(memo(lost, '"an older token"'))
    assert (await here.open(held)).memo == {"answer": "ours"}


async def test_a_persons_pause_holds_up_what_a_hand_over_still_says(here: Ground) -> None:
    """The pause that an intent begins binds what comes behind its reply; one that a person begins binds that, too."""
    lane = await here.lane()
    worker = await here.worker()
    await here.ingest(here.placed(lane))
    [claim] = await here.claim(worker)
    found = await here.open(claim)
    assert found.turn
    await here.settle(worker, claim, found.turn, "One moment.", outcome="intent", marks=Marks(pauses=1.0))
    assert not (await here.open(claim)).paused
    await lanes.pause(here.conn, (here.tenant, lane), datetime.now(UTC) + timedelta(hours=1))
    assert (await here.open(claim)).paused


async def test_a_days_messages_are_a_persons_over_all_their_conversations(here: Ground) -> None:
    """Both channels of the tenant, not this turn's own, and none of the day before; nothing of it is counted unless asked."""
    one, other = await here.lane(), await here.lane(channel=await here.channel_beside())
    await here.act(
        "UPDATE conversations SET contact_id = (SELECT contact_id FROM conversations WHERE tenant_id = %s AND id = %s) "
        "WHERE tenant_id = %s AND id = %s",
        *(here.tenant, one, here.tenant, other),
    )
    worker = await here.worker(lease=1e6)
    await here.ingest(*(here.placed(one) for _ in range(3)))
    await turn(here, worker, "answer")
    await here.ingest(here.placed(other))
    await turn(here, worker, "answer")
    await here.ingest(*(here.placed(one) for _ in range(2)))
    [claim] = await here.claim(worker)

    async def written(daily: int) -> int:
        [text] = await turns.open_lanes(here.conn, [turns.Open(claim, 20, 0, daily)], 10.0, 30.0)
        return turns.opening(text).written

    assert [await written(daily) for daily in (0, 10)] == [0, 4]
    await here.pass_time(25 * 3600)
    assert await written(10) == 0


async def test_a_tenants_tokens_are_its_own_and_the_days(here: Ground) -> None:
    """Summed over turns that were begun within the time; nobody else's."""
    lane = await here.lane()
    worker = await here.worker()
    for n in (1, 2):
        await here.ingest(here.placed(lane))
        await turn(here, worker, "answer", input_tokens=10 * n, output_tokens=n)
    assert await spending.tokens(here.conn, here.tenant, 86_400) == 33
    assert await spending.tokens(here.conn, here.twin, 86_400) == 0
    assert await spending.tokens(here.conn, here.tenant, -60) == 0


# --- live before backlog ---


async def due(here: Ground, lane: UUID, ago: float) -> None:
    await here.act(
        "UPDATE lanes SET head_seq = 1, run_at = now() - %s * interval '1 second' WHERE tenant_id = %s AND conversation_id = %s",
        *(ago, here.tenant, lane),
    )


async def test_live_lanes_go_before_a_backlog_and_starve_it_not(here: Ground) -> None:
    """Those of the last minute first, in order, but for the share of the backlog's oldest; what is left is the youngest's."""
    worker = await here.worker()
    old = [await here.lane() for _ in range(6)]
    live = [await here.lane() for _ in range(4)]
    for n, lane in enumerate(old):
        await due(here, lane, 600 - n)
    for n, lane in enumerate(live):
        await due(here, lane, 50 - n)
    missed = await here.lane()
    await due(here, missed, 70)

    async def claimed(most: int, behind: int) -> set[UUID]:
        return {claim.conversation_id for claim in await lanes.claim(here.conn, worker, most, behind=behind)}

    assert await claimed(1, 0) == {live[0]}
    assert await claimed(1, 1) == {old[0]}
    assert await claimed(3, 1) == {old[1], live[1], live[2]}
    assert await claimed(4, 1) == {old[2], live[3], missed, old[5]}
    assert await claimed(1, 1) == {old[3]}
    assert await claimed(4, 0) == {old[4]}


async def test_whoever_has_just_missed_being_live_is_not_behind_the_whole_backlog(here: Ground) -> None:
    """In a rush that nobody keeps up with: as soon as a place is left, theirs, though hundreds have waited for hours."""
    worker = await here.worker()
    for n in range(20):
        await due(here, await here.lane(), 7200 - n)
    missed = await here.lane()
    await due(here, missed, lanes.LIVE + 5)
    assert missed in {claim.conversation_id for claim in await lanes.claim(here.conn, worker, 8, behind=2)}


async def test_a_message_that_comes_late_makes_backlog_and_a_live_one_ends_it(here: Ground) -> None:
    """What the provider redelivers is due since it was sent; whoever writes now goes before."""
    now = datetime.now(UTC)
    redelivered, waiting = await here.lane(), await here.lane()
    await here.ingest(here.placed(redelivered, sent_at=now - timedelta(hours=2)))
    assert (await here.row(redelivered))["runs_in"] == pytest.approx(-7200, abs=30)
    await here.ingest(here.placed(redelivered, sent_at=now))
    assert (await here.row(redelivered))["runs_in"] == pytest.approx(0, abs=5)
    await here.ingest(here.placed(waiting, sent_at=now))
    await here.act(
        "UPDATE lanes SET run_at = now() + interval '1 hour' WHERE tenant_id = %s AND conversation_id = %s",
        *(here.tenant, waiting),
    )
    await here.ingest(here.placed(waiting, sent_at=now), here.placed(waiting, sent_at=now - timedelta(hours=2)))
    assert (await here.row(waiting))["runs_in"] == pytest.approx(3600, abs=30)


async def test_a_claim_reads_no_more_than_it_takes_however_long_the_backlog(here: Ground) -> None:
    """30,000 lanes due for minutes, 200 live: stretches of the index on run_at, each no further than its limit."""
    lane = await here.lane()
    worker = await here.worker()
    await here.act("SET session_replication_role = replica")  # nobody asks whether there are such conversations
    await here.act(
        "INSERT INTO lanes (tenant_id, conversation_id, channel_id, head_seq, run_at) "
        "SELECT %s, gen_random_uuid(), %s, 1, now() - CASE WHEN n <= 200 THEN 1 ELSE 600 END * interval '1 second' "
        "FROM generate_series(1, 30200) n",
        *(here.tenant, here.channel),
    )
    await here.act("ANALYZE lanes")  # as autovacuum does within a minute
    values = {"worker": worker, "n": 64, "full": [], "live": lanes.LIVE, "behind": 16, "suspects": True}
    explained = await here.conn.execute(f"EXPLAIN (ANALYZE, TIMING OFF) {lanes.CLAIM}".encode(), values)
    lines = [text for (text,) in await explained.fetchall()]
    print("\n".join(lines))
    assert not [line for line in lines if "Seq Scan on lanes" in line or "Sort" in line]
    # What each look at the lanes by their time has read, the rows filtered away with it.
    read = [
        float(rows[1])
        for line in lines
        if re.search(r"Scan (Backward )?using lanes_due", line) and (rows := re.search(r"actual rows=([\d.]+)", line))
    ]
    removed = [int(line.rpartition(" ")[2]) for line in lines if "Rows Removed by Filter" in line]
    assert read and sum(read) + sum(removed) <= 64 + 16
    await here.act("DELETE FROM lanes WHERE tenant_id = %s AND conversation_id <> %s", here.tenant, lane)


# --- never mixed up ---


async def test_neither_history_nor_memo_crosses_tenants_though_all_their_ids_are_equal(here: Ground) -> None:
    """The twin has the same conversation, turn and messages under another tenant: an opening shows none of its words."""
    lane = await here.lane()
    worker = await here.worker()
    await here.ingest(here.placed(lane, "ours"))
    await turn(here, worker, "our answer")
    await here.ingest(here.placed(lane, "and now?"))
    [claim] = await here.claim(worker)
    found = await here.open(claim)
    assert found.turn
    copies = {
        "messages": "SELECT %s, id, conversation_id, channel_id, direction, kind, provider_id, digest, refers_to, sent_at, "
        "stored_at, 'THEIRS ' || body, turn_id, correlation, ack_ms, raw FROM messages WHERE tenant_id = %s",
        "outbox": "SELECT %s, conversation_id, seq, kind, message_id, entered_at, replays FROM outbox WHERE tenant_id = %s",
        "turns": "SELECT %s, id, conversation_id, first_seq, last_seq, begun_at, session_at - interval '1 day' "
        "FROM turns WHERE tenant_id = %s",
    }
    for table, copy in copies.items():
        await here.act(f"INSERT INTO {table} {copy}", here.twin, here.tenant)
    await here.act(
        "INSERT INTO steps (tenant_id, turn_id, step, version, result) VALUES (%s, %s, 'answer', %s, '{\"text\": \"THEIRS\"}')",
        *(here.twin, found.turn.id, found.version),
    )
    again = await here.open(claim)
    for table in ("steps", "turns", "outbox", "messages"):
        await here.act(f"DELETE FROM {table} WHERE tenant_id = %s", here.twin)
    assert again.memo == {}
    assert [said.body for said in again.said] == ["ours", "our answer"]
    assert [asked.body for asked in again.asked] == ["and now?"]
    assert again.session_at == found.session_at and "THEIRS" not in repr(again)
