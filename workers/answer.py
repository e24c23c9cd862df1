"""One claimed lane, worked: finish open chunks, else begin the next turn, and have it answered and settled.

Each finished step is committed before the next; after a kill another worker goes on where this one was. What a turn is
answered with, workers/replies.py decides; who is asked for it, workers/asking.py; how it ends, workers/settle.py.
"""

import time

import msgspec
import structlog
from msgspec import Struct

from app.alerts import alert
from app.directory import Channel, Tenant, Watch
from app.errors import Unknown
from app.store.lanes import MOST_CLAIMS, Claim, Release
from app.store.settlements import Marks
from app.store.turns import Chunk, Open, Opening, Turn
from workers.answering import Due, Reply
from workers.commits import Commits
from workers.deliver import Delivery, Lane
from workers.late import overdue, told_aside
from workers.notes import noted
from workers.opening import Openings
from workers.places import NoPlace
from workers.replies import Replies
from workers.settle import Settling
from workers.spending import Spending, Spent
from workers.stopwatch import Stopwatch

log = structlog.get_logger(__name__)

# A turn whose messages are edited or revoked again and again settles at the version of the moment after so many restarts.
MOST_RESTARTS = 2


class _Work(Struct, frozen=True, kw_only=True):
    """A claimed lane that is worked on. `hopeless`: it was claimed too often, and its head is ended."""

    claim: Claim
    tenant: Tenant
    channel: Channel
    watch: Stopwatch
    spent: Spent
    hopeless: bool

    @property
    def wanted(self) -> Open:
        """What is to be known of it."""
        tenant = self.tenant
        return Open(
            self.claim,
            history=tenant.assistant.history_messages if tenant.assistant else 0,
            brake=tenant.limits.replies_per_conversation_per_minute,
            daily=tenant.limits.messages_per_contact_per_day or 0,
            noted=noted(tenant),
        )


class Turns:
    """`work` a claimed lane."""

    def __init__(
        self,
        commits: Commits,
        openings: Openings,
        delivery: Delivery,
        directory: Watch,
        replies: Replies,
        settling: Settling,
        spending: Spending,
    ) -> None:
        self._commits = commits
        self._openings = openings
        self._delivery = delivery
        self._directory = directory
        self._replies = replies
        self._settling = settling
        self._spending = spending

    async def work(self, claim: Claim) -> Release:
        """Do what is due in this lane, and say how to give it back.

        Raises:
            DatabaseUnavailable: nobody knows what was committed; the lane is given back as it is.
        """
        watch = Stopwatch()
        tenant, channel = await self._whose(claim)
        # Counted before its rows are read: reading them may be what kills us. After too many tries its head is parked.
        # People are told so where that can be done; where even that fails, its end is written without reading it.
        attempts = await watch.db(self._commits.tried(claim)) if claim.suspect else claim.attempts
        if attempts is None:  # it is another's by now
            return Release(claim=claim, done_seq=None, again_in=0.0)
        if attempts > MOST_CLAIMS + 1:  # even telling the person failed
            return await self._give_up(claim, tenant)
        with self._spending.turn(tenant.id) as spent:
            work = _Work(
                claim=claim, tenant=tenant, channel=channel, watch=watch, spent=spent, hopeless=attempts > MOST_CLAIMS
            )
            return await self._next(work)

    async def _next(self, work: _Work, restarts: int = 0) -> Release:
        """Go on with what stands at the lane's head. `restarts`: how often what was asked has changed meanwhile."""
        claim, watch = work.claim, work.watch
        try:
            found = await watch.db(self._openings.open(work.wanted))
        except msgspec.DecodeError:  # rows of another build, or damaged ones
            if not work.hopeless:
                raise
            return await self._give_up(claim, work.tenant)
        opened, opening = watch.elapsed, found.opening
        before, chunks = _split(opening)
        if chunks:
            return await self._rest(work, opening, before, chunks)
        # Nothing is left; or the chunks of an entry were erased; or another opening of this lane has only just begun
        # its turn, unseen by ours: a statement whose client is gone may still run. Then the next opening sees it.
        turn = opening.turn
        if turn is None:
            return Release(claim=claim, done_seq=opening.done_seq + 1 if opening.kind == "send" else None)
        if turn.settled:
            return Release(claim=claim, done_seq=turn.last_seq)
        try:
            reply = await self._reply(work, opening, turn)
        except NoPlace:  # seen anew: it may have been edited meanwhile, or have come too late
            log.info("no place yet", tenant=work.tenant.slug, correlation=opening.correlation)
            return Release(claim=claim, done_seq=None, again_in=0.0)
        if before:  # its gate's wait went on while the assistant wrote
            before = msgspec.structs.replace(before, opens_in=max(0.0, before.opens_in - (watch.elapsed - opened)))
        version = opening.version if restarts < MOST_RESTARTS else None
        release = await self._settling.settle(
            self._lane(work, opening), found, turn, version, reply, work.spent, before
        )
        return release or await self._next(work, restarts + 1)

    # --- its steps ---

    async def _rest(self, work: _Work, opening: Opening, before: Chunk | None, chunks: list[Chunk]) -> Release:
        """Send what is left of an entry whose chunks are made; or end it, where it is not to be sent any more."""
        claim, tenant, channel = work.claim, work.tenant, work.channel
        if work.hopeless:
            told_aside(claim, tenant, opening, chunks)
            return await self._give_up(claim, tenant)
        lane = self._lane(work, opening)
        off = not (tenant.enabled and channel.enabled)
        if off and lane.manual:  # a person's text is not let go of without a word
            return await self._give_up(claim, tenant, "its tenant or channel is disabled")
        silent = off or (opening.paused and not lane.manual)
        late = None if silent else await overdue(claim, tenant, channel, opening, chunks)
        if late is not None and await work.watch.db(self._commits.overtake(late)):
            return Release(claim=claim, done_seq=None, again_in=0.0)  # the next opening sees how it stands
        release = await self._delivery.entry(lane, before, chunks, silent=silent)
        if release.done_seq is not None:
            told_aside(claim, tenant, opening, chunks)
        return release

    async def _reply(self, work: _Work, opening: Opening, turn: Turn) -> Reply:
        """What a turn is answered with.

        Raises:
            NoPlace: nobody has got round to it.
        """
        claim, tenant, watch = work.claim, work.tenant, work.watch
        if work.hopeless:
            return self._parked(claim, tenant)
        watch.queue, watch.ack = opening.asked[0].waited, (opening.asked[0].ack_ms or 0.0) / 1000
        due = Due(
            claim=claim,
            tenant=tenant,
            channel=work.channel,
            opening=opening,
            turn=turn,
            watch=watch,
            spent=work.spent,
            deadline=time.monotonic() + (tenant.assistant.deadline_seconds if tenant.assistant else 0.0),
        )
        return self._still_wanted(claim, await self._replies.to(due))

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

    def _lane(self, work: _Work, opening: Opening) -> Lane:
        """What is sent goes by the number as it is by now: its token may have been replaced while the answer was made."""
        claim = work.claim
        return Lane(
            claim=claim,
            tenant=work.tenant,
            channel=self._directory.current.channel(claim.tenant_id, claim.channel_id),
            to=opening.to[0],
            manual=opening.kind == "send",
            correlation=opening.correlation,
            watch=work.watch,
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
        alert(
            log.error,
            "turn_parked",
            "turn parked",
            reason=reason,
            tenant=tenant.slug,
            conversation=claim.conversation_id,
        )


def _split(opening: Opening) -> tuple[Chunk | None, list[Chunk]]:
    """The last chunk that is done, and those of the entry that is not."""
    before = next((chunk for chunk in opening.chunks if chunk.seq <= opening.done_seq), None)
    return before, [chunk for chunk in opening.chunks if chunk.seq > opening.done_seq]
