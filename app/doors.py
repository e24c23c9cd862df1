"""Tells the database through which places statuses come in, and when some may have been missed.

Silence about a message in doubt counts only while every known place hears, so that it is not misread. A place that beats
again after it was away, and an authentic webhook that was not answered 200, let silence begin anew.
"""

import asyncio
import socket
from types import TracebackType
from typing import Self
from uuid import UUID

import psycopg
import structlog

from app import db, tasks
from app.db import Pool
from app.errors import DatabaseUnavailable
from app.store import endpoints

log = structlog.get_logger(__name__)

# Seconds between two beats, and how long one counts.
BEAT, LEASE = 1.0, 3.0
# How long a farewell may take (seconds): without it the place counts as missing until workers bury it.
FAREWELL = 1.0


def place(host: str, port: int) -> str:
    """The name of a door: processes that share a port share its name, since each hears for the others."""
    return f"{socket.gethostname()}/{host}:{port}"


class Doors:
    """The door of this process; `note` an endpoint whose webhook was not answered 200. An async context manager."""

    def __init__(self, pool: Pool, place: str) -> None:
        self._pool = pool
        self._place = place
        self._missed: set[UUID] = set()
        self._began = True
        self._noted = asyncio.Event()

    def note(self, endpoint_id: UUID) -> None:
        """Never waits, never fails: it is written as soon as the database takes it."""
        self._missed.add(endpoint_id)
        self._noted.set()

    async def __aenter__(self) -> Self:
        self._beating = asyncio.create_task(self._run(), name="door")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await tasks.end(self._beating)
        try:
            async with asyncio.timeout(FAREWELL), db.connection(self._pool) as conn:
                await endpoints.close(conn, self._place)
        except (psycopg.Error, DatabaseUnavailable, TimeoutError, OSError) as error_:
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
        missed, began = self._missed, self._began
        self._missed, self._began = set(), False
        self._noted.clear()
        try:
            async with db.connection(self._pool) as conn:
                await endpoints.beat(conn, self._place, LEASE, sorted(missed), everything=began)
        except (psycopg.Error, DatabaseUnavailable, OSError) as error:
            log.warning("door not beaten", error=error)
            self._missed |= missed
            self._began |= began
