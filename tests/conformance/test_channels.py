"""What every WhatsApp transport must do: hand a text over once, and say truly what became of it. Against the sandbox.

A new transport joins by a line in `TRANSPORTS` and a sandbox face that speaks its wire format.
"""

import asyncio
import base64
import hashlib
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from app import http
from app.channels import Accepted, Attachment, Media, Provider, provider
from app.directory import Channel
from app.errors import InDoubt, MediaBusy, MediaForbidden, MediaRefused, NeverLeft, QasidError, Refused, SendError
from app.messages import Identity, Key
from app.sandbox.faults import Fault
from app.sandbox.files import File
from app.sandbox.ledger import Line
from app.sandbox.numbers import Ladder, Number
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from app.vault import Secret

pytestmark = pytest.mark.anyio

TRANSPORTS = ["cloud"]
NUMBER, TOKEN = "1000200030004000", "EAAG-a-token-not-to-be-seen"
PERSON, BSUID = Identity("wa_id", "15550002222"), Identity("bsuid", "US.13491208655302741918")
CHUNK = UUID("01900000-0000-7000-8000-000000000001")
HOSTS = ("lookaside.fbsbx.com", "*.fbcdn.net")
PICTURE = Attachment(id="7700000000000001", media_type="image/jpeg")
TEXT = "السلام عليكم — *hello* https://example.org 👋"


class Room:
    """A transport, a channel that it sends for, and what the provider saw."""

    def __init__(
        self, transport: Provider, sandbox: Sandbox, client: httpx.AsyncClient, outside: httpx.AsyncClient
    ) -> None:
        self.transport, self.sandbox, self.client, self.outside = transport, sandbox, client, outside
        self.channel = Channel(
            tenant_id=UUID(int=1),
            id=UUID(int=2),
            slug="main",
            endpoint_id=UUID(int=3),
            address=NUMBER,
            base_url=sandbox.graph_url,
            token=Secret(TOKEN),
            enabled=True,
            session_gap_hours=3,
            answer_within_hours=24,
            late="store",
        )

    def fails(self, kind: str, **more: Any) -> None:
        self.sandbox.faults.queue("send", [Fault(kind=kind, **more)])  # type: ignore[arg-type]

    async def send(
        self,
        to: Identity = PERSON,
        *,
        text: str = TEXT,
        attempt: int = 1,
        refused: int = 0,
        timeout: float = 1.0,
        pair_seconds: float = 6.0,
        may_leave: Callable[[], bool] | None = None,
    ) -> Accepted:
        return await self.transport.send_text(
            self.client,
            self.channel,
            to,
            text,
            Key(CHUNK, attempt),
            timeout,
            refused=refused,
            pair_seconds=pair_seconds,
            may_leave=may_leave,
        )

    async def fate(self, **more: Any) -> SendError | Accepted:
        try:
            return await self.send(**more)
        except SendError as error:
            return error

    @property
    def lines(self) -> list[Line]:
        return self.sandbox.ledger.lines()

    def goes_wrong(self, kind: str, *, times: int = 1, **more: Any) -> None:
        """The next so many questions where a file lies."""
        self.sandbox.faults.queue("media", [Fault(kind=kind, **more)] * times)  # type: ignore[arg-type]

    async def media(
        self, file: Attachment | None = None, *, hosts: Sequence[str] = HOSTS, most: int = 100_000, timeout: float = 3.0
    ) -> Media:
        return await self.transport.media(
            self.client,
            self.outside,
            self.channel,
            file or PICTURE,
            hosts=hosts,
            most=most,
            deadline=time.monotonic() + timeout,
        )


@pytest.fixture(params=TRANSPORTS)
async def room(request: pytest.FixtureRequest) -> AsyncIterator[Room]:
    async with (
        running(port=0) as sandbox,
        http.client(total=5.0) as client,
        http.client(total=5.0, public=True) as outside,
    ):
        silent = Ladder(sent=None, delivered=None, read=None)
        sandbox.register(
            Number(
                phone_number_id=NUMBER,
                webhook_url="http://127.0.0.1:9/webhooks/meta",
                app_secret="s",
                token=TOKEN,
                ladder=silent,
            )
        )
        yield Room(provider(request.param), sandbox, client, outside)


async def test_an_accepted_text_is_told_by_the_providers_id(room: Room) -> None:
    """What the person gets is the text as it is, under the id that is returned and the key that statuses bring back."""
    accepted = await room.send(attempt=3)
    [line] = room.lines
    assert (line.provider_id, line.recipient, line.text, line.accepted) == (
        accepted.provider_id,
        PERSON.value,
        TEXT,
        True,
    )
    assert Key.parse(line.key) == Key(CHUNK, 3)


async def test_no_text_has_its_links_fetched(room: Room) -> None:
    """Previews are off: a provider would fetch URLs that the assistant chose."""
    await room.send()
    assert [line.preview_url for line in room.lines] == [False]


async def test_somebody_known_by_a_bsuid_alone_is_reached(room: Room) -> None:
    """A BSUID goes where the provider looks for it: in `to` it would be accepted and dropped."""
    await room.send(BSUID)
    [line] = room.lines
    assert (line.recipient, line.accepted, line.outcome) == (BSUID.value, True, "ok")


@pytest.mark.parametrize("text", ["a" * 4000, "ب" * 4000, "👨‍👩‍👧" * 500, "\u2028\x1b\u202e<script>\\u0000"])
async def test_a_text_arrives_as_it_is(room: Room, text: str) -> None:
    """Whatever script, length up to 4,000 units, or control character."""
    await room.send(text=text)
    assert [line.text for line in room.lines] == [text]


async def test_slow_is_not_lost(room: Room) -> None:
    """An answer within the timeout is an answer, and one that closes its connection too."""
    room.fails("slow", seconds=0.3)
    assert isinstance(await room.fate(), Accepted)
    room.fails("close_idle")
    assert isinstance(await room.fate(), Accepted)
    assert isinstance(await room.fate(), Accepted)
    assert len(room.lines) == 3


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("no_answer", {}),
        ("rst_before_accept", {}),
        ("rst_after_accept", {}),
        ("fin_before_accept", {}),
        ("fin_after_accept", {}),
        ("half_headers", {}),
        ("garbage", {}),
        ("stalled_body", {}),
        ("dripped_body", {"seconds": 0.05}),
        ("without_id", {}),
        ("http_500_json", {}),
        ("http_500_html", {}),
        ("http_500_after_accept", {}),
        ("graph_error", {"code": 131000}),
        ("graph_error", {"code": 1, "status": 400}),
        ("graph_error", {"code": 2, "status": 400}),
        ("graph_error", {"code": 131026, "status": 503}),
        ("graph_error", {"code": 2**31}),
        ("graph_error", {"code": 10**40}),
    ],
)
async def test_what_may_have_arrived_is_in_doubt_and_posted_once(room: Room, kind: str, more: dict[str, Any]) -> None:
    """Whatever the client cannot know is in doubt; it repeats nothing by itself."""
    room.fails(kind, **more)
    assert isinstance(await room.fate(timeout=0.4), InDoubt)
    assert len(room.lines) == 1


@pytest.mark.parametrize(
    ("code", "then", "least", "most"),
    [
        (131056, "again", 4, 4),  # this one person: 4ⁿ s
        (130429, "again", 1, 1),
        (131016, "again", 5, 5),
        (80007, "again", 60, 60),
        (4, "again", 60, 60),
        (190, "hold", 10, 300),
        (10, "hold", 10, 300),
        (200, "hold", 10, 300),
        (299, "hold", 10, 300),
        (368, "hold", 10, 300),
        (131031, "hold", 10, 300),
        (131042, "hold", 10, 300),
        (131026, "dead", 0, 0),
        (131047, "dead", 0, 0),
        (131051, "dead", 0, 0),
        (100, "dead", 0, 0),
        (199, "dead", 0, 0),
        (300, "dead", 0, 0),
        (424242, "dead", 0, 0),
    ],
)
async def test_a_refusal_says_what_may_be_done(room: Room, code: int, then: str, least: float, most: float) -> None:
    """By the provider's code: again after a while, hold until a person mends the channel, or never."""
    room.fails("graph_error", code=code)
    fate = await room.fate()
    assert isinstance(fate, Refused)
    assert (fate.code, fate.then) == (code, then)
    assert least <= fate.after <= most


@pytest.mark.parametrize(("status", "code"), [(200 + 1, 131026), (400, 131026), (404, 131026), (429, 131056)])
async def test_the_code_decides_not_the_http_status(room: Room, status: int, code: int) -> None:
    """Below 500 the HTTP status says nothing of a refusal, but that 2xx is none."""
    room.fails("graph_error", code=code, status=status)
    fate = await room.fate()
    assert isinstance(fate, InDoubt) if status < 300 else isinstance(fate, Refused) and fate.code == code


async def test_waits_grow_and_stay_bounded(room: Room) -> None:
    """Each further refusal waits at least as long as the last, and none longer than twenty minutes."""
    for code in (131056, 130429, 131016, 190):
        waits = []
        for refused in range(24):
            room.fails("graph_error", code=code)
            fate = await room.fate(refused=refused)
            assert isinstance(fate, Refused)
            waits.append(fate.after)
        assert waits == sorted(waits) and waits[-1] <= 1200 and waits[-1] > waits[0]


@pytest.mark.parametrize(
    ("code", "scope"),
    [(131056, "chunk"), (131016, "chunk"), (131026, "chunk"), (130429, "channel"), (4, "tenant"), (80007, "tenant")],
)
async def test_a_refusal_says_whom_its_wait_binds(room: Room, code: int, scope: str) -> None:
    """One person, the number, or all of the tenant's numbers."""
    room.fails("graph_error", code=code, status=400)
    fate = await room.fate()
    assert isinstance(fate, Refused) and fate.scope == scope


async def test_retry_after_binds_the_number_at_least_so_long(room: Room) -> None:
    """A 429 stops all that is sent from it, for no shorter than it asks and than the code's own wait."""
    for seconds, refused, after in ((3, 0, 3), (3, 3, 8), (100_000, 0, 3600)):
        room.fails("http_429", seconds=seconds)
        fate = await room.fate(refused=refused)
        assert isinstance(fate, Refused)
        assert (fate.then, fate.scope, fate.after) == ("again", "channel", after)


@pytest.mark.parametrize(
    ("headers", "body"),
    [(b"content-length: 100", b'{"err'), (b"content-encoding: gzip", b""), (b"content-length: 100", None)],
)
async def test_retry_after_is_minded_though_the_answer_breaks_off(
    room: Room, headers: bytes, body: bytes | None
) -> None:
    """Its headers have come; then it is cut, encoded, or stalls. In doubt, and the number is left alone as told."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\n" + headers + b"\r\n\r\n" + (body or b""))
        if body is None:
            await reader.read()  # until the client hangs up
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        room.channel = msgspec.structs.replace(room.channel, base_url=f"http://127.0.0.1:{port}")
        fate = await room.fate(timeout=0.5)
    assert isinstance(fate, InDoubt) and fate.after == 7


async def test_the_pairs_wait_scales_with_the_pairs_limit(room: Room) -> None:
    """Who is allowed a message in 60 ms waits a hundredth of the time."""
    room.fails("graph_error", code=131056)
    fate = await room.fate(refused=1, pair_seconds=0.06)
    assert isinstance(fate, Refused) and fate.after == pytest.approx(0.16)


async def test_what_may_not_leave_any_more_never_left(room: Room) -> None:
    """The last question before the write: a no leaves nothing at the provider, a yes is an ordinary send."""
    assert isinstance(await room.fate(may_leave=lambda: False), NeverLeft)
    assert room.lines == []
    assert isinstance(await room.fate(may_leave=lambda: True), Accepted)
    assert len(room.lines) == 1


async def test_a_wrong_token_holds_the_channel_and_is_not_told(room: Room) -> None:
    """The provider's 190; the error shows neither token nor text nor person."""
    room.channel = msgspec.structs.replace(room.channel, token=Secret("EAAG-another-one"))
    fate = await room.fate()
    assert isinstance(fate, Refused) and (fate.code, fate.then) == (190, "hold")
    assert room.lines == []
    _shows_nothing(fate, "EAAG-another-one")


@pytest.mark.parametrize(
    "kind", ["no_answer", "rst_after_accept", "half_headers", "garbage", "http_500_html", "without_id"]
)
async def test_no_error_shows_a_secret_or_what_was_written(room: Room, kind: str) -> None:
    """Errors end in logs and on pages."""
    room.fails(kind)
    fate = await room.fate(timeout=0.3)
    assert isinstance(fate, QasidError)
    _shows_nothing(fate, TOKEN)


def _shows_nothing(error: QasidError, token: str) -> None:
    shown = "".join(traceback.format_exception(error))
    assert token not in shown and PERSON.value not in shown and TEXT not in shown


@pytest.mark.parametrize("where", ["closed port", "no such host", "no url", "token with a line end"])
async def test_what_cannot_leave_never_left(room: Room, where: str) -> None:
    """Refused connections, names that are none and requests that cannot be made: nothing reached anybody."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    replace = msgspec.structs.replace
    room.channel = {
        "closed port": replace(room.channel, base_url=f"http://127.0.0.1:{port}/v23.0"),
        "no such host": replace(room.channel, base_url="http://graph.invalid/v23.0"),
        "no url": replace(room.channel, base_url="http://["),
        "token with a line end": replace(room.channel, token=Secret("x\r\ny: z")),
    }[where]
    assert isinstance(await room.fate(timeout=3.0), NeverLeft)
    assert room.lines == []


# --- read and typing ---


@pytest.mark.parametrize("typing", [True, False])
async def test_a_message_is_marked_read_with_or_without_typing(room: Room, typing: bool) -> None:
    """By the message's own id; it may be told again."""
    room.sandbox.ledger.said(NUMBER, "wamid.A")
    for _ in range(2):
        await room.transport.read(room.client, room.channel, "wamid.A", typing=typing, timeout=1.0)
    assert [(read.message_id, read.typing) for read in room.sandbox.ledger.reads] == [("wamid.A", typing)] * 2
    assert room.lines == []


@pytest.mark.parametrize(
    ("kind", "more", "told"),
    [
        ("graph_error", {"code": 130429}, Refused),
        ("http_500_json", {}, InDoubt),
        ("rst_before_accept", {}, InDoubt),
        ("garbage", {}, InDoubt),
        ("no_answer", {}, InDoubt),
    ],
)
async def test_a_receipt_that_fails_says_so_as_a_send_does(
    room: Room, kind: str, more: dict[str, Any], told: type[SendError]
) -> None:
    """Whoever asked decides that it does not matter."""
    room.sandbox.ledger.said(NUMBER, "wamid.A")
    room.sandbox.faults.queue("read", [Fault(kind=kind, **more)])  # type: ignore[arg-type]
    with pytest.raises(told) as error:
        await room.transport.read(room.client, room.channel, "wamid.A", typing=True, timeout=0.4)
    assert TOKEN not in "".join(traceback.format_exception(error.value))


async def test_a_receipt_for_what_nobody_wrote_is_refused_for_good(room: Room) -> None:
    """It is about that one message: nobody else has to wait."""
    with pytest.raises(Refused) as error:
        await room.transport.read(room.client, room.channel, "wamid.unknown", typing=True, timeout=1.0)
    assert (error.value.then, error.value.scope, error.value.after) == ("dead", "chunk", 0)


# --- files ---


async def test_a_file_is_fetched_by_its_id(room: Room) -> None:
    """Its bytes, and its type by its content."""
    found = await room.media()
    assert found == Media(media_type="image/jpeg", data=room.sandbox.files.by_id[PICTURE.id].data)
    assert [each.what for each in room.sandbox.files.fetched] == ["where", "download"]


@pytest.mark.parametrize("kind", ["expired", "http_500", "cut", "wrong_bytes", "stalled"])
async def test_what_may_pass_is_asked_for_anew_from_the_start(room: Room, kind: str) -> None:
    """A URL that has expired, a download that breaks off or is not what its digest says: where it lies is asked again."""
    room.goes_wrong(kind)
    if kind == "stalled":
        with pytest.raises(MediaBusy):
            await room.media(timeout=0.5)
        return
    assert (await room.media()).media_type == "image/jpeg"
    assert room.sandbox.files.count("where") == 2


@pytest.mark.parametrize("status", [408, 409, 425, 429, 503])
async def test_what_passes_elsewhere_passes_here(room: Room, status: int) -> None:
    """A status after which an assistant is asked again is worth another try here too."""
    async with _answered(room, b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % status) as asked:
        with pytest.raises(MediaBusy):
            await room.media()
    assert len(asked) == 3


async def test_a_file_that_never_comes_is_given_up_in_time(room: Room) -> None:
    """After a few tries, and by the deadline whatever happens."""
    room.goes_wrong("cut", times=20)
    with pytest.raises(MediaBusy):
        await room.media()
    assert room.sandbox.files.count("where") == 3
    for kind in ("no_answer", "slow", "stalled"):
        room.goes_wrong(kind, seconds=5.0)
        began = time.monotonic()
        with pytest.raises(MediaBusy):
            await room.media(timeout=0.3)
        assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(("kind", "wheres"), [("gone", 1), ("wrong_type", 1), ("too_big", 1)])
async def test_what_would_end_the_same_way_is_not_asked_again(room: Room, kind: str, wheres: int) -> None:
    """An id that nobody knows, a page in place of a picture, more bytes than are wanted."""
    room.goes_wrong(kind)
    with pytest.raises(MediaRefused):
        await room.media()
    assert room.sandbox.files.count("where") == wheres


async def test_a_file_is_bounded_before_and_while_it_comes(room: Room) -> None:
    """One that says its size is not begun; one that does not is left where it grows too long."""
    room.sandbox.files.by_id["9"] = File(media_type="image/jpeg", data=b"\xff\xd8\xff" + bytes(200_000))
    with pytest.raises(MediaRefused):
        await room.media(Attachment(id="9", media_type="image/jpeg"))
    assert room.sandbox.files.count("download") == 0
    room.goes_wrong("too_big")  # without a length, and without an end
    with pytest.raises(MediaRefused):
        await room.media()
    assert room.sandbox.files.count("download") == 1


@pytest.mark.parametrize("kind", ["inside", "elsewhere", "redirect"])
async def test_no_url_leads_where_we_may_not_ask(room: Room, kind: str) -> None:
    """An address inside, a host that is not on the list, a redirect: refused, and told from what is merely broken."""
    room.goes_wrong(kind)
    with pytest.raises(MediaForbidden) as error:
        await room.media()
    assert room.sandbox.files.count("where") == 1
    assert "169.254" not in str(error.value) and "example" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://lookaside.fbsbx.com/a",
        "https://lookaside.fbsbx.com:8443/a",
        "https://user@lookaside.fbsbx.com/a",
        "https://lookaside.fbsbx.com@127.0.0.1/a",
        "https://lookaside.fbsbx.com.evil.example/a",
        "https://evil.example/lookaside.fbsbx.com",
        "https://evil.example#.fbcdn.net",
        "https://evil.example?.fbcdn.net",
        "https://evil.example\\.fbcdn.net/a",
        "https://evilfbcdn.net/a",
        "https://.fbcdn.net/a",
        "https://a%2e.fbcdn.net/a",
        "https://lookaside.fbsbx.com./a",
        "https://127.0.0.1/a",
        "https://2130706433/a",
        "https://0x7f000001/a",
        "https://0177.0.0.1/a",
        "https://[::1]/a",
        "https://[::ffff:169.254.169.254]/a",
        "https://localhost/a",
        "ftp://lookaside.fbsbx.com/a",
        "file:///etc/passwd",
        "//lookaside.fbsbx.com/a",
        "https://lookaside.fbsbx.com/a b",
        "https://lookaside.fbsbx.com/\u0430",
        "https://[",
        "",
    ],
)
async def test_a_url_is_looked_at_before_anybody_is_asked(room: Room, url: str) -> None:
    """Scheme, port, user, host and characters, as a resolver and three parsers might read them."""
    with pytest.raises(MediaForbidden):
        await _told_to_go(room, url)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1"])
@pytest.mark.parametrize("host", ["lookaside.fbsbx.com", "scontent.xx.fbcdn.net"])
async def test_a_name_on_the_list_that_leads_inside_is_refused(
    room: Room, host: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is the address that would be connected to, at that moment: a resolver may say another than before."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    async def resolve(name: str, port: int, **_: Any) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 6, "", (address, port, 0, 0) if ":" in address else (address, port))]

    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def rebound(name: Any, port: Any, **more: Any) -> Any:
        return await (resolve(name, port) if name == host else real(name, port, **more))

    monkeypatch.setattr(loop, "getaddrinfo", rebound)
    with pytest.raises(MediaForbidden):
        await _told_to_go(room, f"https://{host}/a")


async def _told_to_go(room: Room, url: str) -> None:
    """Ask a provider that says that the file lies at `url`."""
    body = msgspec.json.encode({"url": url, "mime_type": "image/jpeg", "id": "77"})
    async with _answered(room, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body):
        await room.media()


@asynccontextmanager
async def _answered(room: Room, answer: bytes) -> AsyncIterator[list[bytes]]:
    """A provider that answers all with these bytes; what it is asked."""
    asked = list[bytes]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        room.channel = msgspec.structs.replace(room.channel, base_url=f"http://127.0.0.1:{port}")
        yield asked


@pytest.mark.parametrize("id", ["", ".", "..", "../me", "1/2", "a?b", "a#b", "a b", "a\n", "x" * 300, "٧٧"])
async def test_an_id_is_no_path(room: Room, id: str) -> None:
    """It comes in data and becomes part of a URL: what could lead elsewhere is not asked for."""
    with pytest.raises(MediaRefused):
        await room.media(Attachment(id=id, media_type="image/jpeg"))
    assert room.sandbox.files.fetched == []


async def test_a_digest_of_the_webhook_holds_too(room: Room) -> None:
    """In base64 or hex; one that is no SHA-256 says nothing."""
    data = room.sandbox.files.by_id[PICTURE.id].data
    right = hashlib.sha256(data).digest()
    for digest in (base64.b64encode(right).decode(), right.hex(), "c2FuZGJveA==", "no digest", ""):
        await room.media(msgspec.structs.replace(PICTURE, sha256=digest))
    with pytest.raises(MediaBusy):
        await room.media(msgspec.structs.replace(PICTURE, sha256=hashlib.sha256(b"other").hexdigest()))


async def test_no_error_of_a_file_shows_a_secret_or_its_url(room: Room) -> None:
    """They end in logs."""
    for kind in ("gone", "cut", "inside", "redirect", "wrong_type", "no_answer"):
        room.goes_wrong(kind, times=3)
        with pytest.raises(QasidError) as error:
            await room.media(timeout=0.4)
        shown = "".join(traceback.format_exception(error.value))
        assert TOKEN not in shown and "/files/" not in shown and "meta-data" not in shown
        room.sandbox.faults.clear()
