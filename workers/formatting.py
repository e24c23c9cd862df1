"""An assistant's Markdown in WhatsApp's markup, off the event loop where that takes long. How, app/text/whatsapp.py knows."""

import asyncio

from app.text.whatsapp import from_markdown

# Characters above which an answer is formatted in a thread: a parser takes a few milliseconds for less.
LONG = 8_000


async def whatsapp(markdown: str) -> str:
    """A hostile text of some length can keep the parser busy for seconds: then not in the event loop."""
    if len(markdown) > LONG:
        return await asyncio.to_thread(from_markdown, markdown)
    return from_markdown(markdown)
