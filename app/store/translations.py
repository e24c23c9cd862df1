"""translations: the memory of what was translated, per tenant. Statements take the texts of many answers at once."""

from collections.abc import Sequence
from hashlib import sha256
from uuid import UUID

from msgspec import Struct

from app.db import Connection


class Key(Struct, frozen=True):
    """A text of a tenant's, from one language to another, by one engine."""

    tenant_id: UUID
    digest: bytes
    source: str
    target: str
    engine: str


def key(tenant_id: UUID, text: str, source: str, target: str, engine: str) -> Key:
    """The key of a text, byte for byte: nothing of it is normalised."""
    return Key(tenant_id, sha256(text.encode()).digest(), source, target, engine)


class Kept(Struct, frozen=True):
    """A translation to remember."""

    key: Key
    body: str


RECALL = """
SELECT t.body
FROM unnest(%(tenant_id)b::uuid[], %(digest)b::bytea[], %(source)b::text[], %(target)b::text[], %(engine)b::text[])
     WITH ORDINALITY AS i(tenant_id, digest, source, target, engine, ord)
LEFT JOIN translations t USING (tenant_id, digest, source, target, engine)
ORDER BY i.ord
"""

# Sorted, so that two workers that remember the same wait for each other in one direction. Whoever comes first is kept.
KEEP = """
INSERT INTO translations (tenant_id, digest, source, target, engine, body, at)
SELECT i.*, qasid_now()
FROM unnest(%(tenant_id)b::uuid[], %(digest)b::bytea[], %(source)b::text[], %(target)b::text[], %(engine)b::text[],
            %(body)b::text[]) AS i(tenant_id, digest, source, target, engine, body)
ORDER BY tenant_id, digest, source, target, engine
ON CONFLICT DO NOTHING
"""


async def recall(conn: Connection, keys: Sequence[Key]) -> list[str | None]:
    """The translation of each, in order; None where there is none yet."""
    result = await conn.execute(RECALL, _columns(keys))
    return [body for (body,) in await result.fetchall()]


async def keep(conn: Connection, rows: Sequence[Kept]) -> list[None]:
    """Remember them."""
    await conn.execute(KEEP, {**_columns([row.key for row in rows]), "body": [row.body for row in rows]})
    return [None] * len(rows)


def _columns(keys: Sequence[Key]) -> dict[str, list[object]]:
    return {name: [getattr(key, name) for key in keys] for name in Key.__struct_fields__}
