"""The sandbox speaks the providers' wire formats (WIRE.md 1.1, 1.2, 1.5, 2) and fails on demand as it is told to.

What the other suites conclude from the sandbox they can conclude only because of what is held here.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from app.sandbox import scripts
from app.sandbox.faults import Chance, Fault, Faults, StatusFaults
from app.sandbox.limits import Limits
from app.sandbox.numbers import Ladder, NotLoopback, Number
from app.sandbox.people import FILES, Spoken
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox

pytestmark = pytest.mark.anyio

NUMBER = "1000200030004000"
PERSON = "15550002222"
SECRET = "app-secret"
FAST = Ladder(sent=0.0, delivered=0.05, read=0.1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Webhook:
    """A service's webhook: keeps what it was sent, answers what it is told to."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[int] = []
        self.bodies: list[tuple[bytes, dict[str, str]]] = []
        self.statuses: list[dict[str, Any]] = []
        self.changed = asyncio.Condition()

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        status = self.answers.pop(0) if self.answers else 200
        async with self.changed:
            self.bodies.append((body, {name.casefold(): value for name, value in request.headers.items()}))
            if status == 200 and body.startswith(b'{"object":'):
                for entry in json.loads(body)["entry"]:
                    for change in entry["changes"]:
                        self.statuses += change["value"].get("statuses", [])
            self.changed.notify_all()
        return web.Response(status=status)

    async def until(self, count: int, *, what: str = "statuses") -> None:
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(lambda: len(getattr(self, what)) >= count)


@asynccontextmanager
async def listening() -> AsyncIterator[Webhook]:
    webhook = Webhook()
    app = web.Application()
    app.router.add_post("/webhooks/meta", webhook.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    webhook.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks/meta"
    try:
        yield webhook
    finally:
        await runner.cleanup()


class World:
    """A sandbox, a webhook and a client."""

    def __init__(self, sandbox: Sandbox, webhook: Webhook, client: aiohttp.ClientSession) -> None:
        self.sandbox, self.webhook, self.client = sandbox, webhook, client

    def register(self, **more: Any) -> None:
        settings: dict[str, Any] = {"ladder": FAST, "redelivery": (0.01, 0.02)} | more
        self.sandbox.register(
            Number(phone_number_id=NUMBER, webhook_url=self.webhook.url, app_secret=SECRET, **settings)
        )

    async def graph(self, body: Any, token: str = "t") -> tuple[int, dict[str, Any]]:
        url = f"{self.sandbox.graph_url}/{NUMBER}/messages"
        async with self.client.post(url, json=body, headers={"Authorization": f"Bearer {token}"}) as answer:
            return answer.status, json.loads(await answer.read())

    async def send(self, text: str = "hi", key: str | None = None, **more: Any) -> tuple[int, dict[str, Any]]:
        return await self.graph(text_message(text, key) | more)

    async def control(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        async with self.client.request(method, f"{self.sandbox.url}{path}", **more) as answer:
            return answer.status, json.loads(await answer.read())


def text_message(text: str, key: str | None = None) -> dict[str, Any]:
    body = {
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": f"+{PERSON}",
        "type": "text",
        "text": {"body": text, "preview_url": False},
    }
    return body | ({"biz_opaque_callback_data": key} if key else {})


@pytest.fixture
async def world() -> AsyncIterator[World]:
    timeout = aiohttp.ClientTimeout(total=5)
    async with running() as sandbox, listening() as webhook, aiohttp.ClientSession(timeout=timeout) as client:
        world = World(sandbox, webhook, client)
        world.register()
        yield world


# --- Graph ---------------------------------------------------------------------------------------------------------


async def test_a_send_is_answered_as_meta_does_and_stands_in_the_ledger(world: World) -> None:
    """200, the contact's input and wa_id, one wamid; the ledger holds recipient, id, key, text, context, times."""
    before = time.time()
    status, answer = await world.send("hello", "chunk:1", context={"message_id": "wamid.A"})
    wamid = answer["messages"][0]["id"]
    assert status == 200 and wamid.startswith("wamid.")
    assert answer == {
        "messaging_product": "whatsapp",
        "contacts": [{"input": f"+{PERSON}", "wa_id": PERSON}],
        "messages": [{"id": wamid}],
    }
    (line,) = world.sandbox.ledger.lines(recipient=f"+{PERSON}")
    assert (line.provider_id, line.key, line.text, line.context) == (wamid, "chunk:1", "hello", "wamid.A")
    assert (line.accepted, line.responded, line.outcome, line.attempt) == (True, True, "ok", 0)
    assert before - 0.1 <= line.t <= time.time() + 0.1


async def test_a_request_that_meta_refuses_is_refused_with_graphs_code(world: World) -> None:
    """190 without or with a wrong token, 100 for a bad parameter; nothing of it reaches a recipient."""
    world.register(token="right")
    for token in ("", "wrong"):
        status, answer = await world.graph(text_message("hi"), token)
        assert (status, answer["error"]["code"], answer["error"]["type"]) == (401, 190, "OAuthException")
    good = text_message("hi")
    for bad in (
        good | {"text": {"body": ""}},
        good | {"text": {"body": "x" * 4097}},
        {name: value for name, value in good.items() if name != "to"},
        good | {"type": "video"},
        good | {"messaging_product": "sms"},
        good | {"biz_opaque_callback_data": "k" * 513},
        ["not", "a", "message"],
    ):
        status, answer = await world.graph(bad, "right")
        assert (status, answer["error"]["code"]) == (400, 100), bad
        assert set(answer["error"]) == {"message", "type", "code", "error_data", "is_transient", "fbtrace_id"}
    assert (await world.graph(good | {"text": {"body": "é" * 4096}}, "right"))[0] == 200
    assert len(world.sandbox.ledger.lines()) == 1


async def test_a_bsuid_goes_by_recipient_and_is_dropped_in_to(world: World) -> None:
    """A BSUID in `to` is answered 200 and never arrives; in `recipient` it arrives, and its statuses name it."""
    bsuid = {name: value for name, value in text_message("hi").items() if name != "to"}
    assert (await world.graph(bsuid | {"to": "US.123"}))[0] == 200
    assert world.sandbox.ledger.lines(recipient="US.123", accepted=True) == []
    assert (await world.graph(bsuid | {"recipient": "US.123"}))[0] == 200
    await world.webhook.until(3)
    assert {status["recipient_user_id"] for status in world.webhook.statuses} == {"US.123"}
    assert not any("recipient_id" in status for status in world.webhook.statuses)


async def test_a_read_receipt_needs_an_id_that_a_person_sent_to_this_number(world: World) -> None:
    """{"success": true} and a line in the ledger for a known wamid; 131009 for any other."""
    said = await world.sandbox.say(Spoken(phone_number_id=NUMBER, sender=PERSON, text="hi"))
    read = {"messaging_product": "whatsapp", "status": "read", "message_id": said.ids[0]}
    assert await world.graph(read) == (200, {"success": True})
    assert await world.graph(read | {"typing_indicator": {"type": "text"}}) == (200, {"success": True})
    assert [each.typing for each in world.sandbox.ledger.reads] == [False, True]
    status, answer = await world.graph(read | {"message_id": "wamid.unknown"})
    assert (status, answer["error"]["code"]) == (400, 131009)


async def test_the_pair_limit_refuses_until_the_burst_is_paid_back(world: World) -> None:
    """45 in a burst, the 46th is 131056; after 45 × 6 s (here divided by 600) the pair is free again."""
    world.sandbox.meter.limits = Limits(pair=True, scale=6000 / 6)
    meter = world.sandbox.meter
    burst = [meter.refuses(NUMBER, PERSON, 100.0) for _ in range(46)]
    assert burst == [None] * 45 + [131056]
    assert meter.refuses(NUMBER, "15550009999", 100.0) is None
    assert meter.refuses(NUMBER, PERSON, 100.0 + 44 * 0.006) == 131056
    assert meter.refuses(NUMBER, PERSON, 100.0 + 45 * 0.006 + 1e-6) is None


async def test_the_numbers_throughput_refuses_what_is_over_it(world: World) -> None:
    """With 3 messages a second switched on, the fourth at once is 130429 and does not arrive."""
    world.sandbox.meter.limits = Limits(throughput=3)
    answers = [await world.send(f"{i}") for i in range(4)]
    assert [status for status, _ in answers] == [200, 200, 200, 429]
    assert answers[3][1]["error"]["code"] == 130429
    assert len(world.sandbox.ledger.lines(accepted=True)) == 3


# --- statuses and webhooks -----------------------------------------------------------------------------------------


async def test_statuses_climb_in_order_signed_and_carry_our_key(world: World) -> None:
    """sent, delivered, read in an envelope for the number, signed over the raw bytes with the app secret."""
    _, answer = await world.send("hello", "chunk:1")
    await world.webhook.until(3)
    assert [status["status"] for status in world.webhook.statuses] == ["sent", "delivered", "read"]
    for status in world.webhook.statuses:
        assert status["id"] == answer["messages"][0]["id"]
        assert (status["recipient_id"], status["biz_opaque_callback_data"]) == (PERSON, "chunk:1")
        assert abs(int(status["timestamp"]) - time.time()) < 5
    assert "conversation" in world.webhook.statuses[0] and "pricing" in world.webhook.statuses[0]
    for body, headers in world.webhook.bodies:
        sha256 = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        assert headers["x-hub-signature-256"] == f"sha256={sha256}"
        assert headers["content-type"] == "application/json"
        envelope = json.loads(body)
        assert envelope["object"] == "whatsapp_business_account"
        (change,) = envelope["entry"][0]["changes"]
        assert (change["field"], change["value"]["messaging_product"]) == ("messages", "whatsapp")
        assert change["value"]["metadata"]["phone_number_id"] == NUMBER


async def test_statuses_that_fall_due_together_share_a_webhook(world: World) -> None:
    """Meta batches: many messages' statuses come in far fewer POSTs, each status once."""
    await asyncio.gather(*(world.send(f"{i}", f"{i}:1") for i in range(50)))
    await world.webhook.until(150)
    seen = Counter((each["biz_opaque_callback_data"], each["status"]) for each in world.webhook.statuses)
    assert len(seen) == 150 and set(seen.values()) == {1}
    assert len(world.webhook.bodies) < 75


async def test_a_webhook_not_answered_200_comes_again_byte_for_byte_until_it_is(world: World) -> None:
    """500, 503, then 200: three deliveries with the same bytes and signature, then silence."""
    world.webhook.answers = [500, 503]
    said = await world.sandbox.say(Spoken(phone_number_id=NUMBER, sender=PERSON, text="hi"))
    assert said.status == 500
    await world.webhook.until(3, what="bodies")
    await world.sandbox.ledger.tally.reach("acknowledged", 1, 5)
    assert len({body for body, _ in world.webhook.bodies}) == 1
    assert len({headers["x-hub-signature-256"] for _, headers in world.webhook.bodies}) == 1
    assert [(each.tries, each.status) for each in world.sandbox.ledger.deliveries] == [(1, 500), (2, 503), (3, 200)]
    assert world.sandbox.courier.waiting == 0


async def test_a_webhook_that_nobody_takes_is_tried_again_and_bounded(world: World) -> None:
    """A refused connection counts as not answered; after `tries` it is given up."""
    url = world.webhook.url.replace("/webhooks/meta", "/").rsplit(":", 1)[0] + ":1/"
    world.register(tries=3)
    said = await world.sandbox.say(Spoken(phone_number_id=NUMBER, sender=PERSON, text="hi"), url=url)
    assert said.status is None and said.deliveries[0].error == "ClientConnectorError"
    async with asyncio.timeout(5):
        while len(world.sandbox.ledger.deliveries) < 3:  # the third try has no event of its own
            await asyncio.sleep(0.01)
    assert world.sandbox.courier.waiting == 0


async def test_statuses_are_dropped_tripled_reversed_and_stopped_on_demand(world: World) -> None:
    """Each way in which an echo can go wrong, alone and with certainty."""
    faults, webhook = world.sandbox.faults, world.webhook
    faults.statuses = StatusFaults(drop=1)
    await world.send("dropped", "d:1")
    faults.statuses = StatusFaults(triple=1)
    await world.send("tripled", "t:1")
    await webhook.until(9)
    assert Counter((each["biz_opaque_callback_data"], each["status"]) for each in webhook.statuses) == {
        ("t:1", "sent"): 3,
        ("t:1", "delivered"): 3,
        ("t:1", "read"): 3,
    }
    faults.statuses = StatusFaults(reorder=1)
    webhook.statuses.clear()
    await world.send("reversed", "r:1")
    await webhook.until(3)
    assert [each["status"] for each in webhook.statuses] == ["read", "delivered", "sent"]
    faults.statuses = StatusFaults()
    webhook.statuses.clear()
    world.sandbox.statuses.stop(0.4)
    stopped = time.monotonic()
    await world.send("stopped", "s:1")
    await webhook.until(3)
    assert time.monotonic() - stopped >= 0.39


async def test_a_message_can_fail_after_it_was_accepted(world: World) -> None:
    """status_failed: 200 with an id, then one `failed` with the code; silent: 200 and no status at all."""
    world.sandbox.faults.queue("send", ["silent", Fault(kind="status_failed", code=131047)])
    assert [(await world.send(f"{i}", f"{i}:1"))[0] for i in range(2)] == [200, 200]
    await world.webhook.until(1)
    (status,) = world.webhook.statuses
    assert (status["status"], status["errors"][0]["code"]) == ("failed", 131047)
    assert (status["biz_opaque_callback_data"], world.sandbox.statuses.waiting) == ("1:1", 0)
    assert [line.silent for line in world.sandbox.ledger.lines()] == [True, False]


async def test_statuses_take_turns_between_the_processes_of_an_endpoint(world: World) -> None:
    """To each of `status_urls` in turn; what one did not answer 200 goes to the next; the ledger knows whose they were."""
    async with listening() as other:
        slow = Ladder(sent=0.0, delivered=0.1, read=0.2)
        world.register(ladder=slow, status_urls=(world.webhook.url, other.url))
        _, answer = await world.send("turns", "t:1")
        assert await world.sandbox.ledger.tally.reach("acknowledged", 3, 5.0)
        wamid = answer["messages"][0]["id"]
        assert [(d.url, d.ids) for d in world.sandbox.ledger.deliveries] == [
            (url, (wamid,)) for url in (world.webhook.url, other.url, world.webhook.url)
        ]
        other.answers = [503]  # its turn comes next
        world.register(ladder=Ladder(sent=0.0, delivered=None, read=None), status_urls=(world.webhook.url, other.url))
        await world.send("again", "t:2")
        assert await world.sandbox.ledger.tally.reach("acknowledged", 4, 5.0)
        assert (len(other.bodies), other.statuses[-1]["status"]) == (2, "delivered")
        assert [d.status for d in world.sandbox.ledger.deliveries][-2:] == [503, 200]


# --- faults at the socket ------------------------------------------------------------------------------------------


async def raw_send(sandbox: Sandbox, text: str = "hi") -> tuple[bytes, str]:
    """A send over a bare socket: the bytes that came back, and how the connection ended."""
    body = json.dumps(text_message(text)).encode()
    head = f"POST /graph/v23.0/{NUMBER}/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(sandbox.url.rsplit(":", 1)[1]))
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    got, end = b"", "fin"
    try:
        async with asyncio.timeout(0.25):
            while piece := await reader.read(65536):
                got += piece
    except ConnectionResetError:
        end = "rst"
    except TimeoutError:
        end = "open"
    writer.close()
    return got, end


@pytest.mark.parametrize(
    ("fault", "accepted", "begins", "ends"),
    [
        ("ok", True, b"HTTP/1.1 200 OK", "open"),
        ("no_answer", True, b"", "open"),
        ("rst_before_accept", False, b"", "rst"),
        ("rst_after_accept", True, b"", "rst"),
        ("fin_before_accept", False, b"", "fin"),
        ("fin_after_accept", True, b"", "fin"),
        ("half_headers", True, b"HTTP/1.1 200 OK\r\nContent-Type: applic", "fin"),
        ("garbage", True, b"\x16\x03\x01", "fin"),
        ("stalled_body", True, b"HTTP/1.1 200 OK", "open"),
        ("dripped_body", True, b"H", "open"),
        ("without_id", True, b"HTTP/1.1 200 OK", "open"),
        ("close_idle", True, b"HTTP/1.1 200 OK", "fin"),
        ("http_500_json", False, b"HTTP/1.1 500", "open"),
        ("http_500_html", False, b"HTTP/1.1 502", "open"),
        ("http_500_after_accept", True, b"HTTP/1.1 500", "open"),
        ("http_429", False, b"HTTP/1.1 429", "open"),
        ("graph_error", False, b"HTTP/1.1 500", "open"),
    ],
)
async def test_each_fault_of_a_send_really_happens_on_the_wire(
    world: World, fault: str, accepted: bool, begins: bytes, ends: str
) -> None:
    """What comes back, how the connection ends, whether the recipient got it, and that the next send is well."""
    world.sandbox.faults.queue("send", [fault])
    got, end = await raw_send(world.sandbox)
    assert got.startswith(begins) and bool(got) == bool(begins)
    assert end == ends
    (line,) = world.sandbox.ledger.lines()
    assert line.accepted == accepted
    assert line.responded == (begins.startswith(b"HTTP/1.1") and fault not in {"half_headers", "stalled_body"})
    assert len(got) <= 2 or fault != "dripped_body"
    if fault == "without_id":
        assert b'"messages":[]' in got
    if fault == "stalled_body":
        head, _, body = got.partition(b"\r\n\r\n")
        promised = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert 0 < len(body) < promised
    if fault == "http_500_html":
        assert b"<html>" in got
    assert (await world.send("next"))[0] == 200


async def test_a_429_names_its_wait_and_the_ledger_remembers_it(world: World) -> None:
    """Retry-After in seconds, drawn from the range; a checker can hold the service to it."""
    world.sandbox.faults.queue("send", [Fault(kind="http_429", seconds=(1, 5))])
    url = f"{world.sandbox.graph_url}/{NUMBER}/messages"
    async with world.client.post(url, json=text_message("x"), headers={"Authorization": "Bearer t"}) as answer:
        wait = int(answer.headers["Retry-After"])
        assert answer.status == 429 and 1 <= wait <= 5
    (line,) = world.sandbox.ledger.lines()
    assert line.retry_after == wait and not line.accepted


async def test_a_slow_answer_is_accepted_at_once_and_said_later(world: World) -> None:
    """The statuses of a slow send can come before its answer; a client that left in between got no answer."""
    world.sandbox.faults.queue("send", [Fault(kind="slow", seconds=0.6), Fault(kind="slow", seconds=30)])
    began = time.monotonic()
    sending = asyncio.create_task(world.send("slow", "s:1"))
    await world.webhook.until(3)
    assert not sending.done()
    assert (await sending)[0] == 200 and time.monotonic() - began >= 0.59
    leaving = asyncio.create_task(world.send("left", "l:1"))
    await world.sandbox.ledger.wait(PERSON, 2)
    leaving.cancel()
    await world.webhook.until(6)
    assert [line.responded for line in world.sandbox.ledger.lines(accepted=True)] == [True, False]


async def test_a_fault_can_be_meant_for_one_recipient_or_number(world: World) -> None:
    """`only` leaves the others alone."""
    world.sandbox.faults.queue("send", [Fault(kind="graph_error", code=131026)], only="15550009999")
    assert (await world.send("for someone else"))[0] == 200
    status, answer = await world.send("for the one", to="+15550009999")
    assert (status, answer["error"]["code"]) == (400, 131026)
    assert world.sandbox.ledger.lines(accepted=False)[0].outcome == "131026"


def test_chances_are_a_function_of_the_seed_and_of_what_is_attempted() -> None:
    """The same seed goes wrong in the same places in any order; another seed elsewhere; the shares are as given."""
    mix = [
        Chance(fault=Fault(kind="no_answer"), chance=0.20),
        Chance(fault=Fault(kind="rst_after_accept"), chance=0.025),
        Chance(fault=Fault(kind="http_429", seconds=(1, 5)), chance=0.02),
    ]

    def outcomes(seed: int, order: range) -> dict[int, Fault]:
        faults = Faults(seed)
        faults.chances("send", mix)
        return {i: faults.draw("send", lambda only: False, NUMBER, PERSON, str(i)) for i in order}

    first = outcomes(1, range(4000))
    assert first == outcomes(1, range(3999, -1, -1))
    assert first != outcomes(2, range(4000))
    shares = Counter(fault.kind for fault in first.values())
    assert shares["no_answer"] / 4000 == pytest.approx(0.20, abs=0.02)
    assert shares["rst_after_accept"] / 4000 == pytest.approx(0.025, abs=0.01)
    waits = [fault.wait(0) for fault in first.values() if fault.kind == "http_429"]
    assert waits and all(1 <= wait <= 5 for wait in waits) and len(set(waits)) == len(waits)


def test_a_fault_that_a_face_does_not_have_is_refused() -> None:
    """A misspelt fault would make a test that cannot fail."""
    with pytest.raises(ValueError, match="has no fault"):
        Faults().queue("assistant", ["rst_after_accept"])
    with pytest.raises(ValueError, match="sum to at most 1"):
        Faults().chances("send", [Chance(fault=Fault(kind="slow"), chance=1.2)])


# --- people --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoken", "expected"),
    [
        ({"text": "hi"}, {"type": "text", "text": {"body": "hi"}}),
        ({"kind": "location", "latitude": 1.5, "longitude": 2.5}, {"location": {"latitude": 1.5, "longitude": 2.5}}),
        (
            {"kind": "reaction", "text": "👍", "target": "wamid.O"},
            {"reaction": {"message_id": "wamid.O", "emoji": "👍"}},
        ),
        ({"kind": "reaction", "target": "wamid.O"}, {"reaction": {"message_id": "wamid.O"}}),
        ({"kind": "button", "text": "Yes"}, {"type": "button", "button": {"payload": "Yes", "text": "Yes"}}),
        (
            {"kind": "interactive", "text": "Yes"},
            {"interactive": {"type": "button_reply", "button_reply": {"id": "yes", "title": "Yes"}}},
        ),
        (
            {"kind": "edit", "text": "new", "target": "wamid.A"},
            {"edit": {"original_message_id": "wamid.A", "message": {"type": "text", "text": {"body": "new"}}}},
        ),
        ({"kind": "revoke", "target": "wamid.A"}, {"type": "revoke", "revoke": {"original_message_id": "wamid.A"}}),
        ({"text": "r", "reply_to": "wamid.O"}, {"context": {"from": "15550001111", "id": "wamid.O"}}),
        ({"kind": "image", "text": "c"}, {"type": "image"}),
        ({"kind": "audio"}, {"type": "audio"}),
        ({"kind": "unsupported"}, {"type": "unsupported", "unsupported": {"type": "poll"}}),
        ({"kind": "contacts"}, {"type": "contacts"}),
        ({"kind": "system", "target": "15550003333"}, {"type": "system"}),
        ({"text": "x", "extra": {"text": {"body": "laid over"}}}, {"text": {"body": "laid over"}}),
    ],
)
async def test_a_persons_message_has_metas_shape(
    world: World, spoken: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Each kind of WIRE.md 1.1, with sender, id and a string of unix seconds; contacts but for system messages."""
    said = await world.sandbox.say(Spoken(phone_number_id=NUMBER, sender=f"+{PERSON}", name="Ana", **spoken))
    (change,) = json.loads(world.webhook.bodies[0][0])["entry"][0]["changes"]
    (message,) = change["value"]["messages"]
    assert message | expected == message
    assert (message["from"], message["id"]) == (PERSON, said.ids[0])
    assert message["timestamp"].isdecimal()
    contacts = [{"profile": {"name": "Ana"}, "wa_id": PERSON}]
    assert change["value"].get("contacts") == (None if message["type"] == "system" else contacts)


async def test_a_message_with_a_file_has_its_digest(world: World) -> None:
    """The SHA-256 of the very file, in base64; of one that is not there, none."""
    for kind, id in (*FILES.items(), ("image", "9")):
        await world.sandbox.say(Spoken(phone_number_id=NUMBER, sender=PERSON, kind=kind, file=id))  # type: ignore[arg-type]
        (message,) = json.loads(world.webhook.bodies[-1][0])["entry"][0]["changes"][0]["value"]["messages"]
        file = world.sandbox.files.by_id.get(id)
        digest = base64.b64encode(hashlib.sha256(file.data).digest()).decode() if file else None
        assert (message[kind]["id"], message[kind].get("sha256")) == (id, digest)


async def test_a_person_without_a_number_and_an_echo_of_the_business_are_shaped_as_metas(world: World) -> None:
    """BSUID only: `from_user_id` and no `from`. An echo: a field of its own, from the business, to the person."""
    await world.sandbox.say(
        Spoken(phone_number_id=NUMBER, user_id="US.123", text="hi"),
        Spoken(phone_number_id=NUMBER, sender=PERSON, kind="echo", text="from the phone"),
    )
    messages, echoes = json.loads(world.webhook.bodies[0][0])["entry"][0]["changes"]
    (message,) = messages["value"]["messages"]
    assert message["from_user_id"] == "US.123" and "from" not in message
    (echo,) = echoes["value"]["message_echoes"]
    assert (echoes["field"], echo["from"], echo["to"]) == ("smb_message_echoes", "15550001111", PERSON)


# --- the assistant -------------------------------------------------------------------------------------------------

KEYS = {"x-api-key": "k", "anthropic-version": "2023-06-01"}


def question(*texts: str, stream: bool = True) -> dict[str, Any]:
    messages = [{"role": "user", "content": text} for text in texts]
    return {"model": "claude-sonnet-4-5", "max_tokens": 100, "stream": stream, "messages": messages}


async def ask(world: World, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a streamed answer. Raises what the client raises when it breaks."""
    async with world.client.post(f"{world.sandbox.assistant_url}/v1/messages", json=body, headers=KEYS) as answer:
        assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
        events = []
        for block in (await answer.text()).split("\n\n")[:-1]:
            name, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert events[-1]["type"] == name.removeprefix("event: ")
        return events


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")


async def test_a_streamed_answer_is_anthropics_sequence_of_events(world: World) -> None:
    """message_start … message_stop in order, usage at both ends; the whole answer says the same without streaming."""
    events = await ask(world, question("hello there"))
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["usage"]["input_tokens"] > 0
    assert events[5]["delta"]["stop_reason"] == "end_turn" and events[5]["usage"]["output_tokens"] > 0
    assert text_of(events) == "You said: hello there"
    body = question("hello there", stream=False)
    async with world.client.post(f"{world.sandbox.assistant_url}/v1/messages", json=body, headers=KEYS) as answer:
        whole = json.loads(await answer.read())
    assert whole["content"] == [{"type": "text", "text": "You said: hello there"}]
    assert (whole["type"], whole["role"], whole["stop_reason"]) == ("message", "assistant", "end_turn")
    assert world.sandbox.assistant.count == 2
    assert json.loads(bytes(world.sandbox.assistant.calls[1].body)) == body


async def test_a_burst_is_answered_as_one_turn(world: World) -> None:
    """All texts after the assistant last spoke are in the answer, and none from before."""
    body = question("before")
    body["messages"] += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "one"}]
    body["messages"] += [{"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "3"}]}]
    assert text_of(await ask(world, body)) == "You said:\n\n1. one\n2. two\n3. 3"
    assert world.sandbox.assistant.calls[0].user == ("one", "two", "3")


async def goes_on(world: World, *asked: str) -> str:
    """Each answer is cut in half by its limit, and gone on with; the last rest."""
    rest = ""
    for text in asked:
        world.sandbox.faults.queue("assistant", ["max_tokens"], only=text)
        half = text_of(await ask(world, question(text)))
        body = question(text)
        body["messages"] += [{"role": "assistant", "content": half}, {"role": "user", "content": "Continue, please"}]
        rest = text_of(await ask(world, body))
    return rest


async def test_a_call_that_goes_on_is_noted_with_its_question(world: World) -> None:
    """Whose answer it goes on with, how much of that was shown, and how much it says itself; what breaks off says less."""
    rest = await goes_on(world, "one, and long enough")
    first, second = world.sandbox.assistant.calls
    assert (first.question, first.before) == (("one, and long enough",), 0) and first.said == second.before > 0
    assert (second.user, second.question, second.said) == (("Continue, please",), first.question, len(rest))
    world.sandbox.faults.queue("assistant", ["http_529"])
    async with world.client.post(
        f"{world.sandbox.assistant_url}/v1/messages", json=question("hi"), headers=KEYS
    ) as answer:
        assert answer.status == 529
    assert world.sandbox.assistant.calls[-1].said == 0


async def test_what_happens_to_a_call_that_goes_on_is_no_matter_of_others(world: World) -> None:
    """All say the same words then: its fault is drawn for its question, in whatever order they come."""
    asked = [f"question {n}, and long enough" for n in range(20)]
    world.sandbox.faults.chances("assistant", [Chance(fault=Fault(kind="max_tokens"), chance=0.5)])
    await goes_on(world, *asked)
    drawn = {call.question: call.outcome for call in world.sandbox.assistant.calls if call.before}
    world.sandbox.assistant.clear()
    await goes_on(world, *reversed(asked))
    assert drawn == {call.question: call.outcome for call in world.sandbox.assistant.calls if call.before}
    assert set(drawn.values()) == {"ok", "max_tokens"}


async def test_without_key_or_version_the_assistant_refuses(world: World) -> None:
    """401 authentication_error, 400 invalid_request_error, in Anthropic's shape."""
    for headers, status, kind in (
        ({"anthropic-version": "2023-06-01"}, 401, "authentication_error"),
        ({"x-api-key": "k"}, 400, "invalid_request_error"),
    ):
        url = f"{world.sandbox.assistant_url}/v1/messages"
        async with world.client.post(url, json=question("hi"), headers=headers) as answer:
            error = json.loads(await answer.read())
            assert (answer.status, error["type"], error["error"]["type"]) == (status, "error", kind)
    assert world.sandbox.assistant.count == 0


@pytest.mark.parametrize("n", range(1, 7))
def test_a_token_is_answered_with_n_chunks_for_any_chunker(n: int) -> None:
    """No two paragraphs fit 4,000 UTF-16 units together, each fits alone, and cut at words it is N pieces too."""
    for token in ("a", "b", "c", "0198c0de-7", "e", "f"):
        (block,) = scripts.answer([f"please tok#{token}/{n}"])
        parts = block.text.split("\n\n")
        assert [part.split(" ")[0] for part in parts] == [f"{token}#{i}/{n}" for i in range(1, n + 1)]
        sizes = [len(part.encode("utf-16-le")) // 2 for part in parts]
        assert all(size <= 4000 for size in sizes)
        assert all(first + 2 + second > 4000 for first, second in pairwise(sizes))
        pieces, left = 1, 4000
        for word in block.text.split(" "):
            size = len(word.encode("utf-16-le")) // 2 + 1
            if size > left:
                pieces, left = pieces + 1, 4000
            left -= size
        assert pieces == n


@pytest.mark.parametrize("asked", ["What are the pillars of Islam?", "ما هي أركان الإسلام؟"])
def test_the_long_answers_need_more_than_one_chunk(asked: str) -> None:
    """The demo's question has an answer of more than 4,000 UTF-16 units, with Markdown to convert."""
    (block,) = scripts.answer([asked])
    assert len(block.text.encode("utf-16-le")) // 2 > 4000
    assert all(mark in block.text for mark in ("# ", "**", "> ", "- ", "1. "))


async def test_citations_come_as_deltas_of_their_block(world: World) -> None:
    """char_location citations in `citations_delta`, after the text they belong to."""
    events = await ask(world, question("cite#2"))
    citations = [event["delta"]["citation"] for event in events if event.get("delta", {}).get("citation")]
    assert [citation["type"] for citation in citations] == ["char_location"] * 2
    assert [citation["document_index"] for citation in citations] == [0, 1]


async def test_each_fault_of_the_assistant_really_happens(world: World) -> None:
    """Busy with Retry-After, an error after the 200, cut, truncated, empty, stalled, slow."""
    queue, url = world.sandbox.faults.queue, f"{world.sandbox.assistant_url}/v1/messages"
    for kind, status, error in (("http_429", 429, "rate_limit_error"), ("http_529", 529, "overloaded_error")):
        queue("assistant", [msgspec.convert({"kind": kind, "seconds": 3}, Fault)])
        async with world.client.post(url, json=question("hi"), headers=KEYS) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (status, "3")
            assert json.loads(await answer.read())["error"]["type"] == error
    long = question("say something that is long enough to be cut in half")
    whole = text_of(await ask(world, long))
    queue("assistant", ["error_event"])
    events = await ask(world, long)
    assert events[-1] == {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    assert whole.startswith(text_of(events)) and text_of(events) != whole
    queue("assistant", ["truncated"])
    events = await ask(world, long)
    assert events[-1]["type"] == "content_block_delta" and text_of(events) == whole[: len(whole) // 2]
    queue("assistant", ["cut"])
    with pytest.raises(aiohttp.ClientPayloadError):
        await ask(world, long)
    queue("assistant", ["rst"])
    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(world, long)
    queue("assistant", ["empty"])
    assert [event["type"] for event in await ask(world, long)] == ["message_start", "message_delta", "message_stop"]
    queue("assistant", [Fault(kind="slow", seconds=0.2)])
    began = time.monotonic()
    assert text_of(await ask(world, long)) == whole and time.monotonic() - began >= 0.19
    queue("assistant", ["stall"])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await ask(world, long)


# --- control -------------------------------------------------------------------------------------------------------


async def test_a_conversation_can_be_driven_over_http_alone(world: World) -> None:
    """Register, say, wait, ledger, assistant, faults, reset: what a demo in another process needs."""
    await world.sandbox.reset()
    body: dict[str, Any] = {"webhook_url": world.webhook.url, "app_secret": SECRET, "ladder": {"read": None}}
    assert (await world.control("PUT", f"/control/numbers/{NUMBER}", json=body))[0] == 200
    status, said = await world.control(
        "POST", "/control/say", json={"phone_number_id": NUMBER, "from": PERSON, "name": "Ana", "text": "hi"}
    )
    assert (status, said["status"]) == (200, 200) and said["ack_ms"] > 0 and said["ids"][0].startswith("wamid.")
    both = [{"phone_number_id": NUMBER, "from": PERSON, "text": text} for text in ("one", "two")]
    _, said = await world.control("POST", "/control/say", json={"messages": both, "copies": 3})
    assert len(said["ids"]) == 2 and [each["status"] for each in said["deliveries"]] == [200] * 3
    assert len({body for body, _ in world.webhook.bodies[1:]}) == 1
    waiting = asyncio.create_task(world.control("GET", f"/control/wait?recipient={PERSON}&count=2&timeout=5"))
    await world.send("first")
    await world.send("second")
    _, got = await waiting
    assert got["reached"] and [entry["text"] for entry in got["entries"]] == ["first", "second"]
    _, late = await world.control("GET", f"/control/wait?recipient={PERSON}&count=3&timeout=0.05")
    assert not late["reached"]
    fault = {"face": "send", "next": ["http_500_json", {"kind": "graph_error", "code": 131047}]}
    assert (await world.control("PUT", "/control/faults", json=fault))[0] == 200
    assert [(await world.send("third"))[0] for _ in range(3)] == [500, 400, 200]
    _, ledger = await world.control("GET", f"/control/ledger?recipient={PERSON}&accepted=false")
    assert [(entry["outcome"], entry["attempt"]) for entry in ledger["entries"]] == [
        ("http_500_json", 0),
        ("131047", 1),
    ]
    await ask(world, question("anything"))
    _, calls = await world.control("GET", "/control/assistant?containing=any")
    assert calls["count"] == 1 and calls["calls"][0]["body"]["messages"][0]["content"] == "anything"
    assert (await world.control("POST", "/control/reset"))[0] == 200
    assert (await world.control("GET", "/control/ledger"))[1]["entries"] == []
    assert (await world.control("GET", "/healthz"))[1] == {"status": "ok"}


async def test_whatever_the_documentation_lets_one_ask_is_answered(world: World) -> None:
    """Every GET of docs/sandbox.md's table, after something has come that it tells of."""
    table = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text(encoding="utf-8")
    paths = [
        path for row in table.splitlines() if row.startswith("| `") for path in re.findall(r"GET (/control/\w+)", row)
    ]
    assert len(paths) == len(set(paths)) >= 9
    await world.send("hi")
    await ask(world, question("anything"))
    words = {"q": "نعم", "source": "ar", "target": "en"}
    async with world.client.post(f"{world.sandbox.url}/libretranslate/translate", json=words) as answer:
        assert answer.status == 200
    for path in paths:
        status, said = await world.control("GET", path, params={"recipient": PERSON} if path.endswith("/wait") else {})
        assert status == 200 and isinstance(said, dict), path
    assert (await world.control("GET", "/control/translator"))[1]["calls"][0]["text"] == "نعم"


async def test_any_bytes_can_be_posted_as_a_signed_webhook(world: World) -> None:
    """A string goes out as it is, JSON byte for byte, both signed: broken webhooks are a thing to test with."""
    for body in ('{"object"', '"caf\\u00e9 {"'):
        raw = body if body.startswith('"') else json.dumps(body)
        request = f'{{"webhook_url": "{world.webhook.url}", "app_secret": "other", "body": {raw}}}'
        status, delivery = await world.control("POST", "/control/webhook", data=request.encode())
        assert (status, delivery["status"], delivery["tries"]) == (200, 200, 1)
        sent, headers = world.webhook.bodies[-1]
        assert sent == json.loads(raw).encode()
        sha256 = hmac.new(b"other", sent, hashlib.sha256).hexdigest()
        assert headers["x-hub-signature-256"] == f"sha256={sha256}"


async def test_a_mistake_at_the_control_api_is_explained(world: World) -> None:
    """400 or 404 with what was wrong; never a 500."""
    for method, path, body, status in (
        ("PUT", "/control/faults", {"face": "send", "next": ["rst_sometimes"]}, 400),
        ("PUT", "/control/faults", {"face": "weather"}, 400),
        ("POST", "/control/say", {"phone_number_id": NUMBER, "text": "from nobody"}, 400),
        ("POST", "/control/say", {"phone_number_id": "404", "from": PERSON}, 404),
        ("PUT", "/control/numbers/1", {"webhook_url": "http://example.org/", "app_secret": "s"}, 400),
        ("POST", "/control/webhook", {"webhook_url": "http://10.0.0.1/", "app_secret": "s", "body": {}}, 400),
    ):
        got, answer = await world.control(method, path, json=body)
        assert got == status and answer["error"], path


async def test_the_sandbox_stays_on_this_machine() -> None:
    """It neither listens on nor posts to anything but loopback."""
    for host in ("0.0.0.0", "192.168.1.1", "example.org", "::"):
        with pytest.raises(NotLoopback):
            async with running(host=host):
                pass
    async with running() as sandbox:
        for url in (
            "http://example.org/",
            "http://127.0.0.1.example.org/",
            "http://[::ffff:10.0.0.1]/",
            "ftp://[::1]/",
        ):
            with pytest.raises(NotLoopback):
                sandbox.register(Number(phone_number_id="1", webhook_url=url, app_secret="s"))
        for url in ("http://127.9.9.9:1/", "http://[::1]:1/", "http://localhost:1/"):
            sandbox.register(Number(phone_number_id="1", webhook_url=url, app_secret="s"))


async def test_as_a_process_it_prints_its_url_and_ends_at_sigterm() -> None:
    """`python -m app.sandbox`: answers /healthz on the port it prints, exits 0 on SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.sandbox", "--port", "0", stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            url = (await process.stdout.readline()).decode().split()[1]
            async with aiohttp.ClientSession() as client, client.get(f"{url}/healthz") as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
