"""Rings the workers: one SAQ job that names the lanes which have become due. It carries no truth.

A lost or doubled wake-up harms nobody: workers look for due lanes on their own at least once a second.
"""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TypeVar, overload

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from saq.job import Job, Status
from saq.queue.postgres import PostgresQueue

from app import db, metrics
from app.log import Seldom
from app.store.lanes import LaneId

log = structlog.get_logger(__name__)

QUEUE = "wake"
DRAIN = "drain"
SCHEMA_VERSION = 3

# At most one job per process in this time (seconds): the first ring sounds at once, the rest are gathered. Where many
# lanes wake at once, workers find the next ones by themselves as they finish, and a job costs more than it tells.
GATHER, GATHER_AT_MOST = 0.01, 0.1
MANY = 16
# Lanes that one job names; it wakes for all that are due, named or not: the names are for SAQ's page.
MOST_NAMED = 1_000
# SAQ's UI shows finished jobs for this long (seconds).
KEEP = 60
# In a rush jobs wait for each other: late is fine, an error would only look like one (seconds).
PATIENCE = 30.0

# A job may take as long as the turns that it started; its retry would find nothing to do.
LIMITS: dict[str, Any] = {"timeout": 0, "retries": 1, "ttl": KEEP}
# What SAQ counts with, or writes into columns of 8 bytes.
_COUNTS = "timeout heartbeat retries ttl scheduled attempts completed queued started touched priority".split()


class Wakes(PostgresQueue):
    """SAQ's queue over tables that our migrations made: it never creates or alters anything."""

    def deserialize(
        self, payload: dict[str, Any] | str | bytes | None, status: Status | str | None = None
    ) -> Job | None:
        """The job that a row tells of, or None: of what is no wake-up, SAQ's page shows nothing and no worker does any.

        SAQ's own raises, and then neither the page nor any worker gets past that row.
        """
        try:
            job = super().deserialize(payload, status)
        except Exception:  # noqa: BLE001  anything may stand there: no JSON, no object, too deep, a field too many
            return None
        return job if job is not None and _is_wake_up(job) else None

    async def init_db(self) -> None:
        """Check that the tables are those of this SAQ.

        Raises:
            ValueError: they are not; a newer SAQ needs a migration of ours first.
        """
        async with self.pool.connection() as conn:
            found = await (await conn.execute("SELECT version FROM saq_versions")).fetchone()
        if found != (SCHEMA_VERSION,):
            raise ValueError(f"SAQ's tables are at version {found and found[0]}, this build wants {SCHEMA_VERSION}")

    async def mend(self, failure: Exception) -> None:
        """After an outage, throw out the connections that it left dead: each would fail once more. Never fails itself."""
        if not isinstance(failure, psycopg.OperationalError):
            return
        try:
            await self.pool.check()
        except Exception as error:  # noqa: BLE001  the pool is closed, or there is still no server
            log.debug("connections cannot be checked", error=error)


def _is_wake_up(job: Job) -> bool:
    """Whether SAQ can work on it without stumbling over a field."""
    counts = [getattr(job, name) for name in _COUNTS]
    return (
        job.function == DRAIN
        and isinstance(job.kwargs or {}, dict)
        and isinstance(job.key, str)
        and job.key.isprintable()  # PostgreSQL refuses NUL and lone surrogates
        and all(isinstance(count, int) and abs(count) < 2**53 for count in counts)
        and job.retry_backoff is False
        and job.retry_delay == 0
    )


Q = TypeVar("Q", bound=Wakes)


@overload
def jobs_queue(url: str, *, max_size: int = 4, patience: float = PATIENCE) -> Wakes: ...
@overload
def jobs_queue(url: str, kind: type[Q], *, max_size: int = 4, patience: float = PATIENCE) -> Q: ...


def jobs_queue(url: str, kind: type[Wakes] = Wakes, *, max_size: int = 4, patience: float = PATIENCE) -> Wakes:
    """The queue of wake-ups over a pool of its own, closed until `connect()`. `patience`: for a connection, in seconds.

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
        timeout=patience,
        max_waiting=1000,
        reconnect_timeout=db.RECONNECT_TIMEOUT,
    )
    return kind(pool=pool, name=QUEUE, min_size=1, max_size=max_size, manage_pool_lifecycle=True)


class Bell:
    """Gathers the lanes that woke and rings for all of them with one job."""

    def __init__(self, queue: Wakes) -> None:
        self._queue = queue
        self._woke: set[LaneId] = set()
        self._ringer: asyncio.Task[None] | None = None
        self._lost = Seldom()  # while wake-ups fail they fail at every message; the metrics count each

    def ring(self, lanes: Iterable[LaneId]) -> None:
        """Tell the workers, soon, that these lanes are due. Never waits, never fails."""
        for lane in lanes:
            if len(self._woke) < MOST_NAMED or lane in self._woke:
                self._woke.add(lane)
            else:
                metrics.wake_up_unnamed()
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
                except Exception as error:  # noqa: BLE001  nobody waits for this task: what it raised would go unheard
                    # The workers' own loop finds these lanes within a second.
                    metrics.wake_up("lost", len(woke))
                    if self._lost.due():
                        log.warning("wake-up lost", lanes=len(woke), error=error)
                    await self._queue.mend(error)
                await asyncio.sleep(GATHER_AT_MOST if len(woke) >= MANY else GATHER)
        finally:
            self._ringer = None

    async def _connect(self) -> None:
        try:
            await self._queue.connect()
        except Exception as error:  # noqa: BLE001  as above
            if self._lost.due():
                log.warning("no wake-ups for now", error=error)
