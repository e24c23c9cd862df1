"""`POST /ansari/whatsapp/v2/messages/process`: one answer of the simulated ansari-backend, as bare text without an end mark.

What it says comes from scripts.py. As there, the person's turn is stored after the 200 and before the first word, the
answer after the last; a client that leaves in between is left with a turn without an answer.
"""

import asyncio

import msgspec
from aiohttp import web

from app.sandbox import ansari_wire as wire
from app.sandbox import sockets
from app.sandbox.ansari_threads import Thread, Threads
from app.sandbox.assistant_calls import Call
from app.sandbox.faults import Fault
from app.sandbox.numbers import now
from app.sandbox.scripts import answer
from app.sandbox.simulation import Sandbox

_LATE = 0.3


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    phone_num: str
    thread_id: str
    message: str


class ProcessFace:
    """The handler. One instance per sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[web.RouteDef]:
        return [web.post(f"{wire.PREFIX}/messages/process", self.process)]

    @property
    def _threads(self) -> Threads:
        return self._sandbox.threads

    async def process(self, request: web.Request) -> web.StreamResponse:
        """One answer, as raw text without an end mark."""
        if (refused := unauthorized(self._sandbox.threads, request)) is not None:
            return refused
        try:
            asked = await wire.body(request, _Message)
        except msgspec.ValidationError:
            return wire.missing("body", "message")
        assistant = self._sandbox.assistant
        occurrence = assistant.occurrence((asked.message,))
        fault = self._sandbox.faults.draw(
            "ansari", lambda only: only in asked.message or only == asked.phone_num, asked.message, str(occurrence)
        )
        assistant.record(
            Call(
                t=now(),
                user=(asked.message,),
                question=(asked.message,),
                stream=True,
                outcome=fault.kind,
                input_tokens=0,
                output_tokens=0,
                cached_tokens=0,
                body=msgspec.Raw(await request.read()),
            )
        )
        thread = self._threads.get(asked.thread_id, asked.phone_num)
        if thread is None:
            return wire.json({"detail": "Thread not found"}, status=404)
        said = wire.saying(answer((asked.message,)))
        match fault.kind:
            case "rst":
                return sockets.reset(request)
            case "html":
                return wire.page()
            case "redirect":
                return web.Response(status=307, headers={"Location": "/elsewhere"})
            case "queued":
                self._threads.later(fault.wait(_LATE), lambda: self._both(thread, asked.message, said))
                return sockets.reset(request)
            case "killed" | "late" | "no_answer" | "http_502" | "http_524":
                self._threads.add(thread, "user", asked.message)
                if fault.kind in ("late", "http_502", "http_524"):
                    self._threads.later(fault.wait(_LATE), lambda: self._answer(thread, said))
                if fault.kind in ("http_502", "http_524"):
                    return wire.refused(fault)
                return await sockets.hold(request, fault.wait(60.0) if fault.kind == "no_answer" else 0.0)
            case kind if kind.startswith("http_"):
                return wire.refused(fault)
        try:
            return await self._streamed(request, fault, thread, asked.message, said)
        except ConnectionResetError:  # who asked was killed: that is what the tests are for, and no error of ours
            return web.Response()

    async def _streamed(
        self, request: web.Request, fault: Fault, thread: Thread, message: str, said: wire.Saying
    ) -> web.StreamResponse:
        pace, kind = self._sandbox.assistant.pace, fault.kind
        response = web.StreamResponse()
        await response.prepare(request)
        self._threads.add(thread, "user", message)
        await asyncio.sleep(pace.first_token + (fault.wait(4.0) if kind == "slow" else 0.0))
        broken = kind in {"cut", "truncated", "cut_late", "truncated_late", "apology", "stall"}
        text = said.text[: len(said.text) // 2] if broken else said.text
        for piece in _spoken(kind, text, pace.characters if pace.between else max(1, len(text))):
            await response.write(piece)
            await asyncio.sleep(pace.between)
        if kind == "stall":
            await sockets.hold(request, fault.wait(60.0))
            return response
        if kind in {"cut_late", "truncated_late"}:
            self._threads.later(fault.wait(_LATE), lambda: self._answer(thread, said))
        elif kind in {"apology", "apology_only"}:
            self._threads.add(thread, "assistant", wire.APOLOGY)
        elif not broken:
            if kind == "silence":
                await asyncio.sleep(fault.wait(4.0))
            self._answer(thread, said)
            if said.citations and kind not in {"empty", "blank"}:
                await response.write(said.citations.encode())
        if kind in {"cut", "cut_late", "cut_after"}:
            await asyncio.sleep(0.01)  # so that what was said is on its way before the reset
            sockets.reset(request)
            return response
        await response.write_eof()
        return response

    def _both(self, thread: Thread, message: str, said: wire.Saying) -> None:
        self._threads.add(thread, "user", message)
        self._answer(thread, said)

    def _answer(self, thread: Thread, said: wire.Saying) -> None:
        """The rows of an answer: a tool's call and its result, where there are sources, and what was said of them."""
        if said.sources:
            use: dict[str, object] = {
                "type": "tool_use",
                "id": "toolu_1",
                "name": "search_hadith",
                "input": {"query": "?"},
            }
            result: dict[str, object] = {"type": "tool_result", "tool_use_id": "toolu_1", "content": said.sources}
            self._threads.add(thread, "assistant", [use])
            self._threads.add(thread, "user", [result])
        whole = said.text.strip()
        self._threads.add(thread, "assistant", f"{whole}\n\n{said.citations}" if said.citations else whole)


def _spoken(kind: str, text: str, step: int) -> list[bytes]:
    """What is streamed of a text, in pieces of so many characters."""
    pieces = [text[at : at + step].encode() for at in range(0, len(text), step)]
    match kind:
        case "empty" | "apology_only":
            return []
        case "blank":
            return [b" \n \t"]
        case "nonsense":
            return [text[: len(text) // 2].encode(), b"\xff\xfe", text[len(text) // 2 :].encode()]
        case "repeat":
            return pieces * 2
    return pieces


def unauthorized(threads: Threads, request: web.Request) -> web.Response | None:
    """The refusal of a request without a key (FastAPI's 422) or with another's (401)."""
    key = request.headers.get("x-whatsapp-api-key")
    if key is None:
        return wire.missing("header", "x-whatsapp-api-key")
    if threads.key is not None and key != threads.key:
        return wire.json({"detail": wire.DETAILS[401]}, status=401)
    return None
