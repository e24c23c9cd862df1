"""Who is asked for an answer, the first or the fallback, and whose counts. With assistants that say what the test says."""

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import httpx
import msgspec
import pytest
import stamina
from structlog.testing import capture_logs

from app.assistants import Answer, Call, Line, Question
from app.assistants.intents import Intents
from app.assistants.parts import Block, Cut, Part
from app.assistants.whole import whole
from app.configuration import Assistant, AssistantSettings, Limits, Texts
from app.directory import Directory, Tenant
from app.errors import AssistantBusy, AssistantError, DatabaseUnavailable
from app.vault import Secret, SecretBytes
from tests.asking import Kept
from tests.scripted import Scripted, says
from workers.asking import Asking
from workers.breakers import Breakers

pytestmark = pytest.mark.anyio

OURS: Any = {"provider": "anthropic", "base_url": "http://x", "api_key": Secret("k")}
HALF = says("Half of the", partial=True)


class Opened(Kept):
    """A turn's notes as one try has them: those that there were when it began, and its own."""

    def __init__(self, kept: Kept) -> None:
        super().__init__(kept)
        self._kept = kept

    async def keep(self, name: str, value: Any, *, lasting: bool = False) -> None:
        await self._kept.keep(name, value, lasting=lasting)
        await super().keep(name, value, lasting=lasting)


class Turn:
    """One turn, asked by any number of workers, one after the other; `notes` are what they leave each other."""

    def __init__(self, scripted: Scripted) -> None:
        self.scripted = scripted
        self.breakers = Breakers()
        self.notes: dict[str, Kept] = {"": Kept(), "fallback": Kept()}
        fallback = AssistantSettings(model="second", **OURS)
        self.tenant = Tenant(
            id=UUID(int=1),
            slug="noor",
            name="Noor",
            enabled=True,
            in_doubt="resend",
            assistant=Assistant(model="first", fallback=fallback, **OURS),
            texts=Texts(),
            limits=Limits(),
            intents=Intents(()),
        )

    async def ask(self) -> Answer:
        client = cast(httpx.AsyncClient, None)
        asking = Asking(client, self.breakers, assistant=lambda provider: self.scripted)
        deadline = time.monotonic() + 5
        return await asking.ask(
            self.tenant,
            lambda _: Question(lines=(Line("user", "?"),)),
            lambda under: Opened(self.notes[under]),
            deadline,
            "c",
        )

    @property
    def models(self) -> list[str | None]:
        return [settings.model for settings in self.scripted.settings]


async def test_a_cut_answer_is_not_asked_for_again() -> None:
    """The worker dies, or the database goes, while the fallback is asked: the next one has the first's, and asks the fallback."""
    turn = Turn(Scripted(HALF, DatabaseUnavailable("memo"), says("The whole.")))
    with pytest.raises(DatabaseUnavailable):
        await turn.ask()
    assert (await turn.ask()).text == "The whole."
    assert turn.models == ["first", "second", "second"]


async def test_that_the_fallback_is_asked_is_told_with_the_turns_correlation() -> None:
    """One id from the webhook to the last part of the answer."""
    with capture_logs() as lines:
        await Turn(Scripted(AssistantError("no"), says("Here."))).ask()
    assert [(line["event"], line["correlation"]) for line in lines] == [("the fallback is asked", "c")]


async def test_a_cut_answer_that_nobody_knows_is_kept_is_asked_for_no_further() -> None:
    """Before the fallback is asked it is committed."""

    class Away(Kept):
        async def keep(self, name: str, value: Any, *, lasting: bool = False) -> None:
            raise DatabaseUnavailable("memo")

    turn = Turn(Scripted(HALF))
    turn.notes[""] = Away()
    with pytest.raises(DatabaseUnavailable):
        await turn.ask()
    assert turn.models == ["first"]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (says("All."), "All."),
        (says("Half", partial=True), "Half of the"),
        (says("Half of the story", partial=True), "Half of the story"),
        (AssistantBusy("busy"), "Half of the"),
    ],
    ids=["whole", "shorter", "longer", "none"],
)
async def test_of_two_cut_answers_the_longer_stands(other: Answer | Exception, expected: str) -> None:
    """A whole one goes before either. What both cost counts."""
    answer = await Turn(Scripted(HALF, other)).ask()
    assert (answer.text, answer.partial) == (expected, expected != "All.")
    assert answer.input_tokens == HALF.input_tokens * (1 if isinstance(other, Exception) else 2)


@pytest.mark.parametrize("stopped", ["max_tokens", "length", "model_context_window_exceeded", "too_long"])
async def test_an_answer_that_is_only_too_long_stands(stopped: str) -> None:
    """Whatever its provider calls that: the fallback has no more room, and is not asked."""
    turn = Turn(Scripted(says("So far", partial=True, long=True, stopped=stopped)))
    assert (await turn.ask()).text == "So far"
    assert turn.models == ["first"]


async def test_an_answer_whose_parts_are_too_long_together_stands() -> None:
    """Each was within its bounds, and we cut what they make: the fallback has no more room than that either."""
    turn = Turn(Scripted(says("word " * 30_000)))
    answer = await turn.ask()
    assert turn.models == ["first"]
    assert (answer.partial, answer.long) == (True, True)


async def test_what_is_kept_of_a_cut_answer_can_be_kept() -> None:
    """PostgreSQL takes no U+0000 and no half characters, in JSON neither."""
    turn = Turn(Scripted(says("a\0b \ud83d c", partial=True), AssistantBusy("busy")))
    assert (await turn.ask()).text == "ab \ufffd c"
    assert msgspec.json.decode(msgspec.json.encode(turn.notes[""]["cut"]))["text"] == "ab \ufffd c"


def directory(tenant: Tenant, *, version: int) -> Directory:
    return Directory(version=version, digest_key=SecretBytes(b""), endpoints=[], tenants=[tenant], channels=[])


async def test_who_waits_while_the_settings_change_goes_on_with_the_new_ones() -> None:
    """The breaker is open, a person mends the key: the turn is answered with it, within its deadline."""
    turn = Turn(Scripted())
    old = turn.tenant
    assert old.assistant
    alone = msgspec.structs.replace(old.assistant, fallback=None)
    turn.tenant = old = msgspec.structs.replace(old, assistant=alone)
    watch: Any = SimpleNamespace(
        current=Directory(version=1, digest_key=SecretBytes(b""), endpoints=[], tenants=[old], channels=[])
    )
    turn.breakers.directory = watch
    turn.breakers.heard({"assistant:noor": "open"})
    asking = asyncio.create_task(turn.ask())
    await asyncio.sleep(0.1)
    assert not asking.done()
    new = msgspec.structs.replace(old, assistant=msgspec.structs.replace(alone, api_key=Secret("new"), model="new"))
    watch.current = directory(new, version=2)
    turn.breakers.heard({})
    assert (await asking).text == "Fine."
    assert turn.models[-1] == "new"


class InParts:
    """An assistant of whole.py's calls, each of which comes to what the test says; `asked`: with which key, behind how many."""

    def __init__(self, *outcomes: Part | Cut) -> None:
        self.asked: list[tuple[str, int]] = []
        self.begun, self.answers = asyncio.Event(), asyncio.Event()
        self._outcomes = list(outcomes)

    async def ask(
        self, client: httpx.AsyncClient, settings: AssistantSettings, question: Question, **more: Any
    ) -> Answer:
        async def once(parts: Sequence[Part], call: Call | None) -> Part:
            self.asked.append((str(settings.api_key), len(parts)))
            self.begun.set()
            await self.answers.wait()
            outcome = self._outcomes.pop(0)
            if isinstance(outcome, Cut):
                raise outcome
            return outcome

        return await whole(once, settings, question, **more)


def part(text: str, ending: Any) -> Part:
    return Part(blocks=(Block(text=text),), ending=ending, stopped=ending)


BROKEN = "A stream that broke off in the midst of what it had to say. " * 2


@pytest.mark.parametrize(
    ("came", "behind", "rest", "text"),
    [
        (part("Half of it, ", "limit"), 1, "and the rest.", "Half of it, and the rest."),
        (Cut("the stream was cut", part(BROKEN, "cut")), 0, "All of it.", "All of it."),
    ],
    ids=["continued", "tried again"],
)
async def test_who_waits_in_the_midst_of_an_answer_goes_on_with_the_new_settings(
    came: Part | Cut, behind: int, rest: str, text: str
) -> None:
    """The half that there is is no answer while the new ones can bring the whole; a part that is kept is gone on from."""
    inner = InParts(came, part(rest, "whole"))
    turn = Turn(cast(Scripted, inner))
    assert turn.tenant.assistant
    alone = msgspec.structs.replace(turn.tenant.assistant, fallback=None)
    turn.tenant = old = msgspec.structs.replace(turn.tenant, assistant=alone)
    watch: Any = SimpleNamespace(current=directory(old, version=1))
    turn.breakers.directory = watch
    with stamina.set_testing(True, attempts=4, cap=True):  # without pauses
        asking = asyncio.create_task(turn.ask())
        await inner.begun.wait()
        turn.breakers.heard({"assistant:noor": "open"})
        inner.answers.set()
        await asyncio.sleep(0.1)
        assert not asking.done()
        mended = msgspec.structs.replace(alone, api_key=Secret("new"))
        watch.current = directory(msgspec.structs.replace(old, assistant=mended), version=2)
        turn.breakers.heard({})
        answer = await asking
    assert (answer.text, answer.partial) == (text, False)
    assert inner.asked == [("k", 0), ("new", behind)]


async def test_no_answer_is_asked_for_again_because_the_settings_have_changed() -> None:
    """The first's was cut, and the fallback's key is mended while its breaker is open: the fallback alone is asked, with it."""
    turn = Turn(Scripted(HALF, says("The whole.")))
    old = turn.tenant
    assert old.assistant and old.assistant.fallback
    watch: Any = SimpleNamespace(current=directory(old, version=1))
    turn.breakers.directory = watch
    turn.breakers.heard({"assistant:noor/fallback": "open"})
    asking = asyncio.create_task(turn.ask())
    await asyncio.sleep(0.1)
    mended = msgspec.structs.replace(old.assistant.fallback, api_key=Secret("new"), model="mended")
    new = msgspec.structs.replace(old, assistant=msgspec.structs.replace(old.assistant, fallback=mended))
    watch.current = directory(new, version=2)
    turn.breakers.heard({})
    assert (await asking).text == "The whole."
    assert turn.models == ["first", "second", "mended"]
