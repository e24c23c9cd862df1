"""How many tokens a tenant has spent within a day: the table `usage` says so, and is asked every few seconds at most.

What this worker's own turns cost meanwhile is added; what other workers' cost is seen at the next look. It refuses nobody.
"""

import asyncio
import time
from uuid import UUID

import structlog

from app import db
from app.errors import QasidError
from app.store import spending
from workers.lane import UNAVAILABLE

log = structlog.get_logger(__name__)

DAY = 86_400.0
# So old the sum may be (seconds): by so much of all workers' spending a budget is overdrawn at most.
FRESH = 15.0


class _Known:
    """A tenant's sum, when it was read (monotonic), and who is reading it anew."""

    def __init__(self) -> None:
        self.tokens = 0
        self.read_at = float("-inf")
        self.look: asyncio.Task[None] | None = None


class Spending:
    """By tenant, for those alone that have a budget: so bounded by them."""

    def __init__(self, pool: db.Pool) -> None:
        self._pool = pool
        self._known: dict[UUID, _Known] = {}

    async def today(self, tenant: UUID) -> int:
        """Tokens of the last 24 hours. Where the database cannot be asked, what was known last: it must settle the turn anyway."""
        known = self._known.setdefault(tenant, _Known())
        if time.monotonic() - known.read_at > FRESH:
            if known.look is None:  # one look for all who ask; whoever leaves cuts off nobody else's
                known.look = asyncio.create_task(self._look(tenant, known), name="spending")
            await asyncio.shield(known.look)
        return known.tokens

    def spent(self, tenant: UUID, tokens: int) -> None:
        """A turn of this worker's has cost so many."""
        if (known := self._known.get(tenant)) is not None:
            known.tokens += tokens

    async def _look(self, tenant: UUID, known: _Known) -> None:
        began = time.monotonic()
        try:
            async with db.connection(self._pool, reads=True) as conn:
                known.tokens = await spending.tokens(conn, tenant, DAY)
            known.read_at = began
        except (*UNAVAILABLE, QasidError) as error:
            log.warning("spending cannot be read, the last sum holds", error=error, tokens=known.tokens)
        finally:
            known.look = None
