"""What an outage of the database was like: when it began, how long it lasted, who was turned away, kept or served stale.

It listens to the breaker and is told what the door did; at the end it says all of it in one line. It decides nothing.
"""

import time
from collections.abc import Callable

import structlog

from app import metrics
from app.alerts import alert
from app.breaker import Breaker, State

log = structlog.get_logger(__name__)

# What was turned away or kept so shortly before an outage is known is part of it (seconds): a deadline or two.
JUST_BEFORE = 5.0


class Outages:
    """From when the breaker opens, or lets no reads through, until it is closed; with what was turned away just before."""

    def __init__(
        self, breaker: Breaker, stale: Callable[[], int] = lambda: 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`stale`: how many turns of this process were ever answered by what it remembered, unconfirmed."""
        self._stale = stale
        self._clock = clock
        self._began: float | None = None
        self._opened = False
        self._refused = self._spooled = self._stale_before = 0
        self._last = 0.0  # when one was refused or spooled
        breaker.on_change = self._changed
        metrics.breaker(breaker, breaker.state)

    def refused(self) -> None:
        """A webhook was answered 503."""
        self._begin_anew_after_calm()
        self._refused += 1

    def spooled(self) -> None:
        """A webhook was answered 200 and lies in the spool."""
        self._begin_anew_after_calm()
        self._spooled += 1

    def _begin_anew_after_calm(self) -> None:
        now = self._clock()
        if self._began is None and now - self._last > JUST_BEFORE:
            self._refused = self._spooled = 0
        self._last = now

    def _changed(self, breaker: Breaker, before: State) -> None:
        metrics.breaker(breaker, before)
        now = self._clock()
        if breaker.state == "closed":
            self._ended(now, breaker.reason)
            return
        if self._began is None:
            self._began, self._opened, self._stale_before = now, False, self._stale()
            if now - self._last > JUST_BEFORE:
                self._refused = self._spooled = 0
        if breaker.state == "open" and not self._opened:
            self._opened = True
            alert(log.error, "database_away", "the database is away", reason=breaker.reason)

    def _ended(self, now: float, reason: str) -> None:
        if self._began is None:
            return
        met = {
            "seconds": round(now - self._began, 1),
            "refused": self._refused,
            "spooled": self._spooled,
            "stale": self._stale() - self._stale_before,
        }
        if self._opened:
            log.warning("the database is back", reason=reason, **met)
        else:
            log.warning("the database was slow", reason=reason, **met)
        self._began = None
        self._refused = self._spooled = 0
