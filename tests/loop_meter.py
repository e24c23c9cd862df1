"""Measures each stretch of an event loop: what it does between two looks at its sockets, while all others wait.

It is the loop's selector, so it sees every stretch and patches nothing. It knows nothing of what is done in them.
"""

import asyncio
import os
import selectors
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from msgspec import Struct

from app.loop_watch import places, stack_of

# What no stretch may take (seconds).
LIMIT = 0.05
# What blocks does so each time. What took that long but once was the machine, the garbage collector, or a first time.
TIMES = 5
# From here on (seconds) the place is looked at.
_LOOK_AFTER, _LOOK_EVERY = 0.5 * LIMIT, 0.1 * LIMIT


class Stretch(Struct, frozen=True):
    """`took` (seconds): by the clock, asleep or at work, but without the time in which the thread waited for a core."""

    took: float = 0.0
    cpu: float = 0.0
    places: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = " < ".join(self.places) or "nobody looked"
        return f"{1000 * self.took:.0f} ms ({1000 * self.cpu:.0f} ms CPU) at {where}"


class Meter(selectors.DefaultSelector):
    """The selector of one loop (`new_loop`)."""

    def __init__(self) -> None:
        super().__init__()
        self.worst = Stretch()
        self._ident = 0
        self._depth = 0
        self._began: tuple[float, float, float] | None = None
        self._where: tuple[str, ...] = ()
        self._queued: int | None = None

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """The one loop that is measured."""
        return asyncio.SelectorEventLoop(self)

    @contextmanager
    def looking(self) -> Iterator[Self]:
        """Look at where the long ones are, from a thread."""
        ended = threading.Event()
        thread = threading.Thread(target=self._look_on, args=[ended], name="loop meter")
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()
            if self._queued is not None:
                os.close(self._queued)
                self._queued = None

    def select(self, timeout: float | None = None) -> Any:
        """What the loop does between two calls of this is a stretch."""
        if self._began is not None:
            wall, cpu, queued = (now - then for now, then in zip(self._times(), self._began, strict=True))
            self._began = None
            if wall - queued > self.worst.took:
                self.worst = Stretch(wall - queued, cpu, self._where)
        elif not self._ident:
            self._ident = threading.get_ident()
            with suppress(OSError):  # not on every kernel
                self._queued = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        self._depth = len(stack_of(sys._getframe()))
        found = super().select(timeout)
        self._where = ()
        self._began = self._times()
        return found

    async def worst_of(self, act: Callable[[], Awaitable[object]]) -> Stretch:
        """The worst stretch while `act` is done, at the best of up to so many times: the first below the limit is enough."""
        best = Stretch(float("inf"))
        for _ in range(TIMES):
            await asyncio.sleep(0)  # what came before is a stretch of its own
            self.worst = Stretch()
            await act()
            await asyncio.sleep(0)
            best = min(best, self.worst, key=lambda stretch: stretch.took)
            if best.took < LIMIT:
                break
        return best

    def _times(self) -> tuple[float, float, float]:
        """Seconds by the clock, of CPU, and of waiting for a core, of this thread."""
        queued = int(os.pread(self._queued, 100, 0).split()[1]) / 1e9 if self._queued is not None else 0.0
        return time.perf_counter(), time.thread_time(), queued

    def _look_on(self, ended: threading.Event) -> None:
        while not ended.wait(_LOOK_EVERY):
            began = self._began
            if began is None or self._where or time.perf_counter() - began[0] < _LOOK_AFTER:
                continue
            stack = stack_of(sys._current_frames().get(self._ident))
            found = tuple(places(stack[: max(0, len(stack) - self._depth)]))
            if self._began is began:
                self._where = found


def source(path: str) -> str:
    """A file of ours as places name it."""
    return str(Path(path).relative_to(Path(__file__).parents[1]))
