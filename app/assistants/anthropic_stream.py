"""Reads the events of a streamed message of Anthropic's: text, citations, cost, and how it ended.

Formats: Anthropic's "Streaming messages", "Citations" (`citations_delta`), "Stop reasons", "Streaming refusals".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from app import http
from app.assistants import Call, Citation, sse
from app.assistants.calls import DECLINES, FINAL
from app.assistants.parts import DECLINED, Declined, Draft, Ending, Part, Tokens, counts
from app.configuration import Document
from app.errors import AssistantRefused, InDoubt
from app.text.storable import storable

# What a reason to stop means for the text. Of one that is not listed we think the best: new ones come.
ENDINGS: dict[str, Ending] = {
    "max_tokens": "limit",
    "pause_turn": "paused",
    "model_context_window_exceeded": "short",
    "tool_use": "waiting",
}


class _Started(Struct):
    model: str = ""
    usage: Any = None


class _Fault(Struct):
    type: str = ""


class _Event(Struct):
    type: str
    message: _Started | None = None
    content_block: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    usage: Any = None
    error: _Fault | None = None


_event = msgspec.json.Decoder(_Event)


async def collect(response: http.Stream, documents: Sequence[Document], call: Call | None) -> Part:
    """The message that streams in.

    Raises:
        Cut: it ended before its end.
        Declined: it refuses to answer.
        AssistantRefused: an error in mid-stream that another try would meet again.
    """
    draft, content = Draft(call), _Content()
    usage: dict[str, int] = {}  # cumulative
    stream = sse.events(response)
    try:
        async for data in stream:
            event = sse.read(data, _event)
            match event.type:
                case "message_start":  # a second one: what sent it has begun anew
                    draft.restart()
                    content, usage = _Content(), {}
                    if event.message is not None:
                        draft.model = event.message.model
                        usage |= counts(event.message.usage)
                case "content_block_start":
                    draft.end_block()
                    content.begin(event.content_block or {})
                    draft.say(_text(event.content_block or {}, "text"))
                case "content_block_delta":
                    _add(draft, content, event.delta or {}, documents)
                    if draft.too_long:
                        return draft.shortened()
                case "content_block_stop":
                    draft.end_block()
                case "message_delta":
                    draft.stopped = _text(event.delta or {}, "stop_reason") or draft.stopped
                    draft.declined = draft.stopped == "refusal"
                    usage |= counts(event.usage)
                case "message_stop":
                    part = _ended(draft, content)
                    await sse.rest(stream)
                    return part
                case "error":
                    kind = event.error.type[:50] if event.error is not None else ""
                    if draft.declined or kind in DECLINES:
                        raise Declined(DECLINED)
                    if kind in FINAL:
                        raise AssistantRefused(f"error {kind} in mid-stream")
                    raise draft.cut("error in mid-stream")
            draft.tokens = _tokens(usage)
    except (InDoubt, sse.Nonsense) as fault:
        raise draft.cut(str(fault)) from fault
    finally:
        await stream.aclose()
    raise draft.cut("the stream was cut")


def _ended(draft: Draft, content: "_Content") -> Part:
    if draft.declined:
        raise Declined(DECLINED)
    ending = ENDINGS.get(draft.stopped, "whole")
    return draft.part(ending, content=content.blocks() if ending == "paused" else ())


def _add(draft: Draft, content: "_Content", delta: dict[str, Any], documents: Sequence[Document]) -> None:
    content.add(delta)
    kind = delta.get("type")
    if kind == "text_delta":
        draft.say(_text(delta, "text"))
    elif kind == "citations_delta" and (citation := _citation(delta.get("citation"), documents)) is not None:
        draft.rest_on(citation)


def _citation(told: object, documents: Sequence[Document]) -> Citation | None:
    """Of any kind: a place in a document of ours, or what a gateway searched for. None: it quotes nothing."""
    if not isinstance(told, dict) or not (text := _text(told, "cited_text")).strip():
        return None
    title = _text(told, "document_title") or _text(told, "title")
    index = told.get("document_index")
    if not title and isinstance(index, int) and 0 <= index < len(documents):
        title = documents[index].title
    return Citation(text=storable(text), title=storable(title)[:500])


def _text(told: dict[str, Any], key: str) -> str:
    """The text under a key; "" for none, and for null.

    Raises:
        Nonsense: it is no text.
    """
    found = told.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise sse.Nonsense("an event that cannot be read")
    return found


def _tokens(usage: Mapping[str, int]) -> Tokens:
    """All three inputs together are what was read ("Prompt caching", "Tracking cache performance")."""
    cached = usage.get("cache_read_input_tokens", 0)
    read = usage.get("input_tokens", 0) + usage.get("cache_creation_input_tokens", 0) + cached
    return Tokens(read=read, written=usage.get("output_tokens", 0), cached=cached)


# The pieces that a block's fields come in: the delta's type, where it has the piece, the block's field.
_PIECES = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("signature", "signature"),
    "input_json_delta": ("partial_json", "input"),
}


class _Content:
    """The blocks of a message in their own format, whatever they are: a turn that paused is sent back as it was."""

    def __init__(self) -> None:
        self._blocks: list[tuple[dict[str, Any], dict[str, list[str]], list[object]]] = []

    def begin(self, block: dict[str, Any]) -> None:
        self._blocks.append((block, {}, []))

    def add(self, delta: dict[str, Any]) -> None:
        if not self._blocks:
            self.begin({"type": "text", "text": ""})
        _, pieces, citations = self._blocks[-1]
        kind = str(delta.get("type"))
        if kind in _PIECES:
            source, field = _PIECES[kind]
            pieces.setdefault(field, []).append(_text(delta, source))
        elif kind == "citations_delta":
            citations.append(delta.get("citation"))

    def blocks(self) -> list[dict[str, Any]]:
        """The message's `content`, storable. Empty texts are left out: they may come, but may not be sent.

        Raises:
            Nonsense: a tool's input is no JSON, or something is nested without end.
        """
        whole: list[dict[str, Any]] = []
        for block, pieces, citations in self._blocks:
            fields: dict[str, Any] = {name: storable("".join(texts)) for name, texts in pieces.items()}
            if "input" in fields:
                text = fields["input"] or "{}"
                fields["input"] = sse.read(text.encode(), msgspec.json.Decoder(dict[str, Any]))
            if citations:
                fields["citations"] = citations
            built = {**block, **fields}
            if built.get("type") != "text" or str(built.get("text", "")).strip():
                whole.append(built)
        try:
            return [_storable(block) for block in whole]
        except RecursionError:
            raise sse.Nonsense("an event that cannot be read") from None


def _storable(told: Any) -> Any:
    """JSON with all of its texts storable. Raises RecursionError."""
    if isinstance(told, str):
        return storable(told)
    if isinstance(told, dict):
        return {storable(key): _storable(value) for key, value in told.items()}
    return [_storable(each) for each in told] if isinstance(told, list) else told
