"""The spool says no: at its bounds, with a disk that fails or hangs, in a folder that cannot be used. It drops nothing."""

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest
from prometheus_client import REGISTRY

from app.errors import ConfigurationError
from app.spool import SpoolError, SpoolFailed, SpoolFull, require
from app.vault import Vault
from tests.receiving import alerts
from tests.spooled import OLD, drained, files, filled, record, spool

pytestmark = pytest.mark.anyio


async def test_at_the_bound_of_bytes_it_takes_nothing_more(tmp_path: Path) -> None:
    """Of all that share the folder; what it holds stays, what is larger than the rest is refused alone."""
    async with spool(tmp_path, max_bytes=20_000) as it, spool(tmp_path, max_bytes=20_000) as other:
        with pytest.raises(SpoolFull, match="of 20,000 bytes"):
            await it.keep(record(0, bytes(20_000)))
        await other.keep(record(1, bytes(10_000)))
        ends = await asyncio.gather(
            *(it.keep(record(n, bytes(size))) for n, size in ((2, 5_000), (3, 6_000), (4, 4_000))),
            return_exceptions=True,
        )
        assert [type(end) for end in ends] == [type(None), SpoolFull, type(None)]
        with pytest.raises(SpoolFull, match=r"the spool holds [\d,]+ of 20,000 bytes$"):
            await it.keep(record(5, b""))
        state = await other.look()
        assert (state.records, state.segments) == (3, 2)
        assert 19_000 < state.bytes <= 20_000
        assert state.refuses and "of 20,000 bytes" in state.refuses
        assert len(await drained(it)) == 2
        await it.keep(record(6))
        assert (await it.look()).refuses is None


async def test_at_the_bound_of_age_it_takes_nothing_more(tmp_path: Path) -> None:
    """Once the oldest segment is too old, whoever wrote it; until that is replayed."""
    now = 1_000_000.0
    async with spool(tmp_path, clock=lambda: now) as it:
        await it.keep(record(0))
    async with spool(tmp_path, max_age=60, clock=lambda: now) as it:
        now += 60
        await it.keep(record(1))
        assert it.state().oldest == 60
        now += 1
        with pytest.raises(SpoolFull, match="since 61 s, longer than 60 s"):
            await it.keep(record(2))
        assert it.state().refuses == "the spool holds webhooks since 61 s, longer than 60 s"
        assert len(await drained(it)) == 2
        assert it.state().oldest is None
        await it.keep(record(3))
        assert it.state().refuses is None


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, SpoolFull), (errno.EIO, SpoolFailed), (errno.EROFS, SpoolFailed)]
)
async def test_a_failed_sync_ends_its_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    """No second fsync on that file counts; what was synced before stays, and the next record is in a new segment."""
    real = os.fsync

    def fail(_: int) -> NoReturn:
        raise OSError(code, os.strerror(code))

    async with spool(tmp_path) as it:
        await it.keep(record(0))
        before = files(tmp_path)
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(kind, match=os.strerror(code)):
            await it.keep(record(1))
        with pytest.raises(kind):
            await it.keep(record(2))
        assert files(tmp_path) == before  # no heap of empty files
        state = await it.look()
        assert state.refuses == f"the spool's disk: {os.strerror(code)}"
        monkeypatch.setattr(os, "fsync", real)
        assert (await it.look()).refuses is None  # nobody had to try with a webhook
        await it.keep(record(3))
        assert len(files(tmp_path)) == 2
        assert await drained(it) == [record(0), record(3)]


async def test_a_disk_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `patience` who waits is refused, whoever comes later at once; when it answers, it goes on."""
    free = threading.Event()
    real = os.fsync

    def hang(handle: int) -> None:
        assert free.wait(30)
        real(handle)

    async with spool(tmp_path, patience=0.5) as it:
        monkeypatch.setattr(os, "fsync", hang)
        ends = await asyncio.gather(it.keep(record(0)), it.keep(record(1)), return_exceptions=True)
        assert [type(end) for end in ends] == [SpoolFailed, SpoolFailed]
        for n in range(3):
            with pytest.raises(SpoolFailed, match="does not answer"):
                await it.keep(record(n))
        assert it.state().refuses == "the spool's disk does not answer"
        assert it.holds_anything
        free.set()
        assert (await it.look()).refuses is None
        await it.keep(record(2))
        assert record(2) in await drained(it)


async def test_a_folder_that_cannot_be_used_is_refused_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in its place or above it, a disk that takes nothing: in words for the operator. To look needs no room."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "spool"):
        with pytest.raises(ConfigurationError, match=rf"QASID_SPOOL_DIR: .*{folder}") as told:
            require(folder, Vault([OLD]))
        assert "replay" not in str(told.value), "it is no full disk"
        with pytest.raises(ConfigurationError, match="QASID_SPOOL_DIR"):
            await spool(folder, keeps=False).__aenter__()
    async with spool(tmp_path / "full") as it:
        await it.keep(record(0))

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ConfigurationError, match=r"No space left on device.*`qasid spool replay` needs none"):
        require(tmp_path / "full", Vault([OLD]))
    assert len(files(tmp_path / "full")) == 1
    async with spool(tmp_path / "full", keeps=False) as it:
        with pytest.raises(SpoolFailed):
            await it.keep(record(1))
        assert await drained(it) == [record(0)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
async def test_a_disk_that_takes_nothing_keeps_no_process_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """It refuses webhooks and calls somebody, once; what lies there is replayed; it takes more when the disk does."""
    await filled(tmp_path, 3)
    real, before = os.write, alerts("spool_refuses")

    def fail(*_: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", fail)
    async with spool(tmp_path) as it:
        assert it.state().refuses == f"the spool's disk: {os.strerror(code)}"
        for n in range(2):
            with pytest.raises(SpoolError):
                await it.keep(record(n))
        assert (it.state().records, it.holds_anything) == (3, True)
        assert len(await drained(it)) == 3
        assert alerts("spool_refuses") == before + 1
        assert REGISTRY.get_sample_value("qasid_spool_refuses") == 1
        monkeypatch.setattr(os, "write", real)
        assert (await it.look()).refuses is None
        assert REGISTRY.get_sample_value("qasid_spool_refuses") == 0
        await it.keep(record(3))
        assert await drained(it) == [record(3)]


async def test_a_folder_that_cannot_be_opened_is_tried_again_and_not_by_each_webhook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what lies there: until it was seen anything may. Once a second it is tried, however many come."""
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "spool"
    tried, real = [], os.mkdir

    def mkdir(path: Path, mode: int = 0o777) -> None:
        tried.append(path)
        real(path, mode)

    monkeypatch.setattr(os, "mkdir", mkdir)
    async with spool(folder) as it:
        assert it.state().refuses == "the spool's disk: Not a directory"
        assert it.holds_anything
        looks = len(tried)
        ends = await asyncio.gather(*(it.keep(record(n)) for n in range(50)), return_exceptions=True)
        assert {type(end) for end in ends} == {SpoolFailed}
        assert len(tried) - looks <= 1
        (tmp_path / "file").unlink()
        async with asyncio.timeout(5):
            while it.state().refuses:
                await asyncio.sleep(0.02)
        assert not it.holds_anything
        await it.keep(record(0))
        assert await drained(it) == [record(0)]


async def test_a_disk_that_hangs_keeps_no_process_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `patience` it goes on without, refuses at once, and counts as holding anything; it takes when the disk does."""
    free = threading.Event()
    real, before = os.scandir, alerts("spool_refuses")

    def hang(path: Path) -> Any:
        assert free.wait(30)
        return real(path)

    monkeypatch.setattr(os, "scandir", hang)
    async with asyncio.timeout(5), spool(tmp_path, patience=0.2) as it:
        assert it.holds_anything
        assert it.state().refuses == "the spool's disk does not answer"
        for n in range(3):
            with pytest.raises(SpoolFailed, match="does not answer"):
                await it.keep(record(n))
        assert alerts("spool_refuses") == before + 1
        free.set()
        while it.state().refuses:
            await asyncio.sleep(0.01)
        await it.keep(record(0))
        assert await drained(it) == [record(0)]


async def test_whoever_looks_at_a_disk_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person sits there: after `patience`, in words. So it is at the start of `qasid web`."""
    free = threading.Event()
    real = os.listdir

    def hang(path: Path) -> list[str]:
        assert free.wait(30)
        return real(path)

    words = f"QASID_SPOOL_DIR: the disk of {tmp_path} does not answer"
    it = spool(tmp_path, keeps=False, patience=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", hang)
        async with asyncio.timeout(5):
            with pytest.raises(ConfigurationError, match=words):
                await it.__aenter__()
            with pytest.raises(ConfigurationError, match=words):
                require(tmp_path, Vault([OLD]), patience=0.2)
        free.set()


async def test_a_folder_that_goes_away_is_told(tmp_path: Path) -> None:
    """While running: refused, and said so; not mistaken for an empty spool."""
    folder = tmp_path / "spool"
    async with spool(folder) as it:
        await it.keep(record(0))
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(SpoolFailed, match="No such file"):
            await it.keep(record(1))
        assert (await it.look()).refuses == "the spool's disk: No such file or directory"
        assert it.holds_anything


async def test_a_segment_that_somebody_takes_away_gets_nothing_more(tmp_path: Path) -> None:
    """What is kept afterwards lies where it is found again."""
    async with spool(tmp_path) as it:
        await it.keep(record(0))
        (tmp_path / files(tmp_path)[0]).unlink()
        await it.keep(record(1))
        assert await drained(it) == [record(1)]


async def test_closed_it_takes_nothing(tmp_path: Path) -> None:
    """Before it is entered and after it is left."""
    it = spool(tmp_path)
    with pytest.raises(SpoolFailed):
        await it.keep(record(0))
    async with it:
        await it.keep(record(1))
    with pytest.raises(SpoolFailed):
        await it.keep(record(2))
