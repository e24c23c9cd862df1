"""How many retries a channel gets: the bound over any minute, the floor, and what is remembered."""

from bisect import bisect_right
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workers.budget import MEMORY, SPREAD, WINDOW, Budget, jittered

ONE, OTHER = UUID(int=1), UUID(int=2)


class Clock:
    """Seconds that only a test moves."""

    def __init__(self, at: float = 1000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def between(times: list[float], after: float, until: float) -> int:
    """How many of these sorted times lie in (after, until]."""
    return bisect_right(times, until) - bisect_right(times, after)


# Much happens at one instant, some a moment later, and now and then nothing for a while.
steps = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0.0, 2.0), st.floats(58.0, 62.0), st.floats(0.0, 90.0)),
        st.integers(0, 40),
        st.integers(0, 40),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@example([(1.9, 36, 7), (1.9, 7, 1)], 0.09375, 2.0, 7.328579249883445, 0.625)  # x + y - y is less than x
@example([(0.9, 0, 20), (59.2, 0, 20)], 0.2, 10.0, 0.0, 0.0)  # less than a minute apart, in seconds that are 60 apart
@given(steps, st.floats(0.0, 1.0), st.floats(1.0, 20.0), st.floats(0.0, 1e6), st.floats(0.0, 3.0))
def test_retries_stay_within_their_share_over_any_minute(
    steps: list[tuple[float, int, int]], share: float, floor: float, start: float, moment: float
) -> None:
    """In any 60 s: at most the share of the first attempts of those and of what is remembered before, and the floor."""
    clock = Clock(start)
    budget = Budget(share=share, floor_per_minute=floor, clock=clock)
    firsts: list[float] = []
    retries: list[float] = []
    for later, tries, wanted in steps:
        clock.at += later
        for _ in range(tries):
            budget.first(ONE)
            firsts.append(clock.at)
        for number in range(wanted):
            asked = clock.at
            if budget.may_retry(ONE) == 0.0:
                clock.at += moment
                if number % 3 == 2:
                    budget.give_back(ONE)
                else:
                    retries.append(asked)
    for end in retries:  # a minute with the most retries ends at one of them
        allowed = share * between(firsts, end - WINDOW - MEMORY, end) + floor
        assert between(retries, end - WINDOW, end) <= allowed + 1e-6


@settings(max_examples=200, deadline=None)
@given(steps, st.floats(0.0, 1e6))
def test_who_waits_as_long_as_told_may_retry(steps: list[tuple[float, int, int]], start: float) -> None:
    """The wait is finite, at most a minute and a second, and holds even if no first attempt comes meanwhile."""
    clock = Clock(start)
    budget = Budget(clock=clock, floor_per_minute=10.0)
    for later, tries, wanted in steps:
        clock.at += later
        for _ in range(tries):
            budget.first(ONE)
        for _ in range(wanted):
            budget.may_retry(ONE)
    wait = budget.may_retry(ONE)
    assert 0.0 <= wait <= MEMORY
    if wait:
        clock.at += wait + 1e-6
        assert budget.may_retry(ONE) == 0.0


def test_a_fifth_of_the_first_attempts_and_the_floor() -> None:
    """With 100 first attempts 20 retries, and the ten that every number has."""
    clock = Clock()
    budget = Budget(clock=clock, floor_per_minute=10.0)
    for _ in range(100):
        budget.first(ONE)
    assert [budget.may_retry(ONE) == 0.0 for _ in range(32)] == [True] * 30 + [False] * 2


def test_a_quiet_number_can_retry_but_not_for_ever() -> None:
    """Ten a minute without any first attempt; the eleventh when the first of them is a minute old."""
    clock = Clock()
    budget = Budget(clock=clock, floor_per_minute=10.0)
    assert [budget.may_retry(ONE) for _ in range(10)] == [0.0] * 10
    clock.at += 30.0
    assert budget.may_retry(ONE) == MEMORY - 30.0
    assert budget.may_retry(ONE) == MEMORY - 30.0  # being told to wait costs nothing
    clock.at += MEMORY - 30.0
    assert budget.may_retry(ONE) == 0.0


def test_a_retry_that_was_not_made_is_not_counted() -> None:
    """Lanes that ask, and then find their number held, leave the budget to those that come after the hold."""
    budget = Budget(clock=Clock(), floor_per_minute=10.0)
    for _ in range(100):
        assert budget.may_retry(ONE) == 0.0
        budget.give_back(ONE)
    assert [budget.may_retry(ONE) == 0.0 for _ in range(11)] == [True] * 10 + [False]
    budget.give_back(OTHER)  # of nothing, nothing


def test_one_channel_does_not_spend_anothers_budget() -> None:
    """Each number has its own."""
    clock = Clock()
    budget = Budget(clock=clock, floor_per_minute=10.0)
    while budget.may_retry(ONE) == 0.0:
        pass
    for _ in range(50):
        budget.first(ONE)
    assert [budget.may_retry(OTHER) == 0.0 for _ in range(11)] == [True] * 10 + [False]


def test_silent_channels_are_forgotten() -> None:
    """What is remembered is bounded by the channels of the last minute, however many there ever were."""
    clock = Clock()
    budget = Budget(clock=clock, floor_per_minute=10.0)
    for number in range(1000):
        (budget.first if number % 2 else budget.may_retry)(UUID(int=number))
        clock.at += 1.0
        assert len(budget) <= MEMORY + 1
    clock.at += MEMORY
    budget.first(ONE)
    assert len(budget) == 1


@pytest.mark.parametrize(("share", "floor"), [(-0.1, 10.0), (0.2, 0.5)])
def test_a_budget_that_could_stop_a_number_for_ever_is_none(share: float, floor: float) -> None:
    """At least one retry a minute, or a wait would have no end."""
    with pytest.raises(ValueError, match="floor"):
        Budget(share=share, floor_per_minute=floor)


@given(st.floats(0.0, 3600.0), st.floats(0.0, 1.0, exclude_max=True))
def test_jitter_only_lengthens_by_a_quarter_at_most(after: float, drawn: float) -> None:
    """A provider's wait is never cut short."""
    assert after <= jittered(after, lambda: drawn) <= after * (1 + SPREAD)


def test_jitter_spreads() -> None:
    """Lanes that were sent away together come back apart, over the whole quarter."""
    waits = {jittered(100.0) for _ in range(200)}
    assert len(waits) > 190 and min(waits) < 105 and max(waits) > 120
