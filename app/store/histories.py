"""messages, as what was said before: what they say now, and histories that are read ahead of any turn. It decides nothing."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec
from msgspec import Struct

from app.db import Connection
from app.store.lanes import LaneId


class Said(Struct, frozen=True, kw_only=True):
    """A message of before: `mine` is an answer or what the business wrote by hand. `revoked`: it takes a place, without words."""

    id: UUID
    mine: bool
    body: str
    at: datetime
    revoked: bool


class History(Struct, frozen=True, kw_only=True):
    """The last messages of a lane at which nothing waits, as they stand at this pair of its numbers."""

    lane: LaneId
    version: int
    done_seq: int
    said: list[Said]


# By the primary key of messages, whose ids rise with the time of storing: tenant by tenant, the newest first.
RECENT = """
SELECT recent.tenant_id, recent.conversation_id
FROM unnest(%(tenant_id)b::uuid[]) AS t(tenant_id)
CROSS JOIN LATERAL (
  SELECT DISTINCT ON (m.conversation_id) t.tenant_id, m.conversation_id, m.id
  FROM (SELECT m.conversation_id, m.id FROM messages m
        WHERE m.tenant_id = t.tenant_id AND m.id > (SELECT uuidv7(%(since)s * interval '-1 second'))
        ORDER BY m.id DESC LIMIT %(each)s) m
  ORDER BY m.conversation_id, m.id DESC) recent
ORDER BY recent.id DESC LIMIT %(most)s
"""

# What a message `m` says now: revoked by its own side, whatever else was said of it; else the last edit by the provider's
# time, since they may come in any order, and before what they are about.
EDITED = """
     LEFT JOIN LATERAL (
       SELECT e.kind, e.body, e.raw FROM messages e
       WHERE (e.tenant_id, e.conversation_id, e.refers_to) = (m.tenant_id, m.conversation_id, m.digest)
         AND e.kind IN ('edit', 'revoke') AND e.direction = m.direction
       ORDER BY e.kind DESC, e.sent_at DESC, e.id DESC LIMIT 1) edited ON true
""".strip()

# The last messages of a lane `l`, as many as its `history`, but for those that are `waiting` to be asked.
SAID = f"""
coalesce((
     SELECT json_agg(json_build_object(
       'id', m.id, 'mine', m.direction <> 'in', 'at', m.sent_at, 'revoked', coalesce(edited.kind = 'revoke', false),
       'body', CASE WHEN edited.kind = 'revoke' THEN '' ELSE coalesce(edited.body, m.body) END) ORDER BY m.id)
     FROM (SELECT * FROM messages m
           WHERE (m.tenant_id, m.conversation_id) = (l.tenant_id, l.conversation_id)
             AND m.kind NOT IN ('reaction', 'system', 'edit', 'revoke') AND m.body <> ''
             AND m.id NOT IN (SELECT message_id FROM waiting)
           ORDER BY m.id DESC LIMIT l.history) m
     {EDITED}), '[]')
""".strip()  # noqa: S608  the words are ours alone, here and below

# What `turns.OPEN` would bring as `said`. Only of lanes at which nothing waits: so no message is still to be asked, and no
# turn is in its midst, when its answer is a message already and its question none yet.
READ = f"""
WITH lane AS (
  SELECT i.ord, i.history, l.*
  FROM unnest(%(tenant_id)b::uuid[], %(conversation_id)b::uuid[], %(history)b::integer[])
       WITH ORDINALITY AS i(tenant_id, conversation_id, history, ord)
  JOIN lanes l USING (tenant_id, conversation_id)
  WHERE l.done_seq = l.head_seq),
waiting AS (SELECT NULL::uuid AS message_id WHERE false)
SELECT l.tenant_id, l.conversation_id, l.version, l.done_seq, {SAID}::text
FROM lane l
ORDER BY l.ord
"""  # noqa: S608

_said = msgspec.json.Decoder(list[Said])


async def recent(conn: Connection, tenants: Sequence[UUID], since: float, each: int, most: int) -> list[LaneId]:
    """Up to `most` lanes of these tenants with messages of the last `since` seconds, newest first.

    Of each tenant only the last `each` messages are looked at.
    """
    result = await conn.execute(RECENT, {"tenant_id": list(tenants), "since": since, "each": each, "most": most})
    return [(tenant, conversation) for tenant, conversation in await result.fetchall()]


async def read(conn: Connection, wanted: Sequence[tuple[LaneId, int]]) -> list[History]:
    """The last so many messages of each of these lanes, as its next opening would bring them; of a lane at work none."""
    result = await conn.execute(
        READ,
        {
            "tenant_id": [lane[0] for lane, _ in wanted],
            "conversation_id": [lane[1] for lane, _ in wanted],
            "history": [history for _, history in wanted],
        },
    )
    return [
        History(lane=(tenant, conversation), version=version, done_seq=done_seq, said=_said.decode(said))
        for tenant, conversation, version, done_seq, said in await result.fetchall()
    ]
