"""How many tries beyond the first a channel gets: a fifth of its first ones, and one a second whatever happens.

A provider that is refusing or unreachable is not helped by the same requests over and over. Retries are attempts
after a refusal; what follows a send that never left, or resolves a doubt, is not counted. In the worker's memory alone: each
worker has a budget of its own, and forgets it with its end. It keeps no lane waiting by itself: it says how long.
docs/decisions/0017-retry-budget.md says why.
"""

import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from uuid import UUID

WINDOW = 60
# The second that has only begun counts as a whole one: so much is remembered.
MEMORY = WINDOW + 1
# A wait that many lanes share is drawn out by up to so much.
SPREAD = 0.25


class _Recent:
    """One channel's attempts of the last `MEMORY` seconds, second by second, oldest first; silent ones leave no trace."""

    def __init__(self) -> None:
        self.seconds: deque[list[int]] = deque()  # [second, first attempts, retries]
        self.firsts = 0
        self.retries = 0

    def forget(self, before: int) -> None:
        """Drop the seconds before this one."""
        while self.seconds and self.seconds[0][0] < before:
            _, firsts, retries = self.seconds.popleft()
            self.firsts -= firsts
            self.retries -= retries

    def add(self, second: int, firsts: int, retries: int) -> None:
        if not self.seconds or self.seconds[-1][0] != second:
            self.seconds.append([second, 0, 0])
        self.seconds[-1][1] += firsts
        self.seconds[-1][2] += retries
        self.firsts += firsts
        self.retries += retries


class Budget:
    """Over any 60 s a channel's retries are at most `share` of its first attempts of those and the 61 s before, and the floor.

    `floor_per_minute` (at least 1) lets a quiet number try again at all. `clock` gives seconds and never goes back.
    Memory: a channel that was silent for `MEMORY` seconds is forgotten.
    """

    def __init__(
        self, *, share: float = 0.2, floor_per_minute: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if share < 0.0 or floor_per_minute < 1.0:
            raise ValueError("a budget needs a share of 0 or more, and a floor of at least one retry a minute")
        self._share = share
        self._floor = floor_per_minute
        self._clock = clock
        self._channels: OrderedDict[UUID, _Recent] = OrderedDict()  # the longest silent first

    def __len__(self) -> int:
        """Channels that are remembered."""
        return len(self._channels)

    def first(self, channel: UUID) -> None:
        """A chunk's first attempt is about to be made."""
        recent, second = self._look(channel)
        recent.add(second, 1, 0)

    def may_retry(self, channel: UUID) -> float:
        """0.0: go, and it is counted. Else the seconds after which to ask again; until then nothing is counted."""
        recent, second = self._look(channel)
        if self._room(recent.firsts, recent.retries):
            recent.add(second, 0, 1)
            return 0.0
        firsts, retries = recent.firsts, recent.retries
        for past, gone_firsts, gone_retries in recent.seconds:
            firsts -= gone_firsts
            retries -= gone_retries
            if self._room(firsts, retries):
                return past + MEMORY - self._clock()
        raise AssertionError("with all forgotten, the floor alone lets one retry pass")

    def give_back(self, channel: UUID) -> None:
        """A retry that was let go was not made after all: its number was held, its lane lost."""
        recent, _ = self._look(channel)
        for counted in recent.seconds:
            if counted[2]:  # of the oldest, so that none which was made is forgotten before its time
                counted[2] -= 1
                recent.retries -= 1
                return

    def _room(self, firsts: int, retries: int) -> bool:
        return retries + 1 <= self._share * firsts + self._floor + 1e-9  # 0.1 + 0.2 is a little more than 0.3

    def _look(self, channel: UUID) -> tuple[_Recent, int]:
        """What is remembered of a channel, and the second that it is."""
        second = int(self._clock())
        oldest = second - WINDOW
        recent = self._channels.setdefault(channel, _Recent())
        self._channels.move_to_end(channel)
        recent.forget(oldest)
        while (silent := next(iter(self._channels.values()))) is not recent:
            silent.forget(oldest)
            if silent.seconds:
                break
            self._channels.popitem(last=False)
        return recent, second


def jittered(after: float, draw: Callable[[], float] = random.random) -> float:
    """`after` seconds drawn out by up to a quarter: lanes that were sent away together do not come back together.

    Never shorter, so that what a provider asked for is kept. `draw` gives a number in [0, 1).
    """
    return after * (1.0 + SPREAD * draw())
