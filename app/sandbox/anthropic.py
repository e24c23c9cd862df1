"""The Anthropic face: `POST /anthropic/v1/messages`, whole or streamed (WIRE.md 1.5), checked as Anthropic checks.

What it says and what fails is assistant.py's; here is only how it is asked and said.
"""

import base64
import binascii
import os
from collections.abc import Iterator
from typing import Literal

import msgspec
from aiohttp import web

from app.sandbox.assistant import UNENDED, Asked, Reply, Turn, answered, refused, said_at_once, said_slowly
from app.sandbox.assistant_calls import Pace
from app.sandbox.scripts import Block, Document
from app.sandbox.simulation import Sandbox

_PICTURES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_ERRORS = {
    400: ("invalid_request_error", ""),
    401: ("authentication_error", "invalid x-api-key"),
    429: ("rate_limit_error", "This request would exceed your rate limit"),
    500: ("api_error", "Internal server error"),
    529: ("overloaded_error", "Overloaded"),
}


class _Source(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    media_type: str
    data: str


class _Citations(msgspec.Struct, frozen=True, kw_only=True):
    enabled: bool


class _Cache(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["ephemeral"]


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    text: str = ""
    source: _Source | None = None
    title: str = ""
    # Of a request's document whether, of an answer's text that is sent back what.
    citations: _Citations | list[dict[str, object]] | None = None
    cache_control: _Cache | None = None

    @property
    def cites(self) -> bool:
        return isinstance(self.citations, _Citations) and self.citations.enabled


class _Turn(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    content: str | list[_Part]

    @property
    def parts(self) -> list[_Part]:
        return [_Part(text=self.content)] if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    max_tokens: int
    messages: list[_Turn]
    system: str | list[_Part] = ""
    stream: bool = False

    @property
    def instructions(self) -> list[_Part]:
        return [_Part(text=self.system)] if isinstance(self.system, str) else self.system


_decoder = msgspec.json.Decoder(_Request)


class AnthropicFace:
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
        wrong = _invalid(asked, self._sandbox.assistant.paused)
        if wrong is not None:
            return _error(400, message=wrong)
        fault, reply = answered(self._sandbox, _asked(asked, body), pauses=True)
        if reply.ending == "pause_turn":
            before = asked.messages[-1].text if asked.messages[-1].role == "assistant" else ""
            self._sandbox.assistant.paused.add(before + "".join(block.text for block in reply.blocks))
        if (refusal := await refused(request, fault, _error)) is not None:
            return refusal
        pace = self._sandbox.assistant.pace
        if not asked.stream:
            whole = msgspec.json.encode(_message(reply, [_whole_block(block) for block in reply.blocks], finished=True))
            return await said_at_once(request, fault, pace, whole, _error(529))
        return await said_slowly(
            request,
            fault,
            pace,
            _events(reply, pace, ends=fault.kind not in UNENDED),
            headers=_id("request-id", "req"),
            error=_event("error", {"error": _error_object(529)}),
        )


def _asked(asked: _Request, body: bytes) -> Asked:
    return Asked(
        model=asked.model,
        turns=[Turn(role=turn.role, texts=tuple(_texts(turn))) for turn in asked.messages],
        system="\n".join(part.text for part in asked.instructions),
        documents=tuple(
            Document(title=part.title, text=part.source.data)
            for turn in asked.messages
            for part in turn.parts
            if part.type == "document" and part.source is not None and part.cites
        ),
        prefix=_prefix(asked),
        stream=asked.stream,
        body=body,
    )


def _texts(turn: _Turn) -> Iterator[str]:
    for part in turn.parts:
        if part.type == "text":
            yield part.text
        elif part.type == "image" and part.source is not None:
            yield f"[{part.source.media_type}, {len(base64.b64decode(part.source.data))} bytes]"


def _prefix(asked: _Request) -> str:
    """What stands before the last mark, system prompt first; neither lifetime nor smallest size are played."""
    read, marked = "", ""
    for part in [*asked.instructions, *(part for turn in asked.messages for part in turn.parts)]:
        read += part.text + (part.source.data if part.source is not None else "")
        if part.cache_control is not None:
            marked = read
    return marked


def _events(reply: Reply, pace: Pace, *, ends: bool) -> Iterator[bytes]:
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
        ending: dict[str, object] = {"stop_reason": _stop_reason(reply), "stop_sequence": None}
        yield _event("message_delta", {"delta": ending, "usage": {"output_tokens": reply.written}})
        yield _event("message_stop", {})


def _event(name: str, data: dict[str, object]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode({"type": name, **data}))


def _message(reply: Reply, content: list[dict[str, object]], *, finished: bool) -> dict[str, object]:
    usage = {
        "input_tokens": reply.fresh,
        "cache_creation_input_tokens": reply.created,
        "cache_read_input_tokens": reply.cached,
        "output_tokens": reply.written if finished else 1,
    }
    return {
        **_id("id", "msg"),
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        "stop_reason": _stop_reason(reply) if finished else None,
        "stop_sequence": None,
        "usage": usage,
    }


def _stop_reason(reply: Reply) -> str:
    return "end_turn" if reply.ending == "whole" else reply.ending


def _whole_block(block: Block) -> dict[str, object]:
    whole: dict[str, object] = {"type": "text", "text": block.text}
    return whole | ({"citations": block.citations} if block.citations else {})


def _invalid(asked: _Request, paused: set[str]) -> str | None:
    """What Anthropic answers with 400. `paused`: what it said itself, which alone may stand last."""
    if asked.max_tokens < 1:
        return "max_tokens: Input should be greater than or equal to 1"
    if not asked.messages:
        return "messages: at least one message is required"
    every = [*asked.instructions, *(part for turn in asked.messages for part in turn.parts)]
    for at, turn in enumerate(asked.messages):
        if turn.role not in {"user", "assistant"}:
            return f"messages.{at}.role: Input should be 'user' or 'assistant'"
        if not turn.parts or any(part.type == "text" and not part.text.strip() for part in turn.parts):
            return f"messages.{at}: text content blocks must contain non-whitespace text"
        if wrong := next(filter(None, map(_wrong, turn.parts)), None):
            return f"messages.{at}.content: {wrong}"
    if any(part.cache_control is not None and part.type == "text" and not part.text for part in every):
        return "cache_control cannot be set for empty text blocks"
    if sum(part.cache_control is not None for part in every) > 4:
        return "A maximum of 4 blocks with cache_control may be provided."
    if len({part.cites for part in every if part.type == "document"}) > 1:
        return "citations must be enabled on all or none of the documents"
    last = asked.messages[-1]
    if last.role != "user" and last.text not in paused:
        return "This model does not support assistant message prefill. The conversation must end with a user message."
    return None


def _wrong(part: _Part) -> str | None:
    if part.type == "image":
        if part.source is None or part.source.type != "base64" or part.source.media_type not in _PICTURES:
            return "image.source: Input should be base64 of image/jpeg, image/png, image/gif or image/webp"
        try:
            base64.b64decode(part.source.data, validate=True)
        except binascii.Error:
            return "image.source.base64: invalid base64 data"
    elif part.type == "document":
        if part.source is None or (part.source.type, part.source.media_type) != ("text", "text/plain"):
            return "document.source: the sandbox reads text/plain only"
    elif part.type != "text":
        return f"type: the sandbox knows no {part.type}"
    return None


def _error(status: int, *, message: str | None = None) -> web.Response:
    body = msgspec.json.encode({"type": "error", "error": _error_object(status, message), **_id("request_id", "req")})
    return web.Response(status=status, body=body, content_type="application/json")


def _error_object(status: int, message: str | None = None) -> dict[str, str]:
    kind, usual = _ERRORS[status]
    return {"type": kind, "message": message or usual}


def _id(key: str, prefix: str) -> dict[str, str]:
    return {key: f"{prefix}_01{os.urandom(11).hex()}"}
