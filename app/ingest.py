"""From the items of a webhook to committed rows: places each item, writes them in batches, and says when all are safe.

Returns only after the commit; what it cannot place goes to quarantine, never nowhere.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import structlog
from msgspec import Struct
from psycopg.errors import DeadlockDetected

from app import db, metrics, tasks
from app.alerts import alert
from app.aside import NO_CHANNEL, Aside, refused, set_aside, stray
from app.batches import Batches
from app.crashpoints import crashpoint
from app.db import Connection, Pool
from app.directory import Channel, Directory, Endpoint
from app.errors import DatabaseUnavailable, Overloaded
from app.messages import Identity, Item, Message, Status, Stray
from app.statuses import Statuses
from app.store import inbox, people
from app.wake import Bell

log = structlog.get_logger(__name__)

# A lane that is held at this instant: its items join a flush this much later, doubling up to the second figure (seconds).
LATER, LATER_AT_MOST = 0.005, 0.1
# Items in hand: taken in, and not committed yet, wherever they wait. With so many, a webhook is refused; one of statuses
# alone with half as many, since a message is worth more and a status comes again as well. Beyond a few thousand nothing
# would be committed before its deadline anyway.
MOST_IN_HAND = 10_000
# So many items of one webhook are begun with before others have their turn.
AT_ONCE = 200
# How many conversations a process remembers: about 100 bytes each.
MOST_KNOWN = 500_000


class _Arrival(Struct, frozen=True):
    """A message and the channel that it came to, or an item for quarantine."""

    endpoint: Endpoint
    item: Message | Stray
    correlation: str
    arrived: float
    digest_key: bytes
    channel: Channel | None = None

    @property
    def person(self) -> tuple[UUID, tuple[Identity, ...]] | None:
        """What its conversation is remembered by."""
        return (self.channel.id, self.item.identities) if self.channel and isinstance(self.item, Message) else None


class Ingest:
    """The only way in for what providers say: `take` for each authentic webhook."""

    def __init__(
        self, pool: Pool, statuses: Statuses, bell: Bell, *, patience: float, late: Callable[[], None] = lambda: None
    ) -> None:
        """`patience`: seconds after which a flush is left behind; `late` is told of it, and after half of that."""
        self._pool = pool
        self._statuses = statuses
        self._bell = bell
        self._in_hand = 0
        self._known: dict[tuple[UUID, tuple[Identity, ...]], UUID] = {}
        self._batches: Batches[_Arrival, inbox.Outcome] = Batches(
            "ingest", self._write, refuse=self._refuse, weigh=lambda a: len(a.item.raw), patience=patience, late=late
        )

    async def take(
        self, directory: Directory, endpoint: Endpoint, items: Sequence[Item], correlation: str, arrived: float
    ) -> None:
        """Return once every item is stored, applied or quarantined, and committed.

        `arrived`: `time.monotonic()` when the webhook came. Cancelling it (the door's deadline) waits for nothing.

        Raises:
            Overloaded: too many are in hand already; none of these was written.
            DatabaseUnavailable: at least one item has no final verdict; the provider must send the webhook again.
        """
        most = MOST_IN_HAND // 2 if all(isinstance(item, Status) for item in items) else MOST_IN_HAND
        if self._in_hand >= most:  # whatever its own size: else a large one might never be taken
            raise Overloaded(f"{self._in_hand} items are in hand already")
        self._in_hand += len(items)
        try:
            if len(items) == 1:
                await self.take_one(directory, endpoint, items[0], correlation, arrived)
            else:
                await self._take_each(directory, endpoint, items, correlation, arrived)
        finally:
            self._in_hand -= len(items)

    async def _take_each(
        self, directory: Directory, endpoint: Endpoint, items: Sequence[Item], correlation: str, arrived: float
    ) -> None:
        begun: list[asyncio.Task[inbox.Verdict]] = []
        try:
            for n, item in enumerate(items, 1):
                begun.append(asyncio.create_task(self.take_one(directory, endpoint, item, correlation, arrived)))
                if n % AT_ONCE == 0:
                    await asyncio.sleep(0)
            ends = await asyncio.gather(*begun, return_exceptions=True)
        except asyncio.CancelledError:
            await tasks.end(*begun)
            raise
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def take_one(
        self, directory: Directory, endpoint: Endpoint, item: Item, correlation: str, arrived: float
    ) -> inbox.Verdict:
        """The same for one item: its final verdict (a status that is kept is 'stored', applied or not)."""
        channel = None
        if not isinstance(item, Stray):
            channel = directory.channel_at(endpoint.id, item.address)
            if channel is None:
                item = self._unplaced(directory, endpoint, item)
            elif isinstance(item, Status):
                await self._statuses.submit(endpoint, channel, item, correlation)
                return "stored"
        arrival = _Arrival(endpoint, item, correlation, arrived, directory.digest_key, channel)
        wait = LATER
        while True:
            verdict = (await self._batches.submit(arrival)).verdict
            metrics.item(verdict)
            if verdict == "later":
                await asyncio.sleep(wait)
                wait = min(2 * wait, LATER_AT_MOST)
            elif verdict == "gone" and arrival.person:
                self._known.pop(arrival.person, None)
            else:
                return verdict

    async def drain(self) -> None:
        """Return once nothing waits any more."""
        await self._batches.drain()

    def _unplaced(self, directory: Directory, endpoint: Endpoint, item: Message | Status) -> Stray:
        if directory.channels_elsewhere(item.address):
            # Whoever holds this endpoint's secret speaks for a channel of another: a mistake in the configuration,
            # or somebody who tries it on.
            alert(log.error, "foreign_channel", "item for a channel of another endpoint", endpoint=endpoint.slug)
        else:
            log.warning("item for an address that no channel has", endpoint=endpoint.slug)
        return stray(item, NO_CHANNEL)

    async def _write(self, rows: Sequence[_Arrival]) -> list[inbox.Outcome]:
        try:
            async with db.connection(self._pool) as conn:
                return await self._write_on(conn, rows)
        except DeadlockDetected:  # two processes met the same strangers in another order; one of them was let through
            async with db.connection(self._pool) as conn:
                return await self._write_on(conn, rows)

    async def _write_on(self, conn: Connection, rows: Sequence[_Arrival]) -> list[inbox.Outcome]:
        began = time.monotonic()
        strays = [Aside(row.endpoint, row.item, row.correlation) for row in rows if isinstance(row.item, Stray)]
        messages = [row for row in rows if row.channel is not None]
        await self._meet(conn, messages)
        placed = [self._placed(row, began) for row in messages]
        crashpoint("ingest.writing")
        outcomes = await inbox.ingest(conn, placed) if placed else []
        crashpoint("ingest.committed")
        if woke := {(p.tenant_id, p.conversation_id) for p, o in zip(placed, outcomes, strict=True) if o.woke}:
            self._bell.ring(woke)
        # Last: a batch that is refused for a message is halved and written again, and each writing of a stray counts.
        if strays:
            await set_aside(conn, strays)
        if not strays:
            return outcomes
        each = iter(outcomes)
        return [inbox.Outcome("quarantined", False) if row.channel is None else next(each) for row in rows]

    async def _meet(self, conn: Connection, rows: Sequence[_Arrival]) -> None:
        """Make sure that the conversation of each row is known."""
        for _ in range(5):
            strangers: dict[tuple[UUID, tuple[Identity, ...]], people.Stranger] = {}
            for row in rows:
                assert row.channel and isinstance(row.item, Message) and row.person
                if row.person not in self._known:
                    strangers.setdefault(
                        row.person,
                        people.Stranger(row.channel.tenant_id, row.channel.id, row.item.identities, row.item.name),
                    )
            if not strangers:
                return
            if len(self._known) > MOST_KNOWN:
                self._known.clear()
            met = await people.meet(conn, list(strangers.values()))
            for person, conversation in zip(strangers, met, strict=True):
                if conversation is not None:
                    self._known[person] = conversation
        raise DatabaseUnavailable("a conversation could not be made: another process keeps winning the race for it")

    def _placed(self, row: _Arrival, now: float) -> inbox.Placed:
        assert row.channel and isinstance(row.item, Message) and row.person
        return inbox.Placed(
            tenant_id=row.channel.tenant_id,
            channel_id=row.channel.id,
            conversation_id=self._known[row.person],
            digest=digest(row.digest_key, row.item.provider_id),
            refers_to=digest(row.digest_key, row.item.refers_to) if row.item.refers_to else None,
            message=row.item,
            correlation=row.correlation,
            ack_ms=(now - row.arrived) * 1000,
        )

    async def _refuse(self, row: _Arrival, error: Exception) -> inbox.Outcome:
        """PostgreSQL would not have this item, alone as it stands now: keep it raw."""
        async with db.connection(self._pool) as conn:
            await set_aside(conn, [Aside(row.endpoint, refused(row.item, error), row.correlation)])
        return inbox.Outcome("quarantined", False)


def digest(key: bytes, provider_id: str) -> bytes:
    """What `seen` remembers of a provider's id: 16 bytes of an HMAC-SHA256, whatever the id's length."""
    return hmac.digest(key, provider_id.encode(), hashlib.sha256)[:16]
