"""Server-sent events: what both streaming APIs frame their answers in. Knows the framing and no provider's words.

Format: WHATWG HTML, "Server-sent events", 9.2.6, without line ends of a lone CR, which no provider writes.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TypeVar

import msgspec

from app import http
from app.errors import InDoubt

# A line, or an event of several, that is longer than this is none of theirs (bytes).
LONGEST = 1024 * 1024
# What follows the end mark is waited for so long (seconds): nothing does, but only then the connection can be kept.
REST = 0.2
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

T = TypeVar("T")


class Nonsense(Exception):
    """No event that we can read. The message never quotes it."""


async def events(response: http.Stream) -> AsyncGenerator[bytes]:
    """The data of each event. Comments, names and ids are read over: both providers repeat the name in the data.

    Raises:
        InDoubt: the stream broke off, stalled past its deadline or grew too long.
        Nonsense: a line or an event without an end.
    """
    buffer, scanned = bytearray(), 0
    data: list[bytes] = []
    size = 0  # of the event, with its line ends: empty lines are bytes too
    async for piece in response:
        buffer += piece
        begin = 0
        while (end := buffer.find(b"\n", scanned)) >= 0:
            line = bytes(buffer[begin:end]).removesuffix(b"\r")
            begin = scanned = end + 1
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
                size += len(line) + 1
            elif not line and data:
                yield b"\n".join(data)
                data, size = [], 0
        del buffer[:begin]
        scanned = len(buffer)
        if len(buffer) > LONGEST or size > LONGEST:
            raise Nonsense("a line or an event without an end")
    # By the letter an event without the empty line behind it is none. Some servers hang up instead of writing it.
    if buffer.startswith(b"data:"):
        data.append(bytes(buffer[5:]).strip())
    if data and data[-1].endswith((b"}", b"[DONE]")):
        yield b"\n".join(data)


async def rest(stream: AsyncGenerator[bytes]) -> None:
    """Let a stream that has said all come to its end; what else is in it does not matter."""
    with suppress(TimeoutError, InDoubt, Nonsense):
        async with asyncio.timeout(REST):
            async for _ in stream:
                pass


def read(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The event as the decoder's type. Half a surrogate pair stays one: servers that count in UTF-16 cut emoji in two.

    Raises:
        Nonsense: it is no JSON, of another shape, or nested without end.
    """
    try:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            if not _SURROGATE.search(data):
                raise
            # msgspec refuses half a pair; the standard library keeps it, and `storable` mends it.
            found: T = msgspec.convert(json.loads(data), decoder.type)
            return found
    except (ValueError, RecursionError):  # msgspec's DecodeError and UnicodeDecodeError are ValueErrors
        raise Nonsense("an event that cannot be read") from None
