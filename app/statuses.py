"""What providers say became of our messages: batches statuses, applies them, wakes the lanes that waited for them."""

import hashlib
from collections.abc import Sequence

import structlog

from app import db, metrics
from app.batches import Batches
from app.crashpoints import crashpoint
from app.db import Pool
from app.directory import Channel
from app.messages import Status
from app.store import quarantine
from app.store import statuses as store
from app.wake import Bell

log = structlog.get_logger(__name__)


class Statuses:
    """`submit` a status of a channel; await it to know that it is kept, and applied where it was right."""

    def __init__(self, pool: Pool, bell: Bell, *, patience: float) -> None:
        self._pool = pool
        self._bell = bell
        self._batches: Batches[store.Reported, store.Effect] = Batches(
            "statuses", self._write, refuse=self._refuse, weigh=lambda row: len(row.status.raw), patience=patience
        )

    async def submit(self, channel: Channel, status: Status) -> None:
        """Return once it is committed.

        Raises:
            DatabaseUnavailable: it may not be; the provider must send the webhook again.
        """
        said = f"{status.provider_id}\0{status.status}\0{status.at.timestamp():.0f}\0{status.key}"
        digest = hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:16]
        effect = await self._batches.submit(
            store.Reported(channel.tenant_id, channel.id, channel.endpoint_id, digest, status)
        )
        metrics.status(status.status, "applied" if effect.moved else "kept")
        if status.key and not effect.known:
            # Our own kind of key, but no chunk of this channel: another installation's, or somebody tries it on.
            metrics.alert("foreign_key")
            log.warning("status for no chunk of its channel", alert="foreign_key", channel=channel.slug)
        if effect.failed:
            metrics.alert("chunk_failed")
            log.error(
                "message failed",
                alert="chunk_failed",
                conversation=str(effect.failed),
                code=status.code,
                reason=status.reason,
            )

    async def drain(self) -> None:
        """Return once nothing waits any more."""
        await self._batches.drain()

    async def _write(self, rows: Sequence[store.Reported]) -> list[store.Effect]:
        async with db.connection(self._pool) as conn:
            crashpoint("statuses.writing")
            effects = await store.apply(conn, rows)
        self._bell.ring(
            {(row.tenant_id, effect.woke) for row, effect in zip(rows, effects, strict=True) if effect.woke}
        )
        return effects

    async def _refuse(self, row: store.Reported, error: Exception) -> store.Effect:
        """PostgreSQL would not have this status, alone as it stands now: keep it raw."""
        reason = f"the database refuses it: {type(error).__name__}"
        log.warning("status quarantined", reason=reason)
        raw = row.status.raw
        kept = quarantine.Kept(row.endpoint_id, hashlib.sha256(raw).digest(), reason, raw, row.status.address, "status")
        async with db.connection(self._pool) as conn:
            await quarantine.keep(conn, [kept])
        metrics.item("quarantined")
        return store.Effect(known=True, moved=False, woke=None, failed=None)
