"""The door for webhooks: `GET|POST /webhooks/{endpoint}`. Verifies before it parses; answers 200 only once nothing is lost.

That is after the commit; or, where the database cannot take it, once it lies sealed on the spool's disk. A bare ASGI
application, mounted in Litestar: it is the one hot route, and its answers are a status and a line of plain text each.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import structlog
from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send
from litestar.types.asgi_types import HTTPScope

from app import metrics
from app.breaker import Breaker
from app.channels import LARGE, Provider, provider
from app.directory import Directory, Endpoint, Watch
from app.doors import Doors
from app.errors import DatabaseUnavailable, Overloaded, SpoolError, Unknown
from app.ingest import Ingest
from app.log import Seldom
from app.messages import Item, Message, Status, Stray
from app.outages import Outages
from app.spool import Record, Spool
from app.web.challenges import Challenges

log = structlog.get_logger(__name__)

PREFIX = b"/webhooks/"
# A client that sends its body more slowly than this (seconds) is no provider.
BODY_PATIENCE = 5.0
# How long the spool's disk may take (seconds): with the deadline before it, the answer comes within two.
SPOOL_PATIENCE = 0.8
# Bodies that one process holds at a time (bytes): beyond that nothing more is read.
MOST_BYTES = 64 * 1024 * 1024

TOO_MUCH = b"Too much at once. Send it again."


class _Answered(Exception):
    """Ends a request early: HTTP status, body, and what the counter calls it."""

    def __init__(self, status: int, body: bytes, outcome: metrics.Webhook) -> None:
        self.status, self.body, self.outcome = status, body, outcome


class Webhooks:
    """The ASGI application. `deadline` (seconds): how long an authentic webhook may wait for its commit."""

    def __init__(
        self,
        watch: Callable[[], Watch | None],
        ingest: Ingest,
        doors: Doors,
        *,
        deadline: float,
        breaker: Breaker,
        outages: Outages,
        spool: Spool | None,
    ) -> None:
        """`watch` returns None until the first configuration has been read: then nobody knows which endpoints exist.

        `breaker` is the database's: while it is open nobody waits for it. `spool`: who keeps what it cannot take.
        """
        self._watch = watch
        self._ingest = ingest
        self._doors = doors
        self._deadline = deadline
        self._breaker = breaker
        self._outages = outages
        self._spool = spool
        self._challenges = Challenges()
        self._bytes = 0
        self._overloaded = Seldom()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = time.monotonic()
        http = cast(HTTPScope, scope)
        name = "unknown"
        try:
            directory, endpoint = await self._endpoint(http["raw_path"])
            name = endpoint.slug
            if http["method"] == "POST":
                with self._hand() as hold:
                    status, body, outcome = await self._post(
                        directory, endpoint, http["headers"], receive, hold, arrived
                    )
            elif http["method"] == "GET":
                status, body, outcome = self._challenges.answer(endpoint, http["query_string"])
            else:
                raise _Answered(405, b"POST a webhook, or GET the challenge.", "method")
        except _Answered as answered:
            status, body, outcome = answered.status, answered.body, answered.outcome
        except _Gone:
            return
        metrics.webhook(name, outcome)
        await _answer(send, status, body)

    async def _endpoint(self, path: bytes) -> tuple[Directory, Endpoint]:
        slug = path.removeprefix(PREFIX).decode("latin-1")
        watch = self._watch()
        if watch is None:
            raise _Answered(503, b"Not ready: the configuration could not be read yet.", "unavailable")
        if found := watch.current.endpoint(slug):
            return watch.current, found
        # A 404 is final for a provider, so it is only given when the database itself has said so just now.
        if not await watch.refresh():
            raise _Answered(503, b"Not ready: the configuration cannot be read.", "unavailable")
        if found := watch.current.endpoint(slug):
            return watch.current, found
        raise _Answered(404, b"No such endpoint.", "unknown")

    async def _post(
        self,
        directory: Directory,
        endpoint: Endpoint,
        headers: Iterable[tuple[bytes, bytes]],
        receive: Receive,
        hold: Callable[[int], None],
        arrived: float,
    ) -> tuple[int, bytes, metrics.Webhook]:
        try:
            door = provider(endpoint.kind)
        except Unknown:
            raise _Answered(501, b"Endpoints of this kind are not served yet.", "unserved") from None
        signatures = []
        for name, value in headers:
            if name == door.signature_header:
                signatures.append(value)
            elif name == b"content-length" and (not value.isdigit() or int(value[:12]) > door.body_limit):
                raise _Answered(413, b"Too large.", "too_large")
        correlation = secrets.token_hex(8)
        whole = False
        try:
            async with asyncio.timeout(BODY_PATIENCE) as patience:
                body = await _body(receive, door.body_limit, hold)
                patience.reschedule(None)
                whole = True
                large = len(body) > LARGE
                read = (
                    await asyncio.to_thread(_read, door, signatures, body, endpoint)
                    if large
                    else _read(door, signatures, body, endpoint)
                )
                if read is None:
                    return 403, b"The signature does not fit.", "refused"
                items = read
                patience.reschedule(asyncio.get_running_loop().time() + self._deadline)
                self._breaker.check()
                await self._ingest.take(directory, endpoint, items, correlation, arrived)
        except (DatabaseUnavailable, TimeoutError) as error:
            if not whole:
                return 408, b"The body took too long.", "slow"
            # It comes again, from the provider or the spool. What was written meanwhile is recognised by then.
            self._doors.missed(
                (channel.tenant_id, item.key.chunk_id)
                for item in items
                if isinstance(item, Status)
                and item.key
                and (channel := directory.channel_at(endpoint.id, item.address))
            )
            if isinstance(error, Overloaded):  # the spool is for what the database cannot take
                if self._overloaded.due():
                    log.warning("overloaded", endpoint=endpoint.slug, correlation=correlation, error=error)
                return 503, TOO_MUCH, "overloaded"
            if await self._spooled(endpoint, correlation, body):
                return 200, b"", "spooled"
            self._outages.refused()
            log.warning("webhook not taken", endpoint=endpoint.slug, correlation=correlation, error=error)
            return 503, b"The database cannot take it now. Send it again.", "unavailable"
        took = time.monotonic() - arrived
        metrics.stage("ack", took)
        return 200, b"", self._tell(endpoint, items, correlation, took)

    @contextmanager
    def _hand(self) -> Iterator[Callable[[int], None]]:
        """What counts the bytes of one body, for as long as it is held; it raises _Answered where there are too many."""
        mine = 0

        def hold(size: int) -> None:
            nonlocal mine
            mine += size
            self._bytes += size
            if self._bytes > MOST_BYTES:
                if self._overloaded.due():
                    log.warning("overloaded", bytes=self._bytes)
                raise _Answered(503, TOO_MUCH, "overloaded")

        try:
            yield hold
        finally:
            self._bytes -= mine

    async def _spooled(self, endpoint: Endpoint, correlation: str, body: bytes) -> bool:
        """Whether it lies on the disk now, to be brought in when the database can be asked again."""
        if self._spool is None:
            return False
        record = Record(
            endpoint_id=endpoint.id,
            endpoint=endpoint.slug,
            correlation=correlation,
            received_at=time.time(),
            body=body,
        )
        try:
            async with asyncio.timeout(SPOOL_PATIENCE):
                await self._spool.keep(record)
        except (SpoolError, TimeoutError) as error:
            metrics.spooled("refused")
            log.warning("webhook not spooled", endpoint=endpoint.slug, correlation=correlation, error=error)
            return False
        metrics.spooled("kept")
        self._outages.spooled()
        log.info("webhook spooled", endpoint=endpoint.slug, correlation=correlation)
        return True

    def _tell(self, endpoint: Endpoint, items: list[Item], correlation: str, took: float) -> metrics.Webhook:
        """Log what came, and say what the counter calls it. Webhooks of statuses alone are told at debug only."""
        messages = sum(isinstance(item, Message) for item in items)
        strays = sum(isinstance(item, Stray) for item in items)
        tell = log.info if messages or strays else log.debug
        tell(
            "webhook",
            endpoint=endpoint.slug,
            correlation=correlation,
            messages=messages,
            items=len(items),
            ack_ms=round(took * 1000, 1),
        )
        return "unreadable" if strays == len(items) else "stored"


def route(webhooks: Webhooks) -> ASGIRouteHandler:
    """The application as Litestar mounts it. The scope is ours alone, so it is not copied."""

    @asgi(PREFIX.decode(), is_mount=True, copy_scope=False)
    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        await webhooks(scope, receive, send)

    return door


class _Gone(Exception):
    """The client hung up before its request was whole: nobody is there to answer."""


def _read(door: Provider, signatures: Sequence[bytes], body: bytes, endpoint: Endpoint) -> list[Item] | None:
    """The items of an authentic body; None: the signature does not fit."""
    return door.decode(body) if door.authentic(signatures, body, endpoint.secrets) else None


async def _body(receive: Receive, limit: int, hold: Callable[[int], None]) -> bytes:
    """The whole body. `hold` hears of each part's size, and may raise."""
    parts: list[bytes] = []
    size = 0
    while True:
        event: Any = await receive()
        if event["type"] != "http.request":
            raise _Gone
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        hold(len(parts[-1]))
        if size > limit:
            raise _Answered(413, b"Too large.", "too_large")
        if not event.get("more_body"):
            return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    elif status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": cast(Any, status), "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
