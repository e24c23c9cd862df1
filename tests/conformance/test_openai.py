"""What only chat completions do, and how their servers differ: what they take, what they leave out, how they say no."""

from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
import stamina
from aiohttp import web

from app import http
from app.assistants import Answer, Image, Line
from app.assistants.openai import OpenAI
from app.configuration import Document
from app.errors import AssistantBusy, AssistantRefused
from app.sandbox.server import running
from tests.asking import ESTIMATE, TRIES, Room, served

pytestmark = pytest.mark.anyio

NONE = (*ESTIMATE, 0)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with running(port=0) as sandbox, http.client(total=600.0) as client:
        room = Room("openai", sandbox, client)
        room.assistant = OpenAI()  # one that has learnt nothing yet
        yield room


@pytest.fixture
def without_pauses() -> Iterator[None]:
    """Retries follow each other at once."""
    with stamina.set_testing(True, attempts=TRIES, cap=True):
        yield


def chunks(*data: object, done: bool = True) -> bytes:
    said = b"".join(b"data: " + msgspec.json.encode(each) + b"\n\n" for each in data)
    return said + (b"data: [DONE]\n\n" if done else b"")


def choice(content: object = None, finished: object = None, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": content, **more}, "finish_reason": finished}]}


async def test_documents_stand_behind_the_system_prompt(room: Room) -> None:
    """There is no other place for them; nothing is cited. Whatever a title holds, it stays a title."""
    documents = (Document(title='A "b" <c>', text="One.\r\nTwo."), Document(title="D", text="Three."))
    answer = await room.ask("Where?", system="Be brief.", documents=documents)
    assert room.system == (
        'Be brief.\n\n<document title="A &quot;b&quot; &lt;c&gt;">\nOne.\r\nTwo.\n</document>\n\n'
        '<document title="D">\nThree.\n</document>'
    )
    assert answer.citations == ()


async def test_pictures_are_data_urls(room: Room) -> None:
    """Nothing has to be fetched from anywhere."""
    await room.ask(Line("user", "What?", (Image(media_type="image/webp", data=b"RIFF"),)))
    assert room.said["messages"][-1]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/webp;base64,UklGRg=="}},
        {"type": "text", "text": "What?"},
    ]


# --- what servers leave out, and add ---


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (chunks(choice("hello"), choice(finished="stop")), NONE),
        (chunks(choice("hello", "stop"), {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}), (3, 4, 0)),
        (chunks(choice("hello", "stop"), {"choices": None, "usage": {"prompt_tokens": 3}}), (3, 2, 0)),
        (
            chunks(choice("hello"), {"usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 5}}}),
            (9, 2, 5),
        ),
        (chunks({**choice("hello"), "usage": None}, {**choice(finished="stop"), "usage": {}}), NONE),
        (chunks({**choice("hello"), "usage": {"prompt_tokens": 1, "prompt_tokens_details": None}}), (1, 2, 0)),
        (chunks({"choices": [{"index": 0, "delta": None, "finish_reason": None}]}, choice("hello")), NONE),
        (chunks({"choices": [{"delta": {}}]}, choice("hel"), choice(None), choice(""), choice("lo")), NONE),
        (chunks(choice("hel", role="assistant"), choice("lo", role="assistant", reasoning_content="hm")), NONE),
        (chunks(choice([{"type": "thinking", "thinking": []}]), choice([{"type": "text", "text": "hello"}])), NONE),
        (chunks(choice("hello"), {"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "length"}]}), NONE),
        (chunks(choice("hello"), done=False) + b"data:[DONE]", NONE),
        (b": OPENROUTER PROCESSING\n\n" * 5 + chunks(choice("hello"), choice(finished="stop", refusal=None)), NONE),
    ],
)  # fmt: skip
async def test_every_servers_stream_is_read(room: Room, body: bytes, tokens: tuple[int, int, int]) -> None:
    """Usage at the end, everywhere or nowhere, and then by estimate; null where others say nothing; roles again and again;
    thoughts.
    """
    answer = await room.fate_of(body)
    assert isinstance(answer, Answer) and (answer.text, answer.partial) == ("hello", False)
    assert (answer.input_tokens, answer.output_tokens, answer.cached_tokens) == tokens


async def test_only_the_mark_is_an_end(room: Room, without_pauses: None) -> None:
    """However finished it says that it is: without [DONE] the stream was cut."""
    fate = await room.fate_of(chunks(choice("hello", "stop"), done=False))
    assert isinstance(fate, AssistantBusy) and room.served == TRIES


@pytest.mark.parametrize("kind", ["content_filter", "content_policy_violation"])
async def test_a_filter_that_stops_an_answer_from_going_on_withdraws_it(room: Room, kind: str) -> None:
    """Told as an error, it is what `finish_reason` tells of as well: the first half is not sent."""
    half = chunks(choice("half of what no filter lets through"), choice(finished="length"))
    fate = await room.fate_of_each(half, b'data: {"error":{"code":"%s"}}\n\n' % kind.encode())
    assert isinstance(fate, AssistantRefused) and room.served == 2


@pytest.mark.parametrize("kind", ["content_filter", "content_policy_violation"])
async def test_a_filter_that_refuses_the_next_call_withdraws_what_was_said(room: Room, kind: str) -> None:
    """Azure's 400."""
    calls = 0

    async def filtering(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        if calls == 1:
            body = chunks(choice("half of what no filter lets through"), choice(finished="length"))
            return web.Response(body=body, content_type="text/event-stream")
        return web.json_response({"error": {"code": kind, "message": "filtered"}}, status=400)

    async with served(filtering) as url:
        assert isinstance(await room.fate(base_url=url), AssistantRefused)
        assert calls == 2


@pytest.mark.parametrize(("reason", "partial"), [
    ("stop", False), ("eos", False), (None, False), ("tool_calls", True), ("function_call", True),
])  # fmt: skip
async def test_reasons_to_finish_say_whether_it_is_whole(room: Room, reason: str | None, partial: bool) -> None:
    """One call; of a reason that we do not know the best is thought."""
    answer = await room.fate_of(chunks(choice("hello there"), choice(finished=reason)))
    assert isinstance(answer, Answer) and (answer.partial, room.served) == (partial, 1)


@pytest.mark.parametrize("body", [
    chunks(choice("hel"), choice(finished="content_filter")),
    chunks(choice(refusal="I cannot help with that."), choice(finished="stop")),
    chunks(choice(finished="length")),
])  # fmt: skip
async def test_a_refusal_is_final(room: Room, body: bytes) -> None:
    """A filter, words of refusal, and thinking that used up all the tokens there are."""
    assert isinstance(await room.fate_of(body), AssistantRefused)
    assert room.served == 1


@pytest.mark.parametrize(("error", "tries"), [
    ({"error": {"code": 502, "message": "your question"}, **choice("", "error")}, TRIES),  # OpenRouter
    ({"error": {"code": 429, "message": "your question"}}, TRIES),
    ({"error": {"code": "server_error", "type": None}}, TRIES),
    ({"error": "your question"}, TRIES),  # Ollama
    ({"error": {}}, TRIES),
    (choice("", "error"), TRIES),
    ({"object": "error", "message": "your question", "type": "InternalServerError", "code": 500}, TRIES),  # vLLM
    ({"object": "error", "message": "your question", "code": 400}, 1),
    ({"error": {"code": 402, "message": "your question"}}, 1),
    ({"error": {"code": "403"}}, 1),
    ({"error": {"type": "invalid_request_error", "code": None}}, 1),
    ({"error": {"type": "insufficient_quota"}}, 1),
    ({"error": {"code": [], "type": {"a": 1}}}, TRIES),
])  # fmt: skip
async def test_errors_in_mid_stream_are_told_apart(
    room: Room, without_pauses: None, error: dict[str, object], tries: int
) -> None:
    """By kind or by the status in `code`; as OpenAI, OpenRouter, vLLM and Ollama write them."""
    fate = await room.fate_of(chunks(choice("hello"), error))
    assert isinstance(fate, AssistantRefused if tries == 1 else AssistantBusy) and room.served == tries
    assert "question" not in str(fate)


@pytest.mark.parametrize(("status", "error", "tries"), [
    (429, {"type": "insufficient_quota", "code": "insufficient_quota"}, 1),
    (429, {"type": "requests", "code": "rate_limit_exceeded"}, TRIES),
    (200, {"code": 502, "message": "x"}, TRIES),  # OpenRouter, when it streams nothing
    (200, {"code": 402, "message": "x"}, 1),
    (200, "model is loading", TRIES),
    (503, {"message": "x"}, TRIES),
    (404, {"message": "model not found"}, 1),
])  # fmt: skip
async def test_errors_without_a_stream_are_told_apart(
    room: Room, without_pauses: None, status: int, error: object, tries: int
) -> None:
    """No money left comes as 429, and an error of the model's as 200."""
    body = msgspec.json.encode({"error": error})
    fate = await room.fate_of(body, status=status, content_type="application/json")
    assert isinstance(fate, AssistantRefused if tries == 1 else AssistantBusy) and room.served == tries


# --- what servers take ---


async def test_what_a_server_does_not_take_is_learnt_once(room: Room) -> None:
    """`max_completion_tokens` for `max_tokens`, no `stream_options`; the second question is asked right at once."""
    bodies: list[dict[str, object]] = []

    async def particular(request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=dict)
        bodies.append(body)
        if "max_tokens" in body:
            what, status = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", 400
        elif "stream_options" in body:
            what, status = "body.stream_options: Extra inputs are not permitted", 422
        else:
            return web.Response(body=chunks(choice("hello")), content_type="text/event-stream")
        return web.json_response({"error": {"message": what, "type": "invalid_request_error"}}, status=status)

    async with served(particular) as url:
        for calls in (3, 4):
            assert (await room.ask("question", base_url=url, max_tokens=7)).text == "hello"
            assert len(bodies) == calls
        assert (bodies[-1]["max_completion_tokens"], "stream_options" in bodies[-1]) == (7, False)
        await room.ask("question", base_url=url, model="another")
        assert len(bodies) == 7


async def test_what_a_refusal_quotes_is_nothing_learnt(room: Room) -> None:
    """A 422 that quotes the question, as FastAPI's do: one person's words change nothing for those who ask after them."""

    async def quoting(request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=dict)
        asked = body["messages"][-1]["content"]
        if "max_tokens" in body and asked == "question":
            return web.Response(body=chunks(choice("hello")), content_type="text/event-stream")
        return web.json_response({"detail": [{"type": "missing", "loc": ["body"], "input": body}]}, status=422)

    async with served(quoting) as url:
        fate = await room.fate("what is max_completion_tokens?", base_url=url)
        assert isinstance(fate, AssistantRefused)
        assert (await room.ask("question", base_url=url)).text == "hello"


async def test_a_server_that_takes_nothing_is_not_asked_for_ever(room: Room) -> None:
    """Each change is tried once; then its 400 is final."""
    body = b'{"error":{"message":"max_completion_tokens and stream_options and max_tokens"}}'
    fate = await room.fate_of(body, status=400, content_type="application/json")
    assert isinstance(fate, AssistantRefused) and room.served == 3


@pytest.mark.parametrize(("reason", "advice"), [("length", True), ("tool_calls", False), ("function_call", False)])
async def test_only_its_limit_is_taken_for_its_limit(room: Room, reason: str, advice: bool) -> None:
    """Who stops before the first word for another reason is not said to have too few tokens."""
    end = room.wire.end.replace(b'"stop"', b'"%s"' % reason.encode())
    fate = await room.fate_of(room.wire.begin + end)
    assert isinstance(fate, AssistantRefused) and reason in str(fate) and ("max_tokens" in str(fate)) == advice
