"""seen, messages, outbox and the lane's head: what ingest writes, for a whole batch, in one statement and one commit."""

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from msgspec import Struct

from app.db import Connection
from app.messages import Message
from app.store.lanes import LIVE


class Placed(Struct, frozen=True):
    """A message whose conversation is known. `digest` and `refers_to`: HMACs of provider ids. `ack_ms`: since it came."""

    tenant_id: UUID
    channel_id: UUID
    conversation_id: UUID
    digest: bytes
    refers_to: bytes | None
    message: Message
    correlation: str
    ack_ms: float


Verdict = Literal["stored", "duplicate", "quarantined", "later", "gone"]


class Outcome(Struct, frozen=True):
    """What became of one message, and whether its lane wants a worker: nobody has it, and it is due.

    It may have been due before, for a message of a moment ago: but whoever came for that one may have passed over the
    row while this statement held it.
    """

    verdict: Verdict
    woke: bool


# A lane that somebody holds at this instant is not waited for: its items come back as 'later', and as 'gone' if there
# is no such lane any more. `seen` is the only conflict target. The outbox is gapless per lane: seqs are given out here,
# under the lock of the lane row (which returns the row's newest version), and nowhere else.
# A message that was no longer live when it came (redelivered, or out of the spool) is due since it was sent, so that its lane
# is backlog (lanes.CLAIM); one that is live takes its lane out of the backlog. A lane that waits for something keeps waiting.
INGEST = """
WITH input AS MATERIALIZED (
  SELECT *, uuidv7() AS id
  FROM unnest(%(tenant_id)b::uuid[], %(channel_id)b::uuid[], %(conversation_id)b::uuid[], %(digest)b::bytea[],
              %(refers_to)b::bytea[], %(direction)b::text[], %(kind)b::text[], %(provider_id)b::text[],
              %(sent_at)b::timestamptz[], %(body)b::text[], %(raw)b::text[], %(answered)b::boolean[],
              %(changes)b::boolean[], %(correlation)b::text[], %(ack_ms)b::float8[])
       WITH ORDINALITY AS t(tenant_id, channel_id, conversation_id, digest, refers_to, direction, kind, provider_id,
                            sent_at, body, raw, answered, changes, correlation, ack_ms, ord)),
free AS MATERIALIZED (
  SELECT l.tenant_id, l.conversation_id, l.head_seq,
         l.owner IS NULL AND coalesce(l.run_at <= qasid_now() + interval '1 second', true) AS asleep
  FROM lanes l JOIN (SELECT DISTINCT tenant_id, conversation_id FROM input) i USING (tenant_id, conversation_id)
  ORDER BY l.tenant_id, l.conversation_id FOR NO KEY UPDATE OF l SKIP LOCKED),
fresh AS (
  INSERT INTO seen (tenant_id, channel_id, digest, message_id)
  SELECT DISTINCT ON (tenant_id, channel_id, digest) tenant_id, channel_id, digest, id
  FROM input JOIN free USING (tenant_id, conversation_id)
  ORDER BY tenant_id, channel_id, digest, ord
  ON CONFLICT DO NOTHING RETURNING message_id),
numbered AS MATERIALIZED (
  SELECT i.*, l.head_seq, l.asleep AND i.answered AS woke,
         count(*) FILTER (WHERE answered) OVER (PARTITION BY tenant_id, conversation_id ORDER BY ord) AS k
  FROM input i JOIN free l USING (tenant_id, conversation_id) JOIN fresh f ON f.message_id = i.id),
lane AS (
  UPDATE lanes l
  SET head_seq = l.head_seq + c.n, version = l.version + c.changes,
      run_at = CASE WHEN c.n = 0 THEN l.run_at
                    WHEN c.newest < qasid_now() - %(live)s * interval '1 second' THEN coalesce(l.run_at, c.newest)
                    WHEN l.run_at < qasid_now() - %(live)s * interval '1 second' THEN qasid_now()
                    ELSE coalesce(l.run_at, qasid_now()) END
  FROM (SELECT tenant_id, conversation_id, max(sent_at) FILTER (WHERE answered) AS newest,
               count(*) FILTER (WHERE answered) AS n, count(*) FILTER (WHERE changes) AS changes
        FROM numbered GROUP BY tenant_id, conversation_id) c
  WHERE (l.tenant_id, l.conversation_id) = (c.tenant_id, c.conversation_id) AND c.n + c.changes > 0),
stored AS (
  INSERT INTO messages (tenant_id, id, conversation_id, channel_id, direction, kind, provider_id, digest, refers_to,
                        sent_at, body, correlation, ack_ms, raw)
  SELECT tenant_id, id, conversation_id, channel_id, direction, kind, provider_id, digest, refers_to, sent_at,
         body, correlation, ack_ms, raw::json FROM numbered),
entered AS (
  INSERT INTO outbox (tenant_id, conversation_id, seq, kind, message_id)
  SELECT tenant_id, conversation_id, head_seq + k, 'answer', id FROM numbered WHERE answered)
SELECT CASE WHEN n.id IS NOT NULL THEN 'stored'
            WHEN f.conversation_id IS NOT NULL THEN 'duplicate'
            WHEN EXISTS (SELECT FROM lanes x
                         WHERE (x.tenant_id, x.conversation_id) = (i.tenant_id, i.conversation_id)) THEN 'later'
            ELSE 'gone' END,
       coalesce(n.woke, false)
FROM input i
LEFT JOIN free f USING (tenant_id, conversation_id)
LEFT JOIN numbered n ON n.ord = i.ord
ORDER BY i.ord
"""


async def ingest(conn: Connection, rows: Sequence[Placed]) -> list[Outcome]:
    """Write what is new of these messages, with their outbox entries, and say what became of each, in order.

    Raises:
        psycopg.DataError: the server refused the data of one of them; nothing was written.
    """
    result = await conn.execute(
        INGEST,
        {
            "tenant_id": [r.tenant_id for r in rows],
            "channel_id": [r.channel_id for r in rows],
            "conversation_id": [r.conversation_id for r in rows],
            "digest": [r.digest for r in rows],
            "refers_to": [r.refers_to for r in rows],
            "direction": [r.message.direction for r in rows],
            "kind": [r.message.kind for r in rows],
            "provider_id": [r.message.provider_id for r in rows],
            "sent_at": [r.message.sent_at for r in rows],
            "body": [r.message.body for r in rows],
            "raw": [r.message.raw.decode() for r in rows],
            "answered": [r.message.answered for r in rows],
            "changes": [r.message.changes_history for r in rows],
            "correlation": [r.correlation for r in rows],
            "ack_ms": [r.ack_ms for r in rows],
            "live": LIVE,
        },
    )
    return [Outcome(verdict, woke) for verdict, woke in await result.fetchall()]
