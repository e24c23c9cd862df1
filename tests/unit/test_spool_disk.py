"""A disk that refuses to read some of the spool: what it gives is replayed, what it refuses stays and is tried again, seldom."""

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from app.spool import frames, pauses, reader
from app.spool.pauses import Pauses
from app.spool.reader import Finding, Reader, Refused, Sound
from app.vault import Vault
from tests.receiving import alerts
from tests.spooled import OLD, Taker, drained, files, filled, record, spool

pytestmark = pytest.mark.anyio

BLOCK = 4096


@contextmanager
def refusing(path: Path, *blocks: int) -> Iterator[list[int]]:
    """The disk refuses these blocks of this file, as Linux does: what comes before them is given, short; yields refusals."""
    real = os.pread
    refused: list[int] = []

    def pread(handle: int, size: int, at: int) -> bytes:
        if Path(f"/proc/self/fd/{handle}").readlink() == path:
            bad = [n for n in blocks if at < (n + 1) * BLOCK and n * BLOCK < at + size]
            if bad and at >= min(bad) * BLOCK:
                refused.append(min(bad))
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if bad:
                size = min(bad) * BLOCK - at
        return real(handle, size, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", pread)
        yield refused


async def laid(folder: Path, *sizes: int) -> Path:
    """One segment of records of these sizes, c0, c1, …."""
    async with spool(folder) as it:
        for n, size in enumerate(sizes):
            await it.keep(record(n, bytes(size)))
    return folder / files(folder)[-1]


async def test_what_the_disk_refuses_hides_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other records of that segment and all other segments are taken; it stays as it is, is told once, comes again."""
    path = await laid(tmp_path, 1000, 12_000, 1000, 1000)
    await filled(tmp_path, 1)
    data, before = path.read_bytes(), alerts("spool_left")
    monkeypatch.setattr(pauses, "FIRST", 0.0)
    async with spool(tmp_path) as it:
        with refusing(path, 1):
            for _ in range(2):
                taker = Taker()
                report = await it.replay(taker)
                assert [name for name in taker.taken if name != "c0"] == ["c2", "c3"]
                assert (report.left, report.refused, report.corrupt, report.missing) == (1, 1, 0, 0)
        assert (files(tmp_path), path.read_bytes()) == ([path.name], data)
        assert alerts("spool_left") == before + 1
        assert (it.state().unreadable, it.holds_anything) == (1, True)
        assert REGISTRY.get_sample_value("qasid_spool_unreadable") == 1
        assert len(await drained(it)) == 4
        assert (files(tmp_path), it.state().unreadable) == ([], 0)


def whole(frames: list[bytes], bad: Iterable[int]) -> list[str]:
    """The correlations of those records, one behind the other, of which no bad block has a byte."""
    at, names = 0, []
    for n, frame in enumerate(frames):
        end = at + len(frame)
        if not any(at < (block + 1) * BLOCK and block * BLOCK < end for block in bad):
            names.append(f"c{n}")
        at = end
    return names


def found(path: Path, *bad: int) -> tuple[list[Finding], list[int], int | None]:
    """What a reader finds there, which blocks were refused to it, and where it gave up."""
    each = Reader(path, Vault([OLD]))
    assert each.claim()
    findings: list[Finding] = []
    with refusing(path, *bad) as refused:
        while piece := each.read():
            findings += piece
    each.close()
    return findings, refused, each.gave_up


@given(
    st.lists(st.sampled_from((0, 500, 3_000, 9_000)), min_size=1, max_size=12), st.sets(st.integers(0, 12), max_size=3)
)
def test_every_record_outside_the_refused_blocks_is_found(sizes: list[int], blocks: set[int]) -> None:
    """In order; nothing that the disk refuses counts as damaged, missing or torn, and none of it is asked for twice."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "segment"
        written = [frames.seal(Vault([OLD]), path.name, n, record(n, bytes(size))) for n, size in enumerate(sizes)]
        path.write_bytes(b"".join(written))
        findings, refused, _ = found(path, *blocks)
    sound = whole(written, blocks)
    assert [finding.record.correlation for finding in findings if isinstance(finding, Sound)] == sound
    assert {type(finding) for finding in findings} <= {Sound, Refused}
    assert any(isinstance(finding, Refused) for finding in findings) == (len(sound) < len(sizes))
    assert len(refused) == len(set(refused))


@pytest.mark.parametrize(
    ("bad", "gave_up"), [(60, None), (64, 64 * 4 * BLOCK - 3 * BLOCK), (80, 64 * 4 * BLOCK - 3 * BLOCK)]
)
def test_so_many_bad_blocks_hide_nothing_behind_them(tmp_path: Path, bad: int, gave_up: int | None) -> None:
    """Each costs one refusal, which may take the disk seconds; after so many the rest is left alone, and that is told."""
    path = tmp_path / "segment"
    written = [frames.seal(Vault([OLD]), path.name, n, record(n, bytes(3_000))) for n in range(500)]
    path.write_bytes(b"".join(written))
    blocks = range(0, 4 * bad, 4)
    findings, refused, place = found(path, *blocks)
    assert (refused, place) == (list(blocks)[: reader.MOST_REFUSALS], gave_up)
    sound = [finding.record.correlation for finding in findings if isinstance(finding, Sound)]
    rest = range(gave_up // BLOCK, 1_000) if gave_up else []
    assert sound == whole(written, [*blocks, *rest])
    assert len(sound) > 100


async def test_a_refused_segment_is_left_alone_for_a_while(tmp_path: Path) -> None:
    """A replay that comes sooner does not touch it, says that it is left, and takes the others."""
    path = await laid(tmp_path, 100)
    async with spool(tmp_path) as it:
        with refusing(path, 0) as refused:
            assert (await it.replay(Taker())).refused == 1
            await filled(tmp_path, 1)
            tries = len(refused)
            report = await it.replay(Taker())
        assert (report.taken, report.left, report.refused, len(refused)) == (1, 1, 1, tries)


def test_pauses_grow_to_a_bound_and_end_with_success() -> None:
    """5 s, then twice as long each time, 300 s at most; each file has its own."""
    now = 0.0
    each = Pauses(lambda: now)
    for pause in (5, 10, 20, 40, 80, 160, 300, 300):
        each.refused("a")
        assert not each.due("a") and each.due("b")
        now += pause - 1
        assert not each.due("a")
        now += 1
        assert each.due("a")
    each.given("a")
    assert not each.names
    each.refused("a")
    now += 5
    assert each.due("a")
    each.keep(["b"])
    assert not each.names


async def test_a_segment_that_cannot_be_counted_hides_no_other(tmp_path: Path) -> None:
    """A process that begins beside it counts the rest, takes webhooks, and says that one is unreadable."""
    path = await laid(tmp_path, 100)
    await filled(tmp_path, 2)
    with refusing(path, 0):
        async with spool(tmp_path) as it:
            state = it.state()
            assert (state.records, state.segments, state.unreadable, state.refuses) == (2, 2, 1, None)
            await it.keep(record(0))
            assert (await it.look()).records == 3


async def test_what_lies_on_a_disk_that_can_only_be_read_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems become so after an error: nothing can be deleted, so the segment stays, and is told."""
    (path,) = await filled(tmp_path, 3)
    real_open, real_unlink = os.open, os.unlink

    def only_read(name: Path, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real_open(name, flags, mode)

    def unlink(name: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    taker = Taker()
    async with spool(tmp_path) as it:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", only_read)
            patch.setattr(os, "unlink", unlink)
            report = await it.replay(taker)
        assert os.unlink is real_unlink
        assert (taker.taken, report.segments, report.refused) == (["c0", "c1", "c2"], 0, 1)
    assert path.exists()
