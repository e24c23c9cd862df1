"""How many of a tenant's calls to its assistants this worker makes at once. Whoever comes later waits, in order of coming.

Per worker: with several of them a tenant has as many times the places. What a call is, and how long one waits, it does not
know: the caller's deadline goes on meanwhile.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import structlog

from app import metrics
from app.directory import Tenant

log = structlog.get_logger(__name__)

# A tenant whose calls wait is told of so often at most (seconds).
TOLD = 60.0


class Places:
    """By tenant; made anew where its number has changed, when those who are in go by the old one."""

    def __init__(self) -> None:
        self._places: dict[UUID, tuple[int, asyncio.Semaphore]] = {}
        self._told_at: dict[UUID, float] = {}

    @asynccontextmanager
    async def of(self, tenant: Tenant) -> AsyncIterator[None]:
        """A place for one call, as soon as there is one."""
        most = tenant.limits.assistant_calls_at_once
        if not most:
            self._places.pop(tenant.id, None)
            yield
            return
        size, places = self._places.get(tenant.id, (0, None))
        if places is None or size != most:
            places = asyncio.Semaphore(most)
            self._places[tenant.id] = most, places
        if places.locked():
            self._tell(tenant, most)
        async with places:
            yield

    def _tell(self, tenant: Tenant, most: int) -> None:
        metrics.limited("assistant_calls_at_once")
        now = time.monotonic()
        if now - self._told_at.get(tenant.id, float("-inf")) >= TOLD:
            self._told_at[tenant.id] = now
            log.warning("calls to an assistant wait for a place", tenant=tenant.slug, count=most)
