"""What every assistant must do: one whole answer within the deadline, or an error that says whether to try again.

Against the sandbox's face for it. A new assistant joins by a line in `FACES`.
"""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
import stamina
from aiohttp import web

from app import http
from app.assistants import Answer, Asking, Line, Question, assistant
from app.configuration import Assistant as Settings
from app.errors import AssistantBusy, AssistantError, AssistantRefused
from app.sandbox.assistant_calls import Pace
from app.sandbox.faults import Fault
from app.sandbox.scripts import parts
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from app.vault import Secret

pytestmark = pytest.mark.anyio

FACES = ["anthropic"]
API_KEY = "sk-ant-api03-not-to-be-seen"
TRIES = 4
PERSON = "15550002222"


class Kept(dict[str, Any]):
    """`app.assistants.Notes` without a database."""

    async def keep(self, name: str, value: Any) -> None:
        self[name] = msgspec.json.decode(msgspec.json.encode(value))


class Room:
    """An assistant, its settings, and what it was asked."""

    def __init__(self, provider: str, sandbox: Sandbox, client: httpx.AsyncClient) -> None:
        self.assistant, self.sandbox, self.client = assistant(provider), sandbox, client
        self.notes = Kept()
        self.settings = Settings(
            provider=provider,  # type: ignore[arg-type]
            base_url=sandbox.assistant_url,
            api_key=Secret(API_KEY),
            model="a-model",
            system="You are the clinic's assistant.",
            deadline_seconds=5.0,
        )

    def fails(self, *kinds: str | Fault) -> None:
        self.sandbox.faults.queue("assistant", kinds)

    async def ask(self, *lines: str | Line, asking: Asking | None = None, **changed: Any) -> Answer:
        """Ask; a plain text is a person's line."""
        asked = [line if isinstance(line, Line) else Line("user", line) for line in lines or ("question",)]
        settings = msgspec.structs.replace(self.settings, **changed)
        deadline = time.monotonic() + settings.deadline_seconds
        question = Question(lines=tuple(asked), person=PERSON)
        return await self.assistant.ask(self.client, settings, question, deadline=deadline, notes=self.notes, asking=asking)

    async def fate(self, *lines: str | Line, **changed: Any) -> AssistantError | Answer:
        try:
            return await self.ask(*lines, **changed)
        except AssistantError as error:
            return error

    @property
    def calls(self) -> int:
        return self.sandbox.assistant.count

    @property
    def said(self) -> dict[str, Any]:
        """The last request, decoded."""
        return dict(msgspec.json.decode(self.sandbox.assistant.calls[-1].body))


@pytest.fixture(params=FACES)
async def room(request: pytest.FixtureRequest) -> AsyncIterator[Room]:
    async with running(port=0) as sandbox, http.client(total=600.0) as client:
        yield Room(request.param, sandbox, client)


@pytest.fixture
def without_pauses() -> Any:
    """Retries follow each other at once; there are as many as the assistant asks for."""
    with stamina.set_testing(True, attempts=TRIES, cap=True):
        yield


# --- answers ---


async def test_an_answer_comes_whole_with_what_it_cost(room: Room) -> None:
    """Text, model, tokens and the reason to stop, from one streamed call."""
    answer = await room.ask("Where are you?")
    assert answer.text == "You said: Where are you?"
    assert (answer.model, answer.stopped) == ("a-model", "end_turn")
    assert answer.input_tokens > 0 and answer.output_tokens > 0
    assert room.calls == 1 and room.sandbox.assistant.calls[0].stream


@pytest.mark.parametrize("characters", [1, 7, 4000])
async def test_an_answer_is_the_same_however_it_is_cut_into_events(room: Room, characters: int) -> None:
    """Deltas of one character or of thousands, in any script; in pieces that split UTF-8 and lines."""
    room.sandbox.assistant.pace = Pace(between=0.0001, characters=characters)
    for token in ("en1", "ar2", "mo3"):
        n = 3 if characters == 4000 else 1
        assert (await room.ask(f"tok#{token}/{n}")).text == "\n\n".join(parts(token, n))


async def test_citations_do_not_disturb_the_text(room: Room) -> None:
    """Blocks with citations between them read as one text."""
    answer = await room.ask("cite#2")
    assert answer.text == "Here is what the sources say: point 1; point 2."


async def test_an_answer_cut_by_its_own_limit_is_an_answer(room: Room) -> None:
    """At `max_tokens` half an answer is better than none, and says why it stopped."""
    room.fails("max_tokens")
    answer = await room.ask("Where are you?")
    assert answer.stopped == "max_tokens" and "You said: Where are you?".startswith(answer.text)


async def test_what_is_sent_is_what_the_tenant_set(room: Room) -> None:
    """Model, system prompt, limit, stream; neighbours of one role joined, a person first and last."""
    lines: list[str | Line] = [
        Line("assistant", "hello"),
        "one",
        "two",
        Line("assistant", "three"),
        Line("assistant", "four"),
        "five",
    ]
    await room.ask(*lines, max_tokens=77)
    said = room.said
    assert (said["model"], said["max_tokens"], said["stream"]) == ("a-model", 77, True)
    assert said["system"] == "You are the clinic's assistant."
    assert said["messages"] == [
        {"role": "user", "content": "one\n\ntwo"},
        {"role": "assistant", "content": "three\n\nfour"},
        {"role": "user", "content": "five"},
    ]
    await room.ask("six", system="")
    assert "system" not in room.said


async def test_many_ask_at_once_and_each_gets_its_own(room: Room) -> None:
    """A hundred questions over one client do not mix."""
    answers = await asyncio.gather(*(room.ask(f"question {n}") for n in range(100)))
    assert [answer.text for answer in answers] == [f"You said: question {n}" for n in range(100)]
    assert room.calls == 100


# --- what passes is tried again ---


@pytest.mark.parametrize(
    "kind", ["http_429", "http_529", "http_500", "rst", "error_event", "cut", "truncated", "empty"]
)
async def test_what_passes_is_asked_again(room: Room, without_pauses: None, kind: str) -> None:
    """Busy, broken off, cut short or empty: the next try's answer counts, and nothing of the first is in it."""
    room.fails(kind)
    assert (await room.ask("Where are you?")).text == "You said: Where are you?"
    assert room.calls == 2


@pytest.mark.parametrize(
    "kind", ["http_429", "http_529", "http_500", "rst", "error_event", "cut", "truncated", "empty"]
)
async def test_what_does_not_pass_ends_after_a_few_tries(room: Room, without_pauses: None, kind: str) -> None:
    """Four tries, then AssistantBusy; never half an answer."""
    room.fails(*[kind] * 10)
    assert isinstance(await room.fate(), AssistantBusy)
    assert room.calls == TRIES


async def test_it_waits_as_long_as_it_is_asked_to(room: Room) -> None:
    """Retry-After is kept where the deadline allows it."""
    room.fails(Fault(kind="http_429", seconds=1.0))
    began = time.monotonic()
    assert (await room.ask()).text
    assert 1.0 <= time.monotonic() - began < 2.0
    assert room.calls == 2


async def test_a_wait_beyond_the_deadline_is_not_begun(room: Room) -> None:
    """Asked to come back after the deadline, it says so at once."""
    room.fails(Fault(kind="http_529", seconds=60.0))
    began = time.monotonic()
    fate = await room.fate()
    assert isinstance(fate, AssistantBusy) and fate.retry_after == 60.0
    assert time.monotonic() - began < 1.0
    assert room.calls == 1


# --- what does not is not ---


@pytest.mark.parametrize("kind", ["http_401", "refusal"])
async def test_what_would_end_the_same_way_is_not_asked_again(room: Room, kind: str) -> None:
    """A wrong key, a refusal: one call."""
    room.fails(kind)
    assert isinstance(await room.fate(), AssistantRefused)
    assert room.calls == 1


async def test_a_question_that_it_cannot_take_is_refused(room: Room) -> None:
    """Their 400 is final."""
    assert isinstance(await room.fate("question", max_tokens=0), AssistantRefused)
    assert room.calls == 0


# --- time ---


@pytest.mark.parametrize("kind", ["stall", "no_answer", "slow"])
async def test_the_deadline_holds_whatever_stalls(room: Room, kind: str) -> None:
    """Half a stream, no answer, a slow first token: at the deadline it ends as busy."""
    room.fails(*[Fault(kind=kind, seconds=30.0)] * 4)  # type: ignore[arg-type]
    began = time.monotonic()
    assert isinstance(await room.fate(deadline_seconds=0.5), AssistantBusy)
    assert 0.4 < time.monotonic() - began < 1.0


async def test_a_stream_that_drips_for_ever_ends_at_the_deadline(room: Room) -> None:
    """Bytes that keep coming do not prolong it."""
    room.sandbox.assistant.pace = Pace(between=0.05, characters=1)
    began = time.monotonic()
    assert isinstance(await room.fate("tok#drip/1", deadline_seconds=0.5), AssistantBusy)
    assert 0.4 < time.monotonic() - began < 1.0


# --- nonsense ---

BEGIN = b'data: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":1,"output_tokens":1}}}\n\n'
HELLO = b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hello"}}\n\n'
END = b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\ndata: {"type":"message_stop"}\n\n'


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (BEGIN + b": a comment\n\ndata: {\"type\":\"ping\"}\n\n" + HELLO + END, "hello"),
        ((BEGIN + HELLO + END).replace(b"\n", b"\r\n"), "hello"),
        (BEGIN + b'data: {"type":"of_tomorrow","delta":{"type":"thinking_delta","thinking":"x"}}\n\n' + HELLO + END, "hello"),
        (BEGIN + b"data: {nonsense\n\n" + HELLO + END, None),
        (BEGIN + b"data: \xff\xfe\n\n" + END, None),
        (BEGIN + b"data: " + b"[" * 100_000 + b"\n\n" + END, None),
        (BEGIN + b"data: " + b"x" * 3_000_000, None),
        (BEGIN + b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":5}}\n\n' + END, None),
        (BEGIN + HELLO.replace(b"hello", b" \\n ") + END, None),
        (BEGIN + END, None),
        (b"<html>maintenance</html>", None),
        (b"", None),
    ],
)  # fmt: skip
async def test_a_stream_is_read_or_it_is_no_answer(
    room: Room, without_pauses: None, body: bytes, text: str | None
) -> None:
    """Comments, line ends and events of tomorrow are read over; nonsense is busy, never an exception of another kind."""

    async def say(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/{path:.*}", say)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fate = await room.fate(base_url=f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()
    if text is None:
        assert isinstance(fate, AssistantBusy)
    else:
        assert isinstance(fate, Answer) and fate.text == text


async def test_nobody_at_home_is_busy(room: Room, without_pauses: None) -> None:
    """A connection that is refused may be taken later."""
    assert isinstance(await room.fate(base_url="http://127.0.0.1:9"), AssistantBusy)


# --- under watch ---


class Watched:
    """Stands for a breaker: notes how each call ended and when its first words came; `shut`: it lets nobody through."""

    def __init__(self, *, shut: bool = False) -> None:
        self.shut = shut
        self.ends: list[type[BaseException] | None] = []
        self.words = 0

    def began(self) -> None:
        self.words += 1

    @asynccontextmanager
    async def asking(self) -> AsyncIterator["Watched"]:
        if self.shut:
            await asyncio.Event().wait()
        try:
            yield self
        except BaseException as error:
            self.ends.append(type(error))
            raise
        self.ends.append(None)


async def test_each_call_is_watched_by_itself(room: Room, without_pauses: None) -> None:
    """What failed, what was cut after its first words, and what came whole; one question, three calls."""
    room.fails("http_529", "cut")
    watched = Watched()
    answer = await room.ask("question", asking=watched.asking)
    assert answer.text and watched.ends == [AssistantBusy, AssistantBusy, None]
    assert watched.words == 2


@pytest.mark.parametrize("kind", ["no_answer", "stall"])
async def test_a_call_that_runs_into_the_deadline_has_failed(room: Room, kind: str) -> None:
    """It is no cancellation, which would say nothing of the provider."""
    room.fails(kind)
    watched = Watched()
    with pytest.raises(AssistantBusy):
        await room.ask("question", asking=watched.asking, deadline_seconds=0.5)
    assert watched.ends == [AssistantBusy]


async def test_a_wait_for_its_turn_counts_in_the_deadline(room: Room) -> None:
    """Whoever may not ask within it is told so as by a provider that is busy; nothing was asked."""
    began = time.monotonic()
    with pytest.raises(AssistantBusy, match=r"within 0\.3 s"):
        await room.ask("question", asking=Watched(shut=True).asking, deadline_seconds=0.3)
    assert 0.25 < time.monotonic() - began < 2.0 and room.calls == 0


def test_a_provider_that_is_not_built_yet_refuses() -> None:
    """Who has none gets the tenant's failure text at once, not after retries."""
    with pytest.raises(AssistantRefused):
        assistant("ansari")


@pytest.mark.parametrize("kind", ["http_401", "http_429", "rst", "cut", "error_event", "truncated", "stall"])
async def test_no_error_shows_the_key_or_what_was_asked(room: Room, without_pauses: None, kind: str) -> None:
    """Errors end in logs."""
    room.fails(*[kind] * TRIES)
    fate = await room.fate("a very private question", deadline_seconds=1.0)
    assert isinstance(fate, AssistantError)
    shown = "".join(traceback.format_exception(fate)) + repr(fate)
    assert API_KEY not in shown and "private question" not in shown
