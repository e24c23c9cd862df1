"""What a turn is answered with, and what its lane remembers of it: the first rule that fits. It neither sends nor settles.

In the order of `Replies.to`: who is answered at all, what comes too late or is too much, what a tenant's own words answer, and
last what the assistant is asked.
"""

from datetime import datetime, timedelta
from functools import partial

import msgspec
import structlog
from msgspec import Struct

from app import metrics
from app.assistants import Answer, Citation, Line, Question
from app.assistants.intents import Fixed
from app.configuration import Fallback as AssistantSettings
from app.crashpoints import crashpoint
from app.directory import Channel, Tenant
from app.errors import AssistantError
from app.store.lanes import Claim
from app.store.turns import NOTHING, Asked, Ending, Marks, Memo, Opening, Turn
from workers.asking import Asking
from workers.commits import Commits
from workers.formatting import whatsapp
from workers.notes import TurnNotes
from workers.spending import Spending
from workers.stopwatch import Stopwatch

log = structlog.get_logger(__name__)

# Rough, and on the safe side for Arabic: a token is about three characters.
CHARACTERS_PER_TOKEN = 3
# Kinds whose words are a question by themselves. A caption without its picture is not.
WORDED = frozenset({"text", "interactive", "button"})


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


class Replies:
    """`to` a turn."""

    def __init__(self, commits: Commits, asking: Asking) -> None:
        self._commits = commits
        self._asking = asking
        self._spending = Spending(commits.pool)

    async def to(self, due: Due) -> Reply:
        """The reply of the first rule that fits (docs/lanes.md, "A turn").

        Raises:
            DatabaseUnavailable: nobody knows whether a finished step is kept.
        """
        opening, tenant, standing = due.opening, due.tenant, due.standing
        if not standing:
            return Reply(outcome="revoked", marks=Marks(asks=opening.asking))
        worded = [message.body for message in standing if message.kind in WORDED and message.body.strip()]
        whole = len(worded) == len(standing)
        fixed = tenant.intents.answer(worded, opening.asking) if whole else None
        # That a person wants no answers, or wants them again, is kept whether or not anybody answers now.
        heard = Marks(stops=fixed.stops) if fixed else NOTHING
        if opening.paused or not (tenant.enabled and due.channel.enabled):
            return Reply(outcome="left", marks=heard)
        if opening.stopped and not (fixed and fixed.stops is False):
            return Reply(outcome="stopped")
        late = too_late(due.channel, opening)
        if late and due.channel.late in ("store", "notice"):
            return _noticed(due, heard)
        if _looping(due):
            return Reply(outcome="left", marks=heard)
        daily = tenant.limits.messages_per_contact_per_day
        if daily and opening.written >= daily and not (fixed and (fixed.stops is not None or fixed.pauses)):
            return _limited(due, "messages_per_contact_per_day")
        if fixed:
            return self._late(due, late, _fixed(due, fixed))
        if not worded:
            only_places = all(message.kind == "location" for message in standing)
            told = Reply(outcome="told", text=tenant.texts.location if only_places else tenant.texts.unsupported)
            return self._late(due, late, told)
        if "answer" in opening.memo:
            reply = msgspec.convert(opening.memo["answer"], Reply)
        else:
            budget = tenant.limits.tokens_per_day
            if budget and await self._spending.today(tenant.id) >= budget:
                return _limited(due, "tokens_per_day")
            reply = await self._asked(due)
        return self._late(due, late, await self._finished(due, reply))

    # --- the assistant's ---

    async def _asked(self, due: Due) -> Reply:
        """What the assistant answers, remembered before anything is done with it."""
        tenant, opening = due.tenant, due.opening
        # What is no text becomes lines here, a finished step each: workers/questions.py.
        lines = [Line("user", message.body) for message in due.standing if message.body.strip()]
        try:
            # While this waits the person may see that somebody writes: workers/typing.py stands around it.
            answer = await due.watch.ai(
                self._asking.ask(
                    tenant,
                    partial(_question, opening, lines),
                    lambda under: TurnNotes(self._commits, due.claim, due.turn, opening, under),
                    due.deadline,
                )
            )
        except AssistantError as error:
            return self._failed(due, Reply(outcome="failed"), error)
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
        # Here its citations are translated and put in, a finished step each: workers/citations.py.
        text = await whatsapp(reply.text)
        if not text.strip():
            return self._failed(due, reply, AssistantError("an answer of nothing but markup"))
        if reply.partial:
            text = f"{text}\n\n{due.tenant.texts.partial}"
        return msgspec.structs.replace(reply, text=text)

    def _failed(self, due: Due, reply: Reply, error: AssistantError) -> Reply:
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

    def _late(self, due: Due, late: bool, reply: Reply) -> Reply:
        """With an apology before it, where it comes late; a failure says that it is sorry already."""
        if not late or due.channel.late != "apologise" or reply.outcome == "failed":
            return reply
        return msgspec.structs.replace(reply, text=f"{due.tenant.texts.apology}\n\n{reply.text}")


# --- the rules ---


def too_late(channel: Channel, opening: Opening) -> bool:
    """Whether the answer comes later than the channel's own: asked again at each claim, since a channel may be held for days."""
    return channel.late != "answer" and opening.now - _newest(opening) > timedelta(hours=channel.answer_within_hours)


def _newest(opening: Opening) -> datetime:
    return max((message.sent_at for message in opening.asked if not message.revoked), default=opening.now)


def _noticed(due: Due, heard: Marks) -> Reply:
    """What comes too late is not answered; with `notice` the person is told so, once for all that they wrote before it."""
    told = due.opening.noticed_at
    if due.channel.late != "notice" or (told is not None and _newest(due.opening) <= told):
        return Reply(outcome="late", marks=heard)
    return Reply(outcome="late", text=due.tenant.texts.notice, marks=msgspec.structs.replace(heard, notices=True))


def _looping(due: Due) -> bool:
    brake = due.tenant.limits.replies_per_conversation_per_minute
    if not 0 < brake <= due.opening.replied:
        return False
    metrics.alert("loop_brake")
    log.error(
        "too many replies in a minute: left to a person",
        alert="loop_brake",
        tenant=due.tenant.slug,
        conversation=due.claim.conversation_id,
        correlation=due.opening.correlation,
    )
    return True


def _limited(due: Due, limit: str) -> Reply:
    """It is enough for a day: told once, to the person and to the operator; counted each time."""
    metrics.limited(limit)
    if due.opening.limited:
        return Reply(outcome="limited")
    metrics.alert("limit_reached")
    log.warning(
        "a limit is reached: not answered",
        alert="limit_reached",
        setting=limit,
        tenant=due.tenant.slug,
        conversation=due.claim.conversation_id,
        correlation=due.opening.correlation,
    )
    return Reply(outcome="limited", text=due.tenant.texts.limit, marks=Marks(limits=True))


def _fixed(due: Due, fixed: Fixed) -> Reply:
    if fixed.pauses is not None:
        metrics.alert("handed_over")
        log.warning(
            "a person asks for people: the conversation is theirs",
            alert="handed_over",
            tenant=due.tenant.slug,
            conversation=due.claim.conversation_id,
            correlation=due.opening.correlation,
        )
    return Reply(
        outcome="intent",
        text=fixed.reply,
        marks=Marks(stops=fixed.stops, asks=fixed.asks, pauses=fixed.pauses),
    )


# --- what the assistant is shown ---


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


def _question(opening: Opening, lines: list[Line], settings: AssistantSettings) -> Question:
    """The turn's own `lines`, behind what was said before, as far as an assistant with these settings is shown it."""
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
