"""Asks the database once a second whether it is there, on a connection outside of all pools, and tells the breaker.

With the answer comes what people have said of the breakers. It knows nothing of what the database is used for.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import psycopg
import structlog

from app import db, tasks
from app.breaker import Breaker
from app.db import Connection
from app.store import breakers

log = structlog.get_logger(__name__)

# Seconds from one probe to the next, and how long one is waited for: a silent loss is known within two.
INTERVAL, PATIENCE = 1.0, 0.9
# What a broken connection, or a refused one, raises.
GONE = (psycopg.OperationalError, psycopg.InterfaceError, OSError)


class Prober:
    """An async context manager: it asks for as long as it is entered. `heard` gets the person's word, by dependency."""

    def __init__(self, url: str, breaker: Breaker, heard: Callable[[Mapping[str, breakers.Forced]], None]) -> None:
        self._url = url
        self._breaker = breaker
        self._heard = heard
        self._conn: Connection | None = None
        self._left_behind: set[asyncio.Task[breakers.Answer]] = set()

    async def __aenter__(self) -> Self:
        self._asking = asyncio.create_task(self._run(), name="prober")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await tasks.end(self._asking, *self._left_behind)
        if self._conn is not None:
            await self._conn.close()

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            await self._probe(began)
            await asyncio.sleep(max(0.0, began + INTERVAL - time.monotonic()))

    async def _probe(self, began: float) -> None:
        question = asyncio.create_task(self._ask(began), name="probe")
        # Not asyncio.timeout: cancelling a query on a frozen server takes ten seconds.
        done, _ = await asyncio.wait({question}, timeout=PATIENCE)
        took = time.monotonic() - began
        if not done:
            self._conn = None  # the question has it, and closes it
            question.cancel()
            self._left_behind.add(question)
            question.add_done_callback(self._forgotten)
            self._breaker.probed(False, took)
        elif error := question.exception():
            if not isinstance(error, psycopg.Error | OSError):
                raise error
            # Whatever else the server says, it is there: a schema that is not migrated is no outage.
            self._breaker.probed(not isinstance(error, GONE), took)
        else:
            answer = question.result()
            self._breaker.probed(answer.takes_writes, took)
            self._heard(answer.forced)

    def _forgotten(self, question: "asyncio.Task[breakers.Answer]") -> None:
        self._left_behind.discard(question)
        if not question.cancelled():
            question.exception()

    async def _ask(self, began: float) -> breakers.Answer:
        conn, self._conn = self._conn, None
        if conn is not None:
            try:
                return await self._asked(conn)
            except GONE:
                # Twice in one probe: the connection is gone, and whether a new one comes decides what that means.
                self._breaker.probed(False, time.monotonic() - began)
        options = db.options("qasid_courier", timeout=PATIENCE)
        conn = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, **{**options, "application_name": "qasid prober"}
        )
        return await self._asked(conn)

    async def _asked(self, conn: Connection) -> breakers.Answer:
        try:
            answer = await breakers.probe(conn)
        except BaseException:
            await conn.close()
            raise
        self._conn = conn
        return answer
