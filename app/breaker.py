"""When to stop asking a dependency, and when to ask again: one machine, one policy as data for each kind of dependency.

It does no I/O: callers let it watch their calls, a prober tells it what it hears, and metrics hang on `on_change`.
It belongs to one event loop. What counts as a failure of which dependency is told in app/policies.py.
"""

import random
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal

import msgspec
import structlog

from app.errors import QasidError

log = structlog.get_logger(__name__)

State = Literal["closed", "slow", "open", "half_open"]
Forced = Literal["open", "closed"]
# What a call's end says of the dependency; `late`: a failure by a missed deadline; `neither`: nothing at all.
Verdict = Literal["good", "failed", "late", "neither"]

# A breaker stands open while it is so: half open, it still lets nobody in but the one who asks.
STANDS_OPEN = ("open", "half_open")

# A pause is cut by up to so much of itself: processes that lost a provider together do not come back together.
SPREAD = 0.25


class Open(QasidError):
    """Not asked: the breaker of `dependency` is open. It counts for no breaker that stands around this one.

    `retry_after`: in how many seconds a call may ask again. None: that is not for time to say.
    """

    retry_after: float | None

    def __init__(self, dependency: str, *, retry_after: float | None) -> None:
        super().__init__(f"{dependency} is not asked for now: its breaker is open")
        self.retry_after = retry_after


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """When a breaker opens, and what closes it. A rule whose figure is 0 (or infinite) does not exist.

    Opens: after `failures` or `deadlines` in a row, nothing good between them, where a failed probe counts as a missed
    deadline; or when `share` of the calls in the window failed. Is `slow`, which keeps nobody out and advises against
    reads (`Breaker.allows_reads`), while more than half of the calls in the window took over `slow` seconds. Both need
    `least` calls. The window is `window` buckets of a second.

    Closes: after `answers` good probes in a row. Who probes? With `pause` 0 a prober, which calls `Breaker.probed`. Else
    a caller: after `pause` × 2ⁿ seconds, at most `longest_pause`, the first who asks is the probe, alone. Unless it has
    ended after `longest_probe` seconds, it is taken for lost and the next caller probes.

    `probe_deadline` (seconds): a prober's probe counts as one missed deadline for each of these that it took to fail.
    """

    judge: Callable[[Exception], Verdict]
    refusal: type[Open]
    failures: int = 0
    deadlines: int = 0
    share: float = 0.0
    slow: float = float("inf")
    least: int = 10
    window: int = 10
    answers: int = 1
    probe_deadline: float = 0.45
    pause: float = 0.0
    longest_pause: float = 45.0
    longest_probe: float = 15.0


class Call:
    """One call under watch, made by `Breaker.watching`: a context manager, to be entered once."""

    __slots__ = ("_began", "_breaker", "_generation", "_reads")

    def __init__(self, breaker: "Breaker", reads: bool) -> None:
        self._breaker = breaker
        self._reads = reads

    def __enter__(self) -> "Call":
        breaker = self._breaker
        if not breaker._calm:
            breaker._admit(self)
        self._generation = breaker._generation
        self._began = breaker._clock()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._breaker._left(self, error)

    @property
    def stands(self) -> bool:
        """Whether it would be let in still: for a last look before it is made."""
        breaker = self._breaker
        return breaker.state in ("closed", "slow") or (self is breaker._probe and breaker._forced != "open")

    def answered(self) -> None:
        """It answers: count the call as good, now; what comes after is not watched."""
        self.ended(None)

    def began(self) -> None:
        """The first words of a stream are here. For the probe, whose end others wait for, that is enough."""
        if self is self._breaker._probe:
            self.answered()

    def ended(self, error: BaseException | None) -> None:
        """Count it now, as ended so; what comes after is not watched. A cancellation: it was not made, and counts nowhere."""
        self._breaker._left(self, error)
        self._generation = -1


class Breaker:
    """Watches the calls to one dependency, and refuses them while it is not worth asking.

    A call's end counts only in the closed spell in which the call began: a success from before the breaker opened does
    not close it, a failure from before it closed does not open it again.

    A good probe of a prober speaks for probes alone, and a good read for reads: a server that answers `SELECT 1` may
    still take no write, so what writes failed in a row stands until a write succeeds, or for `window` seconds.
    Cancellations, refused data and our own pool's saturation count in neither direction. `PoolTimeout` is saturation
    even when the pool is empty because the server is gone: the pool cannot tell. It is the prober, outside the pool,
    that makes up for it: its failures alone open the breaker.

    `name` is one word (it is logged); `clock` gives seconds and never goes back; `draw` a number in [0, 1).
    `on_change(breaker, before)` hears each change of `state` or `forced`; `before` is the state until then.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
        on_change: "Callable[[Breaker, State], None] | None" = None,
    ) -> None:
        self.name = name
        self.policy = policy
        self.on_change = on_change
        self.opened = 0
        self.stood_open = 0.0
        """For how long, the last time (seconds): told when it lets calls in again."""
        self._clock = clock
        self._draw = draw
        self._slow_over = policy.slow
        self._forced: Forced | None = None
        self._opened_at = 0.0
        self._phase: State = "closed"  # what the state is when nobody forces it
        self._why = "nothing is amiss"
        self._generation = 0  # of closed spells
        # In a row: calls that failed, those of them that were late, probes that failed.
        self._failures = self._late = self._missed = 0
        self._write_failed_at = float("-inf")  # the last of them that was no read
        self._answers = 0  # good probes in a row
        self._pauses = 0
        self._until = 0.0
        self._probe: Call | None = None
        self._probe_until = 0.0
        self._ring = [[0, 0, 0] for _ in range(policy.window)]  # calls, failed, slow: second by second
        self._second = int(clock())
        self._bucket = self._ring[self._second % policy.window]
        self._turns_at = self._second + 1.0
        # Closed, and nothing in sight that could change that: most calls' way in and out is a few comparisons.
        self._calm = True

    # What people and callers see

    @property
    def state(self) -> State:
        """`slow`: whoever can do without a read does. `half_open`: one caller has been let through to ask."""
        return self._forced or self._phase

    @property
    def reason(self) -> str:
        """Why it is in this state: a sentence that quotes no data."""
        return f"a person holds it {self._forced}" if self._forced else self._why

    @property
    def allows_writes(self) -> bool:
        """Whether a write that began now would be let through; asking takes nobody's place as the probe."""
        return self._forced != "open" and (
            self._forced == "closed" or self._phase in ("closed", "slow") or self._may_probe(self._clock())
        )

    @property
    def allows_reads(self) -> bool:
        """Whether a read should be made now: a database that is slow is spared those that can be spared. None is refused."""
        if self._phase == "slow":
            self._weigh(self._clock())
        return self.allows_writes and (self._forced == "closed" or self._phase != "slow")

    @property
    def retry_in(self) -> float | None:
        """Seconds until a caller may ask; None if that is not for time to say."""
        if self._forced or self.policy.pause == 0.0 or self._phase in ("closed", "slow"):
            return None
        return max(0.0, (self._until if self._probe is None else self._probe_until) - self._clock())

    @property
    def forced(self) -> Forced | None:
        """A person's word, which stands above what the machine thinks until it is taken back (None).

        The machine goes on underneath with what it still hears, so that it is up to date when it takes over again.
        """
        return self._forced

    @forced.setter
    def forced(self, value: Forced | None) -> None:
        if value not in ("open", "closed", None):
            raise ValueError("a breaker is forced open, closed, or not at all (None)")
        if value != self._forced:
            before = self.state
            self._forced = value
            self._settle(before)

    # What it hears

    def watching(self, *, reads: bool = False) -> Call:
        """Let the breaker watch what happens inside: `with breaker.watching(): ...`, awaits and all.

        `reads`: it only reads, so its success says nothing of writes. Who would spare a slow server a read asks
        `allows_reads` first. Stand outside of `asyncio.timeout`, which turns into
        TimeoutError only at its edge: inside, a missed deadline is just a cancellation. And inside of the wait for a
        connection: what our pool takes is no slowness of the server.

        Raises (on entering):
            Open: the call may not be made; the class is the policy's.
        """
        return Call(self, reads)

    def probed(self, ok: bool, took: float) -> None:
        """What a prober heard, asking once a second, open or closed; `took` in seconds.

        To open within 2 s of a loss with one probe a second, let a probe wait for 0.9 s (two deadlines of 0.45 s missed:
        1.9 s at worst), and report each try of a probe whose connection broke: the broken one and the refused new one.
        """
        now = self._clock()
        if self._phase in ("open", "half_open"):
            self._answers = self._answers + 1 if ok else 0
            if self._answers >= self.policy.answers:
                self._close()
        else:
            self._missed = 0 if ok else self._missed + max(1, int(took / self.policy.probe_deadline + 1e-6))
            self._weigh(now, "a probe")

    def _left(self, call: Call, error: BaseException | None) -> None:
        """A call has ended. When all is well and was, that is counted, and no more."""
        current = call._generation == self._generation
        now = self._clock()
        slow = now - call._began > self._slow_over
        if self._calm and error is None and current and not slow and now < self._turns_at:
            self._bucket[0] += 1
            return
        if error is None:
            verdict: Verdict = "good"
        elif isinstance(error, Open) or not isinstance(error, Exception):  # a cancellation is no Exception
            verdict = "neither"
        else:
            verdict = self.policy.judge(error)
        if call is self._probe:
            self._probe = None
            self._probe_ended(verdict, now, error)
        elif verdict != "neither" and current and self._phase in ("closed", "slow"):
            self._count(verdict, now, slow, call._reads)
            self._weigh(now, type(error).__name__)

    def late(self) -> None:
        """A deadline has passed for which nobody waits any more: its call will end as a mere cancellation."""
        if self._phase in ("closed", "slow"):
            now = self._clock()
            self._count("late", now, True, False)
            self._weigh(now, "a call that was left behind")

    def check(self) -> None:
        """Raises Open if a call that began now would be refused: before one waits for a connection to make it with."""
        if not self._calm and not self.allows_writes:
            raise self._refusal()

    # The machine

    def _admit(self, call: Call) -> None:
        """Let the call in, perhaps as the probe, or raise."""
        now = self._clock()
        if self._forced != "open":
            if self._may_probe(now):
                self._probe = call
                self._probe_until = now + self.policy.longest_probe
                self._become("half_open", "a call has been let through to ask")
                return
            if self._forced == "closed" or self._phase in ("closed", "slow"):
                return
        raise self._refusal()

    def _refusal(self) -> Open:
        return self.policy.refusal(self.name, retry_after=self.retry_in)

    def _may_probe(self, now: float) -> bool:
        """Whether a caller who asks now is the probe."""
        if self.policy.pause == 0.0 or self._phase in ("closed", "slow") or now < self._until:
            return False
        return self._probe is None or now >= self._probe_until

    def _probe_ended(self, verdict: Verdict, now: float, error: BaseException | None) -> None:
        if verdict == "good":
            self._answers += 1
            if self._answers >= self.policy.answers:
                self._close()
        elif verdict != "neither":  # else the next who asks is the probe
            self._pauses += 1
            self._open(now, f"it failed again when a call asked: {type(error).__name__}")

    def _count(self, verdict: Verdict, now: float, slow: bool, reads: bool) -> None:
        self._roll(now)
        bucket = self._bucket
        bucket[0] += 1
        bucket[2] += slow
        if verdict != "good":
            bucket[1] += 1
            self._failures += 1
            self._late += verdict == "late"
            if not reads:
                self._write_failed_at = now
        elif not reads or now - self._write_failed_at > self.policy.window:  # what is that old, ails no more
            self._failures = self._late = self._missed = 0

    def _weigh(self, now: float, last: str = "") -> None:
        """Closed or slow: is that still so? `last`: the name of what came last."""
        self._roll(now)
        policy = self.policy
        calls, failed, slow = (sum(column) for column in zip(*self._ring, strict=True))
        enough = calls >= policy.least
        if policy.deadlines and self._late + self._missed >= policy.deadlines:
            self._open(now, f"{self._late + self._missed} deadlines missed in a row, the last: {last}")
        elif policy.failures and self._failures + self._missed >= policy.failures:
            self._open(now, f"{self._failures + self._missed} failures in a row, the last: {last}")
        elif policy.share and enough and failed >= policy.share * calls:
            self._open(now, f"{failed} of {calls} calls in {policy.window} s failed")
        elif enough and 2 * slow > calls:
            if self._phase == "closed":
                limit = f"{1000 * policy.slow:g} ms"
                self._become(
                    "slow", f"{slow} of {calls} calls in {policy.window} s took over {limit}: reads are spared"
                )
        elif self._phase == "slow":
            self._become("closed", "most calls are quick again, or none was made for a while")
        # Failures in a window matter to its share alone, those in a row to the others.
        self._calm = (
            self.state == self._phase == "closed"
            and not (self._failures or self._missed or slow)
            and not (failed and policy.share)
        )

    def _open(self, now: float, reason: str) -> None:
        policy = self.policy
        pause = min(policy.longest_pause, policy.pause * 2.0 ** min(self._pauses, 30)) * (1.0 - SPREAD * self._draw())
        self._until = now + pause
        self._answers = 0
        self.opened += self._phase in ("closed", "slow")
        self._become("open", reason)

    def _close(self) -> None:
        self._generation += 1
        self._probe = None
        self._failures = self._late = self._missed = self._answers = self._pauses = 0
        self._write_failed_at = float("-inf")
        for bucket in self._ring:
            bucket[:] = 0, 0, 0
        self._become("closed", "it answers again")

    def _roll(self, now: float) -> None:
        """Empty the buckets of the seconds that have begun since, and make this second's the current one."""
        if now < self._turns_at:
            return
        second, window = int(now), self.policy.window
        for past in range(min(second - self._second, window)):
            self._ring[(second - past) % window][:] = 0, 0, 0
        self._second = second
        self._bucket = self._ring[second % window]
        self._turns_at = second + 1.0

    def _become(self, phase: State, reason: str) -> None:
        before, again = self.state, phase == self._phase
        self._phase = phase
        self._why = reason
        if not again:
            self._settle(before)

    def _settle(self, before: State) -> None:
        """The state or who holds it may have changed: tell of it."""
        state = self.state
        self._calm = False  # until the next call has been weighed
        if (opens := state in STANDS_OPEN) != (before in STANDS_OPEN):
            now = self._clock()
            if opens:
                self._opened_at = now
            else:
                self.stood_open = now - self._opened_at
        tell = log.info if state == "closed" else log.warning
        if self.policy.pause and {before, state} <= {"open", "half_open"}:
            tell = log.debug  # a caller's probe, and what it heard: once a minute for as long as it lasts
        tell("breaker changed", breaker=self.name, state=state, reason=self.reason)
        if self.on_change is not None:
            try:
                self.on_change(self, before)
            except Exception:  # whoever listens, the call that moved the breaker is not theirs to break
                log.exception("a breaker's listener failed", breaker=self.name)
