"""What is peculiar to Ansari's backend: it keeps the threads, its `process` may not be repeated, its streams have no end mark.

Whatever breaks where: the person's turn stands in their thread once, the answer is whole, or said to be partial, or none.
What it must do as every other is in test_assistants.py.
"""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import httpx
import msgspec
import pytest
import stamina

from app import http
from app.assistants import Answer, Image, Line
from app.assistants.ansari_wire import listed
from app.assistants.parts import Cut
from app.errors import AssistantBusy, AssistantError, AssistantRefused, DatabaseUnavailable, NeverLeft
from app.sandbox.assistant_calls import Pace
from app.sandbox.faults import Fault
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from tests import asking
from tests.asking import API_KEY, PERSON, TRIES, Kept, Watched

pytestmark = pytest.mark.anyio

QUESTION = "Where may I read about patience?"
ANSWER = f"You said: {QUESTION}"


class Killed(Exception):
    """The worker died here."""


class Room(asking.Room):
    """Workers that ask a backend for one person; all of them have the turn's notes."""

    def __init__(self, sandbox: Sandbox, client: httpx.AsyncClient) -> None:
        super().__init__("ansari", sandbox, client)
        self.settings = msgspec.structs.replace(self.settings, deadline_seconds=8.0)
        self.paths: list[str] = []
        client.event_hooks = {"request": [self.see]}

    async def see(self, request: httpx.Request) -> None:
        self.paths.append(request.url.path.removeprefix("/ansari/whatsapp/v2/"))

    def threads_fail(self, *kinds: str, only: str | None = None) -> None:
        """The next calls other than `process` end so."""
        self.sandbox.faults.queue("threads", kinds, only=only)

    async def ask(self, *lines: str | Line, **more: Any) -> Answer:
        """Likewise; nothing said asks `QUESTION`."""
        return await super().ask(*lines or (QUESTION,), **more)

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


@pytest.fixture
def without_pauses() -> Iterator[None]:
    """Tries follow each other at once."""
    with stamina.set_testing(True, attempts=TRIES, cap=True):
        yield


# --- people and threads ---


async def test_a_person_is_registered_once_as_a_guest(room: Room) -> None:
    """Who is not known gets an account and a thread, named after the question; afterwards neither is asked for."""
    answer = await room.ask("one two three four five six seven", system="")
    assert answer == Answer(
        text="You said: one two three four five six seven",
        model="a-model",
        input_tokens=11,
        output_tokens=15,
        stopped="",
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
    room.threads_fail(*["http_404"] * times, only="threads/history")
    assert (await room.next_turn()).text == ANSWER
    assert len(room.sandbox.threads.threads) == threads


@pytest.mark.parametrize(("gap", "error"), [(True, None), (False, AssistantBusy)])
async def test_a_session_before_cannot_keep_the_next_from_beginning(
    room: Room, without_pauses: None, gap: bool, error: type[Exception] | None
) -> None:
    """A thread that cannot be read is in the way only of turns that would go on in it."""
    await room.ask("before")
    room.threads_fail(*["garbage"] * 4, "ok", only="threads/history")
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


async def test_nobody_is_not_answered(room: Room) -> None:
    """Without a person there is no thread: refused at once."""
    assert isinstance(await room.fate(person=""), AssistantRefused)
    assert room.paths == []


async def test_many_people_have_as_many_threads(room: Room) -> None:
    """Fifty at once over one client: an account and a thread for each."""
    people = [f"1555000{n:04}" for n in range(50)]
    await asyncio.gather(
        *(room.ask(f"question of {person}", person=person, deadline_seconds=20.0) for person in people)
    )
    threads = room.sandbox.threads.threads.values()
    assert sorted((each.person, each.rows[0].content) for each in threads) == [(p, f"question of {p}") for p in people]
    assert set(room.sandbox.threads.people) == set(people)


# --- answers ---


async def test_citations_stay_as_the_backend_wrote_them(room: Room) -> None:
    """Their list at the end is no Markdown, and has the backend's own English; silence before it is waited through."""
    room.fails(Fault(kind="silence", seconds=0.3))
    answer = await room.ask("cite#2")
    assert answer.text == "Here is what the sources say: point 1 [1] ; point 2 [2] .\n\n**Citations**:"
    assert answer.verbatim.startswith("[1] Sahih al-Bukhari 1:\n Arabic: إِنَّمَا")
    assert "\n\n English: [translated] " in answer.verbatim and "\n\n[2] " in answer.verbatim
    assert answer.citations == () and not answer.partial


async def test_an_answer_in_the_thread_is_the_same(room: Room) -> None:
    """Taken from the thread, it has the words of the stream; tools' calls and results are no part of it."""
    heard = await room.ask("cite#2")
    found = await room.ask("cite#2")
    assert "".join(found.text.split()) == "".join(heard.text.split()) and not found.partial
    assert found.verbatim == heard.verbatim
    assert room.calls == 1


@pytest.mark.parametrize(
    ("said", "text", "verbatim"),
    [
        ("a\n\n**Citations**:\n[1] t:\n Text: *b* \n\n", "a\n\n**Citations**:", "[1] t:\n Text: *b* "),
        ("**Citations**:\n[1] t:\n", "**Citations**:", "[1] t:"),
        ("a\n\n**Citations**:\n[1] t:\n\nb\n\n**Citations**:\n[1] t:\n[2] u:", None, "[1] t:\n[2] u:"),
        ("a\n\n**Citations**:\n1. t", "a\n\n**Citations**:\n1. t", ""),
        ("a **Citations**:\n[1] t", "a **Citations**:\n[1] t", ""),
        ("a\n\n**Citations**:\n", "a\n\n**Citations**:\n", ""),
    ],
)
def test_only_the_backends_own_list_is_no_markdown(said: str, text: str | None, verbatim: str) -> None:
    """Its heading on a line of its own and its first number: the last such list, which has all; whatever else is text."""
    found = listed(said)
    assert found[1] == verbatim and text in (None, found[0])


# --- once, wherever it breaks ---


@pytest.mark.parametrize("kind", ["rst", "html", "http_400", "http_404", "http_429", "http_500"])
async def test_what_was_not_stored_is_asked_again(room: Room, kind: str) -> None:
    """Nothing of the first try is in the thread: the second one's answer counts, and the turn stands there once."""
    room.fails(kind)
    answer = await room.ask()
    assert (answer.text, answer.partial, room.calls, room.asked) == (ANSWER, False, 2, [QUESTION])


@pytest.mark.parametrize("kind", ["queued", "late", "http_502", "http_524", "cut_late", "truncated_late", "cut_after"])
async def test_what_was_stored_is_taken_from_the_thread(room: Room, kind: str) -> None:
    """The backend had the turn, whatever we heard of it: its answer is waited for there, and not asked for again."""
    room.fails(kind)
    answer = await room.ask()
    assert (answer.text, answer.partial, room.calls, room.asked) == (ANSWER, False, 1, [QUESTION])


@pytest.mark.parametrize("kind", ["cut", "truncated", "apology", "stall"])
async def test_what_cannot_be_completed_is_handed_on_however_short(room: Room, kind: str) -> None:
    """Nobody may ask again for more; a clean end does not make it whole. Half a word at its end is left out."""
    room.fails(kind)
    answer = await room.ask(deadline_seconds=1.5)
    assert (answer.text, answer.partial, answer.stopped) == ("You said: Where may", True, "cut")
    assert (room.calls, room.asked) == (1, [QUESTION])


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
            room.client.event_hooks = {"request": [room.see]}
            raise NeverLeft("nobody there")

    room.client.event_hooks = {"request": [room.see, refuse]}
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

    hooks: dict[str, list[Any]] = {"request": [room.see], "response": []}
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
        ("http_500", AssistantBusy, "its log"),
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
    room.sandbox.faults.queue(face, [kind] * 20)
    fate = await room.fate(deadline_seconds=30.0)
    assert isinstance(fate, error) and says in str(fate)
    tries = len([path for path in room.paths if path == ("threads/last" if face == "threads" else "messages/process")])
    if error is AssistantRefused:
        assert tries == 1
    elif kind != "http_404":
        assert tries == TRIES
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
@pytest.mark.parametrize("kind", ["garbage", "html", "rst", "http_429"])
async def test_without_a_thread_nothing_is_asked(room: Room, without_pauses: None, path: str, kind: str) -> None:
    """Another shape, a page, or nothing, in place of any answer: busy; what was not asked may be asked later."""
    room.threads_fail(*[kind] * 20, only=path)
    assert isinstance(await room.fate(), AssistantBusy)
    assert room.calls == 0
    room.sandbox.faults.clear()
    assert (await room.ask()).text == ANSWER


async def test_an_answer_whose_thread_cannot_be_read_is_partial(room: Room) -> None:
    """It ended by itself, and nobody says that it was all of it."""
    await room.ask("before")
    room.threads_fail("ok", *["garbage"] * 50, only="threads/history")
    answer = await room.next_turn(deadline_seconds=1.0)
    assert (answer.text, answer.partial) == (ANSWER, True)


# --- time, and under watch ---


@pytest.mark.parametrize("path", ["threads/last", "users/exists", "users/register", "threads", "threads/history"])
async def test_the_deadline_holds_whatever_stalls(room: Room, path: str) -> None:
    """Any call that is not answered ends with the deadline."""
    room.threads_fail("no_answer", only=path)
    began = time.monotonic()
    fate = await room.fate(deadline_seconds=0.6)
    if path == "threads/history":  # the answer had come, and nobody says whether that was all
        assert isinstance(fate, Answer) and fate.partial
    else:
        assert isinstance(fate, AssistantBusy)
    assert 0.4 < time.monotonic() - began < 1.1


@pytest.mark.parametrize(
    ("kind", "ends", "words"),
    [
        ("ok", [None], 1),
        ("rst", [AssistantBusy, None], 1),
        ("cut_late", [None], 1),
        ("cut", [Cut], 1),
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
