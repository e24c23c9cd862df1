"""A person's thread in Ansari's backend: which one a turn belongs to, and what it holds since. It asks nothing of the assistant.

Why the thread decides what became of a call: docs/wire-assistants.md, "Once in the thread".
"""

import asyncio
import re

from msgspec import Struct

from app.assistants.ansari_wire import Backend, Missing

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


async def begin(backend: Backend, words: str, last: Place | None) -> Place:
    """The thread of the turn that was answered `last` in this session, as it stands now; a new one for a new session.

    Never the one that the person wrote to last: an account is a number's, and with the same number the person may write to
    another tenant, or to another channel of this one, that has the same backend.
    """
    if last is not None and (length := await _length(backend, last.thread)) is not None:
        return Place(last.thread, length)
    await _account(backend, words)
    title = " ".join(words.split()[:TITLE_WORDS])[:TITLE_CHARACTERS]
    return Place(await backend.new_thread(title), 0)


async def _account(backend: Backend, words: str) -> None:
    """Make sure that the person has one. The 404 alone does not say so."""
    try:
        await backend.last_thread()
    except Missing:
        if await backend.exists():
            raise
        await backend.register("ar" if _ARABIC.search(words) else "en")


async def _length(backend: Backend, thread: str) -> int | None:
    """How many rows it has. None: it is away twice, and cannot be gone on with."""
    for last_look in (False, True):
        try:
            return len(await backend.history(thread))
        except Missing:
            if last_look:
                return None
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
