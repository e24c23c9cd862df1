"""An assistant's answer to a turn, as its person reads it: asked, remembered, translated, then made fit for WhatsApp.

It neither sends nor settles, and decides nobody's turn: workers/replies.py does.

Each step is committed before the next, so that whoever has the turn next, after a crash, goes on behind the last one.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial

import msgspec
import structlog
from msgspec import Struct

from app.alerts import alert
from app.assistants import Answer, Line, Question
from app.assistants.composed import CHARACTERS_PER_TOKEN
from app.configuration import AssistantSettings
from app.crashpoints import crashpoint
from app.directory import Channel, Tenant
from app.errors import AssistantError, QasidError
from app.store.lanes import LIVE, Claim
from app.store.settlements import NOTHING, Ending, Marks
from app.store.turns import Asked, Opening, Turn
from app.text.markup import VISIBLE
from app.unkept import Unkept
from workers import formatting
from workers.asking import Asking
from workers.commits import Commits
from workers.fetching import SHARE
from workers.notes import AskedAt, TurnNotes, at_hand, last
from workers.places import NoPlace, Place, Places
from workers.questions import Questions, Reading, apology, heavy, newest_at, sees, spoken
from workers.spending import Spent
from workers.stopwatch import Stopwatch
from workers.translations import Translations

log = structlog.get_logger(__name__)

# The step of the assistant's answer, as it came.
ANSWER = "answer"


class Reply(Struct, frozen=True, kw_only=True):
    """What a turn is answered with, in WhatsApp's markup; empty where nobody is. `model`: who has answered.

    `seen`: its person was told meanwhile that they were read.
    """

    outcome: Ending
    text: str = ""
    model: str | None = None
    marks: Marks = NOTHING
    seen: bool = False


class Due(Struct, frozen=True, kw_only=True):
    """A turn that is to be answered, with all that is known of it."""

    claim: Claim
    tenant: Tenant
    channel: Channel
    opening: Opening
    turn: Turn
    watch: Stopwatch
    deadline: float
    """By when (monotonic) the steps of its answer are to be done, all together: the assistant's `deadline_seconds`, of which
    half at least is left when its files are there."""
    spent: Spent
    """What the turn costs."""
    remembered: Answer | None = None
    """What the assistant has answered already, at this version of what is asked."""

    @property
    def standing(self) -> list[Asked]:
        """Its messages, but for those that were taken back."""
        return [message for message in self.opening.asked if not message.revoked]

    @property
    def live(self) -> bool:
        """Whether its person may still look at what they have written."""
        return self.opening.now - newest_at(self.opening) < timedelta(seconds=LIVE)


class Answering:
    """`answer` a turn."""

    def __init__(
        self, commits: Commits, asking: Asking, places: Places, questions: Questions, translations: Translations
    ) -> None:
        self._commits = commits
        self._asking = asking
        self._places = places
        self._questions = questions
        self._translations = translations
        self._unkept: Unkept[AskedAt] = Unkept()

    def remembered(self, turn: Turn, opening: Opening) -> Answer | None:
        """The answer to what is asked now, paid for already: kept, or at hand here until it is.

        Raises:
            msgspec.ValidationError: what is kept is another build's.
        """
        steps = {**at_hand(self._unkept, (turn.id, opening.version)), **opening.memo}
        return msgspec.convert(steps[ANSWER], Answer) if ANSWER in steps else None

    async def answer(self, due: Due, instead: Callable[[], Awaitable[Reply | None]]) -> Reply:
        """The assistant's answer, or that it has none; a kind's sentence, where nothing of what is asked can be read.

        `instead`: what it is answered with though nobody is asked; called when the words of voice messages are known.

        Raises:
            DatabaseUnavailable: nobody knows whether a finished step is kept.
            NoPlace: others were asked, or their files fetched, for all the time that it had. Its turn may come when the lane is
                claimed anew.
        """
        due = await self._caught_up(due)
        if due.remembered is not None:
            return await self._finished(due, due.remembered)
        try:
            due = await self.heard(due)
            if (reply := await instead()) is not None:
                return reply
            async with AsyncExitStack() as stack:
                first = heavy(due.tenant, due.opening)  # who waits with pictures at hand takes others' room for theirs
                if first:
                    due, place = await stack.enter_async_context(self._placed(due))
                reading = await stack.enter_async_context(
                    self._questions.read(due.tenant, due.channel, due.opening, live=due.live, deadline=due.deadline)
                )
                due = _with_time(due)
                if not reading.lines:
                    return Reply(outcome="told", text=apology(due.tenant.texts, reading.unread))
                if not first:
                    due, place = await stack.enter_async_context(self._placed(due))
                answer = await self._ask(due, reading, place)
        except AssistantError as error:
            return _failed(due, error)
        except NoPlace as error:
            if error.in_vain:  # the assistant is not busy
                return _failed(due, error)
            raise
        await self._keep(due, answer)
        return await self._finished(due, answer)

    async def heard(self, due: Due) -> Due:
        """With the words of its voice messages.

        Raises:
            DatabaseUnavailable: nobody knows whether they are kept.
            NoPlace: as in `answer`.
        """
        notes = self._notes(due)
        await self._questions.hear(due.tenant, due.channel, due.opening, notes, live=due.live, deadline=due.deadline)
        return _with_time(due)

    @asynccontextmanager
    async def _placed(self, due: Due) -> AsyncIterator[tuple[Due, Place]]:
        """With a place to ask in, and as much time as before it waited for that."""
        wait = due.tenant.assistant.deadline_seconds if due.tenant.assistant else 0.0
        async with self._places.question(due.tenant, live=due.live, wait=wait) as place:
            due.watch.queue += place.waited
            yield msgspec.structs.replace(due, deadline=due.deadline + place.waited), place

    async def _ask(self, due: Due, reading: Reading, place: Place) -> Answer:
        asked, notes = partial(_question, due.opening, reading), partial(self._notes, due)
        place.asked()
        answer = await due.watch.ai(self._asking.ask(due.tenant, asked, notes, due.deadline, due.opening.correlation))
        due.spent.add(answer.input_tokens, answer.output_tokens)
        place.answered()
        crashpoint("answer.asked")
        return answer

    async def _keep(self, due: Due, answer: Answer) -> None:
        """Commit the answer before anything is done with it: what formatting it may do to this process must not be done after
        every claim's new question.
        """
        await due.watch.db(self._notes(due).keep(ANSWER, msgspec.to_builtins(answer)))
        crashpoint("answer.remembered")

    async def _caught_up(self, due: Due) -> Due:
        """With the steps that earlier claims here have finished and the database did not take: now it has them. So nothing is
        done with an answer before it is committed, nor with what was translated.
        """
        memo = await due.watch.db(self._notes(due).caught_up())
        return msgspec.structs.replace(due, opening=msgspec.structs.replace(due.opening, memo=memo))

    async def _finished(self, due: Due, answer: Answer) -> Reply:
        """The answer as people read it, in WhatsApp's markup. What is left of nothing but markup is no answer."""
        tenant, texts = due.tenant, due.tenant.texts
        finished = await due.watch.translate(
            self._translations.finish(
                tenant,
                spoken(due.opening),
                answer,
                self._notes(due),
                deadline=due.deadline,
                correlation=due.opening.correlation,
            )
        )
        due.spent.add(finished.input_tokens, finished.output_tokens)
        text = await formatting.whatsapp(finished.text)
        if VISIBLE.search(text) is None:
            return _failed(due, AssistantError("an answer of which nothing can be seen"), answer.model)
        text = await formatting.listed(text, answer.verbatim)
        if answer.partial:
            text = f"{text}\n\n{texts.partial}"
        if finished.untranslated:
            text = f"{text}\n\n{texts.untranslated}"
        text = await formatting.sourced(text, finished.sources, texts)
        crashpoint("answer.finished")
        return Reply(outcome="answered", text=text, model=answer.model)

    def _notes(self, due: Due, under: str = "") -> TurnNotes:
        return TurnNotes(self._commits, due.claim, due.turn, due.opening, self._unkept, under)


def _with_time(due: Due) -> Due:
    """What its files took, and waited for, leaves it half of its time at least."""
    whole = due.tenant.assistant.deadline_seconds if due.tenant.assistant else 0.0
    return msgspec.structs.replace(due, deadline=max(due.deadline, time.monotonic() + whole * (1 - SHARE)))


def _failed(due: Due, error: QasidError, model: str | None = None) -> Reply:
    alert(
        log.error,
        "assistant_failed",
        "assistant failed",
        tenant=due.tenant.slug,
        turn=due.turn.id,
        correlation=due.opening.correlation,
        error=error,
    )
    return Reply(outcome="failed", text=due.tenant.texts.failure, model=model)


# --- what the assistant is shown ---


def _question(opening: Opening, reading: Reading, settings: AssistantSettings) -> Question:
    """What is asked now, behind what was said before, as far as an assistant with these settings is shown it."""
    lines = reading.lines if sees(settings) else reading.blind
    return Question(lines=(*_said(opening, settings), *lines), person=opening.to[0].value, last=last(opening, settings))


def _said(opening: Opening, settings: AssistantSettings) -> list[Line]:
    """The session so far, as far back as it fits."""
    began, room = opening.session_at, settings.history_tokens * CHARACTERS_PER_TOKEN
    past: list[Line] = []
    for said in reversed([each for each in opening.said if not each.revoked and (began is None or each.at >= began)]):
        room -= len(said.body)
        if room < 0 or len(past) >= settings.history_messages:
            break
        past.append(Line("assistant" if said.mine else "user", said.body))
    return past[::-1]
