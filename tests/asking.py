"""An assistant in a room with the sandbox, or with a server that says what it is told. For tests of assistants."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
from aiohttp import web
from msgspec import Struct

from app.assistants import Answer, Asking, Line, Question, assistant
from app.configuration import Assistant as Settings
from app.errors import AssistantError
from app.sandbox.faults import Fault
from app.sandbox.simulation import Sandbox
from app.vault import Secret

FACES = ["anthropic", "openai"]
API_KEY = "sk-ant-api03-not-to-be-seen"
TRIES = 4
PERSON = "15550002222"


class Wire(Struct, frozen=True, kw_only=True):
    """A stream's bytes. `delta` has %s where the words stand, in JSON with its quotation marks; `cost` has each of the two
    figures once as %d, what was read first.
    """

    begin: bytes
    delta: bytes
    end: bytes
    tomorrow: bytes
    cost: bytes

    def say(self, text: str) -> bytes:
        return self.delta % msgspec.json.encode(text)

    def say_raw(self, escaped: bytes) -> bytes:
        """What stands between the quotation marks, as it is."""
        return self.delta % (b'"%s"' % escaped)


WIRES = {
    "anthropic": Wire(
        begin=b'data: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":1,"output_tokens":1}}}\n\n',
        delta=b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%s}}\n\n',
        end=b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\ndata: {"type":"message_stop"}\n\n',
        tomorrow=b'data: {"type":"of_tomorrow","delta":{"type":"dream_delta","dream":"x"}}\n\n',
        cost=b'data: {"type":"message_delta","delta":{},"usage":{"input_tokens":%d,"output_tokens":%d}}\n\n',
    ),
    "openai": Wire(
        begin=b'data: {"model":"m","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n',
        delta=b'data: {"choices":[{"index":0,"delta":{"content":%s},"finish_reason":null}]}\n\n',
        end=b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
        tomorrow=b'data: {"object":"of.tomorrow","choices":[],"x":{"error":1}}\n\n',
        cost=b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}\n\n',
    ),
}


class Kept(dict[str, Any]):
    """`app.assistants.Notes` without a database."""

    async def keep(self, name: str, value: Any, *, lasting: bool = False) -> None:
        self[name] = msgspec.json.decode(msgspec.json.encode(value))


class Room:
    """An assistant, its settings, and what it was asked."""

    def __init__(self, provider: str, sandbox: Sandbox, client: httpx.AsyncClient) -> None:
        self.assistant, self.sandbox, self.client = assistant(provider), sandbox, client
        self.wire = WIRES[provider]
        self.notes = Kept()
        self.served = 0
        self.bodies: list[Any] = []
        self.settings = Settings(
            provider=provider,  # type: ignore[arg-type]
            base_url=sandbox.assistant_url if provider == "anthropic" else sandbox.chat_url,
            api_key=Secret(API_KEY),
            model="a-model",
            system="You are the clinic's assistant.",
            deadline_seconds=5.0,
        )

    def fails(self, *kinds: str | Fault) -> None:
        self.sandbox.faults.queue("assistant", kinds)

    async def ask(self, *lines: str | Line, asking: Asking | None = None, **changed: Any) -> Answer:
        """Ask; a plain text is a person's line."""
        asked = [line if isinstance(line, Line) else Line("user", line) for line in lines or ("question",)]
        settings = msgspec.structs.replace(self.settings, **changed)
        deadline = time.monotonic() + settings.deadline_seconds
        question = Question(lines=tuple(asked), person=PERSON)
        return await self.assistant.ask(
            self.client, settings, question, deadline=deadline, notes=self.notes, asking=asking
        )

    async def fate(self, *lines: str | Line, **changed: Any) -> AssistantError | Answer:
        try:
            return await self.ask(*lines, **changed)
        except AssistantError as error:
            return error

    async def fate_of(
        self, body: bytes, *, status: int = 200, content_type: str = "text/event-stream", **changed: Any
    ) -> AssistantError | Answer:
        """What becomes of a question whose every call is answered so; `served` counts them."""
        return await self.fate_of_each(body, status=status, content_type=content_type, **changed)

    async def fate_of_each(
        self, *bodies: bytes, status: int = 200, content_type: str = "text/event-stream", **changed: Any
    ) -> AssistantError | Answer:
        """What becomes of a question whose calls are answered so in turn, the last again and again; `bodies` asked it."""
        left = list(bodies)
        self.bodies = []

        async def say(request: web.Request) -> web.Response:
            self.served += 1
            self.bodies.append(msgspec.json.decode(await request.read()))
            body = left.pop(0) if len(left) > 1 else left[0]
            return web.Response(body=body, status=status, headers={"Content-Type": content_type})

        async with served(say) as url:
            return await self.fate(base_url=url, **changed)

    @property
    def calls(self) -> int:
        return self.sandbox.assistant.count

    @property
    def said(self) -> dict[str, Any]:
        """The last request, decoded."""
        return dict(msgspec.json.decode(self.sandbox.assistant.calls[-1].body))

    @property
    def system(self) -> str | None:
        """The system prompt of the last request, wherever its format has it."""
        if "system" in self.said:
            return "".join(block["text"] for block in self.said["system"])
        first = self.said["messages"][0]
        return first["content"] if first["role"] == "system" else None


@asynccontextmanager
async def served(say: Any) -> AsyncIterator[str]:
    """A server of one handler; its URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", say)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
