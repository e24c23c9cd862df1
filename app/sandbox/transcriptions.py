"""The transcription face: `POST /openai/v1/audio/transcriptions`, as OpenAI answers it. It hears what a sound says it says."""

import asyncio
import math

import msgspec
from aiohttp import web

from app.sandbox import sockets
from app.sandbox.faults import Faults
from app.sandbox.files import SAID
from app.sandbox.ledger import Tally
from app.sandbox.numbers import now


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """One call: the model, the file's name and type, how many bytes, and what became of it."""

    t: float
    model: str
    filename: str
    media_type: str
    size: int
    outcome: str


class TranscriptionFace:
    """The handler, and who called. One instance per sandbox."""

    def __init__(self, faults: Faults, tally: Tally) -> None:
        self._faults = faults
        self._tally = tally
        self.calls: list[Heard] = []

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/openai/v1/audio/transcriptions", self.transcriptions)]

    async def wait(self, count: int, timeout: float = 10.0) -> bool:
        """Return once so many calls have come, or after `timeout` seconds; whether they have."""
        await self._tally.reach("transcriptions", count, timeout)
        return len(self.calls) >= count

    async def transcriptions(self, request: web.Request) -> web.StreamResponse:
        """Words for a sound."""
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            return _error(401, "You didn't provide an API key.")
        form = await request.post()
        file, model = form.get("file"), form.get("model")
        if not isinstance(file, web.FileField) or not isinstance(model, str) or not model:
            return _error(400, "you must provide a model and a file")
        with file.file as sound:
            data = sound.read()
        fault = self._faults.draw("transcription", model.__eq__, model, str(len(self.calls)))
        self.calls.append(
            Heard(
                t=now(),
                model=model,
                filename=file.filename,
                media_type=file.content_type,
                size=len(data),
                outcome=fault.kind,
            )
        )
        self._tally.add("transcriptions")
        match fault.kind:
            case "no_answer":
                return await sockets.hold(request, fault.wait(60.0))
            case "rst":
                return sockets.reset(request)
            case "http_429":
                refused = _error(429, "Rate limit reached")
                refused.headers["retry-after"] = str(math.ceil(fault.wait(1.0)))
                return refused
            case "http_500" | "http_401":
                return _error(int(fault.kind.removeprefix("http_")), "no")
            case "nonsense":
                return web.Response(body=b'{"txet": 7', content_type="application/json")
            case "slow":
                await asyncio.sleep(fault.wait(2.0))
        words = "" if fault.kind == "empty" else data.partition(SAID)[2].decode("utf-8", "replace")
        return web.Response(body=msgspec.json.encode({"text": words}), content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    body = msgspec.json.encode({"error": {"message": message, "type": "invalid_request_error"}})
    return web.Response(status=status, body=body, content_type="application/json")
