"""Reads the chunks of a streamed chat completion: text, cost, and how it ended. Only `[DONE]` is an end.

Formats: OpenAI's API reference, "Chat completion chunk"; OpenRouter's "Streaming" and "Errors and debugging" (errors in
mid-stream); vLLM's `{"object": "error"}`; Ollama repeats `role` in every chunk and tells errors as a text.
"""

from typing import Any

import msgspec
from msgspec import Struct

from app import http
from app.assistants import Call, sse
from app.assistants.calls import DECLINES, FINAL
from app.assistants.parts import DECLINED, Declined, Draft, Ending, Part, Tokens, counts
from app.errors import AssistantError, AssistantRefused, InDoubt
from app.retrying import passes

DONE = b"[DONE]"
# What a reason to stop means for the text. Of one that is not listed we think the best: servers invent some.
ENDINGS: dict[str, Ending] = {
    "length": "limit",
    "tool_calls": "waiting",
    "function_call": "waiting",
}


class _Piece(Struct):
    type: str = ""
    text: str | None = None


class _Delta(Struct):
    content: str | list[_Piece] | None = None  # Mistral's thinking models send a list
    refusal: str | None = None


class _Choice(Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    object: str | None = None
    code: str | int | None = None


_chunk = msgspec.json.Decoder(_Chunk)


async def collect(response: http.Stream, call: Call | None) -> Part:
    """The completion that streams in.

    Raises:
        Cut: it ended before its end.
        Declined: it refuses to answer, or its filter does.
        AssistantRefused: an error in mid-stream that another try would meet again.
    """
    draft = Draft(call)
    stream = sse.events(response)
    try:
        async for data in stream:
            if data.strip() == DONE:
                part = _ended(draft)
                await sse.rest(stream)
                return part
            chunk = sse.read(data, _chunk)
            if chunk.error is not None or chunk.object == "error":
                raise _fault(chunk, draft)
            draft.model = draft.model or chunk.model or ""
            draft.tokens = _tokens(chunk.usage) or draft.tokens
            for choice in chunk.choices or ():
                if choice.index != 0:
                    continue  # one was asked for
                delta = choice.delta or _Delta()
                draft.say(_text(delta.content))
                draft.stopped = choice.finish_reason or draft.stopped
                draft.declined |= bool(delta.refusal) or draft.stopped == "content_filter"
            if draft.too_long:
                return draft.shortened()
    except (InDoubt, sse.Nonsense) as fault:
        raise draft.cut(str(fault)) from fault
    finally:
        await stream.aclose()
    raise draft.cut("the stream was cut")


def _ended(draft: Draft) -> Part:
    if draft.declined:
        raise Declined(DECLINED)
    if draft.stopped == "error":  # OpenRouter's name for a provider that broke off
        raise draft.cut("error in mid-stream")
    return draft.part(ENDINGS.get(draft.stopped, "whole"))


def _text(content: str | list[_Piece] | None) -> str:
    if isinstance(content, list):
        return "".join(piece.text or "" for piece in content if piece.type == "text")
    return content or ""


def _tokens(told: object) -> Tokens | None:
    if not isinstance(told, dict):
        return None
    usage, details = counts(told), counts(told.get("prompt_tokens_details"))
    return Tokens(
        read=usage.get("prompt_tokens", 0),
        written=usage.get("completion_tokens", 0),
        cached=details.get("cached_tokens", 0),
    )


def _fault(chunk: _Chunk, draft: Draft) -> AssistantError:
    """An error in mid-stream, by its kinds, or by its HTTP status where `code` is one. A refusal comes first: a filter's error
    is `invalid_request_error` besides.
    """
    told = chunk.error if isinstance(chunk.error, dict) else {"code": chunk.code}
    kinds = [str(each) for each in (told.get("type"), told.get("code"))]
    if draft.declined or not DECLINES.isdisjoint(kinds):
        return Declined(DECLINED)
    for kind in kinds:
        if kind in FINAL or (kind.isdecimal() and int(kind[:3]) >= 400 and not passes(int(kind[:3]))):
            return AssistantRefused(f"error {kind[:50]} in mid-stream")
    return draft.cut("error in mid-stream")
