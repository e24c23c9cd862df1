"""How many of a tenant's questions this worker asks its assistants at once. Whoever comes later waits, the live ones first.

Per worker: with several of them a tenant has as many times the places. What is asked, and of whom, it does not know. What is
done aside (a translation is, a question is not) has half of the places.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID
from weakref import WeakValueDictionary

import structlog

from app import metrics
from app.at_once import AtOnce
from app.directory import Tenant
from workers.room import Held, NoPlace, Patience, Room

__all__ = ["NoPlace", "Place", "Places"]

log = structlog.get_logger(__name__)

# A tenant whose questions wait is told of so often at most (seconds).
TOLD = 60.0


class Place:
    """What one question has. `waited`: seconds, until it had it."""

    def __init__(self, held: Held | None = None, waited: float = 0.0) -> None:
        """`held`: None where there is no bound."""
        self._held = held
        self.waited = waited

    def asked(self) -> None:
        """From now on somebody is asked: until then its wait says nothing of them."""
        if self._held is not None:
            self._held.begun()

    def answered(self) -> None:
        """They have answered: who waits for a place does not wait in vain."""
        if self._held is not None:
            self._held.served()


class Places:
    """By tenant. Where its number has changed, those who have the old settings go by the old one."""

    def __init__(self) -> None:
        self._rooms: WeakValueDictionary[tuple[UUID, int], Room] = WeakValueDictionary()
        self._aside = AtOnce()
        self._told_at: dict[UUID, float] = {}

    @asynccontextmanager
    async def question(self, tenant: Tenant, *, live: bool, wait: float) -> AsyncIterator[Place]:
        """A place for all that one question asks.

        `live`: whether its person may still look at what they have written.

        Raises:
            NoPlace: there was none for `wait` seconds, and for `PATIENCE`.
        """
        most = tenant.limits.assistant_calls_at_once
        if not most or tenant.assistant is None:
            yield Place()
            return
        began = time.monotonic()
        with self._room(tenant, most).held(tenant.id, live=live) as held:
            await held.take(patience=Patience.of(wait))
            yield Place(held, time.monotonic() - began)

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
            with self._room(tenant, most).held(tenant.id, live=True) as held:
                await held.take()
                held.begun()
                yield

    def _room(self, tenant: Tenant, most: int) -> Room:
        room = self._rooms.setdefault((tenant.id, most), Room(most))
        if room.full:
            self._tell(tenant, most)
        return room

    def _tell(self, tenant: Tenant, most: int) -> None:
        metrics.limited("assistant_calls_at_once")
        now = time.monotonic()
        if now - self._told_at.get(tenant.id, float("-inf")) >= TOLD:
            self._told_at[tenant.id] = now
            log.warning("questions wait for a place with their assistant", tenant=tenant.slug, count=most)
