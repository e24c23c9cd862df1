"""What the HTTP client says became of a request, against a provider that fails on a real socket at each stage.

Each fault names the error it must give and how many requests the provider may have seen. Nothing is patched.
"""

import asyncio
import gzip
import os
import select
import signal
import socket
import ssl
import struct
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app import http
from app.errors import InDoubt, Inside, NeverLeft, SendError
from app.turnstile import Turnstile

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TOKEN = "EAAG-not-to-be-seen"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
NONE_LEFT = 0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Line:
    """The provider's end of one connection: raw, so that nothing is read or closed but when a test says so."""

    def __init__(self, sock: socket.socket, provider: "Provider") -> None:
        self.sock = sock
        self.provider = provider
        self.unread = b""

    async def arrived(self) -> None:
        """Return once bytes wait to be read; read none of them."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self.sock, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self.sock)

    async def head(self) -> bytes:
        """Read one request's headers, and count it."""
        while b"\r\n\r\n" not in self.unread:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
            if not data:
                raise ConnectionError
            self.unread += data
        head, _, self.unread = self.unread.partition(b"\r\n\r\n")
        self.provider.seen.append(head)
        return head

    async def request(self) -> bytes:
        """Read one whole request, and count it."""
        head = await self.head()
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        while len(self.unread) < length:
            self.unread += await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        body, self.unread = self.unread[:length], self.unread[length:]
        return body

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def fin(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    async def gone(self) -> None:
        """Return once the client has hung up."""
        with suppress(ConnectionError):
            while await asyncio.get_running_loop().sock_recv(self.sock, 65536):
                pass


Script = Callable[[Line], Awaitable[None]]


class Provider:
    """Plays one script on each connection, and remembers what it saw."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.seen: list[bytes] = []
        self.lines: list[Line] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v23.0/1/messages"

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            line = Line(sock, self)
            self.lines.append(line)
            task = asyncio.create_task(self._play(line))
            self._tasks.add(task)

    async def _play(self, line: Line) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):  # the client hung up, or the test is over
            await self.script(line)

    async def __aenter__(self) -> Self:
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._accepting, *self._tasks):
            task.cancel()
        await asyncio.gather(self._accepting, *self._tasks, return_exceptions=True)
        for line in self.lines:
            line.sock.close()
        self._listener.close()


@asynccontextmanager
async def make(**options: float) -> AsyncIterator[httpx.AsyncClient]:
    options.setdefault("total", 5.0)
    async with http.client(**options) as client:  # type: ignore[arg-type]  # each test names few of them
        yield client


async def send(client: httpx.AsyncClient, url: str, content: bytes = b'{"text":"x"}', **more: float) -> http.Answer:
    return await http.post(client, url, headers=HEADERS, content=content, timeout=more.get("timeout"))


async def post(client: httpx.AsyncClient, url: str, gate: Callable[[], bool], **more: float) -> http.Answer:
    timeout = more.get("timeout")
    return await http.post(client, url, headers=HEADERS, content=b'{"text":"x"}', timeout=timeout, may_leave=gate)


async def hold(line: Line) -> None:
    await asyncio.Event().wait()


# ── the faults, in the order of a request's life ──────────────────────────────────────────────────────────────────


async def fin_unread(line: Line) -> None:
    await line.arrived()
    line.fin()


async def rst_unread(line: Line) -> None:
    await line.arrived()
    line.rst()


async def fin_after_headers(line: Line) -> None:
    await line.head()
    line.fin()


async def rst_after_headers(line: Line) -> None:
    await line.head()
    line.rst()


async def fin_after_post(line: Line) -> None:
    await line.request()
    line.fin()


async def rst_after_post(line: Line) -> None:
    await line.request()
    line.rst()


async def silent_after_post(line: Line) -> None:
    await line.request()
    await hold(line)


def answering(start: bytes, end: Callable[[Line], None] | None) -> Script:
    """Answer with these bytes, then hang up this way, or not at all."""

    async def script(line: Line) -> None:
        await line.request()
        await line.say(start)
        if end is None:
            await hold(line)
        else:
            end(line)

    return script


async def drip_for_ever(line: Line) -> None:
    await line.request()
    await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        await line.say(b" ")
        await asyncio.sleep(0.02)  # well within any read timeout: the pace is the fault


HALF_HEADERS = b"HTTP/1.1 200 OK\r\nContent-Le"
HALF_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"{" * 40
HALF_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
BAD_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"
LONG_HEADER = b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 20_000 + b"\r\nContent-Length: 2\r\n\r\nok"
BOMB = gzip.compress(bytes(64 * 1024 * 1024))
GZIPPED = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB
TOO_LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
NO_LOCATION = b"HTTP/1.1 302 Found\r\nLocation: http://host:port/\r\nContent-Length: 0\r\n\r\n"

IN_DOUBT: dict[str, tuple[Script, int]] = {
    "FIN, nothing read": (fin_unread, 0),
    "RST, nothing read": (rst_unread, 0),
    "FIN, headers read": (fin_after_headers, 1),
    "RST, headers read": (rst_after_headers, 1),
    "FIN, whole POST read": (fin_after_post, 1),
    "RST, whole POST read": (rst_after_post, 1),
    "no answer": (silent_after_post, 1),
    "FIN in the answer's headers": (answering(HALF_HEADERS, Line.fin), 1),
    "RST in the answer's headers": (answering(HALF_HEADERS, Line.rst), 1),
    "stall in the answer's headers": (answering(HALF_HEADERS, None), 1),
    "FIN in the body": (answering(HALF_BODY, Line.fin), 1),
    "RST in the body": (answering(HALF_BODY, Line.rst), 1),
    "stall in the body": (answering(HALF_BODY, None), 1),
    "FIN between chunks": (answering(HALF_CHUNKS, Line.fin), 1),
    "RST between chunks": (answering(HALF_CHUNKS, Line.rst), 1),
    "chunks that are none": (answering(BAD_CHUNKS, None), 1),
    "a byte at a time": (drip_for_ever, 1),
    "no HTTP": (answering(b"\x16\x03\x01 SMTP ready\r\n\r\n", None), 1),
    "a header over 8,190 bytes": (answering(LONG_HEADER, None), 1),
    "a gzip bomb": (answering(GZIPPED, None), 1),
    "a body over the cap": (answering(TOO_LONG, None), 1),
    "a redirect to nowhere": (answering(NO_LOCATION, None), 1),
}


@pytest.mark.parametrize("fault", IN_DOUBT)
async def test_a_fault_after_the_first_write_is_in_doubt(fault: str) -> None:
    """Whatever breaks once bytes may have left is InDoubt, within the total; the POST is never repeated, no token shown."""
    script, seen = IN_DOUBT[fault]
    async with Provider(script) as provider, make(max_response=200_000) as client:
        started = asyncio.get_running_loop().time()
        with pytest.raises(InDoubt) as caught:
            await send(client, provider.url, content=b"x" * 2000, timeout=0.4)
        assert asyncio.get_running_loop().time() - started < 2
        assert len(provider.seen) == seen
        assert len(provider.lines) == 1
        shown = traceback.format_exception(caught.value)
        assert TOKEN not in repr((shown, caught.value.__cause__))


@pytest.mark.parametrize("fault", ["fin", "rst", "unread"])
async def test_a_fault_on_a_used_connection_is_in_doubt_and_not_repeated(fault: str) -> None:
    """aiohttp repeats idempotent requests on a dead keep-alive by itself; a POST it must not."""

    async def script(line: Line) -> None:
        await line.request()
        await line.say(OK)
        if fault == "unread":
            await line.arrived()
            line.rst()
            return
        await line.request()
        getattr(line, fault)()

    async with Provider(script) as provider, make() as client:
        assert (await send(client, provider.url)).body == b"ok"
        with pytest.raises(InDoubt):
            await send(client, provider.url)
        assert len(provider.lines) == 1
        assert len(provider.seen) == (1 if fault == "unread" else 2)


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_connection_that_died_while_idle_is_replaced_before_anything_is_written(end: str) -> None:
    """A keep-alive that the provider closed costs no doubt, even when the event loop has not yet heard of it."""

    async with Provider(answering(OK, None)) as provider, make() as client:
        await send(client, provider.url)
        getattr(provider.lines[0], end)()  # no await before the next request: the FIN waits in the kernel
        assert (await send(client, provider.url)).status == 200
        assert len(provider.seen) == 2
        assert len(provider.lines) == 2


@pytest.mark.parametrize("heard", [False, True])
async def test_an_answer_nobody_asked_for_is_not_the_next_requests_answer(heard: bool) -> None:
    """Bytes that came while a connection lay idle are dropped with it, whether or not the event loop has read them."""
    stray = b"HTTP/1.1 500 Stray\r\nContent-Length: 0\r\n\r\n"

    async with Provider(answering(OK, None)) as provider, make() as client:
        await send(client, provider.url)
        provider.lines[0].sock.send(stray)
        if heard:
            for _ in range(2):
                await asyncio.sleep(0)  # one turn of the event loop polls the sockets, the next reads
        assert (await send(client, provider.url)).status == 200
        assert len(provider.seen) == 2
        assert len(provider.lines) == 2


async def test_a_host_that_drops_every_connection_is_tried_once() -> None:
    """A fresh connection that is closed at once ends the try: no doubt if the client could tell, and no second connect."""

    async def script(line: Line) -> None:
        line.sock.close()

    async with Provider(script) as provider, make() as client:
        with pytest.raises(SendError):  # which of the two depends on whose turn comes first
            await send(client, provider.url)
        assert len(provider.lines) == 1
        assert len(provider.seen) == NONE_LEFT


# ── never left ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_refused_connection_never_left() -> None:
    """Nobody listens: nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    async with make() as client:
        with pytest.raises(NeverLeft):
            await send(client, url)


async def test_an_unknown_host_never_left() -> None:
    """RFC 6761: .invalid resolves nowhere."""
    async with make() as client:
        with pytest.raises(NeverLeft):
            await send(client, "http://graph.invalid/")


@pytest.mark.parametrize("deadline", ["connect", "total"])
async def test_a_connect_timeout_never_left(deadline: str) -> None:
    """A listener with a full backlog drops the SYN: whichever time ends first, nothing was sent."""
    fillers: list[socket.socket] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        try:
            while True:
                filler = socket.socket()
                filler.setblocking(False)
                fillers.append(filler)
                filler.connect_ex(address)
                if not select.select([], [filler], [], 0.1)[1]:
                    break  # this one still waits for its SYN to be taken: the backlog is full
            async with make(**{deadline: 0.2}) as client:
                with pytest.raises(NeverLeft):
                    await send(client, f"http://127.0.0.1:{address[1]}/")
        finally:
            for filler in fillers:
                filler.close()


async def test_waiting_for_a_free_connection_never_left() -> None:
    """With every connection in use, a request that waits too long for one was not sent."""
    async with Provider(silent_after_post) as provider, make(limit=1, connect=0.2) as client:
        first = asyncio.create_task(send(client, provider.url))
        while not provider.seen:
            await asyncio.sleep(0)
        with pytest.raises(NeverLeft):
            await send(client, provider.url)
        assert len(provider.seen) == 1
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


@pytest.mark.parametrize("fault", ["plain text", "silence", "hang up"])
async def test_a_failed_tls_handshake_never_left(fault: str) -> None:
    """Without a handshake no byte of the request was encrypted, let alone sent."""

    async def script(line: Line) -> None:
        await line.arrived()
        if fault == "plain text":
            await line.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        if fault == "hang up":
            line.rst()
        await hold(line)

    async with Provider(script) as provider, make(connect=0.3) as client:
        with pytest.raises(NeverLeft):
            await send(client, provider.url.replace("http:", "https:"))
        assert len(provider.seen) == NONE_LEFT


def certificate(folder: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "provider.pem"
    path.write_bytes(signed.public_bytes(pem) + private)
    return path


@pytest.mark.parametrize(
    ("trusted", "host", "told"), [(False, "localhost", None), (True, "127.0.0.1", None), (True, "localhost", 200)]
)
async def test_tls_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool, host: str, told: int | None
) -> None:
    """A certificate nobody vouches for, or of another name, gets nothing of us; a good one carries three requests."""
    pem = certificate(tmp_path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    seen = connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen, connections
        connections += 1
        with suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b'{"text":"x"}')
                seen += 1
                writer.write(OK)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://{host}:{server.sockets[0].getsockname()[1]}/"
    async with server, make() as client:
        if told is None:
            with pytest.raises(NeverLeft):
                await send(client, url)
            assert seen == NONE_LEFT
        else:
            assert [(await send(client, url)).status for _ in range(3)] == [told] * 3
            assert (seen, connections) == (3, 1)


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("http://127.0.0.1:{port}/", f"{TOKEN}\n"),
        ("http://127.0.0.1:{port}/", f"{TOKEN}…"),
        ("http://127.0.0.1:x{port}/", TOKEN),
        ("ftp://127.0.0.1:{port}/", TOKEN),
        ("/v23.0/1/messages", TOKEN),
    ],
)
async def test_a_request_that_cannot_be_made_never_left(url: str, token: str) -> None:
    """A token with a line's end, a URL that is none: an error a person can mend, without the token in it."""
    async with Provider(answering(OK, None)) as provider, make() as client:
        url = url.format(port=httpx.URL(provider.url).port)
        with pytest.raises(NeverLeft) as caught:
            await http.post(client, url, headers={"Authorization": f"Bearer {token}"}, content=b"{}")
        assert TOKEN not in "".join(traceback.format_exception(caught.value))
        assert not provider.seen


async def test_without_time_or_client_nothing_leaves() -> None:
    """A deadline already past, and a closed client, are known before the first byte."""
    async with Provider(silent_after_post) as provider:
        async with make() as client:
            with pytest.raises(NeverLeft):
                await send(client, provider.url, timeout=0)
        with pytest.raises(NeverLeft):
            await send(client, provider.url)
        assert not provider.lines


# ── the last check before the write ───────────────────────────────────────────────────────────────────────────────


class Gate:
    """A `may_leave` that says what it is told to, and remembers each question."""

    def __init__(self, *says: bool) -> None:
        self.says = list(says)
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.says.pop(0)


@pytest.mark.parametrize("used", [False, True])
async def test_what_may_not_leave_any_more_leaves_no_byte(used: bool) -> None:
    """A no at the last moment: the connection is there, fresh or kept alive, and nothing is written to it."""
    ended = asyncio.Event()
    bytes_seen: list[bytes] = []

    async def script(line: Line) -> None:
        if used:
            await line.request()
            await line.say(OK)
        bytes_seen.append(await asyncio.get_running_loop().sock_recv(line.sock, 65536))
        ended.set()

    async with Provider(script) as provider, make() as client:
        if used:
            await send(client, provider.url)
        gate = Gate(False)
        with pytest.raises(NeverLeft, match="held back") as caught:
            await post(client, provider.url, gate)
        await asyncio.wait_for(ended.wait(), 2)
        assert (bytes_seen, gate.asked, len(provider.lines)) == ([b""], 1, 1)
        assert TOKEN not in repr((traceback.format_exception(caught.value), caught.value.__cause__))


async def test_the_next_request_after_a_no_is_an_ordinary_one() -> None:
    """Neither its connection nor its answer has anything to do with the one that was held back."""

    async def script(line: Line) -> None:
        while True:
            await line.request()
            await line.say(OK)

    async with Provider(script) as provider, make() as client:
        for says, seen in ((True, 1), (False, 1), (True, 2), (True, 3)):
            gate = Gate(says)
            if says:
                assert (await post(client, provider.url, gate)).body == b"ok"
            else:
                with pytest.raises(NeverLeft):
                    await post(client, provider.url, gate)
            assert (len(provider.seen), gate.asked) == (seen, 1)


async def test_the_question_comes_after_the_wait_for_a_connection() -> None:
    """While every connection is in use nobody is asked: the answer would be old by the time of the write."""
    answer = asyncio.Event()

    async def script(line: Line) -> None:
        while True:
            await line.request()
            await answer.wait()
            await line.say(OK)

    async with Provider(script) as provider, make(limit=1) as client:
        first = asyncio.create_task(send(client, provider.url))
        while not provider.seen:
            await asyncio.sleep(0)
        gate = Gate(True)
        second = asyncio.create_task(post(client, provider.url, gate))
        for _ in range(50):
            await asyncio.sleep(0)
        assert gate.asked == 0
        answer.set()
        await asyncio.gather(first, second)
        assert (gate.asked, len(provider.seen), len(provider.lines)) == (1, 2, 1)


async def test_nobody_is_asked_where_there_is_no_connection() -> None:
    """A refused connection never left by itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    gate = Gate(True)
    async with make() as client:
        with pytest.raises(NeverLeft):
            await post(client, url, gate)
    assert gate.asked == 0


async def test_the_question_and_the_write_are_one_step() -> None:
    """No other task gets a turn between them: by the time one runs, the bytes are at the provider's socket."""
    unread: list[bool] = []

    async with Provider(answering(OK, None)) as provider, make() as client:

        def gate() -> bool:
            asyncio.get_running_loop().call_soon(look)
            return True

        def look() -> None:
            poll = select.poll()
            poll.register(provider.lines[0].sock, select.POLLIN)
            unread.append(bool(poll.poll(0)))

        await send(client, provider.url)  # the connection is kept, and nothing reads from it any more
        with pytest.raises(InDoubt):
            await post(client, provider.url, gate, timeout=0.3)
        assert (unread, len(provider.lines)) == ([True], 1)


@pytest.mark.parametrize("fault", ["FIN, nothing read", "RST, whole POST read", "no answer", "FIN in the body"])
async def test_what_was_let_go_is_in_doubt_as_ever(fault: str) -> None:
    """After a yes the faults mean what they mean without a question."""
    script, seen = IN_DOUBT[fault]
    async with Provider(script) as provider, make() as client:
        gate = Gate(True)
        with pytest.raises(InDoubt):
            await post(client, provider.url, gate, timeout=0.4)
        assert (len(provider.seen), gate.asked) == (seen, 1)


SENDER = """
import asyncio, sys, uvloop
from app import http

async def main():
    async with http.client(total=5.0) as client:
        await http.post(client, sys.argv[2], headers={}, content=b"x" * 2000)  # nobody is asked: no crash point
        await http.post(client, sys.argv[2], headers={}, content=b"y" * 2000, may_leave=lambda: True)

with asyncio.Runner(loop_factory={"asyncio": None, "uvloop": uvloop.new_event_loop}[sys.argv[1]]) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_the_crash_point_in_mid_post_is_after_the_write(loop: str) -> None:
    """A process killed at `deliver.posting` has handed its whole request to the socket, and has read no answer."""
    bodies: list[bytes] = []
    hung_up = asyncio.Event()

    async def script(line: Line) -> None:
        bodies.append(await line.request())
        await line.say(OK)
        bodies.append(await line.request())
        await line.gone()
        hung_up.set()

    async with Provider(script) as provider:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SENDER, loop, provider.url, env={**os.environ, "CRASHPOINT": "deliver.posting:1"}
        )
        try:
            assert await asyncio.wait_for(child.wait(), 20) == -signal.SIGKILL
            await asyncio.wait_for(hung_up.wait(), 2)
        finally:
            if child.returncode is None:
                child.kill()
        assert bodies == [b"x" * 2000, b"y" * 2000]


# ── writing, cancelling, and answers that are answers ─────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # long on purpose
async def test_a_deadline_in_mid_write_is_in_doubt() -> None:
    """The provider takes the connection and reads nothing: the socket's buffers are full of us."""
    async with Provider(hold) as provider, make() as client:
        with pytest.raises(InDoubt):
            await send(client, provider.url, content=bytes(32 * 1024 * 1024), timeout=0.3)
        assert len(provider.lines) == 1


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # long on purpose
async def test_an_early_answer_to_a_body_half_written_is_an_answer() -> None:
    """A provider may refuse a long body before it has read it."""

    async def script(line: Line) -> None:
        await line.head()
        await line.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await hold(line)

    async with Provider(script) as provider, make() as client:
        answer = await send(client, provider.url, content=bytes(32 * 1024 * 1024))
        assert (answer.status, answer.body) == (413, b"big")


async def test_cancellation_stays_cancellation_and_hangs_up() -> None:
    """Who cancels gets CancelledError, and the connection is not left to be read by the next request."""
    hung_up = asyncio.Event()

    async def script(line: Line) -> None:
        await line.request()
        await line.say(HALF_BODY)
        await line.gone()
        hung_up.set()

    async with Provider(script) as provider, make() as client:
        task = asyncio.create_task(send(client, provider.url))
        while not provider.seen:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(hung_up.wait(), 2)


async def test_who_is_cancelled_in_the_line_of_those_with_answers_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is here and nobody will read it. (A turnstile that lets nobody through is the one thing patched here.)"""
    hung_up = asyncio.Event()
    in_line = asyncio.Event()

    class Shut(Turnstile):
        async def through(self) -> None:
            in_line.set()
            await super().through()

    async def script(line: Line) -> None:
        await line.request()
        await line.say(HALF_BODY)
        await line.gone()
        hung_up.set()

    monkeypatch.setattr(http, "Turnstile", lambda: Shut(0))
    async with Provider(script) as provider, make() as client:
        task = asyncio.create_task(send(client, provider.url))
        await asyncio.wait_for(in_line.wait(), 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(hung_up.wait(), 2)


@pytest.mark.parametrize("status", [302, 400, 429, 500, 503])
async def test_an_answer_of_any_status_is_an_answer(status: int) -> None:
    """Refusals, redirects and faults come back with headers and body: what they mean is the channel's to say."""
    head = f"HTTP/1.1 {status} No\r\nRetry-After: 7\r\nLocation: /elsewhere\r\nContent-Length: 2\r\n\r\n{{}}"
    async with Provider(answering(head.encode(), None)) as provider, make() as client:
        answer = await send(client, provider.url)
        assert (answer.status, answer.headers["retry-after"], answer.body) == (status, "7", b"{}")
        assert len(provider.seen) == 1


async def test_no_cookie_is_kept() -> None:
    """What a provider sets in one tenant's answer does not travel with the next tenant's request."""

    async def script(line: Line) -> None:
        while True:
            await line.request()
            await line.say(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: tenant=noor; Path=/\r\n\r\n"))

    async with Provider(script) as provider, make() as client:
        for _ in range(2):
            await send(client, provider.url)
        assert len(provider.seen) == 2
        assert not [head for head in provider.seen if b"cookie" in head.lower()]


async def test_the_request_arrives_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Path, headers and body pass unchanged, no compression is asked for, and the environment's proxy is not used."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    bodies: list[bytes] = []

    async def script(line: Line) -> None:
        bodies.append(await line.request())
        await line.say(OK)

    async with Provider(script) as provider, make() as client:
        await send(client, provider.url + "/a%2Fb?c=d")
        head = provider.seen[0].decode().lower()
        assert head.startswith("post /v23.0/1/messages/a%2fb?c=d http/1.1")
        assert f"authorization: bearer {TOKEN.lower()}" in head
        assert "accept-encoding: identity" in head
        assert bodies == [b'{"text":"x"}']


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_is_read_as_it_arrives() -> None:
    """The first event is here before the second was sent."""
    first_read = asyncio.Event()

    async def script(line: Line) -> None:
        await line.request()
        await line.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await first_read.wait()
        await line.say(b"6\r\nsecond\r\n0\r\n\r\n")

    async with Provider(script) as provider, make() as client:
        chunks = []
        async with http.stream(client, "POST", provider.url, headers=HEADERS, content=b"{}") as response:
            assert response.status == 200
            async for chunk in response:
                chunks.append(chunk)
                first_read.set()
        assert chunks == [b"first", b"second"]


async def test_a_stream_cut_in_its_midst_is_in_doubt_after_what_came() -> None:
    """What arrived was read; the break is told, not taken for the end."""
    async with Provider(answering(HALF_CHUNKS, Line.fin)) as provider, make() as client:
        chunks = []
        with pytest.raises(InDoubt):
            async with http.stream(client, "POST", provider.url, headers=HEADERS, content=b"{}") as response:
                async for chunk in response:
                    chunks.append(chunk)
        assert chunks == [b"hello"]


async def test_leaving_a_stream_hangs_up_and_lets_the_readers_error_pass() -> None:
    """An error of the reader's own is not the provider's, and the rest of the answer is not read."""
    hung_up = asyncio.Event()

    async def script(line: Line) -> None:
        await line.request()
        await line.say(HALF_CHUNKS)
        await line.gone()
        hung_up.set()

    async with Provider(script) as provider, make() as client:
        with pytest.raises(TimeoutError, match="mine"):
            async with http.stream(client, "POST", provider.url, headers=HEADERS, content=b"{}") as response:
                async for _ in response:
                    raise TimeoutError("mine")
        await asyncio.wait_for(hung_up.wait(), 2)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0.0.0.0"])
async def test_a_public_client_connects_to_nothing_inside(host: str) -> None:
    """However the address is written, and whether a name or a number led to it: no connection is made."""
    async with Provider(lambda line: line.gone()) as provider, http.client(total=2.0, public=True) as client:
        port = provider.url.split(":")[2].split("/")[0]
        with pytest.raises(NeverLeft) as error:
            await http.post(client, f"http://{host}:{port}/", headers=HEADERS, content=b"{}")
        assert provider.lines == []
    assert isinstance(error.value, Inside) or host in ("[::1]", "2130706433")  # where there is no such address to try
    assert TOKEN not in "".join(traceback.format_exception(error.value))
