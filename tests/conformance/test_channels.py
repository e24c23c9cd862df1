"""What every WhatsApp transport must do: hand a text over once, and say truly what became of it. Against the sandbox.

A new transport joins by a line in `TRANSPORTS` and a sandbox face that speaks its wire format.
"""

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from app import http
from app.channels import Accepted, Provider, provider
from app.directory import Channel
from app.errors import InDoubt, NeverLeft, QasidError, Refused, SendError
from app.messages import Identity, Key
from app.sandbox.faults import Fault
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
TEXT = "السلام عليكم — *hello* https://example.org 👋"


class Room:
    """A transport, a channel that it sends for, and what the provider saw."""

    def __init__(self, transport: Provider, sandbox: Sandbox, client: httpx.AsyncClient) -> None:
        self.transport, self.sandbox, self.client = transport, sandbox, client
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


@pytest.fixture(params=TRANSPORTS)
async def room(request: pytest.FixtureRequest) -> AsyncIterator[Room]:
    async with running(port=0) as sandbox, http.client(total=5.0) as client:
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
        yield Room(provider(request.param), sandbox, client)


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
