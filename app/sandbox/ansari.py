"""The Ansari face: `/ansari/whatsapp/v2/…`, ansari-backend as a WhatsApp service sees it: its people and their threads.

`messages/process` is ansari_process.py's; the shapes of answers are ansari_wire.py's.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from app.sandbox import ansari_wire as wire
from app.sandbox import sockets
from app.sandbox.ansari_process import ProcessFace, unauthorized
from app.sandbox.ansari_threads import Threads
from app.sandbox.simulation import Sandbox


class _Registration(msgspec.Struct, frozen=True, kw_only=True):
    phone_num: str
    preferred_language: str


class _Title(msgspec.Struct, frozen=True, kw_only=True):
    phone_num: str
    title: str


class AnsariFace:
    """The handlers. One instance per sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(f"{wire.PREFIX}/users/exists", self._faulty("users/exists", self.exists)),
            web.post(f"{wire.PREFIX}/users/register", self._faulty("users/register", self.register)),
            web.post(f"{wire.PREFIX}/threads", self._faulty("threads", self.begin)),
            web.get(f"{wire.PREFIX}/threads/last", self._faulty("threads/last", self.last)),
            web.get(wire.PREFIX + "/threads/{thread_id}/history", self._faulty("threads/history", self.history)),
            *ProcessFace(self._sandbox).routes(),
        ]

    @property
    def _threads(self) -> Threads:
        return self._sandbox.threads

    async def exists(self, request: web.Request) -> web.Response:
        return wire.json({"exists": request.query["phone_num"] in self._threads.people})

    async def register(self, request: web.Request) -> web.Response:
        asked = await wire.body(request, _Registration)
        user_id = self._threads.register(asked.phone_num, asked.preferred_language)
        return wire.json({"status": "success", "user_id": {"status": "success", "user_id": user_id}})

    async def begin(self, request: web.Request) -> web.Response:
        asked = await wire.body(request, _Title)
        if asked.phone_num not in self._threads.people:
            return wire.json({"detail": "WhatsApp user not found"}, status=404)
        return wire.json({"thread_id": self._threads.begin(asked.phone_num, asked.title).id})

    async def last(self, request: web.Request) -> web.Response:
        person = request.query["phone_num"]
        if person not in self._threads.people:
            return wire.json({"detail": "WhatsApp user not found"}, status=404)
        thread = self._threads.last(person)
        found = (thread.id, "2026-05-01T10:00:00+00:00") if thread else (None, None)
        return wire.json(dict(zip(("thread_id", "last_message_time"), found, strict=True)))

    async def history(self, request: web.Request) -> web.Response:
        thread = self._threads.get(request.match_info["thread_id"], request.query["phone_num"])
        if thread is None:
            return wire.json({"detail": "Thread not found or access denied"}, status=404)
        return wire.json({"thread_name": thread.title, "messages": thread.rows})

    def _faulty(
        self, path: str, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """A handler behind its key, its query and its faults."""

        async def answered(request: web.Request) -> web.StreamResponse:
            refused = unauthorized(self._threads, request)
            if refused is not None:
                return refused
            if request.method == "GET" and "phone_num" not in request.query:
                return wire.missing("query", "phone_num")
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
                    return wire.page()
                case "garbage":
                    return wire.json({"detail": ["no", "such", "shape"]})
                case "slow":
                    await asyncio.sleep(fault.wait(4.0))
                case "ok":
                    pass
                case _:
                    return wire.refused(fault)
            try:
                return await handler(request)
            except msgspec.ValidationError:
                return wire.missing("body", "phone_num")

        return answered
