"""Replays segments whose writers have ended: each record to whoever takes it, a segment deleted once all were taken.

At least once: after a crash, or for a record that was not taken, the whole segment comes again. Where the disk refuses,
what can be read is taken all the same; the segment stays, and is tried again after a pause.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog
from msgspec import Struct

from app import tasks
from app.crashpoints import crashpoint
from app.errors import DatabaseUnavailable
from app.spool import folder as folders
from app.spool.frames import Record
from app.spool.hand import Hand
from app.spool.left import Left
from app.spool.reader import Damaged, Flaw, Foreign, Missing, Reader, Refused, Sound
from app.vault import Vault

log = structlog.get_logger(__name__)

Take = Callable[[Record], Awaitable[None]]
Pace = Callable[[], Awaitable[None]]
Result = TypeVar("Result")


class Report(Struct, kw_only=True):
    """What became of a replay, in numbers of records, but for the last six."""

    taken: int = 0
    failed: int = 0
    """`take` raised: they come again."""
    corrupt: int = 0
    """Damaged places that were set aside now, beside their segments."""
    missing: int = 0
    """Not there, which nobody was told before."""
    foreign: int = 0
    """Of a key that is not in QASID_SECRET_KEY."""
    torn: int = 0
    """Ends that a writer left when it was cut short: nobody was told that they are kept."""
    segments: int = 0
    """Replayed to the end and deleted."""
    living: int = 0
    """Left to the process that writes or replays them."""
    left: int = 0
    """Not deleted: a record was not taken, or the file cannot be read."""
    refused: int = 0
    """Of these: the disk refuses something of them, or refused it lately."""
    stuck: int = 0
    """Of these: found now to be such that nothing more can be had of them, since the disk refuses it or the key is missing."""
    stopped: bool = False
    """The database is away again: what came after was not tried."""


class _DiskRefuses(Exception):
    """An OSError of the segment's file, and of nothing that `take` or `pace` did."""


class Replay:
    """One replay of a folder. `take` is called in the order of a segment, for so many records at once."""

    def __init__(
        self,
        vault: Vault,
        hand: Hand,
        take: Take,
        pace: Pace | None,
        *,
        concurrency: int,
        left: Left,
    ) -> None:
        self.report = Report()
        self._vault = vault
        self._hand = hand
        self._take = take
        self._pace = pace
        self._concurrency = concurrency
        self._left = left
        self._refused: BaseException | None = None  # the first refusal of the segment at hand

    async def folder(self, folder: Path) -> Report:
        """All segments that nobody else has, oldest first. Raises OSError: the folder cannot be read."""
        for path in await self._hand.do(lambda: folders.segments(folder)):
            if self.report.stopped:
                break
            if self._left.pauses.due(path.name):
                await self._segment(path)
            else:
                self.report.left += 1
                self.report.refused += 1
        return self.report

    async def _segment(self, path: Path) -> None:
        report, reader = self.report, Reader(path, self._vault)
        failed, self._refused = report.failed, None
        try:
            if not await self._disk(reader.claim):
                report.living += 1
                return
            if await self._records(reader):
                crashpoint("spool.replayed")
                await self._disk(reader.delete)
                report.segments += 1
                self._left.pauses.given(path.name)
                return
        except _DiskRefuses as error:
            self._refused = error.__cause__
        finally:  # behind whatever was begun: a claim of which nobody hears any more would last as long as the process
            await self._disk(reader.close)
        report.left += 1
        if self._refused:
            report.refused += 1
            self._left.pauses.refused(path.name)
            self._left.stays(path.name, _refusal(reader), self._refused)
        elif not report.stopped:
            self._left.pauses.given(path.name)
        if report.failed > failed and not report.stopped:
            self._left.stays(path.name, "not all of it was taken; the log says what")
        if report.failed > failed or report.stopped:
            self._left.stuck -= {path.name}
        elif path.name not in self._left.stuck:
            self._left.stuck |= {path.name}
            report.stuck += 1

    async def _records(self, reader: Reader) -> bool:
        """Whether all that can be read was taken, and the rest set aside."""
        report = self.report
        taken, foreign, handed = report.taken, report.foreign, 0
        under_way: set[asyncio.Task[None]] = set()
        try:
            while not report.stopped and (piece := await self._disk(reader.read)):
                for finding in piece:
                    if not isinstance(finding, Sound):
                        await self._flawed(reader, finding)
                        continue
                    if self._pace:
                        await self._pace()
                    if len(under_way) >= self._concurrency:
                        _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    if report.stopped:
                        break
                    handed += 1
                    under_way.add(asyncio.create_task(self._one(finding.record), name="spooled webhook"))
            if under_way:
                await asyncio.wait(under_way)
        finally:
            await tasks.end(*under_way)
        if self._refused:
            return False
        return not report.stopped and report.foreign == foreign and report.taken == taken + handed

    async def _one(self, record: Record) -> None:
        try:
            await self._take(record)
        except asyncio.CancelledError:  # ours, or of something that it waited for
            self.report.failed += 1
            raise
        except Exception as error:  # noqa: BLE001  whatever it was, its neighbours are taken and it comes again
            self.report.failed += 1
            self.report.stopped |= isinstance(error, DatabaseUnavailable)
            log.warning(
                "spooled webhook not taken", endpoint=record.endpoint, correlation=record.correlation, error=error
            )
        else:
            self.report.taken += 1

    async def _flawed(self, reader: Reader, finding: Flaw) -> None:
        if isinstance(finding, Damaged):
            try:
                is_new = await self._disk(lambda: reader.set_aside(finding.raw))
            except _DiskRefuses as error:  # then it stays where it is, and what comes behind it is taken
                self._refused = self._refused or error.__cause__
                return
            if is_new:
                self.report.corrupt += 1
                self._left.damaged(reader.path.name, f"damaged bytes are set aside: {len(finding.raw):,}")
        elif isinstance(finding, Missing):
            reason = f"records are missing from number {finding.first:,} on: {finding.records:,}"
            if self._left.is_new(reader.path.name, reason):
                self.report.missing += finding.records
                self._left.damaged(reader.path.name, reason)
        elif isinstance(finding, Foreign):
            self.report.foreign += 1
            self._left.stays(reader.path.name, f"sealed under key {finding.key_id}, which is not in QASID_SECRET_KEY")
        elif isinstance(finding, Refused):
            self._refused = self._refused or finding.error
        else:
            self.report.torn += 1
            log.info("a torn end of the spool is ignored", file=reader.path.name, bytes=finding.size)

    async def _disk(self, job: Callable[[], Result]) -> Result:
        try:
            return await self._hand.do(job)
        except OSError as error:
            raise _DiskRefuses from error


def _refusal(reader: Reader) -> str:
    if reader.gave_up is None:
        return "the disk refuses"
    return f"the disk refuses so much that it was not asked from byte {reader.gave_up:,} on"
