"""How a connection misbehaves: resets, half answers, silence. It knows nothing of what the request meant."""

import asyncio
import socket
import struct

from aiohttp import web

# l_onoff 1, l_linger 0: close() sends RST and throws away what was not sent yet (socket(7)).
_LINGER = struct.pack("ii", 1, 0)


def reset(request: web.Request) -> web.Response:
    """End the connection with RST, now."""
    if request.transport is not None:
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        request.transport.abort()
    return _gone()


def finish(request: web.Request, *, after: bytes = b"") -> web.Response:
    """Write `after` as it is, then end the connection with FIN."""
    if request.transport is not None:
        if after:
            request.transport.write(after)
        request.transport.close()
    return _gone()


async def hold(request: web.Request, seconds: float, *, after: bytes = b"") -> web.Response:
    """Write `after`, say nothing more for `seconds`, then reset. Ends at once when the client leaves."""
    if request.transport is not None and after:
        request.transport.write(after)
    await asyncio.sleep(seconds)
    return reset(request)


async def drip(request: web.Request, answer: bytes, seconds: float) -> tuple[web.Response, bool]:
    """Write `answer` a byte at a time; also whether all of it was written."""
    for at in range(len(answer)):
        if request.transport is None or request.transport.is_closing():
            return _gone(), False
        request.transport.write(answer[at : at + 1])
        await asyncio.sleep(seconds)
    return finish(request), True


def raw(status: str, body: bytes, content_type: str = "application/json") -> bytes:
    """An HTTP/1.1 answer as bytes on the wire."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _gone() -> web.Response:
    # aiohttp wants a response from every handler; the transport is closing, so it is never written.
    return web.Response()
