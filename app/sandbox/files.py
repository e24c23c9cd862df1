"""The files of the Graph face: `GET /graph/{version}/{id}` says where one lies for five minutes, `GET /files/…` has it.

Both want the bearer token, as Meta does (WIRE.md 1.2). What goes wrong is drawn once for each answer to where it lies.
"""

import asyncio
import base64
import hashlib
import secrets
from collections.abc import Callable, Mapping

import msgspec
from aiohttp import web

from app.sandbox import sockets
from app.sandbox.faults import OK, Fault, Faults
from app.sandbox.graph_errors import error_body, usual_status
from app.sandbox.numbers import now
from app.sandbox.people import FILES

LIFE = 300.0
METADATA = "https://169.254.169.254/latest/meta-data/"
ELSEWHERE = "https://files.example.invalid/77"
_HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"
# The smallest that are what they are said to be: a pixel, a page of Ogg, a box of MP4, a PDF without pages.
_PIXEL = base64.b64decode(
    "/9j/4AAQSkZJRgABAQEASABIAAD/2wBDAP//////////////////////////////////////////////////////////////////////////////"
    "////////wgALCAABAAEBAREA/8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQABPxA="
)
SAID = b"SAID:"  # what follows it in a sound is what the transcription face hears


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file; `data` is base64 in JSON."""

    media_type: str
    data: bytes


class _Place(msgspec.Struct, frozen=True):
    file: File
    until: float
    fault: Fault
    token: str


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """One request: `what` is `where` or `download`; `outcome` is the fault's name."""

    t: float
    what: str
    id: str
    outcome: str


class Files:
    """The files, where they lie, and who asked for them."""

    def __init__(self) -> None:
        self.by_id: dict[str, File] = dict(_made())
        self.fetched: list[Fetched] = []
        self.places: dict[str, _Place] = {}

    def clear(self) -> None:
        self.fetched.clear()
        self.places.clear()

    def digest(self, id: str) -> str | None:
        """A file's SHA-256 in base64, as webhooks have it: Graph has it in hex (WIRE.md 1.2). None: there is no such file."""
        file = self.by_id.get(id)
        return None if file is None else base64.b64encode(hashlib.sha256(file.data).digest()).decode()

    def count(self, what: str) -> int:
        """Requests of one sort, so far."""
        return sum(each.what == what for each in self.fetched)


class FilesFace:
    """The handlers. One instance per sandbox."""

    def __init__(self, files: Files, faults: Faults, url: Callable[[], str]) -> None:
        self._files = files
        self._faults = faults
        self._url = url

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/graph/{version}/{id}", self.where), web.get("/files/{place}", self.download)]

    async def where(self, request: web.Request) -> web.StreamResponse:
        """Where a file lies."""
        id, token = request.match_info["id"], _bearer(request)
        if token is None:
            return _refusal(190)
        asked = sum(each.what == "where" and each.id == id for each in self._files.fetched)
        fault = self._faults.draw("media", id.__eq__, id, str(asked))
        file = self._files.by_id.get(id)
        self._files.fetched.append(Fetched(t=now(), what="where", id=id, outcome=fault.kind if file else "gone"))
        if file is None or fault.kind == "gone":
            return _refusal(100, "Unsupported get request. Object with this ID does not exist", status=400)
        match fault.kind:
            case "no_answer":
                return await sockets.hold(request, fault.wait(60.0))
            case "http_500":
                return _refusal(131000, status=500)
            case "slow":
                await asyncio.sleep(fault.wait(2.0))
        place = secrets.token_urlsafe(12)
        life = 0.0 if fault.kind == "expired" else LIFE
        self._files.places[place] = _Place(file, now() + life, fault, token)
        url = {"inside": METADATA, "elsewhere": ELSEWHERE}.get(fault.kind, f"{self._url()}/files/{place}?mid={id}")
        answer = {
            "url": url,
            "mime_type": file.media_type,
            "sha256": hashlib.sha256(file.data).hexdigest(),
            "file_size": len(file.data),
            "id": id,
            "messaging_product": "whatsapp",
        }
        if fault.kind in ("too_big", "wrong_type"):  # else what is said here would already tell
            del answer["file_size"], answer["sha256"]
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def download(self, request: web.Request) -> web.StreamResponse:
        """The file itself."""
        place = self._files.places.get(request.match_info["place"])
        fault = place.fault if place else OK
        self._files.fetched.append(
            Fetched(t=now(), what="download", id=request.query.get("mid", ""), outcome=fault.kind)
        )
        if place is None or place.until <= now() or _bearer(request) != place.token:
            return web.Response(status=404, body=_HTML, content_type="text/html")
        data = place.file.data
        whole = sockets.raw("200 OK", data, place.file.media_type)
        match fault.kind:
            case "redirect":
                return web.Response(status=302, headers={"Location": METADATA})
            case "wrong_type":
                data = _HTML
            case "wrong_bytes":
                data = data[:-1] + bytes([data[-1] ^ 1])
            case "stalled":
                return await sockets.hold(request, fault.wait(60.0), after=whole[: -len(data) // 2])
            case "cut":
                return sockets.finish(request, after=whole[: -len(data) // 2])
            case "too_big":
                return await _endless(request, data)
            case "slow":
                await asyncio.sleep(fault.wait(2.0))
        return web.Response(body=data, headers={"Content-Type": place.file.media_type})


async def _endless(request: web.Request, data: bytes) -> web.StreamResponse:
    """Megabyte after megabyte, until the client has had enough."""
    response = web.StreamResponse()
    await response.prepare(request)
    piece = data + bytes(1024 * 1024)
    try:
        for _ in range(256):
            await response.write(piece)
    except ConnectionResetError:
        pass
    return response


def _bearer(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme.casefold() == "bearer" and token else None


def _refusal(code: int, details: str = "", *, status: int | None = None) -> web.Response:
    body = error_body(code, details)
    return web.Response(status=status or usual_status(code), body=body, content_type="application/json")


def _made() -> Mapping[str, File]:
    return {
        FILES["image"]: File(media_type="image/jpeg", data=_PIXEL),
        FILES["audio"]: File(media_type="audio/ogg", data=b"OggS\0\2" + bytes(22) + SAID + b"Where is the clinic?"),
        FILES["video"]: File(media_type="video/mp4", data=b"\0\0\0\x18ftypmp42" + bytes(16)),
        FILES["document"]: File(media_type="application/pdf", data=b"%PDF-1.4\n%%EOF\n"),
        FILES["sticker"]: File(media_type="image/webp", data=b"RIFF\x1a\0\0\0WEBPVP8L" + bytes(14)),
    }
