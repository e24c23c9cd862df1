"""usage, with an answer's message and chunks: how a turn ends, under the fence; or how one does that nobody can work on.

Statements take many lanes at once, as in turns.py.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

from msgspec import Struct

from app.db import Connection
from app.store.lanes import Claim, Fence
from app.store.turns import Turn

# The fence: the lane row is locked, and what is tested is its newest version. 'changed' where an edit or revoke raised the
# version that the answer was made at (NULL: settle at the version of the moment).
# The intent of the first chunk shares the commit where its gate is open (`send`).
SETTLE = """
WITH input AS MATERIALIZED (
  SELECT * FROM unnest(%(tenant_id)b::uuid[], %(conversation_id)b::uuid[], %(channel_id)b::uuid[], %(token)b::bigint[],
                       %(version)b::bigint[], %(turn_id)b::uuid[], %(last_seq)b::bigint[], %(outcome)b::text[],
                       %(members)b::integer[], %(pieces)b::integer[], %(input_tokens)b::bigint[], %(output_tokens)b::bigint[],
                       %(model)b::text[], %(ai_ms)b::float8[], %(body)b::text[], %(correlation)b::text[], %(send)b::boolean[],
                       %(stops)b::boolean[], %(asks)b::text[], %(notices)b::boolean[], %(limits)b::boolean[],
                       %(pauses)b::float8[])
         WITH ORDINALITY AS t(tenant_id, conversation_id, channel_id, token, version, turn_id, last_seq, outcome, members,
                              pieces, input_tokens, output_tokens, model, ai_ms, body, correlation, send,
                              stops, asks, notices, limits, pauses, ord)),
piece AS MATERIALIZED (
  SELECT * FROM unnest(%(piece_of)b::bigint[], %(piece_id)b::uuid[], %(piece_no)b::integer[], %(piece_body)b::text[])
         AS t(ord, id, no, body)),
held AS MATERIALIZED (
  SELECT i.ord, CASE WHEN l.owner IS DISTINCT FROM %(worker)s OR l.token <> i.token THEN 'lost'
                     WHEN l.version <> coalesce(i.version, l.version) THEN 'changed'
                     WHEN l.paused_until > qasid_now() AND l.done_seq >= coalesce(l.paused_after, 0) AND i.pieces > 0
                     THEN 'paused' ELSE 'ok' END AS fence
  FROM lanes l JOIN input i USING (tenant_id, conversation_id)
  ORDER BY tenant_id, conversation_id FOR NO KEY UPDATE OF l),
good AS MATERIALIZED (
  SELECT i.*, c.endpoint_id, CASE WHEN i.pieces > 0 THEN uuidv7() END AS answer_id,
         CASE WHEN i.pieces > 0 THEN qasid_now() END AS at,
         i.send AND NOT EXISTS (SELECT FROM holds w WHERE (w.tenant_id, w.channel_id) = (i.tenant_id, i.channel_id)
                                                      AND w.until > qasid_now()) AS sends
  FROM input i JOIN held h USING (ord) JOIN channels c ON (c.tenant_id, c.id) = (i.tenant_id, i.channel_id)
  WHERE h.fence = 'ok'),
-- What the lane remembers of its person from here on. A hand-over's own reply is not held up by the pause that it begins.
lane AS (
  UPDATE lanes l
  SET attempts = 0, asking = g.asks,
      stopped_at = CASE WHEN g.stops THEN coalesce(l.stopped_at, qasid_now()) WHEN NOT g.stops THEN NULL ELSE l.stopped_at END,
      noticed_at = CASE WHEN g.notices THEN qasid_now() ELSE l.noticed_at END,
      limited_at = CASE WHEN g.limits THEN qasid_now() ELSE l.limited_at END,
      paused_until = CASE WHEN g.pauses IS NULL THEN l.paused_until
                          ELSE greatest(l.paused_until, qasid_now() + g.pauses * interval '1 hour') END,
      paused_after = CASE WHEN g.pauses IS NULL THEN l.paused_after ELSE g.last_seq END
  FROM good g
  WHERE (l.tenant_id, l.conversation_id) = (g.tenant_id, g.conversation_id)),
chunk AS (
  INSERT INTO chunks (tenant_id, id, conversation_id, channel_id, turn_id, seq, no, body, state, attempt)
  SELECT g.tenant_id, p.id, g.conversation_id, g.channel_id, g.turn_id, g.last_seq, p.no, p.body,
         CASE WHEN g.sends AND p.no = 1 THEN 'sending' ELSE 'ready' END, CASE WHEN g.sends AND p.no = 1 THEN 1 ELSE 0 END
  FROM good g JOIN piece p USING (ord)),
intent AS (
  INSERT INTO attempts (tenant_id, chunk_id, n, token, endpoint_id, begun_at)
  SELECT g.tenant_id, p.id, 1, g.token, g.endpoint_id, qasid_now() FROM good g JOIN piece p USING (ord)
  WHERE g.sends AND p.no = 1),
answer AS (
  INSERT INTO messages (tenant_id, id, conversation_id, channel_id, direction, kind, sent_at, body, turn_id, correlation)
  SELECT tenant_id, answer_id, conversation_id, channel_id, 'out', 'text', at, body, turn_id, correlation
  FROM good WHERE pieces > 0),
spent AS (
  INSERT INTO usage (tenant_id, turn_id, outcome, messages, chunks, input_tokens, output_tokens, model, ai_ms, at)
  SELECT tenant_id, turn_id, outcome, members, pieces, input_tokens, output_tokens, model, ai_ms, qasid_now() FROM good)
SELECT CASE WHEN g.sends THEN 'sending' ELSE coalesce(h.fence, 'lost') END, g.answer_id, g.at
FROM input i LEFT JOIN held h USING (ord) LEFT JOIN good g USING (ord) ORDER BY i.ord
"""

# The head of a lane that nobody can work on, ended without reading any of it: its turn counts as parked, and so does the
# first of its chunks that was not sent (`due_at`: since when); the rest is cancelled. A person reads of it in the dead letters.
PARK_HEAD = """
WITH held AS MATERIALIZED (
  SELECT * FROM lanes WHERE (tenant_id, conversation_id) = (%(tenant_id)s, %(conversation_id)s)
    AND owner = %(worker)s AND token = %(token)s FOR NO KEY UPDATE),
turn AS MATERIALIZED (
  SELECT t.* FROM held l JOIN turns t
    ON (t.tenant_id, t.conversation_id, t.first_seq) = (l.tenant_id, l.conversation_id, l.done_seq + 1)),
spent AS (
  INSERT INTO usage (tenant_id, turn_id, outcome, messages, chunks, at)
  SELECT tenant_id, id, 'parked', last_seq - first_seq + 1, 0, qasid_now() FROM turn ON CONFLICT DO NOTHING),
unsent AS MATERIALIZED (
  SELECT c.id, c.state, row_number() OVER (ORDER BY c.seq, c.no) AS place
  FROM held l LEFT JOIN turn t ON true
  JOIN chunks c ON (c.tenant_id, c.conversation_id) = (l.tenant_id, l.conversation_id)
    AND c.seq BETWEEN l.done_seq + 1 AND coalesce(t.last_seq, l.done_seq + 1) AND c.state IN ('ready', 'sending', 'in_doubt')),
chunk AS (
  UPDATE chunks c SET state = CASE WHEN u.place = 1 OR u.state <> 'ready' THEN 'parked' ELSE 'cancelled' END,
                      reason = %(reason)s, in_doubt_at = NULL,
                      due_at = CASE WHEN u.place = 1 OR u.state <> 'ready' THEN qasid_now() END
  FROM unsent u WHERE (c.tenant_id, c.id) = (%(tenant_id)s, u.id) AND c.state = u.state)
SELECT coalesce(t.last_seq, l.done_seq + 1) FROM held l LEFT JOIN turn t ON true WHERE l.done_seq < l.head_seq
"""

Ending = Literal["answered", "intent", "told", "failed", "late", "left", "revoked", "parked", "limited", "stopped"]


class Marks(Struct, frozen=True, kw_only=True):
    """What a lane remembers of its person when a turn is settled."""

    stops: bool | None = None
    """They want no answers any more; False: they do again; None: nothing of that was said."""
    asks: str | None = None
    """The intent whose question waits for a yes or a no. What waited before waits no longer."""
    notices: bool = False
    """They are told that what they wrote came too late."""
    limits: bool = False
    """They are told that it is enough for a day."""
    pauses: float | None = None
    """The conversation is people's, behind this turn's own reply, for so many hours."""


NOTHING = Marks()


class Settlement(Struct, frozen=True, kw_only=True):
    """How a turn ends: `pieces` are the ids and texts of its chunks, in order; none where nobody is answered."""

    claim: Claim
    version: int | None
    turn: Turn
    outcome: Ending
    body: str
    pieces: list[tuple[UUID, str]]
    send: bool
    correlation: str
    input_tokens: int = 0
    output_tokens: int = 0
    model: str | None = None
    ai_ms: float | None = None
    marks: Marks = NOTHING


class Settled(Struct, frozen=True):
    """What became of a settlement, and the message that keeps the answer, where there is one: its id and time.

    'sending': let through, with the intent. 'ok': without, since `send` was not asked for or the number must wait.
    """

    fence: Fence | Literal["sending"]
    answer_id: UUID | None = None
    at: datetime | None = None


async def settle(conn: Connection, worker: UUID, rows: Sequence[Settlement]) -> list[Settled]:
    """Commit answers, with their chunks, usage and, where `send`, the first chunk's intent; whether each was let through."""
    pieces = [(ord, id, no, body) for ord, r in enumerate(rows, 1) for no, (id, body) in enumerate(r.pieces, 1)]
    result = await conn.execute(
        SETTLE,
        {
            "worker": worker,
            "tenant_id": [r.claim.tenant_id for r in rows],
            "conversation_id": [r.claim.conversation_id for r in rows],
            "channel_id": [r.claim.channel_id for r in rows],
            "token": [r.claim.token for r in rows],
            "version": [r.version for r in rows],
            "turn_id": [r.turn.id for r in rows],
            "last_seq": [r.turn.last_seq for r in rows],
            "outcome": [r.outcome for r in rows],
            "members": [r.turn.last_seq - r.turn.first_seq + 1 for r in rows],
            "pieces": [len(r.pieces) for r in rows],
            "input_tokens": [r.input_tokens for r in rows],
            "output_tokens": [r.output_tokens for r in rows],
            "model": [r.model for r in rows],
            "ai_ms": [r.ai_ms for r in rows],
            "body": [r.body for r in rows],
            "correlation": [r.correlation for r in rows],
            "send": [r.send for r in rows],
            "stops": [r.marks.stops for r in rows],
            "asks": [r.marks.asks for r in rows],
            "notices": [r.marks.notices for r in rows],
            "limits": [r.marks.limits for r in rows],
            "pauses": [r.marks.pauses for r in rows],
            "piece_of": [p[0] for p in pieces],
            "piece_id": [p[1] for p in pieces],
            "piece_no": [p[2] for p in pieces],
            "piece_body": [p[3] for p in pieces],
        },
    )
    return [Settled(*row) for row in await result.fetchall()]


async def park_head(conn: Connection, worker: UUID, claim: Claim, reason: str) -> int | None:
    """End what stands at the lane's head, unread; the seq that is done with it, None if the lane is not ours or is empty."""
    result = await conn.execute(
        PARK_HEAD,
        {
            "worker": worker,
            "tenant_id": claim.tenant_id,
            "conversation_id": claim.conversation_id,
            "token": claim.token,
            "reason": reason,
        },
    )
    row = await result.fetchone()
    return row[0] if row else None
