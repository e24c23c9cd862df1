"""What becomes of a send to the Cloud API: by Graph's code, and against a provider that answers anything at all."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from app import http
from app.channels import Accepted
from app.channels.cloud import CloudAPI
from app.channels.cloud_codes import refusal
from app.channels.cloud_waits import regain_access
from app.directory import Channel
from app.errors import InDoubt, NeverLeft, Refused
from app.messages import Identity, Key
from app.retrying import LONGEST, retry_after
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


def test_a_full_number_is_not_stopped_for_long() -> None:
    """130429 stops all that is sent from it: its waits do not grow as those of one chunk may."""
    assert [_after(130429, n) for n in (1, 2, 3, 4, 5, 40)] == [1, 2, 4, 8, 16, 16]


def test_the_pairs_wait_follows_from_what_the_pair_is_allowed() -> None:
    """Four to the n where one message in 6 s is allowed; a hundredth where a hundredth is."""
    assert [_after(131056, n, pair_seconds=0.06) for n in (1, 2, 3)] == pytest.approx([0.04, 0.16, 0.64])


@pytest.mark.parametrize(
    ("code", "status", "headers", "scope"),
    [
        (131016, 400, {}, "chunk"),
        (190, 401, {}, "chunk"),
        (131026, 400, {}, "chunk"),
        (131056, 400, {}, "chunk"),
        (131056, 429, {"Retry-After": "3"}, "chunk"),  # one person too often: nobody else has to wait for it
        (130429, 400, {}, "channel"),
        (130429, 429, {}, "channel"),
        (131016, 429, {}, "channel"),
        (131016, 400, {"Retry-After": "3"}, "channel"),
        (131026, 429, {"Retry-After": "3"}, "channel"),
        (4, 400, {}, "tenant"),
        (80007, 429, {"Retry-After": "3"}, "tenant"),
    ],
)
def test_a_wait_binds_whom_it_was_meant_for(code: int, status: int, headers: dict[str, str], scope: str) -> None:
    """One person, the number, or all of a tenant's numbers: by the code, else a 429 and a `Retry-After` mean the number."""
    refused = _refused(code, status=status, headers=httpx.Headers(headers))
    assert refused.scope == scope


@pytest.mark.parametrize("code", [*HOLD, *AGAIN, *DEAD])
@pytest.mark.parametrize("asked", [1, 700, 3000])
def test_no_wait_is_shorter_than_retry_after(code: int, asked: int) -> None:
    """Whatever our own reading of the code: a dead chunk, too, leaves the number alone for as long."""
    own = _refused(code).after
    refused = _refused(code, headers=httpx.Headers({"Retry-After": str(asked)}))
    assert refused.after == max(own, asked)


@pytest.mark.parametrize("code", UNKNOWN)
def test_what_is_in_doubt_tells_retry_after_too(code: int) -> None:
    """Whether it arrived is one thing, when the number may send again another."""
    doubt = refusal(code, "", 1, status=400, headers=httpx.Headers({"Retry-After": "7"}))
    assert isinstance(doubt, InDoubt) and doubt.after == 7


def _usage(*minutes: Any) -> str:
    kinds = [
        {
            "type": "whatsapp",
            "call_count": 100,
            "total_cputime": 2,
            "total_time": 3,
            "estimated_time_to_regain_access": m,
        }
        for m in minutes
    ]
    return json.dumps({"123456": kinds})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (_usage(2), 120),
        (_usage(0, 5, 1), 300),
        (_usage(0.5), 30),
        (_usage(10**9), LONGEST),
        ('{"1":[{"estimated_time_to_regain_access":1}],"2":[{"estimated_time_to_regain_access":4}]}', 240),
        (_usage(0), None),
        (_usage(-3), None),
        (_usage("2"), None),
        (_usage(None), None),
        ('{"1":[{"type":"whatsapp"}]}', None),
        ('{"1":[]}', None),
        ("{}", None),
        ("[]", None),
        ('{"1":[{"estimated_time_to_regain_access":1e999}]}', None),
        ('{"1":[{"estimated_time_to_regain_access":2', None),
        ("[" * 5000, None),
        ("", None),
    ],
)
@pytest.mark.parametrize("code", [4, 80007])
def test_the_accounts_wait_is_what_meta_estimates(code: int, value: str, seconds: float | None) -> None:
    """The longest of its estimates, at most an hour; where there is none, or none that parses, a minute that doubles."""
    headers = httpx.Headers({"X-Business-Use-Case-Usage": value, "X-App-Usage": '{"call_count":100}'})
    assert regain_access(headers) == seconds
    assert [_refused(code, n, headers=headers).after for n in (1, 2)] == (
        [60, 120] if seconds is None else [seconds] * 2
    )


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_no_header_can_break_an_answer(value: bytes, date: bytes) -> None:
    """Whatever stands in them, a wait between nothing and an hour comes out."""
    headers = httpx.Headers([(b"Retry-After", value), (b"Date", date), (b"X-Business-Use-Case-Usage", value)])
    for asked in (retry_after(headers), regain_access(headers)):
        assert asked is None or 0 <= asked <= LONGEST


def _refused(code: int, attempt: int = 1, **more: Any) -> Refused:
    refused = refusal(code, "", attempt, **more)
    assert isinstance(refused, Refused)
    return refused


def _after(code: int, attempt: int, **more: Any) -> float:
    return _refused(code, attempt, **more).after


def graph_error(code: Any, **more: Any) -> bytes:
    error = {"message": f"(#{code}) said", "type": "OAuthException", "code": code, **more}
    return json.dumps({"error": error}).encode()


class Provider:
    """Answers every POST with `status`, `body` and the headers `says`; `asked` is what it was last sent."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b""
        self.says: dict[str, str] = {}
        self.asked: Any = None
        self.headers: dict[str, str] = {}
        self.path = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked, self.path, self.headers = await request.json(), request.path, dict(request.headers)
        return web.Response(status=self.status, body=self.body, headers=self.says)


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


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, b""),
        (503, graph_error(130429)),
        (429, b"slow down"),
        (429, graph_error(131000)),
        (429, graph_error(130429)),
        (400, graph_error(131026)),
    ],
)
async def test_retry_after_is_minded_whatever_the_answer(status: int, body: bytes) -> None:
    """In doubt or refused: the number is left alone for as long as it was asked to be."""
    provider = Provider()
    provider.status, provider.body, provider.says = status, body, {"Retry-After": "17"}
    async with serving(provider) as url:
        with pytest.raises((InDoubt, Refused)) as told:
            await send(url)
    assert isinstance(told.value, InDoubt | Refused)
    assert told.value.after == 17
    assert getattr(told.value, "scope", "channel") == "channel"


async def test_nobody_there_means_that_it_never_left() -> None:
    """A refused connection took nothing along."""
    async with serving(Provider()) as url:
        gone = url
    with pytest.raises(NeverLeft):
        await send(gone)
