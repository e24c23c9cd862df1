"""What the spool's tests share: records, a spool with small bounds whose clock goes on, and all that lies in one."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from app.spool import Record, Spool
from app.vault import Vault

OLD, NEW = b"o" * 32, b"n" * 32
ENDPOINT = UUID(int=7)

# Time goes on with each look at it, so that segments sort as they were begun.
_ticks = itertools.count(1_000_000.0, 0.001)


def record(n: int, body: bytes = b"{}") -> Record:
    """The record of correlation c0, c1, …."""
    return Record(endpoint_id=ENDPOINT, endpoint="meta", correlation=f"c{n}", received_at=1_000.0 + n, body=body)


def spool(
    folder: Path,
    *keys: bytes,
    max_bytes: int = 100_000_000,
    max_age: float = 3_600,
    keeps: bool = True,
    patience: float = 5.0,
    segment_bytes: int = 1_000_000,
    clock: Callable[[], float] = lambda: next(_ticks),
) -> Spool:
    """A spool in this folder, not yet entered."""
    return Spool(
        folder,
        Vault(keys or [OLD]),
        max_bytes=max_bytes,
        max_age=max_age,
        keeps=keeps,
        patience=patience,
        segment_bytes=segment_bytes,
        clock=clock,
    )


async def drained(each: Spool) -> list[Record]:
    """All that it holds, in the order in which it hands it over."""
    got = []

    async def take(kept: Record) -> None:
        got.append(kept)

    await each.replay(take, concurrency=1)
    return got


def files(folder: Path) -> list[str]:
    """The names in a folder."""
    return sorted(path.name for path in folder.iterdir())


class Taker:
    """Takes records, but for those of the correlations in `bad`, which it refuses with `error`."""

    def __init__(self, *bad: str, error: BaseException | None = None) -> None:
        self.bad = set(bad)
        self.error = error or ValueError("no such endpoint")
        self.began: list[str] = []
        self.taken: list[str] = []
        self.most_at_once = 0
        self._at_once = 0

    async def __call__(self, kept: Record) -> None:
        self.began.append(kept.correlation)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        for _ in range(3):
            await asyncio.sleep(0)
        self._at_once -= 1
        if kept.correlation in self.bad:
            raise self.error
        self.taken.append(kept.correlation)


async def filled(folder: Path, *counts: int, key: bytes = OLD) -> list[Path]:
    """Segments of so many records each, c0, c1, …, as processes left them that have ended."""
    n = 0
    for count in counts:
        async with spool(folder, key) as it:
            for _ in range(count):
                await it.keep(record(n))
                n += 1
    return [folder / name for name in files(folder)]
