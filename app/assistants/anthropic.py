"""Anthropic's Messages API: what is asked. What comes back is read in anthropic_stream.py, retries are whole.py's.

Formats: Anthropic's API reference, "Messages"; "Citations", "Prompt caching", "Vision" and "Stop reasons" of its guide.
docs/wire-assistants.md gathers what we use of them.
"""

import base64
from collections.abc import Sequence
from typing import Any

import httpx

from app.assistants import Answer, Asking, Call, Image, Notes, Question, calls
from app.assistants.anthropic_stream import collect
from app.assistants.composed import said
from app.assistants.lines import Turn, turns
from app.assistants.parts import Part
from app.assistants.whole import GO_ON, whole
from app.configuration import AssistantSettings, Document
from app.text.storable import storable

VERSION = "2023-06-01"
# A place up to which the prompt is the same for everybody who asks this tenant. Read again within five minutes it costs
# a tenth. Without a beta header since 2024-12; a prompt below the model's smallest size is simply not cached.
# The conversation itself is not marked: its window moves, and writing it costs a quarter more than not caching it.
CACHED = {"cache_control": {"type": "ephemeral"}}


class Anthropic:
    """`app.assistants.Assistant` for the provider `anthropic`."""

    async def ask(
        self,
        client: httpx.AsyncClient,
        settings: AssistantSettings,
        question: Question,
        *,
        deadline: float,
        notes: Notes,
        asking: Asking | None = None,
    ) -> Answer:
        """See the Protocol. It keeps no conversation: asking again doubles only the cost, which the notes are to save."""
        asked = turns(question.lines)

        async def once(parts: Sequence[Part], call: Call | None) -> Part:
            async with calls.streamed(
                client,
                f"{settings.base_url}/v1/messages",
                headers={"x-api-key": settings.api_key, "anthropic-version": VERSION},
                body=request(settings, asked, parts),
                deadline=deadline,
            ) as response:
                if isinstance(response, calls.Refusal):
                    raise response.error()
                return await collect(response, settings.documents, call)

        return await whole(once, settings, question, deadline=deadline, notes=notes, asking=asking)


ASSISTANT = Anthropic()


def request(settings: AssistantSettings, asked: Sequence[Turn], parts: Sequence[Part] = ()) -> dict[str, Any]:
    """The body of the call that asks for the next part of the answer."""
    first, *rest = asked
    body: dict[str, Any] = {
        "model": settings.model,
        "max_tokens": settings.max_tokens,
        "stream": True,
        "messages": [
            {"role": "user", "content": _content(first, settings.documents)},
            *({"role": turn.role, "content": _content(turn)} for turn in rest),
            *_answered(parts),
        ],
    }
    if settings.system.strip():
        body["system"] = [{"type": "text", "text": storable(settings.system), **CACHED}]
    return body


def _content(turn: Turn, documents: Sequence[Document] = ()) -> str | list[dict[str, Any]]:
    """What is said, behind the documents: they stand first, so that they are cached whatever is asked about them."""
    if not documents and (text := turn.text) is not None:
        return storable(text)
    blocks = [_document(document) for document in documents]
    if blocks:
        blocks[-1] |= CACHED
    return blocks + [
        _image(each) if isinstance(each, Image) else {"type": "text", "text": storable(each)} for each in turn.said
    ]


def _document(document: Document) -> dict[str, Any]:
    return {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": document.text},
        "title": document.title,
        "citations": {"enabled": True},  # on all or on none, says the guide
    }


def _image(image: Image) -> dict[str, Any]:
    data = base64.b64encode(image.data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": data}}


def _answered(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """What it has said already, and that it shall go on. A paused turn goes on from its own words, sent back as they are."""
    if not parts:
        return []
    paused: list[dict[str, Any]] = []
    before = list(parts)
    while before and before[-1].ending == "paused":
        paused = [*before.pop().content, *paused]
    words = said(before).rstrip()
    if paused:
        opening = [{"type": "text", "text": words}] if words else []
        return [{"role": "assistant", "content": [*opening, *paused]}]
    return [{"role": "assistant", "content": words}, {"role": "user", "content": GO_ON}]
