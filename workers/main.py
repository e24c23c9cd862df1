"""The worker process, wired: SAQ's worker for wake-ups, the lanes, the rooms that answering needs. Decides nothing itself."""

import asyncio
import logging
import signal
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import saq
import structlog
import uvloop
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import UndefinedTable
from saq.types import Context

from app import db, http, log, metrics, place, process
from app import settings as settings_of_environment
from app.directory import Watch
from app.errors import ConfigurationError, DatabaseUnavailable
from app.migrate import require
from app.settings import Settings
from app.vault import Vault
from app.wake import DRAIN, jobs_queue
from workers import wake
from workers.answer import Turns
from workers.commits import Commits
from workers.deliver import Delivery
from workers.lane import Lanes

logger = structlog.get_logger(__name__)

# Wake-ups that may be awaited at once: each waits for the turns that it started, at no cost but memory.
JOBS_AT_ONCE = 500
# How long SAQ may take to let go of its jobs when the worker stops (seconds): they hold nothing.
JOBS_GRACE = 1


class Worker(saq.Worker[Context]):
    """SAQ's worker, whose process answers signals itself."""

    SIGNALS = []  # noqa: RUF012  as SAQ declares it


def run() -> None:
    """Work until SIGTERM or SIGINT, then let the turns at work end."""
    settings = settings_of_environment.load()
    process.end_with_parent()
    log.configure(settings, process="worker")
    # At every stop SAQ warns of its own idle slots; what fails in a job it tells as an error.
    logging.getLogger("saq").setLevel(logging.ERROR)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work(settings))


async def work(settings: Settings, stop: asyncio.Event | None = None) -> None:
    """The same within a running loop; ends when `stop` is set."""
    stop = stop or asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    url = place.database_url(settings)
    await asyncio.to_thread(require, url)
    log.hide([settings.secret_key, settings.metrics_token, url, str(conninfo_to_dict(url).get("password") or "")])
    async with AsyncExitStack() as stack:
        pool = db.pool(url, "qasid_courier", name="worker", min_size=2, max_size=10)
        await pool.open(wait=False)
        stack.push_async_callback(pool.close)
        directory = await _directory(stack, pool, settings, stop)
        if directory is None:
            return
        log.set_fingerprint_key(directory.current.digest_key)
        providers = http.client(total=settings.send_timeout_seconds, limit=settings.worker_lanes)
        assistants = http.client(total=600.0, limit=settings.worker_lanes)
        for client in (providers, assistants):
            stack.push_async_callback(client.aclose)
        stack.callback(
            metrics.serve_worker_metrics(settings.host, settings.worker_metrics_port, settings.metrics_token)
        )
        commits = Commits(
            pool,
            uuid4(),
            order_wait=settings.order_wait_seconds,
            silence=settings.in_doubt_seconds,
            patience=settings.send_timeout_seconds,
        )
        lanes = Lanes(commits, settings)
        delivery = Delivery(commits, lanes, directory, providers, settings)
        lanes.serve(Turns(commits, delivery, directory, assistants).work)
        await stack.enter_async_context(lanes)
        lag = asyncio.create_task(metrics.watch_loop())
        stack.callback(lag.cancel)
        process.settle_memory()
        await _answer_wake_ups(url, lanes, stop)
        logger.info("worker stopping")


async def _directory(stack: AsyncExitStack, pool: db.Pool, settings: Settings, stop: asyncio.Event) -> Watch | None:
    """The configuration, as soon as the database gives it; None if the worker is to stop before."""
    vault = Vault.from_settings(settings)
    while not stop.is_set():
        try:
            return await stack.enter_async_context(Watch(pool, vault))
        except UndefinedTable as error:
            raise ConfigurationError("The database has no schema, or an older one: run `qasid migrate`.") from error
        except DatabaseUnavailable as error:
            logger.warning("waiting for the database", error=error)
            await asyncio.sleep(1.0)
    return None


async def _answer_wake_ups(url: str, lanes: Lanes, stop: asyncio.Event) -> None:
    """SAQ's part, until `stop`. Whatever goes wrong in it costs a second a message, never a message."""

    async def enter(context: Context) -> None:
        context["lanes"] = lanes  # type: ignore[typeddict-unknown-key]  # SAQ's way to hand jobs what they need

    functions: Any = [(DRAIN, wake.drain)]
    stopping = asyncio.create_task(stop.wait())
    while not stop.is_set():
        queue = jobs_queue(url, max_size=12)
        queue.heard = lanes.ring  # lanes are claimed while SAQ still takes its job; the job shows who is answered
        worker = Worker(
            queue,
            functions,
            concurrency=JOBS_AT_ONCE,
            startup=enter,
            shutdown_grace_period_s=JOBS_GRACE,
            # `schedule` looks for jobs whose notification was lost; the lanes' own loop would find their lanes anyway.
            timers={"schedule": 1, "sweep": 60, "worker_info": 10, "abort": 2},
        )
        try:
            await queue.connect()
            # SAQ's worker takes a cancellation for an orderly stop, so it is stopped in its own way.
            running = asyncio.create_task(worker.start(), name="saq")
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await worker.stop()
            await running
        except Exception as error:  # noqa: BLE001  nothing that SAQ does may end the worker
            logger.warning("no wake-ups for now", error=error)
        finally:
            await queue.disconnect()
            await queue.pool.close()
        await asyncio.wait({stopping}, timeout=1.0)
