"""Dead letters of one tenant, chunks and turns, and their replay: new entries at the lane's end that name the old.

Every statement is the app's, for one tenant. What is dead stays as it is: a replay adds, it changes nothing that was.
"""

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from msgspec import Struct
from psycopg.rows import class_row

from app.db import Connection


class Letter(Struct, frozen=True, kw_only=True):
    """A chunk or a turn that was asked for. It is a dead letter while `state` is `failed` or `parked`."""

    kind: Literal["chunk", "turn"]
    id: UUID
    tenant_id: UUID
    conversation_id: UUID
    seq: int
    no: int
    state: str
    code: int | None
    reason: str | None
    age: float
    """Seconds since a chunk was parked, or since the last attempt of it or of what stands before it in its entry; of an
    entry, since it came; of a turn, since it ended."""
    doubtful: bool
    """An attempt ended in doubt: it may have arrived."""
    late_after: float | None
    """Hours after which the channel leaves messages unanswered, where this turn's are older than that."""
    enabled: bool
    """The tenant and its channel: else nobody is sent anything."""
    paused: bool
    """A person has taken over: texts go out, answers do not."""
    stopped: bool
    """Its person wants no answers, and that counts."""
    replayed_as: str | None
    whom: str
    """The person's addresses; empty unless asked for, like `text`."""
    text: str


class Sent(Struct, frozen=True):
    """The replay of a chunk: its entry and its chunks, the first of which repeats the dead one."""

    seq: int
    chunks: list[UUID]


class Entered(Struct, frozen=True):
    """The replay of a turn: its messages' new entries."""

    first_seq: int
    last_seq: int


WHOM = """
(SELECT coalesce(string_agg(i.value, ', ' ORDER BY i.kind DESC), '')
 FROM conversations v JOIN identities i ON (i.tenant_id, i.contact_id) = (v.tenant_id, v.contact_id)
 WHERE %(text)s AND (v.tenant_id, v.id) = ({0}.tenant_id, {0}.conversation_id))
"""

# What the lane remembers of its person. A stop counts while the tenant has an intent that takes it back.
STANDING = """
coalesce(l.paused_until > qasid_now(), false) AS paused,
l.stopped_at IS NOT NULL AND coalesce(n.settings -> 'intents' @> '[{"then": "start"}]', false) AS stopped
"""

CHUNKS = f"""
SELECT 'chunk' AS kind, c.id, c.tenant_id, c.conversation_id, c.seq, c.no, c.state, c.code, c.reason,
       greatest(0, extract(epoch FROM qasid_now() - coalesce(
         greatest(tried.at, CASE WHEN c.state = 'parked' THEN c.due_at END), o.entered_at)))::float8 AS age,
       EXISTS (SELECT FROM attempts d
               WHERE (d.tenant_id, d.chunk_id) = (c.tenant_id, c.id) AND d.state IN ('sending', 'in_doubt')) AS doubtful,
       NULL::float8 AS late_after, n.enabled AND h.enabled AS enabled, {STANDING},
       (SELECT 'chunk ' || r.id FROM chunks r WHERE (r.tenant_id, r.replays) = (c.tenant_id, c.id) ORDER BY r.id DESC LIMIT 1)
         AS replayed_as,
       {WHOM.format("c")} AS whom,
       CASE WHEN %(text)s THEN c.body ELSE '' END AS text
FROM chunks c
JOIN lanes l ON (l.tenant_id, l.conversation_id) = (c.tenant_id, c.conversation_id)
JOIN channels h ON (h.tenant_id, h.id) = (l.tenant_id, l.channel_id)
JOIN tenants n ON n.id = c.tenant_id
CROSS JOIN LATERAL (
  SELECT max(greatest(a.begun_at, a.ended_at, CASE WHEN b.id = c.id THEN a.heard_at END)) AS at
  FROM chunks b JOIN attempts a ON (a.tenant_id, a.chunk_id) = (b.tenant_id, b.id)
  WHERE (b.tenant_id, b.conversation_id, b.seq) = (c.tenant_id, c.conversation_id, c.seq) AND b.no <= c.no) tried
LEFT JOIN outbox o ON (o.tenant_id, o.conversation_id, o.seq) = (c.tenant_id, c.conversation_id, c.seq)
WHERE c.tenant_id = %(tenant_id)s AND c.seq <= l.done_seq  -- what follows it has come to its end too
"""  # noqa: S608  the words are ours alone, here and below

TURNS = f"""
SELECT 'turn' AS kind, t.id, t.tenant_id, t.conversation_id, t.first_seq AS seq, 0 AS no, coalesce(u.outcome, 'open') AS state,
       NULL::integer AS code, NULL::text AS reason,
       greatest(0, extract(epoch FROM qasid_now() - coalesce(u.at, t.begun_at)))::float8 AS age,
       false AS doubtful,
       CASE WHEN h.late IN ('store', 'notice') AND m.newest < qasid_now() - h.answer_within_hours * interval '1 hour'
            THEN h.answer_within_hours END AS late_after,
       n.enabled AND h.enabled AS enabled, {STANDING},
       (SELECT 'entry ' || max(r.seq) FROM outbox r WHERE (r.tenant_id, r.replays) = (t.tenant_id, t.id)) AS replayed_as,
       {WHOM.format("t")} AS whom,
       CASE WHEN %(text)s THEN m.text ELSE '' END AS text
FROM turns t
LEFT JOIN usage u ON (u.tenant_id, u.turn_id) = (t.tenant_id, t.id)
JOIN lanes l ON (l.tenant_id, l.conversation_id) = (t.tenant_id, t.conversation_id)
JOIN channels h ON (h.tenant_id, h.id) = (l.tenant_id, l.channel_id)
JOIN tenants n ON n.id = t.tenant_id
CROSS JOIN LATERAL (
  SELECT max(m.sent_at) AS newest, coalesce(string_agg(m.body, E'\\n' ORDER BY m.sent_at, o.seq), '') AS text
  FROM outbox o JOIN messages m ON (m.tenant_id, m.id) = (o.tenant_id, o.message_id)
  WHERE (o.tenant_id, o.conversation_id) = (t.tenant_id, t.conversation_id) AND o.seq BETWEEN t.first_seq AND t.last_seq) m
WHERE t.tenant_id = %(tenant_id)s
"""  # noqa: S608  as above

# A chunk of a turn that is itself dead holds words of failure at the most: the turn is the letter.
LISTED = f"""
SELECT * FROM (
  SELECT * FROM ({CHUNKS} AND %(chunks)s AND c.state IN ('failed', 'parked')
    AND NOT EXISTS (SELECT FROM usage u WHERE (u.tenant_id, u.turn_id) = (c.tenant_id, c.turn_id)
                                          AND u.outcome IN ('failed', 'parked'))) c
  UNION ALL
  SELECT * FROM ({TURNS} AND %(turns)s AND u.outcome IN ('failed', 'parked')) t) letter
WHERE replayed_as IS NULL AND (%(within)s::float8 IS NULL OR age <= %(within)s)
ORDER BY age, seq DESC, no DESC LIMIT %(most)s
"""  # noqa: S608  as above

FOUND = f"{CHUNKS} AND c.id = ANY(%(id)b::uuid[]) UNION ALL {TURNS} AND t.id = ANY(%(id)b::uuid[])"

# The lane that takes what comes now for this conversation, held until the replay is committed.
LOCK = """
SELECT FROM lanes l
WHERE (l.tenant_id, l.conversation_id) IN (SELECT v.tenant_id, coalesce(v.merged_into, v.id) FROM conversations v
                                           WHERE (v.tenant_id, v.id) = (%(tenant_id)s, %(conversation_id)s))
FOR NO KEY UPDATE
"""

# A statement of its own, after LOCK: its snapshot is newer than the lock, so of two replays at once the second sees the
# first. Besides the chunk goes what of its entry was not sent for its sake, or failed too, up to the next one that may
# have arrived: that is a decision of its own, and so are an answer that came too late and the notice before it. The lane is
# due even where it waits: an entry that is no answer may be next.
SEND = """
WITH dead AS MATERIALIZED (
  SELECT c.* FROM chunks c JOIN lanes l USING (tenant_id, conversation_id)
  WHERE (c.tenant_id, c.id) = (%(tenant_id)s, %(id)s) AND c.state IN ('failed', 'parked') AND c.seq <= l.done_seq
    AND (%(again)s OR NOT EXISTS (SELECT FROM chunks r WHERE (r.tenant_id, r.replays) = (c.tenant_id, c.id)))
  FOR NO KEY UPDATE OF c),
rest AS MATERIALIZED (
  SELECT c.id, c.no, c.body, c.state,
         c.state = 'parked' AND EXISTS (SELECT FROM attempts a WHERE (a.tenant_id, a.chunk_id) = (c.tenant_id, c.id)
                                                                 AND a.state IN ('sending', 'in_doubt')) AS doubtful
  FROM dead d JOIN chunks c ON (c.tenant_id, c.conversation_id, c.seq) = (d.tenant_id, d.conversation_id, d.seq) AND c.no > d.no
  WHERE c.state IN ('failed', 'parked', 'cancelled')
    AND (c.reason IS NOT DISTINCT FROM 'too late') = (d.reason IS NOT DISTINCT FROM 'too late')
    AND (%(again)s OR NOT EXISTS (SELECT FROM chunks r WHERE (r.tenant_id, r.replays) = (c.tenant_id, c.id)))),
piece AS MATERIALIZED (
  SELECT uuidv7() AS id, replays, body, row_number() OVER (ORDER BY no) AS no
  FROM (SELECT id AS replays, no, body FROM dead
        UNION ALL
        SELECT id, no, body FROM rest r WHERE NOT EXISTS (SELECT FROM rest q WHERE q.doubtful AND q.no <= r.no)) p),
-- Whose correlation and turn it goes on under: those of the answer, or of the text, that the chunk was a part of.
source AS MATERIALIZED (
  SELECT d.tenant_id, coalesce(v.merged_into, v.id) AS conversation_id, coalesce(d.turn_id, m.turn_id) AS turn_id,
         coalesce(m.correlation, '') AS correlation
  FROM dead d
  JOIN conversations v ON (v.tenant_id, v.id) = (d.tenant_id, d.conversation_id)
  LEFT JOIN turns t ON (t.tenant_id, t.id) = (d.tenant_id, d.turn_id)
  LEFT JOIN outbox o ON (o.tenant_id, o.conversation_id, o.seq) = (d.tenant_id, d.conversation_id, coalesce(t.first_seq, d.seq))
  LEFT JOIN messages m ON (m.tenant_id, m.id) = (o.tenant_id, o.message_id)),
entry AS MATERIALIZED (
  UPDATE lanes l SET head_seq = l.head_seq + 1, run_at = least(l.run_at, qasid_now())
  FROM source s WHERE (l.tenant_id, l.conversation_id) = (s.tenant_id, s.conversation_id)
  RETURNING l.tenant_id, l.conversation_id, l.channel_id, l.head_seq AS seq, s.turn_id, s.correlation, uuidv7() AS message_id),
message AS (
  INSERT INTO messages (tenant_id, id, conversation_id, channel_id, direction, kind, sent_at, stored_at, body, turn_id, correlation)
  SELECT tenant_id, message_id, conversation_id, channel_id, 'out', 'text', qasid_now(), qasid_now(),
         (SELECT string_agg(body, E'\\n\\n' ORDER BY no) FROM piece), turn_id, correlation FROM entry),
entered AS (
  INSERT INTO outbox (tenant_id, conversation_id, seq, kind, message_id, entered_at)
  SELECT tenant_id, conversation_id, seq, 'send', message_id, qasid_now() FROM entry),
made AS (
  INSERT INTO chunks (tenant_id, id, conversation_id, channel_id, seq, no, body, replays)
  SELECT e.tenant_id, p.id, e.conversation_id, e.channel_id, e.seq, p.no, p.body, p.replays FROM entry e CROSS JOIN piece p)
SELECT e.seq, (SELECT array_agg(p.id ORDER BY p.no) FROM piece p) AS chunks FROM entry e
"""

# Likewise. The messages are entered anew as they stood; who has been erased since is not. They leave the history until they
# are done with again, and no entry tells when: hence the version.
ANSWER = """
WITH dead AS MATERIALIZED (
  SELECT t.*, coalesce(v.merged_into, v.id) AS into
  FROM turns t
  JOIN usage u ON (u.tenant_id, u.turn_id) = (t.tenant_id, t.id)
  JOIN conversations v ON (v.tenant_id, v.id) = (t.tenant_id, t.conversation_id)
  WHERE (t.tenant_id, t.id) = (%(tenant_id)s, %(id)s) AND u.outcome IN ('failed', 'parked')
    AND (%(again)s OR NOT EXISTS (SELECT FROM outbox r WHERE (r.tenant_id, r.replays) = (t.tenant_id, t.id)))),
member AS MATERIALIZED (
  SELECT o.message_id, row_number() OVER (ORDER BY o.seq) AS n
  FROM dead d
  JOIN outbox o ON (o.tenant_id, o.conversation_id) = (d.tenant_id, d.conversation_id)
                   AND o.seq BETWEEN d.first_seq AND d.last_seq AND o.kind = 'answer'
  JOIN messages m ON (m.tenant_id, m.id) = (o.tenant_id, o.message_id)),
lane AS MATERIALIZED (
  UPDATE lanes l SET head_seq = l.head_seq + c.n, version = l.version + 1, run_at = least(l.run_at, qasid_now())
  FROM dead d CROSS JOIN (SELECT count(*) AS n FROM member) c
  WHERE (l.tenant_id, l.conversation_id) = (d.tenant_id, d.into) AND c.n > 0
  RETURNING l.tenant_id, l.conversation_id, l.head_seq - c.n AS before, d.id AS replays),
entered AS (
  INSERT INTO outbox (tenant_id, conversation_id, seq, kind, message_id, replays, entered_at)
  SELECT l.tenant_id, l.conversation_id, l.before + m.n, 'answer', m.message_id, l.replays, qasid_now()
  FROM lane l CROSS JOIN member m RETURNING seq)
SELECT min(seq) AS first_seq, max(seq) AS last_seq FROM entered HAVING count(*) > 0
"""


TENANTS = "SELECT id, slug FROM tenants WHERE slug = coalesce(%(slug)s::text, slug) ORDER BY slug"

PLACES = "SELECT endpoint_id, address FROM channels WHERE tenant_id = %(tenant_id)s"


async def tenants(conn: Connection, slug: str | None = None) -> list[tuple[UUID, str]]:
    """The id and slug of every tenant, or of this one. For the installation."""
    return [(id, slug) for id, slug in await (await conn.execute(TENANTS, {"slug": slug})).fetchall()]


async def places(conn: Connection, tenant_id: UUID) -> list[tuple[UUID, str]]:
    """The endpoint and address of each of the tenant's channels: what of quarantine is for this tenant."""
    return [(id, address) for id, address in await (await conn.execute(PLACES, {"tenant_id": tenant_id})).fetchall()]


async def listed(
    conn: Connection,
    tenant_id: UUID,
    *,
    kinds: Sequence[str],
    within: float | None,
    most: int | None,
    text: bool = False,
) -> list[Letter]:
    """What is dead and was not replayed, the latest first.

    `kinds`: of `chunk` and `turn`. `within`: seconds since it died. `most`: None for no bound. `text`: with words and
    addresses of people.
    """
    wanted = {"tenant_id": tenant_id, "chunks": "chunk" in kinds, "turns": "turn" in kinds}
    async with conn.cursor(row_factory=class_row(Letter)) as cursor:
        await cursor.execute(LISTED.encode(), {**wanted, "within": within, "most": most, "text": text})
        return await cursor.fetchall()


async def found(conn: Connection, tenant_id: UUID, ids: Sequence[UUID]) -> list[Letter]:
    """The tenant's chunks and turns of these ids, dead or not."""
    async with conn.cursor(row_factory=class_row(Letter)) as cursor:
        await cursor.execute(FOUND.encode(), {"tenant_id": tenant_id, "id": list(ids), "text": False})
        return await cursor.fetchall()


async def send(conn: Connection, letter: Letter, *, again: bool) -> Sent | None:
    """Send a dead chunk anew, with the rest of its entry; None if it is not dead, or was replayed and not `again`.

    In a transaction of the caller's, who commits at once: the lane's row is locked until then.
    """
    async with conn.pipeline(), conn.cursor(row_factory=class_row(Sent)) as cursor:
        await conn.execute(LOCK, {"tenant_id": letter.tenant_id, "conversation_id": letter.conversation_id})
        await cursor.execute(SEND, {"tenant_id": letter.tenant_id, "id": letter.id, "again": again})
        return await cursor.fetchone()


async def answer(conn: Connection, letter: Letter, *, again: bool) -> Entered | None:
    """Enter the messages of a dead turn anew; None as for `send`, or if none of them is left. In a transaction, likewise."""
    async with conn.pipeline(), conn.cursor(row_factory=class_row(Entered)) as cursor:
        await conn.execute(LOCK, {"tenant_id": letter.tenant_id, "conversation_id": letter.conversation_id})
        await cursor.execute(ANSWER, {"tenant_id": letter.tenant_id, "id": letter.id, "again": again})
        return await cursor.fetchone()
