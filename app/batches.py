"""Group commit: batches that form by themselves. Knows no table; what a batch is written with is its caller's.

While one flush is in flight, arrivals pile up; the next flush takes them all. No timer: what comes alone waits for nothing.
"""

import asyncio
import functools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import structlog

from app import metrics
from app.breaker import Open
from app.db import BAD_DATA
from app.errors import DatabaseUnavailable, Overloaded
from app.turnstile import Turnstile

log = structlog.get_logger(__name__)

Row = TypeVar("Row")
Verdict = TypeVar("Verdict")
Waiting = tuple[Row, asyncio.Future[Verdict]]

# Bounds of one flush, and of what may wait for one: beyond it the caller hears at once that there is no room.
MOST_ROWS = 500
MOST_BYTES = 4 * 1024 * 1024
MOST_WAITING = 20_000
# When our own loop comes later than by LATE, a flush has GRACE more: to read what may have come (seconds).
LATE, GRACE = 0.1, 0.25


class Batches(Generic[Row, Verdict]):
    """Writes rows in batches, one flush at a time, and hands each row's verdict to whoever submitted it.

    `write(rows)` returns one verdict per row, in order, once they are committed. A batch refused for its data is halved
    until the bad row stands alone; `refuse(row, error)` then gives its verdict. A flush that takes longer than
    `patience` seconds is left behind (a frozen server is not waited for): its rows fail, the next flush goes on with
    another connection. `late` is told of it, and once before, after half of that: so the first flush that nobody answers
    counts as two deadlines.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[Row]], Awaitable[Sequence[Verdict]]],
        *,
        refuse: Callable[[Row, Exception], Awaitable[Verdict]] | None = None,
        weigh: Callable[[Row], int] | None = None,
        patience: float = 10.0,
        late: Callable[[], None] = lambda: None,
        most_rows: int = MOST_ROWS,
    ) -> None:
        self.name = name
        self._write = write
        self._refuse = refuse
        self._weigh = weigh
        self._patience = patience
        self._late = late
        self._most_rows = most_rows
        self._waiting: deque[Waiting[Row, Verdict]] = deque()
        self._flight: asyncio.Task[None] | None = None
        self._left_behind: set[asyncio.Task[None]] = set()
        self._telling: set[asyncio.Task[None]] = set()
        self._turnstile = Turnstile()

    def submit(self, row: Row) -> asyncio.Future[Verdict]:
        """The future of this row's verdict. Cancelling it before its flush begins takes the row out.

        Raises (in the future):
            Overloaded: too many wait already; the row is not written.
            DatabaseUnavailable: the verdict is unknown; the row may or may not have been written.
        """
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= MOST_WAITING:
            future.set_exception(Overloaded(f"{self.name}: {MOST_WAITING} rows wait already"))
            return future
        self._waiting.append((row, future))
        if self._flight is None:
            self._launch()
        return future

    async def drain(self) -> None:
        """Return once nothing waits any more, and everybody has been told."""
        while under_way := self._telling | ({self._flight} if self._flight else set()):
            await asyncio.wait(under_way)

    def _launch(self) -> None:
        """Begin the next flush, if anything waits for one. It takes what waits when it first runs, in this very tick."""
        self._flight = asyncio.create_task(self._fly(), name=f"flush {self.name}") if self._waiting else None

    def _leave_behind(self, flight: asyncio.Task[None], batch: list[Waiting[Row, Verdict]]) -> None:
        log.warning("flush left behind", name=self.name, rows=len(batch), seconds=self._patience)
        self._late()
        flight.cancel()
        self._left_behind.add(flight)
        flight.add_done_callback(self._left_behind.discard)
        _fail(batch, DatabaseUnavailable(f"{self.name}: no answer within {self._patience:g} s"))
        self._launch()

    async def _fly(self) -> None:
        flight = self._flight
        assert flight is not None
        batch = self._next()
        loop = asyncio.get_running_loop()
        began = loop.time()
        timers: list[asyncio.TimerHandle] = []

        def at(due: float, then: Callable[[], None]) -> None:
            def ring() -> None:
                if loop.time() - due > LATE:  # we stood still ourselves: the answer may lie there unread
                    timers.append(loop.call_later(GRACE, then))
                else:
                    then()

            timers.append(loop.call_at(due, ring))

        at(began + self._patience / 2, self._late)
        at(began + self._patience, functools.partial(self._leave_behind, flight, batch))
        try:
            told = await self._written(batch) if batch else []
        finally:
            for timer in timers:
                timer.cancel()
        if batch:
            metrics.flush(self.name, len(batch), loop.time() - began)
        # The next flush leaves before anybody hears of this one: else it would wait until all who are waiting here have
        # been answered.
        if self._flight is flight:
            self._launch()
        self._telling.add(flight)
        try:
            await self._tell(batch, told)
        finally:
            self._telling.discard(flight)

    async def _tell(self, batch: Sequence[Waiting[Row, Verdict]], told: Sequence[Verdict | Exception]) -> None:
        """Hand out the verdicts, a few at a time. Whoever cancels this at the end of the process leaves nobody waiting."""
        untold = deque(zip(batch, told, strict=True))
        try:
            while untold:
                if not untold[0][0][1].done():  # who left at their deadline goes on to do nothing
                    await self._turnstile.through()
                waiting, verdict = untold.popleft()
                if isinstance(verdict, Exception):
                    _fail([waiting], verdict)
                elif not waiting[1].done():
                    waiting[1].set_result(verdict)
        finally:
            _fail(
                [waiting for waiting, _ in untold],
                DatabaseUnavailable("written, and not told any more: the process ends"),
            )

    def _next(self) -> list[Waiting[Row, Verdict]]:
        batch: list[Waiting[Row, Verdict]] = []
        weight = 0
        while self._waiting and len(batch) < self._most_rows:
            row, future = self._waiting[0]
            if future.done():  # its submitter has left
                self._waiting.popleft()
                continue
            weight += self._weigh(row) if self._weigh else 0
            if batch and weight > MOST_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _written(self, batch: list[Waiting[Row, Verdict]]) -> Sequence[Verdict | Exception]:
        """The verdict of each row, in order, or the error that its submitter gets."""
        try:
            verdicts = await self._write([row for row, _ in batch])
            if len(verdicts) != len(batch):
                raise AssertionError(f"{len(verdicts)} verdicts for {len(batch)} rows")
        except BAD_DATA as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                return [*await self._written(batch[:middle]), *await self._written(batch[middle:])]
            return [await self._refused(batch[0][0], error)]
        except Exception as error:  # noqa: BLE001  whatever it was, nobody may wait for ever
            tell = log.debug if isinstance(error, Open) else log.warning  # its opening has been told of
            tell("flush failed", name=self.name, rows=len(batch), error=error)
            unavailable = DatabaseUnavailable(f"{self.name}: {type(error).__name__}: {error}")
            unavailable.__cause__ = error
            return [unavailable] * len(batch)
        return verdicts

    async def _refused(self, row: Row, error: Exception) -> Verdict | Exception:
        if self._refuse is None:
            return error
        try:
            return await self._refuse(row, error)
        except Exception as failure:  # noqa: BLE001  as above
            unavailable = DatabaseUnavailable(f"{self.name}: {type(failure).__name__}: {failure}")
            unavailable.__cause__ = failure
            return unavailable


def _fail(batch: list[Waiting[Row, Verdict]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
            # Its submitter may have left at the deadline; then nobody retrieves this, which is no mistake.
            future.exception()
