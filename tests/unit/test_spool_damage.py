"""A spool with damage in it: what is broken is kept for a person and told once, the rest is replayed."""

from pathlib import Path

import pytest

from app import metrics
from app.vault import Vault
from tests.spooled import NEW, OLD, Taker, drained, files, filled, record, spool

pytestmark = pytest.mark.anyio


def alerts(kind: str) -> float:
    return float(metrics._alerts(kind)._value.get())


def damage(path: Path, place: int) -> bytes:
    """Turn one bit; the whole file as it is now."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    return bytes(data)


async def test_a_damaged_record_is_set_aside_once(tmp_path: Path) -> None:
    """Its bytes lie beside the segment, raw, told once however often it is replayed; then the segment goes, they stay."""
    (path,) = await filled(tmp_path, 3)
    size = path.stat().st_size // 3
    data = damage(path, size + 100)
    before = alerts("spool_damaged")
    async with spool(tmp_path) as it:
        report = await it.replay(Taker("c0"))
        assert (report.taken, report.failed, report.corrupt, report.left) == (1, 1, 1, 1)
        report = await it.replay(Taker("c2"))
        assert (report.taken, report.failed, report.corrupt, report.left) == (1, 1, 0, 1)
        assert alerts("spool_damaged") == before + 1
        report = await it.replay(Taker())
        assert (report.taken, report.corrupt, report.segments) == (2, 0, 1)
        assert files(tmp_path) == [f"{path.name}.corrupt"]
        assert (tmp_path / f"{path.name}.corrupt").read_bytes() == data[size : 2 * size]
        state = it.state()
        assert (state.corrupt, state.segments, state.bytes) == (1, 0, size)
        assert not it.holds_anything


async def test_what_cannot_be_set_aside_is_not_deleted(tmp_path: Path) -> None:
    """Nowhere to put the damaged bytes: they stay where they are, that is told, and all else is taken."""
    path, _ = await filled(tmp_path, 2, 1)
    damage(path, 50)
    (tmp_path / f"{path.name}.corrupt").mkdir()
    before = alerts("spool_left")
    taker = Taker()
    async with spool(tmp_path) as it:
        for _ in range(2):
            report = await it.replay(taker)
        assert report.left == 1
        assert alerts("spool_left") == before + 1
    assert path.exists()
    assert taker.taken == ["c1", "c2"]


async def test_a_torn_end_is_ignored(tmp_path: Path) -> None:
    """Nobody was told that it is kept: counted, no alert, nothing set aside, and the segment goes."""
    (path,) = await filled(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:-1])
    before = alerts("spool_damaged")
    async with spool(tmp_path) as it:
        report = await it.replay(Taker())
    assert (report.taken, report.torn, report.corrupt, report.segments) == (2, 1, 0, 1)
    assert alerts("spool_damaged") == before
    assert files(tmp_path) == []


async def test_a_record_that_is_missing_is_told(tmp_path: Path) -> None:
    """A gap in the numbers: there is nothing to set aside, but somebody took it away."""
    (path,) = await filled(tmp_path, 3)
    data = path.read_bytes()
    size = len(data) // 3
    path.write_bytes(data[:size] + data[2 * size :])
    before = alerts("spool_damaged")
    async with spool(tmp_path) as it:
        report = await it.replay(Taker())
    assert (report.taken, report.missing, report.segments) == (2, 1, 1)
    assert alerts("spool_damaged") == before + 1


async def test_a_record_that_is_missing_is_told_once(tmp_path: Path) -> None:
    """However often its segment comes again: silence would begin anew each time, and somebody be called."""
    (path,) = await filled(tmp_path, 3)
    data = path.read_bytes()
    size = len(data) // 3
    path.write_bytes(data[:size] + data[2 * size :])
    before = alerts("spool_damaged")
    async with spool(tmp_path) as it:
        assert [(await it.replay(Taker("c2"))).missing for _ in range(3)] == [1, 0, 0]
        assert (await it.replay(Taker())).segments == 1
    assert alerts("spool_damaged") == before + 1


async def test_a_segment_of_another_key_that_comes_while_running_is_left(tmp_path: Path) -> None:
    """Another process may be ahead in a rotation: nothing of it is set aside or deleted, and it is told once."""
    before = alerts("spool_left")
    async with spool(tmp_path, OLD) as it:
        (path,) = await filled(tmp_path, 2, key=NEW)
        for _ in range(2):
            report = await it.replay(Taker())
            assert (report.taken, report.foreign, report.left, report.corrupt) == (0, 2, 1, 0)
        state = await it.look()
        assert (state.missing_keys, state.apart, state.oldest) == (Vault([NEW]).key_ids, 1, None)
        assert (it.holds_anything, it.awaits_replay) == (True, False)
    assert alerts("spool_left") == before + 1
    assert Vault([NEW]).key_ids != Vault([OLD]).key_ids
    async with spool(tmp_path, NEW) as it:
        assert len(await drained(it)) == 2
    assert not path.exists()


async def test_a_process_that_begins_beside_a_segment_of_another_key_leaves_it(tmp_path: Path) -> None:
    """It keeps and replays its own all the same; the other's bytes are as they were."""
    (path,) = await filled(tmp_path, 2, key=NEW)
    before = path.read_bytes()
    async with spool(tmp_path, OLD) as it:
        assert (it.state().missing_keys, it.state().refuses) == (Vault([NEW]).key_ids, None)
        await it.keep(record(5))
        taker = Taker()
        assert (await it.replay(taker)).left == 1
        assert taker.taken == ["c5"]
    assert (files(tmp_path), path.read_bytes()) == ([path.name], before)


async def test_an_empty_segment_goes(tmp_path: Path) -> None:
    """A process that was killed before its first record was written leaves one; it holds nothing."""
    (path,) = await filled(tmp_path, 1)
    path.write_bytes(b"")
    async with spool(tmp_path) as it:
        assert not it.holds_anything
        assert (await it.replay(Taker())).segments == 1
    assert files(tmp_path) == []
