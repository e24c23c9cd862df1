"""Measures how late the event loop comes, and names in the log what held it up. It hurries nothing along.

A thread wakes when a beat of the loop is overdue, and remembers where the loop's thread is just then: files, lines and
functions, no values. (asyncio's own `slow_callback_duration` names callbacks in debug mode alone, and uvloop's likewise.)
"""

import asyncio
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

import structlog

from app import metrics
from app.redaction import shown_path

log = structlog.get_logger(__name__)

# How often the loop says that it turns, and how late it may be before the thread looks why (seconds). What blocks for
# both together is always seen.
BEAT, SLOW = 0.02, 0.1
# So many beats are made up for after one that was late.
_MOST_MISSED = 1000
# What stands still for so long may never go on: then the thread itself tells of it (seconds).
STUCK = 5.0
# A place is told of once in so many seconds, and any place at all once in so many: what ails, ails on.
SELDOM, ANY = 60.0, 1.0
# Of one stack: the innermost frame, and so many of our own.
MOST_PLACES = 4
_MOST_REMEMBERED = 200
_OURS: Final = ("app", "workers", "tests")


class LoopWatch:
    """An async context manager: it watches the running loop for as long as it is entered.

    Not blamed on any line: a process that was stopped or starved (the loop's thread hardly ran, though it could have, or
    the watch itself came late), and a loop in which no callback was at work. Where many short callbacks together make the
    loop late, the one that happens to run is named.
    """

    def __init__(self, *, beat: float = BEAT, slow: float = SLOW) -> None:
        """Both in seconds."""
        self._beat = beat
        self._slow = slow
        self._due = 0.0  # monotonic; when the loop is to beat next. It names the beat, too
        self._depth = 0  # frames of whoever runs the loop
        self._seen: tuple[float, list[str]] = (0.0, [])  # the beat that was overdue, and where the loop was
        self._quiet: dict[str, float] = {}
        self._quiet_until = 0.0
        self._untold = 0
        self._clock: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="loop watch", daemon=True)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._ident = threading.get_ident()
        self._stat = Path(f"/proc/self/task/{threading.get_native_id()}/stat")
        if hasattr(time, "pthread_getcpuclockid"):  # not on a Mac
            self._clock = time.pthread_getcpuclockid(self._ident)
        self._timer: asyncio.Handle = self._loop.call_soon(self._begin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(1.0)  # it sleeps, or is about to

    # In the loop

    def _begin(self) -> None:
        self._depth = len(stack_of(sys._getframe().f_back))
        self._beat_again(time.monotonic())
        self._thread.start()

    def _beat_again(self, now: float) -> None:
        self._due = now + self._beat
        self._timer = self._loop.call_later(self._beat, self._turned)

    def _turned(self) -> None:
        """The loop turns."""
        now = time.monotonic()
        due, (overdue, places) = self._due, self._seen
        lag = max(0.0, now - due)
        self._measure(lag)
        if overdue == due and places:
            metrics.loop_blocked()
            self._tell(now, lag, places)
        self._depth = len(stack_of(sys._getframe().f_back))
        self._beat_again(now)

    def _measure(self, lag: float) -> None:
        """A late beat stands for those that should have come meanwhile, each a beat less late.

        Else a loop that stands still would count once, and the more often it turned the better it would seem: Gil Tene calls
        it coordinated omission, and HdrHistogram makes up for it in the same way (recordValueWithExpectedInterval).
        """
        for missed in range(min(int(lag / self._beat), _MOST_MISSED) + 1):
            metrics.loop_lag(lag - missed * self._beat)

    def _tell(self, now: float, lag: float, places: list[str]) -> None:
        if now < self._quiet_until or now < self._quiet.get(places[0], 0.0):
            self._untold += 1
            return
        if len(self._quiet) >= _MOST_REMEMBERED:
            self._quiet.clear()
        self._quiet[places[0]] = now + SELDOM
        self._quiet_until = now + ANY
        log.warning("event loop blocked", milliseconds=round(lag * 1000), function=places, count=self._untold)
        self._untold = 0

    # In the thread

    def _look_on(self) -> None:
        looked = told = 0.0  # of which overdue beat it knows where the loop is, and has told that it stands still
        slept_at = time.monotonic()
        wake_at = max(slept_at, self._due) + self._slow  # a process may be stopped before this has begun
        ran = self._ran()
        while not self._ended.wait(max(0.0, wake_at - time.monotonic())):
            now, due, ran_before = time.monotonic(), self._due, ran
            ran = self._ran()
            if now < due + self._slow:  # it turns
                wake_at = due + self._slow
            elif ran - ran_before < (now - slept_at) / 2 and (now - wake_at > self._slow / 2 or self._wants_a_core()):
                wake_at = now + self._slow  # it could not run: give it the time to
            else:
                if looked != due:
                    looked, self._seen = due, (due, self._places())
                if now - due >= STUCK and told != due and (still := self._places()):
                    told = due
                    log.error("event loop stands still", seconds=round(now - due), function=still)
                wake_at = now + self._slow
            slept_at = time.monotonic()

    def _ran(self) -> float:
        """Seconds of CPU that the loop's thread has had."""
        try:
            return time.clock_gettime(self._clock) if self._clock is not None else 0.0
        except OSError:  # it has ended
            return 0.0

    def _wants_a_core(self) -> bool:
        """Whether the loop's thread runs or waits for its turn: it does not sleep."""
        try:
            return self._stat.read_bytes().rpartition(b")")[2].split()[0] == b"R"
        except OSError:
            return False

    def _places(self) -> list[str]:
        """Where the loop's thread is: innermost first, `file:line:function`. Empty: between two callbacks."""
        stack = stack_of(sys._current_frames().get(self._ident))
        return places(stack[: max(0, len(stack) - self._depth)])


def places(stack: list[FrameType]) -> list[str]:
    """Of a stack, innermost first: that frame, whosever it is, and the next ones of our own, as `file:line:function`."""
    found: list[str] = []
    for at, frame in enumerate(stack):
        path = shown_path(frame.f_code.co_filename)
        if at == 0 or str(path).partition("/")[0] in _OURS:
            found.append(f"{path}:{frame.f_lineno}:{frame.f_code.co_qualname}")
        if len(found) == MOST_PLACES:
            break
    return found


def stack_of(frame: FrameType | None) -> list[FrameType]:
    """The frame and those that called it, innermost first."""
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found
