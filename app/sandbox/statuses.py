"""The ladder: sent, delivered, read, posted after a send was accepted, several to a webhook as Meta does.

One timer serves all messages; statuses that fall due within a tick share a POST. It never accepts or refuses a send.
"""

import asyncio
import heapq
import itertools
import math

import msgspec

from app.sandbox.faults import Fault, Faults
from app.sandbox.graph_errors import TITLES
from app.sandbox.ledger import Arrival
from app.sandbox.numbers import Number, now
from app.sandbox.webhooks import Courier, envelope, shipment

# Coarse enough that at 250 sends/s several statuses share a webhook; fine enough beside delays of 20 ms and more.
TICK = 0.01
BATCH = 100
IN_FLIGHT = 4
# A destination that just failed gets its next webhook later and fuller, or an outage would pile up tiny ones.
AFTER_FAILURE = 0.1


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One item of `value.statuses` (WIRE.md 1.1)."""

    id: str
    status: str
    timestamp: str
    recipient_id: str | None = None
    recipient_user_id: str | None = None
    biz_opaque_callback_data: str | None = None
    conversation: dict[str, object] | None = None
    pricing: dict[str, object] | None = None
    errors: list[dict[str, object]] | None = None


class _Destination:
    """What waits for one webhook URL and secret."""

    def __init__(self) -> None:
        self.pending: list[tuple[Number, Status]] = []
        self.in_flight = 0
        self.failed = False
        self.posted = 0
        self.paused: asyncio.TimerHandle | None = None


class Statuses:
    """Climbs each accepted message's ladder. Runs in one event loop."""

    def __init__(self, courier: Courier, faults: Faults) -> None:
        self._courier = courier
        self._faults = faults
        self._loop = asyncio.get_running_loop()
        self._order = itertools.count()
        self._due: list[tuple[float, int, Number, Arrival, str, int, int | None]] = []
        self._destinations: dict[tuple[str, str], _Destination] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._stopped_until = 0.0

    def follow(self, number: Number, arrival: Arrival, fault: Fault, *, version: int) -> bool:
        """Begin the ladder of a message just accepted; False: no status of it will ever come.

        `version` is the Graph API's, 23 for v23.0.
        """
        if fault.kind == "silent":
            return False
        ladder, wrong = number.ladder, self._faults.statuses
        # Named by the message, not by its random id: the same run goes wrong in the same places.
        name = (arrival.recipient, arrival.text, str(arrival.attempt))
        if wrong.drop and self._faults.unit("drop", *name) < wrong.drop:
            return False
        if fault.kind == "status_failed":
            self._push(ladder.sent or 0.0, number, arrival, "failed", version, fault.code or 131026)
            return True
        names = [
            step
            for step, delay in (("sent", ladder.sent), ("delivered", ladder.delivered), ("read", ladder.read))
            if delay is not None
        ]
        delays = [delay for delay in (ladder.sent, ladder.delivered, ladder.read) if delay is not None]
        if ladder.sigma:
            factor = math.exp(ladder.sigma * self._faults.normal("ladder", *name))
            delays = [delay * factor for delay in delays]
        if ladder.cut is not None:
            delays = [min(delay, ladder.cut) for delay in delays]
        if wrong.reorder and self._faults.unit("reorder", *name) < wrong.reorder:
            names.reverse()
        copies = 3 if wrong.triple and self._faults.unit("triple", *name) < wrong.triple else 1
        for step, delay in zip(names, delays, strict=True):
            for copy in range(copies):
                self._push(delay * (1 + copy / 2) + wrong.delay, number, arrival, step, version, None)
        return bool(names)

    def stop(self, seconds: float) -> None:
        """Hold every status back for `seconds` from now; then they all come. 0 ends a stop."""
        self._stopped_until = self._loop.time() + seconds
        self._arm()

    def clear(self) -> None:
        """Forget every status that has not been posted."""
        self._due.clear()
        self._stopped_until = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for destination in self._destinations.values():
            if destination.paused is not None:
                destination.paused.cancel()
        self._destinations.clear()

    @property
    def waiting(self) -> int:
        """Statuses not yet posted."""
        return len(self._due) + sum(len(each.pending) for each in self._destinations.values())

    def _push(self, delay: float, number: Number, arrival: Arrival, step: str, version: int, code: int | None) -> None:
        due = self._loop.time() + delay
        heapq.heappush(self._due, (due, next(self._order), number, arrival, step, version, code))
        if self._timer is None or max(due + TICK, self._stopped_until) < self._timer.when():
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due:
            at = max(self._due[0][0], self._loop.time() + TICK, self._stopped_until)
            self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        touched = {}
        moment, stamp = self._loop.time(), str(int(now()))
        while self._due and self._due[0][0] <= moment:
            _, _, number, arrival, step, version, code = heapq.heappop(self._due)
            key = (number.webhook_url, number.app_secret)
            destination = self._destinations.get(key)
            if destination is None:
                destination = self._destinations[key] = _Destination()
            destination.pending.append((number, _status(number, arrival, step, version, code, stamp)))
            touched[key] = destination
        for destination in touched.values():
            self._drain(destination)
        self._arm()

    def _drain(self, destination: _Destination) -> None:
        if destination.paused is not None:
            return
        if destination.failed:
            destination.failed = False
            destination.paused = self._loop.call_later(AFTER_FAILURE, self._resume, destination)
            return
        while destination.pending and destination.in_flight < IN_FLIGHT:
            batch, destination.pending = destination.pending[:BATCH], destination.pending[BATCH:]
            destination.in_flight += 1
            self._courier.spawn(self._post(destination, batch))

    def _resume(self, destination: _Destination) -> None:
        destination.paused = None
        self._drain(destination)

    async def _post(self, destination: _Destination, batch: list[tuple[Number, Status]]) -> None:
        by_number: dict[str, tuple[Number, list[Status]]] = {}
        for number, status in batch:
            by_number.setdefault(number.phone_number_id, (number, []))[1].append(status)
        body = envelope((number, "messages", {"statuses": statuses}) for number, statuses in by_number.values())
        urls = batch[0][0].status_urls or (batch[0][0].webhook_url,)
        turn = destination.posted % len(urls)
        destination.posted += 1
        parcel = shipment(
            batch[0][0],
            body,
            kind="statuses",
            ids=tuple(status.id for _, status in batch),
            url=urls[turn],
            others=urls[turn + 1 :] + urls[:turn],
        )
        try:
            delivery = await self._courier.first_try(parcel)
            destination.failed = delivery.status != 200
        finally:
            destination.in_flight -= 1
        self._drain(destination)


def _status(number: Number, arrival: Arrival, step: str, version: int, code: int | None, stamp: str) -> Status:
    bsuid = "." in arrival.recipient
    conversation: dict[str, object] | None = None
    pricing: dict[str, object] | None = None
    errors: list[dict[str, object]] | None = None
    if step in {"sent", "delivered"}:
        pricing = _PRICING
    if step == "sent" and version < 24:  # omitted from v24 on
        conversation = {"id": f"conversation-{number.phone_number_id}-{arrival.recipient}", "origin": _ORIGIN}
    if code is not None:
        title = TITLES.get(code, "Message undeliverable")
        errors = [{"code": code, "title": title, "message": title, "error_data": {"details": title}, "href": _HREF}]
    return Status(
        id=arrival.provider_id,
        status=step,
        timestamp=stamp,
        recipient_id=None if bsuid else arrival.recipient,
        recipient_user_id=arrival.recipient if bsuid else None,
        biz_opaque_callback_data=arrival.key,
        conversation=conversation,
        pricing=pricing,
        errors=errors,
    )


_PRICING: dict[str, object] = {
    "billable": False,
    "pricing_model": "PMP",
    "category": "service",
    "type": "free_customer_service",
}
_ORIGIN: dict[str, object] = {"type": "service"}
_HREF = "https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes/"
