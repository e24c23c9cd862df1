"""A segment that cannot be replayed whole: what it still holds up, who is told, and when the disk is asked for it again."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.errors import DatabaseUnavailable
from app.spool import SpoolFull, pauses
from app.spool.reader import Reader
from app.vault import Vault
from tests.spooled import OLD, Taker, drained, files, record, spool
from tests.unit.test_spool_disk import BLOCK, laid, refusing

pytestmark = pytest.mark.anyio


async def test_where_a_replay_gave_up_is_told(tmp_path: Path) -> None:
    """The byte from which on nobody knows what the disk would give."""
    path = await laid(tmp_path, *[4_000] * 200)
    with capture_logs() as lines, refusing(path, *range(1_000)):
        async with spool(tmp_path) as it:
            assert (await it.replay(Taker())).refused == 1
    told = [line["reason"] for line in lines if line.get("alert") == "spool_left"]
    assert told == [f"the disk refuses so much that it was not asked from byte {64 * BLOCK:,} on"]


async def test_a_file_that_cannot_be_read_ends_neither_the_spool_nor_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However old: once all else of it was taken it counts for no age, and nobody waits for statuses in it; it is tried again."""
    now = 1_000_000.0
    async with spool(tmp_path, clock=lambda: now) as it:
        for n, size in enumerate((1_000, 12_000, 1_000)):
            await it.keep(record(n, bytes(size)))
    path = tmp_path / files(tmp_path)[0]
    now += 61
    monkeypatch.setattr(pauses, "FIRST", 0.0)
    async with spool(tmp_path, max_age=60, clock=lambda: now) as it:
        with refusing(path, 1):
            with pytest.raises(SpoolFull):
                await it.keep(record(3))
            assert (await it.replay(Taker("c2"))).stuck == 0
            assert it.awaits_replay, "c2 can be read"
            report = await it.replay(Taker())
            assert (report.taken, report.left, report.stuck) == (2, 1, 1)
            assert (it.holds_anything, it.awaits_replay) == (True, False)
            state = it.state()
            assert (state.apart, state.oldest, state.refuses) == (1, None, None)
            await it.keep(record(3))
            assert (it.state().oldest, it.awaits_replay) == (0, True)
            report = await it.replay(Taker())
            assert (report.segments, report.left, report.stuck, it.awaits_replay) == (1, 1, 0, False)
        assert len(await drained(it)) == 3
        assert (files(tmp_path), it.holds_anything, it.state().apart) == ([], False, 0)


async def test_whoever_only_looks_sees_what_cannot_be_read(tmp_path: Path) -> None:
    """`qasid spool` replays nothing: it reads the records for that, and not their headers alone."""
    path = await laid(tmp_path, 1_000, 12_000)
    with refusing(path, 1):
        async with spool(tmp_path, keeps=False) as it:
            state = await it.look()
    assert (state.unreadable, state.apart, state.oldest) == (1, 1, None)


async def test_a_segment_stays_refused_until_it_was_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a replay that finds it in other hands nor one that the database ended has seen that the disk gives it."""
    path = await laid(tmp_path, 100, 100)
    monkeypatch.setattr(pauses, "FIRST", 0.0)
    async with spool(tmp_path) as it:
        with refusing(path, 0):
            assert (await it.replay(Taker())).refused == 1
        other = Reader(path, Vault([OLD]))
        assert other.claim()
        assert ((await it.replay(Taker())).living, it.state().unreadable) == (1, 1)
        other.close()
        away = Taker("c0", "c1", error=DatabaseUnavailable("away"))
        assert ((await it.replay(away)).stopped, it.state().unreadable) == (True, 1)
        assert (len(await drained(it)), it.state().unreadable) == (2, 0)
