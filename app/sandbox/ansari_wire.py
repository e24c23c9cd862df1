"""ansari-backend's answers as they stand on the wire (WIRE.md 1.4): `detail`, citations. No decisions."""

import math
from typing import TypeVar

import msgspec
from aiohttp import web

from app.sandbox.faults import Fault
from app.sandbox.scripts import Block

PREFIX = "/ansari/whatsapp/v2"
APOLOGY = "I encountered a problem processing your request. Please try again or rephrase your question."
DETAILS = {
    400: "Failed to get last thread info: the database is away",
    401: "Unauthorized: Invalid or missing API key",
    404: "Thread not found",
    422: "Unprocessable",
    429: "Too many requests",
    500: "Message processing failed: the model is away",
    502: "Bad gateway",
    524: "A timeout occurred",
    529: "Overloaded",
}

Shape = TypeVar("Shape")


class Saying(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as it is streamed: text, then the list of its citations in one piece."""

    text: str
    citations: str
    sources: list[dict[str, object]]


def saying(blocks: tuple[Block, ...]) -> Saying:
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
    return Saying(text="".join(parts), citations=f"\n\n**Citations**:\n{listed}" if listed else "", sources=sources)


async def body(request: web.Request, shape: type[Shape]) -> Shape:
    """Raises msgspec.ValidationError, which is FastAPI's 422, for JSON of another shape and for what is none."""
    try:
        return msgspec.json.decode(await request.read(), type=shape)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise msgspec.ValidationError(str(error)) from None


def refused(fault: Fault) -> web.Response:
    status = int(fault.kind.removeprefix("http_"))
    answer = json({"detail": DETAILS[status]}, status=status)
    if status in (429, 529):
        answer.headers["retry-after"] = str(math.ceil(fault.wait(1.0)))
    return answer


def missing(where: str, name: str) -> web.Response:
    detail = [{"type": "missing", "loc": [where, name], "msg": "Field required", "input": None}]
    return json({"detail": detail}, status=422)


def page() -> web.Response:
    return web.Response(text="<html>We will be back soon.</html>", content_type="text/html")


def json(content: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(content), content_type="application/json")
