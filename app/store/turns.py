"""turns: what a claimed lane has to do. Its next turn is begun, or the one that was begun is found, with all that a worker needs.

One statement takes many lanes at once: under load one round trip carries the work of all lanes that need it at that instant.
Finished steps are remembered by steps.py, answers settled by settlements.py.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from msgspec import Struct

from app.db import Connection
from app.messages import Identity
from app.store.histories import EDITED, SAID, Said
from app.store.lanes import Claim
from app.store.steps import ANY_VERSION


class Chunk(Struct, frozen=True, kw_only=True):
    """A chunk that is not done, or the last one that is. Times are seconds, by the database's clock."""

    id: UUID
    seq: int
    no: int
    body: str
    state: str
    attempt: int
    due_in: float
    """Until it may be sent (0: now)."""
    opens_in: float
    """Until its gate opens by time alone (0: it is open)."""
    refusals: int
    """How many of its attempts were refused as "not now"."""
    holds: int
    """How many of its attempts were refused until a person mends something."""
    again: bool
    """Its last attempt was refused: the next is a retry in the eyes of the provider, which one that never left is not."""
    doubts: int
    """How many of its attempts ended in doubt."""
    doubt_for: float
    """How long it has been in doubt."""
    quiet_for: float
    """How long statuses of it have been able to come since then, and none came; 0 while a door is missing."""
    flowing: bool
    """Silence means something: of what this endpoint's provider took last, nine in ten have been heard of in time, and
    something that was sent since it began has been heard of; or nobody else waits for that, or it has lasted five times as
    long as it must (docs/chunks.md)."""
    late: bool = False
    """It is parked since it could not be sent in time."""


class Turn(Struct, frozen=True, kw_only=True):
    """The membership: entries `first_seq` to `last_seq`. `settled`: its answer is committed."""

    id: UUID
    first_seq: int
    last_seq: int
    settled: bool


class Asked(Struct, frozen=True, kw_only=True):
    """A message of the turn, as it stands now: edited, or `revoked`. `waited`: seconds since it was stored.

    `blank`: it came without words, so it never stands in a history. `replayed`: it was entered anew, by a person.
    `provider_id`: "" where nobody knows it. `raw`, `edited`: of a kind that brings a file, the JSON of the message and of
    what it was edited into, as the provider sent them; `null` or nothing where there is none.
    """

    id: UUID
    kind: str
    body: str
    sent_at: datetime
    correlation: str
    ack_ms: float | None
    waited: float
    blank: bool
    replayed: bool
    revoked: bool
    provider_id: str = ""
    raw: msgspec.Raw = msgspec.Raw(b"")
    edited: msgspec.Raw = msgspec.Raw(b"")


class Opening(Struct, frozen=True, kw_only=True):
    """All that a worker needs of a lane that it has claimed."""

    version: int
    done_seq: int
    kind: Literal["answer", "send"] | None
    """Of the entry at the lane's head; None where there is none."""
    correlation: str
    """Of that entry's message."""
    paused: bool
    replied: int
    """Turns of this conversation that were answered within the last minute, as far as `brake` wants to know."""
    written: int = 0
    """Messages of this person, of other turns that began within the last day, as far as `daily` wants to know."""
    stopped: bool = False
    """The person wants no answers, until they write a start word. It counts while their tenant has one."""
    asking: str | None = None
    """The intent whose question waits for a yes or a no (`Intents.asked`)."""
    noticed_at: datetime | None = None
    """When they were last told that what they wrote came too late."""
    limited: bool = False
    """They were told within the last day that it is enough for a day."""
    session_at: datetime | None = None
    """When the session of `turn` began, as it was decided when the turn was made."""
    last: dict[str, Any] = {}
    """By what notes begin with, as was asked: what that assistant noted of the turn of this session that it answered last."""
    chunks: list[Chunk]
    """Those of the entry at the head, and the last one before them that a person may have got."""
    turn: Turn | None
    asked: list[Asked]
    said: list[Said]
    """Oldest first: by the order of storing, which is that of the ids."""
    memo: dict[str, Any]
    """Results of finished steps, by name: at this version, or kept for any."""
    to: list[Identity]
    now: datetime


# Members of one turn at most: a backlog after an outage becomes several answers, not one endless question.
MOST_MEMBERS = 100

OPEN = f"""
WITH input AS MATERIALIZED (
  SELECT * FROM unnest(%(tenant_id)b::uuid[], %(conversation_id)b::uuid[], %(history)b::integer[], %(brake)b::integer[],
                       %(daily)b::integer[], %(noted)b::json[])
         WITH ORDINALITY AS t(tenant_id, conversation_id, history, brake, daily, noted, ord)),
lane AS MATERIALIZED (
  SELECT i.ord, i.history, i.brake, i.daily, i.noted, l.*, c.endpoint_id, d.at AS disturbed_at, o.kind, o.replays, m.correlation,
         m.id AS message_id, m.sent_at, m.sent_at - c.session_gap_hours * interval '1 hour' AS silent_since
  FROM input i JOIN lanes l USING (tenant_id, conversation_id)
  JOIN channels c ON (c.tenant_id, c.id) = (l.tenant_id, l.channel_id)
  LEFT JOIN disturbances d USING (endpoint_id)
  LEFT JOIN outbox o ON (o.tenant_id, o.conversation_id, o.seq) = (l.tenant_id, l.conversation_id, l.done_seq + 1)
  LEFT JOIN messages m ON (m.tenant_id, m.id) = (o.tenant_id, o.message_id)),
-- Uncorrelated where it is used, so that it is hashed: a lane may have piled up tens of thousands while its number was held.
waiting AS MATERIALIZED (
  SELECT o.message_id
  FROM lane l JOIN outbox o ON (o.tenant_id, o.conversation_id) = (l.tenant_id, l.conversation_id) AND o.seq > l.done_seq
  WHERE l.history > 0 AND o.message_id IS NOT NULL),
-- A send that began under an older token than the lane's: whoever began it is gone, so it is in doubt.
doubted AS (
  UPDATE chunks c SET state = 'in_doubt', in_doubt_at = qasid_now()
  FROM lane l, attempts a
  WHERE (c.tenant_id, c.conversation_id) = (l.tenant_id, l.conversation_id) AND c.seq > l.done_seq AND c.state = 'sending'
    AND (a.tenant_id, a.chunk_id, a.n) = (c.tenant_id, c.id, c.attempt) AND a.token < l.token
  RETURNING c.tenant_id, c.id, c.attempt),
doubted_attempts AS (
  UPDATE attempts a SET state = 'in_doubt', reason = 'the worker that sent it is gone'
  FROM doubted d WHERE (a.tenant_id, a.chunk_id, a.n) = (d.tenant_id, d.id, d.attempt) AND a.state = 'sending'),
next AS MATERIALIZED (
  SELECT l.*, least(head_seq, done_seq + %(most_members)s,
                    (SELECT min(o.seq) - 1 FROM outbox o
                     WHERE (o.tenant_id, o.conversation_id) = (l.tenant_id, l.conversation_id) AND o.seq > l.done_seq
                       AND o.kind <> 'answer')) AS last_seq
  FROM lane l WHERE kind = 'answer'
    AND NOT EXISTS (SELECT FROM turns t
                    WHERE (t.tenant_id, t.conversation_id, t.first_seq) = (l.tenant_id, l.conversation_id, l.done_seq + 1))),
-- A session goes on where the newest of the messages before this turn's first is no further back than the channel's gap; what
-- is entered anew goes on with the one that there is. None begins later than now, whatever clock a provider has. The newest of
-- the last twenty, since what the provider brings a day late is stored behind what was said meanwhile.
begun AS (
  INSERT INTO turns (tenant_id, conversation_id, first_seq, last_seq, begun_at, session_at)
  SELECT n.tenant_id, n.conversation_id, n.done_seq + 1, n.last_seq, qasid_now(),
         CASE WHEN n.replays IS NOT NULL
                OR n.silent_since <= (SELECT max(before.sent_at)
                                      FROM (SELECT m.sent_at FROM messages m
                                            WHERE (m.tenant_id, m.conversation_id) = (n.tenant_id, n.conversation_id)
                                              AND m.id < n.message_id AND m.kind NOT IN ('reaction', 'system', 'edit', 'revoke')
                                            ORDER BY m.id DESC LIMIT 20) before)
              THEN coalesce((SELECT t.session_at FROM turns t
                             WHERE (t.tenant_id, t.conversation_id) = (n.tenant_id, n.conversation_id)
                               AND t.first_seq <= n.done_seq
                             ORDER BY t.first_seq DESC LIMIT 1), least(n.silent_since, qasid_now()))
              ELSE (SELECT least(min(m.sent_at), qasid_now())
                    FROM outbox o JOIN messages m ON (m.tenant_id, m.id) = (o.tenant_id, o.message_id)
                    WHERE (o.tenant_id, o.conversation_id) = (n.tenant_id, n.conversation_id)
                      AND o.seq BETWEEN n.done_seq + 1 AND n.last_seq) END
  FROM next n
  ON CONFLICT DO NOTHING RETURNING tenant_id, id, conversation_id, first_seq, last_seq, session_at),
-- Only looked at, once for each endpoint, where a chunk is in doubt.
flow AS MATERIALIZED (
  SELECT e.endpoint_id, (
    SELECT 10 * count(*) FILTER (WHERE heard_at IS NULL OR (heard_at - begun_at > half AND heard_at > qasid_now() - 2 * half))
           <= count(*)
    FROM (SELECT a.heard_at, a.begun_at, half FROM attempts a
          CROSS JOIN (SELECT %(silence)s / 2 * interval '1 second' AS half) AS echo
          WHERE a.endpoint_id = e.endpoint_id AND a.begun_at < qasid_now() - half
            AND a.state IN ('accepted', 'sent', 'delivered', 'read', 'played', 'failed')
          ORDER BY a.begun_at DESC LIMIT 20) AS last_taken) AS flowing
  FROM (SELECT DISTINCT endpoint_id FROM lane) e),
turn AS MATERIALIZED (
  SELECT * FROM begun
  UNION ALL
  SELECT t.tenant_id, t.id, t.conversation_id, t.first_seq, t.last_seq, t.session_at
  FROM lane l JOIN turns t ON (t.tenant_id, t.conversation_id, t.first_seq) = (l.tenant_id, l.conversation_id, l.done_seq + 1))
SELECT json_build_object(
  'version', l.version, 'done_seq', l.done_seq, 'kind', l.kind, 'correlation', coalesce(l.correlation, ''),
  'paused', coalesce(l.paused_until > qasid_now() AND l.done_seq >= coalesce(l.paused_after, 0), false), 'now', qasid_now(),
  'stopped', l.stopped_at IS NOT NULL,
  -- A notice may have been held for hours itself: it is for all that was written before it was sent.
  'noticed_at', greatest(l.noticed_at, (
     SELECT max(c.accepted_at) FILTER (WHERE c.state <> 'failed')
     FROM chunks c JOIN usage u ON (u.tenant_id, u.turn_id) = (c.tenant_id, c.turn_id)
     WHERE l.noticed_at IS NOT NULL AND (c.tenant_id, c.conversation_id, c.seq) = (l.tenant_id, l.conversation_id, l.done_seq)
     HAVING bool_or(u.outcome = 'late' OR c.reason = 'too late'))),
  -- A question waits no longer than its session lasts, and only where its person may have read it.
  'asking', CASE WHEN l.asking IS NOT NULL AND (
     SELECT p.session_at = t.session_at AND NOT EXISTS (
       SELECT FROM chunks c
       WHERE (c.tenant_id, c.conversation_id, c.seq) = (p.tenant_id, p.conversation_id, p.last_seq)
         AND c.state IN ('failed', 'parked', 'cancelled')
         AND NOT EXISTS (SELECT FROM chunks r WHERE (r.tenant_id, r.replays) = (c.tenant_id, c.id))
         AND NOT EXISTS (SELECT FROM attempts a
                         WHERE (a.tenant_id, a.chunk_id) = (c.tenant_id, c.id) AND a.state IN ('sending', 'in_doubt')))
     FROM turns p
     WHERE (p.tenant_id, p.conversation_id) = (t.tenant_id, t.conversation_id) AND p.first_seq < t.first_seq
     ORDER BY p.first_seq DESC LIMIT 1) THEN l.asking END,
  'limited', coalesce(l.limited_at > qasid_now() - interval '1 day', false),
  'session_at', coalesce(t.session_at, least(l.silent_since, qasid_now())),
  -- Of each, backwards to the first turn that tells: it is of another session, or that assistant has answered it.
  'last', coalesce((
     SELECT json_object_agg(n.begins, told.result)
     FROM json_array_elements_text(l.noted) AS n(begins)
     CROSS JOIN LATERAL (
       SELECT p.session_at, noted.result
       FROM turns p LEFT JOIN LATERAL (
         SELECT s.result FROM usage u JOIN steps s USING (tenant_id, turn_id)
         WHERE (u.tenant_id, u.turn_id) = (p.tenant_id, p.id) AND u.outcome = 'answered' AND starts_with(s.step, n.begins)
         ORDER BY s.at DESC LIMIT 1) noted ON true
       WHERE (p.tenant_id, p.conversation_id) = (t.tenant_id, t.conversation_id) AND p.first_seq < t.first_seq
         AND (p.session_at IS DISTINCT FROM t.session_at OR noted.result IS NOT NULL)
       ORDER BY p.first_seq DESC LIMIT 1) told
     WHERE told.session_at = t.session_at), '{{}}'),
  -- What was entered anew was counted when it came.
  'written', CASE WHEN l.daily > 0 THEN (
     SELECT coalesce(sum(w.messages), 0)
     FROM conversations x
     CROSS JOIN LATERAL (
       SELECT w.id, w.begun_at, own.messages
       FROM turns w CROSS JOIN LATERAL (
         SELECT count(*) AS messages FROM outbox o
         WHERE (o.tenant_id, o.conversation_id) = (w.tenant_id, w.conversation_id)
           AND o.seq BETWEEN w.first_seq AND w.last_seq AND o.replays IS NULL) own
       WHERE (w.tenant_id, w.conversation_id) = (x.tenant_id, x.id) AND own.messages > 0
       ORDER BY w.first_seq DESC LIMIT l.daily + 1) w
     WHERE x.tenant_id = l.tenant_id AND x.contact_id = (
       SELECT v.contact_id FROM conversations v WHERE (v.tenant_id, v.id) = (l.tenant_id, l.conversation_id))
       AND w.begun_at > qasid_now() - interval '1 day' AND w.id IS DISTINCT FROM t.id) ELSE 0 END,
  'replied', CASE WHEN l.brake > 0 THEN (
     SELECT count(*) FROM (
       SELECT tenant_id, id, begun_at FROM turns r
       WHERE (r.tenant_id, r.conversation_id) = (l.tenant_id, l.conversation_id)
       ORDER BY r.first_seq DESC LIMIT 10 * l.brake) r
     JOIN usage u ON (u.tenant_id, u.turn_id) = (r.tenant_id, r.id)
     WHERE r.begun_at > qasid_now() - interval '10 minutes' AND u.chunks > 0 AND u.at > qasid_now() - interval '1 minute')
     ELSE 0 END,
  'turn', CASE WHEN t.id IS NOT NULL THEN json_build_object(
     'id', t.id, 'first_seq', t.first_seq, 'last_seq', t.last_seq,
     'settled', EXISTS (SELECT FROM usage u WHERE (u.tenant_id, u.turn_id) = (t.tenant_id, t.id))) END,
  'to', (SELECT coalesce(json_agg(json_build_object('kind', i.kind, 'value', i.value) ORDER BY i.kind DESC), '[]')
         FROM conversations v JOIN identities i ON (i.tenant_id, i.contact_id) = (v.tenant_id, v.contact_id)
         WHERE (v.tenant_id, v.id) = (l.tenant_id, l.conversation_id)),
  'chunks', coalesce((
     SELECT json_agg(json_build_object(
       'id', c.id, 'seq', c.seq, 'no', c.no, 'body', c.body,
       'state', CASE WHEN c.state = 'sending' THEN 'in_doubt' ELSE c.state END,
       'attempt', c.attempt, 'late', c.state = 'parked' AND c.reason IS NOT DISTINCT FROM 'too late',
       'due_in', greatest(0, coalesce(extract(epoch FROM c.due_at - qasid_now()), 0)),
       'opens_in', CASE WHEN c.state IN ('accepted', 'sent')
                        THEN greatest(0, extract(epoch FROM c.accepted_at - qasid_now()) + %(order_wait)s) ELSE 0 END,
       'refusals', tries.refusals, 'holds', tries.holds, 'doubts', tries.doubts,
       'again', EXISTS (SELECT FROM attempts a
                        WHERE (a.tenant_id, a.chunk_id, a.n) = (c.tenant_id, c.id, c.attempt) AND a.state IN ('refused', 'held')),
       'doubt_for', coalesce(extract(epoch FROM qasid_now() - c.in_doubt_at), 0),
       'quiet_for', CASE WHEN c.state = 'in_doubt' THEN greatest(0, coalesce(extract(epoch FROM
                      (SELECT CASE WHEN bool_and(alive_until > qasid_now()) THEN min(beaten_at) END FROM doors)
                      - silence.since), 0)) ELSE 0 END,
       'flowing', c.state = 'in_doubt' AND (SELECT f.flowing FROM flow f WHERE f.endpoint_id = l.endpoint_id) AND (
          EXISTS (SELECT FROM attempts a
                  WHERE a.endpoint_id = l.endpoint_id AND a.begun_at > silence.since AND a.heard_at IS NOT NULL)
          OR silence.since < silence.long_ago
          OR NOT EXISTS (
            SELECT FROM (SELECT * FROM attempts a WHERE a.endpoint_id = l.endpoint_id ORDER BY a.begun_at DESC LIMIT 20) AS newest
            WHERE chunk_id <> c.id AND heard_at IS NULL AND state IN ('sending', 'in_doubt', 'accepted')
              AND begun_at > silence.long_ago))) ORDER BY c.seq, c.no)
     FROM (SELECT * FROM chunks c
           WHERE (c.tenant_id, c.conversation_id) = (l.tenant_id, l.conversation_id) AND c.seq > l.done_seq
             AND c.seq <= coalesce(t.last_seq, l.done_seq + 1)
           UNION ALL
           (SELECT * FROM chunks c
            WHERE (c.tenant_id, c.conversation_id) = (l.tenant_id, l.conversation_id) AND c.seq <= l.done_seq
              AND c.state NOT IN ('cancelled', 'parked', 'failed')
            ORDER BY c.seq DESC, c.no DESC LIMIT 1)) c
     CROSS JOIN LATERAL (
       SELECT greatest(c.in_doubt_at, c.missed_at, l.disturbed_at) AS since,
              qasid_now() - %(silence)s * 5 * interval '1 second' AS long_ago) silence
     CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE a.state = 'refused') AS refusals, count(*) FILTER (WHERE a.state = 'held') AS holds,
              count(*) FILTER (WHERE a.state IN ('sending', 'in_doubt')) AS doubts
       FROM attempts a WHERE (a.tenant_id, a.chunk_id) = (c.tenant_id, c.id)) tries), '[]'),
  'asked', coalesce((
     SELECT json_agg(json_build_object(
       'id', m.id, 'kind', m.kind, 'body', coalesce(edited.body, m.body), 'sent_at', m.sent_at,
       'correlation', m.correlation, 'ack_ms', m.ack_ms, 'waited', extract(epoch FROM qasid_now() - m.stored_at),
       'blank', m.body = '', 'replayed', o.replays IS NOT NULL,
       'revoked', coalesce(edited.kind = 'revoke', false), 'provider_id', coalesce(m.provider_id, ''),
       'raw', CASE WHEN m.kind IN ('image', 'audio', 'video', 'document', 'sticker') THEN m.raw END,
       'edited', CASE WHEN m.kind IN ('image', 'audio', 'video', 'document', 'sticker') AND edited.kind = 'edit'
                      THEN edited.raw END) ORDER BY m.sent_at, o.seq)
     FROM outbox o JOIN messages m ON (m.tenant_id, m.id) = (o.tenant_id, o.message_id)
     {EDITED}
     WHERE (o.tenant_id, o.conversation_id) = (t.tenant_id, t.conversation_id) AND o.seq BETWEEN t.first_seq AND t.last_seq), '[]'),
  'said', {SAID},
  'memo', coalesce((SELECT json_object_agg(s.step, s.result) FROM steps s
                    WHERE (s.tenant_id, s.turn_id) = (t.tenant_id, t.id)
                      AND s.version IN (l.version, %(any_version)s)), '{{}}'))::text
FROM input i
JOIN lane l USING (ord)
LEFT JOIN turn t ON (t.tenant_id, t.conversation_id) = (l.tenant_id, l.conversation_id)
ORDER BY ord
"""  # noqa: S608  the words are ours alone


class Open(Struct, frozen=True):
    """Asks for a claimed lane's opening, with the last `history` messages of before.

    `brake`: replies a minute, `daily`: messages a day, that matter (0: neither does). `noted`: what notes begin with of
    each assistant that goes on from what it noted last in the session.
    """

    claim: Claim
    history: int
    brake: int = 0
    daily: int = 0
    noted: tuple[str, ...] = ()


_opening = msgspec.json.Decoder(Opening)


async def open_lanes(conn: Connection, rows: Sequence[Open], order_wait: float, silence: float) -> list[str]:
    """Begin the next turn of each lane, or find the one that was begun, and load what it needs: see `opening`.

    `order_wait`, `silence`: seconds, of the gate's bounded wait and of silence about a chunk in doubt.
    """
    result = await conn.execute(
        OPEN,
        {
            "tenant_id": [r.claim.tenant_id for r in rows],
            "conversation_id": [r.claim.conversation_id for r in rows],
            "history": [r.history for r in rows],
            "brake": [r.brake for r in rows],
            "daily": [r.daily for r in rows],
            "noted": [msgspec.json.encode(r.noted).decode() for r in rows],
            "most_members": MOST_MEMBERS,
            "any_version": ANY_VERSION,
            "order_wait": order_wait,
            "silence": silence,
        },
    )
    return [text for (text,) in await result.fetchall()]


def opening(text: str) -> Opening:
    """What `open_lanes` brought for one lane.

    Raises:
        msgspec.DecodeError: it is not of this build's form; the other lanes of its batch are none the worse for it.
    """
    return _opening.decode(text)
