"""How many of a tenant's questions this worker asks its assistants at once. Whoever comes later waits, the live ones first.

Per worker: with several of them a tenant has as many times the places. What is asked, and of whom, it does not know. What is
done aside (a translation is, a question is not) has half of the places.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID
from weakref import WeakValueDictionary

import structlog

from app import metrics
from app.at_once import AtOnce
from app.directory import Tenant
from app.errors import QasidError
from workers.lane import BACKLOG

log = structlog.get_logger(__name__)

# A tenant whose questions wait is told of so often at most (seconds).
TOLD = 60.0


class NoPlace(QasidError):
    """All of the tenant's places were taken for as long as one waited. `in_vain`: and nobody who had one was answered."""

    def __init__(self, message: str, *, in_vain: bool) -> None:
        super().__init__(message)
        self.in_vain = in_vain


class _Gate:
    """Lets so many in. Of those who wait the live ones go first, but for a share of the others; each in order of coming."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._live: deque[asyncio.Future[None]] = deque()
        self._behind: deque[asyncio.Future[None]] = deque()
        self._owed = 0.0  # of a place, to those behind
        self.answered_at = float("-inf")  # monotonic; when last somebody who had a place needed it no more

    @property
    def full(self) -> bool:
        """Whether one has to wait now."""
        return self._free == 0

    async def enter(self, *, live: bool) -> None:
        """Return with a place, as soon as there is one; `leave` gives it back."""
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        (self._live if live else self._behind).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was let in just then
                self.leave()
            raise

    def leave(self) -> None:
        """Whoever is next has the place."""
        while (turn := self._next()) is not None:
            if not turn.done():  # whoever waited may have left
                turn.set_result(None)
                return
        self._free += 1

    def _next(self) -> asyncio.Future[None] | None:
        if not self._live or not self._behind:
            line = self._live or self._behind
            return line.popleft() if line else None
        self._owed += BACKLOG
        if self._owed < 1:
            return self._live.popleft()
        self._owed -= 1
        return self._behind.popleft()


class Places:
    """By tenant. Where its number has changed, those who have the old settings go by the old one."""

    def __init__(self) -> None:
        self._gates: WeakValueDictionary[tuple[UUID, int], _Gate] = WeakValueDictionary()
        self._aside = AtOnce()
        self._told_at: dict[UUID, float] = {}

    @asynccontextmanager
    async def question(self, tenant: Tenant, *, live: bool, until: float) -> AsyncIterator[float]:
        """A place for all that one question asks; how many seconds one had to wait for it. Who is not answered leaves it with
        an error.

        `live`: whether its person may still look at what they have written.

        Raises:
            NoPlace: there was none until then (monotonic).
        """
        most = tenant.limits.assistant_calls_at_once
        if not most or tenant.assistant is None:
            yield 0.0
            return
        began = time.monotonic()
        gate = self._gate(tenant, most)
        try:
            async with asyncio.timeout(until - began):
                await gate.enter(live=live)
        except TimeoutError:
            in_vain = gate.answered_at < began
            raise NoPlace(f"all {most} places of tenant {tenant.slug} were taken", in_vain=in_vain) from None
        try:
            yield time.monotonic() - began
            gate.answered_at = time.monotonic()
        finally:
            gate.leave()

    @asynccontextmanager
    async def aside(self, tenant: Tenant) -> AsyncIterator[None]:
        """A place for one call of what is done aside: only half of them (one, of one) are to be had and waited for.

        So of the many that one answer has translated few stand before another person's question.
        """
        most = tenant.limits.assistant_calls_at_once
        if not most:
            yield
            return
        async with self._aside.of(tenant.id, max(1, most // 2)):
            gate = self._gate(tenant, most)
            await gate.enter(live=True)
            try:
                yield
            finally:
                gate.leave()

    def _gate(self, tenant: Tenant, most: int) -> _Gate:
        gate = self._gates.setdefault((tenant.id, most), _Gate(most))
        if gate.full:
            self._tell(tenant, most)
        return gate

    def _tell(self, tenant: Tenant, most: int) -> None:
        metrics.limited("assistant_calls_at_once")
        now = time.monotonic()
        if now - self._told_at.get(tenant.id, float("-inf")) >= TOLD:
            self._told_at[tenant.id] = now
            log.warning("questions wait for a place with their assistant", tenant=tenant.slug, count=most)
