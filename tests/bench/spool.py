"""How fast the spool keeps: `python -m tests.bench.spool [keepers] [seconds] [body bytes]`, in a folder under /tmp or TMPDIR.

Each keeper hands over a record and waits until it is on the disk, then the next.
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

import uvloop

from app.spool import Record, Spool
from app.vault import Vault
from tests.bench.figures import percentiles


async def measure(folder: Path, keepers: int, seconds: float, body: bytes) -> None:
    """Print what was kept in this time, then what replaying it takes."""
    vault = Vault([os.urandom(32)])
    took: list[float] = []
    async with Spool(folder, vault, max_bytes=8 << 30, max_age=3_600) as spool:
        end = time.perf_counter() + seconds

        async def keeper(n: int) -> None:
            while (began := time.perf_counter()) < end:
                await spool.keep(
                    Record(
                        endpoint_id=UUID(int=n),
                        endpoint="meta",
                        correlation=f"c{n}",
                        received_at=time.time(),
                        body=body,
                    )
                )
                took.append(time.perf_counter() - began)

        before, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*map(keeper, range(keepers)))
        wall, cpu = time.perf_counter() - before, time.process_time() - cpu
        p50, p99, most = (value * 1000 for value in percentiles(took))
        print(f"kept {len(took)} in {wall:.2f} s: {len(took) / wall:,.0f}/s, {cpu / len(took) * 1e6:.0f} µs CPU each; "
              f"p50 {p50:.1f}, p99 {p99:.1f}, max {most:.1f} ms")  # fmt: skip

        async def take(_: Record) -> None:
            pass

        before = time.perf_counter()
        report = await spool.replay(take)
        wall = time.perf_counter() - before
        print(f"replayed {report.taken} in {wall:.2f} s: {report.taken / wall:,.0f}/s")


def main() -> None:
    """Read the arguments."""
    keepers, seconds, size = (int(text) for text in [*sys.argv[1:], *("100", "5", "2000")[len(sys.argv) - 1 :]])
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(Path(folder) / "spool", keepers, seconds, os.urandom(size)))


if __name__ == "__main__":
    main()
