"""lanes and workers: who has which lane, until when. docs/lanes.md tells the story; each statement here is a move in it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

from msgspec import Struct
from psycopg.rows import class_row

from app.db import Connection

# A lane's key: its tenant and its conversation.
LaneId = tuple[UUID, UUID]


class Claim(Struct, frozen=True, kw_only=True):
    """A lane that this worker has now. `token` is its number; what is committed under an older one is in doubt."""

    tenant_id: UUID
    conversation_id: UUID
    channel_id: UUID
    token: int
    attempts: int
    suspect: bool = False
    """It was claimed three times or more without progress: that this is one more try is still to be counted (`tried`)."""
    version: int = 0
    done_seq: int = 0
    """With `version`, at the claim: what was read of the conversation at this pair still stands."""

    @property
    def lane(self) -> LaneId:
        """The key of the lane."""
        return self.tenant_id, self.conversation_id


class Release(Struct, frozen=True, kw_only=True):
    """A lane to give back: settled up to `done_seq` (None: as it was), due again after `again_in` seconds (None: when needed).

    `failed`: it is given back because of an error, so this claim counts as an attempt, whatever it has done before.
    """

    claim: Claim
    done_seq: int | None
    again_in: float | None = None
    failed: bool = False


Fence = Literal["ok", "lost", "changed", "paused"]

# A lane that has failed so often by errors of its own, or been at work so often when its worker died, has something in it
# that we cannot do. Errors are certain; deaths are not: where workers die of something else, a bystander may meet several.
MOST_ERRORS, MOST_CLAIMS = 5, 8
# A lane that has been due for longer is backlog (seconds), and so is one whose message was older when it came (inbox.INGEST):
# as long as a person still looks at what they have written. Whoever waits in a short rush is answered in the order of coming.
LIVE = 60.0

REGISTER = """
INSERT INTO workers (id, alive_until) VALUES (%(worker)s, qasid_now() + %(lease)s * interval '1 second')
"""

# No row back: this worker is taken for dead; it stops what it does and registers anew under a new id.
BEAT = """
UPDATE workers SET alive_until = qasid_now() + %(lease)s * interval '1 second'
WHERE id = %(worker)s AND alive_until > qasid_now() RETURNING id
"""

LEAVE = "DELETE FROM workers WHERE id = %(worker)s"

BURY_WORKERS = "DELETE FROM workers WHERE alive_until <= qasid_now()"

# A statement of its own: its snapshot is newer than the locks of the one above. Frees the lanes of every owner without a
# row, whenever it was lost.
BURY_LANES = """
WITH gone AS MATERIALIZED (
  SELECT tenant_id, conversation_id, owner FROM lanes l
  WHERE owner IS NOT NULL AND NOT EXISTS (SELECT FROM workers w WHERE w.id = l.owner)
  ORDER BY tenant_id, conversation_id FOR NO KEY UPDATE OF l SKIP LOCKED)
UPDATE lanes l SET owner = NULL, run_at = qasid_now() FROM gone g
WHERE (l.tenant_id, l.conversation_id) = (g.tenant_id, g.conversation_id) AND l.owner = g.owner
"""

# A lane that was claimed three times without progress may be what kills its worker: the fourth time it is tried with a few
# others of its kind, after that with none, so that it is blamed for no other's deaths. A suspect's claims no longer count by
# themselves (TRIED): who only waited for a database that was away, while its workers died, is no poison.
# run_at is cleared: whatever sets it while the lane is owned (a new message, a status, an operator) is seen at release.
# Live before backlog: those due for no longer than `live` seconds first, but for a share of the others' oldest, `behind` of
# them. What is left goes to the others, the youngest first: who has just missed being live comes next, not behind hours of
# backlog; and whoever is passed over for it becomes the oldest. Each is a stretch of the one index lanes_due, from one end of
# it or the other, read no further than its LIMIT.
CLAIM = """
WITH me AS MATERIALIZED (SELECT FROM workers WHERE id = %(worker)s AND alive_until > qasid_now()),
oldest AS MATERIALIZED (
  SELECT tenant_id, conversation_id FROM lanes
  WHERE owner IS NULL AND run_at <= qasid_now() - %(live)s * interval '1 second' AND attempts < 3
    AND NOT tenant_id = ANY(%(full)b::uuid[]) AND EXISTS (SELECT FROM me)
  ORDER BY run_at LIMIT %(behind)s FOR NO KEY UPDATE SKIP LOCKED),
fresh AS MATERIALIZED (
  SELECT tenant_id, conversation_id FROM lanes
  WHERE owner IS NULL AND run_at > qasid_now() - %(live)s * interval '1 second' AND run_at <= qasid_now() AND attempts < 3
    AND NOT tenant_id = ANY(%(full)b::uuid[]) AND EXISTS (SELECT FROM me)
  ORDER BY run_at LIMIT %(n)s - (SELECT count(*) FROM oldest) FOR NO KEY UPDATE SKIP LOCKED),
older AS MATERIALIZED (
  SELECT tenant_id, conversation_id FROM lanes
  WHERE owner IS NULL AND run_at <= qasid_now() - %(live)s * interval '1 second' AND attempts < 3
    AND NOT tenant_id = ANY(%(full)b::uuid[]) AND EXISTS (SELECT FROM me)
    AND (SELECT count(*) FROM oldest) >= %(behind)s
    AND NOT EXISTS (SELECT FROM oldest o
                    WHERE (o.tenant_id, o.conversation_id) = (lanes.tenant_id, lanes.conversation_id))
  ORDER BY run_at DESC
  LIMIT %(n)s - (SELECT count(*) FROM oldest) - (SELECT count(*) FROM fresh) FOR NO KEY UPDATE SKIP LOCKED),
alone AS MATERIALIZED (
  SELECT tenant_id, conversation_id FROM lanes
  WHERE owner IS NULL AND run_at <= qasid_now() AND attempts > 3 AND %(suspects)s AND EXISTS (SELECT FROM me)
  ORDER BY run_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED),
few AS MATERIALIZED (
  SELECT tenant_id, conversation_id FROM lanes
  WHERE owner IS NULL AND run_at <= qasid_now() AND attempts = 3 AND %(suspects)s AND EXISTS (SELECT FROM me)
    AND NOT EXISTS (SELECT FROM alone)
  ORDER BY run_at LIMIT 8 FOR NO KEY UPDATE SKIP LOCKED),
due AS (
  SELECT * FROM oldest UNION ALL SELECT * FROM fresh UNION ALL SELECT * FROM older
  UNION ALL SELECT * FROM few UNION ALL SELECT * FROM alone
  LIMIT 200)  -- more than there can be; what no parameter says, PostgreSQL plans with
UPDATE lanes l SET owner = %(worker)s, token = l.token + 1, run_at = NULL, attempts = least(l.attempts + 1, greatest(l.attempts, 3))
FROM due WHERE (l.tenant_id, l.conversation_id) = (due.tenant_id, due.conversation_id)
RETURNING l.tenant_id, l.conversation_id, l.channel_id, l.token, l.attempts, old.attempts >= 3 AS suspect,
          l.version, l.done_seq
"""

# From columns of the lane row alone: what arrived meanwhile is not lost, whatever the order of commits. Where nothing is left
# in it, nothing is due, though a status of its last chunk came, and woke it, before the worker was done.
RELEASE = """
WITH input AS MATERIALIZED (
  SELECT * FROM unnest(%(tenant_id)b::uuid[], %(conversation_id)b::uuid[], %(token)b::bigint[], %(done_seq)b::bigint[],
                       %(again_in)b::float8[], %(failed)b::integer[])
         WITH ORDINALITY AS t(tenant_id, conversation_id, token, done_seq, again_in, failed, ord)),
held AS MATERIALIZED (
  SELECT i.* FROM lanes l JOIN input i USING (tenant_id, conversation_id)
  WHERE l.owner = %(worker)s AND l.token = i.token
  ORDER BY tenant_id, conversation_id FOR NO KEY UPDATE OF l),
lane AS (
  UPDATE lanes l
  SET owner = NULL, done_seq = greatest(l.done_seq, h.done_seq),
      attempts = CASE WHEN h.failed > 0 THEN greatest(l.attempts, h.failed) ELSE 0 END,
      run_at = CASE WHEN h.again_in IS NOT NULL THEN least(l.run_at, qasid_now() + h.again_in * interval '1 second')
                    WHEN l.head_seq > greatest(l.done_seq, h.done_seq) THEN least(l.run_at, qasid_now()) END
  FROM held h WHERE (l.tenant_id, l.conversation_id) = (h.tenant_id, h.conversation_id)
    AND l.owner = %(worker)s AND l.token = h.token
  RETURNING h.ord, CASE WHEN l.run_at IS NOT NULL
                              THEN greatest(0, extract(epoch FROM l.run_at - qasid_now()))::float8 END AS due_in)
SELECT lane.due_in FROM input i LEFT JOIN lane USING (ord) ORDER BY i.ord
"""

# A claim's answer can be lost, so a worker gives back what it owns without working on it. In the claim loop, never
# beside a claim. Such a claim was no attempt: an outage of the database must not park anybody's message.
DISOWN = """
WITH mine AS MATERIALIZED (
  SELECT tenant_id, conversation_id FROM lanes l
  WHERE owner = %(worker)s
    AND NOT EXISTS (SELECT FROM unnest(%(tenant_id)b::uuid[], %(conversation_id)b::uuid[]) AS h(tenant_id, conversation_id)
                    WHERE (h.tenant_id, h.conversation_id) = (l.tenant_id, l.conversation_id))
  ORDER BY tenant_id, conversation_id FOR NO KEY UPDATE SKIP LOCKED)
UPDATE lanes l SET owner = NULL, run_at = qasid_now(),
                   -- A suspect stays one: its claim may not have been counted.
                   attempts = CASE WHEN l.attempts = 3 THEN 3 ELSE greatest(0, l.attempts - 1) END
FROM mine m
WHERE (l.tenant_id, l.conversation_id) = (m.tenant_id, m.conversation_id) AND l.owner = %(worker)s
"""

# Whoever is still there after a while is not killed by what it works on; who waits for a slow assistant must not be taken
# for poison because its workers were killed by somebody else. An error counts all the same: see Release.failed.
SURVIVED = """
WITH mine AS MATERIALIZED (
  SELECT tenant_id, conversation_id FROM lanes
  JOIN unnest(%(tenant_id)b::uuid[], %(conversation_id)b::uuid[]) AS h(tenant_id, conversation_id)
    USING (tenant_id, conversation_id)
  WHERE owner = %(worker)s AND attempts > 0
  ORDER BY tenant_id, conversation_id FOR NO KEY UPDATE OF lanes SKIP LOCKED)
UPDATE lanes l SET attempts = 0 FROM mine m
WHERE (l.tenant_id, l.conversation_id) = (m.tenant_id, m.conversation_id) AND l.owner = %(worker)s
"""

# The database is there, and the work begins: from here on its worker may die of it.
TRIED = """
UPDATE lanes SET attempts = attempts + 1
WHERE (tenant_id, conversation_id) = (%(tenant_id)s, %(conversation_id)s) AND owner = %(worker)s AND token = %(token)s
RETURNING attempts
"""

STANDS = """
SELECT FROM lanes
WHERE (tenant_id, conversation_id) = (%(tenant_id)s, %(conversation_id)s) AND token = %(token)s AND version = %(version)s
"""

WAKE = """
UPDATE lanes SET run_at = least(run_at, qasid_now())
WHERE (tenant_id, conversation_id) = (%(tenant_id)s, %(conversation_id)s) AND done_seq < head_seq
"""

# A channel that was not asked is asked again. Those that wait, for that or for something else, look anew, those due first
# before the others, and fifty a second: whoever has only just come back is not run over.
WAKE_CHANNEL = """
WITH waiting AS MATERIALIZED (
  SELECT tenant_id, conversation_id, run_at FROM lanes
  WHERE tenant_id = %(tenant_id)s AND channel_id = %(channel_id)s AND owner IS NULL AND run_at > qasid_now()
    AND done_seq < head_seq
  ORDER BY tenant_id, conversation_id FOR NO KEY UPDATE SKIP LOCKED),
placed AS (SELECT *, row_number() OVER (ORDER BY run_at) - 1 AS place FROM waiting)
UPDATE lanes l SET run_at = least(l.run_at, qasid_now() + p.place * interval '20 milliseconds') FROM placed p
WHERE (l.tenant_id, l.conversation_id) = (p.tenant_id, p.conversation_id)
"""

# Pause tells workers by the fence alone. What waits in the lane becomes due: it settles as left to a person.
PAUSE = """
UPDATE lanes SET paused_until = %(until)s, paused_after = NULL,
                 run_at = CASE WHEN done_seq < head_seq THEN least(run_at, qasid_now()) ELSE run_at END
WHERE (tenant_id, conversation_id) = (%(tenant_id)s, %(conversation_id)s)
RETURNING coalesce(old.paused_until > qasid_now(), false)
"""


async def register(conn: Connection, worker: UUID, lease: float) -> None:
    """Begin a lease of `lease` seconds."""
    await conn.execute(REGISTER, {"worker": worker, "lease": lease})


async def beat(conn: Connection, worker: UUID, lease: float) -> bool:
    """Prolong the lease to `lease` seconds from now; False if it has ended already."""
    result = await conn.execute(BEAT, {"worker": worker, "lease": lease})
    return await result.fetchone() is not None


async def leave(conn: Connection, worker: UUID) -> None:
    """End the lease now: an orderly farewell."""
    await conn.execute(LEAVE, {"worker": worker})


async def bury(conn: Connection) -> int:
    """Free the lanes of workers whose lease has ended; how many lanes that were."""
    await conn.execute(BURY_WORKERS)
    return (await conn.execute(BURY_LANES)).rowcount


async def claim(
    conn: Connection, worker: UUID, most: int, full: Sequence[UUID] = (), *, behind: int = 0, suspects: bool = True
) -> list[Claim]:
    """Take up to `most` lanes that are due, none of the tenants in `full`: those that are live before the backlog.

    `behind`: how many of the backlog are taken all the same, those due longest first, as among the live. Where places are
    left, more of it, those that have just become backlog first. With `suspects` besides them one, or a few, of those that
    were claimed three times or more without progress.
    """
    async with conn.cursor(row_factory=class_row(Claim)) as cursor:
        await cursor.execute(
            CLAIM,
            {
                "worker": worker,
                "n": most,
                "full": list(full),
                "live": LIVE,
                "behind": min(behind, most),
                "suspects": suspects,
            },
        )
        return await cursor.fetchall()


async def release(conn: Connection, worker: UUID, rows: Sequence[Release]) -> list[float | None]:
    """Give lanes back; for each in how many seconds it is due again, None where nothing waits (or it was not ours)."""
    result = await conn.execute(
        RELEASE,
        {
            "worker": worker,
            "tenant_id": [r.claim.tenant_id for r in rows],
            "conversation_id": [r.claim.conversation_id for r in rows],
            "token": [r.claim.token for r in rows],
            "done_seq": [r.done_seq for r in rows],
            "again_in": [r.again_in for r in rows],
            "failed": [_counted(r) for r in rows],
        },
    )
    return [due_in for (due_in,) in await result.fetchall()]


async def disown(conn: Connection, worker: UUID, held: Sequence[LaneId]) -> int:
    """Give back every lane of this worker but those in `held`; how many that were."""
    result = await conn.execute(
        DISOWN,
        {"worker": worker, "tenant_id": [lane[0] for lane in held], "conversation_id": [lane[1] for lane in held]},
    )
    return result.rowcount


def _counted(release: Release) -> int:
    """What its lane's attempts are to be at least; 0: they are cleared."""
    tries = release.claim.attempts + release.claim.suspect
    if not release.failed:
        return 0
    return MOST_CLAIMS if tries >= MOST_ERRORS else tries


async def survived(conn: Connection, worker: UUID, held: Sequence[LaneId]) -> None:
    """These lanes of this worker were worked on for a while, and it lives: earlier deaths were not their doing."""
    await conn.execute(
        SURVIVED,
        {"worker": worker, "tenant_id": [lane[0] for lane in held], "conversation_id": [lane[1] for lane in held]},
    )


async def tried(conn: Connection, worker: UUID, claim: Claim) -> int | None:
    """Count this claim of a suspect as a try; how many it has had, None if the lane is not ours any more."""
    result = await conn.execute(
        TRIED,
        {
            "worker": worker,
            "tenant_id": claim.tenant_id,
            "conversation_id": claim.conversation_id,
            "token": claim.token,
        },
    )
    row = await result.fetchone()
    return row[0] if row else None


async def stands(conn: Connection, claim: Claim, version: int) -> bool:
    """Whether the lane is as it was when it was opened under this claim: it is nobody else's, nothing of it was taken back."""
    result = await conn.execute(
        STANDS,
        {
            "tenant_id": claim.tenant_id,
            "conversation_id": claim.conversation_id,
            "token": claim.token,
            "version": version,
        },
    )
    return await result.fetchone() is not None


async def wake(conn: Connection, lane: LaneId) -> None:
    """What this lane waited for has come to its end: look at it now."""
    await conn.execute(WAKE, {"tenant_id": lane[0], "conversation_id": lane[1]})


async def wake_channel(conn: Connection, tenant_id: UUID, channel_id: UUID) -> int:
    """What waits in this channel's lanes is looked at anew within seconds; how many lanes that are."""
    result = await conn.execute(WAKE_CHANNEL, {"tenant_id": tenant_id, "channel_id": channel_id})
    return result.rowcount


async def pause(conn: Connection, lane: LaneId, until: datetime | None) -> bool | None:
    """Leave the conversation to a person until then (None: take it back); whether it was left to one before.

    None: there is no such lane. Nothing waits for a resume: what is due while it lasts settles as left to a person.
    """
    tenant, conversation = lane
    result = await conn.execute(PAUSE, {"tenant_id": tenant, "conversation_id": conversation, "until": until})
    row = await result.fetchone()
    return row[0] if row else None
