"""What a turn is answered with, and what its lane remembers of it: the first rule that fits. It neither sends nor settles.

In the order of `Replies.to`: who is answered at all, what comes too late or is too much, what a tenant's own words answer, and
last what the assistant is asked (workers/answering.py).
"""

from functools import partial

import msgspec
import structlog

from app import metrics
from app.alerts import alert
from app.assistants.intents import Fixed
from app.store.settlements import Marks
from workers.answering import Answering, Due, Reply
from workers.commits import Commits
from workers.formatting import apart
from workers.late import notice, too_late
from workers.questions import IN_OWN_WORDS, SAID, newest
from workers.spending import Spending
from workers.typing import Silent, Typing

log = structlog.get_logger(__name__)


class Replies:
    """`to` a turn."""

    def __init__(self, commits: Commits, spending: Spending, answering: Answering, typing: Typing | Silent) -> None:
        """`typing`: what shows people that an answer is made."""
        self._commits = commits
        self._spending = spending
        self._answering = answering
        self._typing = typing

    async def to(self, due: Due) -> Reply:
        """The reply of the first rule that fits (docs/lanes.md, "A turn").

        Raises:
            DatabaseUnavailable: nobody knows whether a finished step is kept.
            NoPlace: nobody has got round to it.
        """
        remembered = self._answering.remembered(due.turn, due.opening)
        if remembered is not None:  # it was paid for, whatever becomes of it now
            due.spent.add(remembered.input_tokens, remembered.output_tokens)
            due = msgspec.structs.replace(due, remembered=remembered)
        if not due.standing:
            return Reply(outcome="revoked", marks=Marks(asks=due.opening.asking))
        return await self._by(due, await _fixed(due))

    async def _by(self, due: Due, fixed: Fixed | None) -> Reply:
        reply = await self._first(due, fixed)
        if fixed is None or fixed.stops is None or reply.marks.stops is not None:
            return reply
        # That a person wants no answers, or wants them again, is kept whether or not anybody answers now.
        return msgspec.structs.replace(reply, marks=msgspec.structs.replace(reply.marks, stops=fixed.stops))

    async def _first(self, due: Due, fixed: Fixed | None) -> Reply:
        opening, tenant, standing = due.opening, due.tenant, due.standing
        if opening.paused or not (tenant.enabled and due.channel.enabled):
            return Reply(outcome="left")
        if opening.stopped and tenant.intents.can_start and not (fixed and fixed.stops is False):
            return await self._stopped(due)
        late = too_late(due.channel, opening)
        if late and due.channel.late in ("store", "notice"):
            return _noticed(due)
        by_hand = any(message.replayed for message in standing)  # whoever did so is told that it will be answered
        if not by_hand and _looping(due):
            return Reply(outcome="left")
        asked = due.remembered is not None  # and paid for
        free = by_hand or asked
        if not free and _beyond(due) and not (fixed and fixed.reply and fixed.weighs):
            return _limited(due, "messages_per_contact_per_day")
        if fixed and fixed.reply:
            return self._late(due, late, _told(due, fixed))
        if tenant.assistant is None and all(message.kind == "location" for message in standing) and not asked:
            return self._late(due, late, Reply(outcome="told", text=tenant.texts.location))
        budget = tenant.limits.tokens_per_day
        if budget and not free and await self._spending.today(tenant.id) >= budget:
            return _limited(due, "tokens_per_day")
        stands = partial(self._commits.stands, due.claim, opening.version)
        with self._typing.shown(tenant, due.channel, newest(opening), stands) as shown:
            reply = await self._answering.answer(due, partial(_heard, due))
        return self._late(due, late, msgspec.structs.replace(reply, seen=shown.told))

    async def _stopped(self, due: Due) -> Reply:
        """Who wants no answers gets none; a voice message is heard all the same, for the word that takes it back."""
        unheard = any(message.kind == "audio" and not message.body for message in due.standing)
        if due.tenant.transcription is not None and unheard and not _beyond(due):
            fixed = await _fixed(await self._answering.heard(due))
            if fixed and fixed.stops is False:
                return await self._by(due, fixed)
        return Reply(outcome="stopped")

    def _late(self, due: Due, late: bool, reply: Reply) -> Reply:
        """With an apology before it, where it comes late; a failure says that it is sorry already."""
        if not late or due.channel.late != "apologise" or reply.outcome == "failed":
            return reply
        return msgspec.structs.replace(reply, text=f"{due.tenant.texts.apology}\n\n{reply.text}")


# --- the rules ---


def _noticed(due: Due) -> Reply:
    """What comes too late is not answered; with `notice` the person is told so, once for all that they wrote before it."""
    text = notice(due.tenant, due.channel, due.opening)
    return Reply(outcome="late", text=text, marks=Marks(notices=bool(text)))


def _looping(due: Due) -> bool:
    brake = due.tenant.limits.replies_per_conversation_per_minute
    if not 0 < brake <= due.opening.replied:
        return False
    alert(
        log.error,
        "loop_brake",
        "too many replies in a minute: left to a person",
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
    alert(
        log.warning,
        "limit_reached",
        "a limit is reached: not answered",
        setting=limit,
        tenant=due.tenant.slug,
        conversation=due.claim.conversation_id,
        correlation=due.opening.correlation,
    )
    return Reply(outcome="limited", text=due.tenant.texts.limit, marks=Marks(limits=True))


def _beyond(due: Due) -> bool:
    """Whether their person has written all that a day allows."""
    return 0 < (due.tenant.limits.messages_per_contact_per_day or 0) <= due.opening.written


async def _fixed(due: Due) -> Fixed | None:
    """What the tenant's intents say to it, as far as its words are known: those of a voice message once it was read."""
    standing, said = due.standing, due.tenant.intents
    own = [message for message in standing if message.kind in IN_OWN_WORDS and message.body.strip()]
    words = [message.body for message in own]
    beside = any(message.kind not in SAID for message in own) or len(own) < len(standing)
    return await apart(sum(map(len, words)), said.answer, words, due.opening.asking, beside=beside)


async def _heard(due: Due) -> Reply | None:
    """What a turn is answered with instead, now that the words of its voice messages are known."""
    if all(message.kind != "audio" for message in due.standing):
        return None
    fixed = await _fixed(due)
    return _told(due, fixed) if fixed and fixed.reply else None


def _told(due: Due, fixed: Fixed) -> Reply:
    if fixed.pauses is not None:
        alert(
            log.warning,
            "handed_over",
            "a person asks for people: the conversation is theirs",
            tenant=due.tenant.slug,
            conversation=due.claim.conversation_id,
            correlation=due.opening.correlation,
        )
    return Reply(
        outcome="intent",
        text=fixed.reply,
        marks=Marks(stops=fixed.stops, asks=fixed.asks, pauses=fixed.pauses),
    )
