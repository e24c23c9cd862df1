"""The PostgreSQL of one run, in a cluster of its own, and what is done to it: stopped, frozen, degraded, its disk filled.

It ends with its run. One thing is done to it at a time; when that was over is written down. It knows none of its clients.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, LiteralString, Self

import psycopg
from msgspec import Struct

from app import embedded
from app.embedded import postmaster
from tests.chaos.disk import Disk
from tests.chaos.member import RigFailed
from tests.chaos.processes import free_ports, freeze

Degraded = Literal["connections", "read_only", "locked", "held"]

# Backends of killed processes linger while the server is frozen.
POSTGRES: Mapping[str, str] = {"max_connections": "400"}
# Where PGDATA lies on a disk that can be filled. So little spare WAL that the end of it is felt.
DISK_BYTES = 1536 * 1024 * 1024
ON_DISK: Mapping[str, str] = {"max_wal_size": "256MB", "min_wal_size": "32MB"}
RECOVERY_SECONDS = 60.0
MOST_SEGMENTS = 40  # of WAL (16 MB each) that the server may still have room for, before it must see that there is none
LOCK_TRIES = 5  # of what may lose a deadlock against the service's own transactions

# By SQL of the superuser: what begins it, what ends it. Roles' settings count for new connections, hence the termination.
_END_ALL: LiteralString = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'qasid'"
_PATIENTLY: LiteralString = "SET lock_timeout = '5s'"
DEGRADED: dict[Degraded, tuple[tuple[LiteralString, ...], tuple[LiteralString, ...]]] = {
    "connections": (
        # None, not a few: with two left it would be chance whose they are, and nobody could say what is to be expected.
        ("ALTER ROLE qasid CONNECTION LIMIT 0", _END_ALL),
        ("ALTER ROLE qasid CONNECTION LIMIT -1",),
    ),
    "read_only": (
        ("ALTER ROLE qasid SET default_transaction_read_only = on", _END_ALL),
        ("ALTER ROLE qasid RESET default_transaction_read_only", _END_ALL),
    ),
    "locked": (
        (_PATIENTLY, "BEGIN", "LOCK TABLE messages, lanes, chunks IN ACCESS EXCLUSIVE MODE"),
        ("ROLLBACK",),
    ),
    "held": (
        # An application that begins, reads for update, and goes away without an end.
        (_PATIENTLY, "BEGIN", "SELECT FROM lanes ORDER BY tenant_id, conversation_id FOR UPDATE"),
        ("ROLLBACK",),
    ),
}

Superuser = psycopg.AsyncConnection[tuple[Any, ...]]


class Outage(Struct, frozen=True, kw_only=True):
    """The database was of no use, or of little: from when that was so until it was undone, in unix seconds."""

    kind: str
    began: float
    ended: float


class Database:
    """Enter it: PostgreSQL runs, empty. Before that it has no `cluster`."""

    def __init__(self, folder: Path, *, disk: int | None = None) -> None:
        """`folder`: of this run alone. `disk`: bytes of a disk of its own, which `fill_disk` wants; only root can have one."""
        self.outages: list[Outage] = []
        self.disk: Disk | None = None
        self._disk_bytes = disk
        self._state, self._settings = folder, POSTGRES  # of the embedded cluster
        self._alone = asyncio.Lock()
        self._life = AsyncExitStack()

    @property
    def superuser_url(self) -> str:
        return self.cluster.superuser_url

    async def __aenter__(self) -> Self:
        async with self._life:
            if self._disk_bytes is not None:
                self.disk = await asyncio.to_thread(Disk.mounted, self._disk_bytes)
            if self.disk is not None:
                self._life.push_async_callback(asyncio.to_thread, self.disk.remove)
                self._state, self._settings = self.disk.folder, {**POSTGRES, **ON_DISK}
            self.cluster = await asyncio.to_thread(self._fresh)
            self._life.push_async_callback(asyncio.to_thread, self._discard)
            self._life = self._life.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._life.__aexit__(kind, error, trace)

    async def restart(self, down: float) -> None:
        """`pg_ctl stop -m immediate`, so many seconds without, start on the same port; returns when it is ready."""
        async with self._alone:
            pid = self._postmaster()
            os.kill(pid, signal.SIGQUIT)  # what pg_ctl's immediate mode sends
            began = time.time()
            while postmaster.running(self.cluster.data) == pid:
                await asyncio.sleep(0.01)
            await asyncio.sleep(down)
            await self._start()
            self.over("restart", began)

    async def freeze(self, seconds: float) -> None:
        """SIGSTOP to the postmaster and its children, SIGCONT after so long."""
        async with self._alone:
            self.over("freeze", await freeze(self._postmaster(), seconds))

    async def terminate_backends(self) -> int:
        """pg_terminate_backend on every connection of the service; returns how many they were."""
        async with self._alone, await self._superuser() as conn:
            return (await conn.execute(_END_ALL)).rowcount

    @asynccontextmanager
    async def degraded(self, how: Degraded) -> AsyncIterator[None]:
        """PostgreSQL is there, and of no use: the superuser alone does anything with it meanwhile.

        Raises psycopg.OperationalError: it could not be begun; what was done of it is undone.
        """
        begin, end = DEGRADED[how]
        async with self._alone, await self._superuser() as conn:
            try:
                await _begin(conn, begin)
            except BaseException:
                await self._undo(conn, end)
                raise
            began = time.time()
            try:
                yield
            finally:
                await self._undo(conn, end)
                self.over(how, began)

    async def fill_disk(self, seconds: float) -> None:
        """No byte is left on PostgreSQL's disk for so long; returns when it takes writes again.

        For the first half it is left to what the service writes (53100). Then it is made to need a new file for its log,
        at which it gives up (PANIC) and recovers, or cannot even do that without room.
        """
        assert self.disk is not None
        async with self._alone:
            await asyncio.to_thread(self.disk.fill)
            began = time.time()
            try:
                await self._keep_full(self.disk, seconds / 2)
                with suppress(psycopg.Error, OSError):
                    async with await self._superuser() as conn:
                        for _ in range(MOST_SEGMENTS):
                            await conn.execute("SELECT pg_logical_emit_message(false, 'rig', 'full')")
                            await conn.execute("SELECT pg_switch_wal()")
                            await asyncio.to_thread(self.disk.fill)
                await self._keep_full(self.disk, began + seconds - time.time())
            finally:
                self.disk.free()
            await self._recover()
            self.over("disk_full", began)

    def over(self, kind: str, began: float) -> None:
        """Something of this kind, which began then, has just been undone."""
        self.outages.append(Outage(kind=kind, began=began, ended=time.time()))

    async def _keep_full(self, disk: Disk, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(0.25)
            await asyncio.to_thread(disk.fill)

    async def _recover(self) -> None:
        """Return when a write is taken. A server that gave up while it recovered has ended: then it is started."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while True:
            if postmaster.running(self.cluster.data) is None:
                await self._start()
            try:
                async with asyncio.timeout(5.0), await self._superuser() as conn:
                    await conn.execute("SELECT pg_logical_emit_message(true, 'rig', 'well')")
                    return
            except (psycopg.Error, OSError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    what = f"PostgreSQL takes no writes {RECOVERY_SECONDS:g} s after its disk was freed"
                    raise RigFailed(what) from error
            await asyncio.sleep(0.1)

    async def _undo(self, conn: Superuser, statements: Sequence[LiteralString]) -> None:
        """On another connection if this one has broken: its locks are gone with it, a role's settings are not.

        Raises RigFailed: it stays as it is, and nothing that comes after means anything.
        """
        try:
            for statement in statements:
                await conn.execute(statement)
            return
        except psycopg.OperationalError:
            pass
        try:
            async with await self._superuser() as fresh:
                for statement in statements:
                    await fresh.execute(statement)
        except psycopg.OperationalError as error:
            raise RigFailed(f"PostgreSQL could not be made well again: {error}") from error

    async def _superuser(self) -> Superuser:
        return await psycopg.AsyncConnection.connect(self.superuser_url, autocommit=True, connect_timeout=5)

    def _fresh(self) -> embedded.Cluster:
        embedded.destroy(self._state)
        (self._state / "pg").mkdir(mode=0o711)
        # Where it looks for the port of an earlier start. Below those that the kernel hands to connections: one of
        # these could have it when PostgreSQL comes back.
        (self._state / "pg" / "port").write_text(f"{free_ports(1)[0]}\n")
        return embedded.ensure(self._state, settings=self._settings)

    def _discard(self) -> None:
        if (pid := postmaster.running(self.cluster.data)) is not None:
            os.kill(pid, signal.SIGQUIT)  # what is about to be deleted needs no checkpoint
        embedded.destroy(self._state)

    async def _start(self) -> None:
        started = await asyncio.to_thread(embedded.ensure, self._state, settings=self._settings)
        if started.url != self.cluster.url:
            raise RigFailed("PostgreSQL came back on another port: something took its own meanwhile")

    def _postmaster(self) -> int:
        pid = postmaster.running(self.cluster.data)
        if pid is None:
            raise RigFailed("PostgreSQL has ended, and nobody stopped it")
        return pid


async def _begin(conn: Superuser, statements: Sequence[LiteralString]) -> None:
    for left in reversed(range(LOCK_TRIES)):
        try:
            for statement in statements:
                await conn.execute(statement)
            return
        except (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
            await conn.execute("ROLLBACK")
            if not left:
                raise
