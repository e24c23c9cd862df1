"""What a worker does with the lanes that it has claimed, before any of them is worked on."""

import asyncio
from uuid import uuid4

import pytest

from app import db
from app.settings import Settings
from app.store.lanes import Claim, Release
from app.turnstile import AT_ONCE
from tests import ground as shared
from tests.ground import Ground
from workers.commits import Commits
from workers.lane import Lanes

pytestmark = pytest.mark.anyio

here = shared.here


async def test_lanes_claimed_together_are_begun_a_few_in_each_round_of_the_loop(here: Ground) -> None:
    """A rush of them keeps no other waiting: between two handfuls the loop turns."""
    for _ in range(3 * AT_ONCE):
        await here.ingest(here.placed(await here.lane()))
    turns, begun = 0, list[int]()

    async def work(claim: Claim) -> Release:
        begun.append(turns)
        return Release(claim=claim, done_seq=1)

    async with db.pool(here.url, "qasid_courier", name="test", max_size=3) as pool:
        commits = Commits(pool, uuid4(), order_wait=1.0, silence=1.0, patience=5.0)
        async with asyncio.timeout(20), Lanes(commits, Settings()).serve(work):
            while len(begun) < 3 * AT_ONCE:
                await asyncio.sleep(0)
                turns += 1
    assert max(begun.count(turn) for turn in begun) <= AT_ONCE
