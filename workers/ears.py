"""SAQ's queue as the worker process runs it: what fails in it is told of, and ends there. Order and truth are elsewhere.

SAQ leaves exceptions in tasks that nobody waits for, asks again without a pause where its tables are gone, and never
gets past a row that it cannot read.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool
from saq.job import Job, Status
from saq.queue.postgres import ENQUEUE, ListenMultiplexer
from saq.types import WorkerInfo

from app import db, tasks
from app.log import Seldom
from app.wake import Wakes

log = structlog.get_logger(__name__)

# After a lost connection, how long until it is listened again (seconds).
AGAIN = 1.0
# SAQ takes a job so long after its notification (seconds): by then the lanes that it names are opened, most likely, and what SAQ
# writes down of them held up none.
BEHIND = 0.03
# Rows that nobody works on any more go after this time (seconds): the lanes they name were found long ago.
STALE = 60


class Ear(ListenMultiplexer):
    """Listens for as long as its queue is open, and again after a lost connection.

    SAQ's own listens only while one of its slots is free, and starts anew, without a pause, whenever it fails.
    """

    def __init__(self, pool: AsyncConnectionPool[Any], key: str) -> None:
        super().__init__(pool, key)
        self.heard: Callable[[], None] | None = None
        self._failed = Seldom()

    def publish(self, channel: str, message: Any) -> None:
        """A notification has come: first the lanes are looked at, then SAQ takes its job, which only shows them."""
        if message == ENQUEUE and self.heard is not None:
            self.heard()
            asyncio.get_running_loop().call_later(BEHIND, super().publish, channel, message)
        else:
            super().publish(channel, message)

    async def close(self) -> None:
        """Nothing: SAQ calls this when for a moment nobody waits for jobs."""

    async def end(self) -> None:
        """Stop listening for good."""
        if self._daemon_task is not None:
            await tasks.end(self._daemon_task)

    async def _start(self) -> None:
        while True:
            try:
                await super()._start()
            except Exception as error:  # noqa: BLE001  nobody waits for this task
                if self._failed.due():
                    log.warning("wake-ups are not heard for now", error=error)
            await asyncio.sleep(AGAIN)


class Ears(Wakes):
    """The queue as a worker uses it. What it cannot write down is left: it concerns SAQ's page, no message."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._listener: Ear = Ear(self.pool, self._channel)
        self._failed = Seldom()

    def ring(self, heard: Callable[[], None]) -> None:
        """Have `heard` called at each notification: earlier than a job can begin."""
        self._listener.heard = heard

    async def connect(self) -> None:
        await super().connect()
        await self._listener.start()

    async def disconnect(self) -> None:
        """Never fails to close the pool, connected or not."""
        await self._listener.end()
        await super().disconnect()
        await self.pool.close()

    async def update(self, job: Job, **kwargs: Any) -> None:
        with self._left():
            await super().update(job, **kwargs)

    async def finish(self, job: Job, status: Status, **kwargs: Any) -> None:
        with self._left():
            await super().finish(job, status, **kwargs)

    async def retry(self, job: Job, error: str | None) -> None:
        with self._left():
            await super().retry(job, error)

    async def jobs(self, job_keys: Iterable[str]) -> list[Job | None]:
        with self._left():
            return await super().jobs(job_keys)
        return []

    async def write_worker_info(self, worker_id: str, info: WorkerInfo, ttl: int) -> None:
        with self._left():
            await super().write_worker_info(worker_id, info, ttl)

    async def sweep(self, lock: int = 60, abort: float = 5.0) -> list[str]:
        """Delete what is over: finished jobs past their time, wake-ups too old to tell anything, jobs of dead workers.

        SAQ's own waits up to `abort` seconds for each stuck job, one after the other, and fails at a row it cannot
        read. Many workers may do this at once. Returns the keys of the jobs that nobody worked on.
        """
        with self._left():
            return await self._sweep()
        return []

    async def _sweep(self) -> list[str]:
        async with self.pool.connection() as conn:
            await conn.execute(_DELETE_OLD, {"queue": self.name, "stale": STALE})
            await conn.execute("DELETE FROM saq_stats WHERE expire_at <= extract(epoch FROM now())")
            alive = {worker for (worker,) in await (await conn.execute("SELECT worker_id FROM saq_stats")).fetchall()}
            begun = await (await conn.execute(_BEGUN, (self.name,))).fetchall()
            left = [
                key
                for key, row, status in begun
                if (job := self.deserialize(row, status)) is None or job.stuck or _abandoned(job, alive)
            ]
            await conn.execute(_DELETE, (left,))
        return left

    async def _dequeue(self) -> None:
        try:
            await super()._dequeue()
        except Exception as error:  # noqa: BLE001  raised, it would have SAQ ask again at once, without end
            if isinstance(error, (psycopg.Error, OSError)) and not isinstance(error, db.BAD_DATA):
                if self._failed.due():
                    log.warning("wake-ups cannot be taken for now", error=error)
                await self.mend(error)
            else:
                with self._left():
                    await self._set_aside(error)

    async def _set_aside(self, why: Exception) -> None:
        """One row that cannot be read holds up all, at every try: delete such rows, or else all that wait."""
        async with self.pool.connection() as conn:
            waiting = await (await conn.execute(_WAITING, (self.name,))).fetchall()
            bad = [key for key, row in waiting if self.deserialize(row, Status.QUEUED) is None]
            bad = bad or [key for key, _ in waiting]
            await conn.execute(_DELETE, (bad,))
        log.warning("wake-ups set aside that cannot be read", rows=len(bad), error=why)

    @contextmanager
    def _left(self) -> Iterator[None]:
        """Whatever fails here is said, and left."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  wherever SAQ meets it, it ends a task that nobody waits for
            if self._failed.due():
                log.warning("SAQ's tables cannot be used for now", error=error)


def _abandoned(job: Job, alive: set[str]) -> bool:
    ran = job.duration("running")
    return job.worker_id not in alive and (ran is None or ran >= STALE * 1000)


# SAQ's tables keep the seconds of its processes' clocks. Rows that another transaction holds are left to it.
_DELETE_OLD = """
DELETE FROM saq_jobs WHERE key IN (
  SELECT key FROM saq_jobs WHERE queue = %(queue)s AND (
    status IN ('aborted', 'complete', 'failed') AND expire_at <= extract(epoch FROM now())
    OR status = 'queued' AND scheduled <= extract(epoch FROM now()) - %(stale)s)
  FOR UPDATE SKIP LOCKED)
"""
_BEGUN = """
SELECT key, job, status FROM saq_jobs
WHERE queue = %s AND status NOT IN ('queued', 'aborted', 'complete', 'failed')
"""
_WAITING = "SELECT key, job FROM saq_jobs WHERE queue = %s AND status = 'queued'"
_DELETE = """
DELETE FROM saq_jobs WHERE key IN (SELECT key FROM saq_jobs WHERE key = ANY(%s) FOR UPDATE SKIP LOCKED)
"""
