"""What machines ask of this process: /livez, /readyz, /metrics. It asks the database one question at a time."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
from litestar import MediaType, Request, Response, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Struct

from app import db, metrics, migrate
from app.breaker import Breaker
from app.errors import DatabaseUnavailable
from app.settings import Settings
from app.spool import Spool

PATIENCE = 1.0  # seconds
HELD_OPEN = "A person holds the breaker of the database open; `qasid breaker auto database` ends that."
UNREAD = "The configuration has not been read yet; the log says why if it stays so."


class Ready(Struct, frozen=True, kw_only=True):
    """Whether this process can take webhooks, and if not, why, for a person."""

    ready: bool
    reason: str = ""
    """Why not; or what is missing all the same: the database while the spool keeps what it cannot take, or the spool."""


class Readiness:
    """Asks whether the database answers, its schema is this build's, and the configuration was read from it."""

    def __init__(
        self,
        console: db.Pool,
        configured: Callable[[], bool],
        spool: Spool | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """`configured` says whether this process knows its endpoints yet; `breaker` is what webhooks stop at."""
        self._breaker = breaker
        self._spool = spool
        self._console = console
        self._configured = configured
        self._files = migrate.available()
        self._question: asyncio.Task[str] | None = None

    async def check(self) -> Ready:
        """The answer within a second, whatever the database does."""
        reason = "" if self._held_open else await self._asked()
        if self._held_open:  # by now: nothing that is asked would show it
            reason = HELD_OPEN
        # Whoever is taken out of rotation keeps nothing: with a spool, and endpoints known, webhooks are welcome.
        refuses = self._spool.state().refuses if self._spool is not None else None
        keeps = self._spool is not None and self._configured() and refuses is None
        unread = "" if self._configured() else UNREAD
        told = " ".join(each for each in (reason, unread, refuses and f"The spool takes nothing: {refuses}.") if each)
        return Ready(ready=not (reason or unread) or keeps, reason=told)

    async def _asked(self) -> str:
        """What the database says in time; who asks meanwhile shares it."""
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._ask(), name="readiness")
        question = self._question
        # Not asyncio.timeout: cancelling a query on a frozen server takes ten seconds.
        done, _ = await asyncio.wait({question}, timeout=PATIENCE)
        return question.result() if done else f"The database has not answered within {PATIENCE:g} s."

    async def _ask(self) -> str:
        try:
            async with db.connection(self._console) as conn, conn.transaction():
                await conn.execute("SET LOCAL ROLE NONE")
                there = await (await conn.execute(migrate.PRESENT)).fetchone() == (True,)
                applied = dict(await (await conn.execute(migrate.APPLIED)).fetchall()) if there else None
        except DatabaseUnavailable:
            return "The database cannot be reached."
        except psycopg.Error as error:
            return f"The database does not answer as it should ({type(error).__name__})."
        if why := migrate.misfit(self._files, applied):
            return why
        if self._breaker is not None and not self._breaker.allows_writes:  # it answers this, and takes no write, say
            return f"The database answers, and no webhook is let through to it: {self._breaker.reason}."
        return ""

    @property
    def _held_open(self) -> bool:
        return self._breaker is not None and self._breaker.forced == "open"


@get("/livez", media_type=MediaType.TEXT, sync_to_thread=False, cache_control=None)
def livez() -> str:
    """The process runs and its event loop turns. No I/O."""
    return "alive\n"


@get("/readyz", responses={503: ResponseSpec(data_container=Ready, description="Not ready: why, for a person")})
async def readyz(readiness: NamedDependency[Readiness]) -> Response[Ready]:
    """Whether webhooks can be taken: the database answers, its breaker is closed, the schema is current; or a spool is there."""
    ready = await readiness.check()
    return Response(ready, status_code=200 if ready.ready else 503)


@get("/metrics", media_type=MediaType.TEXT)
async def show_metrics(request: Request[Any, Any, Any], settings: NamedDependency[Settings]) -> Response[bytes]:
    """Prometheus metrics, for whoever has QASID_METRICS_TOKEN; where none is set, for this machine alone."""
    headers = request.headers
    if not metrics.may_read(
        settings.metrics_token,
        authorization=headers.get("authorization"),
        client=request.client.host if request.client else None,
        forwarded="x-forwarded-for" in headers or "forwarded" in headers,
    ):
        return Response(b"", status_code=403)
    return Response(await asyncio.to_thread(metrics.render), media_type=metrics.CONTENT_TYPE)
