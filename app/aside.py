"""What cannot be read, placed or stored is set aside here: kept raw in quarantine, and somebody called for it, once.

Whichever way it came: at the door, from the spool, or by a replay by hand. It never decides what an item means.
"""

import hashlib
from collections.abc import Sequence

import structlog
from msgspec import Struct

from app.alerts import alert
from app.db import Connection
from app.directory import Endpoint
from app.messages import Item, Message, Status, Stray
from app.store import quarantine

log = structlog.get_logger(__name__)

# Why an item that can be read is set aside. Nobody is called for it: Meta's *Test* button sends one, and so does a number
# that is to be applied still.
NO_CHANNEL = "no channel of this endpoint has this address"


class Aside(Struct, frozen=True):
    """An item to set aside, and whose webhook it came in."""

    endpoint: Endpoint
    stray: Stray
    correlation: str


def stray(item: Item, reason: str) -> Stray:
    """The item as one that is set aside for this reason."""
    part = item.part if isinstance(item, Stray) else _part(item)
    return Stray(reason=reason, raw=item.raw, address=item.address, part=part)


def refused(item: Item, error: Exception) -> Stray:
    """The item as one that PostgreSQL would not have, alone as it stands."""
    return stray(item, f"the database refuses it: {type(error).__name__}")


async def set_aside(conn: Connection, items: Sequence[Aside]) -> None:
    """Keep them, committed; call somebody for each that was not there yet, or not for this reason."""
    kept = [_kept(each) for each in items]
    whose = {(row.endpoint_id, row.digest): each for row, each in zip(kept, items, strict=True)}
    for news in await quarantine.keep(conn, kept):
        _tell(whose[news])


def _tell(aside: Aside) -> None:
    if aside.stray.reason == NO_CHANNEL:
        return
    alert(
        log.warning,
        "quarantine",
        "item set aside",
        endpoint=aside.endpoint.slug,
        correlation=aside.correlation,
        reason=aside.stray.reason,
    )


def _kept(aside: Aside) -> quarantine.Kept:
    item = aside.stray
    digest = hashlib.sha256(item.raw).digest()
    return quarantine.Kept(aside.endpoint.id, digest, item.reason, item.raw, item.address, item.part)


def _part(item: Message | Status) -> str:
    if isinstance(item, Status):
        return "status"
    return "echo" if item.direction == "echo" else "message"
