"""The spool as the door sees it: what is kept is on the disk, what cannot be kept is refused, and it says how it stands."""

import asyncio
import os
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.spool import require
from app.vault import Vault
from tests.spooled import NEW, OLD, drained, files, record, spool

pytestmark = pytest.mark.anyio


async def test_what_is_kept_is_there_for_the_next_process(tmp_path: Path) -> None:
    """In order, whatever the body; and the folder is for its owner alone."""
    folder = tmp_path / "a" / "spool"
    records = [record(0, b""), record(1, bytes(range(256))), record(2, b"x" * 5_000_000)]
    async with spool(folder) as writing:
        assert not writing.holds_anything
        for each in records:
            await writing.keep(each)
            assert writing.holds_anything
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    async with spool(folder) as reading:
        assert reading.holds_anything
        assert await drained(reading) == records
        assert not reading.holds_anything
    assert files(folder) == []


async def test_nothing_is_kept_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`keep` returns after the fsync of the file and, for a new one, of its folder; those who wait share one."""
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        real(handle)

    async with spool(tmp_path) as it:
        monkeypatch.setattr(os, "fsync", fsync)
        await it.keep(record(0))
        segment = str(tmp_path / files(tmp_path)[0])
        assert synced == [str(tmp_path), segment]
        await asyncio.gather(*(it.keep(record(n)) for n in range(100)))
        assert synced[2:] == [segment]
        assert it.state().records == 101


async def test_a_segment_is_followed_by_another(tmp_path: Path) -> None:
    """Begun anew after so many bytes; names sort by time, and so does what is replayed."""
    now = 1_000_000.0

    def clock() -> float:
        nonlocal now
        now += 0.25
        return now

    async with spool(tmp_path, segment_bytes=500, clock=clock) as it:
        records = [record(n, bytes(300)) for n in range(6)]
        for each in records:
            await it.keep(each)
        assert it.state().segments == 3
        assert await drained(it) == records


async def test_whoever_gives_up_waiting_disturbs_nobody(tmp_path: Path) -> None:
    """The door's deadline: the others are kept, and the one may be."""
    async with spool(tmp_path) as it:
        leaving, *staying = [asyncio.create_task(it.keep(record(n))) for n in range(3)]
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(*staying)
        assert {each.correlation for each in await drained(it)} >= {"c1", "c2"}


async def test_keys_rotate(tmp_path: Path) -> None:
    """The first key seals, all open; without a segment's key `qasid web` does not start, and says which file and key."""
    async with spool(tmp_path, OLD) as it:
        await it.keep(record(0))
    (old,) = files(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        require(tmp_path, Vault([NEW]))
    assert str(tmp_path / old) in str(caught.value)
    assert f"under key {Vault([OLD]).key_ids[0]}, which is not in QASID_SECRET_KEY" in str(caught.value)
    require(tmp_path, Vault([NEW, OLD]))
    async with spool(tmp_path, NEW, OLD) as it:
        await it.keep(record(1))
        assert await drained(it) == [record(0), record(1)]
        await it.keep(record(2))
    async with spool(tmp_path, NEW) as it:
        assert await drained(it) == [record(2)]


async def test_it_counts_what_others_keep(tmp_path: Path) -> None:
    """Records, bytes and segments of all processes, without reading twice what it has counted."""
    async with spool(tmp_path) as it, spool(tmp_path) as other:
        for n in range(3):
            await other.keep(record(n))
            assert (await it.look()).records == n + 1
        await it.keep(record(3))
        state = await other.look()
        assert (state.records, state.segments, state.corrupt) == (4, 2, 0)
        assert state.bytes == sum((tmp_path / name).stat().st_size for name in files(tmp_path))
        assert it.holds_anything and other.holds_anything
