"""Tells the database through which places statuses come in, and when some may have been missed.

Silence about a message in doubt counts only while every known place hears, so that it is not misread. It begins anew when
a place beats again after it was away or holds webhooks in its spool that can be replayed, and for a message whose status
came in a webhook that was not answered 200.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self
from uuid import UUID

import structlog

from app import db, tasks
from app.db import Pool
from app.store import doors

log = structlog.get_logger(__name__)

# Seconds between two beats, and how long one counts.
BEAT, LEASE = 1.0, 3.0
# Chunks that are remembered as missed while the database is away; beyond that all count as missed.
MOST_MISSED = 10_000
# How long a farewell may take (seconds): without it the place counts as missing until workers bury it.
FAREWELL = 1.0


def place(host: str, port: int) -> str:
    """The name of a door: processes that share a port share its name, since each hears for the others."""
    return f"{socket.gethostname()}/{host}:{port}"


class Doors:
    """The door of this process; tell it what was `missed` in a webhook not answered 200. An async context manager."""

    def __init__(self, pool: Pool, place: str, spooled: Callable[[], bool] = lambda: False) -> None:
        """`spooled`: whether statuses may be heard yet that the database has not seen, though they were answered 200."""
        self._spooled = spooled
        self._pool = pool
        self._place = place
        self._missed: set[tuple[UUID, UUID]] = set()
        self._everything = True  # whoever was here before may have missed anything
        self._noted = asyncio.Event()

    def missed(self, chunks: Iterable[tuple[UUID, UUID]]) -> None:
        """Statuses of these chunks (tenant, id) have come and could not be taken: they come again.

        Never waits, never fails: it is written as soon as the database takes it.
        """
        self._missed.update(chunks)
        if len(self._missed) > MOST_MISSED:
            self._missed.clear()
            self.missed_anything()
        self._noted.set()

    def missed_anything(self) -> None:
        """Nobody knows which statuses cannot be taken any more: silence begins anew about all messages."""
        self._everything = True
        self._noted.set()

    async def __aenter__(self) -> Self:
        self._beating = asyncio.create_task(self._run(), name="door")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await tasks.end(self._beating)
        if self._spooled():  # what lies there was answered 200: until somebody brings it in, this place is missed
            log.warning("no farewell of the door: statuses may lie in the spool")
            return
        try:
            async with asyncio.timeout(FAREWELL), db.connection(self._pool, vital=True) as conn:
                await doors.close(conn, self._place)
        except db.UNAVAILABLE as error_:
            log.warning("no farewell of the door", error=error_)

    async def _run(self) -> None:
        while True:
            await self._beat()
            # What is noted meanwhile is written at once, but no more often than this.
            await asyncio.sleep(BEAT / 4)
            try:
                async with asyncio.timeout(BEAT * 3 / 4):
                    await self._noted.wait()
            except TimeoutError:
                pass

    async def _beat(self) -> None:
        missed, everything = self._missed, self._everything or self._spooled()
        self._missed, self._everything = set(), False
        self._noted.clear()
        try:
            async with db.connection(self._pool, vital=True) as conn:
                await doors.beat(conn, self._place, LEASE, sorted(missed), everything=everything)
        except db.UNAVAILABLE as error:
            log.warning("door not beaten", error=error)
            self._missed |= missed
            self._everything |= everything
