"""breakers: what a person has said of the breakers. Each process reads it with its probe, once a second."""

from datetime import datetime

from msgspec import Struct

from app.breaker import Forced
from app.db import Connection


def channel_of(tenant: str, channel: str) -> str:
    """The name of a channel's breaker, of their slugs: one word, in the table, the log and the metrics."""
    return f"channel:{tenant}/{channel}"


def assistant_of(tenant: str, *, fallback: bool = False) -> str:
    """The name of the breaker of a tenant's assistant, or of the one that is asked when that one cannot answer."""
    return f"assistant:{tenant}/fallback" if fallback else f"assistant:{tenant}"


class Answer(Struct, frozen=True):
    """What a probe brings: whether the server takes writes, and the person's word for each dependency that has one."""

    takes_writes: bool
    forced: dict[str, Forced]


class Held(Struct, frozen=True):
    """What a person has said, and when."""

    dependency: str
    forced: Forced
    at: datetime


PROBE = """
SELECT current_setting('transaction_read_only') = 'off',
       coalesce((SELECT json_object_agg(dependency, forced) FROM breakers), '{}')
"""

FORCE = """
INSERT INTO breakers (dependency, forced, at) VALUES (%(dependency)s, %(forced)s, qasid_now())
ON CONFLICT (dependency) DO UPDATE SET forced = excluded.forced, at = excluded.at
"""


async def probe(conn: Connection) -> Answer:
    """Ask the server whether it is there and writable, and what people have said."""
    row = await (await conn.execute(PROBE)).fetchone()
    assert row is not None
    return Answer(*row)


async def force(conn: Connection, dependency: str, forced: Forced) -> None:
    """Hold the breaker of `dependency` open or closed, in every process, within two seconds."""
    await conn.execute(FORCE, {"dependency": dependency, "forced": forced})


async def let_go(conn: Connection, dependency: str) -> bool:
    """Let the breaker decide again; whether anybody had said otherwise."""
    return (await conn.execute("DELETE FROM breakers WHERE dependency = %s", (dependency,))).rowcount == 1


async def every(conn: Connection) -> list[Held]:
    """All that people hold, by name."""
    rows = await conn.execute("SELECT dependency, forced, at FROM breakers ORDER BY dependency")
    return [Held(*row) for row in await rows.fetchall()]
