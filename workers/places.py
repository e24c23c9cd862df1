"""How many of a tenant's calls to its assistants this worker makes at once. Whoever comes later waits, in order of coming.

Per worker: with several of them a tenant has as many times the places. What a call is, and how long one waits, it does not
know: the caller's deadline goes on meanwhile. What is done aside (a translation is, a question is not) has half of them.
"""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import structlog

from app import metrics
from app.at_once import AtOnce
from app.directory import Tenant

log = structlog.get_logger(__name__)

# A tenant whose calls wait is told of so often at most (seconds).
TOLD = 60.0


class Places:
    """By tenant. Where its number has changed, those who have the old settings go by the old one."""

    def __init__(self) -> None:
        self._places = AtOnce()
        self._aside = AtOnce()
        self._told_at: dict[UUID, float] = {}

    @asynccontextmanager
    async def of(self, tenant: Tenant, *, aside: bool = False) -> AsyncIterator[None]:
        """A place for one call, as soon as there is one. `aside`: only half of them (one, of one) are to be had and waited for.

        So of the many that one answer has translated few stand before another person's question.
        """
        most = tenant.limits.assistant_calls_at_once
        if not most:
            yield
            return
        gates = [self._aside.of(tenant.id, max(1, most // 2))] if aside else []
        async with AsyncExitStack() as stack:
            for gate in (*gates, self._places.of(tenant.id, most)):
                if gate.locked():
                    self._tell(tenant, most)
                await stack.enter_async_context(gate)
            yield

    def _tell(self, tenant: Tenant, most: int) -> None:
        metrics.limited("assistant_calls_at_once")
        now = time.monotonic()
        if now - self._told_at.get(tenant.id, float("-inf")) >= TOLD:
            self._told_at[tenant.id] = now
            log.warning("calls to an assistant wait for a place", tenant=tenant.slug, count=most)
