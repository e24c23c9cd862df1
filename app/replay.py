"""Replays dead letters: a chunk as a text of its own, a turn as a new question, a quarantined item as if it came now.

It only enters what is to be done; workers find it within a second. Nothing is changed of what was.
"""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import structlog
from msgspec import Struct

from app import db, directory, place
from app.aside import NO_CHANNEL
from app.channels import provider
from app.channels.cloud_quarantine import enveloped
from app.dead import DeadLetter, find
from app.directory import Channel, Directory
from app.errors import Unknown, Unreadable
from app.ingest import Ingest
from app.messages import Item, Message, Stray
from app.settings import Settings
from app.statuses import Statuses
from app.store import dead, quarantine
from app.store.dead import Letter
from app.store.quarantine import Held
from app.vault import Vault
from app.wake import Bell, Wakes, jobs_queue

log = structlog.get_logger(__name__)

DEAD = ("failed", "parked")
# How long one flush of a replayed item may take (seconds): nobody waits for an answer to it.
PATIENCE = 10.0
# A quarantined part of a webhook may hold several items: all of them must be in.
WORST_FIRST: tuple[quarantine.Outcome, ...] = ("quarantined", "stored", "duplicate")


class Replayed(Struct, frozen=True):
    """What became of one letter: whether it is done with, and how, in words for a person."""

    done: bool
    words: str


def refusal(letter: DeadLetter, *, again: bool) -> str | None:
    """Why this is not to be replayed, in words; None: nothing speaks against it."""
    if isinstance(letter.row, Held):
        if letter.row.verdict in ("stored", "duplicate") and not again:
            return "already replayed: what it held is stored"
        return None
    if letter.row.state not in DEAD:
        return f"a {letter.kind} that is {letter.row.state}: no dead letter"
    if letter.row.replayed_as and not again:
        return f"already replayed as {letter.row.replayed_as}"
    if not letter.row.enabled:
        return "its tenant or channel is disabled: nothing would be sent"
    if letter.kind == "turn" and letter.row.paused:
        return "its conversation is left to a person for now: nobody would be answered"
    if letter.kind == "turn" and letter.row.stopped:
        return "its person wants no answers since they wrote a stop word: they would not be answered"
    if letter.row.late_after is not None:
        return (
            f"its messages are older than the channel's answer_within_hours ({letter.row.late_after:g}), so nobody would "
            'be answered: raise that, or set late = "answer", and apply'
        )
    return None


class Replays:
    """`replay` letters. An async context manager; what quarantine needs is opened with the first item of it."""

    def __init__(self, pool: db.Pool, url: str, settings: Settings) -> None:
        """`pool` is open and of the role qasid_app."""
        self._pool = pool
        self._url = url
        self._settings = settings
        self._stack = AsyncExitStack()
        self._door: tuple[db.Pool, Ingest, Directory] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def replay(self, letter: DeadLetter, *, again: bool = False) -> Replayed:
        """Replay it, and commit; what cannot be stays as it is.

        Raises:
            DatabaseUnavailable, psycopg.OperationalError: it may or may not have been; asked again, it is refused if so.
        """
        if (why := refusal(letter, again=again)) is not None:
            return Replayed(False, f"stays: {why}")
        if isinstance(letter.row, Held):
            return await self._item(letter, letter.row)
        words = await (self._chunk if letter.kind == "chunk" else self._turn)(letter, letter.row, again)
        if words is not None:
            return Replayed(True, words)
        # It is another than when it was found: a status has come, or it went along with a part before it.
        [now] = await find(self._pool, [letter.id])
        assert isinstance(now.row, Letter)
        if now.row.replayed_as or now.row.state not in DEAD:
            return Replayed(True, refusal(now, again=False) or "")
        return Replayed(False, "stays: none of its messages is left")

    async def _chunk(self, letter: DeadLetter, row: Letter, again: bool) -> str | None:
        async with db.acting(self._pool, tenant=row.tenant_id) as conn:
            sent = await dead.send(conn, row, again=again)
        if sent is None:
            return None
        log.info(
            "chunk replayed",
            tenant=letter.tenant,
            conversation=row.conversation_id,
            chunk=row.id,
            seq=sent.seq,
            chunks=len(sent.chunks),
        )
        words = f"as chunk {sent.chunks[0]}"
        if more := len(sent.chunks) - 1:
            words += f", with {more} more of its answer"
        return words + ("; it may have arrived before" if row.doubtful else "")

    async def _turn(self, letter: DeadLetter, row: Letter, again: bool) -> str | None:
        async with db.acting(self._pool, tenant=row.tenant_id) as conn:
            entered = await dead.answer(conn, row, again=again)
        if entered is None:
            return None
        messages = entered.last_seq - entered.first_seq + 1
        log.info(
            "turn replayed",
            tenant=letter.tenant,
            conversation=row.conversation_id,
            turn=row.id,
            seq=entered.first_seq,
            messages=messages,
        )
        return f"as entry {entered.first_seq}" + (f" to {entered.last_seq}" if messages > 1 else "")

    # --- quarantine ---

    async def _item(self, letter: DeadLetter, row: Held) -> Replayed:
        if self._door is None:
            self._door = await self._stack.enter_async_context(a_door(self._url, self._settings))
        pool, ingest, known = self._door
        endpoint = known.endpoint(row.endpoint)
        assert endpoint is not None, "endpoints are never deleted"
        async with db.connection(pool) as conn:
            raw = await quarantine.raw(conn, row.id)
        stays: list[str] = []
        late: list[str] = []
        verdicts: set[str] = set()
        try:
            items = provider(endpoint.kind).decode(enveloped(raw, row.part, row.address))
        except (Unreadable, Unknown) as error:
            items = []
            stays.append(str(error))
        for item in items:
            channel = None if isinstance(item, Stray) else known.channel_at(endpoint.id, item.address)
            if channel is None:
                stays.append(item.reason if isinstance(item, Stray) else NO_CHANNEL)
                verdicts.add("quarantined")
                continue
            verdicts.add(await ingest.take_one(known, endpoint, item, row.id.hex, time.monotonic()))
            late += _late(item, channel)
        verdict = next((word for word in WORST_FIRST if word in verdicts), WORST_FIRST[0])
        async with db.connection(pool) as conn:
            verdict = await quarantine.mark(conn, row, verdict)
        log.info("quarantine replayed", endpoint=endpoint.slug, correlation=row.id.hex, verdict=verdict)
        if verdict == "quarantined":
            return Replayed(False, "stays: " + "; ".join(dict.fromkeys(stays or ["the database refuses it"])))
        words = "stored" if verdict == "stored" else "a duplicate of what is stored"
        return Replayed(True, "; ".join([words, *dict.fromkeys(late)]))


@asynccontextmanager
async def a_door(url: str, settings: Settings) -> AsyncIterator[tuple[db.Pool, Ingest, Directory]]:
    """The ordinary ingest without a web process, for what is brought in by hand."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(db.pool(url, "qasid_courier", name="replay", max_size=2))
        async with db.connection(pool) as conn:
            known = await directory.read(conn, Vault(place.secret_keys(settings)))
        queue: Wakes = jobs_queue(url, max_size=1)
        stack.push_async_callback(queue.pool.close)
        stack.push_async_callback(queue.disconnect)
        bell = await stack.enter_async_context(Bell(queue))
        statuses = Statuses(pool, bell, patience=PATIENCE)
        ingest = Ingest(pool, statuses, bell, patience=PATIENCE)
        stack.push_async_callback(statuses.drain)
        stack.push_async_callback(ingest.drain)
        yield pool, ingest, known


def _late(item: Item, channel: Channel) -> list[str]:
    """What to know of a message that nobody will be answered for, since its own time counts, not the replay's."""
    limit = timedelta(hours=channel.answer_within_hours)
    if not isinstance(item, Message) or not item.answered or channel.late in ("answer", "apologise"):
        return []
    if datetime.now(UTC) - item.sent_at <= limit:
        return []
    return [f"not answered, since it is older than the channel's answer_within_hours ({channel.answer_within_hours:g})"]
