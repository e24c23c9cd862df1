"""chunks and attempts: the intent before a send, the fact after it, and the end of what will never be sent.

Fence the intent, never the fact: what happened is always recorded.
"""

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from msgspec import Struct

from app.db import Connection
from app.store.lanes import Claim, Fence


class Intent(Struct, frozen=True):
    """Asks to send a chunk: attempt `n`, from `ready`, or again from `in_doubt`. `manual`: a person's, which no pause stops."""

    claim: Claim
    chunk_id: UUID
    n: int
    manual: bool = False


class Permission(Struct, frozen=True):
    """Whether an intent was let through: 'held', `wait` seconds still; 'moot', a status has told what became of the chunk."""

    fence: Fence | Literal["moot", "held"]
    wait: float = 0.0


class Fact(Struct, frozen=True, kw_only=True):
    """What became of attempt `n`. `chunk`: what it makes of its chunk; for `ready`, not before `due_in` seconds.

    `holds`: whom the provider's wait binds besides, for `due_in` seconds: all that this channel sends, or all of the tenant.
    """

    claim: Claim
    chunk_id: UUID
    n: int
    attempt: Literal["never_left", "refused", "held", "in_doubt", "accepted"]
    chunk: Literal["ready", "in_doubt", "failed", "accepted"]
    provider_id: str | None = None
    code: int | None = None
    reason: str | None = None
    due_in: float = 0.0
    holds: Literal["channel", "tenant"] | None = None


# Only one attempt of a chunk is ever open, and only under the lane's own token.
INTENT = """
WITH input AS MATERIALIZED (
  SELECT * FROM unnest(%(tenant_id)b::uuid[], %(conversation_id)b::uuid[], %(token)b::bigint[], %(chunk_id)b::uuid[],
                       %(n)b::integer[], %(manual)b::boolean[])
         WITH ORDINALITY AS t(tenant_id, conversation_id, token, chunk_id, n, manual, ord)),
held AS MATERIALIZED (
  SELECT i.ord, l.channel_id, w.until,
         CASE WHEN l.owner IS DISTINCT FROM %(worker)s OR l.token <> i.token THEN 'lost'
              WHEN l.paused_until > qasid_now() AND l.done_seq >= coalesce(l.paused_after, 0) AND NOT i.manual THEN 'paused'
              WHEN w.until > qasid_now() THEN 'held' ELSE 'ok' END AS fence
  FROM lanes l JOIN input i USING (tenant_id, conversation_id)
  LEFT JOIN holds w ON (w.tenant_id, w.channel_id) = (l.tenant_id, l.channel_id)
  ORDER BY i.tenant_id, i.conversation_id FOR NO KEY UPDATE OF l),
good AS MATERIALIZED (
  SELECT i.*, c.endpoint_id FROM input i JOIN held h USING (ord)
  JOIN channels c ON (c.tenant_id, c.id) = (i.tenant_id, h.channel_id) WHERE h.fence = 'ok'),
lane AS (
  UPDATE lanes l SET attempts = 0 FROM good g
  WHERE (l.tenant_id, l.conversation_id) = (g.tenant_id, g.conversation_id)),
chunk AS (
  UPDATE chunks c SET state = 'sending', attempt = g.n, due_at = NULL, in_doubt_at = NULL
  FROM good g
  WHERE (c.tenant_id, c.id) = (g.tenant_id, g.chunk_id) AND c.state IN ('ready', 'in_doubt') AND c.attempt = g.n - 1
  RETURNING c.tenant_id, c.id, g.n, g.token, g.endpoint_id, g.ord),
intent AS (
  INSERT INTO attempts (tenant_id, chunk_id, n, token, endpoint_id, begun_at)
  SELECT tenant_id, id, n, token, endpoint_id, qasid_now() FROM chunk)
SELECT CASE WHEN h.fence = 'ok' AND c.ord IS NULL THEN 'moot' ELSE coalesce(h.fence, 'lost') END,
       CASE WHEN h.fence = 'held' THEN extract(epoch FROM h.until - qasid_now())::float8 ELSE 0 END
FROM input i LEFT JOIN held h USING (ord) LEFT JOIN chunk c USING (ord) ORDER BY i.ord
"""

# A chunk's state is the best of its attempts, forward only; a refusal, a doubt or a never-left speaks only for the last
# attempt, and only while nothing better is known of it; if late, it ends the doubt. The token tells attempts of one number
# apart: an intent whose commit was never answered may have failed, and its number been used again under another claim.
FACT = """
WITH input AS MATERIALIZED (
  SELECT * FROM unnest(%(tenant_id)b::uuid[], %(chunk_id)b::uuid[], %(n)b::integer[], %(attempt)b::text[], %(chunk)b::text[],
                       %(provider_id)b::text[], %(code)b::integer[], %(reason)b::text[], %(due_in)b::float8[],
                       %(token)b::bigint[], %(channel_id)b::uuid[], %(holds)b::text[])
         WITH ORDINALITY AS t(tenant_id, chunk_id, n, attempt, chunk, provider_id, code, reason, due_in, token, channel_id,
                              holds, ord)),
chunk AS (
  UPDATE chunks c
  SET state = i.chunk,
      accepted_at = CASE WHEN i.chunk = 'accepted' THEN qasid_now() ELSE c.accepted_at END,
      in_doubt_at = CASE WHEN i.chunk = 'in_doubt' THEN qasid_now() END,
      due_at = CASE WHEN i.chunk = 'ready' THEN qasid_now() + i.due_in * interval '1 second' END,
      code = i.code, reason = i.reason
  FROM (SELECT i.* FROM input i JOIN attempts a USING (tenant_id, chunk_id, n, token) ORDER BY tenant_id, chunk_id, n) i
  WHERE (c.tenant_id, c.id) = (i.tenant_id, i.chunk_id)
    AND CASE WHEN i.chunk = 'accepted' THEN c.state IN ('ready', 'sending', 'in_doubt', 'parked', 'cancelled')
             WHEN i.chunk = 'in_doubt' THEN c.state = 'sending' AND c.attempt = i.n
             ELSE c.state IN ('sending', 'in_doubt') AND c.attempt = i.n END
  RETURNING c.tenant_id, c.id, c.state, i.ord),
attempt AS (
  UPDATE attempts a
  SET state = CASE WHEN a.state IN ('sending', 'in_doubt') THEN i.attempt ELSE a.state END,
      provider_id = coalesce(a.provider_id, i.provider_id), code = coalesce(a.code, i.code),
      reason = coalesce(i.reason, a.reason), ended_at = qasid_now()
  FROM input i CROSS JOIN (SELECT count(*) FROM chunk) AS chunks_first
  WHERE (a.tenant_id, a.chunk_id, a.n, a.token) = (i.tenant_id, i.chunk_id, i.n, i.token)),
hold AS (
  INSERT INTO holds AS w (tenant_id, channel_id, until)
  SELECT h.tenant_id, h.id, max(qasid_now() + i.due_in * interval '1 second')
  FROM input i JOIN channels h ON h.tenant_id = i.tenant_id AND (h.id = i.channel_id OR i.holds = 'tenant')
  WHERE i.holds IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2
  ON CONFLICT (tenant_id, channel_id) DO UPDATE SET until = greatest(w.until, excluded.until))
SELECT coalesce(n.state, c.state)
FROM input i LEFT JOIN chunk n USING (ord) LEFT JOIN chunks c ON (c.tenant_id, c.id) = (i.tenant_id, i.chunk_id)
ORDER BY i.ord
"""

# The rest of an entry that will not be sent: what was never sent is cancelled, what may have arrived by any of its attempts
# parked. Where silence about `in_doubt` is the reason, its row is locked and read anew first: a status that has come
# meanwhile says that it arrived, and then nothing is given up.
ABANDON = """
WITH held AS MATERIALIZED (
  SELECT FROM lanes WHERE (tenant_id, conversation_id) = (%(tenant_id)s, %(conversation_id)s)
    AND owner = %(worker)s AND token = %(token)s FOR NO KEY UPDATE),
doubt AS MATERIALIZED (
  SELECT c.id FROM chunks c CROSS JOIN held
  WHERE (c.tenant_id, c.id) = (%(tenant_id)s, %(in_doubt)s::uuid) AND c.state = 'in_doubt' FOR NO KEY UPDATE OF c)
UPDATE chunks c
SET state = CASE WHEN c.state = 'in_doubt' OR EXISTS (SELECT FROM attempts a
                                                      WHERE (a.tenant_id, a.chunk_id) = (c.tenant_id, c.id)
                                                        AND a.state IN ('sending', 'in_doubt'))
                 THEN 'parked' ELSE 'cancelled' END, reason = %(reason)s,
    in_doubt_at = NULL, due_at = NULL
FROM held
WHERE (c.tenant_id, c.conversation_id) = (%(tenant_id)s, %(conversation_id)s) AND c.seq = %(seq)s
  AND c.state IN ('ready', 'in_doubt') AND (%(in_doubt)s::uuid IS NULL OR EXISTS (SELECT FROM doubt))
RETURNING c.state
"""


async def intend(conn: Connection, worker: UUID, rows: Sequence[Intent]) -> list[Permission]:
    """Commit the intent of each send; whether it was let through."""
    result = await conn.execute(
        INTENT,
        {
            "worker": worker,
            "tenant_id": [r.claim.tenant_id for r in rows],
            "conversation_id": [r.claim.conversation_id for r in rows],
            "token": [r.claim.token for r in rows],
            "chunk_id": [r.chunk_id for r in rows],
            "n": [r.n for r in rows],
            "manual": [r.manual for r in rows],
        },
    )
    return [Permission(fence, wait) for fence, wait in await result.fetchall()]


async def record(conn: Connection, rows: Sequence[Fact]) -> list[str]:
    """Record what became of sends; the state of each chunk afterwards."""
    result = await conn.execute(
        FACT,
        {
            "tenant_id": [r.claim.tenant_id for r in rows],
            "chunk_id": [r.chunk_id for r in rows],
            "n": [r.n for r in rows],
            "attempt": [r.attempt for r in rows],
            "chunk": [r.chunk for r in rows],
            "provider_id": [r.provider_id for r in rows],
            "code": [r.code for r in rows],
            "reason": [r.reason for r in rows],
            "due_in": [r.due_in for r in rows],
            "token": [r.claim.token for r in rows],
            "channel_id": [r.claim.channel_id for r in rows],
            "holds": [r.holds for r in rows],
        },
    )
    return [state for (state,) in await result.fetchall()]


async def abandon(
    conn: Connection, worker: UUID, claim: Claim, seq: int, reason: str, in_doubt: UUID | None = None
) -> list[str]:
    """End the unsent chunks of entry `seq`: cancelled, or parked where in doubt; the states that they ended in.

    With `in_doubt`, a chunk: only if that is in doubt still.
    """
    result = await conn.execute(
        ABANDON,
        {
            "worker": worker,
            "tenant_id": claim.tenant_id,
            "conversation_id": claim.conversation_id,
            "token": claim.token,
            "seq": seq,
            "reason": reason,
            "in_doubt": in_doubt,
        },
    )
    return [state for (state,) in await result.fetchall()]
