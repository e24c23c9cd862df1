"""quarantine: one row per endpoint and digest of the raw item, with a count of how often it came."""

from collections.abc import Sequence
from uuid import UUID

from msgspec import Struct

from app.db import Connection


class Kept(Struct, frozen=True):
    """An item for quarantine; `digest` is the SHA-256 of `raw`."""

    endpoint_id: UUID
    digest: bytes
    reason: str
    raw: bytes


# A row cannot be touched twice by one statement: what came several times in this batch is counted first.
KEEP = """
INSERT INTO quarantine (endpoint_id, digest, reason, raw, count)
SELECT endpoint_id, digest, min(reason), min(raw), count(*)
FROM unnest(%(endpoint_id)b::uuid[], %(digest)b::bytea[], %(reason)b::text[], %(raw)b::bytea[])
     AS t(endpoint_id, digest, reason, raw)
GROUP BY endpoint_id, digest ORDER BY endpoint_id, digest
ON CONFLICT (endpoint_id, digest) DO UPDATE SET count = quarantine.count + excluded.count, last_at = now()
"""


async def keep(conn: Connection, items: Sequence[Kept]) -> None:
    """Keep them as they came."""
    await conn.execute(
        KEEP,
        {
            "endpoint_id": [i.endpoint_id for i in items],
            "digest": [i.digest for i in items],
            "reason": [i.reason for i in items],
            "raw": [i.raw for i in items],
        },
    )
