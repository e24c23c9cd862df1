"""What only Anthropic's assistant does: documents and what is cited of them, the prompt cache, turns that pause."""

import base64
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
import stamina

from app import http
from app.assistants import Answer, Citation, Image, Line
from app.assistants.parts import MOST_CITATIONS
from app.configuration import Document
from app.errors import AssistantBusy, AssistantRefused
from app.sandbox.server import running
from tests.asking import TRIES, Room

pytestmark = pytest.mark.anyio

HADITH = "إِنَّمَا الأَعْمَالُ بِالنِّيَّاتِ، وَإِنَّمَا لِكُلِّ امْرِئٍ مَا نَوَى.\r\n\tSecond\u00a0sentence; «quoted».  Third?"
DOCUMENTS = (Document(title='Bukhari "1"', text=HADITH), Document(title="Prices", text="A visit is 10. \ufb01ne.\n"))
EPHEMERAL = {"type": "ephemeral"}


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with running(port=0) as sandbox, http.client(total=600.0) as client:
        yield Room("anthropic", sandbox, client)


@pytest.fixture
def without_pauses() -> Iterator[None]:
    """Retries follow each other at once."""
    with stamina.set_testing(True, attempts=TRIES, cap=True):
        yield


def event(name: str, **data: Any) -> bytes:
    return b"data: " + msgspec.json.encode({"type": name, **data}) + b"\n\n"


def block(text: str, *citations: dict[str, Any]) -> bytes:
    """A block of text with what it rests on."""
    deltas = [{"type": "text_delta", "text": text}] + [{"type": "citations_delta", "citation": c} for c in citations]
    said = b"".join(event("content_block_delta", index=0, delta=delta) for delta in deltas)
    return (
        event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        + said
        + event("content_block_stop", index=0)
    )


# --- documents ---


async def test_documents_stand_before_the_first_question(room: Room) -> None:
    """Each whole and to be cited, the last of them marked for the cache, wherever the conversation is by now."""
    await room.ask(Line("user", "one", (Image(media_type="image/jpeg", data=b"jpeg"),)), documents=DOCUMENTS)
    first = room.said["messages"][0]["content"]
    source = {"type": "text", "media_type": "text/plain"}
    assert first == [
        {
            "type": "document",
            "title": 'Bukhari "1"',
            "source": {**source, "data": HADITH},
            "citations": {"enabled": True},
        },
        {
            "type": "document",
            "title": "Prices",
            "source": {**source, "data": DOCUMENTS[1].text},
            "citations": {"enabled": True},
            "cache_control": EPHEMERAL,
        },
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/jpeg", "data": base64.b64encode(b"jpeg").decode()},
        },
        {"type": "text", "text": "one"},
    ]
    await room.ask("one", Line("assistant", "two"), "three", documents=DOCUMENTS)
    assert [type(turn["content"]) for turn in room.said["messages"]] == [list, str, str]


async def test_what_is_cited_is_byte_for_byte_the_documents(room: Room) -> None:
    """Marks in the text, each citation once, whatever its script, spaces and line ends."""
    answer = await room.ask("cite#7", documents=DOCUMENTS)
    said = "Here is what the sources say: " + "; ".join(f"point {n} [{(n - 1) % 5 + 1}]" for n in range(1, 8)) + "."
    assert answer.text == said
    titles = [citation.title for citation in answer.citations]
    assert titles == ['Bukhari "1"'] * 3 + ["Prices"] * 2
    for citation in answer.citations:
        source = next(document.text for document in DOCUMENTS if document.title == citation.title)
        assert citation.text.encode() in source.encode() and citation.text.strip()


async def test_without_citations_there_are_no_marks(room: Room) -> None:
    """Documents that nothing rests on leave the answer as it is."""
    answer = await room.ask("Where are you?", documents=DOCUMENTS)
    assert (answer.text, answer.citations) == ("You said: Where are you?", ())


async def test_citations_outlive_a_continuation(room: Room) -> None:
    """They are numbered through, over as many calls as it took."""
    whole = await room.ask("cite#4", documents=DOCUMENTS)
    for kind in ("max_tokens", "pause_turn"):
        room.fails(kind)
        answer = await room.next_turn("cite#4", documents=DOCUMENTS)
        assert (answer.text, answer.citations, answer.partial) == (whole.text, whole.citations, False)


CITED = {"type": "char_location", "cited_text": "c", "document_index": 0, "document_title": "T"}


@pytest.mark.parametrize(
    ("blocks", "text", "citations"),
    [
        ([block("a", CITED, CITED)], "a [1]", [("c", "T")]),
        ([block("a", CITED, {**CITED, "cited_text": "d"})], "a [1] [2]", [("c", "T"), ("d", "T")]),
        ([block("a", {**CITED, "document_title": "U"}), block("b", CITED)], "a [1]b [2]", [("c", "U"), ("c", "T")]),
        ([block("a\n\n", CITED), block("b")], "a [1]\n\nb", [("c", "T")]),
        ([block("a", CITED), block("(b)")], "a [1] (b)", [("c", "T")]),
        ([block("a", CITED), block("b [c]"), block("(d)")], "a [1]b [c](d)", [("c", "T")]),
        ([block("```\na\n```\n", CITED), block("b")], "```\na\n```\n[1]\nb", [("c", "T")]),
        ([block("|a|\n|-|\n| b |", CITED)], "|a|\n|-|\n| b [1] |", [("c", "T")]),
        ([block("a"), block("", CITED)], "a [1]", [("c", "T")]),
        ([block("a", {**CITED, "document_title": None})], "a [1]", [("c", 'Bukhari "1"')]),
        ([block("a", {**CITED, "document_title": None, "document_index": 9})], "a [1]", [("c", "")]),
        ([block("a", {"type": "search_result_location", "cited_text": "c", "title": "W"})], "a [1]", [("c", "W")]),
        ([block("a", {**CITED, "cited_text": " c\u200f\t"})], "a [1]", [(" c\u200f\t", "T")]),
        ([block("a", {**CITED, "cited_text": "c\x00\x00d"})], "a [1]", [("cd", "T")]),
        ([block("a", {**CITED, "cited_text": " "})], "a", []),
        ([block("a", {**CITED, "cited_text": None}), block("b", {})], "ab", []),
    ],
)
async def test_marks_stand_where_a_reader_expects_them(
    room: Room, blocks: list[bytes], text: str, citations: list[tuple[str, str]]
) -> None:
    """Behind what rests on them, before the space, not where Markdown would swallow them; what quotes nothing has none."""
    answer = await room.fate_of(room.wire.begin + b"".join(blocks) + room.wire.end, documents=DOCUMENTS)
    assert isinstance(answer, Answer) and answer.text == text
    assert answer.citations == tuple(Citation(text=text, title=title) for text, title in citations)


async def test_beyond_the_citations_that_are_kept_there_are_no_marks(room: Room) -> None:
    """No number in the text is without its source; one that was cited before is marked as ever."""
    many = [block(f"{n}", {**CITED, "cited_text": f"c{n}"}) for n in range(1, MOST_CITATIONS + 50)]
    answer = await room.fate_of(
        b"".join((room.wire.begin, *many, block("z", {**CITED, "cited_text": "c1"}), room.wire.end))
    )
    assert isinstance(answer, Answer)
    marks = re.findall(r"\[(\d+)\]", answer.text)
    assert marks == [*(str(n) for n in range(1, MOST_CITATIONS + 1)), "1"]
    assert [each.text for each in answer.citations[:MOST_CITATIONS]] == [f"c{n}" for n in range(1, MOST_CITATIONS + 1)]


@pytest.mark.parametrize("wrong", [{**CITED, "cited_text": 5}, {**CITED, "document_title": []}])
async def test_a_citation_of_another_shape_is_no_answer(
    room: Room, without_pauses: None, wrong: dict[str, Any]
) -> None:
    """It is asked again, like any event that cannot be read."""
    fate = await room.fate_of(room.wire.begin + block("a", wrong) + room.wire.end)
    assert isinstance(fate, AssistantBusy)


# --- the cache ---


async def test_what_all_share_is_marked_for_the_cache_and_counted(room: Room) -> None:
    """System prompt and documents, by the second question read from the cache; all of it is input."""
    system = "You are the clinic's assistant. " * 50
    first = await room.ask("one", system=system, documents=DOCUMENTS)
    assert room.said["system"] == [{"type": "text", "text": system, "cache_control": EPHEMERAL}]
    second = await room.ask("two", Line("assistant", "three"), "four", system=system, documents=DOCUMENTS)
    assert first.cached_tokens == 0 and second.cached_tokens > 300
    assert first.input_tokens > 300 and second.input_tokens >= first.input_tokens
    assert "cache_control" not in room.said


async def test_tokens_are_what_was_said_last(room: Room) -> None:
    """Usage is cumulative; what is absent or null says nothing new."""
    begin = event("message_start", message={"model": "m", "usage": {"input_tokens": 5, "cache_read_input_tokens": 7}})
    usage = {"output_tokens": 9, "cache_creation_input_tokens": 11, "cache_read_input_tokens": None}
    end = event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage) + event("message_stop")
    answer = await room.fate_of(begin + room.wire.say("a") + end)
    assert isinstance(answer, Answer)
    assert (answer.input_tokens, answer.cached_tokens, answer.output_tokens) == (23, 7, 9)


# --- how it stops ---


async def test_a_turn_that_pauses_goes_on(room: Room) -> None:
    """Its own words are sent back as they were, with nothing behind them; the two halves are one text."""
    whole = (await room.ask("tok#en1/2")).text
    room.fails("pause_turn")
    answer = await room.ask("tok#en1/2")
    assert (answer.text, answer.stopped, answer.partial) == (whole, "end_turn", False)
    assert room.said["messages"][-1]["role"] == "assistant"
    room.fails(*["pause_turn"] * 10)
    answer = await room.next_turn("tok#ar2/2")
    assert answer.partial and answer.stopped == "pause_turn" and room.calls == 6


async def test_whatever_a_paused_turn_did_is_sent_back_whole(room: Room) -> None:
    """Blocks that we know nothing of, put together from their deltas."""
    paused = (
        room.wire.begin
        + event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""})
        + event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"})
        + event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "s"})
        + event(
            "content_block_start",
            index=1,
            content_block={"type": "server_tool_use", "id": "1", "name": "n", "input": {}},
        )
        + event("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": '{"q":'})
        + event("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": '"x"}'})
        + event("content_block_start", index=2, content_block={"type": "a_result", "content": [1]})
        + block("")
        + block("found", CITED)
        + event("message_delta", delta={"stop_reason": "pause_turn"})
        + event("message_stop")
    )
    rest = room.wire.begin + room.wire.say(" it") + room.wire.end
    answer = await room.fate_of_each(paused, rest)
    assert isinstance(answer, Answer) and (answer.text, answer.partial) == ("found [1] it", False)
    assert room.bodies[1]["messages"][-1] == {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "server_tool_use", "id": "1", "name": "n", "input": {"q": "x"}},
            {"type": "a_result", "content": [1]},
            {"type": "text", "text": "found", "citations": [CITED]},
        ],
    }


async def test_what_a_paused_turn_did_can_be_kept_and_sent_back(room: Room) -> None:
    """PostgreSQL and JSON take neither U+0000 nor half a character, wherever a block of which we know nothing has them."""
    result = event("content_block_start", index=1, content_block={"type": "a_result", "content": [{"a": "x\0"}]})
    paused = (
        room.wire.begin
        + room.wire.say("found")
        + result.replace(rb"x\u0000", rb"x\u0000\ud83d")
        + event("message_delta", delta={"stop_reason": "pause_turn"})
        + event("message_stop")
    )
    answer = await room.fate_of_each(paused, room.wire.begin + room.wire.say(" it") + room.wire.end)
    assert isinstance(answer, Answer) and (answer.text, answer.partial) == ("found it", False)
    content = [{"type": "text", "text": "found"}, {"type": "a_result", "content": [{"a": "x\ufffd"}]}]
    [kept] = room.notes.values()
    assert kept["content"] == content
    assert room.bodies[1]["messages"][-1] == {"role": "assistant", "content": content}


@pytest.mark.parametrize(("reason", "partial"), [
    ("end_turn", False), ("stop_sequence", False), ("of_tomorrow", False), (None, False),
    ("model_context_window_exceeded", True), ("tool_use", True),
])  # fmt: skip
async def test_reasons_to_stop_say_whether_it_is_whole(room: Room, reason: str | None, partial: bool) -> None:
    """One call; of a reason that we do not know the best is thought."""
    end = event("message_delta", delta={"stop_reason": reason}) + event("message_stop")
    answer = await room.fate_of(room.wire.begin + room.wire.say("hello there") + end)
    assert isinstance(answer, Answer) and (answer.partial, room.served) == (partial, 1)


@pytest.mark.parametrize("reason", ["max_tokens", "model_context_window_exceeded"])
async def test_a_limit_that_leaves_no_room_for_words_is_final(room: Room, reason: str) -> None:
    """The next try would think as long: it is the tenant's setting that is wrong."""
    end = event("message_delta", delta={"stop_reason": reason}) + event("message_stop")
    assert isinstance(await room.fate_of(room.wire.begin + end), AssistantRefused)
    assert room.served == 1


async def test_a_message_that_begins_again_is_read_from_there(room: Room) -> None:
    """What a gateway said before it asked another model is forgotten."""
    wire = room.wire
    answer = await room.fate_of(wire.begin + wire.say("half") + wire.begin + wire.say("whole") + wire.end)
    assert isinstance(answer, Answer) and answer.text == "whole"


@pytest.mark.parametrize(("kind", "tries"), [
    ("overloaded_error", TRIES), ("api_error", TRIES), ("rate_limit_error", TRIES), ("of_tomorrow", TRIES),
    ("invalid_request_error", 1), ("authentication_error", 1), ("billing_error", 1),
])  # fmt: skip
async def test_errors_in_mid_stream_are_told_apart(room: Room, without_pauses: None, kind: str, tries: int) -> None:
    """What another try would meet again is not asked again."""
    error = event("error", error={"type": kind, "message": "about your question"})
    fate = await room.fate_of(room.wire.begin + room.wire.say("hello") + error)
    assert isinstance(fate, AssistantRefused if tries == 1 else AssistantBusy) and room.served == tries
    assert "question" not in str(fate)
