"""At a worker's start: the conversations that were lately active are read ahead, so that their next turns read no history.

Beside the turns and behind them: it holds one connection at a time, waits while anybody waits for one, and gives up where
the database is in trouble. Nothing rests on it.
"""

import asyncio
import time
from collections.abc import Sequence

import structlog

from app import db
from app.directory import Directory
from app.store import histories
from app.store.lanes import LaneId
from workers import sessions
from workers.sessions import HARD, OVERHEAD, Sessions

log = structlog.get_logger(__name__)

# Of each tenant so many of the newest messages are looked at, and of all together so many conversations read at most.
EACH, MOST = 500, 5000
# Conversations in one statement: a millisecond or a few.
AT_ONCE = 50
# What is read later than so long after the start (seconds) would hardly be younger than what the first turns read themselves.
LASTS = 20.0


async def warm(pool: db.Pool, directory: Directory, remembered: Sessions) -> None:
    """Fill `remembered` from the newest down, as far as there is room and time."""
    began = time.monotonic()
    wanted = {
        tenant.id: tenant.assistant.history_messages
        for tenant in directory.tenants
        if tenant.enabled and tenant.assistant is not None and tenant.assistant.history_messages
    }
    read = 0
    try:
        if wanted and remembered.room > OVERHEAD and await _may_read(pool):
            async with db.connection(pool, reads=True) as conn:
                lanes = await histories.recent(conn, list(wanted), HARD, EACH, min(MOST, remembered.room // OVERHEAD))
            for first in range(0, len(lanes), AT_ONCE):
                if not await _may_read(pool) or time.monotonic() - began > LASTS:
                    break
                batch = [(lane, wanted[lane[0]]) for lane in lanes[first : first + AT_ONCE]]
                kept, full = await _batch(pool, batch, remembered)
                read += kept
                if full:
                    break
    except db.UNAVAILABLE as error:
        log.info("conversations are not read ahead", error=error)
    except Exception:  # whatever it was, nothing rests on it, and nobody waits for this task
        log.exception("conversations cannot be read ahead")
    log.info("conversations read ahead", count=read, seconds=round(time.monotonic() - began, 3))


async def _batch(pool: db.Pool, batch: Sequence[tuple[LaneId, int]], remembered: Sessions) -> tuple[int, bool]:
    """How many of these were kept, and whether there was no room for one."""
    at, began = remembered.now(), time.monotonic()
    async with db.connection(pool, reads=True) as conn:
        found = await histories.read(conn, batch)
    history = dict(batch)
    for n, each in enumerate(found):
        if not remembered.add(each.lane, sessions.read(each, history[each.lane], at)):
            return n, True
    await asyncio.sleep(time.monotonic() - began)  # half of the time is others' at the least
    return len(found), False


async def _may_read(pool: db.Pool) -> bool:
    """Wait while others wait for a connection; False where the breaker takes no reads."""
    while pool.get_stats().get("requests_waiting", 0):  # noqa: ASYNC110  the pool tells nobody when it is less busy
        await asyncio.sleep(0.1)
    return pool.breaker is None or pool.breaker.allows_reads
