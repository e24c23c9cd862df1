"""The worker's statements on lanes, each batched over all lanes that need it at this instant.

Idle, a lane's statement is a round trip of its own; under load one round trip carries dozens. The SQL is in `app/store`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar
from uuid import UUID

import psycopg

from app import db
from app.batches import Batches
from app.db import Connection, Pool
from app.errors import DatabaseUnavailable, LaneLost
from app.store import chunks, lanes, overdue, settlements, steps, transcripts, turns
from app.store.lanes import Claim

# Of one flush. Its parameters are made and its rows read in the event loop, at 0.1 to 0.2 ms each.
MOST_ROWS = 32

Row = TypeVar("Row")
Verdict = TypeVar("Verdict")


class Commits:
    """`worker` is the id under which lanes are claimed; it changes when the worker was taken for dead.

    Every method raises DatabaseUnavailable where nobody knows whether it was committed, and `db.BAD_DATA` where the server
    refused the data: it would at every try.
    """

    def __init__(
        self,
        pool: Pool,
        worker: UUID,
        *,
        order_wait: float,
        silence: float,
        patience: float,
        late: Callable[[], None] = lambda: None,
    ) -> None:
        """`order_wait`, `silence`, `patience`: seconds, of the gate's bounded wait, of a doubt, of one flush.

        `late` is told of each flush that takes longer than its patience, and after half of that.
        """
        self.pool = pool
        self.worker = worker

        def batched(
            name: str, write: Callable[[Connection, Sequence[Row]], Awaitable[list[Verdict]]]
        ) -> Batches[Row, Verdict]:
            async def flush(rows: Sequence[Row]) -> Sequence[Verdict]:
                async with db.connection(pool) as conn:
                    return await write(conn, rows)

            return Batches(name, flush, patience=patience, late=late, most_rows=MOST_ROWS)

        async def opened(conn: Connection, rows: Sequence[turns.Open]) -> list[str]:
            return await turns.open_lanes(conn, rows, order_wait, silence)

        async def noted(conn: Connection, rows: Sequence[steps.Memo]) -> list[bool]:
            return await steps.memo(conn, self.worker, rows)

        async def settled(conn: Connection, rows: Sequence[settlements.Settlement]) -> list[settlements.Settled]:
            return await settlements.settle(conn, self.worker, rows)

        async def intended(conn: Connection, rows: Sequence[chunks.Intent]) -> list[chunks.Permission]:
            return await chunks.intend(conn, self.worker, rows)

        async def released(conn: Connection, rows: Sequence[lanes.Release]) -> list[float | None]:
            return await lanes.release(conn, self.worker, rows)

        self._open = batched("open", opened)
        self._memo = batched("memo", noted)
        self._settle = batched("settle", settled)
        self._intent = batched("intent", intended)
        self._fact = batched("fact", chunks.record)
        self._release = batched("release", released)

    async def open(self, wanted: turns.Open) -> turns.Opening:
        """See `turns.open_lanes` and, for what it raises, `turns.opening`."""
        return turns.opening(await self._open.submit(wanted))

    async def memo(self, memo: steps.Memo) -> None:
        """See `steps.memo`. Raises LaneLost where the lane is another's: whatever would follow from the step is not ours to do."""
        if not await self._memo.submit(memo):
            raise LaneLost("memo: the lane is another worker's")

    async def settle(self, settlement: settlements.Settlement) -> settlements.Settled:
        """See `settlements.settle`."""
        return await self._settle.submit(settlement)

    async def intend(self, intent: chunks.Intent) -> chunks.Permission:
        """See `chunks.intend`."""
        return await self._intent.submit(intent)

    async def record(self, fact: chunks.Fact) -> str:
        """See `chunks.record`."""
        return await self._fact.submit(fact)

    async def release(self, release: lanes.Release) -> float | None:
        """See `lanes.release`."""
        return await self._release.submit(release)

    # --- rare, hence alone ---

    async def abandon(self, claim: Claim, seq: int, reason: str, in_doubt: UUID | None = None) -> list[str]:
        """See `chunks.abandon`."""
        async with self._alone("abandon") as conn:
            return await chunks.abandon(conn, self.worker, claim, seq, reason, in_doubt)

    async def overtake(self, wanted: overdue.Overdue) -> bool:
        """See `overdue.overtake`."""
        async with self._alone("overtake") as conn:
            return await overdue.overtake(conn, self.worker, wanted)

    async def tried(self, claim: Claim) -> int | None:
        """See `lanes.tried`."""
        async with self._alone("tried") as conn:
            return await lanes.tried(conn, self.worker, claim)

    async def stands(self, claim: Claim, version: int) -> bool:
        """See `lanes.stands`."""
        async with self._alone("stands", reads=True) as conn:
            return await lanes.stands(conn, claim, version)

    async def wake_channel(self, tenant: UUID, channel: UUID) -> int:
        """See `lanes.wake_channel`."""
        async with self._alone("wake_channel") as conn:
            return await lanes.wake_channel(conn, tenant, channel)

    async def wake(self, lane: lanes.LaneId) -> None:
        """See `lanes.wake`. Unanswered, it costs the lane the rest of its wait."""
        async with self._alone("wake") as conn:
            await lanes.wake(conn, lane)

    async def transcript(self, tenant: UUID, message: UUID, words: str) -> None:
        """See `transcripts.keep`."""
        async with self._alone("transcript") as conn:
            await transcripts.keep(conn, tenant, message, words)

    async def park_head(self, claim: Claim, reason: str) -> int | None:
        """See `settlements.park_head`."""
        async with self._alone("park_head") as conn:
            return await settlements.park_head(conn, self.worker, claim, reason)

    @asynccontextmanager
    async def _alone(self, what: str, *, reads: bool = False) -> AsyncIterator[Connection]:
        """A connection for one statement, `what`, whose failures are those of a batched one. `reads`: see `db.connection`."""
        try:
            async with db.connection(self.pool, reads=reads) as conn:
                yield conn
        except db.BAD_DATA:
            raise
        except (psycopg.Error, OSError) as error:
            raise DatabaseUnavailable(f"{what}: {type(error).__name__}") from error
