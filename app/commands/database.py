"""The database, for one command: a connection as qasid_app, and its failures in words for a person."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from app.errors import DatabaseUnavailable
from app.settings import load

if TYPE_CHECKING:
    from app.db import Connection, Pool

T = TypeVar("T")


async def installation(work: "Callable[[Connection], Awaitable[T]]", *, patience: float = 3.0) -> T:
    """Do `work` in one transaction, for the installation. Raises as `with_pool`."""
    from app import db

    async def acting(pool: "Pool", _url: str) -> T:
        async with db.acting(pool) as conn:
            return await work(conn)

    return await with_pool(acting, patience=patience)


async def with_pool(work: "Callable[[Pool, str], Awaitable[T]]", *, patience: float = 3.0) -> T:
    """Do `work` with a pool of one connection, and the URL that it leads to.

    `patience`: how long PostgreSQL may take to answer at all (seconds).

    Raises:
        ConfigurationError: the schema is not this build's.
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    import psycopg

    from app import db, place
    from app.migrate import require

    url = place.database_url(load())
    await db.wait_for(url, timeout=patience)
    require(url)
    try:
        async with db.pool(url, "qasid_app", name="cli", max_size=1) as pool:
            return await work(pool, url)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"PostgreSQL does not answer: {error}".rstrip()) from error
