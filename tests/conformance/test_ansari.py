"""What is peculiar to Ansari's backend: it keeps the threads, its `process` may not be repeated, its streams have no end mark.

Whatever breaks where: the person's turn stands in their thread once, the answer is whole, or said to be partial, or none.
"""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx
import msgspec
import pytest
import stamina
from aiohttp import web

from app import http
from app.assistants import Answer, Asking, Image, Line, Question, assistant
from app.assistants.parts import LONGEST
from app.configuration import Assistant as Settings
from app.errors import AssistantBusy, AssistantError, AssistantRefused, DatabaseUnavailable, NeverLeft
from app.sandbox.assistant_calls import Pace
from app.sandbox.faults import Fault
from app.sandbox.scripts import parts
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from app.vault import Secret
from tests.asking import served

pytestmark = pytest.mark.anyio

API_KEY = "whatsapp-service-key-not-to-be-seen"
PERSON = "15550002222"
QUESTION = "Where may I read about patience?"
ANSWER = f"You said: {QUESTION}"


class Kept(dict[str, Any]):
    """`app.assistants.Notes` without a database."""

    async def keep(self, name: str, value: Any, *, lasting: bool = False) -> None:
        assert name not in self, "a name is kept once"
        self[name] = msgspec.json.decode(msgspec.json.encode(value))


class Killed(Exception):
    """The worker died here."""


class Room:
    """Workers that ask a backend for one person; all of them have the turn's notes."""

    def __init__(self, sandbox: Sandbox, client: httpx.AsyncClient) -> None:
        self.sandbox, self.client = sandbox, client
        self.notes: Kept = Kept()
        self.last: Any = None
        self.paths: list[str] = []
        self.settings = Settings(
            provider="ansari", base_url=sandbox.ansari_url, api_key=Secret(API_KEY), deadline_seconds=8.0
        )
        client.event_hooks = {"request": [self._see]}

    async def _see(self, request: httpx.Request) -> None:
        self.paths.append(request.url.path.removeprefix("/ansari/whatsapp/v2/"))

    def fails(
        self, *kinds: str | Fault, face: Literal["ansari", "threads"] = "ansari", only: str | None = None
    ) -> None:
        self.sandbox.faults.queue(face, kinds, only=only)

    async def ask(
        self,
        *lines: str | Line,
        person: str = PERSON,
        asking: Asking | None = None,
        **changed: Any,
    ) -> Answer:
        """Ask as a worker that has only the turn's notes would; a plain text is a person's line."""
        asked = tuple(line if isinstance(line, Line) else Line("user", line) for line in lines or (QUESTION,))
        settings = msgspec.structs.replace(self.settings, **changed)
        return await assistant("ansari").ask(
            self.client,
            settings,
            Question(lines=asked, person=person, last=self.last),
            deadline=time.monotonic() + settings.deadline_seconds,
            notes=self.notes,
            asking=asking,
        )

    async def fate(self, *lines: str | Line, **changed: Any) -> AssistantError | Answer:
        try:
            return await self.ask(*lines, **changed)
        except AssistantError as error:
            return error

    def settle(self, *, gap: bool = False) -> None:
        """The turn has ended; of the next nothing is noted. `gap`: it begins another session."""
        self.last = None if gap else next(iter(self.notes.values()), self.last)
        self.notes = Kept()

    async def next_turn(self, *lines: str | Line, **changed: Any) -> Answer:
        """Likewise, of the next turn of the session."""
        self.settle()
        return await self.ask(*lines, **changed)

    @property
    def calls(self) -> int:
        """How often the backend was asked to process something."""
        return self.sandbox.assistant.count

    @property
    def threads(self) -> list[list[Any]]:
        """What was said to each of the backend's threads."""
        threads = self.sandbox.threads.threads.values()
        return [[row.content for row in each.rows if row.role == "user"] for each in threads]

    @property
    def asked(self) -> list[str]:
        """What stands in the person's threads as said by them."""
        return self.sandbox.threads.said(PERSON)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with running(port=0) as sandbox, http.client(total=600.0) as client:
        yield Room(sandbox, client)


@asynccontextmanager
async def backend(pieces: Sequence[bytes] | AsyncIterator[bytes]) -> AsyncIterator[str]:
    """A backend whose thread holds what it has said, as its database would; its URL."""
    rows: list[dict[str, str]] = []

    async def say(request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/whatsapp/v2/")
        if path in ("threads/last", "threads"):
            return web.json_response({"thread_id": "t"})
        if path.startswith("threads/"):
            return web.json_response({"messages": rows})
        rows.append({"role": "user", "content": msgspec.json.decode(await request.read())["message"]})
        response = web.StreamResponse()
        await response.prepare(request)
        said = b""
        if isinstance(pieces, Sequence):
            for piece in pieces:
                await response.write(piece)
                await asyncio.sleep(0.01)
                said += piece
        else:
            async for piece in pieces:
                await response.write(piece)
        rows.append({"role": "assistant", "content": said.decode("utf-8", "replace")})
        return response

    async with served(say) as url:
        yield url


@pytest.fixture
def without_pauses() -> Iterator[None]:
    """Tries follow each other at once."""
    with stamina.set_testing(True, attempts=4, cap=True):
        yield


# --- people and threads ---


async def test_a_person_is_registered_once_as_a_guest(room: Room) -> None:
    """Who is not known gets an account and a thread, named after the question; afterwards neither is asked for."""
    answer = await room.ask("one two three four five six seven")
    assert answer == Answer(
        text="You said: one two three four five six seven", model="ansari", input_tokens=0, output_tokens=0, stopped=""
    )
    new = ["threads/last", "users/exists", "users/register", "threads", "messages/process"]
    assert [path for path in room.paths if not path.endswith("/history")] == new
    assert room.sandbox.threads.people == {PERSON: "en"}
    (thread,) = room.sandbox.threads.threads.values()
    assert (thread.person, thread.title) == (PERSON, "one two three four five six")
    room.paths.clear()
    await room.next_turn("and more")
    assert [path for path in room.paths if not path.endswith("/history")] == ["messages/process"]
    assert room.sandbox.threads.registered == 1


async def test_who_writes_arabic_is_registered_so(room: Room) -> None:
    """The language is a hint by the letters of the first question."""
    await room.ask("ما هي أركان الإسلام؟")
    assert room.sandbox.threads.people == {PERSON: "ar"}


async def test_a_session_is_a_thread(room: Room) -> None:
    """Turns of one session go on in its thread; a new one begins another."""
    await room.ask("one")
    await room.next_turn("two")
    room.settle(gap=True)
    await room.ask("three")
    await room.next_turn("four")
    assert room.threads == [["one", "two"], ["three", "four"]]


@pytest.mark.parametrize("used", [True, False])
async def test_a_thread_of_another_conversation_is_not_gone_on_in(room: Room, used: bool) -> None:
    """The account is the number's: what it wrote to last may be another tenant's, begun a moment ago perhaps."""
    await room.ask("one")
    others = room.sandbox.threads.begin(PERSON, "another tenant's")
    if used:
        room.sandbox.threads.add(others, "user", "a secret")
        room.sandbox.threads.add(others, "assistant", "kept")
    before = list(others.rows)
    await room.next_turn("two")
    room.settle(gap=True)
    await room.ask("three")
    assert others.rows == before
    assert [each for each in room.threads if each not in ([], ["a secret"])] == [["one", "two"], ["three"]]


@pytest.mark.parametrize(("times", "threads"), [(1, 1), (2, 2)])
async def test_a_thread_that_is_gone_is_replaced(room: Room, times: int, threads: int) -> None:
    """The backend says 404 of its own trouble, too: only at the second one the turn begins another thread."""
    await room.ask("before")
    room.fails(*["http_404"] * times, face="threads", only="threads/history")
    assert (await room.next_turn()).text == ANSWER
    assert len(room.sandbox.threads.threads) == threads


@pytest.mark.parametrize(("gap", "error"), [(True, None), (False, AssistantBusy)])
async def test_a_session_before_cannot_keep_the_next_from_beginning(
    room: Room, without_pauses: None, gap: bool, error: type[Exception] | None
) -> None:
    """A thread that cannot be read is in the way only of turns that would go on in it."""
    await room.ask("before")
    room.fails(*["garbage"] * 4, "ok", face="threads", only="threads/history")
    room.settle(gap=gap)
    fate = await room.fate(deadline_seconds=2.0)
    assert isinstance(fate, error or Answer)
    assert room.asked == ["before", *([QUESTION] if gap else [])]


async def test_several_messages_become_one(room: Room) -> None:
    """What was said since the last answer, with an empty line between; pictures are not seen."""
    before = [Line("user", "before"), Line("assistant", "yes")]
    picture = Line("user", "", images=(Image(media_type="image/png", data=b"png"),))
    await room.ask(*before, "one", " two ", picture)
    assert room.asked == ["one\n\ntwo"]
    assert msgspec.json.decode(room.sandbox.assistant.calls[0].body)["message"] == "one\n\ntwo"


@pytest.mark.parametrize(
    ("lines", "person"), [(["hello"], ""), ([" \n"], PERSON), (["hello", Line("assistant", "yes")], PERSON)]
)
async def test_nobody_and_nothing_is_not_asked_for(room: Room, lines: list[str | Line], person: str) -> None:
    """Without a person, or without their words, there is nothing to ask: refused at once."""
    assert isinstance(await room.fate(*lines, person=person), AssistantRefused)
    assert room.paths == []


async def test_many_people_ask_at_once_and_each_gets_their_own(room: Room) -> None:
    """Fifty people over one client: as many accounts, threads and answers."""

    async def one(n: int) -> str:
        question = Question(lines=(Line("user", f"question {n}"),), person=f"1555000{n:04}")
        deadline = time.monotonic() + 10
        answer = await assistant("ansari").ask(room.client, room.settings, question, deadline=deadline, notes=Kept())
        return answer.text

    assert await asyncio.gather(*map(one, range(50))) == [f"You said: question {n}" for n in range(50)]
    assert len(room.sandbox.threads.threads) == len(room.sandbox.threads.people) == 50


# --- answers ---


@pytest.mark.parametrize("characters", [1, 7, 4000])
async def test_an_answer_is_the_same_however_it_is_cut_into_pieces(room: Room, characters: int) -> None:
    """Pieces of one character or of thousands, in any script."""
    room.sandbox.assistant.pace = Pace(between=0.0001, characters=characters)
    for token in ("en1", "ar2", "mo3"):
        n = 3 if characters == 4000 else 1
        assert (await room.next_turn(f"tok#{token}/{n}")).text == "\n\n".join(parts(token, n))


async def test_citations_stay_as_the_backend_wrote_them(room: Room) -> None:
    """Their list at the end is text, with the backend's own English; silence before it is waited through."""
    room.fails(Fault(kind="silence", seconds=0.3))
    answer = await room.ask("cite#2")
    text, _, listed = answer.text.partition("\n\n**Citations**:\n")
    assert text == "Here is what the sources say: point 1 [1] ; point 2 [2] ."
    assert "[1] Sahih al-Bukhari 1:\n Arabic: إِنَّمَا" in listed and "\n\n English: [translated] " in listed
    assert answer.citations == () and not answer.partial


async def test_an_answer_in_the_thread_is_the_same(room: Room) -> None:
    """Taken from the thread, it has the words of the stream; tools' calls and results are no part of it."""
    heard = await room.ask("cite#2")
    found = await room.ask("cite#2")
    assert "".join(found.text.split()) == "".join(heard.text.split()) and not found.partial
    assert room.calls == 1


@pytest.mark.parametrize(
    ("pieces", "text", "partial"),
    [
        ([b"a \xf0\x9f", b"\x98\x80 b"], "a \U0001f600 b", False),
        ([b"a\0b"], "ab", False),
        ([b"a \xff b"], "a \ufffd b", False),
        ([b"a \xed\xa0\x80 b"], "a \ufffd\ufffd\ufffd b", False),
        ([b"a b", b" \xd8"], "a b \ufffd", False),
        ([b"\0", b"\0"], None, False),
        ([b" \n", b"\t"], None, False),
    ],
)
async def test_whatever_bytes_come_an_answer_can_be_stored(
    room: Room, without_pauses: None, pieces: list[bytes], text: str | None, partial: bool
) -> None:
    """Characters in two pieces are one, what is none is U+FFFD, also at the end; None: nothing was said."""
    async with backend(pieces) as url:
        fate = await room.fate(base_url=url, deadline_seconds=2.0)
    if text is None:
        assert isinstance(fate, AssistantBusy)
    else:
        assert isinstance(fate, Answer) and (fate.text, fate.partial) == (text, partial)


@pytest.mark.parametrize("size", [50, 20_000])
async def test_an_answer_of_megabytes_is_cut_and_says_so(room: Room, size: int) -> None:
    """At 100,000 characters we read no further, however small its pieces; what it costs grows with them alone."""
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(6_000_000 // size):
            taken += size
            yield b"word " * (size // 5)

    began = time.process_time()
    async with backend(endless()) as url:
        answer = await room.ask(base_url=url)
    assert (answer.partial, answer.long, answer.stopped) == (True, True, "too_long")
    assert LONGEST - 10 < len(answer.text) <= LONGEST and answer.text.endswith("word")
    assert taken < 5_500_000 and time.process_time() - began < 4.0


# --- once, wherever it breaks ---


@pytest.mark.parametrize("kind", ["rst", "html", "http_400", "http_404", "http_429", "http_500"])
async def test_what_was_not_stored_is_asked_again(room: Room, kind: str) -> None:
    """Nothing of the first try is in the thread: the second one's answer counts, and the turn stands there once."""
    room.fails(kind)
    answer = await room.ask()
    assert (answer.text, answer.partial, room.calls, room.asked) == (ANSWER, False, 2, [QUESTION])


@pytest.mark.parametrize(
    "kind", ["queued", "late", "http_502", "http_524", "cut_late", "truncated_late", "cut_after", "empty"]
)
async def test_what_was_stored_is_taken_from_the_thread(room: Room, kind: str) -> None:
    """The backend had the turn, whatever we heard of it: its answer is waited for there, and not asked for again."""
    room.fails(kind)
    answer = await room.ask()
    assert (answer.text, answer.partial, room.calls, room.asked) == (ANSWER, False, 1, [QUESTION])


@pytest.mark.parametrize("kind", ["cut", "truncated", "apology", "stall"])
async def test_what_cannot_be_completed_is_said_to_be_partial(room: Room, kind: str) -> None:
    """Half an answer whose rest never comes is handed on as such, in time; a clean end does not make it whole."""
    room.fails(kind)
    began = time.monotonic()
    answer = await room.ask(deadline_seconds=1.5)
    assert (answer.text, answer.partial) == (ANSWER[: len(ANSWER) // 2], True)
    assert (room.calls, room.asked) == (1, [QUESTION])
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("kind", ["killed", "no_answer"])
async def test_a_turn_that_is_never_answered_is_not_asked_again(room: Room, kind: str) -> None:
    """It is in the thread: it is waited for until the deadline, also by the next worker, and then given up."""
    room.fails(kind)
    for _ in range(2):
        began = time.monotonic()
        assert isinstance(await room.fate(deadline_seconds=1.0), AssistantBusy)
        assert 0.8 < time.monotonic() - began < 1.3
    assert (room.calls, room.asked) == (1, [QUESTION])


async def test_the_backends_apology_is_no_answer(room: Room) -> None:
    """It failed and says so in its thread, in English: people get their tenant's words for that, or another's answer."""
    room.fails("apology_only")
    fate = await room.fate()
    assert isinstance(fate, AssistantRefused) and "its log" in str(fate)
    assert (room.calls, room.asked) == (1, [QUESTION])


async def test_a_request_that_never_left_is_repeated_without_a_look(room: Room) -> None:
    """Nothing can be in the thread of it."""

    async def refuse(request: httpx.Request) -> None:
        if request.url.path.endswith("/process"):
            room.client.event_hooks = {"request": [room._see]}
            raise NeverLeft("nobody there")

    room.client.event_hooks = {"request": [room._see, refuse]}
    assert (await room.ask()).text == ANSWER
    assert room.paths[4:6] == ["messages/process"] * 2 and len(room.paths) == 7
    assert (room.calls, room.asked) == (1, [QUESTION])


@pytest.mark.parametrize("moment", ["request", "response"])
@pytest.mark.parametrize("step", range(6), ids=["last", "exists", "register", "threads", "process", "history"])
async def test_a_worker_that_dies_between_two_steps_is_followed_by_one_that_goes_on(
    room: Room, step: int, moment: str
) -> None:
    """Killed before or after any call: the next one, with the notes, asks once in all. It may leave an empty thread."""

    async def die(_: httpx.Request | httpx.Response) -> None:
        if len(room.paths) == step + 1:
            raise Killed

    hooks: dict[str, list[Any]] = {"request": [room._see], "response": []}
    hooks[moment].append(die)
    room.client.event_hooks = hooks
    room.sandbox.assistant.pace = Pace(first_token=0.3)
    with pytest.raises(Killed):
        await room.ask()
    room.client.event_hooks, room.sandbox.assistant.pace = {}, Pace()
    if (step, moment) == (4, "response"):  # the backend stops where its client is gone; here it goes on
        (thread,) = room.sandbox.threads.threads.values()
        room.sandbox.threads.later(0.4, lambda: room.sandbox.threads.add(thread, "assistant", ANSWER))
    answer = await room.ask()
    assert (answer.text, answer.partial) == (ANSWER, False)
    assert (room.calls, room.asked) == (1, [QUESTION])
    assert (room.sandbox.threads.registered, [each for each in room.threads if each]) == (1, [[QUESTION]])


@pytest.mark.parametrize("commits", [False, True])
async def test_no_note_no_question(room: Room, commits: bool) -> None:
    """Where nobody knows whether the thread's length is kept, nothing is asked yet; then by what was kept."""

    class Dying(Kept):
        async def keep(self, name: str, value: Any, *, lasting: bool = False) -> None:
            if commits:
                await super().keep(name, value, lasting=lasting)
            raise DatabaseUnavailable("memo")

    room.notes = Dying()
    with pytest.raises(DatabaseUnavailable):
        await room.ask()
    assert room.calls == 0
    room.notes = Kept(room.notes)
    assert (await room.ask()).text == ANSWER
    assert (room.calls, room.asked) == (1, [QUESTION])


async def test_a_worker_that_dies_in_mid_stream_is_followed_by_one_that_waits(room: Room) -> None:
    """The answer that the backend finishes meanwhile is the next worker's."""
    room.fails("stall")
    asking = asyncio.create_task(room.ask())
    await room.sandbox.assistant.wait(1)
    while not room.asked:
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    (thread,) = room.sandbox.threads.threads.values()
    room.sandbox.threads.later(0.4, lambda: room.sandbox.threads.add(thread, "assistant", "finished meanwhile"))
    assert (await room.ask()).text == "finished meanwhile"
    assert (room.calls, room.asked) == (1, [QUESTION])


async def test_a_tools_result_is_no_answer(room: Room) -> None:
    """The backend writes on after it, so whoever waits goes on waiting."""
    room.fails("killed")
    assert isinstance(await room.fate(deadline_seconds=0.5), AssistantBusy)
    (thread,), threads = room.sandbox.threads.threads.values(), room.sandbox.threads
    threads.add(thread, "assistant", "Let me look that up.")
    threads.add(thread, "assistant", [{"type": "tool_use", "id": "t", "name": "search_quran", "input": {}}])
    threads.add(
        thread, "user", [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}]}]
    )
    threads.later(0.6, lambda: threads.add(thread, "assistant", [{"type": "text", "text": "Here it is."}]))
    assert (await room.ask()).text == "Let me look that up.\n\nHere it is."


async def test_a_late_answer_to_the_turn_before_is_not_this_turns(room: Room) -> None:
    """It lands in the thread after our look at its length; this turn is not there yet, so it is asked, and answered."""
    room.fails("killed")
    assert isinstance(await room.fate("the turn before", deadline_seconds=0.5), AssistantBusy)
    (thread,) = room.sandbox.threads.threads.values()
    room.settle()
    room.fails("rst")
    room.sandbox.threads.later(0.1, lambda: room.sandbox.threads.add(thread, "assistant", "too late"))
    assert (await room.ask()).text == ANSWER
    assert room.asked == ["the turn before", QUESTION]


async def test_a_turn_that_repeats_the_one_before_is_asked(room: Room) -> None:
    """The same words in a new turn are a new question, even if the first was never answered."""
    room.fails("killed")
    assert isinstance(await room.fate(deadline_seconds=0.5), AssistantBusy)
    assert (await room.next_turn()).text == ANSWER
    assert (room.calls, room.asked) == (2, [QUESTION, QUESTION])


async def test_an_answer_to_the_same_words_before_is_not_this_turns(room: Room) -> None:
    """Only what the thread holds beyond the noted length is looked at."""
    await room.ask()
    room.settle()
    room.fails("rst")
    assert (await room.ask()).text == ANSWER
    assert (room.calls, room.asked) == (3, [QUESTION, QUESTION])


async def test_another_turn_that_arrives_late_is_not_this_one(room: Room) -> None:
    """A request of before, held up on its way, with its answer: other words, so this turn is still asked."""
    await room.ask("before")
    (thread,), threads = room.sandbox.threads.threads.values(), room.sandbox.threads
    room.settle()
    room.fails("rst")

    def arrive() -> None:
        threads.add(thread, "user", "held up")
        threads.add(thread, "assistant", "too late")

    threads.later(0.1, arrive)
    assert (await room.ask()).text == ANSWER
    assert room.asked == ["before", "held up", QUESTION]


async def test_a_request_that_arrives_while_we_look_is_found(room: Room) -> None:
    """The thread is looked at for a while before anything is asked again."""
    room.fails(Fault(kind="queued", seconds=1.2))
    assert (await room.ask()).text == ANSWER
    assert (room.calls, room.asked) == (1, [QUESTION])


async def test_a_refused_try_does_not_end_the_doubt_about_the_one_before(room: Room) -> None:
    """In doubt, then turned away by a 429: the first may have arrived meanwhile, so the thread is looked at again."""
    room.fails(Fault(kind="queued", seconds=2.6), "http_429")
    assert (await room.ask()).text == ANSWER
    assert (room.calls, room.asked) == (2, [QUESTION])


async def test_each_backend_has_notes_of_its_own(room: Room) -> None:
    """A fallback that is an Ansari too does not look for the turn in the first one's threads."""
    room.fails("killed")
    assert isinstance(await room.fate(deadline_seconds=0.5), AssistantBusy)
    async with running(port=0) as other:
        assert (await room.ask(base_url=other.ansari_url)).text == ANSWER
        assert other.threads.said(PERSON) == [QUESTION]
    assert len(room.notes) == 2


# --- refusals ---


@pytest.mark.parametrize("face", ["threads", "ansari"])
@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("http_401", AssistantRefused, "WHATSAPP_SERVICE_API_KEY"),
        ("http_422", AssistantRefused, "version"),
        ("http_400", AssistantBusy, "HTTP 400"),
        ("http_404", AssistantBusy, "does not know the person or the thread"),
        ("http_429", AssistantBusy, "HTTP 429"),
        ("http_500", AssistantBusy, "its log"),
        ("html", AssistantBusy, ""),
        ("rst", AssistantBusy, ""),
    ],
)
async def test_a_refusal_says_what_to_do(
    room: Room,
    without_pauses: None,
    face: Literal["threads", "ansari"],
    kind: str,
    error: type[AssistantError],
    says: str,
) -> None:
    """Final ones after one call, passing ones after four tries, in words that lead on; never with whose turn it is or its words."""
    room.sandbox.threads.register(PERSON, "en")
    room.fails(*[kind] * 20, face=face)
    fate = await room.fate(deadline_seconds=30.0)
    assert isinstance(fate, error) and says in str(fate)
    tries = len([path for path in room.paths if path == ("threads/last" if face == "threads" else "messages/process")])
    if error is AssistantRefused:
        assert tries == 1
    elif kind != "http_404":
        assert tries == 4
    shown = "".join(traceback.format_exception(fate)) + repr(fate)
    assert API_KEY not in shown and PERSON not in shown and QUESTION not in shown


async def test_a_wrong_key_is_refused(room: Room) -> None:
    """The key travels in X-Whatsapp-Api-Key."""
    room.sandbox.threads.key = "another"
    assert isinstance(await room.fate(), AssistantRefused)
    room.sandbox.threads.key = API_KEY
    assert (await room.ask()).text == ANSWER


async def test_another_service_is_refused(room: Room) -> None:
    """A base_url without /whatsapp/v2 behind it is a mistake of configuration."""
    fate = await room.fate(base_url=room.sandbox.url)
    assert isinstance(fate, AssistantRefused) and "base_url" in str(fate)


@pytest.mark.parametrize("path", ["threads/last", "users/exists", "users/register", "threads"])
@pytest.mark.parametrize("kind", ["garbage", "html"])
async def test_nonsense_is_busy(room: Room, without_pauses: None, path: str, kind: str) -> None:
    """Another shape, or a page, in place of any answer; what was not asked may be asked later."""
    room.fails(*[kind] * 4, face="threads", only=path)
    assert isinstance(await room.fate(), AssistantBusy)
    assert room.calls == 0
    assert (await room.ask()).text == ANSWER


async def test_an_answer_whose_thread_cannot_be_read_is_partial(room: Room) -> None:
    """It ended by itself, and nobody says that it was all of it."""
    await room.ask("before")
    room.fails("ok", *["garbage"] * 50, face="threads", only="threads/history")
    answer = await room.next_turn(deadline_seconds=1.0)
    assert (answer.text, answer.partial) == (ANSWER, True)


async def test_nobody_at_home_is_busy(room: Room, without_pauses: None) -> None:
    """A connection that is refused may be taken later."""
    assert isinstance(await room.fate(base_url="http://127.0.0.1:9"), AssistantBusy)
    assert room.notes == {}


# --- time, and under watch ---


@pytest.mark.parametrize("path", ["threads/last", "users/exists", "users/register", "threads", "threads/history"])
async def test_the_deadline_holds_whatever_stalls(room: Room, path: str) -> None:
    """Any call that is not answered ends with the deadline."""
    room.fails("no_answer", face="threads", only=path)
    began = time.monotonic()
    fate = await room.fate(deadline_seconds=0.6)
    if path == "threads/history":  # the answer had come, and nobody says whether that was all
        assert isinstance(fate, Answer) and fate.partial
    else:
        assert isinstance(fate, AssistantBusy)
    assert 0.4 < time.monotonic() - began < 1.1


class Watched:
    """Stands for a breaker: notes how each call ended and when its first words came."""

    def __init__(self) -> None:
        self.ends: list[type[BaseException] | None] = []
        self.words = 0

    def began(self) -> None:
        self.words += 1

    @asynccontextmanager
    async def asking(self) -> AsyncIterator["Watched"]:
        try:
            yield self
        except BaseException as error:
            self.ends.append(AssistantBusy if isinstance(error, AssistantBusy) else type(error))
            raise
        self.ends.append(None)


@pytest.mark.parametrize(
    ("kind", "ends", "words"),
    [
        ("ok", [None], 1),
        ("rst", [AssistantBusy, None], 1),
        ("cut_late", [None], 1),
        ("cut", [AssistantBusy], 1),
        ("no_answer", [AssistantBusy], 0),
        ("apology_only", [AssistantBusy, AssistantRefused], 0),
    ],
)
async def test_each_try_is_watched_by_itself(
    room: Room, kind: str, ends: list[type[Exception] | None], words: int
) -> None:
    """A broken answer that the thread completes is a good call; one that is partial has failed, as one without an end."""
    room.fails(kind)
    watched = Watched()
    await room.fate(asking=watched.asking, deadline_seconds=3.0)
    assert (list(dict.fromkeys(watched.ends)), watched.words) == (ends, words)


# --- the sandbox's face ---


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({}, "users/exists?phone_num=1", 422),
        ({"X-Whatsapp-Api-Key": "wrong"}, "users/exists?phone_num=1", 401),
        ({"X-Whatsapp-Api-Key": API_KEY}, "users/exists", 422),
        ({"X-Whatsapp-Api-Key": API_KEY}, "threads/last?phone_num=1", 404),
        ({"X-Whatsapp-Api-Key": API_KEY}, "threads/abc/history?phone_num=1", 404),
    ],
)
async def test_the_face_refuses_as_the_backend_does(
    room: Room, headers: dict[str, str], path: str, status: int
) -> None:
    """FastAPI's 422 and the backend's 401 and 404, each with `detail`."""
    room.sandbox.threads.key = API_KEY
    answer = await room.client.get(f"{room.sandbox.ansari_url}/whatsapp/v2/{path}", headers=headers)
    assert answer.status_code == status and "detail" in answer.json()
