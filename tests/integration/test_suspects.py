"""What keeps failing, or kills whoever works on it: how its tries are counted, and how it is kept from the others and given up.

Each test works beside a twin tenant whose ids are the same and whose rows may not move (tests/ground.py).
"""

from typing import Any
from uuid import UUID

import pytest

from app.store import lanes, settlements
from tests import ground as shared
from tests.ground import Ground

pytestmark = pytest.mark.anyio

here = shared.here


async def test_only_progress_clears_the_count_of_attempts(here: Ground) -> None:
    """An error's release leaves it, an orderly one clears it; done_seq never goes back."""
    lane = await here.lane()
    await here.ingest(here.placed(lane), here.placed(lane))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    await here.release(worker, claim, again_in=0.0, failed=True)
    [claim] = await here.claim(worker)
    assert claim.attempts == 2
    await here.release(worker, claim, done_seq=2)
    await here.release(worker, claim, done_seq=1)
    assert ((await here.row(lane))["attempts"], (await here.row(lane))["done_seq"]) == (0, 2)


async def test_what_fails_after_progress_counts_all_the_same(here: Ground) -> None:
    """An error that comes after each intent would else be tried for ever."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    for attempt in (1, 2):
        [claim] = await here.claim(worker)
        assert claim.attempts == attempt
        await here.act("UPDATE lanes SET attempts = 0 WHERE conversation_id = %s", lane)  # as an intent does
        await here.release(worker, claim, again_in=0.0, failed=True)


async def suspected(here: Ground, attempts: int = 3) -> UUID:
    """A due lane that was claimed so often without progress."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    await here.act(
        "UPDATE lanes SET attempts = %s WHERE (tenant_id, conversation_id) = (%s, %s)", attempts, here.tenant, lane
    )
    return lane


async def test_suspects_are_claimed_a_few_at_a_time_and_then_alone(here: Ground) -> None:
    """What may kill its worker is kept apart from others of its kind, so that none is blamed for another."""
    few = {await suspected(here) for _ in range(10)}
    guilty = {await suspected(here, attempts=4) for _ in range(2)}
    sound = {await suspected(here, attempts=2)}
    worker = await here.worker()

    async def claimed(**more: Any) -> set[UUID]:
        return {claim.conversation_id for claim in await lanes.claim(here.conn, worker, 100, **more)}

    assert await claimed(suspects=False) == sound
    alone = [await claimed(), await claimed()]
    assert [len(one) for one in alone] == [1, 1] and alone[0] | alone[1] == guilty
    group = await claimed()
    assert len(group) == 8 and group < few
    assert await claimed() == few - group


async def test_a_suspects_claim_counts_only_once_it_is_tried(here: Ground) -> None:
    """Its worker may die while the database is away, again and again: that is no doing of the lane's."""
    lane = await suspected(here)
    for _ in range(5):
        dead = await here.worker()
        [claim] = await here.claim(dead)
        assert claim.suspect and claim.attempts == 3
        await lanes.leave(here.conn, dead)
        await lanes.bury(here.conn)
    worker = await here.worker()
    assert await lanes.tried(here.conn, dead, claim) is None, "not its lane any more"
    [claim] = await here.claim(worker)
    assert await lanes.tried(here.conn, worker, claim) == 4
    await here.release(worker, claim, again_in=0.0, failed=True)
    assert (await here.row(lane))["attempts"] == 4


@pytest.mark.parametrize("tried", [False, True])
async def test_a_suspect_that_is_given_back_stays_one(here: Ground, tried: bool) -> None:
    """Its claim's answer was lost: that was no try, but among sound lanes it could kill their workers again."""
    lane = await suspected(here)
    worker = await here.worker()
    [claim] = await here.claim(worker)
    if tried:
        await lanes.tried(here.conn, worker, claim)
    await lanes.disown(here.conn, worker, [])
    assert (await here.row(lane))["attempts"] == 3
    [again] = await here.claim(worker)
    assert again.suspect


async def test_a_worker_that_lives_on_clears_what_it_works_on(here: Ground) -> None:
    """Who waits for a slow assistant is not to blame for what killed its workers before; another worker's lane stays."""
    lane, other = await suspected(here, 1), await suspected(here, 1)
    worker = await here.worker()
    await here.claim(worker)
    await lanes.survived(here.conn, await here.worker(), [(here.tenant, lane)])
    assert (await here.row(lane))["attempts"] == 2
    await lanes.survived(here.conn, worker, [(here.tenant, lane)])
    assert ((await here.row(lane))["attempts"], (await here.row(other))["attempts"]) == (0, 2)


async def test_a_head_that_nobody_can_read_is_ended_unread(here: Ground) -> None:
    """Its turn counts as parked, its first unsent chunk too, the rest is cancelled; the lane goes on behind it."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    turn = (await here.open(claim)).turn
    assert turn
    assert await settlements.park_head(here.conn, await here.worker(), claim, "why") is None, "not its lane"
    assert await settlements.park_head(here.conn, worker, claim, "why") == 1
    await here.release(worker, claim, done_seq=1)
    assert await here.all("SELECT outcome, turn_id FROM usage") == [{"outcome": "parked", "turn_id": turn.id}]

    await here.ingest(here.placed(lane))
    [claim] = await here.claim(worker)
    turn = (await here.open(claim)).turn
    assert turn
    await here.settle(worker, claim, turn, "one", "two", send=True)
    assert await settlements.park_head(here.conn, worker, claim, "why") == 2
    rows = await here.all("SELECT state FROM chunks ORDER BY no")
    assert [row["state"] for row in rows] == ["parked", "cancelled"]
    await here.release(worker, claim, done_seq=2)
    assert await settlements.park_head(here.conn, worker, claim, "why") is None, "nothing is left"


async def test_errors_are_certain_and_deaths_are_not(here: Ground) -> None:
    """Five errors of its own are enough to give a lane up; of deaths, which may be another's, it takes eight."""
    failing, dying = await suspected(here), await suspected(here)
    for n in (4, 5):
        worker = await here.worker()
        claims = {claim.conversation_id: claim for claim in await here.claim(worker)}
        for lane, claim in claims.items():
            assert await lanes.tried(here.conn, worker, claim) == n
            if lane == failing:
                await here.release(worker, claim, again_in=0.0, failed=True)
        await lanes.leave(here.conn, worker)  # it dies
        await lanes.bury(here.conn)
        if n == 4:  # alone from here on: the other waits its turn
            await here.act("UPDATE lanes SET run_at = NULL WHERE conversation_id = %s", dying)
    assert (await here.row(failing))["attempts"] == lanes.MOST_CLAIMS
    assert (await here.row(dying))["attempts"] == 4
