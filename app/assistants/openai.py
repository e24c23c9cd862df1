"""OpenAI's chat completions, as OpenAI, vLLM, Ollama, OpenRouter and many others serve them: what is asked.

What comes back is read in openai_stream.py, retries are whole.py's. `base_url` ends as their SDK's does, mostly in `/v1`.
Formats: OpenAI's API reference, "Chat completions"; docs/wire-assistants.md says what the others do differently.
"""

import base64
from collections import OrderedDict
from collections.abc import Sequence
from html import escape
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from app.assistants import Answer, Asking, Call, Image, Notes, Question, calls
from app.assistants.composed import said
from app.assistants.lines import Turn, turns
from app.assistants.openai_stream import collect
from app.assistants.parts import Part
from app.assistants.whole import GO_ON, whole
from app.configuration import AssistantSettings
from app.text.storable import storable

# Servers and models whose dialect is remembered.
KNOWN = 1_000


class Dialect(Struct, frozen=True, kw_only=True):
    """What a server takes. `usage`: it counts tokens at the end of a stream. `limit`: its name for the most tokens."""

    usage: bool = True
    limit: str = "max_tokens"


class OpenAI:
    """`app.assistants.Assistant` for the provider `openai`. It remembers what each server and model takes, nothing else."""

    def __init__(self) -> None:
        self._dialects: OrderedDict[tuple[str, str | None], Dialect] = OrderedDict()

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
        who = (settings.base_url, settings.model)

        async def once(parts: Sequence[Part], call: Call | None) -> Part:
            dialect = known = self._dialects.get(who, Dialect())
            while True:
                async with calls.streamed(
                    client,
                    f"{settings.base_url}/chat/completions",
                    headers={"authorization": f"Bearer {settings.api_key}"},
                    body=request(settings, asked, parts, dialect),
                    deadline=deadline,
                ) as response:
                    if not isinstance(response, calls.Refusal):
                        if dialect != known:
                            self._remember(who, dialect)
                        return await collect(response, call)
                    if (other := learnt(dialect, response)) is None:
                        raise response.error()
                    dialect = other  # not remembered until it is taken: what was refused may quote anybody's words

        return await whole(once, settings, question, deadline=deadline, notes=notes, asking=asking)

    def _remember(self, who: tuple[str, str | None], dialect: Dialect) -> None:
        self._dialects[who] = dialect
        if len(self._dialects) > KNOWN:
            self._dialects.popitem(last=False)


ASSISTANT = OpenAI()


def request(
    settings: AssistantSettings, asked: Sequence[Turn], parts: Sequence[Part], dialect: Dialect
) -> dict[str, Any]:
    """The body of the call that asks for the next part of the answer."""
    messages: list[dict[str, Any]] = []
    if system := _system(settings):
        messages.append({"role": "system", "content": system})
    messages += [{"role": turn.role, "content": _content(turn)} for turn in asked]
    if parts:
        messages.append({"role": "assistant", "content": said(parts).rstrip()})
        messages.append({"role": "user", "content": GO_ON})
    body: dict[str, Any] = {
        "model": settings.model,
        dialect.limit: settings.max_tokens,
        "stream": True,
        "messages": messages,
    }
    if dialect.usage:
        body["stream_options"] = {"include_usage": True}
    return body


def learnt(dialect: Dialect, refusal: calls.Refusal) -> Dialect | None:
    """The dialect to try next, if that is what was refused.

    OpenAI's newer models name the parameter that they want instead of `max_tokens`; of `stream_options` older servers
    say that it is unknown (400, or 422 where pydantic checks). Each change is made once, so this comes to an end.
    """
    if refusal.status not in (400, 422):
        return None
    if dialect.limit == "max_tokens" and b"max_completion_tokens" in refusal.body:
        return msgspec.structs.replace(dialect, limit="max_completion_tokens")
    if dialect.usage and (b"stream_options" in refusal.body or b"include_usage" in refusal.body):
        return msgspec.structs.replace(dialect, usage=False)
    return None


def _system(settings: AssistantSettings) -> str:
    """The system prompt, and the documents behind it: chat completions have no place of their own for them, nor citations.

    Always the same for a tenant, and first: servers that cache prefixes do it without being asked.
    """
    texts = [storable(settings.system)] if settings.system.strip() else []
    texts += [
        f'<document title="{escape(document.title)}">\n{document.text}\n</document>' for document in settings.documents
    ]
    return "\n\n".join(texts)


def _content(turn: Turn) -> str | list[dict[str, Any]]:
    if (text := turn.text) is not None:
        return storable(text)
    return [
        {"type": "image_url", "image_url": {"url": _data_url(each)}}
        if isinstance(each, Image)
        else {"type": "text", "text": storable(each)}
        for each in turn.said
    ]


def _data_url(image: Image) -> str:
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"
