"""steps: the memo of what was finished of a turn, so that whoever has the turn next goes on behind it. Openings bring it."""

from collections.abc import Sequence
from uuid import UUID

from msgspec import Struct

from app.db import Connection
from app.store.lanes import Claim

# The version of a step that is good whatever becomes of its turn's messages: its name says what it rests on. Lanes have none
# below 0.
ANY_VERSION = -1

# Under the fence: what a worker that was thought dead has made meanwhile must not stand before what its heir works with. The
# lane is looked at, not locked: a memo waits for nobody, and keeps no webhook from its lane.
MEMO = """
WITH input AS MATERIALIZED (
  SELECT * FROM unnest(%(tenant_id)b::uuid[], %(conversation_id)b::uuid[], %(token)b::bigint[], %(turn_id)b::uuid[],
                       %(step)b::text[], %(version)b::bigint[], %(result)b::jsonb[])
         WITH ORDINALITY AS t(tenant_id, conversation_id, token, turn_id, step, version, result, ord)),
held AS MATERIALIZED (
  SELECT i.ord, l.owner IS NOT DISTINCT FROM %(worker)s AND l.token = i.token AS ours
  FROM lanes l JOIN input i USING (tenant_id, conversation_id)),
kept AS (
  INSERT INTO steps (tenant_id, turn_id, step, version, result)
  SELECT i.tenant_id, i.turn_id, i.step, i.version, i.result FROM input i JOIN held h USING (ord) WHERE h.ours
  ON CONFLICT DO NOTHING)
SELECT coalesce(h.ours, false) FROM input i LEFT JOIN held h USING (ord) ORDER BY i.ord
"""


class Memo(Struct, frozen=True):
    """A finished step's result, JSON in text. `version`: that of the lane which it is good for, or ANY_VERSION."""

    claim: Claim
    turn_id: UUID
    step: str
    version: int
    result: str


async def memo(conn: Connection, worker: UUID, rows: Sequence[Memo]) -> list[bool]:
    """Remember finished steps; whether the lane of each is still this worker's, else it is not."""
    result = await conn.execute(
        MEMO,
        {
            "worker": worker,
            "tenant_id": [r.claim.tenant_id for r in rows],
            "conversation_id": [r.claim.conversation_id for r in rows],
            "token": [r.claim.token for r in rows],
            "turn_id": [r.turn_id for r in rows],
            "step": [r.step for r in rows],
            "version": [r.version for r in rows],
            "result": [r.result for r in rows],
        },
    )
    return [ours for (ours,) in await result.fetchall()]
