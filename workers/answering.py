"""An assistant's answer to a turn, as its person reads it: asked, remembered, translated, then made fit for WhatsApp.

It neither sends nor settles, and decides nobody's turn: workers/replies.py does.

Each step is committed before the next, so that whoever has the turn next, after a crash, goes on behind the last one.
"""

from functools import partial

import msgspec
import structlog
from msgspec import Struct

from app import metrics
from app.assistants import Answer, Citation, Line, Question
from app.configuration import AssistantSettings
from app.crashpoints import crashpoint
from app.directory import Channel, Tenant
from app.errors import AssistantError
from app.store.lanes import Claim
from app.store.turns import NOTHING, Asked, Ending, Marks, Memo, Opening, Turn
from app.text.whole import VISIBLE
from workers import formatting
from workers.asking import Asking
from workers.commits import Commits
from workers.notes import TurnNotes
from workers.questions import Questions, Reading, apology, sees, spoken
from workers.spending import Spending
from workers.stopwatch import Stopwatch
from workers.translations import Translations

log = structlog.get_logger(__name__)

# Rough, and on the safe side for Arabic: a token is about three characters.
CHARACTERS_PER_TOKEN = 3


class Reply(Struct, frozen=True, kw_only=True):
    """What a turn is answered with, empty where nobody is. An assistant's is Markdown, and kept so as the memo of its step."""

    outcome: Ending
    text: str = ""
    model: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    ai_ms: float | None = None
    citations: tuple[Citation, ...] = ()
    partial: bool = False
    marks: Marks = NOTHING


class Due(Struct, frozen=True, kw_only=True):
    """A turn that is to be answered, with all that is known of it."""

    claim: Claim
    tenant: Tenant
    channel: Channel
    opening: Opening
    turn: Turn
    watch: Stopwatch
    deadline: float
    """By when (monotonic) the steps of its answer are to be done, all together: the assistant's `deadline_seconds`."""

    @property
    def standing(self) -> list[Asked]:
        """Its messages, but for those that were taken back."""
        return [message for message in self.opening.asked if not message.revoked]


class Answering:
    """`answer` a turn."""

    def __init__(
        self, commits: Commits, spending: Spending, asking: Asking, questions: Questions, translations: Translations
    ) -> None:
        self._commits = commits
        self._spending = spending
        self._asking = asking
        self._questions = questions
        self._translations = translations

    async def answer(self, due: Due) -> Reply:
        """The assistant's answer, or that it has none; a kind's sentence, where nothing of what is asked can be read.

        Raises:
            DatabaseUnavailable: nobody knows whether a finished step is kept.
        """
        if "answer" in due.opening.memo:
            return await self._finished(due, msgspec.convert(due.opening.memo["answer"], Reply))
        async with self._questions.read(due.tenant, due.channel, due.opening, deadline=due.deadline) as reading:
            if not reading.lines:
                return Reply(outcome="told", text=apology(due.tenant.texts, reading.unread))
            reply = await self._asked(due, reading)
        return await self._finished(due, reply)

    async def _asked(self, due: Due, reading: Reading) -> Reply:
        """What the assistant answers, remembered before anything is done with it."""
        tenant, opening = due.tenant, due.opening
        try:
            answer = await due.watch.ai(
                self._asking.ask(tenant, partial(_question, opening, reading), partial(self._notes, due), due.deadline)
            )
        except AssistantError as error:
            return _failed(due, Reply(outcome="failed"), error)
        reply = _reply(answer, due.watch.ai_ms)
        self._spending.spent(tenant.id, reply.input_tokens + reply.output_tokens)
        crashpoint("answer.asked")
        # As it came: what formatting it may do to this process must not be done after every claim's new question.
        result = msgspec.json.encode(reply).decode()
        await due.watch.db(self._commits.memo(Memo(due.claim, due.turn.id, "answer", opening.version, result)))
        crashpoint("answer.remembered")
        return reply

    async def _finished(self, due: Due, reply: Reply) -> Reply:
        """The reply as people read it, in WhatsApp's markup. What is left of nothing but markup is no answer."""
        if reply.outcome != "answered":
            return reply
        tenant, texts = due.tenant, due.tenant.texts
        finished = await due.watch.translate(
            self._translations.finish(
                tenant, spoken(due.opening), _answer(reply), self._notes(due), deadline=due.deadline
            )
        )
        self._spending.spent(tenant.id, finished.input_tokens + finished.output_tokens)
        reply = msgspec.structs.replace(
            reply,
            input_tokens=reply.input_tokens + finished.input_tokens,
            output_tokens=reply.output_tokens + finished.output_tokens,
        )
        text = await formatting.whatsapp(finished.text)
        if VISIBLE.search(text) is None:
            return _failed(due, reply, AssistantError("an answer of which nothing can be seen"))
        if reply.partial:
            text = f"{text}\n\n{texts.partial}"
        text = await formatting.sourced(text, finished.sources, texts)
        crashpoint("answer.finished")
        return msgspec.structs.replace(reply, text=text)

    def _notes(self, due: Due, under: str = "") -> TurnNotes:
        return TurnNotes(self._commits, due.claim, due.turn, due.opening, under)


def _failed(due: Due, reply: Reply, error: AssistantError) -> Reply:
    metrics.alert("assistant_failed")
    log.error(
        "assistant failed",
        alert="assistant_failed",
        tenant=due.tenant.slug,
        turn=due.turn.id,
        correlation=due.opening.correlation,
        error=error,
    )
    return msgspec.structs.replace(reply, outcome="failed", text=due.tenant.texts.failure)


def _reply(answer: Answer, ai_ms: float) -> Reply:
    return Reply(
        outcome="answered",
        text=answer.text,
        model=answer.model,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        ai_ms=ai_ms,
        citations=answer.citations,
        partial=answer.partial,
    )


def _answer(reply: Reply) -> Answer:
    """What was remembered, as the assistant gave it."""
    return Answer(
        text=reply.text,
        model=reply.model or "",
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        stopped="",
        citations=reply.citations,
        partial=reply.partial,
    )


# --- what the assistant is shown ---


def _question(opening: Opening, reading: Reading, settings: AssistantSettings) -> Question:
    """What is asked now, behind what was said before, as far as an assistant with these settings is shown it."""
    lines = reading.lines if sees(settings) else reading.blind
    return Question(lines=(*_said(opening, settings), *lines), person=opening.to[0].value, fresh=opening.fresh)


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
