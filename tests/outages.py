"""A PostgreSQL of a test's own that may be frozen, stopped and started: by the ids of its processes."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from app import embedded
from app.embedded import postmaster
from app.migrate import migrate
from tests.conftest import FAST


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """The state folder of a cluster that may be frozen and stopped; the cluster ends with it."""
    root = Path(tempfile.mkdtemp(prefix="qasid-test-"))
    root.chmod(0o755)  # PostgreSQL may run as another user
    try:
        yield root / "state"
    finally:
        embedded.destroy(root / "state")
        shutil.rmtree(root)


class Server:
    """The cluster, and what may happen to it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.cluster = embedded.ensure(state, settings=FAST)

    def make_anew(self) -> None:
        """Let the database `qasid` be empty, and migrated."""
        with psycopg.connect(self.cluster.superuser_url.replace("/qasid", "/postgres"), autocommit=True) as conn:
            conn.execute("DROP DATABASE IF EXISTS qasid WITH (FORCE)")
            conn.execute("CREATE DATABASE qasid OWNER qasid")
        list(migrate(self.cluster.url))

    def stop(self) -> None:
        postmaster.stop(self.cluster.data)

    def start(self) -> None:
        self.cluster = embedded.ensure(self.state, settings=FAST)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All of its processes stand still, as on a host that hangs; what connects, connects to nobody."""
        first = postmaster.running(self.cluster.data)
        assert first is not None
        stopped = []
        try:
            for pid in (first, *children(first)):
                with suppress(ProcessLookupError):  # an autovacuum worker ends when it likes
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)
            yield
        finally:
            for pid in reversed(stopped):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def children(parent: int) -> list[int]:
    """The processes whose parent this one is."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


@pytest.fixture
def server(state: Path) -> Server:
    """The cluster with an empty, migrated database `qasid`."""
    server = Server(state)
    server.make_anew()
    return server
