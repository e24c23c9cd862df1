"""Rings the workers: one SAQ job that names the lanes which have become due. It carries no truth.

A lost or doubled wake-up harms nobody: workers look for due lanes on their own at least once a second.
"""

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from saq.queue.postgres import PostgresQueue

from app import db, metrics
from app.store.lanes import LaneId

log = structlog.get_logger(__name__)

QUEUE = "wake"
DRAIN = "drain"
SCHEMA_VERSION = 3

# At most one job per process in this time (seconds): the first ring sounds at once, the rest are gathered. Where many
# lanes wake at once, workers find the next ones by themselves as they finish, and a job costs more than it tells.
GATHER, GATHER_AT_MOST = 0.01, 0.1
MANY = 16
# SAQ's UI shows finished jobs for this long (seconds).
KEEP = 60


# What SAQ raises while the database is away, or its tables are not what it expects.
UNREACHABLE = (psycopg.Error, PoolTimeout, OSError, ValueError)


class Wakes(PostgresQueue):
    """SAQ's queue over tables that our migrations made: it never creates or alters anything."""

    heard: Callable[[], None] | None = None
    """Called when SAQ looks for jobs, which it does at each notification: earlier than a job can begin."""

    async def _dequeue(self) -> None:
        if self.heard is not None:
            self.heard()
        await super()._dequeue()

    async def init_db(self) -> None:
        """Check that the tables are those of this SAQ.

        Raises:
            ValueError: they are not; a newer SAQ needs a migration of ours first.
        """
        async with self.pool.connection() as conn:
            found = await (await conn.execute("SELECT version FROM saq_versions")).fetchone()
        if found != (SCHEMA_VERSION,):
            raise ValueError(f"SAQ's tables are at version {found and found[0]}, this build wants {SCHEMA_VERSION}")


def jobs_queue(url: str, *, max_size: int = 4) -> Wakes:
    """The queue of wake-ups over a pool of its own, closed until `connect()`.

    Commits return before the disk has them: what is lost with a crash is made again from the lanes.
    """
    pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
        url,
        kwargs={
            **db.options("qasid_courier", timeout=10.0, extra="-c synchronous_commit=off"),
            "autocommit": True,
            "application_name": "qasid saq",
        },
        open=False,
        name="saq",
        timeout=30.0,  # in a rush its jobs wait for each other: late is fine, an error would only look like one
        max_waiting=1000,
    )
    return Wakes(pool=pool, name=QUEUE, min_size=1, max_size=max_size, manage_pool_lifecycle=True)


class Bell:
    """Gathers the lanes that woke and rings for all of them with one job."""

    def __init__(self, queue: PostgresQueue) -> None:
        self._queue = queue
        self._woke: set[LaneId] = set()
        self._ringer: asyncio.Task[None] | None = None

    def ring(self, lanes: Iterable[LaneId]) -> None:
        """Tell the workers, soon, that these lanes are due. Never waits, never fails."""
        self._woke.update(lanes)
        if self._ringer is None and self._woke:
            self._ringer = asyncio.get_running_loop().create_task(self._run(), name="bell")

    async def __aenter__(self) -> "Bell":
        self._ringer = asyncio.create_task(self._run(), name="bell")  # connects, so that the first ring is a quick one
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ringer is not None:
            await asyncio.wait({self._ringer}, timeout=2.0)

    async def _run(self) -> None:
        try:
            await self._connect()
            while self._woke:
                woke, self._woke = self._woke, set()
                try:
                    await self._queue.connect()  # nothing, but after an outage at start-up
                    await self._queue.enqueue(
                        DRAIN, lanes=[f"{tenant}/{conversation}" for tenant, conversation in sorted(woke)], **LIMITS
                    )
                    metrics.wake_up("rung", len(woke))
                except UNREACHABLE as error:
                    # The workers' own loop finds these lanes within a second.
                    metrics.wake_up("lost", len(woke))
                    log.warning("wake-up lost", lanes=len(woke), error=error)
                await asyncio.sleep(GATHER_AT_MOST if len(woke) >= MANY else GATHER)
        finally:
            self._ringer = None

    async def _connect(self) -> None:
        try:
            await self._queue.connect()
        except UNREACHABLE as error:
            log.warning("no wake-ups for now", error=error)


# A job may take as long as the turns that it started; its retry would find nothing to do.
LIMITS: dict[str, Any] = {"timeout": 0, "retries": 1, "ttl": KEEP}
