"""Tells the database when statuses may have been missed, so that silence about a message in doubt is not misread.

That is when a web process starts, and when it answered an authentic webhook other than 200.
"""

import asyncio
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

# At most one write in this time (seconds); also how long to wait before another try.
PAUSE = 1.0


class Disturbances:
    """`note` an endpoint whose webhook was not answered 200. An async context manager: entering notes all of them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._noted: set[UUID] = set()
        self._all = True
        self._any = asyncio.Event()
        self._any.set()

    def note(self, endpoint_id: UUID) -> None:
        """Never waits, never fails: it is written as soon as the database takes it."""
        self._noted.add(endpoint_id)
        self._any.set()

    async def __aenter__(self) -> Self:
        self._writer = asyncio.create_task(self._run(), name="disturbances")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await tasks.end(self._writer)

    async def _run(self) -> None:
        while True:
            await self._any.wait()
            self._any.clear()
            noted, everything = self._noted, self._all
            self._noted, self._all = set(), False
            try:
                async with db.connection(self._pool) as conn:
                    await endpoints.disturbed(conn, None if everything else sorted(noted))
            except (psycopg.Error, DatabaseUnavailable) as error:
                log.warning("disturbance not written yet", error=error)
                self._noted |= noted
                self._all |= everything
                self._any.set()
            await asyncio.sleep(PAUSE)
