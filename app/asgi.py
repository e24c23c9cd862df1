"""The web process, wired: settings, logs, pools, doors. It alone knows all of them, and decides nothing itself.

It starts while PostgreSQL is away or the spool cannot be used: pools open in the background, /livez answers, /readyz says
what is missing.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import psycopg
import structlog
from litestar import Litestar, MediaType, Request, Response
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.logging.config import BaseLoggingConfig
from litestar.types import GetLogger, Logger, Scope
from psycopg.conninfo import conninfo_to_dict

from app import db, log, place, process
from app import settings as settings_of_environment
from app.backlog import Backlog
from app.breaker import Breaker
from app.channels import provider
from app.directory import Watch
from app.doors import Doors
from app.doors import place as place_of
from app.errors import DatabaseUnavailable, QasidError
from app.ingest import Ingest
from app.loop_watch import LoopWatch
from app.outages import Outages
from app.policies import DATABASE
from app.prober import Prober
from app.settings import Settings
from app.spool import Spool
from app.statuses import Statuses
from app.tasks import hear, running
from app.vault import Vault
from app.wake import Bell, jobs_queue
from app.web import auth, health, jobs, schema, webhooks
from app.web.session import Sessions

logger = structlog.get_logger(__name__)

BODY_BYTES = 256 * 1024  # of any request but a webhook


def create_app(settings: Settings | None = None) -> Litestar:
    """The application, with the environment's settings unless told others. `app/served.py` is how granian calls it.

    Raises:
        ConfigurationError: a setting is wrong, or the embedded PostgreSQL cannot be used.
    """
    settings = settings or settings_of_environment.load()
    log.configure(settings, process="web")
    provider("cloud")  # imports its HTTP client: a third of a second, which the first webhook would wait for
    keys = place.secret_keys(settings)
    url = place.database_url(settings)
    log.hide([settings.secret_key, settings.metrics_token, url, str(conninfo_to_dict(url).get("password") or "")])

    console = db.pool(url, "qasid_app", name="console", min_size=1, max_size=4, max_waiting=100)
    courier = db.pool(url, "qasid_courier", name="courier", min_size=2, max_size=8)
    queue = jobs_queue(url, max_size=2)
    pages = jobs_queue(url, max_size=2, patience=3.0)  # whoever looks at jobs holds up no wake-up
    sessions = Sessions(console, keys, secure=settings.secure_cookies)
    courier.breaker = breaker = Breaker("database", DATABASE)
    outages = Outages(breaker)
    vault = Vault(keys)
    configuration = Configuration(courier, vault)
    spool = (
        Spool(settings.spool_dir, vault, max_bytes=settings.spool_max_bytes, max_age=settings.spool_max_seconds)
        if settings.spool_dir is not None
        else None
    )
    bell = Bell(queue)
    # The door stops waiting at its deadline; a flush is left behind a little later, so that it may still end in time
    # for a redelivery to find its rows. Not twice as late: so a database that hangs is known within two deadlines.
    patience = 1.7 * settings.ack_deadline_seconds
    statuses = Statuses(courier, bell, patience=patience)
    ingest = Ingest(courier, statuses, bell, patience=patience, late=breaker.late)
    doors = Doors(courier, place_of(settings.host, settings.port), lambda: spool is not None and spool.awaits_replay)
    door = webhooks.Webhooks(
        lambda: configuration.watch,
        ingest,
        doors,
        deadline=settings.ack_deadline_seconds,
        breaker=breaker,
        outages=outages,
        spool=spool,
    )
    readiness = health.Readiness(console, lambda: configuration.watch is not None, spool, breaker)
    prober = Prober(url, breaker, (courier, console))

    @asynccontextmanager
    async def rooms(app: Litestar) -> AsyncIterator[None]:
        """Everything that lives as long as the process: opened in this order, closed in the other."""
        hear(asyncio.get_running_loop())
        async with AsyncExitStack() as stack:
            for pool in (console, courier):
                await pool.open(wait=False)
                stack.push_async_callback(pool.close)
            for each in (queue, pages):
                stack.push_async_callback(each.pool.close)  # SAQ closes it only if its first use went well
                stack.push_async_callback(each.disconnect)
            await stack.enter_async_context(prober)
            if spool is not None:
                await stack.enter_async_context(spool)
            await stack.enter_async_context(configuration)
            await stack.enter_async_context(doors)
            await stack.enter_async_context(bell)
            stack.push_async_callback(statuses.drain)
            stack.push_async_callback(ingest.drain)
            if spool is not None:
                await stack.enter_async_context(Backlog(spool, breaker, lambda: configuration.watch, ingest, doors))
            await stack.enter_async_context(LoopWatch())
            process.settle_memory()
            yield

    return Litestar(
        route_handlers=[
            health.livez,
            health.readyz,
            health.show_metrics,
            webhooks.route(door),
            auth.routes(sessions, console),
            jobs.routes(pages, sessions),
        ],
        dependencies={
            "readiness": Provide(lambda: readiness, sync_to_thread=False),
            "settings": Provide(lambda: settings, sync_to_thread=False),
        },
        lifespan=[rooms],
        openapi_config=schema.config(sessions),
        exception_handlers=ERRORS,
        logging_config=Logging(),
        request_max_body_size=BODY_BYTES,
    )


class Configuration:
    """Brings the directory's Watch up as soon as the database lets it. `watch` is None until then, never after."""

    def __init__(self, courier: db.Pool, vault: Vault) -> None:
        self.watch: Watch | None = None
        self._courier = courier
        self._vault = vault
        self._life = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._life.enter_async_context(running(self._enter()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._life.aclose()
        if self.watch is not None:
            await self.watch.__aexit__(kind, error, trace)

    async def _enter(self) -> None:
        pause = 0.1
        while True:
            watch = Watch(self._courier, self._vault)
            try:
                await watch.__aenter__()
            except (QasidError, psycopg.Error) as error:
                logger.warning("the configuration cannot be read yet", error=error, seconds=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 2.0)
            else:
                log.set_fingerprint_key(watch.current.digest_key)
                self.watch = watch
                return


def _told(status: int, *, headers: dict[str, str] | None = None) -> Response[dict[str, str]]:
    """The status in words and no more: what an exception says may quote a path, a row, a secret."""
    return Response(
        {"error": HTTPStatus(status).phrase},
        status_code=status,
        headers={**(headers or {}), "X-Content-Type-Options": "nosniff"},
        media_type=MediaType.JSON,
    )


def _refused(_: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, str]]:
    return _told(error.status_code, headers=error.headers)


def _unavailable(_: Request[Any, Any, Any], error: Exception) -> Response[dict[str, str]]:
    logger.warning("the database is not available", error=error)
    return _told(503, headers={"Retry-After": "1"})


def _failed(_: Request[Any, Any, Any], error: Exception) -> Response[dict[str, str]]:
    return _told(500)


ERRORS: dict[int | type[Exception], Callable[[Request[Any, Any, Any], Any], Response[Any]]] = {
    HTTPException: _refused,
    DatabaseUnavailable: _unavailable,
    psycopg.OperationalError: _unavailable,  # PoolTimeout is one: SAQ's pool is not ours to translate
    Exception: _failed,
}


class Logging(BaseLoggingConfig):
    """Tells Litestar of our logs. They are set up already: this changes nothing but what becomes of exceptions."""

    def __init__(self) -> None:
        self.log_exceptions = "always"
        self.traceback_line_limit = -1
        self.exception_logging_handler = _uncaught
        # A client's fault, or said already.
        self.disable_stack_trace = {
            *range(400, 500),
            503,
            DatabaseUnavailable,
            *_all_kinds_of(psycopg.OperationalError),
        }

    def configure(self) -> GetLogger:
        """Litestar's way to a logger."""
        return structlog.get_logger

    @staticmethod
    def set_level(logger: Any, level: int) -> None:
        """Litestar asks this of standard loggers in debug mode, which we do not have."""
        logging.getLogger("litestar").setLevel(level)


def _uncaught(_: Logger, scope: Scope, __: list[str]) -> None:
    logger.error("request failed", exc_info=sys.exception(), method=scope.get("method"), path=scope["path"])


def _all_kinds_of(kind: type[Exception]) -> set[type[Exception]]:
    """The class and those derived from it: Litestar compares by identity."""
    return {kind}.union(*(_all_kinds_of(child) for child in kind.__subclasses__()))
