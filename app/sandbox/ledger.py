"""What every recipient got, and what else the service did to the simulated provider.

Append-only: an entry never changes; that its answer went out later is a fact of its own. It decides nothing.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator

import msgspec

from app.sandbox.numbers import plain


class Arrival(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request to send that reached the provider, taken or not.

    `t` is unix time in seconds; `attempt` counts from 0 how often this chunk was tried before (by the key's part
    before its last colon, else by text); `outcome` is the fault's name, "ok", or Graph's error code. `retry_after`
    is the seconds that the answer asked the number to wait.
    """

    seq: int
    t: float
    phone_number_id: str
    recipient: str
    provider_id: str
    key: str | None
    text: str
    preview_url: bool
    context: str | None
    accepted: bool
    outcome: str
    attempt: int
    retry_after: int | None = None


class Line(Arrival, frozen=True, kw_only=True, gc=False):
    """An arrival as it stands now.

    `responded` says that the whole answer was handed to the socket, `silent` that it was accepted and no status of it
    will ever come.
    """

    responded: bool
    silent: bool


class Read(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A read receipt for an inbound message, with or without the typing indicator."""

    t: float
    phone_number_id: str
    message_id: str
    typing: bool


class Delivery(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One POST of a webhook: `tries` counts from 1; `status` None means that no answer came, `error` says why."""

    t: float
    kind: str
    url: str
    ids: tuple[str, ...]
    tries: int
    status: int | None
    ack_ms: float
    error: str | None = None


class Tally:
    """Counts by key, and lets a test wait for one to be reached without looking again and again."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, int] = defaultdict(int)
        self._waiting: dict[Hashable, list[tuple[int, asyncio.Future[None]]]] = {}

    def count(self, key: Hashable) -> int:
        return self._counts.get(key, 0)

    def add(self, key: Hashable) -> int:
        self._counts[key] = count = self._counts[key] + 1
        if key in self._waiting:
            for wanted, future in self._waiting[key]:
                if wanted <= count and not future.done():
                    future.set_result(None)
        return count

    def clear(self) -> None:
        """Count from nothing; who waits goes on waiting."""
        self._counts.clear()

    async def reach(self, key: Hashable, count: int, timeout: float) -> bool:
        """True as soon as `key` was counted `count` times; False after `timeout` seconds."""
        if self.count(key) >= count:
            return True
        waiter = (count, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(key, []).append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter[1]
        except TimeoutError:
            return False
        finally:
            self._waiting[key].remove(waiter)
            if not self._waiting[key]:
                del self._waiting[key]
        return True


class Ledger:
    """The provider's memory. The recipient's view is `lines(recipient=…, accepted=True)`."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.clear()

    def clear(self) -> None:
        self.arrivals: list[Arrival] = []
        self.reads: list[Read] = []
        self.deliveries: deque[Delivery] = deque(maxlen=500_000)
        self._answered: set[int] = set()
        self._silent: set[int] = set()
        self._inbound: dict[str, set[str]] = defaultdict(set)
        self.tally.clear()

    def add(self, arrival: Arrival) -> Arrival:
        self.arrivals.append(arrival)
        if arrival.accepted:
            self.tally.add(arrival.recipient)
            self.tally.add((arrival.phone_number_id, arrival.recipient))
        return arrival

    def answered(self, arrival: Arrival) -> None:
        """The answer to this request was handed to the socket."""
        self._answered.add(arrival.seq)

    def silenced(self, arrival: Arrival) -> None:
        """No status of this message will ever come."""
        self._silent.add(arrival.seq)

    def read(self, read: Read) -> None:
        self.reads.append(read)
        self.tally.add(("read", read.phone_number_id))

    def said(self, phone_number_id: str, message_id: str) -> None:
        """A person's message with this id was sent to this number: it may be marked as read."""
        self._inbound[message_id].add(phone_number_id)

    def knows(self, phone_number_id: str, message_id: str) -> bool:
        return phone_number_id in self._inbound.get(message_id, ())

    def lines(
        self, *, recipient: str | None = None, phone_number_id: str | None = None, accepted: bool | None = None
    ) -> list[Line]:
        """Arrivals in order, narrowed by what is given."""
        return list(self._lines(recipient and plain(recipient), phone_number_id, accepted))

    def _lines(self, recipient: str | None, phone_number_id: str | None, accepted: bool | None) -> Iterator[Line]:
        for arrival in self.arrivals:
            if recipient is not None and arrival.recipient != recipient:
                continue
            if phone_number_id is not None and arrival.phone_number_id != phone_number_id:
                continue
            if accepted is not None and arrival.accepted != accepted:
                continue
            yield Line(
                **msgspec.structs.asdict(arrival),
                responded=arrival.seq in self._answered,
                silent=arrival.seq in self._silent,
            )

    async def wait(
        self, recipient: str, count: int, timeout: float = 10.0, *, phone_number_id: str | None = None
    ) -> list[Line]:
        """What the recipient got, as soon as it is `count` messages or after `timeout` seconds, whichever is first."""
        person = plain(recipient)
        await self.tally.reach((phone_number_id, person) if phone_number_id else person, count, timeout)
        return self.lines(recipient=person, phone_number_id=phone_number_id, accepted=True)
