"""A fresh installation for one bench: a durable embedded cluster, a database of its own, Qasid's real processes.

It ends what it started, however the bench ends; the cluster stops with its last user. Loopback only.
"""

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import click
import psycopg

from app import embedded
from app.embedded import postmaster
from app.migrate import migrate
from tests.bench.figures import ROOT, BenchFailed
from tests.bench.meters import Admin

STATE = ROOT / ".qasid" / "bench"
START_SECONDS = 30.0
STOP_SECONDS = 15.0
ADDRESS = "106540352242922"
ENDPOINT = "bench"


class Installation:
    """Enter it, `configure` it, `start` its processes. Folder, ports and secrets are of this run alone."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(16)
        self.port, self.other_port, self.worker_metrics_port = free_ports(3)
        self.webhook_url = f"http://127.0.0.1:{self.port}/webhooks/{ENDPOINT}"
        self.folder = STATE / "run"
        self._name = f"bench_{os.getpid()}"
        self._started: list[str] = []
        self._life = ExitStack()

    def __enter__(self) -> Self:
        say("a fresh database …")
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._life:
            self.cluster = embedded.ensure(STATE)  # its own settings: fsync and synchronous_commit are on
            self._life.callback(embedded.release, STATE)
            with psycopg.connect(self.cluster.superuser_url, autocommit=True) as conn:
                _drop_leftovers(conn)
                conn.execute(f"CREATE DATABASE {self._name} OWNER qasid".encode())
            self._life.callback(self._drop)
            self.url = _named(self.cluster.url, self._name)
            list(migrate(self.url))
            self.admin: Admin = psycopg.connect(_named(self.cluster.superuser_url, self._name), autocommit=True)
            self._life.callback(self.admin.close)
            self.admin.execute("CREATE EXTENSION pg_stat_statements")
            self._life = self._life.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._life.close()

    @property
    def postmaster(self) -> int:
        """The pid above all of PostgreSQL's."""
        pid = postmaster.running(self.cluster.data)
        if pid is None:
            raise BenchFailed("PostgreSQL has ended in the middle of the bench")
        return pid

    @property
    def postgres_version(self) -> str:
        return self.admin.info.parameter_status("server_version") or "unknown"

    def configure(self, *, provider_url: str) -> None:
        """`qasid apply`: one tenant with an assistant and an intent, one channel, all at the simulated provider."""
        file = self.folder / "bench.toml"
        file.write_text(CONFIGURATION.format(url=provider_url, endpoint=ENDPOINT, address=ADDRESS))
        done = subprocess.run(
            [*_QASID, "apply", str(file)], env=self._environ(), capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise BenchFailed(f"qasid apply: {done.stderr.strip()}")

    def start_web(self) -> int:
        """`qasid web`, ready; its pid."""
        return self._start("web", lambda: _answers(f"http://127.0.0.1:{self.port}/readyz"))

    def start_other_web(self, module: str) -> int:
        """The same beside it at `other_port`, by `python -m` of a module that stands in for `app.cli`; its pid."""
        ready = f"http://127.0.0.1:{self.other_port}/readyz"
        return self._start("web", lambda: _answers(ready), module=module, QASID_PORT=str(self.other_port))

    def start_worker(self) -> int:
        """`qasid worker`, registered and listening; its pid."""

        def registered() -> bool:
            found = self.admin.execute(
                "SELECT 1 FROM workers, pg_stat_activity WHERE datname = current_database() AND query ~ '^LISTEN'"
            )
            return found.fetchone() is not None

        return self._start("worker", registered)

    def errors(self) -> int:
        """Lines of level error in the logs of our processes; the first of them is told."""
        found = [
            line
            for name in self._started
            for line in (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
            if '"level":"error"' in line
        ]
        if found:
            say(f"an error in the log: {found[0][:400]}")
        return len(found)

    def settle(self) -> None:
        """Bring the database to rest, so that every round begins alike: statistics, dead rows, a checkpoint."""
        self.admin.execute("VACUUM ANALYZE lanes")
        self.admin.execute("ANALYZE")
        self.admin.execute("CHECKPOINT")

    def rest(self) -> None:
        """As if a worker had answered everybody: the next message of each person wakes its lane again, as it does in life."""
        self.admin.execute("UPDATE lanes SET done_seq = head_seq, run_at = NULL")
        self.admin.execute("TRUNCATE saq_jobs")
        self.settle()

    def _start(self, name: str, ready: Callable[[], bool], *, module: str = "app.cli", **environ: str) -> int:
        """`environ`: settings besides those that all have."""
        said = f"{name}-{len(self._started)}"
        say(f"qasid {name} …")
        log = self.folder / f"{said}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, name, "--with-parent"],
                env=self._environ() | environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # as in life: a share of the cores of its own, not of the bench's
            )
        self._life.callback(_stop, process)
        self._started.append(said)
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchFailed(f"qasid {name} did not start; {log} says: {postmaster.tail(log)}")
            time.sleep(0.05)
        return process.pid

    def _environ(self) -> dict[str, str]:
        """Nothing of the caller's own Qasid, whose settings may be exported or in `.env`."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("QASID_")},
            "QASID_DATABASE_URL": self.url,
            "QASID_SECRET_KEY": _key,
            "QASID_STATE_DIR": str(self.folder),
            "QASID_PORT": str(self.port),
            "QASID_WORKER_METRICS_PORT": str(self.worker_metrics_port),
            "BENCH_SECRET": self.secret,
        }

    def _drop(self) -> None:
        with psycopg.connect(self.cluster.superuser_url, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {self._name} WITH (FORCE)".encode())


def say(text: str) -> None:
    """Progress, for whoever waits."""
    click.echo(f"  {text}", err=True)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _named(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


def _drop_leftovers(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    """Databases of benches that were killed."""
    for (name,) in conn.execute("SELECT datname FROM pg_database WHERE datname LIKE 'bench\\_%'").fetchall():
        if not Path(f"/proc/{str(name).removeprefix('bench_')}").exists():
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_QASID = (sys.executable, "-m", "app.cli")
_key = secrets.token_hex(32)

# No limits: a bench's people write more than people do.
CONFIGURATION = """
[endpoints.{endpoint}]
kind = "cloud"
secrets = ["env:BENCH_SECRET"]
verify_token = "env:BENCH_SECRET"

[tenants.bench]
name = "Bench"

[tenants.bench.assistant]
provider = "anthropic"
base_url = "{url}/anthropic"
model = "sandbox"
api_key = "env:BENCH_SECRET"

[tenants.bench.limits]
replies_per_conversation_per_minute = 0

[[tenants.bench.intents]]
match = ["hello"]
reply = "Hello! How can we help?"

[tenants.bench.channels.main]
endpoint = "{endpoint}"
address = "{address}"
base_url = "{url}/graph/v23.0"
token = "env:BENCH_SECRET"
"""
