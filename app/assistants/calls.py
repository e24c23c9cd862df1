"""One call to a streaming API over HTTP: its errors as ours, by status, kind and Retry-After. Knows no body's format.

What a provider writes in an error may quote the question: of its words only the kind of the error goes further.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
import msgspec
from msgspec import Struct

from app import http
from app.assistants.parts import Declined
from app.errors import AssistantBusy, AssistantError, AssistantRefused, InDoubt, NeverLeft
from app.retrying import passes, retry_after

# Kinds of errors, of both APIs, that another try meets again, whatever the status says: no money left comes as a 429.
FINAL = frozenset(
    "authentication_error billing_error invalid_request_error not_found_error permission_error request_too_large "
    "context_length_exceeded insufficient_quota invalid_api_key model_not_found".split()
)
# Those of a filter's word, which is a refusal: nor is what was said before it an answer.
DECLINES = frozenset({"content_filter", "content_policy_violation"})
# The words of an error are waited for so long (seconds), and read so far (bytes).
PATIENCE, LONGEST = 2.0, 64 * 1024

_encode = msgspec.json.Encoder().encode
_KIND = re.compile(r"[A-Za-z0-9_.-]{1,50}")


class Refusal(Struct, frozen=True, kw_only=True):
    """An answer that is none. `body`: what was said about it, to look into, never to show."""

    status: int
    kinds: tuple[str, ...]
    retry_after: float | None
    body: bytes

    def error(self) -> AssistantError:
        """Busy, or refused where another try would end the same way."""
        told = " ".join((f"HTTP {self.status}", *self.kinds))
        if DECLINES.intersection(self.kinds):
            return Declined(told)
        if not passes(self.status) or FINAL.intersection(self.kinds):
            return AssistantRefused(told)
        return AssistantBusy(told, retry_after=self.retry_after)


@asynccontextmanager
async def streamed(
    client: httpx.AsyncClient, url: str, *, headers: Mapping[str, str], body: object, deadline: float
) -> AsyncIterator[http.Stream | Refusal]:
    """POST `body` as JSON; the stream of events, or why there is none. The answer must be here `http.EARLY` before `deadline`.

    Raises:
        AssistantBusy: no connection, no answer, or one that is no stream.
    """
    try:
        async with http.stream(
            client,
            "POST",
            url,
            headers={"content-type": "application/json", "accept": "text/event-stream", **headers},
            content=_encode(body),
            timeout=max(0.0, deadline - http.EARLY - time.monotonic()),
        ) as response:
            kind = response.headers.get("content-type", "text/event-stream").partition(";")[0].strip().lower()
            if response.status == 200 and kind == "text/event-stream":
                yield response
            else:
                refusal = await _refusal(response)
                if response.status == 200 and not refusal.kinds:
                    raise AssistantBusy("an answer that is no event stream")
                yield refusal
    except (NeverLeft, InDoubt) as error:  # asking twice doubles nothing but the cost
        raise AssistantBusy(str(error)) from error


class _Told(Struct):
    type: object = None
    code: object = None


class _Envelope(Struct):
    error: _Told | str | None = None


_envelope = msgspec.json.Decoder(_Envelope)


async def _refusal(response: http.Stream) -> Refusal:
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for piece in response:
                body += piece
                if len(body) > LONGEST:
                    break
    except (TimeoutError, InDoubt):
        pass  # the status says enough
    try:
        told = _envelope.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        told = None
    status, named = response.status, kinds(told)
    # OpenRouter: an error that comes after the model has begun has its HTTP status in `code`, beside a 200.
    if status == 200 and isinstance(told, _Told) and isinstance(told.code, int):
        status = told.code
    elif status == 200 and told is not None:
        status = 500
    return Refusal(status=status, kinds=named, retry_after=retry_after(response.headers), body=bytes(body))


def kinds(told: _Told | str | None) -> tuple[str, ...]:
    """What kind of error it is, in the provider's words: no sentence, nothing that was asked."""
    if told is None:
        return ()
    if isinstance(told, str):
        return ("error",)
    named = [str(each) for each in (told.type, told.code) if isinstance(each, str | int) and _KIND.fullmatch(str(each))]
    return tuple(dict.fromkeys(named)) or ("error",)
