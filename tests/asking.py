"""An assistant in a room with the sandbox, or with a server that says what it is told. For tests of assistants."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import httpx
import msgspec
from aiohttp import web
from msgspec import Struct

from app.assistants import Answer, Asking, Call, Line, Question, assistant
from app.configuration import Assistant as Settings
from app.errors import AssistantError
from app.sandbox.faults import Fault
from app.sandbox.simulation import Sandbox
from app.vault import Secret

API_KEY = "sk-ant-api03-not-to-be-seen"
TRIES = 4
PERSON = "15550002222"
# Tokens by estimate, where nobody has counted them: of the question "question" with the prompt below, and of "hello".
ESTIMATE = (13, 2)


class Wire(Struct, frozen=True, kw_only=True):
    """A stream's bytes. `delta` has %s where the words stand, in JSON with its quotation marks; `cost` has each of the two
    figures once as %d, what was read first.
    """

    begin: bytes
    delta: bytes
    end: bytes
    tomorrow: bytes
    cost: bytes
    declined: tuple[bytes, ...] = ()
    """Each a way to say that it will not answer."""

    def say(self, text: str) -> bytes:
        return self.delta % msgspec.json.encode(text)

    def say_raw(self, escaped: bytes) -> bytes:
        """What stands between the quotation marks, as it is."""
        return self.delta % (b'"%s"' % escaped)


class Bare(Wire, frozen=True, kw_only=True):
    """Text and nothing else: it begins and ends as the connection does."""

    def say(self, text: str) -> bytes:
        return text.encode()

    def say_raw(self, escaped: bytes) -> bytes:
        return escaped


class Face(Struct, frozen=True, kw_only=True):
    """An assistant's interface in the sandbox, and what it has. What it has not is not asked of it: `needing`."""

    path: str
    wire: Wire
    faults: Literal["assistant", "ansari"] = "assistant"
    named: dict[str, str] = {}
    """What it calls faults that the suite knows by another name."""
    shown: bool = True
    """Each question brings the conversation, a system prompt and a limit. Else it keeps threads, and the others are its own."""
    repeatable: bool = True
    """The same call may be made again. Else the question is stored, and what became of it is looked for where it is."""
    events: bool = True
    """Its stream has a format and an end. Else it is text, and ends where it ends."""
    pictures: bool = True
    limits: bool = True
    """It says that its limit cut it short, and goes on when it is asked to."""
    counts: bool = True
    """It counts tokens, and says why it stopped."""
    declines: bool = True
    """It has a way to say that it will not answer."""
    blames: bool = True
    """Its 400 is the request's fault. Else it says so of whatever fails inside it."""


FACES = {
    "anthropic": Face(
        path="/anthropic",
        wire=Wire(
            begin=b'data: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":1,"output_tokens":1}}}\n\n',
            delta=b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%s}}\n\n',
            end=b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\ndata: {"type":"message_stop"}\n\n',
            tomorrow=b'data: {"type":"of_tomorrow","delta":{"type":"dream_delta","dream":"x"}}\n\n',
            cost=b'data: {"type":"message_delta","delta":{},"usage":{"input_tokens":%d,"output_tokens":%d}}\n\n',
            declined=(
                b'data: {"type":"message_delta","delta":{"stop_reason":"refusal"}}\n\n',
                b'data: {"type":"error","error":{"type":"content_filter"}}\n\n',  # a gateway's
            ),
        ),
    ),
    "openai": Face(
        path="/openai/v1",
        wire=Wire(
            begin=b'data: {"model":"m","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n',
            delta=b'data: {"choices":[{"index":0,"delta":{"content":%s},"finish_reason":null}]}\n\n',
            end=b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
            tomorrow=b'data: {"object":"of.tomorrow","choices":[],"x":{"error":1}}\n\n',
            cost=b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}\n\n',
            declined=(
                b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"content_filter"}]}\n\n',
                b'data: {"choices":[{"index":0,"delta":{"refusal":"I cannot help with that."}}]}\n\n',
                b'data: {"error":{"type":"invalid_request_error","code":"content_policy_violation"}}\n\n',
            ),
        ),
    ),
    "ansari": Face(
        path="/ansari",
        wire=Bare(begin=b"", delta=b"%s", end=b"", tomorrow=b"", cost=b""),
        faults="ansari",
        named={"error_event": "apology"},
        shown=False,
        repeatable=False,
        events=False,
        pictures=False,
        limits=False,
        counts=False,
        declines=False,
        blames=False,
    ),
}


def needing(*features: str) -> list[str]:
    """Those who have all of these."""
    return [name for name, face in FACES.items() if all(getattr(face, feature) for feature in features)]


class Kept(dict[str, Any]):
    """`app.assistants.Notes` without a database."""

    async def keep(self, name: str, value: Any, *, lasting: bool = False) -> None:
        assert name not in self, "a name is kept once"
        self[name] = msgspec.json.decode(msgspec.json.encode(value))


class Watched:
    """Stands for a breaker: notes how each call ended and when its first words came; `shut`: it lets nobody through."""

    def __init__(self, *, shut: bool = False) -> None:
        self.shut = shut
        self.errors: list[BaseException | None] = []
        self.words = 0

    @property
    def ends(self) -> list[type[BaseException] | None]:
        """The errors' types; None: a good call."""
        return [None if error is None else type(error) for error in self.errors]

    def began(self) -> None:
        self.words += 1

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[Call]:
        if self.shut:
            await asyncio.Event().wait()
        try:
            yield self
        except BaseException as error:
            self.errors.append(error)
            raise
        self.errors.append(None)


class Room:
    """An assistant, its settings, what it was asked, and what its workers noted of the turn."""

    def __init__(self, provider: str, sandbox: Sandbox, client: httpx.AsyncClient) -> None:
        self.assistant, self.sandbox, self.client = assistant(provider), sandbox, client
        self.face = FACES[provider]
        self.wire = self.face.wire
        self.notes = Kept()
        self.last: Any = None
        self.served = 0
        self.bodies: list[Any] = []
        self.settings = Settings(
            provider=provider,  # type: ignore[arg-type]
            base_url=f"{sandbox.url}{self.face.path}",
            api_key=Secret(API_KEY),
            model="a-model",
            system="You are the clinic's assistant.",
            deadline_seconds=5.0,
        )

    def fails(self, *kinds: str | Fault) -> None:
        """The next calls that want an answer end so."""
        named = [self.face.named.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]
        self.sandbox.faults.queue(self.face.faults, named)

    async def ask(
        self, *lines: str | Line, person: str = PERSON, asking: Asking | None = None, **changed: Any
    ) -> Answer:
        """Ask as a worker that has only the turn's notes would; a plain text is a person's line."""
        asked = [line if isinstance(line, Line) else Line("user", line) for line in lines or ("question",)]
        settings = msgspec.structs.replace(self.settings, **changed)
        deadline = time.monotonic() + settings.deadline_seconds
        question = Question(lines=tuple(asked), person=person, last=self.last)
        return await self.assistant.ask(
            self.client, settings, question, deadline=deadline, notes=self.notes, asking=asking
        )

    async def fate(self, *lines: str | Line, **changed: Any) -> AssistantError | Answer:
        try:
            return await self.ask(*lines, **changed)
        except AssistantError as error:
            return error

    def settle(self, *, gap: bool = False) -> None:
        """The turn has ended; of the next nothing is noted. `gap`: it begins another session."""
        self.last = None if gap else next(iter(self.notes.values()), self.last)
        self.notes = Kept()

    async def next_turn(self, *lines: str | Line, **changed: Any) -> Answer:
        """Likewise, of the next turn of the session."""
        self.settle()
        return await self.ask(*lines, **changed)

    async def fate_of(
        self, *pieces: bytes, status: int = 200, content_type: str = "text/event-stream", **changed: Any
    ) -> AssistantError | Answer:
        """What becomes of a question whose every call is answered so, in these pieces; `served` counts them."""
        return await self._fate_of([pieces], status, content_type, **changed)

    async def fate_of_each(self, *bodies: bytes, **changed: Any) -> AssistantError | Answer:
        """What becomes of a question whose calls are answered so in turn, the last again and again; `bodies` asked it."""
        return await self._fate_of([(body,) for body in bodies], 200, "text/event-stream", **changed)

    async def _fate_of(
        self, answers: Sequence[Sequence[bytes]], status: int, content_type: str, **changed: Any
    ) -> AssistantError | Answer:
        left = list(answers)
        self.bodies = []

        async def say(request: web.Request) -> web.StreamResponse:
            self.served += 1
            self.bodies.append(msgspec.json.decode(await request.read()))
            pieces = left.pop(0) if len(left) > 1 else left[0]
            response = web.StreamResponse(status=status, headers={"Content-Type": content_type})
            await response.prepare(request)
            with suppress(ConnectionResetError):  # who asked has read enough
                for piece in pieces:
                    await response.write(piece)
                    await asyncio.sleep(0.01 if len(pieces) > 1 else 0)
            if status == 200:
                threads.store(self.bodies[-1], b"".join(pieces))
            return response

        threads = Threads(say)
        async with served(say if self.face.repeatable else threads.answer) as url:
            return await self.fate(base_url=url, **changed)

    @property
    def calls(self) -> int:
        return self.sandbox.assistant.count

    @property
    def said(self) -> dict[str, Any]:
        """The last request, decoded."""
        return dict(msgspec.json.decode(self.sandbox.assistant.calls[-1].body))

    @property
    def known(self) -> list[tuple[str, str]]:
        """The conversation that the last answer was given to, as whoever gave it had it."""
        if self.face.shown:
            return [(turn["role"], turn["content"]) for turn in self.said["messages"] if turn["role"] != "system"]
        thread = self.sandbox.threads.last(PERSON)
        return [(row.role, str(row.content)) for row in thread.rows[:-1]] if thread else []

    @property
    def system(self) -> str | None:
        """The system prompt of the last request, wherever its format has it."""
        if "system" in self.said:
            return "".join(block["text"] for block in self.said["system"])
        first = self.said["messages"][0]
        return first["content"] if first["role"] == "system" else None


class Threads:
    """Ansari's backend around its `process`, which is `say`: a thread that holds what was said, as its database would."""

    def __init__(self, say: Any) -> None:
        self._say = say
        self._rows: list[dict[str, str]] = []

    def store(self, asked: dict[str, str], said: bytes) -> None:
        self._rows += [
            {"role": "user", "content": asked.get("message", "")},
            {"role": "assistant", "content": said.decode("utf-8", "replace")},
        ]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        match request.path.removeprefix("/whatsapp/v2/").split("/"):
            case ["messages", "process"]:
                return await self._say(request)  # type: ignore[no-any-return]
            case ["threads", _, "history"]:
                return web.json_response({"messages": self._rows})
            case _:
                return web.json_response({"thread_id": "t"})


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
