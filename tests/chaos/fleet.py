"""The processes of one run: its database, the proxy before it, web and worker members, and the spool that one of them has.

It ends all it started, however the run ends. It decides no fault: it is what faults are done to.
"""

import asyncio
import os
import secrets
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

import psycopg

from tests.chaos import witness
from tests.chaos.database import Database
from tests.chaos.member import Death, Life, Member, RigFailed, Roll
from tests.chaos.processes import free_ports
from tests.chaos.proxied import ROOT, Proxied

__all__ = ["Fleet", "Member", "RigFailed", "Roll", "Death", "ROOT", "ENDPOINT", "LEASE_SECONDS", "SPOOL_BYTES"]

ENDPOINT = "chaos"
LEASE_SECONDS = 6.0
COMMAND_SECONDS = 60.0
SETTINGS: Mapping[str, str] = {
    "QASID_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "QASID_SEND_TIMEOUT_SECONDS": "4",
    "QASID_IN_DOUBT_SECONDS": "3",
    "QASID_IN_DOUBT_MAX_SECONDS": "300",
    "QASID_ORDER_WAIT_SECONDS": "2",
    "QASID_PAIR_SECONDS": "0.06",  # 6 s by 100, as the provider's Limits(scale=100)
    "QASID_WEB_WORKERS": "1",
    "QASID_LOG_FORMAT": "json",
    # Full early on: what grows for minutes after that is no memory of conversations, and may not (invariant 13).
    "QASID_SESSION_CACHE_BYTES": "8000000",
    "PGSSLMODE": "disable",  # the first bytes of a connection tell whose it is, heard or not
}
# One web has a spool, the other none: what the database cannot take is kept by one and refused by the other.
SPOOLING = "web1"
SPOOL_BYTES = 1_000_000  # the least that may be set: the longest outages reach it


class Fleet:
    """Enter it, `configure` it, `start` it."""

    def __init__(
        self,
        folder: Path,
        *,
        source: Path = ROOT,
        webs: int = 2,
        workers: int = 2,
        spool: int | None = SPOOL_BYTES,
        disk: int | None = None,
    ) -> None:
        """`folder`: of this run alone; an earlier run's database in it goes. `source`: the tree to run (a mutant's).

        `spool`: how many bytes the first web's may hold; None: it has none. `disk`: see Database.
        """
        self.folder, self.source = folder.resolve(), source.resolve()
        self.database = Database(self.folder, disk=disk)
        self.spool = self.folder / "spool" if spool else None
        self._spool_bytes = spool
        self._kinds: dict[str, Literal["web", "worker"]] = {
            **{f"web{n}": "web" for n in range(1, webs + 1)},
            **{f"worker{n}": "worker" for n in range(1, workers + 1)},
        }
        self.members: list[Member] = []
        self._key = secrets.token_hex(32)
        self._life = AsyncExitStack()

    @property
    def webs(self) -> list[Member]:
        return [member for member in self.members if member.kind == "web"]

    @property
    def workers(self) -> list[Member]:
        return [member for member in self.members if member.kind == "worker"]

    @property
    def webhook_urls(self) -> list[str]:
        return [f"{web.url}/webhooks/{ENDPOINT}" for web in self.webs]

    @property
    def superuser_url(self) -> str:
        """Straight to PostgreSQL, past the proxy."""
        return self.database.superuser_url

    @property
    def lives(self) -> list[Life]:
        """Of all processes, until now for those that run."""
        return [life for member in self.members for life in member.lives]

    @property
    def deaths(self) -> list[Death]:
        """Ends that nobody ordered, in time's order."""
        return sorted((death for member in self.members for death in member.deaths), key=lambda death: death.at)

    @property
    def rolls(self) -> list[Roll]:
        """Orderly stops, in time's order."""
        return sorted((roll for member in self.members for roll in member.rolls), key=lambda roll: roll.at)

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / "spool", ignore_errors=True)
        async with self._life:
            await self._life.enter_async_context(self.database)
            self._url = self.database.cluster.url
            self.proxy = await self._life.enter_async_context(Proxied(_port(self._url), list(self._kinds)))
            ports = free_ports(len(self._kinds))
            for (name, kind), port in zip(self._kinds.items(), ports, strict=True):
                log = self.folder / f"{name}.log"
                log.write_bytes(b"")
                environ = self._environ(name) | {
                    ("QASID_PORT" if kind == "web" else "QASID_WORKER_METRICS_PORT"): str(port)
                }
                self.members.append(Member(name, kind, port, source=self.source, environ=environ, log=log))
            await self._qasid("migrate")
            await witness.lay(self.superuser_url)
            self._group = await self._life.enter_async_context(asyncio.TaskGroup())
            self._life.push_async_callback(self._end)
            self._life = self._life.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._life.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:  # a supervisor's, or the caller's own as TaskGroup wraps it
            if error is None or error not in group.exceptions:
                raise group.exceptions[0] from None

    async def configure(self, toml: str, environ: Mapping[str, str]) -> None:
        """`qasid apply` of this file. Raises RigFailed with what it said."""
        file = self.folder / "chaos.toml"
        file.write_text(toml)
        await self._qasid("apply", str(file), environ=environ)

    async def start(self) -> None:
        """All members up and ready. Raises RigFailed."""
        for member in self.members:
            self._group.create_task(member.live(), name=member.name)
        await self.ready()

    async def ready(self, timeout: float = 60.0) -> None:
        """Return once every member is at work and every worker has its row. Raises RigFailed."""
        deadline = time.monotonic() + timeout
        await asyncio.gather(*(member.ready(timeout) for member in self.members))
        async with await psycopg.AsyncConnection.connect(self.superuser_url, autocommit=True) as conn:
            while True:
                rows = await conn.execute("SELECT count(*) FROM workers WHERE alive_until > now()")
                if (await rows.fetchone() or (0,))[0] >= len(self.workers):
                    return
                if time.monotonic() > deadline:
                    raise RigFailed(f"not every worker has its row after {timeout:g} s")
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """All members by SIGTERM, for good; recorded as rolls."""
        await asyncio.gather(*(member.end(gently=True) for member in self.members))

    async def blackhole(self, seconds: float) -> None:
        """Nothing passes between the members and the database for so long, and nothing is closed."""
        await self.proxy.blackhole(seconds)
        began = time.time()
        await asyncio.sleep(seconds)
        self.database.over("blackhole", began)

    def spooled(self) -> int:
        """Bytes that lie in the spool, by the file system's word."""
        total = 0
        if self.spool is not None:
            with suppress(FileNotFoundError):
                for entry in os.scandir(self.spool):
                    with suppress(FileNotFoundError):  # replayed meanwhile
                        if not entry.name.startswith("."):  # there it tries whether it could write
                            total += entry.stat().st_size
        return total

    def _environ(self, name: str) -> dict[str, str]:
        """Nothing of the caller's own Qasid or PostgreSQL; the database is behind the proxy's port of that name."""
        ours = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("QASID_", "PG")) and key != "CRASHPOINT"
        }
        parts = urlsplit(self._url)
        login = parts.netloc.rpartition("@")[0]
        port = self.proxy.ports.get(name, _port(self._url))
        spool = {"QASID_SPOOL_DIR": str(self.spool), "QASID_SPOOL_MAX_BYTES": str(self._spool_bytes)}
        return {
            **ours,
            **SETTINGS,
            **(spool if self.spool is not None and name == SPOOLING else {}),
            "PYTHONPATH": str(self.source),
            "QASID_DATABASE_URL": urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}")),
            "QASID_SECRET_KEY": self._key,
            "QASID_STATE_DIR": str(self.folder / "state"),
        }

    async def _qasid(self, *words: str, environ: Mapping[str, str] | None = None) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli", *words),
            cwd=self.source,
            env={**self._environ("rig"), **(environ or {})},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(COMMAND_SECONDS):
            said, _ = await process.communicate()
        if process.returncode:
            raise RigFailed(f"qasid {words[0]}: {said.decode(errors='replace').strip()}")

    async def _end(self) -> None:
        await asyncio.gather(*(member.end() for member in self.members))


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port
