"""The face of chat completions: `POST /openai/v1/chat/completions`, whole or streamed, as OpenAI and its likes serve it.

What it says and what fails is assistant.py's; here is only how it is asked and said. It has no citations.
"""

import base64
import binascii
import os
import time
from collections.abc import Iterator

import msgspec
from aiohttp import web

from app.sandbox.assistant import UNENDED, Asked, Reply, Turn, answered, refused, said_at_once, said_slowly
from app.sandbox.assistant_calls import Pace
from app.sandbox.simulation import Sandbox

_FINISHED = {"whole": "stop", "max_tokens": "length", "refusal": "content_filter"}
_ERRORS = {
    400: ("invalid_request_error", None, ""),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided"),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached"),
    500: ("server_error", None, "The server had an error while processing your request"),
    529: ("server_error", None, "Overloaded"),
}


class _Url(msgspec.Struct, frozen=True, kw_only=True):
    url: str


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    text: str = ""
    image_url: _Url | None = None


class _Turn(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    content: str | list[_Part]

    @property
    def parts(self) -> list[_Part]:
        return [_Part(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    include_usage: bool = False


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    messages: list[_Turn]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: _Options = _Options()


_decoder = msgspec.json.Decoder(_Request)


class ChatFace:
    """The handlers. One instance per sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/openai/v1/chat/completions", self.completions)]

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """One answer."""
        if not request.headers.get("authorization", "").removeprefix("Bearer ").strip():
            return _error(401, message="You didn't provide an API key")
        body = await request.read()
        try:
            asked = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as reason:
            return _error(400, message=str(reason))
        wrong = _invalid(asked)
        if wrong is not None:
            return _error(400, message=wrong)
        fault, reply = answered(self._sandbox, _asked(asked, body), pauses=False)
        if (refusal := await refused(request, fault, _error)) is not None:
            return refusal
        pace = self._sandbox.assistant.pace
        if not asked.stream:
            return await said_at_once(request, fault, pace, msgspec.json.encode(_completion(reply)), _error(529))
        return await said_slowly(
            request,
            fault,
            pace,
            _chunks(reply, pace, ends=fault.kind not in UNENDED, usage=asked.stream_options.include_usage),
            headers={"x-request-id": f"req_{os.urandom(11).hex()}"},
            error=_event({"error": {"code": 502, "message": "Overloaded"}, "choices": [_choice({}, "error")]}),
        )


def _asked(asked: _Request, body: bytes) -> Asked:
    system: list[str] = []
    turns: list[Turn] = []
    for turn in asked.messages:
        if turn.role == "system":
            system += _texts(turn)
        else:
            turns.append(Turn(role=turn.role, texts=tuple(_texts(turn))))
    return Asked(model=asked.model, turns=turns, system="\n".join(system), stream=asked.stream, body=body)


def _texts(turn: _Turn) -> Iterator[str]:
    for part in turn.parts:
        if part.image_url is None:
            yield part.text
        else:
            head, _, data = part.image_url.url.partition(",")
            kind = head.removeprefix("data:").removesuffix(";base64")
            yield f"[{kind}, {len(base64.b64decode(data))} bytes]"


def _chunks(reply: Reply, pace: Pace, *, ends: bool, usage: bool) -> Iterator[bytes]:
    head = {
        "id": f"chatcmpl-{os.urandom(12).hex()}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": reply.model,
    }
    counted: dict[str, object] = {"usage": None} if usage else {}

    def chunk(*choices: dict[str, object], **more: object) -> bytes:
        return _event({**head, "choices": choices, **counted, **more})

    yield b": PROCESSING\n\n"  # OpenRouter's sign of life
    yield chunk(_choice({"role": "assistant", "content": ""}))
    text = "".join(block.text for block in reply.blocks)
    for at in range(0, len(text), pace.characters):
        yield chunk(_choice({"content": text[at : at + pace.characters]}))
    if ends:
        yield chunk(_choice({}, _FINISHED[reply.ending]))
        if usage:
            yield chunk(usage=_usage(reply))
        yield b"data: [DONE]\n\n"


def _choice(delta: dict[str, object], finished: str | None = None) -> dict[str, object]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finished}


def _completion(reply: Reply) -> dict[str, object]:
    text = "".join(block.text for block in reply.blocks)
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": f"chatcmpl-{os.urandom(12).hex()}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": reply.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISHED[reply.ending]}],
        "usage": _usage(reply),
    }


def _usage(reply: Reply) -> dict[str, object]:
    return {
        "prompt_tokens": reply.fresh,
        "completion_tokens": reply.written,
        "total_tokens": reply.fresh + reply.written,
        "prompt_tokens_details": {"cached_tokens": reply.cached},
    }


def _event(data: dict[str, object]) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode(data)


def _invalid(asked: _Request) -> str | None:
    """What OpenAI answers with 400."""
    limit = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    if limit is not None and limit < 1:
        return "Invalid 'max_tokens': integer below minimum value."
    if not asked.messages:
        return "Invalid 'messages': empty array."
    for at, turn in enumerate(asked.messages):
        if turn.role not in {"system", "user", "assistant"}:
            return f"Invalid value: 'messages[{at}].role'."
        for part in turn.parts:
            if part.type not in {"text", "image_url"} or (part.type == "image_url") != (part.image_url is not None):
                return f"Invalid value: 'messages[{at}].content'."
            if part.image_url is not None and not _is_picture(part.image_url.url):
                return f"Invalid image data: 'messages[{at}].content'."
    return None


def _is_picture(url: str) -> bool:
    """Whether it is a data URL; the sandbox fetches nothing."""
    head, comma, data = url.partition(",")
    try:
        base64.b64decode(data, validate=True)
    except binascii.Error:
        return False
    return bool(comma) and head.startswith("data:image/") and head.endswith(";base64")


def _error(status: int, *, message: str | None = None) -> web.Response:
    kind, code, usual = _ERRORS[status]
    body = msgspec.json.encode({"error": {"message": message or usual, "type": kind, "param": None, "code": code}})
    return web.Response(status=status, body=body, content_type="application/json")
