"""Hands the chunks of one entry to the provider, in order: gate, intent, POST, fact. Knows no assistant.

The intent is committed before the POST, the fact as soon as it is known. docs/chunks.md draws the states.
"""

import asyncio
import time
from contextlib import AbstractContextManager
from uuid import UUID

import httpx
import msgspec
import structlog
from msgspec import Struct

from app import metrics, tasks
from app.alerts import alert
from app.breaker import Call
from app.channels import Accepted, provider
from app.crashpoints import crashpoint
from app.db import STATEMENT_TIMEOUT
from app.directory import Channel, Tenant, Watch
from app.errors import DatabaseUnavailable, HeldBack, InDoubt, NeverLeft, Refused, SendError
from app.messages import Identity, Key
from app.settings import Settings
from app.store.chunks import Fact, Intent, Permission
from app.store.lanes import Claim, Release
from app.store.turns import Chunk
from workers.breakers import Breakers
from workers.budget import Budget, jittered
from workers.commits import Commits
from workers.lane import Lanes
from workers.stopwatch import Stopwatch

log = structlog.get_logger(__name__)

# A provider that is busy, or cannot be reached, is tried again; after so many answers "not now" the chunk has failed.
MOST_REFUSALS = 20
UNREACHABLE_AT_MOST = 60.0
# A provider that takes each send, loses each answer and never sends a status would get the same text for ever.
MOST_DOUBTS = 8
# What happened and cannot be recorded is told again after a pause that doubles, from the one to the other (seconds): many
# sends may have ended just before the database was lost, and its breaker turns them all away for as long as it is open.
AGAIN, AGAIN_AT_MOST = 0.1, 1.0
# States in which a chunk is with the provider, or will never be.
DONE = frozenset({"accepted", "sent", "delivered", "read", "played", "failed", "parked", "cancelled"})
LOST = frozenset({"failed", "parked"})


class Lane(Struct, frozen=True, kw_only=True):
    """A claimed lane with all that delivering needs to know of it."""

    claim: Claim
    tenant: Tenant
    channel: Channel
    to: Identity
    manual: bool
    """The entry is a person's: a pause does not stop it."""
    correlation: str
    watch: Stopwatch


class Delivery:
    """`entry` delivers what is left of one entry, and says how to give the lane back."""

    def __init__(
        self,
        commits: Commits,
        lanes: Lanes,
        directory: Watch,
        client: httpx.AsyncClient,
        settings: Settings,
        breakers: Breakers,
    ) -> None:
        self._breakers = breakers
        self._breakers.reopened = self._reopened
        self._commits = commits
        self._lanes = lanes
        self._directory = directory
        self._client = client
        self._settings = settings
        self._budget = Budget()
        self._behind = tasks.Behind()
        self._held_until: dict[UUID, float] = {}  # by channel or tenant; monotonic
        self.order_wait = settings.order_wait_seconds

    async def entry(self, lane: Lane, before: Chunk | None, chunks: list[Chunk], *, silent: bool = False) -> Release:
        """Send those of `chunks` (one entry's, in order) that are to be sent now; `before` is the last one before them.

        `silent`: nothing may be sent any more (a pause, a channel that is off): the rest ends unsent.
        """
        seq = chunks[-1].seq
        opens_in = before.opens_in if before else 0.0
        for chunk in chunks:
            state, n = chunk.state, chunk.attempt
            if state == "in_doubt":
                wait = self._silence(chunk)
                if wait > 0:
                    return Release(claim=lane.claim, done_seq=None, again_in=wait)
                if silent or lane.tenant.in_doubt == "park" or chunk.doubts >= MOST_DOUBTS:
                    return await self._abandon(lane, seq, "in doubt, and silence", in_doubt=chunk.id)
            if state in ("ready", "in_doubt"):
                if silent:
                    return await self._abandon(lane, seq, "left to a person")
                if (wait := max(opens_in, chunk.due_in)) > 0:
                    return Release(claim=lane.claim, done_seq=None, again_in=wait)
                with self.place(lane) as call:
                    if call is None:  # nothing is written but the lane's release: no attempt, no retry
                        return Release(claim=lane.claim, done_seq=None, again_in=self._comes_again(lane))
                    retry = state == "ready" and chunk.again
                    if retry and (wait := self._budget.may_retry(lane.channel.id)) > 0:
                        return Release(claim=lane.claim, done_seq=None, again_in=jittered(wait))
                    permission = await self._intend(lane, chunk.id, n + 1)
                    if retry and permission.fence != "ok":
                        self._budget.give_back(lane.channel.id)
                    if permission.fence == "ok":
                        if state == "in_doubt":
                            log.warning(
                                "sent again after silence", chunk=chunk.id, attempt=n + 1, correlation=lane.correlation
                            )
                        state = await self.send(lane, chunk, n + 1, call)
                if permission.fence == "paused":
                    return await self._abandon(lane, seq, "left to a person")
                if permission.fence == "held":
                    return Release(claim=lane.claim, done_seq=None, again_in=jittered(permission.wait))
                if permission.fence != "ok":  # lost: not ours any more. moot: a status told meanwhile; look anew
                    return Release(claim=lane.claim, done_seq=None, again_in=0.0)
            if state in LOST:
                return await self._abandon(lane, seq, "an earlier part of the answer was lost")
            if state not in DONE:
                # `ready`, later; or `sending`, though its fact is committed: a status was faster than we. Look anew.
                wait = self._settings.in_doubt_seconds if state == "in_doubt" else 0.0
                return Release(claim=lane.claim, done_seq=None, again_in=wait)
            if state in ("accepted", "sent"):
                opens_in = chunk.opens_in if chunk.state == state else self.order_wait
            else:
                opens_in = 0.0
        return Release(claim=lane.claim, done_seq=seq)

    def free(self, tenant: Tenant, channel: Channel) -> bool:
        """Whether a number may be asked for what is no message: nothing is held back from it, and it is well."""
        return not self._held(tenant.id, channel.id) and self._breakers.well(tenant, channel)

    def place(self, lane: Lane) -> AbstractContextManager[Call | None]:
        """A place for one send in the breaker of the lane's channel, to be taken before its intent; None: not now."""
        return self._breakers.channel(lane.tenant, lane.channel)

    async def send(self, lane: Lane, chunk: Chunk, n: int, call: Call) -> str:
        """POST a chunk whose intent (attempt `n`) is committed; record the fact; the chunk's state afterwards.

        `call`: the `place` that it has.
        """
        crashpoint("deliver.intended")
        if n == 1:
            self._budget.first(lane.channel.id)
        key = Key(chunk.id, n)
        began = time.monotonic()
        fact = await self._attempt(lane, key, chunk, call)
        took = time.monotonic() - began
        lane.watch.sent(took)
        metrics.send(fact.attempt)
        metrics.stage("send", took)
        log.info(
            "sent",
            outcome=fact.attempt,
            tenant=lane.tenant.slug,
            chunk=chunk.id,
            attempt=n,
            send_ms=round(took * 1000, 1),
            code=fact.code,
            correlation=lane.correlation,
        )
        crashpoint("deliver.answered")
        heard = time.monotonic()
        if fact.holds:  # minded here at once, and by the other workers as soon as it is committed
            self._held_until[_whom(fact)] = max(self._held_until.get(_whom(fact), 0.0), heard + fact.due_in)
        # What happened is recorded whatever becomes of this task: a cancelled one must not leave a sent chunk in doubt.
        state = await asyncio.shield(lane.watch.db(self._record(fact, heard)))
        crashpoint("deliver.recorded")
        if state == "failed" and fact.chunk == "failed":
            alert(
                log.error,
                "chunk_failed",
                "message failed",
                tenant=lane.tenant.slug,
                chunk=key.chunk_id,
                code=fact.code,
                reason=fact.reason,
                correlation=lane.correlation,
            )
        return state

    async def _attempt(self, lane: Lane, key: Key, chunk: Chunk, call: Call) -> Fact:
        def fact(**outcome: object) -> Fact:
            return Fact(claim=lane.claim, chunk_id=key.chunk_id, n=key.attempt, **outcome)  # type: ignore[arg-type]

        try:
            accepted = await self._post(lane, key, chunk, call)
        except Refused as error:
            again = error.then == "hold" or (error.then == "again" and chunk.refusals < MOST_REFUSALS)
            if error.then == "hold":
                alert(
                    log.error,
                    "channel_held",
                    "channel held: mend it, then `qasid apply`",
                    tenant=lane.tenant.slug,
                    channel=lane.channel.slug,
                    code=error.code,
                )
            return fact(
                attempt="held" if error.then == "hold" else "refused",
                chunk="ready" if again else "failed",
                code=error.code,
                reason=_plain(error),
                due_in=jittered(error.after),
                holds=error.scope if error.scope != "chunk" and error.after else None,
            )
        except NeverLeft as error:
            wait = self._held_for(lane)
            if not wait and isinstance(error, HeldBack) and not call.stands:  # its breaker opened before the first byte
                wait = self._comes_again(lane)
            wait = wait or min(UNREACHABLE_AT_MOST, 2.0 ** min(key.attempt - 1, 10))
            return fact(attempt="never_left", chunk="ready", reason=_plain(error), due_in=jittered(wait))
        except InDoubt as error:
            holds = "channel" if error.after else None
            return fact(attempt="in_doubt", chunk="in_doubt", reason=_plain(error), due_in=error.after, holds=holds)
        return fact(attempt="accepted", chunk="accepted", provider_id=accepted.provider_id)

    async def _post(self, lane: Lane, key: Key, chunk: Chunk, call: Call) -> Accepted:
        """The POST, and what it says of its channel."""
        transport = provider(self._directory.current.endpoint_of(lane.channel).kind)
        try:
            accepted = await transport.send_text(
                self._client,
                lane.channel,
                lane.to,
                chunk.body,
                key,
                self._settings.send_timeout_seconds,
                refused=chunk.refusals + chunk.holds,
                pair_seconds=self._settings.pair_seconds,
                # The last check, with no await before the first byte: a send that begins there ends within the lease, so
                # no other worker can have begun one of its own; and nobody has just been told that the number must wait.
                may_leave=lambda: self._lanes.may_send() and not self._held_for(lane) and call.stands,
            )
        except SendError as error:
            call.ended(error)
            raise
        call.answered()
        return accepted

    def _comes_again(self, lane: Lane) -> float:
        return self._breakers.comes_again(lane.tenant, lane.channel)

    def _reopened(self, tenant: UUID, channel: UUID) -> None:
        self._behind.start(self._wake(tenant, channel), "reopened")

    async def _wake(self, tenant: UUID, channel: UUID) -> None:
        try:
            # The second time for those that were just being given back when it opened.
            for pause in (0.0, 1.0):
                await asyncio.sleep(pause)
                if await self._commits.wake_channel(tenant, channel):
                    self._lanes.ring()
        except DatabaseUnavailable as error:
            log.warning("lanes wait for their time", channel=channel, error=error)

    async def _intend(self, lane: Lane, chunk: UUID, n: int) -> Permission:
        try:
            return await lane.watch.db(self._commits.intend(Intent(lane.claim, chunk, n, lane.manual)))
        except (DatabaseUnavailable, asyncio.CancelledError):
            self.disclaim(lane, chunk, n)
            raise

    def disclaim(self, lane: Lane, chunk: UUID, n: int) -> None:
        """The intent of attempt `n` may be committed, its answer is lost: say, as soon as it can be said, that nothing was sent."""
        unsent = "the answer to its intent was lost, nothing was sent"
        fact = Fact(claim=lane.claim, chunk_id=chunk, n=n, attempt="never_left", chunk="ready", reason=unsent)
        self._behind.start(self._disclaim(fact), "disclaim")

    async def _disclaim(self, fact: Fact) -> None:
        try:
            # A frozen server may commit the intent after the first time: by the second its statement has ended.
            for pause in (0.0, STATEMENT_TIMEOUT):
                await asyncio.sleep(pause)
                if await self._record(fact, time.monotonic()) == "ready":
                    await self._commits.wake(fact.claim.lane)
        except DatabaseUnavailable as error:
            log.warning("an unsent message stays in doubt", chunk=fact.chunk_id, attempt=fact.n, error=error)

    def _held_for(self, lane: Lane) -> float:
        """Seconds that nothing may be sent for this lane; 0: it may."""
        return self._held(lane.tenant.id, lane.channel.id)

    def _held(self, tenant: UUID, channel: UUID) -> float:
        now, until = time.monotonic(), 0.0
        for whom in (channel, tenant):
            if (held := self._held_until.get(whom, 0.0)) > now:
                until = max(until, held)
            else:
                self._held_until.pop(whom, None)
        return max(0.0, until - now)

    async def _record(self, fact: Fact, heard: float) -> str:
        """Keep trying for as long as anybody waits for a status of it. Its waits count from `heard` (monotonic)."""
        pause = AGAIN
        while True:
            waited = time.monotonic() - heard
            left = msgspec.structs.replace(fact, due_in=max(0.0, fact.due_in - waited)) if fact.due_in else fact
            try:
                state = await self._commits.record(left)
            except DatabaseUnavailable:
                if waited > self._settings.in_doubt_max_seconds:
                    raise
                await asyncio.sleep(jittered(pause))
                pause = min(2 * pause, AGAIN_AT_MOST)
                continue
            if fact.holds and (until := self._held_until.get(_whom(fact))):
                # From here on each intent asks the database, where a person may end the wait. Those let through are left.
                self._held_until[_whom(fact)] = min(until, time.monotonic() + self._settings.send_timeout_seconds)
            return state

    async def _abandon(self, lane: Lane, seq: int, reason: str, in_doubt: UUID | None = None) -> Release:
        ended = await lane.watch.db(self._commits.abandon(lane.claim, seq, reason, in_doubt))
        if in_doubt is not None and not ended:  # a status has come meanwhile: look anew
            return Release(claim=lane.claim, done_seq=None, again_in=0.0)
        if "parked" in ended:
            alert(
                log.error,
                "chunk_parked",
                "message parked",
                tenant=lane.tenant.slug,
                conversation=lane.claim.conversation_id,
                reason=reason,
                correlation=lane.correlation,
            )
        return Release(claim=lane.claim, done_seq=seq)

    def _silence(self, chunk: Chunk) -> float:
        """Seconds until silence about a chunk in doubt says enough; 0: it does."""
        patience = self._settings.in_doubt_seconds
        at_last = self._settings.in_doubt_max_seconds - chunk.doubt_for
        if at_last <= 0:
            return 0.0
        quiet = patience - chunk.quiet_for
        if quiet <= 0 and chunk.flowing:
            return 0.0
        return max(0.05, min(at_last, quiet if quiet > 0 else patience / 4))


def _whom(fact: Fact) -> UUID:
    """Whom a fact's wait binds: the channel, or the tenant with all its numbers."""
    return fact.claim.channel_id if fact.holds == "channel" else fact.claim.tenant_id


def _plain(error: Exception) -> str:
    return str(error).replace("\0", "")[:300]
