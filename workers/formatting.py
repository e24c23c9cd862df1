"""An assistant's answer made fit for people: in WhatsApp's markup, with its sources, in pieces. How, app/text knows.

Hostile texts of some length keep those who read, format and cut them busy for up to seconds: then not in the event loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from app.configuration import Texts
from app.text.chunks import split
from app.text.citations import Source, isolated, with_sources
from app.text.whatsapp import from_markdown

P = ParamSpec("P")
T = TypeVar("T")

# Characters above which it is done in a thread: less takes a few milliseconds, and 50 if it is nothing but brackets.
LONG = 1_000


async def whatsapp(markdown: str) -> str:
    """The text in WhatsApp's markup; "" for one of nothing but Markdown's."""
    return await apart(len(markdown), from_markdown, markdown)


async def listed(text: str, verbatim: str) -> str:
    """The finished text with what stands below it letter for letter: like a quotation, it turns nothing outside of it."""
    return f"{text}\n{await apart(len(verbatim), isolated, verbatim)}" if verbatim else text


async def sourced(text: str, sources: Sequence[Source], texts: Texts) -> str:
    """The finished text with its sources below, in the tenant's words."""

    def below() -> str:
        return with_sources(
            text, sources, heading=texts.sources, translation=texts.translated, untranslated=texts.untranslated
        )

    return await apart(sum(len(each.text) + len(each.translation or "") for each in sources), below)


async def pieces(text: str) -> list[str]:
    """The text as WhatsApp takes it; [] where nothing of it can be seen."""
    return await apart(len(text), split, text)


async def apart(size: int, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Work on so many characters, in the event loop only if they are few."""
    if size > LONG:
        return await asyncio.to_thread(work, *args, **named)
    return work(*args, **named)
