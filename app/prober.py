"""Asks the database once a second whether it is there, on a connection outside of all pools, and tells the breaker.

With the answer comes what people have said of the breakers. After an outage it has the pools throw out what that left dead.
It knows nothing of what the database is used for.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import psycopg
import structlog

from app import db, tasks
from app.breaker import Breaker, Forced
from app.db import Connection
from app.store import breakers

log = structlog.get_logger(__name__)

# Seconds from one probe to the next, and how long one is waited for: a silent loss is known within two.
INTERVAL, PATIENCE = 1.0, 0.9
# When our own loop came later than by LATE, or the process stood still, the answer may lie there unread: GRACE to read it.
LATE, GRACE = 0.1, 0.25
# What a broken connection, or a refused one, raises.
GONE = (psycopg.OperationalError, psycopg.InterfaceError, OSError)

Question = asyncio.Task[breakers.Answer]


class Prober:
    """An async context manager: it asks for as long as it is entered. What people say of `breaker` it passes on itself.

    `heard` gets their words for all breakers, by name, once a second: for whoever has others.
    `pools`: whose dead connections are thrown out at the first good answer of an open breaker, before it lets anybody in:
    else each would fail one more call, and five in a row would open it again.
    """

    def __init__(
        self,
        url: str,
        breaker: Breaker,
        pools: Sequence[db.Pool] = (),
        heard: Callable[[Mapping[str, Forced]], None] = lambda _: None,
    ) -> None:
        self._url = url
        self._breaker = breaker
        self._heard = heard
        self._pools = pools
        self._conn: Connection | None = None  # None too while the question that is waited for connects
        self._question: Question | None = None  # the one that is waited for
        self._questions: set[Question] = set()  # it, and those that were given up and have not ended yet

    async def __aenter__(self) -> Self:
        self._asking = asyncio.create_task(self._run(), name="prober")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await tasks.end(self._asking)
        conn = self._conn
        self._give_up()
        if self._questions:
            await asyncio.wait(self._questions, timeout=GRACE)
        await tasks.end(*self._questions)
        if conn is not None:
            await conn.close()

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await self._probe(began)
            except Exception:  # whatever it was, nobody else would close the breaker
                log.exception("a probe failed")
            await asyncio.sleep(max(0.0, began + INTERVAL - time.monotonic()))

    async def _probe(self, began: float) -> None:
        question = self._question = asyncio.create_task(self._ask(began), name="probe")
        self._questions.add(question)
        question.add_done_callback(self._ended)
        # Not asyncio.timeout: cancelling a query on a frozen server takes ten seconds.
        await asyncio.wait({question}, timeout=PATIENCE)
        if not question.done() and time.monotonic() - began > PATIENCE + LATE:
            await asyncio.wait({question}, timeout=GRACE)
        took = time.monotonic() - began
        if not question.done():
            self._give_up()
            self._breaker.probed(False, max(took, PATIENCE))  # uvloop's timers may ring a millisecond early
        elif error := question.exception():
            if not isinstance(error, psycopg.Error | OSError):
                raise error
            # Whatever else the server says, it is there: a schema that is not migrated is no outage.
            self._breaker.probed(not isinstance(error, GONE), took)
        else:
            answer = question.result()
            if answer.takes_writes and self._breaker.state == "open":
                for pool in self._pools:
                    pool.renew()
            self._breaker.probed(answer.takes_writes, took)
            self._breaker.forced = answer.forced.get(self._breaker.name)
            self._heard(answer.forced)

    def _give_up(self) -> None:
        """Wait no longer for the question, and have it end soon; its connection, if it has one, is good for nothing.

        A query is not cancelled: psycopg would ask the server for it over a new connection, and wait for that. It ends
        by itself once its connection is shut down on our side.
        """
        question, self._question = self._question, None
        conn, self._conn = self._conn, None
        if conn is not None:
            with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)
        elif question is not None:
            question.cancel()

    def _ended(self, question: Question) -> None:
        self._questions.discard(question)
        if not question.cancelled():
            question.exception()  # of one that was given up nobody else asks

    async def _ask(self, began: float) -> breakers.Answer:
        if self._conn is not None:
            try:
                return await self._asked(self._conn)
            except GONE:
                if not self._waited_for():
                    raise
                # Twice in one probe: the connection is gone, and whether a new one comes decides what that means.
                self._breaker.probed(False, time.monotonic() - began)
        options = db.options("qasid_courier", timeout=PATIENCE)
        conn: Connection = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, **{**options, "application_name": "qasid prober"}
        )
        if not self._waited_for():  # a cancellation that came too late
            await conn.close()
            raise asyncio.CancelledError
        self._conn = conn
        return await self._asked(conn)

    async def _asked(self, conn: Connection) -> breakers.Answer:
        try:
            answer = await breakers.probe(conn)
        except BaseException:
            if self._conn is conn:
                self._conn = None
            await conn.close()
            raise
        if self._conn is not conn:  # it came just as it was given up
            await conn.close()
        return answer

    def _waited_for(self) -> bool:
        return self._question is asyncio.current_task()
