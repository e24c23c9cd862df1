"""How many tokens a tenant has spent within a day: the table `usage` says so, and is asked every few seconds at most.

What this worker's own turns have cost is added, those that are not settled yet among them; what other workers' cost is seen
at the next look. It refuses nobody.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import structlog

from app import db
from app.errors import QasidError
from app.store import spending

log = structlog.get_logger(__name__)

DAY = 86_400.0
# So old the sum may be (seconds): by so much of all workers' spending a budget is overdrawn at most.
FRESH = 15.0


class Spent:
    """What a turn has cost so far, whatever became of it: answers to what was edited meanwhile among it."""

    def __init__(self) -> None:
        self.input_tokens = 0
        self.output_tokens = 0

    def add(self, input_tokens: int, output_tokens: int) -> None:
        """So many more."""
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens

    @property
    def tokens(self) -> int:
        """Both together."""
        return self.input_tokens + self.output_tokens


class _Known:
    """A tenant's sum, when it was read (monotonic), and who is reading it anew."""

    def __init__(self) -> None:
        self.tokens = 0
        self.read_at = float("-inf")
        self.look: asyncio.Task[None] | None = None


class Spending:
    """By tenant: what is known, for those alone that have a budget; what is being spent, for those with turns at work."""

    def __init__(self, pool: db.Pool) -> None:
        self._pool = pool
        self._known: dict[UUID, _Known] = {}
        self._spending: dict[UUID, set[Spent]] = {}

    async def today(self, tenant: UUID) -> int:
        """Tokens of the last 24 hours. Where the database cannot be asked, what was known last: it must settle the turn anyway."""
        known = self._known.setdefault(tenant, _Known())
        if time.monotonic() - known.read_at > FRESH:
            if known.look is None:  # one look for all who ask; whoever leaves cuts off nobody else's
                known.look = asyncio.create_task(self._look(tenant, known), name="spending")
            await asyncio.shield(known.look)
        return known.tokens + sum(spent.tokens for spent in self._spending.get(tenant, ()))

    @contextmanager
    def turn(self, tenant: UUID) -> Iterator[Spent]:
        """A turn of this tenant's is worked on. What it costs counts at once; behind the block its settlement has it.

        Left by an error it has none, as far as anybody knows: whoever has the turn next counts anew what is kept of it.
        """
        spent = Spent()
        spending = self._spending.setdefault(tenant, set())
        spending.add(spent)
        try:
            yield spent
            if (known := self._known.get(tenant)) is not None:
                known.tokens += spent.tokens
        finally:
            spending.remove(spent)
            if not spending:
                del self._spending[tenant]

    async def _look(self, tenant: UUID, known: _Known) -> None:
        began = time.monotonic()
        try:
            async with db.connection(self._pool, reads=True) as conn:
                known.tokens = await spending.tokens(conn, tenant, DAY)
            known.read_at = began
        except (*db.UNAVAILABLE, QasidError) as error:
            log.warning("spending cannot be read, the last sum holds", error=error, tokens=known.tokens)
        finally:
            known.look = None
