"""Replaying the spool: a segment goes once all of it was taken, what is damaged is kept for a person, the rest goes on."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from app.errors import DatabaseUnavailable
from app.spool import Record
from tests.spooled import Taker, drained, files, filled, record, spool

pytestmark = pytest.mark.anyio


async def test_records_are_taken_in_order_and_so_many_at_once(tmp_path: Path) -> None:
    """Segments one after the other, oldest first; within one they begin in order, at most `concurrency` together."""
    await filled(tmp_path, 30, 1, 10)
    taker = Taker()
    async with spool(tmp_path) as it:
        report = await it.replay(taker, concurrency=4)
    assert taker.began == [f"c{n}" for n in range(41)]
    assert taker.most_at_once == 4
    assert (report.taken, report.segments, report.left) == (41, 3, 0)
    assert files(tmp_path) == []


async def test_each_record_waits_for_its_pace(tmp_path: Path) -> None:
    """It is awaited before each; what it raises goes through, and nothing is deleted."""
    await filled(tmp_path, 5)
    paced = 0

    class Enough(Exception):
        pass

    async def pace() -> None:
        nonlocal paced
        if paced == 3:
            raise Enough
        paced += 1

    taker = Taker()
    async with spool(tmp_path) as it:
        with pytest.raises(Enough):
            await it.replay(taker, pace=pace)
        assert len(taker.began) <= 3
        assert it.state().records == 5
        assert len(await drained(it)) == 5  # its lock is free


async def test_a_segment_stays_until_all_of_it_was_taken(tmp_path: Path) -> None:
    """A record that was not taken stops neither its neighbours nor other segments; all of its own comes again."""
    await filled(tmp_path, 5, 2)
    taker = Taker("c3")
    async with spool(tmp_path) as it:
        report = await it.replay(taker)
        assert (report.taken, report.failed, report.segments, report.left, report.stopped) == (6, 1, 1, 1, False)
        assert it.state().records == 5
        assert it.holds_anything
        again = Taker()
        assert (await it.replay(again)).taken == 5
        assert again.taken == [f"c{n}" for n in range(5)]
        assert not it.holds_anything


async def test_when_the_database_is_away_again_the_rest_is_not_tried(tmp_path: Path) -> None:
    """It would fare the same, and each would take its deadline."""
    await filled(tmp_path, 50, 50)
    taker = Taker(*(f"c{n}" for n in range(2, 100)), error=DatabaseUnavailable("away"))
    async with spool(tmp_path) as it:
        report = await it.replay(taker, concurrency=2)
        assert report.stopped
        assert (report.taken, report.segments, report.left) == (2, 0, 1)
        assert len(taker.began) < 8
        assert it.state().records == 100


async def test_its_own_segment_is_replayed_and_keeping_goes_on(tmp_path: Path) -> None:
    """What is kept while it replays goes to a new segment, which the next replay finds."""
    async with spool(tmp_path) as it:
        await it.keep(record(0))

        async def take(kept: Record) -> None:
            if kept.correlation == "c0":
                await it.keep(record(1))

        assert (await it.replay(take)).taken == 1
        assert it.holds_anything
        assert await drained(it) == [record(1)]


async def test_two_that_replay_share_the_segments(tmp_path: Path) -> None:
    """Each segment is one's alone; together they take all, once."""
    await filled(tmp_path, *[3] * 8)
    one, two = Taker(), Taker()
    async with spool(tmp_path) as it, spool(tmp_path) as other:
        reports = await asyncio.gather(it.replay(one), other.replay(two))
    assert sorted(one.taken + two.taken) == sorted(f"c{n}" for n in range(24))
    assert sum(report.segments for report in reports) == 8
    assert files(tmp_path) == []


async def test_replaying_beside_a_writer_loses_nothing(tmp_path: Path) -> None:
    """A segment is begun for each record, while somebody takes whatever is free: even one just made, still empty."""
    taker = Taker()
    async with spool(tmp_path, segment_bytes=1) as it, spool(tmp_path) as other:
        keeping = asyncio.gather(*(it.keep(record(n, bytes(200_000))) for n in range(200)))
        while not keeping.done():
            await other.replay(taker)
        await keeping
        await it.replay(taker)
    assert sorted(taker.taken) == sorted(f"c{n}" for n in range(200))
    assert files(tmp_path) == []


async def test_the_segment_of_a_living_writer_is_left_to_it(tmp_path: Path) -> None:
    """Its own process replays it, or whoever comes when it has ended."""
    async with spool(tmp_path) as it:
        async with spool(tmp_path) as other:
            await other.keep(record(0))
            report = await it.replay(Taker())
            assert (report.taken, report.living) == (0, 1)
        assert await drained(it) == [record(0)]


async def test_a_replay_that_is_cancelled_leaves_all_free(tmp_path: Path) -> None:
    """What was under way ends with it; the segment stays, unlocked."""
    await filled(tmp_path, 3)
    begun = asyncio.Event()
    ended = []

    async def take(kept: Record) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(kept.correlation)

    async with spool(tmp_path) as it:
        replay = asyncio.create_task(it.replay(take))
        await begun.wait()
        replay.cancel()
        with pytest.raises(asyncio.CancelledError):
            await replay
        assert ended
        assert len(await drained(it)) == 3


async def test_a_replay_that_is_cancelled_at_any_moment_keeps_no_lock(tmp_path: Path) -> None:
    """Not even when it ends while a thread is about to lock a segment for it."""
    await filled(tmp_path, 1, 1)
    async with spool(tmp_path) as it, spool(tmp_path) as other:
        for turns in range(20):
            replay = asyncio.create_task(it.replay(Taker("c0", "c1")))
            for _ in range(turns):
                await asyncio.sleep(0)
            replay.cancel()
            with suppress(asyncio.CancelledError):
                await replay
        await it.replay(Taker("c0", "c1"))  # what was begun has ended before it
        assert len(await drained(other)) == 2


async def test_a_take_that_ends_as_if_cancelled_has_not_taken(tmp_path: Path) -> None:
    """Something that it waited for was cancelled: its segment stays, and the replay goes on."""
    await filled(tmp_path, 3)
    taker = Taker("c1", error=asyncio.CancelledError())
    async with spool(tmp_path) as it:
        report = await it.replay(taker)
        assert (report.taken, report.failed, report.left) == (2, 1, 1)
        assert len(await drained(it)) == 3


async def test_what_pace_raises_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    """A deadline is an OSError too: it goes through, and no alert is raised."""
    await filled(tmp_path, 1)

    async def pace() -> None:
        raise TimeoutError

    async with spool(tmp_path) as it:
        with pytest.raises(TimeoutError):
            await it.replay(Taker(), pace=pace)
        assert len(await drained(it)) == 1
