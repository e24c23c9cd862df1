"""The one place that builds HTTP clients for providers: WhatsApp and assistants.

What becomes of a request is told in two words only: `NeverLeft` or `InDoubt`. An answer of any status is an answer:
whether it is a refusal depends on the provider's own code, so `Refused` is raised by channels, never here.
It keeps no cookies, follows no redirects, reads no proxy from the environment, and never repeats a POST.
"""

import asyncio
import re
import select
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from http.cookiejar import CookieJar, DefaultCookiePolicy
from weakref import WeakSet

import aiohttp
import httpx
import msgspec
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from httpx_aiohttp import AiohttpTransport

from app import addresses
from app.crashpoints import crashpoint
from app.errors import HeldBack, InDoubt, Inside, NeverLeft, SendError
from app.turnstile import Turnstile

# Linux tells a peer's FIN without our reading a byte of what came before it; elsewhere only a full hang-up shows.
_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
# A request ends so much before the deadline of whoever makes it (seconds): to be told from one that was given up.
EARLY = 0.05
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer of any status. `body` holds at most the client's `max_response` bytes.

    A body without a length or chunks ends where the provider hangs up: cut short, it looks whole. Who reads it must
    take a body that does not parse for a lost answer.
    """

    status: int
    headers: httpx.Headers
    body: bytes


class Stream:
    """An answer whose body is still arriving; iterate it once, or `read` it whole."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers = response.headers

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `InDoubt` where it breaks off, stalls past the deadline or grows too long."""
        return self._response.aiter_raw()

    async def read(self) -> bytes:
        """The rest of the body. Raises `InDoubt` as iteration does."""
        return await self._response.aread()


def client(
    *,
    total: float,
    connect: float = 5.0,
    limit: int = 1000,
    keepalive: float = 15.0,
    max_response: int = 8 * 1024 * 1024,
    public: bool = False,
) -> httpx.AsyncClient:
    """A client for one kind of provider; make one per process, close it with `aclose()`.

    All times are in seconds. `total` bounds a request from its start to the last byte of the answer, `connect` the wait
    for a free connection, DNS, TCP and TLS together. `limit` is the number of connections, `keepalive` how long an idle
    one is kept: stay below the provider's own (15 is; Node's default is 5). `max_response` is in bytes.

    `public`: for URLs that come in data. It connects to public addresses alone, whatever a name resolves to at that very
    moment, and raises `Inside` where there is none.

    TLS is verified against certifi's roots, or SSL_CERT_FILE's where that is set.
    """
    return httpx.AsyncClient(
        transport=_Transport(total=total, limit=limit, keepalive=keepalive, max_response=max_response, public=public),
        # Of httpx's four times, aiohttp takes `pool` for the wait and the connecting together; `total` bounds the rest.
        timeout=httpx.Timeout(connect=connect, pool=connect, read=None, write=None),
        headers={"User-Agent": "qasid", "Accept-Encoding": "identity"},
        # A cookie that a provider sets in one tenant's answer must not travel with the next tenant's request.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
        trust_env=False,
    )


async def post(
    client: httpx.AsyncClient,
    url: str,
    *,
    headers: Mapping[str, str],
    content: bytes,
    timeout: float | None = None,
    may_leave: Callable[[], bool] | None = None,
) -> Answer:
    """POST once and read the whole answer, within `timeout` seconds (else the client's `total`).

    `may_leave` is asked once, when the connection is there and nothing is awaited any more before the first byte is
    handed to it; if it says no, nothing is written. It must not raise, and wants `content`: a request without a body is
    never held back.

    Raises `NeverLeft` if nothing of the request reached the provider (`HeldBack`: by our own doing), `InDoubt` if it may
    have; nothing else.
    """
    assert content or may_leave is None
    async with stream(
        client, "POST", url, headers=headers, content=content, timeout=timeout, may_leave=may_leave
    ) as response:
        return Answer(status=response.status, headers=response.headers, body=await response.read())


@asynccontextmanager
async def stream(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    content: bytes | None = None,
    timeout: float | None = None,
    may_leave: Callable[[], bool] | None = None,
) -> AsyncIterator[Stream]:
    """Send a request and yield its answer once the headers are here; leaving the block closes it.

    `timeout` seconds (else the client's `total`) run from the start to the last byte of the body; `may_leave`: see `post`.
    Raises `NeverLeft` or `InDoubt` on entering, `InDoubt` while the body is read. What the block itself raises passes.
    """
    if client.is_closed:
        raise HeldBack("the HTTP client is closed")
    extensions: dict[str, object] = {"may_leave": may_leave}
    if timeout is not None:
        extensions["total"] = timeout
    try:
        request = client.build_request(method, url, headers=headers, content=content, extensions=extensions)
    except (httpx.InvalidURL, ValueError) as fault:
        # The fault may quote a header, and so a token.
        raise HeldBack(f"no request can be made of this: {type(fault).__name__}") from None
    try:
        response = await client.send(request, stream=True)
    except (httpx.HTTPError, httpx.InvalidURL) as fault:
        # httpx reads `Location` even when it follows no redirect, and objects to one that is no URL.
        raise InDoubt(f"{request.url.host}: {type(fault).__name__}") from None
    try:
        yield Stream(response)
    finally:
        await response.aclose()
        # httpx's answer and its body hold each other, with all of aiohttp's beneath them: thousands at once would wait for
        # the garbage collector, which stops the event loop meanwhile.
        del response.stream


class _HeldBack(Exception):
    """Ends a request that was not to leave any more."""


class _Departure:
    """Whether any byte of one request may have left us, and who is asked first."""

    def __init__(self, may_leave: Callable[[], bool] | None) -> None:
        self.may_leave = may_leave
        self.left = False
        self.inside = False
        """An address that is not public was not connected to."""


_departure: ContextVar[_Departure] = ContextVar("departure")


def _public_socket(
    address: tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[object, ...]],
) -> socket.socket:
    """A socket for the address that is about to be connected to, if it is public. What it came from does not matter."""
    family, kind, protocol, _, place = address
    if not addresses.is_public(str(place[0])):
        _departure.get().inside = True
        raise OSError("no public address")
    return socket.socket(family, kind, protocol)


class _Connector(aiohttp.TCPConnector):
    """Hands out connections that can still be written to, and marks the moment from which a request may be written.

    `connect` is the last thing that aiohttp awaits before it writes the request; it runs in the task of the request.
    """

    def __init__(self, *, limit: int, keepalive: float, ssl_context: ssl.SSLContext, public: bool) -> None:
        super().__init__(
            limit=limit,
            keepalive_timeout=keepalive,
            ssl=ssl_context,
            socket_factory=_public_socket if public else None,
        )
        self._handed_out: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[aiohttp.tracing.Trace], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            assert protocol is not None  # aiohttp has only just made it
            fresh = protocol not in self._handed_out
            self._handed_out.add(protocol)
            if _usable(protocol, fresh=fresh):
                _departure.get().left = True
                return connection
            connection.close()
            if fresh:
                # The host takes connections only to drop them: nothing was written, and another try is the caller's.
                raise aiohttp.ServerDisconnectedError


class _Request(aiohttp.ClientRequest):
    """Asks at the last moment whether a request may still leave.

    aiohttp keeps the headers until it has the body: the two are written together, by `write_bytes`, before its first
    await. Where Python has no eager tasks (before 3.12) it runs in a task of its own, a turn of the event loop after
    `connect`; so the question belongs here and not there.
    """

    async def write_bytes(
        self, writer: AbstractStreamWriter, conn: aiohttp.connector.Connection, content_length: int | None = None
    ) -> None:
        departure = _departure.get()
        if departure.may_leave is None:
            return await super().write_bytes(writer, conn, content_length)
        if not departure.may_leave():
            if conn.protocol is not None:
                conn.protocol.set_exception(_HeldBack())  # as aiohttp itself ends a request that it could not write
            return None
        await super().write_bytes(writer, conn, content_length)
        # Both event loops, asyncio's and uvloop's, write at once to a socket that takes it. aiohttp's traces of a sent
        # chunk are no such place: they are called before the write.
        crashpoint("deliver.posting")
        return None


def _usable(protocol: ResponseHandler, *, fresh: bool) -> bool:
    """Whether the peer still listens and has said nothing unasked.

    aiohttp learns of a FIN when its event loop next polls; a request written before that would be in doubt for nothing.
    Bytes that came while the connection lay idle would be read as the next request's answer.
    """
    transport = protocol.transport
    if transport is None or transport.is_closing() or protocol.should_close:
        return False
    poll = select.poll()
    # A fresh TLS connection may already hold session tickets to read.
    poll.register(transport.get_extra_info("socket").fileno(), _GONE if fresh else _GONE | select.POLLIN)
    return not poll.poll(0)


class _Transport(AiohttpTransport):
    """httpx-aiohttp's transport with a deadline, and errors that say what became of the request."""

    def __init__(self, *, total: float, limit: int, keepalive: float, max_response: int, public: bool) -> None:
        def session() -> aiohttp.ClientSession:
            connector = _Connector(limit=limit, keepalive=keepalive, ssl_context=self.ssl_context, public=public)
            return aiohttp.ClientSession(
                connector=connector, request_class=_Request, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            )

        super().__init__(client=session)  # called within the event loop, at the first request
        self._total = total
        self._max_response = max_response
        self._turnstile = Turnstile()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        total: float = request.extensions.get("total", self._total)
        host = request.url.host
        if total <= 0:
            raise HeldBack(f"{host}: no time was left to send")
        if any(_FORBIDDEN.search(name) or _FORBIDDEN.search(value) for name, value in request.headers.raw):
            raise HeldBack(f"{host}: a header holds a control character")
        deadline = asyncio.get_running_loop().time() + total
        departure = _Departure(request.extensions.get("may_leave"))
        token = _departure.set(departure)
        try:
            async with asyncio.timeout_at(deadline):
                response = await super().handle_async_request(request)
        except _HeldBack:
            raise HeldBack(f"{host}: held back at the last moment before the write") from None
        except Exception as fault:  # noqa: BLE001  aiohttp lets errors of many trees through; the moment alone decides
            if departure.inside and not departure.left:
                raise Inside("it leads to an address that is not public") from None
            outcome: type[SendError] = InDoubt if departure.left else NeverLeft
            # Without the cause: aiohttp's errors carry the request's headers, and so a token.
            raise outcome(f"{host}: {_reason(fault)}") from None
        finally:
            _departure.reset(token)

        assert isinstance(response.stream, httpx.AsyncByteStream)
        body = _Body(
            response,
            response.stream,
            host=host,
            deadline=deadline,
            max_response=self._max_response,
            turnstile=self._turnstile,
        )
        # Not under the deadline: that others are before it is no fault of the provider's.
        try:
            await self._turnstile.through()
        except asyncio.CancelledError:
            await body.aclose()
            raise
        if response.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            # We asked for none. httpx would inflate it without a bound.
            await body.aclose()
            raise InDoubt(
                f"{host}: answered {response.status_code} with an encoded body, which was not asked for",
                headers=response.headers,
            )
        response.stream = body
        return response


class _Body(httpx.AsyncByteStream):
    """The body of an answer, under the request's deadline and a cap on its bytes."""

    def __init__(
        self,
        response: httpx.Response,
        stream: httpx.AsyncByteStream,
        *,
        host: str,
        deadline: float,
        max_response: int,
        turnstile: Turnstile,
    ) -> None:
        self._headers = response.headers
        self._stream = stream
        self._host = host
        self._deadline = deadline
        self._max_response = max_response
        self._turnstile = turnstile

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._stream)
        size = 0
        while True:
            try:
                async with asyncio.timeout_at(self._deadline):
                    chunk = await anext(chunks, None)
            except Exception as fault:  # noqa: BLE001  as above: whatever broke the body off, the request had left
                reason = f"{self._host}: the answer broke off: {_reason(fault)}"
                raise InDoubt(reason, headers=self._headers) from None
            if chunk is None:
                return
            await self._turnstile.through()
            size += len(chunk)
            if size > self._max_response:
                reason = f"{self._host}: the answer is longer than {self._max_response} bytes"
                raise InDoubt(reason, headers=self._headers)
            yield chunk

    async def aclose(self) -> None:
        # Closing waits for the writer of the request, which may fail where the peer answered early and hung up. What
        # was read stands all the same.
        with suppress(httpx.TransportError, aiohttp.ClientError, OSError):
            await self._stream.aclose()


def _reason(fault: Exception) -> str:
    """The kinds of a fault and its causes, outermost first; never their texts, which may quote the request."""
    kinds = []
    cause: BaseException | None = fault
    while cause is not None:
        kinds.append(type(cause).__name__)
        cause = cause.__cause__
    return " < ".join(kinds)
