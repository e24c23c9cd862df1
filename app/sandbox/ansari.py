"""The Ansari face: `/ansari/whatsapp/v2/…`, ansari-backend as a WhatsApp service sees it (WIRE.md 1.4).

What it says comes from scripts.py. As there, the person's turn is stored after the 200 and before the first word, the
answer after the last; a client that leaves in between is left with a turn without an answer.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from aiohttp import web

from app.sandbox import sockets
from app.sandbox.ansari_threads import Thread, Threads
from app.sandbox.assistant_calls import Call
from app.sandbox.faults import Fault
from app.sandbox.numbers import now
from app.sandbox.scripts import Block, answer
from app.sandbox.simulation import Sandbox

PREFIX = "/ansari/whatsapp/v2"
APOLOGY = "I encountered a problem processing your request. Please try again or rephrase your question."
_LATE = 0.3
_DETAILS = {
    400: "Failed to get last thread info: the database is away",
    401: "Unauthorized: Invalid or missing API key",
    404: "Thread not found",
    422: "Unprocessable",
    429: "Too many requests",
    500: "Message processing failed: the model is away",
    502: "Bad gateway",
}


class _Registration(msgspec.Struct, frozen=True, kw_only=True):
    phone_num: str
    preferred_language: str


class _Title(msgspec.Struct, frozen=True, kw_only=True):
    phone_num: str
    title: str


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    phone_num: str
    thread_id: str
    message: str


Shape = TypeVar("Shape", _Registration, _Title, _Message)


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as it is streamed: text, then the list of its citations in one piece."""

    text: str
    citations: str
    sources: list[dict[str, object]]


class AnsariFace:
    """The handlers. One instance per sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(f"{PREFIX}/users/exists", self._faulty("users/exists", self.exists)),
            web.post(f"{PREFIX}/users/register", self._faulty("users/register", self.register)),
            web.post(f"{PREFIX}/threads", self._faulty("threads", self.begin)),
            web.get(f"{PREFIX}/threads/last", self._faulty("threads/last", self.last)),
            web.get(PREFIX + "/threads/{thread_id}/history", self._faulty("threads/history", self.history)),
            web.post(f"{PREFIX}/messages/process", self.process),
        ]

    @property
    def _threads(self) -> Threads:
        return self._sandbox.threads

    # --- people and threads ---

    async def exists(self, request: web.Request) -> web.Response:
        return _json({"exists": request.query["phone_num"] in self._threads.people})

    async def register(self, request: web.Request) -> web.Response:
        asked = await _body(request, _Registration)
        user_id = self._threads.register(asked.phone_num, asked.preferred_language)
        return _json({"status": "success", "user_id": {"status": "success", "user_id": user_id}})

    async def begin(self, request: web.Request) -> web.Response:
        asked = await _body(request, _Title)
        if asked.phone_num not in self._threads.people:
            return _json({"detail": "WhatsApp user not found"}, status=404)
        return _json({"thread_id": self._threads.begin(asked.phone_num, asked.title).id})

    async def last(self, request: web.Request) -> web.Response:
        person = request.query["phone_num"]
        if person not in self._threads.people:
            return _json({"detail": "WhatsApp user not found"}, status=404)
        thread = self._threads.last(person)
        found = (thread.id, "2026-05-01T10:00:00+00:00") if thread else (None, None)
        return _json(dict(zip(("thread_id", "last_message_time"), found, strict=True)))

    async def history(self, request: web.Request) -> web.Response:
        thread = self._threads.get(request.match_info["thread_id"], request.query["phone_num"])
        if thread is None:
            return _json({"detail": "Thread not found or access denied"}, status=404)
        return _json({"thread_name": thread.title, "messages": thread.rows})

    def _faulty(
        self, path: str, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """A handler behind its key, its query and its faults."""

        async def answered(request: web.Request) -> web.StreamResponse:
            refused = self._unauthorized(request)
            if refused is not None:
                return refused
            if request.method == "GET" and "phone_num" not in request.query:
                return _missing("query", "phone_num")
            person = request.query.get("phone_num", "")
            body = (await request.read()).decode(errors="replace")
            occurrence = self._sandbox.occurrences.add(("threads", path, person or body))
            fault = self._sandbox.faults.draw(
                "threads", lambda only: only in (path, person) or only in body, path, person, str(occurrence)
            )
            match fault.kind:
                case "rst":
                    return sockets.reset(request)
                case "no_answer":
                    return await sockets.hold(request, fault.wait(60.0))
                case "html":
                    return _page()
                case "garbage":
                    return _json({"detail": ["no", "such", "shape"]})
                case "slow":
                    await asyncio.sleep(fault.wait(4.0))
                case "ok":
                    pass
                case _:
                    return _refused(fault)
            try:
                return await handler(request)
            except msgspec.ValidationError:
                return _missing("body", "phone_num")

        return answered

    def _unauthorized(self, request: web.Request) -> web.Response | None:
        key = request.headers.get("x-whatsapp-api-key")
        if key is None:
            return _missing("header", "x-whatsapp-api-key")
        if self._threads.key is not None and key != self._threads.key:
            return _json({"detail": _DETAILS[401]}, status=401)
        return None

    # --- process ---

    async def process(self, request: web.Request) -> web.StreamResponse:
        """One answer, as raw text without an end mark."""
        if (refused := self._unauthorized(request)) is not None:
            return refused
        try:
            asked = await _body(request, _Message)
        except msgspec.ValidationError:
            return _missing("body", "message")
        assistant = self._sandbox.assistant
        occurrence = assistant.occurrence((asked.message,))
        fault = self._sandbox.faults.draw(
            "ansari", lambda only: only in asked.message or only == asked.phone_num, asked.message, str(occurrence)
        )
        assistant.record(
            Call(
                t=now(),
                user=(asked.message,),
                stream=True,
                outcome=fault.kind,
                input_tokens=0,
                output_tokens=0,
                body=msgspec.Raw(await request.read()),
            )
        )
        thread = self._threads.get(asked.thread_id, asked.phone_num)
        if thread is None:
            return _json({"detail": "Thread not found"}, status=404)
        said = _said(answer((asked.message,)))
        match fault.kind:
            case "rst":
                return sockets.reset(request)
            case "html":
                return _page()
            case "queued":
                self._threads.later(fault.wait(_LATE), lambda: self._both(thread, asked.message, said))
                return sockets.reset(request)
            case "killed" | "late" | "no_answer" | "http_502":
                self._threads.add(thread, "user", asked.message)
                if fault.kind in ("late", "http_502"):
                    self._threads.later(fault.wait(_LATE), lambda: self._answer(thread, said))
                if fault.kind == "http_502":
                    return _refused(fault)
                return await sockets.hold(request, fault.wait(60.0) if fault.kind == "no_answer" else 0.0)
            case kind if kind.startswith("http_"):
                return _refused(fault)
        try:
            return await self._streamed(request, fault, thread, asked.message, said)
        except ConnectionResetError:  # who asked was killed: that is what the tests are for, and no error of ours
            return web.Response()

    async def _streamed(
        self, request: web.Request, fault: Fault, thread: Thread, message: str, said: _Said
    ) -> web.StreamResponse:
        pace, kind = self._sandbox.assistant.pace, fault.kind
        response = web.StreamResponse()
        await response.prepare(request)
        self._threads.add(thread, "user", message)
        await asyncio.sleep(pace.first_token + (fault.wait(4.0) if kind == "slow" else 0.0))
        broken = kind in {"cut", "truncated", "cut_late", "truncated_late", "apology", "stall"}
        text = said.text[: len(said.text) // 2] if broken else said.text
        if kind not in {"empty", "apology_only"}:
            step = pace.characters if pace.between else max(1, len(text))
            for at in range(0, len(text), step):
                await response.write(text[at : at + step].encode())
                await asyncio.sleep(pace.between)
        if kind == "stall":
            await sockets.hold(request, fault.wait(60.0))
            return response
        if kind in {"cut_late", "truncated_late"}:
            self._threads.later(fault.wait(_LATE), lambda: self._answer(thread, said))
        elif kind in {"apology", "apology_only"}:
            self._threads.add(thread, "assistant", APOLOGY)
        elif not broken:
            if kind == "silence":
                await asyncio.sleep(fault.wait(4.0))
            self._answer(thread, said)
            if said.citations and kind != "empty":
                await response.write(said.citations.encode())
        if kind in {"cut", "cut_late", "cut_after"}:
            await asyncio.sleep(0.01)  # so that what was said is on its way before the reset
            sockets.reset(request)
            return response
        await response.write_eof()
        return response

    def _both(self, thread: Thread, message: str, said: _Said) -> None:
        self._threads.add(thread, "user", message)
        self._answer(thread, said)

    def _answer(self, thread: Thread, said: _Said) -> None:
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


def _said(blocks: tuple[Block, ...]) -> _Said:
    """Citations as the backend writes them: ` [n] ` in the text, and a list of them behind it."""
    parts: list[str] = []
    listed, sources = "", list[dict[str, object]]()
    for block in blocks:
        parts.append(block.text)
        for citation in block.citations:
            sources.append({"type": "document", "title": citation.document_title})
            parts.append(f" [{len(sources)}] ")
            english = f"[translated] {citation.cited_text}"
            listed += f"[{len(sources)}] {citation.document_title}:\n Arabic: {citation.cited_text}\n\n English: {english}\n\n"
    return _Said(text="".join(parts), citations=f"\n\n**Citations**:\n{listed}" if listed else "", sources=sources)


async def _body(request: web.Request, shape: type[Shape]) -> Shape:
    """Raises msgspec.ValidationError, which is FastAPI's 422, for JSON of another shape and for what is none."""
    try:
        return msgspec.json.decode(await request.read(), type=shape)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise msgspec.ValidationError(str(error)) from None


def _refused(fault: Fault) -> web.Response:
    status = int(fault.kind.removeprefix("http_"))
    refused = _json({"detail": _DETAILS[status]}, status=status)
    if status == 429:
        refused.headers["retry-after"] = str(math.ceil(fault.wait(1.0)))
    return refused


def _missing(where: str, name: str) -> web.Response:
    detail = [{"type": "missing", "loc": [where, name], "msg": "Field required", "input": None}]
    return _json({"detail": detail}, status=422)


def _page() -> web.Response:
    return web.Response(text="<html>We will be back soon.</html>", content_type="text/html")


def _json(body: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
