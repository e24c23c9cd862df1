"""The LibreTranslate face: `POST /libretranslate/translate` and `/detect`, with its errors (docs/translation.md).

What a translation says, scripts.py knows. Languages: ar, en, ur.
"""

import asyncio
import math

import msgspec
from aiohttp import web

from app.sandbox import sockets
from app.sandbox.faults import Fault
from app.sandbox.numbers import now
from app.sandbox.scripts import language, translation
from app.sandbox.simulation import Sandbox
from app.sandbox.translator_calls import TranslatorCall

LANGUAGES = frozenset({"ar", "en", "ur"})
_ERRORS = {
    400: "Invalid request",
    403: "Invalid API key",
    429: "Slowdown: 10 per 1 minute",
    500: "Cannot translate text",
}


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    q: str = ""
    source: str = ""
    target: str = ""
    format: str = "text"
    api_key: str | None = None


_decoder = msgspec.json.Decoder(_Request)


class TranslatorFace:
    """The handlers. One instance per sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/libretranslate/translate", self.translate),
            web.post("/libretranslate/detect", self.detect),
        ]

    async def translate(self, request: web.Request) -> web.StreamResponse:
        """A text in another language."""
        asked = await _read(request)
        if isinstance(asked, web.Response):
            return asked
        wrong = _wrong(asked)
        if wrong is not None:
            return _error(400, wrong)
        said: dict[str, object] = {"translatedText": translation(asked.q, asked.target)}
        if asked.source == "auto":
            said["detectedLanguage"] = {"confidence": 90.0, "language": language(asked.q) or "en"}
        return await self._answer(request, "translate", asked, said)

    async def detect(self, request: web.Request) -> web.StreamResponse:
        """The language of a text."""
        asked = await _read(request)
        if isinstance(asked, web.Response):
            return asked
        known = language(asked.q)
        found = {"confidence": 90.0 if known else 0.0, "language": known or "en"}
        return await self._answer(request, "detect", asked, [found])

    async def _answer(self, request: web.Request, kind: str, asked: _Request, said: object) -> web.StreamResponse:
        translator = self._sandbox.translator
        fault = self._sandbox.faults.draw(
            "translator",
            lambda only: only in asked.q,
            *(kind, asked.q, str(self._sandbox.occurrences.add(("translator", kind, asked.q)))),
        )
        translator.under_way += 1
        translator.record(
            TranslatorCall(
                t=now(),
                kind=kind,
                text=asked.q,
                source=asked.source,
                target=asked.target,
                api_key=asked.api_key,
                outcome=fault.kind,
            )
        )
        try:
            await asyncio.sleep(translator.speed.seconds + (fault.wait(4.0) if fault.kind == "slow" else 0.0))
            return await _broken(request, fault, asked, said)
        finally:
            translator.under_way -= 1


async def _broken(request: web.Request, fault: Fault, asked: _Request, said: object) -> web.StreamResponse:
    match fault.kind:
        case "http_400" | "http_403" | "http_429" | "http_500":
            refused = _error(int(fault.kind.removeprefix("http_")))
            if fault.kind == "http_429":
                refused.headers["retry-after"] = str(math.ceil(fault.wait(1.0)))
            return refused
        case "rst":
            return sockets.reset(request)
        case "no_answer":
            return await sockets.hold(request, fault.wait(60.0))
        case "empty":
            return _json({"translatedText": " \n"})
        case "garbage":
            return web.Response(text="<html>Just a moment…</html>", content_type="text/html")
        case "half":
            body = msgspec.json.encode(said)
            return sockets.finish(request, after=sockets.raw("200 OK", body)[: -len(body) // 2])
        case "essay":
            return _json({"translatedText": f"{asked.q} " * 1000})
    return _json(said)


async def _read(request: web.Request) -> _Request | web.Response:
    try:
        asked = _decoder.decode(await request.read())
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _error(400, "Invalid JSON format")
    return asked if asked.q else _error(400, "Invalid request: missing q parameter")


def _wrong(asked: _Request) -> str | None:
    for name in ("source", "target"):
        if not getattr(asked, name):
            return f"Invalid request: missing {name} parameter"
    if asked.source not in LANGUAGES | {"auto"}:
        return f"{asked.source} is not supported"
    if asked.target not in LANGUAGES:
        return f"{asked.target} is not supported"
    return None if asked.format in ("text", "html") else f"{asked.format} format is not supported"


def _error(status: int, message: str | None = None) -> web.Response:
    return _json({"error": message or _ERRORS[status]}, status=status)


def _json(answer: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(answer), content_type="application/json")
