"""Posts webhooks as Meta does: signed over the exact bytes, redelivered byte for byte until they are answered 200.

Source: WIRE.md 1.1 and 2. It never looks into a body and never posts anywhere but to this machine.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import aiohttp
import msgspec

from app.sandbox.ledger import Delivery, Ledger
from app.sandbox.numbers import Number, check_loopback, now

T = TypeVar("T")
_encoder = msgspec.json.Encoder()


class Shipment(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One webhook: where to, its bytes, and how often it is tried. `kind` and `ids` are for the ledger.

    `others` take turns with `url` at its redeliveries.
    """

    url: str
    app_secret: str
    body: bytes
    kind: str
    ids: tuple[str, ...] = ()
    redelivery: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    tries: int = 60
    others: tuple[str, ...] = ()

    def target(self, tries: int) -> str:
        """The URL of try number `tries`, counted from 1."""
        return (self.url, *self.others)[(tries - 1) % (1 + len(self.others))]


def shipment(
    number: Number,
    body: bytes,
    *,
    kind: str,
    ids: tuple[str, ...] = (),
    url: str | None = None,
    others: tuple[str, ...] = (),
) -> Shipment:
    """A webhook for `number`, to its own URL unless another is given."""
    return Shipment(
        url=url or number.webhook_url,
        app_secret=number.app_secret,
        body=body,
        kind=kind,
        ids=ids,
        redelivery=number.redelivery,
        tries=number.tries,
        others=others,
    )


def envelope(parts: Iterable[tuple[Number, str, dict[str, object]]]) -> bytes:
    """The bytes of one webhook: each part is (number, change's field, value without product and metadata)."""
    entries: dict[str, list[dict[str, object]]] = {}
    for number, field, value in parts:
        metadata = {"display_phone_number": number.display_phone_number, "phone_number_id": number.phone_number_id}
        change: dict[str, object] = {
            "field": field,
            "value": {"messaging_product": "whatsapp", "metadata": metadata, **value},
        }
        entries.setdefault(number.waba_id, []).append(change)
    entry = [{"id": waba_id, "changes": changes} for waba_id, changes in entries.items()]
    return _encoder.encode({"object": "whatsapp_business_account", "entry": entry})


def signed(app_secret: str, body: bytes) -> dict[str, str]:
    """The headers of a real delivery."""
    secret = app_secret.encode()
    return {
        "Content-Type": "application/json",
        "User-Agent": "facebookexternalua",
        "X-Hub-Signature": "sha1=" + hmac.digest(secret, body, hashlib.sha1).hex(),
        "X-Hub-Signature-256": "sha256=" + hmac.digest(secret, body, hashlib.sha256).hex(),
    }


class Courier:
    """Carries shipments over kept-alive connections. Made and closed inside a running loop."""

    def __init__(self, ledger: Ledger, timeout: float = 10.0) -> None:
        self._ledger = ledger
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout),
            skip_auto_headers=("Accept", "Accept-Encoding"),
        )

    async def post(self, shipment: Shipment) -> Delivery:
        """Post once and say what came of it; what was not answered 200 is redelivered in the background."""
        # The caller may go away in mid-POST; the webhook may not.
        return await asyncio.shield(self.spawn(self._try(shipment, 1)))

    async def first_try(self, shipment: Shipment) -> Delivery:
        """As `post`, for a caller that is itself a task of this courier and so cannot go away."""
        return await self._try(shipment, 1)

    async def post_all(self, shipments: Sequence[Shipment]) -> list[Delivery]:
        """Post several at once."""
        return list(await asyncio.gather(*(self.post(each) for each in shipments)))

    def spawn(self, work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        """Run `work` as a task of this courier: it ends with `forget` at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def waiting(self) -> int:
        """Webhooks that wait for their next try."""
        return len(self._timers)

    async def forget(self) -> None:
        """Give up whatever is under way or waits for another try."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        await self.forget()
        await self._session.close()

    async def _try(self, shipment: Shipment, tries: int) -> Delivery:
        began, status, error = time.perf_counter(), None, None
        started, url = now(), shipment.target(tries)
        try:
            async with self._session.post(
                check_loopback(url),
                data=shipment.body,
                headers=signed(shipment.app_secret, shipment.body),
                allow_redirects=False,
            ) as response:
                await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as failure:
            error = type(failure).__name__
        delivery = Delivery(
            t=started,
            kind=shipment.kind,
            url=url,
            ids=shipment.ids,
            tries=tries,
            status=status,
            ack_ms=round((time.perf_counter() - began) * 1000, 3),
            error=error,
        )
        self._ledger.deliveries.append(delivery)
        if status == 200:
            self._ledger.tally.add("acknowledged")
        elif tries < shipment.tries and shipment.redelivery:
            self._later(shipment, tries)
        return delivery

    def _later(self, shipment: Shipment, tries: int) -> None:
        delay = shipment.redelivery[min(tries, len(shipment.redelivery)) - 1]

        def again() -> None:
            self._timers.discard(timer)
            self.spawn(self._try(shipment, tries + 1))

        timer = asyncio.get_running_loop().call_later(delay, again)
        self._timers.add(timer)
