"""Anthropic's Messages API, streamed over SSE and decoded with Structs. One call; retries within the deadline.

Format: Anthropic's API reference, "Streaming Messages"; docs/wire-assistants.md gathers what we use of it.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import httpx
import msgspec
import stamina
import structlog
from msgspec import Struct

from app import http
from app.assistants import Answer, Asking, Call, Line, Notes, Question
from app.configuration import Fallback as AssistantSettings
from app.errors import AssistantBusy, AssistantRefused, InDoubt, NeverLeft

log = structlog.get_logger(__name__)

VERSION = "2023-06-01"
# HTTP statuses that may pass: timeouts, rate limits, server faults, and 529 "overloaded".
PASSING = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
TRIES = 4
# A call ends so much before the deadline (seconds): to be told from one that the caller gave up.
EARLY = 0.05
# An SSE line longer than this is no event of theirs (bytes).
LONGEST_LINE = 1024 * 1024


class _Delta(Struct):
    type: str = ""
    text: str = ""
    stop_reason: str | None = None


class _Usage(Struct):
    input_tokens: int = 0
    output_tokens: int = 0


class _Started(Struct):
    model: str = ""
    usage: _Usage | None = None


class _Fault(Struct):
    type: str = ""


class _Event(Struct):
    type: str
    message: _Started | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: _Fault | None = None


_event = msgspec.json.Decoder(_Event)
_encode = msgspec.json.Encoder().encode
_SECONDS = re.compile(r"\d{1,4}(\.\d+)?")


class Anthropic:
    """`app.assistants.Assistant` for the provider `anthropic`."""

    async def ask(
        self,
        client: httpx.AsyncClient,
        settings: AssistantSettings,
        question: Question,
        *,
        deadline: float,
        notes: Notes,
        asking: Asking | None = None,
    ) -> Answer:
        """See the Protocol. A cut stream or an empty answer counts as none and is asked for again."""
        patience = deadline - time.monotonic()

        def again(error: Exception) -> bool | float:
            if not isinstance(error, AssistantBusy):
                return False
            wait = error.retry_after
            if wait is None:
                return True
            return wait if time.monotonic() + wait < deadline else False

        try:
            async with asyncio.timeout(patience):
                async for attempt in stamina.retry_context(
                    on=again, attempts=TRIES, timeout=patience, wait_initial=0.25, wait_max=5.0
                ):
                    with attempt:
                        watched: AbstractAsyncContextManager[Call | None] = asking() if asking else nullcontext()
                        async with watched as call:
                            return await self._once(client, settings, list(question.lines), deadline, call)
        except TimeoutError:
            raise AssistantBusy(f"no whole answer within {patience:.3g} s") from None
        raise AssertionError("stamina either returns or raises")

    async def _once(
        self,
        client: httpx.AsyncClient,
        settings: AssistantSettings,
        lines: list[Line],
        deadline: float,
        call: Call | None,
    ) -> Answer:
        body: dict[str, Any] = {
            "model": settings.model,
            "max_tokens": settings.max_tokens,
            "stream": True,
            "messages": [{"role": line.role, "content": line.text} for line in _alternating(lines)],
        }
        if settings.system:
            body["system"] = settings.system
        headers = {
            "x-api-key": settings.api_key,
            "anthropic-version": VERSION,
            "content-type": "application/json",
            "accept": "text/event-stream",
        }
        try:
            async with http.stream(
                client,
                "POST",
                f"{settings.base_url}/v1/messages",
                headers=headers,
                content=_encode(body),
                timeout=max(0.0, deadline - EARLY - time.monotonic()),
            ) as response:
                if response.status != 200:
                    raise _refused(response.status, response.headers)
                return await _collect(response, call)
        except (NeverLeft, InDoubt) as error:  # asking twice doubles nothing but the cost
            raise AssistantBusy(str(error)) from error


def _refused(status: int, headers: httpx.Headers) -> AssistantBusy | AssistantRefused:
    if status not in PASSING:
        return AssistantRefused(f"HTTP {status}")
    asked = headers.get("retry-after", "")
    return AssistantBusy(f"HTTP {status}", retry_after=float(asked) if _SECONDS.fullmatch(asked) else None)


async def _collect(response: http.Stream, call: Call | None) -> Answer:
    parts: list[str] = []
    model, stopped, ended = "", "", False
    tokens = [0, 0]
    async for data in _events(response):
        try:
            event = _event.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise AssistantBusy("an event that cannot be read") from None
        if event.type == "content_block_delta" and event.delta and event.delta.type == "text_delta":
            parts.append(event.delta.text)
            if call is not None and len(parts) == 1:
                call.began()
        elif event.type == "message_start" and event.message:
            model = event.message.model[:100]
            if event.message.usage:
                tokens = [event.message.usage.input_tokens, event.message.usage.output_tokens]
        elif event.type == "message_delta":
            stopped = (event.delta and event.delta.stop_reason) or stopped
            if event.usage:
                tokens[1] = event.usage.output_tokens
        elif event.type == "message_stop":
            ended = True
        elif event.type == "error":
            raise AssistantBusy(f"error {event.error.type[:50] if event.error else ''} in mid-stream")
    text = "".join(parts)
    if not ended:
        raise AssistantBusy("the stream was cut")
    if stopped == "refusal":
        raise AssistantRefused("it refuses to answer")
    if not text.strip():
        raise AssistantBusy("an empty answer")
    return Answer(text=text, model=model, input_tokens=tokens[0], output_tokens=tokens[1], stopped=stopped[:50])


async def _events(response: http.Stream) -> AsyncIterator[bytes]:
    """The data of each server-sent event. Theirs are one `data:` line each; `event:` repeats the type in the data."""
    buffer = b""
    async for piece in response:
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
        if len(buffer) > LONGEST_LINE:
            raise AssistantBusy("a line without an end")


def _alternating(lines: list[Line]) -> list[Line]:
    """Neighbours of one role joined, and a person first, as the API wants it."""
    joined: list[Line] = []
    for line in lines:
        if joined and joined[-1].role == line.role:
            joined[-1] = Line(line.role, f"{joined[-1].text}\n\n{line.text}")
        elif joined or line.role == "user":
            joined.append(line)
    return joined
