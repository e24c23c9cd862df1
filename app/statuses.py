"""What providers say became of our messages: batches statuses, applies them, wakes the lanes that waited for them."""

import hashlib
from collections.abc import Sequence

import structlog
from msgspec import Struct

from app import db, metrics
from app.alerts import alert
from app.aside import Aside, refused, set_aside
from app.batches import Batches
from app.crashpoints import crashpoint
from app.db import Pool
from app.directory import Channel, Endpoint
from app.messages import Status
from app.store import statuses as store
from app.wake import Bell

log = structlog.get_logger(__name__)


class _Arrival(Struct, frozen=True):
    """A status, and whose webhook it came in."""

    endpoint: Endpoint
    reported: store.Reported
    correlation: str


class Statuses:
    """`submit` a status of a channel; await it to know that it is kept, and applied where it was right."""

    def __init__(self, pool: Pool, bell: Bell, *, patience: float) -> None:
        self._pool = pool
        self._bell = bell
        self._batches: Batches[_Arrival, store.Effect] = Batches(
            "statuses",
            self._write,
            refuse=self._refuse,
            weigh=lambda row: len(row.reported.status.raw),
            patience=patience,
        )

    async def submit(self, endpoint: Endpoint, channel: Channel, status: Status, correlation: str) -> None:
        """Return once it is committed.

        Raises:
            DatabaseUnavailable: it may not be; the provider must send the webhook again.
        """
        said = f"{status.provider_id}\0{status.status}\0{status.at.timestamp():.0f}\0{status.key}"
        digest = hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:16]
        reported = store.Reported(channel.tenant_id, channel.id, digest, status)
        effect = await self._batches.submit(_Arrival(endpoint, reported, correlation))
        metrics.status(status.status, "applied" if effect.moved else "kept")
        if status.key and not effect.known:
            # Our own kind of key, but no chunk of this channel: another installation's, or somebody tries it on.
            alert(log.warning, "foreign_key", "status for no chunk of its channel", channel=channel.slug)
        if effect.failed:
            alert(
                log.error,
                "chunk_failed",
                "message failed",
                conversation=str(effect.failed),
                code=status.code,
                reason=status.reason,
            )

    async def drain(self) -> None:
        """Return once nothing waits any more."""
        await self._batches.drain()

    async def _write(self, rows: Sequence[_Arrival]) -> list[store.Effect]:
        async with db.connection(self._pool) as conn:
            crashpoint("statuses.writing")
            effects = await store.apply(conn, [row.reported for row in rows])
        self._bell.ring(
            {(row.reported.tenant_id, effect.woke) for row, effect in zip(rows, effects, strict=True) if effect.woke}
        )
        return effects

    async def _refuse(self, row: _Arrival, error: Exception) -> store.Effect:
        """PostgreSQL would not have this status, alone as it stands now: keep it raw."""
        async with db.connection(self._pool) as conn:
            await set_aside(conn, [Aside(row.endpoint, refused(row.reported.status, error), row.correlation)])
        metrics.item("quarantined")
        return store.Effect(known=True, moved=False, woke=None, failed=None)
