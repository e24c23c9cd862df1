"""chunks of an answer that was settled in time and could not be sent in time: words before it, or left to an operator.

It touches nothing of which any part was sent; whose answer that is, and what is said, workers/late.py decides.
"""

from collections.abc import Sequence
from uuid import UUID

from msgspec import Struct

from app.db import Connection
from app.store.lanes import Claim
from app.store.settlements import Ending

# Once: under the lane's lock, in one commit with what remembers it. The words are chunks of their own, before the answer's
# first, since no body changes once it was tried. They enter the history behind its back: hence the version.
# The first part is parked, so that it is a dead letter, and its replay takes the others along; `due_at` is since when it is.
# An answer that is put aside was not said: its message has no words any more, so no history brings it (its chunks have them,
# and a replay is a message of its own); and who was to be told that it is enough for a day was not told. The turn's id is older
# than that of its answer's message.
OVERTAKE = """
WITH held AS MATERIALIZED (
  SELECT tenant_id, conversation_id, channel_id FROM lanes
  WHERE (tenant_id, conversation_id) = (%(tenant_id)s, %(conversation_id)s) AND owner = %(worker)s AND token = %(token)s
  FOR NO KEY UPDATE),
answer AS MATERIALIZED (
  SELECT l.*, u.turn_id, u.outcome FROM held l JOIN usage u ON (u.tenant_id, u.turn_id) = (l.tenant_id, %(turn_id)s)
  WHERE u.outcome = ANY(%(outcomes)s)),
lane AS (
  UPDATE lanes l SET version = l.version + 1, noticed_at = CASE WHEN %(notices)s THEN qasid_now() ELSE l.noticed_at END,
                     limited_at = CASE WHEN NOT (%(aside)s AND a.outcome = 'limited') THEN l.limited_at END
  FROM answer a WHERE (l.tenant_id, l.conversation_id) = (a.tenant_id, a.conversation_id)),
chunk AS (
  UPDATE chunks c SET state = CASE WHEN c.no = 1 THEN 'parked' ELSE 'cancelled' END, reason = 'too late',
                      due_at = CASE WHEN c.no = 1 THEN qasid_now() END
  FROM answer a
  WHERE (c.tenant_id, c.conversation_id, c.seq) = (a.tenant_id, a.conversation_id, %(seq)s) AND c.state = 'ready' AND %(aside)s),
unsaid AS (
  UPDATE messages m SET body = ''
  FROM answer a
  WHERE (m.tenant_id, m.conversation_id) = (a.tenant_id, a.conversation_id) AND m.id > a.turn_id AND m.turn_id = a.turn_id
    AND %(aside)s),
word AS (
  INSERT INTO chunks (tenant_id, conversation_id, channel_id, turn_id, seq, no, body)
  SELECT a.tenant_id, a.conversation_id, a.channel_id, a.turn_id, %(seq)s, w.no - cardinality(%(words)s::text[]), w.body
  FROM answer a CROSS JOIN unnest(%(words)s::text[]) WITH ORDINALITY AS w(body, no)),
message AS (
  INSERT INTO messages (tenant_id, id, conversation_id, channel_id, direction, kind, sent_at, body, turn_id, correlation)
  SELECT tenant_id, uuidv7(), conversation_id, channel_id, 'out', 'text', qasid_now(),
         array_to_string(%(words)s::text[], ' '), turn_id, %(correlation)s
  FROM answer WHERE cardinality(%(words)s::text[]) > 0)
SELECT FROM answer
"""


class Overdue(Struct, frozen=True, kw_only=True):
    """Asks for what is left of an answer: nothing of entry `seq`, the answer to `turn_id`, was sent, and it is too late.

    `outcomes`: it is one of these, else it goes on as it is. `words`: chunks that are sent before it. `aside`: it is not sent
    itself any more. `notices`: `words` tell the person that what they wrote came too late.
    """

    claim: Claim
    turn_id: UUID
    seq: int
    outcomes: Sequence[Ending]
    words: Sequence[str]
    aside: bool
    notices: bool
    correlation: str


async def overtake(conn: Connection, worker: UUID, overdue: Overdue) -> bool:
    """Put the words before the answer, and the answer aside; False: it goes on as it is, or the lane is not ours."""
    result = await conn.execute(
        OVERTAKE,
        {
            "worker": worker,
            "tenant_id": overdue.claim.tenant_id,
            "conversation_id": overdue.claim.conversation_id,
            "token": overdue.claim.token,
            "turn_id": overdue.turn_id,
            "seq": overdue.seq,
            "outcomes": list(overdue.outcomes),
            "words": list(overdue.words),
            "aside": overdue.aside,
            "notices": overdue.notices,
            "correlation": overdue.correlation,
        },
    )
    return await result.fetchone() is not None
