"""The processes and the database of one run: a cluster of its own, the proxy before it, web and worker members.

It ends all it started, however the run ends. It decides no fault: it is what faults are done to.
"""

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, LiteralString, Self
from urllib.parse import urlsplit, urlunsplit

import psycopg

from app import embedded
from app.embedded import postmaster
from tests.chaos import witness
from tests.chaos.member import Death, Member, RigFailed, Roll
from tests.chaos.processes import free_ports, freeze
from tests.chaos.proxied import ROOT, Proxied

__all__ = ["Fleet", "Member", "RigFailed", "Roll", "Death", "ROOT", "ENDPOINT", "LEASE_SECONDS"]

ENDPOINT = "chaos"
Degraded = Literal["connections", "read_only", "locked", "held"]
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
}
# Backends of killed processes linger while the server is frozen.
POSTGRES = {"max_connections": "400"}


# By SQL of the superuser: what begins it, what ends it. Roles' settings count for new connections, hence the termination.
_END_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'qasid'"
DEGRADED: dict[Degraded, tuple[tuple[LiteralString, ...], tuple[LiteralString, ...]]] = {
    "connections": (
        ("ALTER ROLE qasid CONNECTION LIMIT 2", _END_ALL),
        ("ALTER ROLE qasid CONNECTION LIMIT -1",),
    ),
    "read_only": (
        ("ALTER ROLE qasid SET default_transaction_read_only = on", _END_ALL),
        ("ALTER ROLE qasid RESET default_transaction_read_only", _END_ALL),
    ),
    "locked": (
        ("BEGIN", "LOCK TABLE messages, lanes, chunks IN ACCESS EXCLUSIVE MODE"),
        ("ROLLBACK",),
    ),
    "held": (
        # An application that begins, reads for update, and goes away without an end.
        ("BEGIN", "SELECT FROM lanes FOR UPDATE"),
        ("ROLLBACK",),
    ),
}


class Fleet:
    """Enter it, `configure` it, `start` it."""

    def __init__(self, folder: Path, *, source: Path = ROOT, webs: int = 2, workers: int = 2) -> None:
        """`folder`: of this run alone; an earlier run's database in it goes. `source`: the tree to run (a mutant's)."""
        self.folder, self.source = folder.resolve(), source.resolve()
        self._kinds: dict[str, Literal["web", "worker"]] = {
            **{f"web{n}": "web" for n in range(1, webs + 1)},
            **{f"worker{n}": "worker" for n in range(1, workers + 1)},
        }
        self.members: list[Member] = []
        self._key = secrets.token_hex(32)
        self._database = asyncio.Lock()  # one outage at a time
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
        return self.cluster.superuser_url

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
        async with self._life:
            self.cluster = await asyncio.to_thread(self._fresh_cluster)
            self._life.push_async_callback(asyncio.to_thread, self._discard_cluster)
            self.proxy = await self._life.enter_async_context(Proxied(_port(self.cluster.url), list(self._kinds)))
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

    async def restart_database(self, down: float) -> None:
        """`pg_ctl stop -m immediate`, so many seconds without, start on the same port; returns when it is ready."""
        async with self._database:
            pid = self._postmaster()
            os.kill(pid, signal.SIGQUIT)  # what pg_ctl's immediate mode sends
            while postmaster.running(self.cluster.data) == pid:
                await asyncio.sleep(0.01)
            await asyncio.sleep(down)
            started = await asyncio.to_thread(embedded.ensure, self.folder, settings=POSTGRES)
            if started.url != self.cluster.url:
                raise RigFailed("PostgreSQL came back on another port: something took its own meanwhile")

    async def freeze_database(self, seconds: float) -> None:
        """SIGSTOP to the postmaster and its children, SIGCONT after so long."""
        async with self._database:
            await freeze(self._postmaster(), seconds)

    async def terminate_backends(self) -> int:
        """pg_terminate_backend on every connection of the service; returns how many they were."""
        async with (
            self._database,
            await psycopg.AsyncConnection.connect(self.superuser_url, autocommit=True, connect_timeout=5) as conn,
        ):
            ended = await conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'qasid'")
            return ended.rowcount

    @asynccontextmanager
    async def degraded(self, how: Degraded) -> AsyncIterator[None]:
        """PostgreSQL is there, and of no use: the superuser alone does anything with it meanwhile."""
        begin, end = DEGRADED[how]
        async with (
            self._database,
            await psycopg.AsyncConnection.connect(self.superuser_url, autocommit=True, connect_timeout=5) as conn,
        ):
            for statement in begin:
                await conn.execute(statement)
            try:
                yield
            finally:
                for statement in end:
                    await conn.execute(statement)

    def _fresh_cluster(self) -> embedded.Cluster:
        embedded.destroy(self.folder)
        (self.folder / "pg").mkdir(mode=0o711)
        # Where it looks for the port of an earlier start. Below those that the kernel hands to connections: one of
        # these could have it when PostgreSQL comes back.
        (self.folder / "pg" / "port").write_text(f"{free_ports(1)[0]}\n")
        return embedded.ensure(self.folder, settings=POSTGRES)

    def _discard_cluster(self) -> None:
        if (pid := postmaster.running(self.cluster.data)) is not None:
            os.kill(pid, signal.SIGQUIT)  # what is about to be deleted needs no checkpoint
        embedded.destroy(self.folder)

    def _postmaster(self) -> int:
        pid = postmaster.running(self.cluster.data)
        if pid is None:
            raise RigFailed("PostgreSQL has ended, and nobody stopped it")
        return pid

    def _environ(self, name: str) -> dict[str, str]:
        """Nothing of the caller's own Qasid or PostgreSQL; the database is behind the proxy's port of that name."""
        ours = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("QASID_", "PG")) and key != "CRASHPOINT"
        }
        parts = urlsplit(self.cluster.url)
        login = parts.netloc.rpartition("@")[0]
        port = self.proxy.ports.get(name, _port(self.cluster.url))
        return {
            **ours,
            **SETTINGS,
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
