"""breakers: what a person has said of the breakers. Each process reads it with its probe, once a second."""

from datetime import datetime
from typing import Literal

from msgspec import Struct

from app.breaker import Forced
from app.db import Connection

# What a tenant's breakers lead to.
Kind = Literal["channel", "assistant", "translator", "transcriber"]


def name_of(kind: Kind, tenant: str, part: str = "") -> str:
    """The name of a breaker: one word, in the table, the log and the metrics.

    `tenant` is a slug; `part` a channel's, or `fallback`: the assistant that is asked when the first cannot answer.
    """
    return f"{kind}:{tenant}/{part}" if part else f"{kind}:{tenant}"


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
