"""Everything that the checker judges by. The oracle is the recipient's side: what people wrote and what they got.

Of the service's own rows only what the provider cannot know is read (what was stored, what was given up), once at the
end. Nothing here decides anything.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import psycopg
from msgspec import Struct
from psycopg.rows import class_row

from app.sandbox.ledger import Delivery, Line
from tests.chaos.database import Outage
from tests.chaos.member import Life
from tests.chaos.proxied import Probe
from tests.chaos.workload import Planned


class Asked(Struct, frozen=True, kw_only=True, gc=False):
    """A call of the assistant: the tokens it was asked about, in their order, and all canaries anywhere in it.

    It said `said` characters of the answer, behind those `before` that it was shown.
    """

    t: float
    tokens: tuple[str, ...]
    outcome: str
    before: int = 0
    said: int = 0
    input_tokens: int
    output_tokens: int
    canaries: tuple[str, ...]


class Fault(Struct, frozen=True, kw_only=True):
    """What was done to whom, from when to when, in unix seconds."""

    kind: str
    target: str
    began: float
    ended: float

    def overlaps(self, began: float, ended: float) -> bool:
        return self.began <= ended and began <= self.ended


class Message(Struct, frozen=True, kw_only=True, gc=False):
    """A stored item. `seq` is its entry's; None: nobody is to answer it."""

    tenant: str
    provider_id: str
    direction: str
    kind: str
    conversation: str
    stored: float
    seq: int | None


class Turn(Struct, frozen=True, kw_only=True, gc=False):
    """A turn, the statement that made it having begun in unix seconds, and its usage; `outcome` None: not settled."""

    tenant: str
    id: str
    conversation: str
    began: float
    first_seq: int
    last_seq: int
    outcome: str | None
    messages: int
    chunks: int
    input_tokens: int
    output_tokens: int


class Memo(Struct, frozen=True, kw_only=True, gc=False):
    """The answer of a turn was remembered at this version; the transaction that did so began `at`."""

    tenant: str
    turn: str
    version: int
    at: float


class Chunk(Struct, frozen=True, kw_only=True, gc=False):
    tenant: str
    id: str
    conversation: str
    turn: str | None
    seq: int
    no: int
    state: str
    reason: str | None


class Attempt(Struct, frozen=True, kw_only=True, gc=False):
    """`began`, `ended` and `heard` (its first status) in unix seconds."""

    tenant: str
    chunk: str
    conversation: str
    n: int
    token: int
    state: str
    code: int | None
    reason: str | None
    began: float
    ended: float | None
    heard: float | None


class Stale(Struct, frozen=True, kw_only=True, gc=False):
    """An intent that was taken under another token than its lane's (tests/chaos/witness.py)."""

    chunk: str
    n: int
    token: int
    lane_token: int
    owned: bool
    at: float


class Lane(Struct, frozen=True, kw_only=True, gc=False):
    tenant: str
    conversation: str
    person: str
    head_seq: int
    done_seq: int
    owner: str | None
    run_in: float | None
    token: int
    attempts: int


class Memory(Struct, frozen=True, kw_only=True):
    """A process's resident memory. `when`: after a tenth of the load, or after the drain."""

    name: str
    when: Literal["tenth", "drained"]
    bytes: int


class Logged(Struct, frozen=True, kw_only=True):
    """A line of a process's log that somebody should read."""

    process: str
    why: Literal["error", "canary", "never retrieved"]
    text: str


class Broken(Struct, frozen=True, kw_only=True):
    """Something that the fleet or the monkey saw to be wrong: a roll of over 30 s, a crash point never reached."""

    what: str
    target: str


class Change(Struct, frozen=True, kw_only=True, gc=False):
    """A process's breaker of the database was in this state from then on, as its log says."""

    process: str
    at: float
    state: str


class Kept(Struct, frozen=True, kw_only=True, gc=False):
    """So many bytes lay in the spool from then on, by the file system's word."""

    at: float
    bytes: int


class Evidence(Struct, frozen=True, kw_only=True):
    """One run's. Times are unix seconds of this machine. `webs` are the names of the processes behind each URL.

    `spooling` is the one that has a spool: its 200 to a status may mean that the database hears of it later.
    """

    run: str
    policy: str
    seed: int
    planned: Sequence[Planned] = ()
    deliveries: Sequence[Delivery] = ()
    sends: Sequence[Line] = ()
    asked: Sequence[Asked] = ()
    faults: Sequence[Fault] = ()
    messages: Sequence[Message] = ()
    quarantined: Sequence[str] = ()
    turns: Sequence[Turn] = ()
    memos: Sequence[Memo] = ()
    chunks: Sequence[Chunk] = ()
    attempts: Sequence[Attempt] = ()
    lanes: Sequence[Lane] = ()
    stale: Sequence[Stale] = ()
    memory: Sequence[Memory] = ()
    logged: Sequence[Logged] = ()
    broken: Sequence[Broken] = ()
    outages: Sequence[Outage] = ()
    lives: Sequence[Life] = ()
    breakers: Sequence[Change] = ()
    probes: Sequence[Probe] = ()
    spool: Sequence[Kept] = ()
    webs: dict[str, str] = {}
    spooling: str | None = None
    stopped: tuple[float, float] | None = None
    drained_in: float | None = None


class _BreakerLine(Struct):
    timestamp: datetime
    breaker: str
    state: str


_MESSAGES = """
SELECT t.slug AS tenant, m.provider_id, m.direction, m.kind, m.conversation_id::text AS conversation,
       extract(epoch FROM m.stored_at)::float8 AS stored, o.seq
FROM messages m JOIN tenants t ON t.id = m.tenant_id
LEFT JOIN outbox o ON (o.tenant_id, o.message_id) = (m.tenant_id, m.id)
WHERE m.direction <> 'out'
"""
_TURNS = """
SELECT t.slug AS tenant, r.id::text, r.conversation_id::text AS conversation,
       extract(epoch FROM r.begun_at)::float8 AS began, r.first_seq, r.last_seq, u.outcome,
       coalesce(u.messages, 0) AS messages, coalesce(u.chunks, 0) AS chunks,
       coalesce(u.input_tokens, 0) AS input_tokens, coalesce(u.output_tokens, 0) AS output_tokens
FROM turns r JOIN tenants t ON t.id = r.tenant_id LEFT JOIN usage u ON (u.tenant_id, u.turn_id) = (r.tenant_id, r.id)
"""
_MEMOS = """
SELECT t.slug AS tenant, s.turn_id::text AS turn, s.version, extract(epoch FROM s.at)::float8 AS at
FROM steps s JOIN tenants t ON t.id = s.tenant_id
WHERE s.step = 'answer'
"""
_CHUNKS = """
SELECT t.slug AS tenant, c.id::text, c.conversation_id::text AS conversation, c.turn_id::text AS turn, c.seq, c.no, c.state,
       c.reason
FROM chunks c JOIN tenants t ON t.id = c.tenant_id
"""
_ATTEMPTS = """
SELECT t.slug AS tenant, a.chunk_id::text AS chunk, c.conversation_id::text AS conversation, a.n, a.token, a.state, a.code,
       a.reason, extract(epoch FROM a.begun_at)::float8 AS began, extract(epoch FROM a.ended_at)::float8 AS ended,
       extract(epoch FROM a.heard_at)::float8 AS heard
FROM attempts a JOIN chunks c ON (c.tenant_id, c.id) = (a.tenant_id, a.chunk_id) JOIN tenants t ON t.id = a.tenant_id
"""
_LANES = """
SELECT t.slug AS tenant, l.conversation_id::text AS conversation,
       (SELECT min(i.value) FROM identities i JOIN conversations c ON (c.tenant_id, c.contact_id) = (i.tenant_id, i.contact_id)
        WHERE (c.tenant_id, c.id) = (l.tenant_id, l.conversation_id)) AS person,
       l.head_seq, l.done_seq, l.owner::text, extract(epoch FROM l.run_at - now())::float8 AS run_in, l.token, l.attempts
FROM lanes l JOIN tenants t ON t.id = l.tenant_id
"""
_STALE = """
SELECT chunk::text, n, token, lane_token, owned, extract(epoch FROM at)::float8 AS at FROM rig_stale
"""
_QUARANTINED = "SELECT convert_from(raw, 'UTF8') FROM quarantine"
# Behind: lanes with something to do, and chunks that are neither done nor given up.
_BEHIND = """
SELECT (SELECT count(*) FROM lanes WHERE done_seq < head_seq),
       (SELECT count(*) FROM chunks WHERE state IN ('ready', 'sending', 'in_doubt')),
       (SELECT count(*) FROM chunks WHERE state = 'in_doubt')
"""


async def rows(url: str) -> dict[str, Any]:
    """The service's rows, as fields of an Evidence. Raises psycopg.OperationalError."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        found: dict[str, Any] = {}
        tables: tuple[tuple[str, str, type[Any]], ...] = (
            ("messages", _MESSAGES, Message),
            ("turns", _TURNS, Turn),
            ("memos", _MEMOS, Memo),
            ("chunks", _CHUNKS, Chunk),
            ("attempts", _ATTEMPTS, Attempt),
            ("lanes", _LANES, Lane),
            ("stale", _STALE, Stale),
        )
        for name, sql, row in tables:
            async with conn.cursor(row_factory=class_row(row)) as cursor:
                found[name] = await (await cursor.execute(sql.encode())).fetchall()
        found["quarantined"] = [raw for (raw,) in await (await conn.execute(_QUARANTINED.encode())).fetchall()]
        return found


async def behind(url: str, patience: float = 2.0) -> tuple[int, int, int] | None:
    """Lanes behind, chunks open, chunks in doubt; None: the database does not answer now."""
    try:
        async with asyncio.timeout(patience), await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
            row = await (await conn.execute(_BEHIND.encode())).fetchone()
            assert row is not None
            return row[0], row[1], row[2]
    except (psycopg.Error, TimeoutError, OSError):
        return None


def logged(folder: Path, canary: re.Pattern[str], *, most: int = 200) -> list[Logged]:
    """What the logs of all processes say that should be read; at most so many lines of each reason."""
    reasons: tuple[tuple[Literal["error", "canary", "never retrieved"], Callable[[str], bool]], ...] = (
        ("never retrieved", lambda line: "never retrieved" in line),
        ("canary", lambda line: canary.search(line) is not None),
        ("error", lambda line: '"level":"error"' in line or '"level": "error"' in line),
    )
    found: list[Logged] = []
    counts = dict.fromkeys((why for why, _ in reasons), 0)
    for log in sorted(folder.glob("*.log")):
        with log.open(errors="replace") as lines:
            for line in lines:
                for why, says in reasons:
                    if counts[why] < most and says(line):
                        counts[why] += 1
                        found.append(Logged(process=log.stem, why=why, text=line.strip()[:1000]))
    return found


def breakers(folder: Path) -> list[Change]:
    """Each change of a database's breaker in the logs of all processes, in time's order for each."""
    found: list[Change] = []
    for log in sorted(folder.glob("*.log")):
        with log.open(errors="replace") as lines:
            for line in lines:
                if '"breaker changed"' in line:
                    with suppress(msgspec.DecodeError):  # its writer was killed in mid-line
                        told = msgspec.json.decode(line, type=_BreakerLine)
                        if told.breaker == "database":
                            found.append(Change(process=log.stem, at=told.timestamp.timestamp(), state=told.state))
    return found
