"""The control API under `/control`: numbers, people, faults, the ledger. For tests and the demo, in JSON.

It steers; nothing here is part of WhatsApp, Anthropic or Ansari. A request that makes no sense is 400 with `error`.
"""

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from app.sandbox.assistant_calls import Pace
from app.sandbox.faults import Chance, Face, Fault, StatusFaults
from app.sandbox.files import File
from app.sandbox.ledger import Delivery
from app.sandbox.limits import Limits
from app.sandbox.numbers import Ladder, Number
from app.sandbox.people import Spoken
from app.sandbox.simulation import Sandbox
from app.sandbox.translator_calls import Speed
from app.sandbox.webhooks import Shipment

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Registration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    webhook_url: str
    app_secret: str
    token: str | None = None
    ladder: Ladder = Ladder()
    display_phone_number: str = "15550001111"
    waba_id: str = "900000000000001"
    any_message_id: bool = False
    redelivery: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    tries: int = 60
    status_urls: tuple[str, ...] = ()


class _Say(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: list[Spoken]
    copies: int = 1
    webhook_url: str | None = None


class _Webhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`body`: JSON, sent as the bytes given here, or a string, sent as its UTF-8."""

    webhook_url: str
    app_secret: str
    body: msgspec.Raw
    redelivery: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    tries: int = 60


class _Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`next` and `chances` are for `face`; `only` narrows them. `stop_statuses` is seconds. All optional."""

    face: Face = "send"
    only: str | None = None
    next: list[Fault | str] = []
    chances: list[Chance] | None = None
    seed: int | None = None
    statuses: StatusFaults | None = None
    stop_statuses: float | None = None
    limits: Limits | None = None


class Control:
    """The handlers. One instance per sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self.healthz),
            web.put("/control/numbers/{phone_number_id}", _checked(self.put_number)),
            web.post("/control/say", _checked(self.say)),
            web.post("/control/webhook", _checked(self.webhook)),
            web.get("/control/ledger", self.ledger),
            web.get("/control/reads", self.reads),
            web.get("/control/deliveries", self.deliveries),
            web.put("/control/files/{id}", _checked(self.put_file)),
            web.get("/control/files", self.files),
            web.get("/control/transcriptions", self.transcriptions),
            web.get("/control/wait", _checked(self.wait)),
            web.get("/control/assistant", self.assistant),
            web.put("/control/assistant", _checked(self.put_assistant)),
            web.get("/control/threads", self.threads),
            web.get("/control/translator", self.translator),
            web.put("/control/translator", _checked(self.put_translator)),
            web.put("/control/faults", _checked(self.put_faults)),
            web.post("/control/reset", self.reset),
        ]

    async def healthz(self, request: web.Request) -> web.StreamResponse:
        return _json({"status": "ok"})

    async def put_number(self, request: web.Request) -> web.StreamResponse:
        asked = msgspec.json.decode(await request.read(), type=_Registration)
        known = {name: getattr(asked, name) for name in asked.__struct_fields__}
        self._sandbox.register(Number(phone_number_id=request.match_info["phone_number_id"], **known))
        sandbox = self._sandbox
        urls = {
            "graph_url": sandbox.graph_url,
            "assistant_url": sandbox.assistant_url,
            "chat_url": sandbox.chat_url,
            "ansari_url": sandbox.ansari_url,
        }
        return _json(urls)

    async def say(self, request: web.Request) -> web.StreamResponse:
        """One message as it is, or `{"messages": [...], "copies": n, "webhook_url": …}`."""
        body = await request.read()
        asked: _Say | Spoken = (
            msgspec.json.decode(body, type=_Say)
            if "messages" in msgspec.json.decode(body, type=dict)
            else msgspec.json.decode(body, type=Spoken)
        )
        say = asked if isinstance(asked, _Say) else _Say(messages=[asked])
        said = await self._sandbox.say(*say.messages, copies=say.copies, url=say.webhook_url)
        return _json({"ids": said.ids, "status": said.status, "ack_ms": said.ack_ms, "deliveries": said.deliveries})

    async def webhook(self, request: web.Request) -> web.StreamResponse:
        asked = msgspec.json.decode(await request.read(), type=_Webhook)
        body = bytes(asked.body)
        parcel = Shipment(
            url=asked.webhook_url,
            app_secret=asked.app_secret,
            body=msgspec.json.decode(body, type=str).encode() if body.startswith(b'"') else body,
            kind="raw",
            redelivery=asked.redelivery,
            tries=asked.tries,
        )
        return _json(await self._sandbox.post(parcel))

    async def ledger(self, request: web.Request) -> web.StreamResponse:
        """Query: recipient, phone_number_id, accepted (true or false)."""
        accepted = request.query.get("accepted")
        lines = self._sandbox.ledger.lines(
            recipient=request.query.get("recipient"),
            phone_number_id=request.query.get("phone_number_id"),
            accepted=None if accepted is None else accepted == "true",
        )
        return _json({"entries": lines, "waiting": self._waiting()})

    async def reads(self, request: web.Request) -> web.StreamResponse:
        return _json({"reads": self._sandbox.ledger.reads})

    async def deliveries(self, request: web.Request) -> web.StreamResponse:
        """Each POST of each webhook. Query: kind (inbound, statuses, raw)."""
        kind = request.query.get("kind")
        found: list[Delivery] = [each for each in self._sandbox.ledger.deliveries if kind in (None, each.kind)]
        return _json({"deliveries": found, "waiting": self._waiting()})

    async def put_file(self, request: web.Request) -> web.StreamResponse:
        """What lies under an id from now on: `media_type`, `data` in base64."""
        self._sandbox.files.by_id[request.match_info["id"]] = msgspec.json.decode(await request.read(), type=File)
        return _json({})

    async def files(self, request: web.Request) -> web.StreamResponse:
        """Who asked for files, and what they got."""
        return _json({"fetched": self._sandbox.files.fetched})

    async def transcriptions(self, request: web.Request) -> web.StreamResponse:
        """What was to be written down."""
        return _json({"calls": self._sandbox.transcriptions.calls})

    async def wait(self, request: web.Request) -> web.StreamResponse:
        """Query: recipient (and phone_number_id), count (1), timeout seconds (10); or calls=n for the assistant."""
        timeout, query = float(request.query.get("timeout", 10)), request.query
        if "calls" in query:
            return _json({"reached": await self._sandbox.assistant.wait(int(query["calls"]), timeout)})
        count = int(query.get("count", 1))
        if not query.get("recipient"):
            raise ValueError("wait for what? recipient=… or calls=…")
        lines = await self._sandbox.ledger.wait(
            query["recipient"], count, timeout, phone_number_id=query.get("phone_number_id")
        )
        return _json({"reached": len(lines) >= count, "entries": lines})

    async def assistant(self, request: web.Request) -> web.StreamResponse:
        """Calls and their count. Query: containing (a string in the last user turn)."""
        wanted = request.query.get("containing", "")
        assistant = self._sandbox.assistant
        calls = [call for call in assistant.calls if any(wanted in text for text in call.user)]
        return _json({"count": assistant.count, "calls": calls})

    async def put_assistant(self, request: web.Request) -> web.StreamResponse:
        self._sandbox.assistant.pace = msgspec.json.decode(await request.read(), type=Pace)
        return _json({})

    async def threads(self, request: web.Request) -> web.StreamResponse:
        """The Ansari backend's threads, with all their rows. Query: person (a phone number)."""
        person, threads = request.query.get("person"), self._sandbox.threads
        return _json({"threads": [each for each in threads.threads.values() if person in (None, each.person)]})

    async def translator(self, request: web.Request) -> web.StreamResponse:
        """Calls and their count."""
        return _json({"count": self._sandbox.translator.count, "calls": list(self._sandbox.translator.calls)})

    async def put_translator(self, request: web.Request) -> web.StreamResponse:
        self._sandbox.translator.speed = msgspec.json.decode(await request.read(), type=Speed)
        return _json({})

    async def put_faults(self, request: web.Request) -> web.StreamResponse:
        asked, faults = msgspec.json.decode(await request.read(), type=_Faults), self._sandbox.faults
        if asked.seed is not None:
            faults.seed = asked.seed
        if asked.next:
            faults.queue(asked.face, asked.next, only=asked.only)
        if asked.chances is not None:
            faults.chances(asked.face, asked.chances, only=asked.only)
        if asked.statuses is not None:
            faults.statuses = asked.statuses
        if asked.stop_statuses is not None:
            self._sandbox.statuses.stop(asked.stop_statuses)
        if asked.limits is not None:
            self._sandbox.meter.limits = asked.limits
        return _json({"seed": faults.seed})

    async def reset(self, request: web.Request) -> web.StreamResponse:
        await self._sandbox.reset()
        return _json({})

    def _waiting(self) -> dict[str, int]:
        return {"statuses": self._sandbox.statuses.waiting, "redeliveries": self._sandbox.courier.waiting}


def _checked(handler: Handler) -> Handler:
    """A person's mistake is a 400 that says what it was."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except KeyError as unknown:
            return _json({"error": f"not registered: {unknown.args[0]}"}, status=404)
        except (ValueError, UnicodeDecodeError) as wrong:  # msgspec's DecodeError and NotLoopback are ValueErrors
            return _json({"error": str(wrong)}, status=400)

    return answer


def _json(answer: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(answer), content_type="application/json")
