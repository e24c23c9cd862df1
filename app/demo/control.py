"""Speaks to the sandbox's control API, and asks the web process whether it is ready. Plays nothing itself.

HTTP by hand, since the clients that Qasid has for providers take half a second to import and this is a start-up's time.
"""

import asyncio
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec
from msgspec import Struct

from app.errors import QasidError
from app.sandbox.ledger import Delivery, Line

T = TypeVar("T")


class Said(Struct, frozen=True, kw_only=True):
    """What became of one webhook, by the sandbox's clock: `t` of its delivery in unix time, `ack_ms` until its answer."""

    ids: list[str]
    deliveries: list[Delivery]


class Waiting(Struct, frozen=True, kw_only=True):
    """Webhooks that the sandbox has yet to post."""

    statuses: int
    redeliveries: int


class Ledger(Struct, frozen=True, kw_only=True):
    """What recipients got."""

    entries: list[Line]
    waiting: Waiting


class _Deliveries(Struct, frozen=True, kw_only=True):
    deliveries: list[Delivery]


class _Waited(Struct, frozen=True, kw_only=True):
    entries: list[Line]


async def request(
    host: str, port: int, method: str, path: str, body: bytes = b"", *, timeout: float
) -> tuple[int, bytes]:
    """Status and body of one request. Raises OSError, and TimeoutError after `timeout` seconds.

    HTTP/1.0, so that the body ends where the server hangs up.
    """
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            head = f"{method} {path} HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.read()
        finally:
            writer.close()
    if not answer.startswith(b"HTTP/1."):
        raise ConnectionResetError(f"{host}:{port} hung up")
    head_bytes, _, payload = answer.partition(b"\r\n\r\n")
    return int(head_bytes.split(maxsplit=2)[1]), payload


class Control:
    """The sandbox at one port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def healthy(self) -> bool:
        """Whether it answers."""
        try:
            status, _ = await request("127.0.0.1", self._port, "GET", "/healthz", timeout=1.0)
        except (OSError, TimeoutError):
            return False
        return status == 200

    async def number(self, phone_number_id: str, **registration: str) -> None:
        """Have the sandbox play this number."""
        await self._ask("PUT", f"/control/numbers/{phone_number_id}", registration, dict[str, Any])

    async def pace(self, **pace: float) -> None:
        """How fast its assistant talks."""
        await self._ask("PUT", "/control/assistant", pace, dict[str, Any])

    async def translator(self, **speed: float) -> None:
        """How long its translator takes."""
        await self._ask("PUT", "/control/translator", speed, dict[str, Any])

    async def say(self, **spoken: object) -> Said:
        """A person's message, in a webhook of its own; returns once that was answered."""
        return await self._ask("POST", "/control/say", spoken, Said)

    async def wait(self, recipient: str, count: int, *, timeout: float) -> list[Line]:
        """What `recipient` got, once it is `count` texts or after `timeout` seconds."""
        query = urlencode({"recipient": recipient, "count": count, "timeout": timeout})
        return (await self._ask("GET", f"/control/wait?{query}", None, _Waited, timeout=timeout + 5.0)).entries

    async def ledger(self) -> Ledger:
        """All that was accepted, for anybody."""
        return await self._ask("GET", "/control/ledger?accepted=true", None, Ledger)

    async def status_webhooks(self) -> list[Delivery]:
        """Each POST of a webhook with statuses."""
        return (await self._ask("GET", "/control/deliveries?kind=statuses", None, _Deliveries)).deliveries

    async def _ask(self, method: str, path: str, body: object, kind: type[T], *, timeout: float = 15.0) -> T:
        content = msgspec.json.encode(body) if body is not None else b""
        try:
            status, answer = await request("127.0.0.1", self._port, method, path, content, timeout=timeout)
        except (OSError, TimeoutError) as error:
            raise QasidError(
                f"The sandbox does not answer {method} {path}: {error or type(error).__name__}."
            ) from error
        if status != 200:
            raise QasidError(
                f"The sandbox answered {status} to {method} {path}: {answer.decode(errors='replace')[:300]}"
            )
        return msgspec.json.decode(answer, type=kind)
