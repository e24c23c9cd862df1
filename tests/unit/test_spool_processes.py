"""The spool among processes: one that is killed, two that share a folder, and a disk that takes no more."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.spooled import drained, files, spool

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.anyio

BEGINNING = """
import asyncio, itertools, resource, sys
from pathlib import Path
from app import log
from app.settings import load
from app.spool import SpoolError
from tests.spooled import drained, record, spool

folder = Path(sys.argv[1])
log.configure(load({}), process="cli")

def say(what):
    print(what, flush=True)
"""

# Keeps records for ever, of growing size, eight at once, and says which are kept.
KEEPER = """
async def main():
    numbers = itertools.count()
    async def keeper(it):
        for n in numbers:
            await it.keep(record(n, bytes(n % 100 * 1_000)))
            say(n)
    async with spool(folder, segment_bytes=2_000_000) as it:
        await asyncio.gather(*(keeper(it) for _ in range(8)))
asyncio.run(main())
"""

# Keeps one record, and holds its segment until its input ends.
HOLDER = """
async def main():
    async with spool(folder) as it:
        await it.keep(record(0))
        say("kept")
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""

# A disk on which no file grows beyond 10,000 bytes: the write that would is cut short, and the next fails.
FULL = """
async def main():
    async with spool(folder) as it:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        for n in range(6):
            try:
                await it.keep(record(n, bytes(4_000 if n < 4 else 10)))
                say(f"kept {n}")
            except SpoolError as error:
                say(f"{type(error).__name__} {n} {it.state().refuses}")
asyncio.run(main())
"""

ONE = """
async def main():
    async with spool(folder) as it:
        await it.keep(record(0))
        say("kept")
asyncio.run(main())
"""

# Is left behind by a disk that answers a minute later.
HANGING = """
import os, time
async def main():
    async with spool(folder, patience=0.2) as it:
        await it.keep(record(0))
        os.fsync = lambda handle: time.sleep(60)
        try:
            await it.keep(record(1))
        except SpoolError:
            say("left behind")
asyncio.run(main())
"""

REPLAY = """
async def main():
    async with spool(folder) as it:
        for each in await drained(it):
            say(each.correlation)
asyncio.run(main())
"""


@asynccontextmanager
async def child(script: str, folder: Path, crashpoint: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that runs this; killed at the end if it still does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BEGINNING + script, str(folder),
        cwd=ROOT, env={**os.environ, "CRASHPOINT": crashpoint},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_nothing_that_was_kept_is_lost_with_the_process(tmp_path: Path) -> None:
    """Killed in the middle of writing, again and again: all that it called kept is there, whole, nothing set aside."""
    kept: set[int] = set()
    got: set[int] = set()
    for lines in (1, 20, 120):
        async with child(KEEPER, tmp_path) as process:
            assert process.stdout
            told = [int(await process.stdout.readline()) for _ in range(lines)]
            process.kill()
            told += [int(line) for line in (await process.communicate())[0].splitlines(keepends=True) if b"\n" in line]
        async with spool(tmp_path) as it:
            records = await drained(it)
            assert (await it.look()).corrupt == 0
        kept, got = set(told), {int(each.correlation[1:]) for each in records}
        assert len(kept) >= lines
        assert kept <= got
        assert all(each.body == bytes(int(each.correlation[1:]) % 100 * 1_000) for each in records)
        assert files(tmp_path) == []


async def test_the_segment_of_a_process_is_free_as_soon_as_it_is_dead(tmp_path: Path) -> None:
    """Left alone while it lives, even stopped; replayed once it was killed, with no lease to wait for."""
    async with child(HOLDER, tmp_path) as process, spool(tmp_path) as it:
        assert process.stdout
        assert await process.stdout.readline() == b"kept\n"
        process.send_signal(signal.SIGSTOP)
        assert await drained(it) == []
        assert (await it.look()).records == 1
        process.kill()
        await process.wait()
        assert [each.correlation for each in await drained(it)] == ["c0"]


async def test_a_disk_without_room_costs_what_it_does_not_take_alone(tmp_path: Path) -> None:
    """A write that is cut short leaves nothing in the way: what came before and what fits afterwards is read."""
    async with child(FULL, tmp_path) as process:
        out, err = await process.communicate()
    assert out.decode().splitlines() == [
        "kept 0",
        "kept 1",
        "SpoolFailed 2 the spool's disk: File too large",
        "SpoolFailed 3 the spool's disk: File too large",
        "kept 4",
        "kept 5",
    ], err.decode()
    assert len(files(tmp_path)) == 1
    async with spool(tmp_path) as it:
        assert [each.correlation for each in await drained(it)] == ["c0", "c1", "c4", "c5"]
        assert (await it.look()).corrupt == 0


async def test_killed_between_the_sync_and_the_answer_the_record_is_there(tmp_path: Path) -> None:
    """Crash point `spool.synced`: nobody was told, so it comes twice, and ingest knows it."""
    async with child(ONE, tmp_path, "spool.synced:1") as process:
        assert await process.communicate() == (b"", b"")
        assert process.returncode == -signal.SIGKILL
    async with spool(tmp_path) as it:
        assert [each.correlation for each in await drained(it)] == ["c0"]


async def test_killed_between_the_takes_and_the_delete_all_comes_again(tmp_path: Path) -> None:
    """Crash point `spool.replayed`: the segment is still there, and free."""
    async with child(ONE, tmp_path) as process:
        assert (await process.communicate())[0] == b"kept\n"
    async with child(REPLAY, tmp_path, "spool.replayed:1") as process:
        await process.communicate()
        assert process.returncode == -signal.SIGKILL
    async with child(REPLAY, tmp_path) as process:
        assert await process.communicate() == (b"c0\n", b"")
    assert files(tmp_path) == []


async def test_a_process_ends_though_its_disk_hangs(tmp_path: Path) -> None:
    """Whoever stops it waits for no write that nobody waits for any more."""
    async with child(HANGING, tmp_path) as process:
        assert process.stdout
        assert await process.stdout.readline() == b"left behind\n"
        async with asyncio.timeout(10):
            assert await process.wait() == 0
