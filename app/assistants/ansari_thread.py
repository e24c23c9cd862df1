"""A person's thread in Ansari's backend: which one a turn belongs to, and what it holds since. It asks nothing of the assistant.

Why the thread decides what became of a call: docs/wire-assistants.md, "Once in the thread".
"""

import asyncio
import re

from msgspec import Struct

from app.assistants.ansari_wire import Backend, Missing
from app.errors import AssistantBusy

# A thread that is away is looked for again after this long (seconds), before it is given up.
SECOND_LOOK = 0.25
TITLE_WORDS, TITLE_CHARACTERS = 6, 60
# What the backend writes into the thread when it has failed (its ansari_claude.py): no answers, and none will follow.
APOLOGIES = frozenset(
    {
        "I encountered a problem processing your request. Please try again or rephrase your question.",
        "I got stuck in a loop. Please rephrase your question.",
        "I'm processing your request.",
    }
)
_ARABIC = re.compile(r"[\u0620-\u064a]")


class Place(Struct, frozen=True):
    """Where a turn is asked: its thread, and how many rows that had before."""

    thread: str
    length: int


class Seen(Struct, frozen=True, kw_only=True):
    """What a thread holds since: whether the turn is `there`, and what was answered after it, if the last row is an answer.

    Answers without the turn before them may be another turn's, come late. `gave_up`: the backend's apology.
    """

    there: bool = False
    texts: tuple[str, ...] = ()
    gave_up: bool = False


async def begin(backend: Backend, words: str, *, fresh: bool) -> Place:
    """The person's thread; a new one for a new session. One without a row is as good as new: nobody used it."""
    try:
        last = await backend.last_thread()
    except Missing:
        if await backend.exists():
            raise
        await backend.register("ar" if _ARABIC.search(words) else "en")
        last = None
    length = None if last is None else await _length(backend, last, fresh=fresh)
    if last is not None and length is not None and (length == 0 or not fresh):
        return Place(last, length)
    title = " ".join(words.split()[:TITLE_WORDS])[:TITLE_CHARACTERS]
    return Place(await backend.new_thread(title), 0)


async def _length(backend: Backend, thread: str, *, fresh: bool) -> int | None:
    """How many rows it has. None: it cannot be gone on with, being away twice, or unreadable where we want another."""
    for last_look in (False, True):
        try:
            return len(await backend.history(thread))
        except Missing:
            if last_look:
                return None
        except AssistantBusy:
            if fresh:
                return None
            raise
        await asyncio.sleep(SECOND_LOOK)
    raise AssertionError("the last look returns or raises")


async def look(backend: Backend, place: Place, words: str) -> Seen:
    """What has come of a turn of these words."""
    rows = (await backend.history(place.thread))[place.length :]
    ours = next((n for n, row in enumerate(rows) if row.role == "user" and bare(row.text) == bare(words)), None)
    there = ours is not None
    rows = rows[ours + 1 :] if ours is not None else rows
    # After a tool's call or its result the backend writes on.
    if not rows or rows[-1].role != "assistant" or not rows[-1].text.strip():
        return Seen(there=there)
    if rows[-1].text.strip() in APOLOGIES:
        return Seen(there=there, gave_up=there)
    return Seen(there=there, texts=tuple(row.text for row in rows if row.role == "assistant" and row.text.strip()))


def bare(text: str) -> str:
    """Without space: the thread has the same words as the stream, with other space between them."""
    return "".join(text.split())
