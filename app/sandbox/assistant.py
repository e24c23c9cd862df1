"""What the simulated assistant does with a question, whichever face it came through: what it says, costs, and what fails.

How it is asked and answered on the wire is anthropic.py's and chat.py's; what it says, scripts.py's.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Literal

import msgspec
from aiohttp import web

from app.sandbox import sockets
from app.sandbox.assistant_calls import Call, Pace
from app.sandbox.faults import Fault
from app.sandbox.numbers import now
from app.sandbox.scripts import Block, Document, answer
from app.sandbox.simulation import Sandbox

# Half the text is said, whatever comes then.
HALVED = frozenset({"error_event", "cut", "truncated", "stall", "max_tokens", "pause_turn"})
# Of these, the stream does not come to its end.
UNENDED = frozenset({"error_event", "cut", "truncated", "stall"})
# Nothing is said at all.
UNSAID = frozenset({"no_answer", "rst", "http_429", "http_529", "http_500", "http_401", "redirect", "html"})
# A last message that begins so asks for what is left of the answer before.
GO_ON = "Continue"
_HTML = b"<html><body>We are down for maintenance.</body></html>"


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One message: its texts; a picture counts as one that tells its type and bytes."""

    role: str
    texts: tuple[str, ...]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A question, as both faces read it. `prefix`: what is marked to be cached, "" for nothing."""

    model: str
    turns: Sequence[Turn]
    system: str
    documents: tuple[Document, ...] = ()
    prefix: str = ""
    stream: bool
    body: bytes


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a call is about: `user`, its last user turn; the `question`, and the `blocks` that answer it, behind what was
    said `before` (characters).
    """

    user: tuple[str, ...]
    question: tuple[str, ...]
    before: int = 0
    blocks: tuple[Block, ...]


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What is said and what it costs: `fresh` tokens read, `created` in the cache, `cached` read from it, `written`."""

    model: str
    blocks: tuple[Block, ...]
    ending: Literal["whole", "max_tokens", "pause_turn", "refusal"]
    fresh: int
    created: int
    cached: int
    written: int


def answered(sandbox: Sandbox, asked: Asked, *, pauses: bool) -> tuple[Fault, Reply]:
    """The next outcome and what is said in it; it is noted. `pauses`: the face knows how a turn is paused."""
    wanted = _wanted(asked)
    user, assistant = wanted.user, sandbox.assistant
    # Not by the words that ask to go on: they are everybody's.
    drawn = (*wanted.question, f"behind {wanted.before}") if wanted.before else wanted.question
    fault = sandbox.faults.draw(
        "assistant", lambda only: any(only in text for text in user), *drawn, str(assistant.occurrence(drawn))
    )
    if fault.kind == "pause_turn" and not pauses:
        fault = msgspec.structs.replace(fault, kind="ok")
    wordless: dict[str, tuple[Block, ...]] = {"empty": (), "blank": (Block(text=" \n \t"),)}
    whole = wordless.get(fault.kind, wanted.blocks)
    blocks = _half(whole) if fault.kind in HALVED else whole
    read = sum(len(text) for turn in asked.turns for text in turn.texts) + len(asked.system)
    marked = len(asked.prefix) // 4
    known = bool(marked) and assistant.knows(asked.prefix)
    reply = Reply(
        model=asked.model,
        blocks=blocks,
        ending=fault.kind if fault.kind in ("max_tokens", "pause_turn", "refusal") else "whole",
        fresh=max(1, (read + sum(len(each.text) for each in asked.documents)) // 4 - marked),
        created=0 if known else marked,
        cached=marked if known else 0,
        written=sum(len(block.text) for block in whole) // 4,
    )
    assistant.record(
        Call(
            t=now(),
            user=user,
            question=wanted.question,
            before=wanted.before,
            said=0 if fault.kind in UNSAID else sum(len(block.text) for block in blocks),
            stream=asked.stream,
            outcome=fault.kind,
            input_tokens=reply.fresh + reply.created + reply.cached,
            output_tokens=reply.written,
            cached_tokens=reply.cached,
            body=msgspec.Raw(asked.body),
        )
    )
    return fault, reply


async def refused(
    request: web.Request, fault: Fault, error: Callable[[int], web.Response]
) -> web.StreamResponse | None:
    """The answer where no words come at all, in the face's own form of an `error`; None: words may come now."""
    match fault.kind:
        case "http_429" | "http_529" | "http_500" | "http_401":
            response = error(int(fault.kind.removeprefix("http_")))
            if fault.kind in ("http_429", "http_529"):
                response.headers["retry-after"] = str(math.ceil(fault.wait(1.0)))
            return response
        case "rst":
            return sockets.reset(request)
        case "no_answer":
            return await sockets.hold(request, fault.wait(60.0))
        case "redirect":
            return web.Response(status=307, headers={"Location": "/elsewhere"})
        case "html":
            return web.Response(body=_HTML, content_type="text/html")
    return None


async def said_slowly(
    request: web.Request, fault: Fault, pace: Pace, events: Iterable[bytes], *, headers: dict[str, str], error: bytes
) -> web.StreamResponse:
    """The events as a stream, with what goes wrong in the midst of one; `error` is one of its events."""
    response = web.StreamResponse(headers={"Cache-Control": "no-cache", **headers})
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    pause = pace.first_token + (fault.wait(4.0) if fault.kind == "slow" else 0.0)
    with suppress(ConnectionResetError):  # who asked was killed: that is what the tests are for, and no error of ours
        await asyncio.sleep(pause)
        await response.prepare(request)
        async for chunk in _paced(_spoilt(fault, list(events)), pace):
            await response.write(chunk)
        if fault.kind in ("error_event", "cut", "truncated") and fault.seconds:
            await asyncio.sleep(fault.wait(0.0))
        match fault.kind:
            case "error_event":
                await response.write(error)
            case "cut":
                # A turn of the loop, so that the half that was said is on its way before the reset.
                await asyncio.sleep(0.01)
                sockets.reset(request)
                return response
            case "stall":
                await sockets.hold(request, fault.wait(60.0))
                return response
        await response.write_eof()
    return response


async def said_at_once(
    request: web.Request, fault: Fault, pace: Pace, body: bytes, failure: web.Response
) -> web.StreamResponse:
    """The whole answer in one body. Without streaming the faults of the middle fall on it."""
    await asyncio.sleep(pace.first_token + (fault.wait(4.0) if fault.kind == "slow" else 0.0))
    half = sockets.raw("200 OK", body)[: -len(body) // 2]
    match fault.kind:
        case "error_event":
            return failure
        case "cut" | "truncated":
            return sockets.finish(request, after=half)
        case "stall":
            return await sockets.hold(request, fault.wait(60.0), after=half)
    return web.Response(body=body, content_type="application/json")


def _spoilt(fault: Fault, events: list[bytes]) -> list[bytes]:
    match fault.kind:
        case "nonsense":
            middle = len(events) // 2
            return [*events[:middle], b"data: {nonsense\n\n", *events[middle:]]
        case "repeat":
            return events * 2
    return events


async def _paced(events: list[bytes], pace: Pace) -> AsyncIterator[bytes]:
    """Without a pause between deltas one write costs a hundredth of the CPU of many."""
    if not pace.between:
        yield b"".join(events)
        return
    for event in events:
        yield event
        await asyncio.sleep(pace.between)


def _wanted(asked: Asked) -> Wanted:
    """An answer to the last user turn, or the rest of one that was cut or paused."""
    texts, before = _last(asked.turns, "user")
    if before and (not texts or texts[0].startswith(GO_ON)):
        own, earlier = _last(before, "assistant")
        question, _ = _last(earlier, "user")
        whole = answer(question, system=asked.system, documents=asked.documents)
        all_of_it, done = "".join(block.text for block in whole), "".join(own)
        if all_of_it.startswith(done) and len(done) < len(all_of_it):
            rest = _without(whole, len(done))
            return Wanted(user=texts or question, question=question, before=len(done), blocks=rest)
    blocks = answer(texts, system=asked.system, documents=asked.documents)
    return Wanted(user=texts, question=texts, blocks=blocks)


def _last(turns: Sequence[Turn], role: str) -> tuple[tuple[str, ...], Sequence[Turn]]:
    """The texts of the last turns of this role, and the turns before them."""
    texts: tuple[str, ...] = ()
    while turns and turns[-1].role == role:
        texts = turns[-1].texts + texts
        turns = turns[:-1]
    return texts, turns


def _half(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The first half of the text."""
    left = sum(len(block.text) for block in blocks) // 2
    kept: list[Block] = []
    for block in blocks:
        if left <= 0:
            break
        kept.append(block if len(block.text) <= left else Block(text=block.text[:left]))
        left -= len(block.text)
    return tuple(kept)


def _without(blocks: tuple[Block, ...], count: int) -> tuple[Block, ...]:
    """The blocks without so many characters of their beginning."""
    kept: list[Block] = []
    for block in blocks:
        if count < len(block.text):
            kept.append(Block(text=block.text[count:], citations=block.citations))
        count = max(0, count - len(block.text))
    return tuple(kept)
