"""Brings what the spool holds into the database once it can be asked again, by the ordinary ingest, live traffic first.

At least once: what was taken before a crash is recognised as a duplicate. It never decides what an item means.
"""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from app import metrics, tasks
from app.breaker import Breaker
from app.channels import LARGE, provider
from app.directory import Directory, Watch
from app.doors import Doors
from app.errors import DatabaseUnavailable, Overloaded, Unknown
from app.ingest import Ingest
from app.log import Seldom
from app.spool import Record, Spool

log = structlog.get_logger(__name__)

# Seconds between two looks at the spool, and after a replay that left something.
LOOK, AGAIN = 0.5, 5.0
# One whose lane somebody holds stays for the next replay, and holds up no other; where too much is in hand already it waits
# (seconds).
PATIENCE, OVERLOADED = 5.0, 0.5
# Webhooks a second, and how many at once: a few rows of each commit, so that those who write now hardly notice.
RATE, AT_ONCE = 500.0, 16


class Backlog:
    """An async context manager: it replays for as long as it is entered."""

    def __init__(
        self, spool: Spool, breaker: Breaker, watch: Callable[[], Watch | None], ingest: Ingest, doors: Doors
    ) -> None:
        """`watch` returns None until the configuration has been read. `doors` hear of what the disk has lost."""
        self._doors = doors
        self._spool = spool
        self._breaker = breaker
        self._watch = watch
        self._ingest = ingest
        self._next = 0.0
        self._telling = Seldom()

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._run(), name="backlog")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await tasks.end(self._running)

    async def _run(self) -> None:
        pause = LOOK
        while True:
            await asyncio.sleep(pause)
            pause = LOOK
            if self._spool.holds_anything and self._watch() is not None and self._breaker.allows_writes:
                pause = await self._replay()

    async def _replay(self) -> float:
        """Seconds until it is worth looking again."""
        began = time.monotonic()
        try:
            report = await self._spool.replay(self._take, pace=self._pace, concurrency=AT_ONCE)
        except OSError as error:
            if self._telling.due():
                log.error("the spool cannot be read", error=error)
            return AGAIN
        if report.corrupt or report.missing or report.stuck:
            self._doors.missed_anything()
        if report.taken or report.failed:
            log.info(
                "spool replayed",
                webhooks=report.taken,
                failed=report.failed,
                segments=report.segments,
                seconds=round(time.monotonic() - began, 1),
            )
        return AGAIN if report.left or report.living else LOOK

    async def _pace(self) -> None:
        """So many a second, evenly."""
        now = time.monotonic()
        self._next = max(self._next + 1 / RATE, now)
        if self._next > now:
            await asyncio.sleep(self._next - now)

    async def _take(self, record: Record) -> None:
        watch = self._watch()
        if watch is None:
            raise DatabaseUnavailable("the configuration has not been read yet")
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await take(record, watch.current, self._ingest)
                    break
                except Overloaded:  # by live traffic, which goes first
                    await asyncio.sleep(OVERLOADED)
        metrics.spooled("replayed")


async def take(record: Record, directory: Directory, ingest: Ingest) -> None:
    """Return once all that this webhook says is committed.

    Raises:
        DatabaseUnavailable: not now.
        Unknown: its endpoint is not in the configuration.
    """
    endpoint = directory.endpoint_by_id(record.endpoint_id)
    if endpoint is None:
        raise Unknown(f"the endpoint {record.endpoint} of a spooled webhook is not in the configuration")
    decode, body = provider(endpoint.kind).decode, record.body
    items = await asyncio.to_thread(decode, body) if len(body) > LARGE else decode(body)
    await ingest.take(directory, endpoint, items, record.correlation, time.monotonic())
