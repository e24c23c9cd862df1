"""Which lanes this worker has: claims what is due, keeps the lease by beats, gives back what it does not work on.

What is done with a lane is not its business: `work(claim)` does it, and says how to give the lane back.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4

import structlog
from msgspec import Struct

from app import db, metrics, tasks
from app.alerts import alert
from app.crashpoints import crashpoint
from app.settings import Settings
from app.store import doors, lanes
from app.store.lanes import Claim, LaneId, Release
from app.turnstile import Turnstile
from workers.backlog import Share
from workers.commits import Commits

log = structlog.get_logger(__name__)

# Lanes claimed by one statement: between two of them the shares of the tenants are counted anew.
AT_ONCE = 64
# Without a wake-up, what is due is found within this time (seconds).
LOOK = 1.0
# How long a claim under way is waited for when the worker stops (seconds).
FAREWELL = 2.0
# A wait that ends within this time is remembered, and ended on time; a longer one is found by the look (seconds).
LOOK_AHEAD = 60.0
# Every how many beats the worker looks for places that are gone, and for lanes of its own that it does not work on.
BEATS_PER_ROUND = 3
# An error leaves a lane waiting 1, 2, 4 … seconds.
FAILED_AT_MOST = 60.0
# A suspect that the worker has survived for so long makes room for the next (seconds): what kills does it at once.
PROBATION = 1.0
# A web process's place that was not heard of for so long is not waited for any more (seconds).
DOOR_GONE = 60.0


class _Held(Struct, frozen=True):
    """A lane that is worked on: since when (monotonic), and by which task."""

    claim: Claim
    task: asyncio.Task[None]
    since: float


class Lanes:
    """An async context manager: entering registers the worker, leaving drains it and ends its lease."""

    def __init__(self, commits: Commits, settings: Settings, *, grace: float = 20.0) -> None:
        """`grace`: seconds that the turns at work get to end when the worker stops."""
        self._commits = commits
        self._slots = settings.worker_lanes
        self._lease = settings.lease_seconds
        self._send_timeout = settings.send_timeout_seconds
        self._grace = grace
        self._lease_ends = 0.0
        self._held: dict[LaneId, _Held] = {}
        self._rung = asyncio.Event()
        self._passed = asyncio.Condition()
        self._passes = 0
        self._looking = False
        self._share = Share()
        self._strays = False  # a claim or a release got no answer: we may own lanes that we do not know of
        self._stopping = False
        self._turnstile = Turnstile()
        self._work: Callable[[Claim], Awaitable[Release]]

    def serve(self, work: Callable[[Claim], Awaitable[Release]]) -> Self:
        """Name what is done with each lane. It runs as a task of its own, and is cancelled when the lease is lost."""
        self._work = work
        return self

    def may_send(self) -> bool:
        """Whether a send that begins now ends within the lease, by this process's monotonic clock."""
        return self._lease_ends - time.monotonic() > self._send_timeout

    def ring(self) -> None:
        """Something is due: look now."""
        self._rung.set()

    async def done(self, named: Iterable[LaneId]) -> None:
        """Return once a look for due lanes has been made, and those of these lanes that it brought are worked off."""
        self.ring()
        # A look that is under way may be older than the ring: then the one after it counts.
        enough = self._passes + (2 if self._looking else 1)
        async with self._passed:
            await self._passed.wait_for(lambda: self._passes >= enough or self._stopping)
        if at_work := [self._held[lane].task for lane in named if lane in self._held]:
            await asyncio.wait(at_work)

    async def __aenter__(self) -> Self:
        await self._register()
        self._claiming = asyncio.create_task(self._claim_loop(), name="claim")
        self._beating = asyncio.create_task(self._beat_loop(), name="beat")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self.ring()
        # What a claim under way still brings is worked off like the rest, not cut off in its midst.
        await asyncio.wait({self._claiming}, timeout=FAREWELL)
        crashpoint("worker.draining")
        if at_work := [held.task for held in self._held.values()]:
            log.info("draining", lanes=len(at_work), seconds=self._grace)
            await asyncio.wait(at_work, timeout=self._grace)
        await tasks.end(self._claiming)  # before the others: it begins no more of them
        await self._cancel_all()
        await tasks.end(self._beating)
        try:
            async with db.connection(self._commits.pool, vital=True) as conn:
                await lanes.disown(conn, self._commits.worker, [])
                await lanes.leave(conn, self._commits.worker)
        except db.UNAVAILABLE as error:
            log.warning("no farewell: the lease ends by itself", seconds=self._lease, error=error)

    # --- the lease ---

    async def _register(self) -> None:
        while True:
            began = time.monotonic()
            try:
                async with db.connection(self._commits.pool, vital=True) as conn:
                    await lanes.register(conn, self._commits.worker, self._lease)
            except db.UNAVAILABLE as error:
                log.warning("worker cannot register yet", error=error)
                await asyncio.sleep(LOOK)
            else:
                self._lease_ends = began + self._lease
                log.info("worker registered", worker=self._commits.worker, seconds=self._lease)
                return

    async def _beat_loop(self) -> None:
        pause = (self._lease - self._send_timeout) / 2
        beats = 0
        while True:
            await asyncio.sleep(min(pause, 1.0) if not self.may_send() else pause)
            began = time.monotonic()
            try:
                async with db.connection(self._commits.pool, vital=True) as conn:
                    alive = await lanes.beat(conn, self._commits.worker, self._lease)
                    beats += 1
                    if long := list(self._retried(began - PROBATION)):
                        await lanes.survived(conn, self._commits.worker, long)
                    if alive and (freed := await lanes.bury(conn)):
                        log.warning("lanes of a dead worker freed", lanes=freed)
                        self.ring()
                    if alive and beats % BEATS_PER_ROUND == 0:
                        await doors.bury(conn, DOOR_GONE)
                        self._strays = True
            except db.UNAVAILABLE as error:
                log.warning("beat failed", error=error)
                continue
            if alive:
                self._lease_ends = began + self._lease
            else:
                await self._reborn()

    async def _reborn(self) -> None:
        """Taken for dead: whatever this worker had is another's now. It goes on under a new id."""
        alert(log.error, "lease_lost", "lease lost", worker=self._commits.worker, lanes=len(self._held))
        self._lease_ends = 0.0
        await self._cancel_all()
        self._commits.worker = uuid4()
        await self._register()

    async def _cancel_all(self) -> None:
        await tasks.end(*(held.task for held in self._held.values()))

    # --- the lanes ---

    async def _claim_loop(self) -> None:
        while not self._stopping:
            self._rung.clear()
            self._looking = True
            try:
                await self._look()
            except db.UNAVAILABLE as error:
                self._strays = True
                log.warning("claim failed", error=error)
                await asyncio.sleep(LOOK / 4)
            self._passes += 1
            self._looking = False
            async with self._passed:
                self._passed.notify_all()
            try:
                async with asyncio.timeout(LOOK):
                    await self._rung.wait()
            except TimeoutError:
                pass
        async with self._passed:
            self._passed.notify_all()

    async def _look(self) -> None:
        if self._strays:
            self._strays = False
            async with db.connection(self._commits.pool) as conn:
                if given := await lanes.disown(conn, self._commits.worker, list(self._held)):
                    log.warning("lanes given back that nobody worked on", lanes=given)
        while (free := self._slots - len(self._held)) > 0 and not self._stopping:
            worker, most = self._commits.worker, min(free, AT_ONCE)
            claims = await self._claim(worker, most)
            for claim in claims:
                await self._turnstile.through()
                # Else it was taken for dead meanwhile, and they are another's.
                if worker == self._commits.worker and self._lease_ends:
                    self._begin(claim)
            if len(claims) < most:
                break
        metrics.lanes_held(len(self._held))

    async def _claim(self, worker: UUID, most: int) -> list[Claim]:
        share = Counter(tenant for tenant, _ in self._held)
        full = [tenant for tenant, lanes_held in share.items() if lanes_held >= max(1, self._slots // 2)]
        suspects = not any(self._on_probation())
        behind = self._share.of(most)
        async with db.connection(self._commits.pool) as conn:
            claims = await lanes.claim(conn, worker, most, full, behind=behind, suspects=suspects)
            if not claims and full:  # nobody else waits
                claims = await lanes.claim(conn, worker, most, behind=behind, suspects=suspects)
        if claims:
            crashpoint("lane.claimed")
        return claims

    def _begin(self, claim: Claim) -> None:
        task = asyncio.create_task(self._attend(claim), name=f"lane {claim.conversation_id}")
        self._held[claim.lane] = _Held(claim, task, time.monotonic())
        if claim.suspect:
            asyncio.get_running_loop().call_later(PROBATION, self.ring)

    def _on_probation(self) -> Iterator[LaneId]:
        """Suspects that may yet kill this worker."""
        since = time.monotonic() - PROBATION
        return (lane for lane, held in self._held.items() if held.claim.suspect and held.since > since)

    def _retried(self, since: float) -> Iterator[LaneId]:
        """Lanes that were claimed before without progress, and are worked on since then or longer."""
        return (lane for lane, held in self._held.items() if held.claim.attempts > 1 and held.since < since)

    async def _attend(self, claim: Claim) -> None:
        due_in = None
        try:
            try:
                release = await self._work(claim)
            except db.BAD_DATA as error:  # it would be refused at every try, as any other failure
                release = self._failed(claim, error)
            except db.UNAVAILABLE as error:
                log.warning("lane left", conversation=claim.conversation_id, error=error)
                self._strays = True
                return
            except Exception as error:  # noqa: BLE001  a lane that fails waits; the others go on
                release = self._failed(claim, error)
            # From here on the lane may be claimed again, by this very worker: then it is held anew.
            try:
                due_in = await self._commits.release(release)
            except db.UNAVAILABLE as error:
                log.warning("release without an answer", conversation=claim.conversation_id, error=error)
                self._strays = True
        finally:
            crowded = len(self._held) >= self._slots
            if (held := self._held.get(claim.lane)) and held.claim is claim:
                del self._held[claim.lane]
            if crowded or due_in == 0 or claim.suspect:
                self.ring()
            elif due_in is not None and due_in < LOOK_AHEAD:
                asyncio.get_running_loop().call_later(due_in, self.ring)

    def _failed(self, claim: Claim, error: Exception) -> Release:
        again_in = min(FAILED_AT_MOST, 2.0 ** min(claim.attempts - 1, 10))
        alert(
            log.error,
            "lane_failed",
            "lane failed",
            conversation=claim.conversation_id,
            attempts=claim.attempts,
            seconds=again_in,
            error=error,
        )
        return Release(claim=claim, done_seq=None, again_in=again_in, failed=True)
