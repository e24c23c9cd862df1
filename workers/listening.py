"""Runs SAQ's worker beside the lanes: it starts wake-ups and nothing else.

No turn runs in its tasks, so what cancels those reaches none; and it has no say in when the worker process ends.
"""

import asyncio
from contextlib import suppress
from typing import Any

import saq
import structlog
from saq.types import Context

from app import tasks
from app.log import Seldom
from app.wake import DRAIN, jobs_queue
from workers import wake
from workers.ears import STALE, Ears
from workers.lane import Lanes

log = structlog.get_logger(__name__)

# Wake-ups that may be awaited at once: each waits for the turns that it started, at no cost but memory.
JOBS_AT_ONCE = 500
# While SAQ's tables are not there, how long until the next try (seconds).
AGAIN = 1.0
# When the worker stops: how long SAQ's end is waited for (seconds). The lanes' own end waits behind it.
LET_GO = 1.0


class Worker(saq.Worker[Context]):
    """SAQ's worker, whose process answers signals itself. None of its tasks ends with an exception."""

    SIGNALS = []  # noqa: RUF012  as SAQ declares it

    async def process(self) -> bool:
        try:
            return await super().process()
        except Exception as error:  # noqa: BLE001  nobody waits for this task: what it raised would go unheard
            log.warning("a wake-up failed", error=error)
            return True


async def answer_wake_ups(url: str, lanes: Lanes, stop: asyncio.Event) -> asyncio.Task[None]:
    """SAQ's part, until `stop`. Whatever goes wrong in it costs a second a message, never a message.

    After `LET_GO` seconds SAQ is left to end behind us, in the task that is returned: a server that does not answer must
    not keep the lanes from being drained. It is not cut off: psycopg's pool, cancelled while it closes, leaves an end
    that nobody asks for.
    """
    listening = asyncio.create_task(_listen(url, lanes, stop), name="wake-ups")
    try:
        await stop.wait()
    except asyncio.CancelledError:
        listening.cancel()
        raise
    await asyncio.wait({listening}, timeout=LET_GO)
    return listening


async def _listen(url: str, lanes: Lanes, stop: asyncio.Event) -> None:
    async def enter(context: Context) -> None:
        context["lanes"] = lanes  # type: ignore[typeddict-unknown-key]  # SAQ's way to hand jobs what they need

    functions: Any = [(DRAIN, wake.drain)]
    failed = Seldom()
    while not stop.is_set():
        queue = jobs_queue(url, Ears, max_size=12)
        queue.ring(lanes.ring)  # lanes are claimed while SAQ still takes its job; the job shows who is answered
        beside: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait())]
        try:
            await queue.connect()
            await queue.sweep()  # wake-ups that gathered while no worker ran would cost SAQ seconds
            worker = Worker(
                queue,
                functions,
                concurrency=JOBS_AT_ONCE,
                startup=enter,
                shutdown_grace_period_s=0,  # its jobs hold nothing
                # `schedule` looks for jobs whose notification was lost; the lanes' own loop would find their lanes anyway.
                timers={"schedule": 1, "sweep": STALE, "worker_info": 10, "abort": 2},
            )
            beside.append(asyncio.create_task(worker.start(), name="saq"))
            await asyncio.wait(beside, return_when=asyncio.FIRST_COMPLETED)
            await worker.stop()  # it takes a cancellation for an orderly stop, so it is stopped in its own way
            await beside[1]
        except Exception as error:  # noqa: BLE001  nothing that SAQ does may end the worker
            if failed.due():
                log.warning("no wake-ups for now", error=error)
        finally:
            await tasks.end(*beside)
            await queue.disconnect()
        with suppress(TimeoutError):
            async with asyncio.timeout(AGAIN):
                await stop.wait()
