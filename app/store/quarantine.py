"""quarantine: one row per endpoint and digest of the raw item, with a count of how often it came, and its replay."""

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from msgspec import Struct
from psycopg.rows import class_row

from app.db import Connection

# What a replay of a row comes to.
Outcome = Literal["stored", "duplicate", "quarantined"]


class Kept(Struct, frozen=True):
    """An item for quarantine; `digest` is the SHA-256 of `raw`, `address` and `part` are its `Stray`'s."""

    endpoint_id: UUID
    digest: bytes
    reason: str
    raw: bytes
    address: str | None = None
    part: str | None = None


class Held(Struct, frozen=True, kw_only=True):
    """A row, without its raw bytes. `age`: seconds since it last came. `endpoint`: a slug."""

    id: UUID
    endpoint_id: UUID
    endpoint: str
    part: str | None
    address: str | None
    reason: str
    count: int
    age: float
    verdict: Outcome | None
    """Of its last replay; None: nobody has tried."""


# A row cannot be touched twice by one statement: what came several times in this batch is counted first. What comes
# again is a dead letter again, though it was replayed. What comes back is news: no such row was there, or one for another
# reason, or one that a replay had brought in.
KEEP = """
INSERT INTO quarantine AS q (endpoint_id, digest, reason, raw, address, part, count, first_at, last_at)
SELECT endpoint_id, digest, min(reason), min(raw), min(address), min(part), count(*), qasid_now(), qasid_now()
FROM unnest(%(endpoint_id)b::uuid[], %(digest)b::bytea[], %(reason)b::text[], %(raw)b::bytea[], %(address)b::text[],
            %(part)b::text[]) AS t(endpoint_id, digest, reason, raw, address, part)
GROUP BY endpoint_id, digest ORDER BY endpoint_id, digest
ON CONFLICT (endpoint_id, digest) DO UPDATE
SET count = q.count + excluded.count, last_at = excluded.last_at, reason = excluded.reason, replayed_at = NULL, verdict = NULL,
    address = coalesce(q.address, excluded.address), part = coalesce(q.part, excluded.part)
RETURNING endpoint_id, digest, old.reason IS DISTINCT FROM new.reason OR coalesce(old.verdict, 'quarantined') <> 'quarantined'
"""

HELD = """
SELECT q.id, q.endpoint_id, e.slug AS endpoint, q.part, q.address, q.reason, q.count, q.verdict,
       greatest(0, extract(epoch FROM qasid_now() - q.last_at))::float8 AS age
FROM quarantine q JOIN endpoints e ON e.id = q.endpoint_id
"""

LISTED = (
    HELD
    + """
WHERE coalesce(q.verdict, 'quarantined') = 'quarantined'
  AND (%(within)s::float8 IS NULL OR q.last_at >= qasid_now() - %(within)s * interval '1 second')
  AND (%(anywhere)s OR EXISTS (SELECT FROM unnest(%(endpoint_id)b::uuid[], %(address)b::text[]) AS t(endpoint_id, address)
                               WHERE (t.endpoint_id, t.address) = (q.endpoint_id, q.address)))
ORDER BY q.last_at DESC, q.id DESC LIMIT %(most)s
"""
)

FOUND = HELD + "WHERE q.id = ANY(%(id)b::uuid[])"

RAW = "SELECT raw FROM quarantine WHERE id = %(id)s"

# What was kept once more meanwhile (the database may refuse the very item that is replayed) is still a dead letter.
MARK = """
UPDATE quarantine SET replayed_at = qasid_now(), verdict = CASE count WHEN %(count)s THEN %(verdict)s ELSE 'quarantined' END
WHERE id = %(id)s RETURNING verdict
"""


async def keep(conn: Connection, items: Sequence[Kept]) -> list[tuple[UUID, bytes]]:
    """Keep them as they came; the endpoint and digest of each that is news to whoever reads the list."""
    result = await conn.execute(
        KEEP,
        {
            "endpoint_id": [i.endpoint_id for i in items],
            "digest": [i.digest for i in items],
            "reason": [i.reason for i in items],
            "raw": [i.raw for i in items],
            "address": [i.address for i in items],
            "part": [i.part for i in items],
        },
    )
    return [(endpoint, bytes(digest)) for endpoint, digest, news in await result.fetchall() if news]


async def listed(
    conn: Connection, *, places: Sequence[tuple[UUID, str]] | None, within: float | None, most: int | None
) -> list[Held]:
    """The rows that no replay has brought in, the latest first; all of them, or those for `places`.

    `places`: an endpoint and an address each. `within`: seconds since they last came. `most`: None for no bound.
    """
    async with conn.cursor(row_factory=class_row(Held)) as cursor:
        await cursor.execute(
            LISTED,
            {
                "anywhere": places is None,
                "endpoint_id": [endpoint for endpoint, _ in places or ()],
                "address": [address for _, address in places or ()],
                "within": within,
                "most": most,
            },
        )
        return await cursor.fetchall()


async def found(conn: Connection, ids: Sequence[UUID]) -> list[Held]:
    """The rows of these ids, replayed or not."""
    async with conn.cursor(row_factory=class_row(Held)) as cursor:
        await cursor.execute(FOUND, {"id": list(ids)})
        return await cursor.fetchall()


async def raw(conn: Connection, id: UUID) -> bytes:
    """The item as it came."""
    row = await (await conn.execute(RAW, {"id": id})).fetchone()
    return bytes(row[0]) if row else b""


async def mark(conn: Connection, held: Held, verdict: Outcome) -> Outcome:
    """Note what a replay came to, and say what stands there now: it came again if `count` is not what it was."""
    row = await (await conn.execute(MARK, {"id": held.id, "count": held.count, "verdict": verdict})).fetchone()
    return row[0] if row else verdict
