"""statuses, and what they move: attempts, chunks, and the run_at of lanes that waited for them. One statement a batch."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from msgspec import Struct
from psycopg.rows import class_row

from app.db import Connection
from app.messages import Status


class Reported(Struct, frozen=True):
    """A status with the channel that it came for; `digest` identifies (provider id, status, time)."""

    tenant_id: UUID
    channel_id: UUID
    digest: bytes
    status: Status


class Effect(Struct, frozen=True):
    """What a status did. `known`: its key names a chunk of this channel. `moved`: it moved its attempt.

    `woke`: the lane that became due by it. `failed`: the conversation whose chunk it ended, once for each chunk.
    """

    known: bool
    moved: bool
    woke: UUID | None
    failed: UUID | None


# A status moves its attempt, forward only; a chunk's state is the best of its attempts. `failed` never overrides delivered
# or later, and is final for its attempt: an earlier one that was delivered after all is what the person has. A batch is
# reduced to one row per attempt first (0: it failed before it was delivered; else the furthest), since an UPDATE that finds
# two source rows for one target keeps an arbitrary one.
# Locks: lanes (sorted) → chunks → attempts. Whether a lane waits is read from the locked row: a message may have come for
# it since this statement began.
APPLY = """
WITH input AS MATERIALIZED (
  SELECT t.*, CASE status WHEN 'sent' THEN 3 WHEN 'delivered' THEN 4 WHEN 'read' THEN 5 WHEN 'played' THEN 6 ELSE 0 END AS rank
  FROM unnest(%(tenant_id)b::uuid[], %(channel_id)b::uuid[], %(digest)b::bytea[], %(provider_id)b::text[],
              %(chunk_id)b::uuid[], %(attempt)b::integer[], %(status)b::text[], %(at)b::timestamptz[], %(code)b::integer[],
              %(reason)b::text[], %(raw)b::text[])
       WITH ORDINALITY AS t(tenant_id, channel_id, digest, provider_id, chunk_id, attempt, status, at, code, reason, raw, ord)),
matched AS MATERIALIZED (
  SELECT i.ord, i.tenant_id, i.chunk_id, i.attempt, i.rank, i.provider_id, i.code, i.reason, c.conversation_id,
         a.state AS attempt_state, c.state AS chunk_state
  FROM input i
  JOIN attempts a ON (a.tenant_id, a.chunk_id, a.n) = (i.tenant_id, i.chunk_id, i.attempt)
  JOIN chunks c ON (c.tenant_id, c.id) = (i.tenant_id, i.chunk_id) AND c.channel_id = i.channel_id),
best AS MATERIALIZED (
  SELECT tenant_id, conversation_id, chunk_id, attempt, bool_or(rank = 0) AS failed,
         CASE WHEN bool_or(rank = 0) AND max(rank) < 4 THEN 0 ELSE max(rank) END AS rank,
         (array_agg(provider_id ORDER BY rank DESC))[1] AS provider_id,
         max(code) FILTER (WHERE rank = 0) AS code, max(reason) FILTER (WHERE rank = 0) AS reason,
         bool_or(rank >= 4 OR rank = 0 OR chunk_state IN ('sending', 'in_doubt')) AS opens
  FROM matched GROUP BY 1, 2, 3, 4),
kept AS (
  INSERT INTO statuses (tenant_id, channel_id, digest, provider_id, chunk_id, attempt, status, at, applied, raw)
  SELECT DISTINCT ON (i.tenant_id, i.channel_id, i.digest)
         i.tenant_id, i.channel_id, i.digest, i.provider_id, i.chunk_id, i.attempt, i.status, i.at,
         m.ord IS NOT NULL AND status_rank(m.attempt_state) < CASE i.rank WHEN 0 THEN 4 ELSE i.rank END,
         i.raw::json
  FROM input i LEFT JOIN matched m USING (ord)
  ORDER BY i.tenant_id, i.channel_id, i.digest, i.ord
  ON CONFLICT DO NOTHING),
waiting AS MATERIALIZED (
  SELECT l.tenant_id, l.conversation_id, l.done_seq < l.head_seq AS behind
  FROM lanes l JOIN (SELECT DISTINCT tenant_id, conversation_id FROM best WHERE opens) b USING (tenant_id, conversation_id)
  ORDER BY l.tenant_id, l.conversation_id FOR NO KEY UPDATE OF l),
lane AS (
  UPDATE lanes l SET run_at = least(l.run_at, qasid_now())
  FROM waiting w WHERE (l.tenant_id, l.conversation_id) = (w.tenant_id, w.conversation_id) AND w.behind
  RETURNING l.tenant_id, l.conversation_id, old.owner IS NULL AS woke),
chunk AS (
  UPDATE chunks c
  SET state = CASE WHEN b.rank > 0 THEN status_name(b.rank) ELSE 'failed' END,
      accepted_at = coalesce(c.accepted_at, qasid_now()),
      in_doubt_at = NULL,
      code = coalesce(b.code, c.code), reason = coalesce(b.reason, c.reason)
  FROM (SELECT DISTINCT ON (tenant_id, chunk_id) tenant_id, chunk_id, attempt, rank, code, reason
        FROM best CROSS JOIN (SELECT count(*) FROM lane) AS lanes_first
        ORDER BY tenant_id, chunk_id, rank DESC, attempt DESC) b
  WHERE (c.tenant_id, c.id) = (b.tenant_id, b.chunk_id)
    AND CASE WHEN b.rank > 0 THEN b.rank > status_rank(c.state)
                               OR (c.state = 'failed' AND b.attempt < c.attempt AND b.rank >= 4)
             ELSE b.attempt = c.attempt AND c.state IN ('sending', 'in_doubt', 'accepted', 'sent') END
  RETURNING c.tenant_id, c.id, c.state, c.conversation_id),
attempt AS (
  UPDATE attempts a
  SET state = CASE WHEN b.rank > status_rank(a.state) THEN status_name(b.rank)
                   WHEN b.failed AND status_rank(a.state) < 4 AND b.rank < 4 THEN 'failed' ELSE a.state END,
      provider_id = coalesce(a.provider_id, b.provider_id),
      heard_at = coalesce(a.heard_at, qasid_now()),
      code = coalesce(b.code, a.code), reason = coalesce(b.reason, a.reason)
  FROM best b CROSS JOIN (SELECT count(*) FROM chunk) AS chunks_first
  WHERE (a.tenant_id, a.chunk_id, a.n) = (b.tenant_id, b.chunk_id, b.attempt)
    AND (a.heard_at IS NULL OR b.rank > status_rank(a.state) OR (b.failed AND status_rank(a.state) < 4)))
SELECT m.ord IS NOT NULL AS known,
       m.ord IS NOT NULL AND status_rank(m.attempt_state) < CASE i.rank WHEN 0 THEN 4 ELSE i.rank END AS moved,
       CASE WHEN l.woke THEN l.conversation_id END AS woke,
       CASE WHEN c.state = 'failed' AND i.rank = 0
                 AND row_number() OVER (PARTITION BY m.tenant_id, m.chunk_id, i.rank = 0 ORDER BY i.ord) = 1
            THEN c.conversation_id END AS failed
FROM input i
LEFT JOIN matched m USING (ord)
LEFT JOIN lane l ON (l.tenant_id, l.conversation_id) = (m.tenant_id, m.conversation_id)
LEFT JOIN chunk c ON (c.tenant_id, c.id) = (m.tenant_id, m.chunk_id)
ORDER BY i.ord
"""


async def apply(conn: Connection, rows: Sequence[Reported]) -> list[Effect]:
    """Keep each status, and let each move what it may move. One effect per row, in order."""
    status = [r.status for r in rows]
    parameters: dict[str, Any] = {
        "tenant_id": [r.tenant_id for r in rows],
        "channel_id": [r.channel_id for r in rows],
        "digest": [r.digest for r in rows],
        "provider_id": [s.provider_id for s in status],
        "chunk_id": [s.key.chunk_id if s.key else None for s in status],
        "attempt": [s.key.attempt if s.key else None for s in status],
        "status": [s.status for s in status],
        "at": [s.at for s in status],
        "code": [s.code for s in status],
        "reason": [s.reason for s in status],
        "raw": [s.raw.decode() for s in status],
    }
    async with conn.cursor(row_factory=class_row(Effect)) as cursor:
        await cursor.execute(APPLY, parameters)
        return await cursor.fetchall()
