"""contacts, identities, conversations and their lanes: made at a person's first message, found ever after."""

from collections.abc import Sequence
from uuid import UUID

from msgspec import Struct

from app.db import Connection
from app.messages import Identity


class Stranger(Struct, frozen=True):
    """Somebody who writes to a channel, by one or two addresses; the first is what the conversation is looked up by."""

    tenant_id: UUID
    channel_id: UUID
    identities: tuple[Identity, ...]
    name: str


# Two processes may meet the same stranger at once: whoever loses the race for the identity gets no row back, makes
# nothing, and finds the winner's when it asks again. So a conversation is made once, without a lock that outlives this.
MEET = """
WITH input AS MATERIALIZED (
  SELECT * FROM unnest(%(tenant_id)b::uuid[], %(channel_id)b::uuid[], %(kind)b::text[], %(value)b::text[],
                       %(other_kind)b::text[], %(other_value)b::text[], %(name)b::text[])
         WITH ORDINALITY AS t(tenant_id, channel_id, kind, value, other_kind, other_value, name, ord)),
known AS MATERIALIZED (
  SELECT i.*, coalesce(a.contact_id, b.contact_id) AS contact_id
  FROM input i
  LEFT JOIN identities a ON (a.tenant_id, a.kind, a.value) = (i.tenant_id, i.kind, i.value)
  LEFT JOIN identities b ON (b.tenant_id, b.kind, b.value) = (i.tenant_id, i.other_kind, i.other_value)),
born AS MATERIALIZED (
  SELECT DISTINCT ON (tenant_id, kind, value) tenant_id, kind, value, name, uuidv7() AS contact_id
  FROM known WHERE contact_id IS NULL ORDER BY tenant_id, kind, value, ord),
named AS (
  INSERT INTO identities (tenant_id, kind, value, contact_id)
  SELECT tenant_id, kind, value, contact_id FROM born ORDER BY tenant_id, kind, value
  ON CONFLICT DO NOTHING RETURNING tenant_id, kind, value, contact_id),
entered AS (
  INSERT INTO contacts (tenant_id, id, name)
  SELECT b.tenant_id, b.contact_id, b.name FROM born b JOIN named USING (tenant_id, kind, value)),
person AS MATERIALIZED (
  SELECT k.ord, k.tenant_id, k.channel_id, k.kind, k.value, k.other_kind, k.other_value,
         coalesce(k.contact_id, n.contact_id) AS contact_id
  FROM known k LEFT JOIN named n USING (tenant_id, kind, value)),
also AS (
  INSERT INTO identities (tenant_id, kind, value, contact_id)
  SELECT DISTINCT ON (p.tenant_id, x.kind, x.value) p.tenant_id, x.kind, x.value, p.contact_id
  FROM person p CROSS JOIN LATERAL (VALUES (p.kind, p.value), (p.other_kind, p.other_value)) AS x(kind, value)
  WHERE p.contact_id IS NOT NULL AND x.value IS NOT NULL
    AND NOT EXISTS (SELECT FROM named n WHERE (n.tenant_id, n.kind, n.value) = (p.tenant_id, x.kind, x.value))
  ORDER BY p.tenant_id, x.kind, x.value
  ON CONFLICT DO NOTHING),
met AS (
  INSERT INTO conversations (tenant_id, channel_id, contact_id)
  SELECT DISTINCT tenant_id, channel_id, contact_id FROM person WHERE contact_id IS NOT NULL
  ORDER BY tenant_id, channel_id, contact_id
  ON CONFLICT DO NOTHING RETURNING tenant_id, channel_id, contact_id, id),
lane AS (
  INSERT INTO lanes (tenant_id, conversation_id, channel_id) SELECT tenant_id, id, channel_id FROM met)
SELECT coalesce(m.id, c.merged_into, c.id)
FROM person p
LEFT JOIN met m USING (tenant_id, channel_id, contact_id)
LEFT JOIN conversations c USING (tenant_id, channel_id, contact_id)
ORDER BY p.ord
"""


async def meet(conn: Connection, strangers: Sequence[Stranger]) -> list[UUID | None]:
    """The conversation of each, made if need be; None where another process was making it at this instant: ask again."""
    first = [s.identities[0] for s in strangers]
    other = [s.identities[1] if len(s.identities) > 1 else None for s in strangers]
    rows = await conn.execute(
        MEET,
        {
            "tenant_id": [s.tenant_id for s in strangers],
            "channel_id": [s.channel_id for s in strangers],
            "kind": [i.kind for i in first],
            "value": [i.value for i in first],
            "other_kind": [i.kind if i else None for i in other],
            "other_value": [i.value if i else None for i in other],
            "name": [s.name for s in strangers],
        },
    )
    return [row[0] for row in await rows.fetchall()]
