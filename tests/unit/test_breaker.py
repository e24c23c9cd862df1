"""The breaker: what opens it, what closes it, what says nothing, and what it costs when all is well."""

import asyncio
from collections import Counter
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from app.breaker import Breaker, Call, Open, Policy
from app.errors import (
    AssistantBusy,
    AssistantRefused,
    DatabaseUnavailable,
    HeldBack,
    InDoubt,
    NeverLeft,
    Refused,
    TranslatorRefused,
)
from app.policies import (
    ASSISTANT,
    BAD_DATA,
    CHANNEL,
    DATABASE,
    TRANSCRIBER,
    TRANSLATOR,
    AssistantOpen,
    ChannelOpen,
    DatabaseOpen,
    TranscriberOpen,
    TranslatorOpen,
    of_assistant,
    of_channel,
    of_database,
)

LOST = psycopg.OperationalError("the server is gone")
LATE = TimeoutError()
BUSY = InDoubt("HTTP 503")


class Clock:
    """Seconds that only a test moves."""

    def __init__(self, at: float = 1000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def made(policy: Policy, drawn: float = 0.0) -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker("it", policy, clock=clock, draw=lambda: drawn), clock


def state_of(breaker: Breaker) -> str:
    """Its state: mypy would take the property for a variable that nothing between two assertions can change."""
    return breaker.state


def begun(breaker: Breaker, *, reads: bool = False) -> Call:
    return breaker.watching(reads=reads).__enter__()


def ended(call: Call, error: BaseException | None = None) -> None:
    call.__exit__(type(error) if error else None, error, None)


def calls(breaker: Breaker, *errors: BaseException | None) -> None:
    """One call after the other, each ending so."""
    for error in errors:
        ended(begun(breaker), error)


def caused(cause: BaseException | None) -> DatabaseUnavailable:
    error = DatabaseUnavailable("no")
    error.__cause__ = cause
    return error


def refused(breaker: Breaker) -> bool:
    try:
        ended(begun(breaker), asyncio.CancelledError())
    except Open:
        return True
    return False


# The database opens


@pytest.mark.parametrize(
    ("errors", "state"),
    [
        ([LOST] * 4, "closed"),
        ([LOST] * 5, "open"),
        ([LOST] * 4 + [None] + [LOST] * 4, "closed"),
        ([LATE], "closed"),
        ([LATE, LATE], "open"),
        ([LATE, None, LATE], "closed"),
        ([LATE, LOST, LATE], "open"),  # nothing good between them
        ([LATE, LOST, LOST, LOST, LOST], "open"),
        ([LATE, asyncio.CancelledError(), psycopg.DataError(), PoolTimeout(), LATE], "open"),  # these end no row
    ],
)
def test_the_database_opens_after_five_failures_or_two_missed_deadlines_in_a_row(errors: list[Any], state: str) -> None:
    """A row ends with a call that succeeds, with nothing else."""
    breaker, _ = made(DATABASE)
    calls(breaker, *errors)
    assert (state_of(breaker), breaker.allows_reads, breaker.allows_writes) == (
        state,
        state == "closed",
        state == "closed",
    )


@pytest.mark.parametrize("took", [0.0, 0.9])
@pytest.mark.parametrize("after_probe", [0.0, 0.5, 0.999])
def test_an_idle_process_learns_of_a_loss_within_two_seconds(took: float, after_probe: float) -> None:
    """One probe a second is enough, wherever between two of them the loss falls, and however the loss shows."""
    breaker, clock = made(DATABASE)
    start = clock.at
    breaker.probed(True, 0.001)
    lost = start + after_probe
    for second in (1, 2):
        clock.at = start + second + took
        breaker.probed(False, took)
        if took == 0.0 and second == 1:
            breaker.probed(False, took)  # the new connection was refused too
        if state_of(breaker) == "open":
            break
    assert state_of(breaker) == "open" and clock.at - lost <= 2.0


@pytest.mark.parametrize(
    ("heard", "state"),
    [
        ([(False, 0.0)], "closed"),
        ([(False, 0.45)], "closed"),
        ([(False, 0.0), (False, 0.0)], "open"),
        ([(False, 0.9)], "open"),  # two deadlines went by
        ([(False, 0.0), (True, 0.0), (False, 0.0)], "closed"),
    ],
)
def test_a_failed_probe_is_a_missed_deadline(heard: list[tuple[bool, float]], state: str) -> None:
    """One blip opens nothing; two in a row do, and so does one probe that hung for as long as two may."""
    breaker, _ = made(DATABASE)
    for ok, took in heard:
        breaker.probed(ok, took)
    assert state_of(breaker) == state


def test_a_probe_and_a_call_that_fail_add_up() -> None:
    """A late call and a failed probe are two missed deadlines in a row; four failed calls and a probe five failures."""
    breaker, _ = made(DATABASE)
    calls(breaker, LATE)
    breaker.probed(False, 0.0)
    assert state_of(breaker) == "open"
    breaker, _ = made(DATABASE)
    breaker.probed(False, 0.0)
    calls(breaker, *[LOST] * 3)
    assert state_of(breaker) == "closed"
    calls(breaker, LOST)
    assert state_of(breaker) == "open"


def test_a_good_probe_excuses_no_failed_call() -> None:
    """A read-only server answers SELECT 1: only a call that succeeds ends the calls' row."""
    breaker, _ = made(DATABASE)
    for _ in range(5):
        assert state_of(breaker) == "closed"
        calls(breaker, psycopg.errors.ReadOnlySqlTransaction())
        breaker.probed(True, 0.001)
    assert state_of(breaker) == "open"


# and closes


def test_three_good_probes_in_a_row_close_it_and_nothing_else_does() -> None:
    """Neither time nor a failed probe between two and one; after it the rows begin anew."""
    breaker, clock = made(DATABASE)
    calls(breaker, *[LOST] * 5)
    clock.at += 3600.0
    for ok in (True, True, False, True, True):
        breaker.probed(ok, 0.001)
        assert state_of(breaker) == "open" and refused(breaker)
    breaker.probed(True, 0.001)
    assert state_of(breaker) == "closed" and not refused(breaker)
    calls(breaker, LATE, *[LOST] * 3)
    assert state_of(breaker) == "closed"


@pytest.mark.parametrize("policy", [DATABASE, CHANNEL])
def test_a_call_from_before_the_breaker_opened_does_not_close_it(policy: Policy) -> None:
    """It may have been answered before the loss."""
    breaker, _ = made(policy)
    old = begun(breaker)
    calls(breaker, *([LOST] * 5 if policy is DATABASE else [BUSY] * 10))
    ended(old)
    assert state_of(breaker) == "open"


def test_calls_from_before_it_closed_do_not_open_it_again() -> None:
    """A hundred that hung through the outage fail at its end: that is yesterday's news."""
    breaker, _ = made(DATABASE)
    old = [begun(breaker) for _ in range(100)]
    calls(breaker, LATE, LATE)
    for _ in range(3):
        breaker.probed(True, 0.001)
    for call in old:
        ended(call, LATE)
    assert state_of(breaker) == "closed" and breaker.opened == 1


def test_successes_from_before_it_closed_weigh_nothing_either() -> None:
    """Eleven old ones do not hide that all but one of the new ones fail."""
    breaker, clock = made(CHANNEL)
    old = [begun(breaker) for _ in range(11)]
    calls(breaker, *[BUSY] * 10)
    clock.at += 1.0
    calls(breaker, None, None)
    for call in old:
        ended(call)
    calls(breaker, *[BUSY] * 9)
    assert state_of(breaker) == "open"


# Slowness


def timed(breaker: Breaker, clock: Clock, *tooks: float) -> None:
    for took in tooks:
        call = begun(breaker)
        clock.at += took
        ended(call)


@pytest.mark.parametrize(
    ("tooks", "state"),
    [
        ([0.6] * 9, "closed"),
        ([0.6] * 10, "slow"),
        ([0.5] * 10, "closed"),
        ([0.6] * 5 + [0.0] * 5, "closed"),  # half are not most
        ([0.6] * 6 + [0.0] * 5, "slow"),
        ([0.0] * 5 + [0.6] * 6, "slow"),
        ([1.1] * 20, "closed"),  # one after the other, never ten in the window
    ],
)
def test_slowness_opens_it_for_reads_only(tooks: list[float], state: str) -> None:
    """When more than half of the last ten seconds' calls, and ten at least, took over half a second."""
    breaker, clock = made(DATABASE)
    timed(breaker, clock, *tooks)
    assert (state_of(breaker), breaker.allows_reads, breaker.allows_writes) == (state, state == "closed", True)
    assert not refused(breaker)


def test_slowness_ends_when_writes_are_quick_or_nobody_has_called_for_a_while() -> None:
    """Reads come back by themselves, so that a process that only reads can find out."""
    breaker, clock = made(DATABASE)
    timed(breaker, clock, *[0.6] * 10, *[0.0] * 9)
    assert state_of(breaker) == "slow"
    timed(breaker, clock, 0.0)
    assert state_of(breaker) == "closed"
    timed(breaker, clock, *[0.6] * 12)
    assert not breaker.allows_reads
    clock.at += 10.0
    assert breaker.allows_reads and state_of(breaker) == "closed"


def test_a_slow_failure_is_slow() -> None:
    """Late ones and slow ones by turns open nothing else."""
    breaker, clock = made(DATABASE)
    for error in [LATE, None] * 5:
        call = begun(breaker)
        clock.at += 0.6
        ended(call, error)
    assert state_of(breaker) == "slow"
    breaker.forced = "closed"
    assert breaker.allows_reads


def test_a_good_read_does_not_speak_for_writes() -> None:
    """Behind a lock every write is late, and what is read once a second comes at once."""
    breaker, _ = made(DATABASE)
    breaker.late()
    ended(begun(breaker, reads=True))
    breaker.late()
    assert state_of(breaker) == "open"


def test_what_a_write_missed_long_ago_is_forgotten_by_whoever_only_reads() -> None:
    """A web process that takes no webhook for an hour has one late write behind it, not one in a row."""
    breaker, clock = made(DATABASE)
    breaker.late()
    for _ in range(12):
        clock.at += 1.0
        ended(begun(breaker, reads=True))
    breaker.late()
    assert state_of(breaker) == "closed"


def test_a_good_read_speaks_for_reads() -> None:
    """Two reads that were late within a night, and nothing else, open nothing."""
    breaker, _ = made(DATABASE)
    for _ in range(5):
        ended(begun(breaker, reads=True), LATE)
        ended(begun(breaker, reads=True))
    assert state_of(breaker) == "closed"


def test_a_slow_database_can_still_be_lost() -> None:
    """Open outranks slow, and closing forgets the slowness."""
    breaker, clock = made(DATABASE)
    timed(breaker, clock, *[0.6] * 10)
    calls(breaker, LATE, LATE)
    assert state_of(breaker) == "open" and not breaker.allows_writes
    for _ in range(3):
        breaker.probed(True, 0.001)
    assert state_of(breaker) == "closed" and breaker.allows_reads


# Channels and assistants


@pytest.mark.parametrize(
    ("errors", "state"),
    [
        ([BUSY] * 9, "closed"),
        ([BUSY] * 10, "open"),
        ([BUSY] * 5 + [None] * 5, "open"),
        ([None] * 6 + [BUSY] * 5, "closed"),
        ([None] * 6 + [BUSY] * 6, "open"),
        ([BUSY] * 9 + [asyncio.CancelledError()], "closed"),
        ([None] * 11 + [BUSY] * 10, "closed"),
    ],
)
def test_a_channel_opens_when_half_of_ten_calls_failed(errors: list[Any], state: str) -> None:
    """Half or more of at least ten, whatever their order."""
    breaker, _ = made(CHANNEL)
    calls(breaker, *errors)
    assert state_of(breaker) == state


def test_only_the_last_ten_seconds_count() -> None:
    """Nine failures, and ten seconds later a tenth."""
    breaker, clock = made(CHANNEL)
    calls(breaker, *[BUSY] * 9)
    clock.at += 10.0
    calls(breaker, BUSY)
    assert state_of(breaker) == "closed"
    clock.at += 9.0
    calls(breaker, *[BUSY] * 9)
    assert state_of(breaker) == "open"


def test_a_success_counts_in_the_second_in_which_it_came() -> None:
    """Successes after a pause are not forgotten with those from before it."""
    breaker, clock = made(CHANNEL)
    calls(breaker, None)
    clock.at += 9.0
    calls(breaker, *[None] * 20)
    clock.at += 3.0
    calls(breaker, *[BUSY] * 12)
    assert state_of(breaker) == "closed"


def opened(drawn: float = 0.0, policy: Policy = CHANNEL) -> tuple[Breaker, Clock]:
    breaker, clock = made(policy, drawn)
    calls(breaker, *[BUSY if policy is CHANNEL else AssistantBusy("529")] * 10)
    assert state_of(breaker) == "open"
    return breaker, clock


@pytest.mark.parametrize("drawn", [0.0, 0.5, 0.999])
def test_pauses_double_up_to_45_seconds_and_are_spread(drawn: float) -> None:
    """1, 2, 4 … 45, each cut by up to a quarter; not a moment earlier may anybody ask."""
    breaker, clock = opened(drawn)
    for pause in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 45.0, 45.0):
        pause *= 1.0 - 0.25 * drawn
        assert breaker.retry_in == pytest.approx(pause)
        clock.at += pause - 0.001
        with pytest.raises(ChannelOpen) as error:
            begun(breaker)
        assert error.value.retry_after == pytest.approx(0.001)
        clock.at += 0.002
        calls(breaker, BUSY)
    assert breaker.opened == 1


def test_a_good_probe_closes_and_the_next_pause_is_short_again() -> None:
    """What was is forgotten: the window, and how long the pauses were."""
    breaker, clock = opened()
    for _ in range(5):
        clock.at += 46.0
        calls(breaker, BUSY)
    clock.at += 46.0
    calls(breaker, None)
    assert state_of(breaker) == "closed"
    calls(breaker, *[BUSY] * 9)
    assert state_of(breaker) == "closed"
    calls(breaker, BUSY)
    assert breaker.retry_in == pytest.approx(1.0) and breaker.opened == 2


def test_one_caller_asks_and_the_others_wait_for_what_it_hears() -> None:
    """Asking whether one may is not asking."""
    breaker, clock = opened()
    clock.at += 1.0
    assert breaker.allows_writes and breaker.allows_reads and state_of(breaker) == "open"
    probe = begun(breaker)
    assert state_of(breaker) == "half_open" and not breaker.allows_writes
    assert refused(breaker) and refused(breaker)
    ended(probe)
    assert state_of(breaker) == "closed" and not refused(breaker)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("ours"), KeyboardInterrupt()])
def test_a_probe_that_learnt_nothing_leaves_its_place_to_the_next(error: BaseException) -> None:
    """Whatever became of its caller, the pauses do not grow by it."""
    breaker, clock = opened()
    clock.at += 1.0
    ended(begun(breaker), error)
    assert state_of(breaker) == "half_open" and breaker.allows_writes
    calls(breaker, BUSY)
    assert breaker.retry_in == pytest.approx(2.0)


def test_a_probe_that_vanished_blocks_nobody_for_ever_and_is_not_heard_later() -> None:
    """After 15 s the next caller asks; what the first one says then is of no weight."""
    breaker, clock = opened()
    clock.at += 1.0
    lost = begun(breaker)
    clock.at += 14.999
    assert refused(breaker)
    clock.at += 0.001
    probe = begun(breaker)
    assert refused(breaker)
    ended(lost)
    assert state_of(breaker) == "half_open"
    ended(probe, BUSY)
    assert state_of(breaker) == "open"


def test_a_stream_closes_the_breaker_with_its_first_words() -> None:
    """A minute's answer need not end before others may ask; what becomes of it later is not counted."""
    breaker, clock = opened(policy=ASSISTANT)
    clock.at += 1.0
    with pytest.raises(AssistantBusy), breaker.watching() as call:
        call.answered()
        assert state_of(breaker) == "closed"
        calls(breaker, *[AssistantBusy("529")] * 9)
        raise AssistantBusy("the stream was cut")
    assert state_of(breaker) == "closed"


def test_what_comes_after_the_answer_is_not_watched() -> None:
    """Each call counts once, as good."""
    breaker, _ = made(ASSISTANT)
    for _ in range(10):
        with pytest.raises(AssistantBusy), breaker.watching() as call:
            call.answered()
            raise AssistantBusy("the stream was cut")
    calls(breaker, *[AssistantBusy("529")] * 9)
    assert state_of(breaker) == "closed"


def test_good_probes_by_callers_count_in_a_row_too() -> None:
    """With two asked for, one before a failure and one after it are not enough."""
    breaker, clock = made(msgspec.structs.replace(CHANNEL, answers=2))
    calls(breaker, *[BUSY] * 10)
    for error in (None, BUSY, None):
        clock.at += 46.0
        calls(breaker, error)
        assert state_of(breaker) != "closed"
    calls(breaker, None)
    assert state_of(breaker) == "closed"


# What is a failure


class Unforeseen(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        *[(error, "neither") for error in BAD_DATA],
        (psycopg.errors.UniqueViolation, "neither"),
        (psycopg.errors.UndefinedColumn, "neither"),
        (psycopg.errors.DeadlockDetected, "neither"),
        (PoolTimeout, "neither"),
        (TooManyRequests, "neither"),
        (PoolClosed, "neither"),
        (Unforeseen, "neither"),
        (TimeoutError, "late"),
        (psycopg.errors.QueryCanceled, "late"),
        (psycopg.errors.ConnectionTimeout, "late"),
        (psycopg.errors.LockNotAvailable, "late"),
        (psycopg.errors.AdminShutdown, "failed"),
        (psycopg.errors.TooManyConnections, "failed"),
        (psycopg.errors.DiskFull, "failed"),
        (psycopg.errors.ReadOnlySqlTransaction, "failed"),
        (psycopg.InterfaceError, "failed"),
        (ConnectionRefusedError, "failed"),
    ],
)
def test_what_an_error_says_of_the_database_is_the_same_when_it_comes_wrapped(
    error: type[Exception], verdict: str
) -> None:
    """`DatabaseUnavailable` means what its cause means, however deep it lies."""
    assert of_database(error()) == of_database(caused(error())) == of_database(caused(caused(error()))) == verdict


def test_unavailable_without_a_cause_is_a_missed_deadline() -> None:
    """A flush that was left behind had no answer in time."""
    assert of_database(caused(None)) == "late"


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (Refused("no", code=131026, then="dead"), "good"),
        (Refused("later", code=130429, then="again", scope="channel"), "good"),
        (NeverLeft("refused"), "failed"),
        (HeldBack("the lease ends"), "neither"),
        (BUSY, "failed"),
        (TimeoutError(), "failed"),
        (psycopg.OperationalError(), "neither"),  # of another dependency
    ],
)
def test_a_channels_refusal_is_an_answer(error: Exception, verdict: str) -> None:
    """Whom a refusal's wait binds is settled elsewhere."""
    assert of_channel(error) == verdict


def made_of(cause: Exception) -> AssistantBusy:
    """As an assistant tells of what became of a request."""
    error = AssistantBusy(str(cause))
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (AssistantRefused("HTTP 401"), "good"),
        (AssistantBusy("HTTP 529"), "failed"),
        (made_of(HeldBack("no time was left")), "neither"),
        (TimeoutError(), "failed"),
        (Unforeseen(), "neither"),
    ],
)
def test_an_assistants_refusal_is_an_answer(error: Exception, verdict: str) -> None:
    """A wrong key is mended by a person, not by waiting."""
    assert of_assistant(error) == verdict


@pytest.mark.parametrize(
    ("policy", "kind", "family"),
    [
        (DATABASE, DatabaseOpen, DatabaseUnavailable),
        (CHANNEL, ChannelOpen, NeverLeft),
        (ASSISTANT, AssistantOpen, AssistantBusy),
        (TRANSLATOR, TranslatorOpen, TranslatorRefused),
        (TRANSCRIBER, TranscriberOpen, AssistantRefused),
    ],
)
def test_a_refusal_is_of_its_dependencys_family_and_fails_no_breaker_around(
    policy: Policy, kind: type[Open], family: type[Exception]
) -> None:
    """Whoever deals with the dependency's own errors deals with it."""
    breaker, _ = made(policy)
    breaker.forced = "open"
    with pytest.raises(kind) as error:
        begun(breaker)
    assert isinstance(error.value, family) and str(error.value).startswith("it is not asked")
    around, _ = made(policy)
    calls(around, *[error.value] * 20)
    assert state_of(around) == "closed" and of_database(caused(error.value)) == "neither"


@pytest.mark.anyio
async def test_a_deadline_is_missed_outside_and_a_cancellation_inside() -> None:
    """The order of the two blocks matters, as `watching` says."""
    breaker, _ = made(DATABASE)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                with breaker.watching():
                    await asyncio.Event().wait()
    assert state_of(breaker) == "closed"
    for _ in range(2):
        with pytest.raises(TimeoutError), breaker.watching():
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
    assert state_of(breaker) == "open"


# People


def test_a_persons_word_stands_above_the_machine_which_goes_on_underneath() -> None:
    """Forced closed, calls pass though all fail; taken back, the breaker is as open as it should be. And the reverse."""
    breaker, _ = made(DATABASE)
    breaker.forced = "closed"
    calls(breaker, *[LOST] * 50)
    assert (state_of(breaker), breaker.forced, breaker.allows_reads) == ("closed", "closed", True)
    breaker.forced = None
    assert state_of(breaker) == "open" and refused(breaker)
    breaker.forced = "open"
    for _ in range(3):
        breaker.probed(True, 0.001)
    assert state_of(breaker) == "open" and refused(breaker) and not breaker.allows_writes
    breaker.forced = None
    assert state_of(breaker) == "closed" and not refused(breaker)


def test_only_three_words_force_it() -> None:
    """What an operator mistypes changes nothing."""
    breaker, _ = made(DATABASE)
    word: Any = "shut"
    with pytest.raises(ValueError, match="forced open, closed"):
        breaker.forced = word
    assert breaker.forced is None


def test_it_says_why_and_how_often_it_opened_without_data() -> None:
    """The words of an error may quote a secret: only its type is named."""
    breaker, _ = made(DATABASE)
    calls(breaker, *[psycopg.OperationalError("password=hunter2")] * 5)
    assert (breaker.reason, breaker.opened) == ("5 failures in a row, the last: OperationalError", 1)
    breaker.forced = "open"
    assert (breaker.reason, breaker.opened) == ("a person holds it open", 1)


def test_each_change_is_told_once_with_the_state_before() -> None:
    """A listener hears changes of the state and of who holds it, and its own failure breaks no call."""
    breaker, clock = made(DATABASE)
    heard: list[tuple[str, str, str | None]] = []

    def hear(it: Breaker, before: str) -> None:
        heard.append((before, it.state, it.forced))
        raise Unforeseen

    breaker.on_change = hear
    timed(breaker, clock, *[0.6] * 12)
    calls(breaker, *[LOST] * 5)
    breaker.forced = "closed"
    breaker.forced = "closed"
    breaker.forced = None
    for _ in range(5):
        breaker.probed(True, 0.001)
    assert heard == [
        ("closed", "slow", None),
        ("slow", "open", None),
        ("open", "closed", "closed"),
        ("closed", "open", None),
        ("open", "closed", None),
    ]


def test_the_clock_is_read_twice_a_call_and_nothing_else_is_done_when_all_is_well() -> None:
    """The way in and out of a good call reaches neither the judge nor the machine: its cost is a few comparisons."""
    reached: Counter[str] = Counter()

    class Watched(Breaker):
        def _admit(self, call: Call) -> None:
            reached["admit"] += 1

        def _weigh(self, now: float, last: str = "") -> None:
            reached["weigh"] += 1

    breaker = Watched("it", DATABASE, clock=Clock())
    calls(breaker, *[None] * 1000)
    assert not reached


# Any order of all of this


class Kept(RuleBasedStateMachine):
    """A breaker of some policy against what can be said of it without knowing how it works."""

    policies = (DATABASE, CHANNEL)

    @initialize(policy=st.sampled_from(policies), drawn=st.floats(0.0, 0.999))
    def begin(self, policy: Policy, drawn: float) -> None:
        self.breaker, self.clock = made(policy, drawn)
        self.policy, self.drawn = policy, drawn
        self.told = "closed"
        self.breaker.on_change = self.hear
        self.flying: list[
            tuple[Call, float, int, bool, bool]
        ] = []  # with: when it began, in which closed spell, as the probe, as a read
        self.spell = 0
        self.count: list[tuple[float, bool, bool]] = []  # calls that counted, in this spell: when, failed, slow
        self.row: list[tuple[str, bool]] = []  # what is bad since the last call that was good for it; whether a read
        self.write_failed_at = float("-inf")
        self.missed = 0
        self.good_probes = 0
        self.pauses = 0
        self.machine = "closed"
        self.paused_at = 0.0

    def hear(self, breaker: Breaker, before: str) -> None:
        assert before == self.told, "a change was not told"
        self.told = state_of(breaker)

    def window(self) -> list[tuple[float, bool, bool]]:
        return [one for one in self.count if int(one[0]) > int(self.clock.at) - self.policy.window]

    def judge(self) -> None:
        """What the rules say of a closed breaker now."""
        window = self.window()
        calls, failed, slow = len(window), sum(one[1] for one in window), sum(one[2] for one in window)
        if self.policy is DATABASE:
            late = sum(end == "late" for end, _ in self.row) + self.missed
            lost = len(self.row) + self.missed >= 5 or late >= 2
        else:
            lost = calls >= 10 and 2 * failed >= calls
        if lost:
            self.machine, self.paused_at, self.good_probes = "open", self.clock.at, 0
        elif self.policy is DATABASE:
            self.machine = "slow" if calls >= 10 and 2 * slow > calls else "closed"

    def close(self) -> None:
        self.machine, self.spell, self.count, self.row = "closed", self.spell + 1, [], []
        self.write_failed_at = float("-inf")
        self.missed = self.good_probes = self.pauses = 0

    def may_probe(self) -> bool:
        pause = min(45.0, 2.0**self.pauses) * (1.0 - 0.25 * self.drawn)
        return self.policy is CHANNEL and self.clock.at >= self.paused_at + pause

    def asking(self) -> bool:
        return any(probe and began + self.policy.longest_probe > self.clock.at for _, began, _, probe, _ in self.flying)

    @rule(seconds=st.one_of(st.just(0.0), st.floats(0.0, 1.2), st.floats(0.0, 60.0)))
    def wait(self, seconds: float) -> None:
        self.clock.at += seconds

    @rule(reads=st.booleans(), times=st.integers(1, 6))
    def call(self, reads: bool, times: int) -> None:
        for _ in range(times):
            breaker = self.breaker
            allowed = breaker.allows_writes
            asking = self.asking()
            try:
                call = begun(breaker, reads=reads)
            except Open as error:
                assert not allowed
                assert state_of(breaker) not in ("closed", "slow")
                assert error.retry_after is None or error.retry_after <= 45.0
                continue
            assert allowed and breaker.forced != "open"
            probe = self.machine == "open" and self.may_probe() and not asking
            assert probe or self.machine != "open" or breaker.forced, "let in though nobody may ask, or another does"
            assert not probe or breaker.forced or state_of(breaker) == "half_open"
            self.flying = [(c, b, s, False, r) for c, b, s, p, r in self.flying] if probe else self.flying
            self.flying.append((call, self.clock.at, self.spell, probe, reads))

    @precondition(lambda self: self.flying)
    @rule(
        data=st.data(),
        end=st.sampled_from(["good", "good", "failed", "failed", "late", "neither"]),
        times=st.integers(1, 6),
    )
    def end(self, data: st.DataObject, end: str, times: int) -> None:
        for _ in range(min(times, len(self.flying))):
            call, began, spell, probe, reads = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
            late: Exception = LATE if self.policy is DATABASE else BUSY
            failed: Exception = LOST if self.policy is DATABASE else BUSY
            ended(call, {"good": None, "failed": failed, "late": late, "neither": asyncio.CancelledError()}[end])
            if probe and self.machine == "open":
                if end == "good":
                    self.close()
                elif end != "neither":
                    self.pauses += 1
                    self.paused_at = self.clock.at
            elif end != "neither" and spell == self.spell and self.machine != "open":
                self.count.append((self.clock.at, end != "good", self.clock.at - began > 0.5))
                if end != "good":
                    self.row.append((end, reads))
                    self.write_failed_at = self.write_failed_at if reads else self.clock.at
                elif not reads or self.clock.at - self.write_failed_at > 10.0:
                    self.row, self.missed = [], 0
                self.judge()

    @precondition(lambda self: self.policy is DATABASE)
    @rule(ok=st.booleans(), took=st.sampled_from([0.0, 0.3, 0.9]))
    def probe(self, ok: bool, took: float) -> None:
        self.breaker.probed(ok, took)
        if self.machine == "open":
            self.good_probes = self.good_probes + 1 if ok else 0
            if self.good_probes == 3:
                self.close()
        else:
            self.missed = 0 if ok else self.missed + (2 if took == 0.9 else 1)
            self.judge()

    @rule(forced=st.sampled_from(["open", "closed", None, None]))
    def force(self, forced: Any) -> None:
        self.breaker.forced = forced

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        breaker = self.breaker
        assert self.told == state_of(breaker)
        if breaker.forced:
            assert state_of(breaker) == breaker.forced
        else:
            assert {"half_open": "open"}.get(state_of(breaker), state_of(breaker)) == self.machine
        assert breaker.retry_in is None or 0.0 <= breaker.retry_in <= 45.0
        assert sum(probe for *_, probe, _ in self.flying) <= 1


TestKept = Kept.TestCase
TestKept.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
