"""How many of a tenant's questions this worker asks its assistants at once. Whoever comes later waits, the live ones first.

Per worker: with several of them a tenant has as many times the places. What is asked, and of whom, it does not know. What is
done aside (a translation is, a question is not) has half of the places.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID
from weakref import WeakValueDictionary

import structlog

from app import metrics
from app.at_once import AtOnce
from app.directory import Tenant
from app.errors import QasidError
from workers.backlog import Share

log = structlog.get_logger(__name__)

# A tenant whose questions wait is told of so often at most (seconds).
TOLD = 60.0
# A place is waited for at least so long (seconds), however little time an answer has: who is given back costs a claim.
PATIENCE = 5.0

# Those who wait, in order of coming.
_Line = dict[asyncio.Future[None], None]


class NoPlace(QasidError):
    """All of the tenant's places were taken for as long as one waited. `in_vain`: and nobody who had one was answered."""

    def __init__(self, tenant: Tenant, most: int, *, in_vain: bool) -> None:
        while_waiting = ", and nobody was answered meanwhile: its assistant is away, or hangs" if in_vain else ""
        super().__init__(f"tenant {tenant.slug} asks no more than {most} questions at once{while_waiting}")
        self.in_vain = in_vain


class _Gate:
    """Lets so many in. Of those who wait the live ones go first, but for a share of the others; each in order of coming."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._live: _Line = {}
        self._behind: _Line = {}
        self._share = Share()
        self.answered_at = float("-inf")  # monotonic; when last somebody who had a place was answered

    @property
    def full(self) -> bool:
        """Whether one has to wait now."""
        return self._free == 0

    async def enter(self, *, live: bool) -> None:
        """Return with a place, as soon as there is one; `leave` gives it back."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = self._live if live else self._behind
        line[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                line.pop(turn, None)
            else:  # it was let in just then
                self.leave()
            raise

    def leave(self) -> None:
        """Whoever is next has the place."""
        for line in (self._live, self._behind):
            while line and (first := next(iter(line))).done():  # cancelled, and has not run since
                del line[first]
        if not (line := self._next()):
            self._free += 1
            return
        turn = next(iter(line))
        del line[turn]
        turn.set_result(None)

    def _next(self) -> _Line:
        """Whose turn it is; empty where nobody waits."""
        if not self._live or not self._behind:
            return self._live or self._behind
        return self._behind if self._share.of(1) else self._live


class Places:
    """By tenant. Where its number has changed, those who have the old settings go by the old one."""

    def __init__(self) -> None:
        self._gates: WeakValueDictionary[tuple[UUID, int], _Gate] = WeakValueDictionary()
        self._aside = AtOnce()
        self._told_at: dict[UUID, float] = {}

    @asynccontextmanager
    async def question(self, tenant: Tenant, *, live: bool, wait: float) -> AsyncIterator[float]:
        """A place for all that one question asks; how many seconds one had to wait for it. See `answered`.

        `live`: whether its person may still look at what they have written.

        Raises:
            NoPlace: there was none for `wait` seconds, and for `PATIENCE`.
        """
        most = tenant.limits.assistant_calls_at_once
        if not most or tenant.assistant is None:
            yield 0.0
            return
        gate = self._gate(tenant, most)
        began = time.monotonic()
        try:
            async with asyncio.timeout(max(wait, PATIENCE)):
                await gate.enter(live=live)
        except TimeoutError:
            raise NoPlace(tenant, most, in_vain=gate.answered_at < began) from None
        try:
            yield time.monotonic() - began
        finally:
            gate.leave()

    def answered(self, tenant: Tenant) -> None:
        """Somebody who had a place was: who waits for one does not wait in vain."""
        if (gate := self._gates.get((tenant.id, tenant.limits.assistant_calls_at_once or 0))) is not None:
            gate.answered_at = time.monotonic()

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
