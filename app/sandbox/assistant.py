"""The Anthropic face: `POST /anthropic/v1/messages`, whole or streamed (WIRE.md 1.5).

What it says comes from scripts.py; here is only how it is said, and how it fails.
"""

import asyncio
import math
import os
from collections.abc import Iterable, Iterator

import msgspec
from aiohttp import web

from app.sandbox import sockets
from app.sandbox.assistant_calls import Call, Pace
from app.sandbox.faults import Fault
from app.sandbox.numbers import now
from app.sandbox.scripts import Block, answer
from app.sandbox.simulation import Sandbox

_BROKEN = frozenset({"error_event", "cut", "truncated", "stall", "max_tokens"})
_ERRORS = {
    400: ("invalid_request_error", ""),
    401: ("authentication_error", "invalid x-api-key"),
    429: ("rate_limit_error", "This request would exceed your rate limit"),
    500: ("api_error", "Internal server error"),
    529: ("overloaded_error", "Overloaded"),
}


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    text: str = ""


class _Turn(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    content: str | list[_Part]

    def texts(self) -> list[str]:
        if isinstance(self.content, str):
            return [self.content]
        return [part.text for part in self.content if part.type == "text"]


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    max_tokens: int
    messages: list[_Turn]
    system: str | list[_Part] = ""
    stream: bool = False


_decoder = msgspec.json.Decoder(_Request)


class AssistantFace:
    """The handlers. One instance per sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/anthropic/v1/messages", self.messages)]

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """One answer."""
        if not request.headers.get("x-api-key"):
            return _error(401, message="x-api-key header is required")
        if not request.headers.get("anthropic-version"):
            return _error(400, message="anthropic-version: header is required")
        body = await request.read()
        try:
            asked = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as reason:
            return _error(400, message=str(reason))
        wrong = _invalid(asked)
        if wrong is not None:
            return _error(400, message=wrong)
        user = tuple(_last_user_turn(asked.messages))
        system = asked.system if isinstance(asked.system, str) else "\n".join(part.text for part in asked.system)
        assistant = self._sandbox.assistant
        fault = self._sandbox.faults.draw(
            "assistant", lambda only: any(only in text for text in user), *user, str(assistant.occurrence(user))
        )
        blocks = () if fault.kind == "empty" else answer(user, system=system)
        words = sum(len(text) for turn in asked.messages for text in turn.texts()) + len(system)
        reply = _Reply(
            model=asked.model,
            blocks=_half(blocks) if fault.kind in _BROKEN else blocks,
            stop_reason=fault.kind if fault.kind in {"max_tokens", "refusal"} else "end_turn",
            input_tokens=max(1, words // 4),
            output_tokens=sum(len(block.text) for block in blocks) // 4,
        )
        assistant.record(
            Call(
                t=now(),
                user=user,
                stream=asked.stream,
                outcome=fault.kind,
                input_tokens=reply.input_tokens,
                output_tokens=reply.output_tokens,
                body=msgspec.Raw(body),
            )
        )
        return await _answer(request, fault, reply, asked.stream, assistant.pace)


class _Reply(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    blocks: tuple[Block, ...]
    stop_reason: str
    input_tokens: int
    output_tokens: int


async def _answer(request: web.Request, fault: Fault, reply: _Reply, stream: bool, pace: Pace) -> web.StreamResponse:
    match fault.kind:
        case "http_429" | "http_529" | "http_500" | "http_401":
            refused = _error(int(fault.kind.removeprefix("http_")))
            if fault.kind in {"http_429", "http_529"}:
                refused.headers["retry-after"] = str(math.ceil(fault.wait(1.0)))
            return refused
        case "rst":
            return sockets.reset(request)
        case "no_answer":
            return await sockets.hold(request, fault.wait(60.0))
    pause = pace.first_token + (fault.wait(4.0) if fault.kind == "slow" else 0.0)
    if pause:
        await asyncio.sleep(pause)
    try:
        return await (_streamed(request, fault, reply, pace) if stream else _whole(request, fault, reply))
    except ConnectionResetError:  # who asked was killed: that is what the tests are for, and no error of ours
        return web.Response()


async def _whole(request: web.Request, fault: Fault, reply: _Reply) -> web.StreamResponse:
    """Without streaming the faults of the middle fall on the one body."""
    answer = msgspec.json.encode(_message(reply, [_whole_block(block) for block in reply.blocks], finished=True))
    match fault.kind:
        case "error_event":
            return _error(529)
        case "cut" | "truncated":
            return sockets.finish(request, after=sockets.raw("200 OK", answer)[: -len(answer) // 2])
        case "stall":
            half = sockets.raw("200 OK", answer)[: -len(answer) // 2]
            return await sockets.hold(request, fault.wait(60.0), after=half)
    return web.Response(body=answer, content_type="application/json", headers=_id("request-id", "req"))


async def _streamed(request: web.Request, fault: Fault, reply: _Reply, pace: Pace) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Cache-Control": "no-cache", **_id("request-id", "req")})
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    await response.prepare(request)
    for chunk in _paced(_events(reply, pace, ends=fault.kind not in _BROKEN - {"max_tokens"}), pace):
        await response.write(chunk)
        if pace.between:
            await asyncio.sleep(pace.between)
    match fault.kind:
        case "error_event":
            await response.write(_event("error", {"error": _error_object(529)}))
        case "cut":
            # A turn of the loop, so that the half that was said is on its way before the reset.
            await asyncio.sleep(0.01)
            sockets.reset(request)
            return response
        case "stall":
            await sockets.hold(request, fault.wait(60.0))
            return response
    await response.write_eof()
    return response


def _paced(events: Iterable[bytes], pace: Pace) -> Iterable[bytes]:
    """Without a pause between deltas one write costs a hundredth of the CPU of many."""
    return events if pace.between else [b"".join(events)]


def _events(reply: _Reply, pace: Pace, *, ends: bool) -> Iterator[bytes]:
    yield _event("message_start", {"message": _message(reply, [], finished=False)})
    for index, block in enumerate(reply.blocks):
        empty: dict[str, object] = {"type": "text", "text": ""}
        if block.citations:
            empty["citations"] = []
        yield _event("content_block_start", {"index": index, "content_block": empty})
        if index == 0:
            yield _event("ping", {})
        for at in range(0, len(block.text), pace.characters):
            delta = {"type": "text_delta", "text": block.text[at : at + pace.characters]}
            yield _event("content_block_delta", {"index": index, "delta": delta})
        for citation in block.citations:
            yield _event(
                "content_block_delta", {"index": index, "delta": {"type": "citations_delta", "citation": citation}}
            )
        if ends or index + 1 < len(reply.blocks):
            yield _event("content_block_stop", {"index": index})
    if ends:
        ending: dict[str, object] = {"stop_reason": reply.stop_reason, "stop_sequence": None}
        yield _event("message_delta", {"delta": ending, "usage": {"output_tokens": reply.output_tokens}})
        yield _event("message_stop", {})


def _event(name: str, data: dict[str, object]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode({"type": name, **data}))


def _message(reply: _Reply, content: list[dict[str, object]], *, finished: bool) -> dict[str, object]:
    return {
        **_id("id", "msg"),
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        "stop_reason": reply.stop_reason if finished else None,
        "stop_sequence": None,
        "usage": {"input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens if finished else 1},
    }


def _whole_block(block: Block) -> dict[str, object]:
    whole: dict[str, object] = {"type": "text", "text": block.text}
    return whole | ({"citations": block.citations} if block.citations else {})


def _half(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The first half of the text."""
    left = sum(len(block.text) for block in blocks) // 2
    kept: list[Block] = []
    for block in blocks:
        if left <= 0:
            break
        kept.append(block if len(block.text) <= left else Block(text=block.text[:left]))
        left -= len(block.text)
    return tuple(kept)


def _last_user_turn(messages: list[_Turn]) -> list[str]:
    """The texts after the assistant last spoke; consecutive user messages are one turn, as at Anthropic."""
    texts: list[str] = []
    for turn in reversed(messages):
        if turn.role != "user":
            break
        texts = turn.texts() + texts
    return texts


def _invalid(asked: _Request) -> str | None:
    if asked.max_tokens < 1:
        return "max_tokens: Input should be greater than or equal to 1"
    if not asked.messages:
        return "messages: at least one message is required"
    for at, turn in enumerate(asked.messages):
        if turn.role not in {"user", "assistant"}:
            return f"messages.{at}.role: Input should be 'user' or 'assistant'"
        if not any(text.strip() for text in turn.texts()):
            return f"messages.{at}: text content blocks must contain non-whitespace text"
    if asked.messages[-1].role != "user":
        return "messages: the conversation must end with a user message"
    return None


def _error(status: int, *, message: str | None = None) -> web.Response:
    body = msgspec.json.encode({"type": "error", "error": _error_object(status, message), **_id("request_id", "req")})
    return web.Response(status=status, body=body, content_type="application/json")


def _error_object(status: int, message: str | None = None) -> dict[str, str]:
    kind, usual = _ERRORS[status]
    return {"type": kind, "message": message or usual}


def _id(key: str, prefix: str) -> dict[str, str]:
    return {key: f"{prefix}_01{os.urandom(11).hex()}"}
