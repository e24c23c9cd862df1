"""One claimed lane, worked: finish open chunks, else begin the next turn, answer it, settle it, send it.

Each finished step is committed before the next; after a kill another worker goes on where this one was. What a turn is
answered with, workers/replies.py decides; who is asked for it, workers/asking.py.
"""

import asyncio
import time
from contextlib import nullcontext
from uuid import UUID, uuid4

import msgspec
import structlog

from app import metrics
from app.directory import Channel, Tenant, Watch
from app.errors import DatabaseUnavailable, Unknown
from app.log import fingerprint
from app.store.lanes import MOST_CLAIMS, Claim, Release
from app.store.settlements import Marks, Settlement
from app.store.turns import Chunk, Open, Opening, Turn
from workers import formatting
from workers.answering import Answering, Due, Reply
from workers.commits import Commits
from workers.deliver import Delivery, Lane
from workers.notes import noted
from workers.opening import Opened, Openings
from workers.places import NoPlace
from workers.questions import newest
from workers.replies import Replies, too_late
from workers.sessions import Sessions
from workers.spending import Spending, Spent
from workers.stopwatch import Stopwatch
from workers.typing import Typing

log = structlog.get_logger(__name__)

# A turn whose messages are edited or revoked again and again settles at the version of the moment after so many restarts.
MOST_RESTARTS = 2


class Turns:
    """`work` a claimed lane."""

    def __init__(
        self,
        commits: Commits,
        delivery: Delivery,
        directory: Watch,
        sessions: Sessions,
        answering: Answering,
        replies: Replies,
        spending: Spending,
        typing: Typing | None = None,
    ) -> None:
        """`sessions`: what this worker remembers of conversations; `answering`: of answers.

        `typing`: who tells people that they were read.
        """
        self._commits = commits
        self._openings = Openings(commits, sessions)
        self._delivery = delivery
        self._directory = directory
        self._answering = answering
        self._replies = replies
        self._spending = spending
        self._typing = typing

    async def work(self, claim: Claim) -> Release:
        """Do what is due in this lane, and say how to give it back.

        Raises:
            DatabaseUnavailable: nobody knows what was committed; the lane is given back as it is.
        """
        watch = Stopwatch()
        tenant, channel = await self._whose(claim)
        wanted = Open(
            claim,
            history=tenant.assistant.history_messages if tenant.assistant else 0,
            brake=tenant.limits.replies_per_conversation_per_minute,
            daily=tenant.limits.messages_per_contact_per_day or 0,
            noted=noted(tenant),
        )
        # Counted before its rows are read: reading them may be what kills us. After too many tries its head is parked.
        # People are told so where that can be done; where even that fails, its end is written without reading it.
        attempts = await watch.db(self._commits.tried(claim)) if claim.suspect else claim.attempts
        if attempts is None:  # it is another's by now
            return Release(claim=claim, done_seq=None, again_in=0.0)
        if attempts > MOST_CLAIMS + 1:  # even telling the person failed
            return await self._give_up(claim, tenant)
        with self._spending.turn(tenant.id) as spent:
            for restart in range(MOST_RESTARTS + 2):
                try:
                    found = await watch.db(self._openings.open(wanted))
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
                    gone = channel.late == "store" and too_late(channel, opening)
                    silent = gone or not (tenant.enabled and channel.enabled)
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
                    answer = self._answering.remembered(turn, opening)
                    if answer is not None:  # it was paid for, whatever becomes of it now
                        spent.add(answer.input_tokens, answer.output_tokens)
                    watch.queue, watch.ack = opening.asked[0].waited, (opening.asked[0].ack_ms or 0.0) / 1000
                    due = Due(
                        claim=claim,
                        tenant=tenant,
                        channel=channel,
                        opening=opening,
                        turn=turn,
                        watch=watch,
                        remembered=answer,
                        spent=spent,
                        deadline=time.monotonic() + (tenant.assistant.deadline_seconds if tenant.assistant else 0.0),
                    )
                    try:
                        reply = self._still_wanted(claim, await self._replies.to(due))
                    except NoPlace:  # seen anew: it may have been edited meanwhile, or have come too late
                        log.info("no place yet", tenant=tenant.slug, correlation=opening.correlation)
                        return Release(claim=claim, done_seq=None, again_in=0.0)
                if before:  # its gate's wait went on while the assistant wrote
                    before = msgspec.structs.replace(
                        before, opens_in=max(0.0, before.opens_in - (watch.elapsed - opened))
                    )
                lane = self._lane(claim, tenant, channel, opening, watch)
                version = opening.version if restart < MOST_RESTARTS else None
                release = await self._settle(lane, found, turn, version, reply, spent, before)
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

    def _still_wanted(self, claim: Claim, reply: Reply) -> Reply:
        """The reply, unless its tenant or channel was switched off while it was made: whoever did so wants to hear no more."""
        directory = self._directory.current
        tenant, channel = directory.tenant(claim.tenant_id), directory.channel(claim.tenant_id, claim.channel_id)
        if tenant.enabled and channel.enabled:
            return reply
        return Reply(outcome="left", model=reply.model, marks=Marks(stops=reply.marks.stops))

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

    # --- what nobody can work on ---

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
        self,
        lane: Lane,
        found: Opened,
        turn: Turn,
        version: int | None,
        reply: Reply,
        spent: Spent,
        before: Chunk | None,
    ) -> Release | None:
        """Commit the answer, send its first chunk, and go on as far as the gates allow. None: what was asked has changed."""
        pieces = [(uuid4(), piece) for piece in await formatting.pieces(reply.text)]
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
                input_tokens=spent.input_tokens,
                output_tokens=spent.output_tokens,
                model=reply.model,
                ai_ms=lane.watch.ai_ms or None,
                marks=reply.marks,
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
            input_tokens=spent.input_tokens,
            output_tokens=spent.output_tokens,
            **({} if found.stale_s is None else {"stale_s": round(found.stale_s, 1)}),
            **lane.watch.stages(fast=reply.outcome == "intent"),
        )
        return release


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
