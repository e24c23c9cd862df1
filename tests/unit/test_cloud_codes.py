"""What becomes of a send to the Cloud API: by Graph's code, and against a provider that answers anything at all."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web

from app import http
from app.channels import Accepted
from app.channels.cloud import CloudAPI
from app.channels.cloud_codes import refusal
from app.directory import Channel
from app.errors import InDoubt, NeverLeft, Refused
from app.messages import Identity, Key
from app.vault import Secret

pytestmark = pytest.mark.anyio

KEY = Key(UUID("0198c0de-0000-7000-8000-000000000001"), 1)
PERSON = Identity("wa_id", "15550002222")

# docs/wire-cloud.md, section 1.2.
HOLD = [0, 3, 10, 190, 200, 250, 299, 368, 131031, 130497, 131042, 131044, 131045]
AGAIN = [4, 80007, 130429, 131056, 131016, 131057, 133016]
UNKNOWN = [1, 2, 131000]
DEAD = [
    *(131048, 131064, 131049, 131050, 130472),  # spam, ecosystem, opt-out, experiment
    *(131026, 131021, 131030, 131051, 131062, 131063),  # undeliverable
    *(100, 131008, 131009, 131052, 131053, 137000),  # our request is wrong
    131047,  # the window is closed
    *(-1, 199, 300, 999_999),  # what nobody has listed
]
TABLE = [(c, "hold") for c in HOLD] + [(c, "again") for c in AGAIN] + [(c, "dead") for c in DEAD]


@pytest.mark.parametrize(("code", "then"), TABLE)
def test_a_code_says_what_may_be_done(code: int, then: str) -> None:
    """Hold for a person, again after a while, or never; what waits is bounded in time."""
    for attempt in (1, 2, 5, 50):
        refused = refusal(code, "said", attempt)
        assert isinstance(refused, Refused)
        assert (refused.code, refused.then) == (code, then)
        assert (refused.after > 0) == (then != "dead")
        assert refused.after <= 1024


@pytest.mark.parametrize("code", UNKNOWN)
def test_a_code_that_says_nothing_leaves_it_in_doubt(code: int) -> None:
    """1, 2 and 131000: it may have been taken."""
    assert isinstance(refusal(code, "said", 1), InDoubt)


def test_waits_grow_with_each_attempt() -> None:
    """Four to the n for the pair, doubling for the rest."""
    assert [_after(131056, n) for n in (1, 2, 3)] == [4, 16, 64]
    for code in (4, 130429, 190):
        assert _after(code, 1) < _after(code, 2)
        assert _after(code, 2) <= _after(code, 3)
        assert _after(code, 40) <= 300


def _after(code: int, attempt: int) -> float:
    refused = refusal(code, "", attempt)
    assert isinstance(refused, Refused)
    return refused.after


def graph_error(code: Any, **more: Any) -> bytes:
    error = {"message": f"(#{code}) said", "type": "OAuthException", "code": code, **more}
    return json.dumps({"error": error}).encode()


class Provider:
    """Answers every POST with `status` and `body`; `asked` is what it was last sent."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b""
        self.asked: Any = None
        self.headers: dict[str, str] = {}
        self.path = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked, self.path, self.headers = await request.json(), request.path, dict(request.headers)
        return web.Response(status=self.status, body=self.body)


Send = Callable[..., Any]


@asynccontextmanager
async def serving(provider: Provider) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/{rest:.*}", provider.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site.name
    finally:
        await runner.cleanup()


async def send(url: str, to: Identity = PERSON) -> Accepted:
    channel = Channel(
        tenant_id=UUID(int=1),
        id=UUID(int=2),
        slug="main",
        endpoint_id=UUID(int=3),
        address="1001",
        base_url=f"{url}/v23.0",
        token=Secret("EAAG"),
        enabled=True,
        session_gap_hours=3,
        answer_within_hours=24,
        late="store",
    )
    async with http.client(total=5.0) as client:
        return await CloudAPI().send_text(client, channel, to, "salam 👍", KEY, 5.0)


async def test_a_text_goes_out_with_our_key_and_without_previews() -> None:
    """To the channel's own number, under its token; the id that comes back is the chunk's."""
    provider = Provider()
    provider.body = b'{"messaging_product":"whatsapp","contacts":[{"input":"+1"}],"messages":[{"id":"wamid.OUT"}]}'
    async with serving(provider) as url:
        assert await send(url) == Accepted("wamid.OUT")
        assert (provider.path, provider.headers["Authorization"]) == ("/v23.0/1001/messages", "Bearer EAAG")
        assert provider.asked == {
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            "to": "+15550002222",
            "type": "text",
            "text": {"body": "salam 👍", "preview_url": False},
            "biz_opaque_callback_data": str(KEY),
        }
        await send(url, Identity("bsuid", "US.123"))
        assert provider.asked["recipient"] == "US.123"
        assert "to" not in provider.asked  # a user id in `to` is accepted, and never delivered


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b""),
        (500, b"<html>oops</html>"),
        (500, graph_error(131026)),
        (502, graph_error(190)),
        (503, graph_error(131016)),
        (503, b'{"messages":[{"id":"wamid.OUT"}]}'),
        (599, graph_error(131056)),
        (200, b""),
        (200, b"{}"),
        (200, b'{"messages":[]}'),
        (200, b'{"messages":[{}]}'),
        (200, b'{"messages":[{"id":null}]}'),
        (200, b'{"messages":[{"id":""}]}'),
        (200, b'{"messages":[{"id":"a b"}]}'),
        (200, b'{"messages":[{"id":"' + b"x" * 513 + b'"}]}'),
        (200, b'{"messages":[{"id":"wamid'),
        (200, graph_error(190)),
        (200, b"[" * 5000),
        (200, b'{"messages":[{"id":"\xff"}]}'),
        (302, b""),
        (400, b""),
        (400, b"Bad Request"),
        (404, b"<html></html>"),
        (429, b"slow down"),
        (401, b"{}"),
        (400, b'{"error":"x"}'),
        (400, b'{"error":{"message":"no code"}}'),
        (400, b'{"error":{"code":"190"}}'),
        (400, b'{"error":{"code":1' + b"0" * 5000 + b"}}"),
        (400, b"[" * 5000),
        (400, graph_error(131000)),
        (400, graph_error(1)),
        (400, graph_error(2)),
    ],
)
async def test_what_does_not_clearly_say_no_is_in_doubt(status: int, body: bytes) -> None:
    """5xx whatever stands in it, 200 without an id, 4xx without Graph's own words, and codes that say nothing."""
    provider = Provider()
    provider.status, provider.body = status, body
    async with serving(provider) as url:
        with pytest.raises(InDoubt):
            await send(url)
    assert provider.asked


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429])
@pytest.mark.parametrize(("code", "then"), [(190, "hold"), (131056, "again"), (130429, "again"), (131026, "dead")])
async def test_the_code_counts_and_not_the_http_status(status: int, code: int, then: str) -> None:
    """The same code with any 4xx means the same."""
    provider = Provider()
    provider.status, provider.body = status, graph_error(code, is_transient=True, error_data={"details": "…"})
    async with serving(provider) as url:
        with pytest.raises(Refused) as refused:
            await send(url)
    assert (refused.value.code, refused.value.then) == (code, then)


async def test_nobody_there_means_that_it_never_left() -> None:
    """A refused connection took nothing along."""
    async with serving(Provider()) as url:
        gone = url
    with pytest.raises(NeverLeft):
        await send(gone)
