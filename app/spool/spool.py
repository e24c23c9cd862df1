"""The spool as others use it: `keep` until it is on the disk, `replay` what lies there, and say how it stands.

What blocks runs in two threads of its own: one writes and counts, one reads. A disk that hangs holds up neither loop, nor
memory, nor the end of the process: what cannot be kept in time is refused.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from app import tasks
from app.alerts import alert
from app.batches import Batches
from app.crashpoints import crashpoint
from app.errors import DatabaseUnavailable, SpoolFailed
from app.spool import folder as folders
from app.spool.frames import Record
from app.spool.hand import Hand
from app.spool.left import Left
from app.spool.replay import Pace, Replay, Report, Take
from app.spool.state import State
from app.spool.writer import SEGMENT_BYTES, Verdict, Writer
from app.vault import Vault

# How often the folder is counted (seconds).
LOOK = 1.0
# How many times its patience a start waits for millions of webhooks to be counted, on a disk that answers.
COUNTING = 2
HANGS = "the spool's disk does not answer"

log = structlog.get_logger(__name__)


class Spool:
    """Holds webhooks in a folder, sealed by the vault. An async context manager.

    A folder that cannot be used refuses webhooks and keeps nobody from starting: it is tried again once a second.
    It takes nothing more at `max_bytes` in the folder, of all processes together (each may go beyond it by one flush),
    or once its oldest segment that can be replayed was begun more than `max_age` seconds ago. A write that takes longer
    than `patience` seconds is left behind. `keeps=False`: only to look and to replay, which needs no room on the disk.
    """

    def __init__(
        self,
        folder: Path,
        vault: Vault,
        *,
        max_bytes: int,
        max_age: float,
        keeps: bool = True,
        patience: float = 5.0,
        segment_bytes: int = SEGMENT_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._vault = vault
        self._keeps = keeps
        self._patience = patience
        self._clock = clock
        self._left = Left()
        self._writer = Writer(
            folder,
            vault,
            self._left,
            max_bytes=max_bytes,
            max_age=max_age,
            keeps=keeps,
            segment_bytes=segment_bytes,
            clock=clock,
        )
        self._batches: Batches[Record, Verdict] = Batches(
            "spool", self._write, weigh=lambda record: len(record.body), patience=patience
        )
        self._open = False
        self._writes = Hand("spool writes")
        self._reads = Hand("spool reads")
        self._flight: Future[list[Verdict]] | None = None
        self._flight_began = 0.0
        self._hung: Future[list[Verdict]] | None = None

    async def __aenter__(self) -> Self:
        """Look at the folder: for `patience` seconds at most, and a while longer if there is much to count.

        Raises:
            ConfigurationError: it cannot be read, or does not answer; never where it `keeps`, since nobody may be there to
                read this.
        """
        first = asyncio.create_task(self._count(), name="spool")
        try:
            if not self._keeps:
                try:
                    async with asyncio.timeout(self._patience):
                        await self._reads.do(lambda: folders.prepare(self._folder, writes=False))
                except TimeoutError:  # ours: one of the disk's has become a ConfigurationError already
                    raise folders.hanging(self._folder) from None
            await asyncio.wait({first}, timeout=self._patience)
            if self._writer.answers:
                await asyncio.wait({first}, timeout=COUNTING * self._patience)
            if first.done():
                first.result()
            else:
                _tell_that_it_hangs()
        except BaseException:
            await tasks.end(first)
            self._end_threads()
            raise
        self._looking = asyncio.create_task(self._look_on(first), name="spool")
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        await tasks.end(self._looking)
        await self._batches.drain()
        with suppress(TimeoutError):  # the disk hangs, and nothing more can be done for it
            async with asyncio.timeout(self._patience):
                await self._writes.do(self._writer.seal)
        self._end_threads()

    async def keep(self, record: Record) -> None:
        """Return once the record is on the disk. Cancelled, it may lie there all the same.

        Raises:
            SpoolFull: a bound is reached, or the disk is full.
            SpoolFailed: the disk refuses, or does not answer.
        """
        if not (self._open and self._keeps):
            raise SpoolFailed("the spool is closed")
        try:
            await self._batches.submit(record)
        except DatabaseUnavailable as error:  # how Batches says that there is no verdict
            raise SpoolFailed(f"the spool gave no verdict: {error}") from error

    async def replay(self, take: Take, *, pace: Pace | None = None, concurrency: int = 16) -> Report:
        """Hand over all that lies there and belongs to no living process but this; delete what was taken.

        `take` returns once the record is safe elsewhere; it may get the same one again. If it raises, the record's
        segment stays; DatabaseUnavailable ends the replay, since the rest would fare the same. `pace` is awaited before
        each record, and what it raises goes through.

        Raises:
            OSError: the folder cannot be read.
        """
        await self._writes.do(self._writer.seal)
        try:
            replay = Replay(self._vault, self._reads, take, pace, concurrency=concurrency, left=self._left)
            return await replay.folder(self._folder)
        finally:
            await self._count()

    async def look(self, *, probe: bool = False) -> State:
        """Count anew, now; to `probe`, write something too, and take it away."""
        await self._count(probe=probe)
        return self.state()

    def state(self) -> State:
        """How it stands. Touches no disk."""
        refuses = HANGS if self._hangs or not self._writer.looked else self._writer.trouble
        return State.of(self._writer.census, now=self._clock(), refuses=refuses)

    @property
    def holds_anything(self) -> bool:
        """Whether a webhook may lie there: of this process at once, of others within about a second. Touches no disk."""
        return self._flight is not None or self._writer.holds_anything

    @property
    def awaits_replay(self) -> bool:
        """Whether statuses may lie there that are yet to be heard: until then silence about what is in doubt says nothing.

        What cannot be replayed does not count once all else of its segment was taken and a person told: a file that nobody
        can read must not hold up every conversation for as long as it lies there. It is tried again all the same. A status
        in it counts as one that never came, within the bound that docs/guarantees.md names.
        """
        return self._flight is not None or self._writer.awaits_replay

    @property
    def _hangs(self) -> bool:
        return self._flight is not None and time.monotonic() - self._flight_began > self._patience

    async def _write(self, records: Sequence[Record]) -> list[Verdict]:
        if not self._writer.looked:
            return [SpoolFailed(HANGS) for _ in records]
        if self._flight is not None:  # left behind: nothing more may pile up before that disk
            if self._hung is not self._flight:
                self._hung = self._flight
                _tell_that_it_hangs()
            return [SpoolFailed(HANGS) for _ in records]
        self._flight_began = time.monotonic()
        flight = self._flight = self._writes.begin(lambda: self._writer.append(records))
        flight.add_done_callback(self._landed)
        verdicts = await asyncio.shield(asyncio.wrap_future(flight))
        if None in verdicts:
            crashpoint("spool.synced")
        return verdicts

    def _landed(self, _: Future[list[Verdict]]) -> None:
        self._flight = None

    def _end_threads(self) -> None:
        self._writes.end()
        self._reads.end()

    async def _count(self, *, probe: bool = False) -> None:
        await self._writes.do(lambda: self._writer.look(probe=probe))
        self._left.keep(self._writer.census.names)
        self.state().show()

    async def _look_on(self, first: asyncio.Task[None]) -> None:
        if not first.done():
            self.state().show()
            await first
        while True:
            await asyncio.sleep(LOOK)
            await self._count()


def _tell_that_it_hangs() -> None:
    alert(log.error, "spool_refuses", "the spool's disk does not answer")
