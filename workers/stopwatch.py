"""The stage times of one turn: how long it waited, asked, sent, and spoke to the database. Milliseconds in the log."""

import time
from collections.abc import Awaitable
from typing import TypeVar

from app import metrics

Result = TypeVar("Result")


class Stopwatch:
    """Starts when the lane is claimed."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.queue = 0.0
        self.ack = 0.0
        self._took = dict.fromkeys(("db", "ai", "translate", "send"), 0.0)

    @property
    def elapsed(self) -> float:
        """Seconds since the claim."""
        return time.monotonic() - self._began

    @property
    def ai_ms(self) -> float:
        """Milliseconds of the assistant so far."""
        return self._took["ai"] * 1000

    async def db(self, work: Awaitable[Result]) -> Result:
        """Await a commit, and count its time."""
        return await self._timed("db", work)

    async def ai(self, work: Awaitable[Result]) -> Result:
        """Await an assistant, and count its time."""
        return await self._timed("ai", work)

    async def translate(self, work: Awaitable[Result]) -> Result:
        """Await what follows the assistant's answer, and count its time."""
        return await self._timed("translate", work)

    def sent(self, seconds: float) -> None:
        """A POST took so long."""
        self._took["send"] += seconds

    def stages(self, *, fast: bool) -> dict[str, float]:
        """The times of a turn that was just sent, for the log; the metrics get them too. `fast`: answered by an intent."""
        seconds = {"queue": self.queue, **self._took}
        if fast:
            seconds["fastpath"] = self.ack + self.queue + self.elapsed
        for stage, took in seconds.items():
            if stage not in ("translate", "send"):  # counted where they happen
                metrics.stage(stage, took)
        return {f"{stage}_ms": round(took * 1000, 1) for stage, took in {"ack": self.ack, **seconds}.items()}

    async def _timed(self, stage: str, work: Awaitable[Result]) -> Result:
        began = time.monotonic()
        try:
            return await work
        finally:
            self._took[stage] += time.monotonic() - began
