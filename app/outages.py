"""What an outage of the database was like: when it began, how long it lasted, who was turned away, kept or served stale.

It listens to the breaker and is told what the door did; at the end it says all of it in one line. It decides nothing.
"""

import time
from collections.abc import Callable

import structlog

from app import metrics
from app.breaker import Breaker, State

log = structlog.get_logger(__name__)


class Outages:
    """Counts from when the breaker opens, or from the first webhook that the database did not take just before."""

    def __init__(self, breaker: Breaker, stale: Callable[[], int] = lambda: 0) -> None:
        """`stale`: how many turns of this process were ever answered by what it remembered, unconfirmed."""
        self._breaker = breaker
        self._stale = stale
        self._began: float | None = None
        self._refused = self._spooled = self._stale_before = 0
        breaker.on_change = self._changed
        metrics.breaker(breaker, breaker.state)

    def refused(self) -> None:
        """A webhook was answered 503."""
        self._refused += 1

    def spooled(self) -> None:
        """A webhook was answered 200 and lies in the spool."""
        self._spooled += 1

    def _changed(self, breaker: Breaker, before: State) -> None:
        metrics.breaker(breaker, before)
        now = time.monotonic()
        if breaker.state == "open" and self._began is None:
            self._began = now
            metrics.alert("database_away")
            log.error("the database is away", alert="database_away", reason=breaker.reason)
        elif breaker.state in ("closed", "slow") and self._began is not None:
            lasted, self._began = now - self._began, None
            log.warning(
                "the database is back",
                seconds=round(lasted, 1),
                refused=self._refused,
                spooled=self._spooled,
                stale=self._stale() - self._stale_before,
                reason=breaker.reason,
            )
            self._refused = self._spooled = 0
            self._stale_before = self._stale()
