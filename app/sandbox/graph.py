"""The Graph face: `POST /graph/{version}/{phone_number_id}/messages`, as Meta answers it (WIRE.md 1.2).

It accepts or refuses, writes the ledger, then does to the connection what the fault says. Statuses climb elsewhere.
"""

import asyncio
import math

import msgspec
from aiohttp import web

from app.sandbox import sockets
from app.sandbox.faults import Fault
from app.sandbox.graph_errors import error_body, usual_status
from app.sandbox.ledger import Arrival, Read
from app.sandbox.numbers import Number, new_wamid, now, plain
from app.sandbox.simulation import Sandbox

MAX_BODY = 4096
MAX_KEY = 512
_NOT_TAKEN = frozenset(
    {"rst_before_accept", "fin_before_accept", "http_500_json", "http_500_html", "http_429", "graph_error"}
)
_HTML = b"<!DOCTYPE html><html><head><title>Error</title></head><body>Sorry, something went wrong.</body></html>"
_HEADERS = {"Content-Type": "application/json; charset=UTF-8"}


class _Text(msgspec.Struct, frozen=True, kw_only=True):
    body: str
    preview_url: bool = False


class _Context(msgspec.Struct, frozen=True, kw_only=True):
    message_id: str


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    messaging_product: str = ""
    to: str | None = None
    recipient: str | None = None
    type: str = "text"
    text: _Text | None = None
    context: _Context | None = None
    biz_opaque_callback_data: str | dict[str, object] | None = None
    status: str | None = None
    message_id: str | None = None
    typing_indicator: dict[str, object] | None = None


_decoder = msgspec.json.Decoder(_Request)


class GraphFace:
    """The handlers. One instance per sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/graph/{version}/{phone_number_id}/messages", self.messages)]

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """A send, or a read receipt with or without typing."""
        address = request.match_info["phone_number_id"]
        number = self._sandbox.numbers.get(address)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if (
            scheme.casefold() != "bearer"
            or not token
            or (number and number.token is not None and token != number.token)
        ):
            return _refusal(190)
        try:
            asked = _decoder.decode(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _refusal(100, "The request is not the JSON of a message")
        if asked.messaging_product != "whatsapp":
            return _refusal(100, "messaging_product must be whatsapp")
        if asked.status is not None:
            return await self._read(request, address, number, asked)
        return await self._send(request, address, number, asked)

    async def _read(
        self, request: web.Request, address: str, number: Number | None, asked: _Request
    ) -> web.StreamResponse:
        if asked.status != "read" or not asked.message_id:
            return _refusal(100, "status must be read, with a message_id")
        fault = self._sandbox.faults.draw("read", address.__eq__, address, asked.message_id)
        if fault.kind not in _NOT_TAKEN:
            anything = number is not None and number.any_message_id
            if not anything and not self._sandbox.ledger.knows(address, asked.message_id):
                return _refusal(131009, "Message ID is not valid")
            typing = asked.typing_indicator is not None
            self._sandbox.ledger.read(
                Read(t=now(), phone_number_id=address, message_id=asked.message_id, typing=typing)
            )
        response, _ = await _act(request, fault, b'{"success":true}')
        return response

    async def _send(
        self, request: web.Request, address: str, number: Number | None, asked: _Request
    ) -> web.StreamResponse:
        wrong = _invalid(asked)
        if wrong is not None:
            return _refusal(100, wrong)
        text, named = asked.text, asked.recipient or asked.to
        assert text is not None and named is not None  # _invalid() saw to it; for the type checker
        sandbox, recipient, key = self._sandbox, plain(named), _key(asked)
        chunk = key.rpartition(":")[0] if key else ""
        attempt = sandbox.occurrences.add(("attempt", address, recipient, chunk or text.body)) - 1
        again = sandbox.occurrences.add(("text", address, recipient, text.body))
        moment = now()
        fault = sandbox.faults.draw(
            "send", lambda only: only in (address, recipient), address, recipient, text.body, str(again)
        )
        if fault.kind not in _NOT_TAKEN:
            over = sandbox.meter.refuses(address, recipient, moment)
            if over is not None:
                fault = Fault(kind="graph_error", code=over)
        # Meta answers 200 to a BSUID in `to` and drops the message without a word (WIRE.md 1.2).
        dropped = asked.recipient is None and "." in named
        arrival = Arrival(
            seq=len(sandbox.ledger.arrivals),
            t=moment,
            phone_number_id=address,
            recipient=recipient,
            provider_id=new_wamid(),
            key=key,
            text=text.body,
            preview_url=text.preview_url,
            context=asked.context.message_id if asked.context else None,
            accepted=fault.kind not in _NOT_TAKEN and not dropped,
            outcome="bsuid_in_to" if dropped else str(fault.code) if fault.kind == "graph_error" else fault.kind,
            attempt=attempt,
            retry_after=_retry_after(fault) if fault.kind == "http_429" else None,
        )
        sandbox.ledger.add(arrival)
        if arrival.accepted and number is not None:
            version = _version(request.match_info["version"])
            if not sandbox.statuses.follow(number, arrival, fault, version=version):
                sandbox.ledger.silenced(arrival)
        contact = {"input": named, "user_id": named} if asked.recipient else {"input": named, "wa_id": recipient}
        messages = [] if fault.kind == "without_id" else [{"id": arrival.provider_id}]
        answer = msgspec.json.encode({"messaging_product": "whatsapp", "contacts": [contact], "messages": messages})
        response, responded = await _act(request, fault, answer)
        if responded:
            sandbox.ledger.answered(arrival)
        return response


async def _act(request: web.Request, fault: Fault, answer: bytes) -> tuple[web.StreamResponse, bool]:
    """Do what the fault says to the connection; also whether a whole answer was handed to the socket."""
    match fault.kind:
        case "no_answer":
            return await sockets.hold(request, fault.wait(60.0)), False
        case "rst_before_accept" | "rst_after_accept":
            return sockets.reset(request), False
        case "fin_before_accept" | "fin_after_accept":
            return sockets.finish(request), False
        case "half_headers":
            return sockets.finish(request, after=b"HTTP/1.1 200 OK\r\nContent-Type: applic"), False
        case "garbage":
            return sockets.finish(request, after=b"\x16\x03\x01 this is no HTTP\r\n\r\n"), False
        case "stalled_body":
            half = sockets.raw("200 OK", answer)[: -len(answer) // 2]
            return await sockets.hold(request, fault.wait(60.0), after=half), False
        case "dripped_body":
            return await sockets.drip(request, sockets.raw("200 OK", answer), fault.wait(0.2))
        case "close_idle":
            return sockets.finish(request, after=sockets.raw("200 OK", answer)), True
        case "slow":
            await asyncio.sleep(fault.wait(2.0))
            response = web.Response(body=answer, headers=_HEADERS)
        case _:
            response = _answer(fault, answer)
    # Written here and not by aiohttp afterwards, so that the ledger knows whether the client was still there.
    try:
        await response.prepare(request)
        await response.write_eof()
    except ConnectionResetError:
        return response, False
    return response, True


def _answer(fault: Fault, answer: bytes) -> web.Response:
    match fault.kind:
        case "http_500_html":
            return web.Response(status=fault.status or 502, body=_HTML, content_type="text/html")
        case "http_500_json" | "http_500_after_accept":
            return _refusal(fault.code or 131000, status=fault.status or 500)
        case "http_429":
            response = _refusal(fault.code or 130429, status=429)
            response.headers["Retry-After"] = str(_retry_after(fault))
            return response
        case "graph_error":
            return _refusal(fault.code or 131000, status=fault.status)
    return web.Response(body=answer, headers=_HEADERS)


def _refusal(code: int, details: str = "", *, status: int | None = None) -> web.Response:
    return web.Response(status=status or usual_status(code), body=error_body(code, details), headers=_HEADERS)


def _retry_after(fault: Fault) -> int:
    """Whole seconds: HTTP knows no others (RFC 9110, 10.2.3)."""
    return math.ceil(fault.wait(1.0))


def _invalid(asked: _Request) -> str | None:
    if asked.type != "text" or asked.text is None:
        return "The sandbox takes messages of type text, with a text"
    if not asked.to and not asked.recipient:
        return "The parameter to is required"
    if not 1 <= len(asked.text.body) <= MAX_BODY:
        return f"Param text['body'] must be between 1 and {MAX_BODY} characters long."
    if len(_key(asked) or "") > MAX_KEY:
        return f"Param biz_opaque_callback_data must be at most {MAX_KEY} characters long."
    return None


def _key(asked: _Request) -> str | None:
    """Our key as the statuses bring it back: an object comes back as a JSON string (WIRE.md 1.1)."""
    key = asked.biz_opaque_callback_data
    return key if key is None or isinstance(key, str) else msgspec.json.encode(key).decode()


def _version(name: str) -> int:
    major = name.removeprefix("v").partition(".")[0]
    return int(major) if major.isdecimal() else 23
