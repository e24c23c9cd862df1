"""Another try of a call over HTTP: after which statuses, when, and how often. What is called, and how, is its caller's.

For calls that may be repeated: chunks are not sent so (`workers/deliver.py`).
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
import stamina
import structlog

from app.errors import AssistantBusy, TranslatorBusy
from app.http import EARLY

log = structlog.get_logger(__name__)

# It would log each pause in a warning of its own, with keys that tell nothing of ours: `tried` says it instead.
stamina.instrumentation.set_on_retry_hooks(())

# A header asks for no longer than this (seconds): one wrong figure would silence a number for days.
LONGEST = 3600.0
# Pauses between tries begin and end so long (seconds), each with up to `jitter` more.
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0

_PASSING = frozenset({408, 409, 425, 429})
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")

T = TypeVar("T")


def passes(status: int) -> bool:
    """Whether the same request may be answered otherwise in a while: timeouts, conflicts, limits, and whatever fails on the
    other side or between: beyond the standard's, Cloudflare's 520 to 530 and Anthropic's 529 "overloaded".
    """
    return status >= 500 or status in _PASSING


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds, 0 to `LONGEST`, that an answer asks to be left alone: by `Retry-After`, a number of them or a date (RFC 9110,
    10.2.3), or OpenAI's `retry-after-ms`, which is finer. None: it does not say; nonsense says nothing.

    A date counts from the answer's own `Date`, if it has one: our clock may go wrong.
    """
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _SECONDS.fullmatch(milliseconds):
        return min(float(milliseconds) / 1000, LONGEST)
    waits = [wait for value in headers.get_list("retry-after") if (wait := _wait(value.strip(), headers)) is not None]
    return max((min(max(wait, 0.0), LONGEST) for wait in waits), default=None)


def _wait(value: str, headers: httpx.Headers) -> float | None:
    if _SECONDS.fullmatch(value):
        return float(value)
    until = _date(value)
    if until is None:
        return None
    return (until - (_date(headers.get("date", "")) or datetime.now(UTC))).total_seconds()


def _date(value: str) -> datetime | None:
    """One of HTTP's three forms of a date, all of them in GMT."""
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


async def tried(
    once: Callable[[], Awaitable[T]],
    *,
    busy: type[AssistantBusy] | type[TranslatorBusy],
    deadline: float,
    tries: int,
    what: str,
    final: tuple[type[Exception], ...] = (),
    jitter: float = 1.0,
) -> T:
    """What `once()` returns, before `deadline` (by the monotonic clock): `tries` of it while it raises `busy`, and none of
    `final`. A wait that it was asked for is kept; one beyond the deadline is not begun.

    Raises:
        busy: as the last try did, or that there was no `what` in time.
    """
    patience = deadline - time.monotonic()
    if patience <= 0:
        raise busy("no time was left")

    failed: Exception | None = None

    def again(error: Exception) -> bool | float:
        nonlocal failed
        failed = error
        if not isinstance(error, AssistantBusy | TranslatorBusy) or isinstance(error, final):
            return False
        wait = error.retry_after
        if wait is None:
            return True
        return wait if time.monotonic() + wait < deadline else False

    try:
        async with _within(patience):
            async for attempt in stamina.retry_context(
                on=again,
                attempts=tries,
                timeout=patience,
                wait_initial=FIRST_PAUSE,
                wait_max=LONGEST_PAUSE,
                wait_jitter=jitter,
            ):
                if failed is not None:
                    log.info("asked again", attempt=attempt.num, reason=f"no {what} yet: {failed}")
                with attempt:
                    return await once()
    except TimeoutError:
        raise busy(f"no {what} within {patience:.3g} s") from None
    raise AssertionError("stamina either returns or raises")


@asynccontextmanager
async def _within(patience: float) -> AsyncIterator[None]:
    """`asyncio.timeout`, late by as much as the event loop was `EARLY` before it: a call that ends by itself then has come to its
    end first, and what it had heard is not lost. Else both would end in one round of the loop, and the outer one counts.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    before = max(end - EARLY, loop.time())
    async with asyncio.timeout(None) as bound:
        armed = loop.call_at(before, lambda: bound.reschedule(max(end, end + loop.time() - before)))
        try:
            yield
        finally:
            armed.cancel()


def watched(asking: Callable[[], AbstractAsyncContextManager[T]] | None) -> AbstractAsyncContextManager[T | None]:
    """One call under the watch of whoever has one."""
    return asking() if asking is not None else nullcontext()
