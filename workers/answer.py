"""One claimed lane, worked: finish open chunks, else begin the next turn, answer it, settle it, send it.

Each finished step is committed before the next; after a kill another worker goes on where this one was.
"""

import asyncio
import time
from contextlib import nullcontext
from datetime import timedelta
from uuid import UUID, uuid4

import httpx
import msgspec
import structlog
from msgspec import Struct

from app import metrics
from app.assistants import Line, Question, assistant
from app.assistants.intents import reply_for
from app.configuration import Assistant
from app.crashpoints import crashpoint
from app.directory import Channel, Tenant, Watch
from app.errors import AssistantError, DatabaseUnavailable, Unknown
from app.log import fingerprint
from app.store.lanes import MOST_CLAIMS, Claim, Release
from app.store.turns import Asked, Chunk, Ending, Memo, Opening, Settlement, Turn
from app.text.chunks import split
from app.text.whatsapp import from_markdown
from workers.breakers import Breakers
from workers.commits import Commits
from workers.deliver import Delivery, Lane
from workers.notes import TurnNotes
from workers.opening import Opened, Openings
from workers.questions import WORDED, Questions, Reading, apology, newest
from workers.sessions import Sessions
from workers.stopwatch import Stopwatch
from workers.typing import Typing

log = structlog.get_logger(__name__)

# A turn whose messages are edited or revoked again and again settles at the version of the moment after so many restarts.
MOST_RESTARTS = 2
# Rough, and on the safe side for Arabic: a token is about three characters.
CHARACTERS_PER_TOKEN = 3
# Characters above which an answer is formatted in a thread: a parser takes a few milliseconds for less.
LONG = 8_000


class Reply(Struct, frozen=True, kw_only=True):
    """What a turn is answered with, empty where nobody is. An assistant's is Markdown, and kept so as the memo of its step."""

    outcome: Ending
    text: str = ""
    model: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    ai_ms: float | None = None


class Turns:
    """`work` a claimed lane."""

    def __init__(
        self,
        commits: Commits,
        delivery: Delivery,
        directory: Watch,
        client: httpx.AsyncClient,
        sessions: Sessions | None = None,
        breakers: Breakers | None = None,
        questions: Questions | None = None,
        typing: Typing | None = None,
    ) -> None:
        """`sessions`: what this worker remembers of conversations; nothing where it is None. `typing`: likewise shown."""
        self._questions = Questions(commits, directory, client, client) if questions is None else questions
        self._typing = typing
        self._breakers = Breakers() if breakers is None else breakers
        self._commits = commits
        self._openings = Openings(commits, Sessions(0) if sessions is None else sessions)
        self._delivery = delivery
        self._directory = directory
        self._client = client

    async def work(self, claim: Claim) -> Release:
        """Do what is due in this lane, and say how to give it back.

        Raises:
            DatabaseUnavailable: nobody knows what was committed; the lane is given back as it is.
        """
        watch = Stopwatch()
        tenant, channel = await self._whose(claim)
        history = tenant.assistant.history_messages if tenant.assistant else 0
        brake = tenant.limits.replies_per_conversation_per_minute
        # Counted before its rows are read: reading them may be what kills us. After too many tries its head is parked.
        # People are told so where that can be done; where even that fails, its end is written without reading it.
        attempts = await watch.db(self._commits.tried(claim)) if claim.suspect else claim.attempts
        if attempts is None:  # it is another's by now
            return Release(claim=claim, done_seq=None, again_in=0.0)
        if attempts > MOST_CLAIMS + 1:  # even telling the person failed
            return await self._give_up(claim, tenant)
        for restart in range(MOST_RESTARTS + 2):
            try:
                found = await watch.db(self._openings.open(claim, history, brake))
            except msgspec.DecodeError:  # rows of another build, or damaged ones
                if attempts <= MOST_CLAIMS:
                    raise
                return await self._give_up(claim, tenant)
            opened, opening = watch.elapsed, found.opening
            before, chunks = _split(opening)
            turn = opening.turn
            if attempts > MOST_CLAIMS and chunks:
                return await self._give_up(claim, tenant)
            if chunks:
                lane = self._lane(claim, tenant, channel, opening, watch)
                silent = not (tenant.enabled and channel.enabled) or _too_late(channel, opening)
                if silent and lane.manual:  # a person's text is not let go of without a word
                    return await self._give_up(claim, tenant, "its tenant or channel is disabled")
                return await self._delivery.entry(
                    lane, before, chunks, silent=silent or (opening.paused and not lane.manual)
                )
            # Nothing is left; or the chunks of an entry were erased; or another opening of this lane has only just begun
            # its turn, unseen by ours: a statement whose client is gone may still run. Then the next opening sees it.
            if turn is None:
                return Release(claim=claim, done_seq=opening.done_seq + 1 if opening.kind == "send" else None)
            if turn.settled:
                return Release(claim=claim, done_seq=turn.last_seq)
            if attempts > MOST_CLAIMS:
                reply = self._parked(claim, tenant)
            else:
                watch.queue, watch.ack = opening.asked[0].waited, (opening.asked[0].ack_ms or 0.0) / 1000
                reply = await self._reply(claim, tenant, channel, opening, turn, watch)
            if before:  # its gate's wait went on while the assistant wrote
                before = msgspec.structs.replace(before, opens_in=max(0.0, before.opens_in - (watch.elapsed - opened)))
            lane = self._lane(claim, tenant, channel, opening, watch)
            version = opening.version if restart < MOST_RESTARTS else None
            release = await self._settle(lane, found, turn, version, reply, before)
            if release is not None:
                return release
        raise AssertionError("a settlement without a version is never turned away for its version")

    async def _whose(self, claim: Claim) -> tuple[Tenant, Channel]:
        for last_try in (False, True):
            try:
                directory = self._directory.current
                return directory.tenant(claim.tenant_id), directory.channel(claim.tenant_id, claim.channel_id)
            except Unknown:  # made since the last look, a second ago at most
                if last_try:
                    raise
                await self._directory.refresh()
        raise AssertionError

    def _lane(self, claim: Claim, tenant: Tenant, channel: Channel, opening: Opening, watch: Stopwatch) -> Lane:
        return Lane(
            claim=claim,
            tenant=tenant,
            channel=channel,
            to=opening.to[0],
            manual=opening.kind == "send",
            correlation=opening.correlation,
            watch=watch,
        )

    # --- the answer ---

    async def _reply(
        self, claim: Claim, tenant: Tenant, channel: Channel, opening: Opening, turn: Turn, watch: Stopwatch
    ) -> Reply:
        standing = [message for message in opening.asked if not message.revoked]
        if not standing:
            return Reply(outcome="revoked")
        if opening.paused or not (tenant.enabled and channel.enabled):
            return Reply(outcome="left")
        if _too_late(channel, opening):
            return Reply(outcome="late")
        brake = tenant.limits.replies_per_conversation_per_minute
        if 0 < brake <= opening.replied:
            metrics.alert("loop_brake")
            log.error(
                "too many replies in a minute: left to a person",
                alert="loop_brake",
                tenant=tenant.slug,
                conversation=claim.conversation_id,
                correlation=opening.correlation,
            )
            return Reply(outcome="left")
        worded = [message.body for message in standing if message.kind in WORDED and message.body.strip()]
        if len(worded) == len(standing) and (fixed := reply_for(tenant.intents, worded)):
            return Reply(outcome="intent", text=fixed)
        if "answer" in opening.memo:
            remembered = msgspec.convert(opening.memo["answer"], Reply)
            return await self._formatted(tenant, turn, remembered)
        if tenant.assistant is None and all(message.kind == "location" for message in standing):
            return Reply(outcome="told", text=tenant.texts.location)
        deadline = time.monotonic() + (tenant.assistant.deadline_seconds if tenant.assistant else 0.0)
        shown = self._typing.shown(tenant, channel, newest(opening)) if self._typing else nullcontext()
        with shown:
            async with self._questions.read(tenant, channel, opening, deadline=deadline) as reading:
                if not reading.lines:
                    return Reply(outcome="told", text=apology(tenant.texts, reading.unread))
                return await self._ask(claim, tenant, channel, opening, turn, standing, reading, deadline, watch)

    async def _ask(
        self,
        claim: Claim,
        tenant: Tenant,
        channel: Channel,
        opening: Opening,
        turn: Turn,
        standing: list[Asked],
        reading: Reading,
        deadline: float,
        watch: Stopwatch,
    ) -> Reply:
        try:
            if tenant.assistant is None:
                raise AssistantError("this tenant has no assistant")
            past = _session(tenant.assistant, channel, opening, standing)
            question = Question(lines=(*past, *reading.lines), person=opening.to[0].value, fresh=not past)
            # What waits for its breaker waits within the deadline of the answer: see `Assistant.ask`.
            asking = assistant(tenant.assistant.provider).ask(
                self._client,
                tenant.assistant,
                question,
                deadline=deadline,
                notes=TurnNotes(self._commits, claim, turn, opening),
                asking=lambda: self._breakers.assistant(tenant),
            )
            answer = await watch.ai(asking)
        except AssistantError as error:
            metrics.alert("assistant_failed")
            log.error(
                "assistant failed",
                alert="assistant_failed",
                tenant=tenant.slug,
                turn=turn.id,
                correlation=standing[0].correlation,
                error=error,
            )
            return Reply(outcome="failed", text=tenant.texts.failure)
        reply = Reply(
            outcome="answered",
            text=answer.text,
            model=answer.model,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            ai_ms=watch.ai_ms,
        )
        crashpoint("answer.asked")
        # As it came: what formatting it may do to this process must not be done after every claim's new question.
        await watch.db(
            self._commits.memo(Memo(claim, turn.id, "answer", opening.version, msgspec.json.encode(reply).decode()))
        )
        crashpoint("answer.remembered")
        return await self._formatted(tenant, turn, reply)

    async def _formatted(self, tenant: Tenant, turn: Turn, reply: Reply) -> Reply:
        """The reply in WhatsApp's markup. What is left of nothing but markup is no answer."""
        text = await _formatted(reply.text)
        if text.strip():
            return msgspec.structs.replace(reply, text=text)
        metrics.alert("assistant_failed")
        log.error("assistant failed", alert="assistant_failed", tenant=tenant.slug, turn=turn.id, reason="only markup")
        return msgspec.structs.replace(reply, outcome="failed", text=tenant.texts.failure)

    async def _give_up(self, claim: Claim, tenant: Tenant, reason: str = "it fails at every try") -> Release:
        """End what nobody can work on, without reading it."""
        done_seq = await self._commits.park_head(claim, reason)
        self._told_parked(claim, tenant, reason)
        return Release(claim=claim, done_seq=done_seq)

    def _parked(self, claim: Claim, tenant: Tenant) -> Reply:
        self._told_parked(claim, tenant, "it fails at every try")
        return Reply(outcome="parked", text=tenant.texts.failure)

    def _told_parked(self, claim: Claim, tenant: Tenant, reason: str) -> None:
        metrics.alert("turn_parked")
        log.error(
            "turn parked",
            alert="turn_parked",
            reason=reason,
            tenant=tenant.slug,
            conversation=claim.conversation_id,
        )

    # --- its end ---

    async def _settle(
        self, lane: Lane, found: Opened, turn: Turn, version: int | None, reply: Reply, before: Chunk | None
    ) -> Release | None:
        """Commit the answer, send its first chunk, and go on as far as the gates allow. None: what was asked has changed."""
        pieces = [(uuid4(), piece) for piece in split(reply.text)]
        # A gate may have opened while the assistant wrote: whoever opened it has made the lane due again.
        gate_open = before is None or before.opens_in <= 0
        wanted = bool(pieces) and gate_open
        with self._delivery.place(lane) if wanted else nullcontext() as call:
            settlement = Settlement(
                claim=lane.claim,
                version=version,
                turn=turn,
                outcome=reply.outcome,
                body=reply.text,
                pieces=pieces,
                send=call is not None,
                correlation=lane.correlation,
                input_tokens=reply.input_tokens,
                output_tokens=reply.output_tokens,
                model=reply.model,
                ai_ms=reply.ai_ms,
            )
            try:
                settled = await lane.watch.db(self._commits.settle(settlement))
            except (DatabaseUnavailable, asyncio.CancelledError):
                if call is not None:
                    self._delivery.disclaim(lane, pieces[0][0], 1)
                raise
            if settled.fence == "changed":
                return None
            if settled.fence in ("lost", "paused"):  # or not ours: whoever has the lane next sees how it stands
                return Release(claim=lane.claim, done_seq=None, again_in=0.0)
            metrics.turn(reply.outcome)
            if version is not None:
                self._openings.settled(lane.claim, found, turn, settled, reply.text)
            chunks = [_fresh(turn, no, id, body) for no, (id, body) in enumerate(pieces, 1)]
            send = call is not None and settled.fence == "sending"  # if the number may be sent from now
            if send and call is not None:
                state = await self._delivery.send(lane, chunks[0], 1, call)
                chunks[0] = msgspec.structs.replace(
                    chunks[0],
                    state=state,
                    attempt=1,
                    opens_in=self._delivery.order_wait if state in ("accepted", "sent") else 0.0,
                )
        if not pieces:
            release = Release(claim=lane.claim, done_seq=turn.last_seq)
        elif send and chunks[0].state in ("ready", "sending"):  # not now, or overtaken: the next opening tells
            release = Release(claim=lane.claim, done_seq=None, again_in=0.0)
        else:
            release = await self._delivery.entry(lane, before, chunks)
        if self._typing and reply.outcome in ("intent", "told"):  # behind the answer, so never in its way
            self._typing.read(lane.tenant, lane.channel, newest(found.opening))
        log.info(
            "turn",
            tenant=lane.tenant.slug,
            outcome=reply.outcome,
            correlation=lane.correlation,
            turn=turn.id,
            to=fingerprint(lane.to.value),
            messages=turn.last_seq - turn.first_seq + 1,
            chunks=len(pieces),
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            **({} if found.stale_s is None else {"stale_s": round(found.stale_s, 1)}),
            **lane.watch.stages(fast=reply.outcome == "intent"),
        )
        return release


async def _formatted(markdown: str) -> str:
    """A hostile text of this length can keep the parser busy for seconds: then not in the event loop."""
    if len(markdown) > LONG:
        return await asyncio.to_thread(from_markdown, markdown)
    return from_markdown(markdown)


def _too_late(channel: Channel, opening: Opening) -> bool:
    """Whether nobody expects this answer any more: asked again at each claim, since a channel may be held for days."""
    newest = max((message.sent_at for message in opening.asked if not message.revoked), default=opening.now)
    return channel.late != "answer" and opening.now - newest > timedelta(hours=channel.answer_within_hours)


def _split(opening: Opening) -> tuple[Chunk | None, list[Chunk]]:
    """The last chunk that is done, and those of the entry that is not."""
    before = next((chunk for chunk in opening.chunks if chunk.seq <= opening.done_seq), None)
    return before, [chunk for chunk in opening.chunks if chunk.seq > opening.done_seq]


def _fresh(turn: Turn, no: int, id: UUID, body: str) -> Chunk:
    return Chunk(
        id=id,
        seq=turn.last_seq,
        no=no,
        body=body,
        state="ready",
        attempt=0,
        due_in=0.0,
        opens_in=0.0,
        refusals=0,
        holds=0,
        again=False,
        doubts=0,
        doubt_for=0.0,
        quiet_for=0.0,
        flowing=False,
    )


def _session(settings: Assistant, channel: Channel, opening: Opening, standing: list[Asked]) -> list[Line]:
    """What the assistant is shown besides what is asked now: the session so far, as far as it fits."""
    gap = timedelta(hours=channel.session_gap_hours)
    room = settings.history_tokens * CHARACTERS_PER_TOKEN
    later = standing[0].sent_at
    past: list[Line] = []
    for said in reversed([each for each in opening.said if not each.revoked]):
        room -= len(said.body)
        if later - said.at > gap or room < 0:
            break
        past.append(Line("assistant" if said.mine else "user", said.body))
        later = said.at
    return past[::-1]
