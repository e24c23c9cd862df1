"""Connections to PostgreSQL: one pool per purpose, each connection in its role from the first byte. Knows no table."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from app.breaker import Breaker
from app.errors import DatabaseUnavailable, Overloaded
from app.policies import BAD_DATA as BAD_DATA  # part of what a caller has to know of the database

log = structlog.get_logger(__name__)

# What a statement of our own raises while the database is away, or while nobody knows whether it did what it was told.
UNAVAILABLE = (psycopg.Error, DatabaseUnavailable, OSError)

Role = Literal["qasid_courier", "qasid_app"]
Connection = AsyncConnection[TupleRow]


class Pool(AsyncConnectionPool[Connection]):
    """A pool, and the breaker that watches what is done with its connections, if it was given one."""

    breaker: Breaker | None = None
    _renewal: asyncio.Task[None] | None = None

    def renew(self) -> None:
        """Throw out connections that are dead, beginning now: each would fail one more call. Never waits, never fails."""
        if self._renewal is None:
            # Never cancelled: a pool forgets to count a connection whose check is.
            self._renewal = asyncio.create_task(self.check(), name=f"renew {self.name}")
            self._renewal.add_done_callback(self._renewed)

    def _renewed(self, renewal: asyncio.Task[None]) -> None:
        self._renewal = None
        if not renewal.cancelled() and (error := renewal.exception()):  # the pool has been closed, say
            log.info("connections cannot be checked", error=error)


# How long a statement may take on the server (seconds).
STATEMENT_TIMEOUT = 10.0
# How many may wait for a connection of one pool: a worker's lanes, each of which may need one for itself, and some.
MOST_WAITING = 10_000
# A pool that cannot connect doubles its pauses for so long (seconds), then begins anew at whoever asks: an outage may be
# long, and its end should not be found half a minute late.
RECONNECT_TIMEOUT = 5.0


def options(role: Role, *, timeout: float, extra: str = "") -> dict[str, Any]:
    """Connection parameters: the role is set by the start-up packet, so no connection ever exists without it.

    `timeout` (seconds) bounds each statement on the server; a server that is frozen is not waited
    for (`app.batches`). Keep-alives and `tcp_user_timeout` end connections whose other side is gone.
    """
    milliseconds = int(timeout * 1000)
    return {
        "options": f"-c role={role} -c statement_timeout={milliseconds} -c lock_timeout={milliseconds} "
        # Our statements cost a millisecond to run and up to five to plan; their plans do not depend on their values.
        f"-c idle_in_transaction_session_timeout={milliseconds} -c jit=off -c plan_cache_mode=force_generic_plan "
        # And are made while tables are small, most likely: what is read through at once now is long tomorrow.
        f"-c enable_seqscan=off "
        f"{extra}".strip(),
        "connect_timeout": 3,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "prepare_threshold": 0,
    }


def pool(
    url: str,
    role: Role,
    *,
    name: str,
    max_size: int,
    min_size: int = 1,
    max_waiting: int = MOST_WAITING,
    timeout: float = STATEMENT_TIMEOUT,
    extra: str = "",
) -> Pool:
    """A closed pool of autocommit connections in `role`; the caller opens and closes it.

    Waiting for a connection is bounded in time (3 s) and in number: beyond that it is our own saturation.
    """
    return Pool(
        url,
        kwargs={**options(role, timeout=timeout, extra=extra), "autocommit": True, "application_name": f"qasid {name}"},
        connection_class=AsyncConnection[TupleRow],
        min_size=min_size,
        max_size=max_size,
        max_waiting=max_waiting,
        timeout=3.0,
        reconnect_timeout=RECONNECT_TIMEOUT,
        name=name,
        open=False,
    )


@asynccontextmanager
async def connection(pool: Pool, *, vital: bool = False, reads: bool = False) -> AsyncIterator[Connection]:
    """A connection of the pool. `reads`: nothing will be written, and the breaker is told so (`Breaker.watching`).

    `vital`: whatever the breaker says, and unseen by it: for the beats that leases live by.

    Raises:
        Overloaded: too many wait for one already.
        DatabaseUnavailable: none could be had in time, or the breaker is open.
    """
    breaker = None if vital else pool.breaker
    if breaker is not None:
        breaker.check()
    try:
        async with pool.connection() as conn:
            try:
                if breaker is None:
                    yield conn
                else:
                    with breaker.watching(reads=reads):
                        yield conn
            finally:
                if conn.broken:  # a server that ended one has ended all, most likely
                    pool.renew()
    except TooManyRequests as error:
        raise Overloaded(f"too many wait for a connection of the pool {pool.name!r}") from error
    except PoolTimeout as error:
        raise DatabaseUnavailable(f"no connection of the pool {pool.name!r} within {pool.timeout:g} s") from error


@asynccontextmanager
async def acting(pool: Pool, *, tenant: object | None = None) -> AsyncIterator[Connection]:
    """A transaction as `qasid_app`, for one tenant (its id), or for the installation when none is named."""
    setting, value = ("app.tenant", str(tenant)) if tenant is not None else ("app.installation", "on")
    async with connection(pool) as conn, conn.transaction():
        await conn.execute("SELECT set_config(%s, %s, true)", (setting, value))
        yield conn


async def wait_for(url: str, *, timeout: float) -> None:
    """Return once PostgreSQL answers at `url`.

    Raises:
        DatabaseUnavailable: it did not within `timeout` seconds; the message ends with the server's or driver's words.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        try:
            patience = min(3, math.ceil(timeout))
            async with await AsyncConnection.connect(url, connect_timeout=patience, autocommit=True) as conn:
                await conn.execute("SELECT 1")
                return
        except psycopg.OperationalError as error:
            if asyncio.get_running_loop().time() > deadline:
                raise DatabaseUnavailable(f"PostgreSQL does not answer: {error}") from error
        await asyncio.sleep(0.1)
