"""The worker process, wired: SAQ's worker for wake-ups, the lanes, the rooms that answering needs. Decides nothing itself."""

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from uuid import uuid4

import structlog
import uvloop
from psycopg.conninfo import conninfo_to_dict

from app import assistants, db, http, log, metrics, place, process, tasks
from app import settings as settings_of_environment
from app.assistants import Assistant
from app.breaker import Breaker
from app.channels import provider
from app.directory import Watch
from app.errors import DatabaseUnavailable
from app.loop_watch import LoopWatch
from app.migrate import require
from app.outages import Outages
from app.policies import DATABASE
from app.prober import Prober
from app.settings import Settings
from app.translation.memory import Memory
from app.vault import Vault
from workers.breakers import Breakers
from workers.commits import Commits
from workers.deliver import Delivery
from workers.files import AT_ONCE as FILES_AT_ONCE
from workers.hearing import AT_ONCE as VOICES_AT_ONCE
from workers.hearing import MOST_BYTES
from workers.lane import Lanes
from workers.listening import answer_wake_ups
from workers.sessions import Sessions
from workers.typing import Typing
from workers.warming import warm
from workers.wiring import Clients, turns

logger = structlog.get_logger(__name__)

# How long its connections may take to close when all else has ended (seconds).
SAQ_ENDS = 5.0
# Connections for files that people sent, and for those who write down voice messages: one for each that may be under way. How
# long one request may take (seconds).
FILES = FILES_AT_ONCE + VOICES_AT_ONCE
FILE_SECONDS = 120.0


def run() -> None:
    """Work until SIGTERM or SIGINT, then let the turns at work end."""
    settings = settings_of_environment.load()
    process.end_with_parent()
    log.configure(settings, process="worker")
    # At every stop SAQ warns of its own idle slots; what fails in a job it tells as an error.
    logging.getLogger("saq").setLevel(logging.ERROR)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work(settings))


async def work(
    settings: Settings,
    stop: asyncio.Event | None = None,
    *,
    assistant: Callable[[str], Assistant] = assistants.assistant,
) -> None:
    """The same within a running loop; ends when `stop` is set. `assistant`: who answers, by a provider's name."""
    stop = stop or asyncio.Event()
    tasks.hear(asyncio.get_running_loop())
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    url = place.database_url(settings)
    log.hide([settings.secret_key, settings.metrics_token, url, str(conninfo_to_dict(url).get("password") or "")])
    async with AsyncExitStack() as stack:
        pool = db.pool(url, "qasid_courier", name="worker", min_size=2, max_size=10)
        await pool.open(wait=False)
        stack.push_async_callback(pool.close)
        pool.breaker = breaker = Breaker("database", DATABASE)
        sessions = Sessions(settings.session_cache_bytes)
        Outages(breaker, lambda: sessions.served_stale)
        breakers = Breakers()
        stack.callback(breakers.forget)
        await stack.enter_async_context(Prober(url, breaker, (pool,), breakers.heard))
        directory = await _directory(stack, url, pool, settings, stop)
        if directory is None:
            return
        breakers.directory = directory
        log.set_fingerprint_key(directory.current.digest_key)
        provider("cloud")  # imported now: the first turn would hold all others up for it
        assistant("anthropic")
        providers = http.client(total=settings.send_timeout_seconds, limit=settings.worker_lanes)
        answerers = http.client(total=600.0, limit=settings.worker_lanes)
        files, outside = (
            http.client(total=FILE_SECONDS, limit=FILES, max_response=MOST_BYTES + 1, public=public)
            for public in (False, True)
        )
        clients = Clients(assistants=answerers, files=files, outside=outside)
        for client in (providers, answerers, files, outside):
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
            late=breaker.late,
        )
        lanes = Lanes(commits, settings)
        delivery = Delivery(commits, lanes, directory, providers, settings, breakers)
        typing = await stack.enter_async_context(Typing(providers, directory, delivery.free))
        memory = Memory(pool, answerers, patience=settings.send_timeout_seconds, late=breaker.late)
        stack.push_async_callback(memory.aclose)
        lanes.serve(
            turns(
                commits,
                delivery,
                directory,
                sessions,
                breakers,
                clients,
                memory=memory,
                typing=typing,
                hosts=settings.media_host_names,
                assistant=assistant,
            ).work
        )
        behind: list[asyncio.Task[None]] = []
        stack.push_async_callback(_let_end, behind)
        await stack.enter_async_context(lanes)
        await stack.enter_async_context(tasks.running(warm(pool, directory.current, sessions)))
        await stack.enter_async_context(LoopWatch())
        process.settle_memory()
        behind.append(await answer_wake_ups(url, lanes, stop))
        logger.info("worker stopping")


async def _let_end(behind: list[asyncio.Task[None]]) -> None:
    """What the drain of the lanes did not wait for."""
    if behind:
        await asyncio.wait(behind, timeout=SAQ_ENDS)


async def _directory(
    stack: AsyncExitStack, url: str, pool: db.Pool, settings: Settings, stop: asyncio.Event
) -> Watch | None:
    """The configuration, as soon as the database gives it; None if the worker is to stop before.

    Raises ConfigurationError: the schema is not this build's, or a secret does not open.
    """
    vault = Vault.from_settings(settings)
    while not stop.is_set():
        try:
            await asyncio.to_thread(require, url)
            return await stack.enter_async_context(Watch(pool, vault))
        except DatabaseUnavailable as error:
            logger.warning("waiting for the database", error=error)
            await asyncio.sleep(1.0)
    return None
