"""`qasid breaker`: what a person says of the breakers, and what they are shown."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from prometheus_client import REGISTRY

from app import cli, db, metrics
from app.breaker import Breaker, Forced, State
from app.commands.shown import Seen, read, shown
from app.policies import DATABASE
from app.settings import Settings
from app.store import breakers
from tests.conftest import Database

NOWHERE = "postgresql://nobody@127.0.0.1:9/none"
ROOT = Path(__file__).parents[2]


def qasid(*words: str, **environ: str) -> Result:
    """Run `qasid` with these words and these QASID_* settings alone; nothing listens where it asks, unless told."""
    ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith("QASID_")}
    nobody = {"QASID_PORT": "9", "QASID_WORKER_METRICS_PORT": "0"}
    return CliRunner().invoke(cli.main, ("breaker", *words), env={**ours, **nobody, **environ})


def heard(database: Database) -> dict[str, Forced]:
    """What a prober, in its role, hears."""

    async def ask() -> dict[str, Forced]:
        async with (
            db.pool(database.url, "qasid_courier", name="test", max_size=1) as pool,
            db.connection(pool) as conn,
        ):
            return (await breakers.probe(conn)).forced

    return asyncio.run(ask())


def test_a_breaker_is_held_and_let_go(database: Database) -> None:
    """open, close, auto: what processes hear changes, and the command says what that does and how to undo it."""
    at = {"QASID_DATABASE_URL": database.url}
    assert heard(database) == {}
    opened = qasid("open", "database", **at)
    assert (opened.exit_code, heard(database)) == (0, {"database": "open"})
    for said in ("held OPEN", "503", "QASID_SPOOL_DIR", "workers claim no", "qasid breaker auto database"):
        assert said in opened.output
    assert "database is held OPEN by a person since 2" in qasid(**at).output
    closed = qasid("close", "database", **at)
    assert (closed.exit_code, heard(database)) == (0, {"database": "closed"})
    assert ("held CLOSED" in closed.output, "qasid breaker auto database" in closed.output) == (True, True)
    assert "database is held CLOSED by a person since 2" in qasid(**at).output
    let_go = qasid("auto", "database", **at)
    assert (let_go.exit_code, heard(database)) == (0, {})
    again = qasid("auto", "database", **at)
    assert (again.exit_code, again.output.startswith("Nobody held")) == (0, True)
    assert "held" not in qasid(**at).output


@pytest.mark.parametrize("word", ["open", "close", "auto"])
def test_an_unknown_breaker_is_refused_with_those_that_are_known(word: str) -> None:
    """Exit code 2 and one line, before anything is asked of the database."""
    refused = qasid(word, "databse", QASID_DATABASE_URL=NOWHERE)
    assert refused.exit_code == 2
    assert refused.output == (
        "qasid: There is no breaker 'databse' to hold. It must be `database`, `channel TENANT/CHANNEL`, `assistant TENANT`, "
        "`translator TENANT` or `transcriber TENANT`.\n"
    )


@pytest.mark.parametrize("word", ["open", "close", "auto"])
def test_without_a_database_it_says_that_breakers_open_by_themselves(word: str) -> None:
    """One line and code 1: whoever is woken by an outage has nothing to do here."""
    away = qasid(word, "database", QASID_DATABASE_URL=NOWHERE)
    assert (away.exit_code, away.output.count("\n")) == (1, 1)
    for said in ("Nothing was changed, and nothing has to be", "opens by itself", "refused"):
        assert said in away.output


def test_a_read_only_database_is_said_in_words(database: Database) -> None:
    """After a failover, say: no traceback, code 1."""
    name = database.url.rpartition("/")[2]
    with psycopg.connect(database.superuser_url, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    refused = qasid("open", "database", QASID_DATABASE_URL=database.url)
    assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
    assert "read-only" in refused.output
    assert heard(database) == {}


def test_an_older_schema_is_said_in_words(database: Database) -> None:
    """Code 2, and what to do."""
    with psycopg.connect(database.superuser_url, autocommit=True) as conn:
        conn.execute("DROP TABLE breakers")
        conn.execute("DELETE FROM migrations WHERE name >= '0011'")
    for words in ((), ("open", "database")):
        refused = qasid(*words, QASID_DATABASE_URL=database.url)
        assert (refused.exit_code, "qasid migrate" in refused.output) == (2, True)


# --- what processes show ---

PROCESS = """
import sys, time
from app import metrics
from app.breaker import Breaker
from app.policies import DATABASE
out, sys.stdout = sys.stdout, sys.stderr  # logs
breaker = Breaker("database", DATABASE, on_change=metrics.breaker)
metrics.breaker(breaker, breaker.state)
metrics.serve_worker_metrics("127.0.0.1", int(sys.argv[1]), "a token")
for line in sys.stdin:
    exec(line)
    print("done", file=out, flush=True)
"""


class Process:
    """One that has a breaker and shows it, and does as it is told."""

    def __init__(self, **environ: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._child = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(self.port)],
            cwd=ROOT,
            env={**os.environ, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.do("pass")

    def do(self, line: str) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(line, file=self._child.stdin, flush=True)
        assert self._child.stdout.readline() == "done\n"

    def end(self) -> None:
        self._child.kill()
        self._child.communicate()


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    yield process
    process.end()


def test_the_state_of_each_process_is_shown(database: Database, process: Process) -> None:
    """As it is now, how often it opened, and whether a person holds it; who does not answer is named."""
    at = {
        "QASID_DATABASE_URL": database.url,
        "QASID_METRICS_TOKEN": "a token",
        "QASID_WORKER_METRICS_PORT": str(process.port),
    }
    told = qasid(**at)
    assert told.exit_code == 0
    heading, row, away = told.output.splitlines()
    assert heading.split() == ["PROCESS", "DEPENDENCY", "STATE", "HELD", "BY", "OPENED"]
    assert row.split() == ["worker", "database", "closed", "0"]
    assert away == "web: does not answer at 127.0.0.1:9 (ConnectError)."
    process.do("breaker.probed(False, 1.0)")
    assert qasid(**at).output.splitlines()[1].split() == ["worker", "database", "open", "1"]
    process.do("breaker.forced = 'closed'")
    assert qasid(**at).output.splitlines()[1].split() == ["worker", "database", "closed", "a", "person", "1"]
    wrong = qasid(**{**at, "QASID_METRICS_TOKEN": "another"})
    assert "is QASID_METRICS_TOKEN the one that it was started with?" in wrong.output


def test_processes_are_shown_while_the_database_is_away(process: Process) -> None:
    """Then it matters most; what people hold is said to be unknown, with code 1."""
    at = {"QASID_METRICS_TOKEN": "a token", "QASID_PORT": str(process.port)}
    away = qasid(QASID_DATABASE_URL=NOWHERE, **at)
    assert away.exit_code == 1
    lines = away.output.splitlines()
    assert lines[1].split() == ["web", "database", "closed", "0"]
    assert lines[2] == "worker: not asked, since QASID_WORKER_METRICS_PORT is 0."
    assert lines[3].startswith("qasid: What people hold cannot be read.")
    assert len(lines) == 4


def test_a_database_that_hangs_is_not_waited_for_long(process: Process) -> None:
    """Processes are shown; after two seconds what people hold is said to be unknown."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
        began = time.monotonic()
        hangs = qasid(QASID_DATABASE_URL=url, QASID_METRICS_TOKEN="a token", QASID_PORT=str(process.port))
        assert time.monotonic() - began < 4
    assert (hangs.exit_code, hangs.output.splitlines()[1].split()) == (1, ["web", "database", "closed", "0"])
    assert "qasid: What people hold cannot be read." in hangs.output


def test_where_no_process_answers_the_code_is_1(database: Database) -> None:
    """What people hold is shown all the same."""
    at = {"QASID_DATABASE_URL": database.url}
    assert qasid("open", "database", **at).exit_code == 0
    nobody = qasid(**at)
    assert nobody.exit_code == 1
    assert "database is held OPEN by a person" in nobody.output
    assert nobody.output.endswith("qasid: No process on this machine shows a breaker.\n")


def test_what_is_no_process_of_ours_is_said(tmp_path: Path) -> None:
    """Somebody else on that port: no traceback, whatever it answers."""
    (tmp_path / "metrics").write_text("<html>}{ 1 2 3</html>")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    words = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            assert shown(Settings(host="0.0.0.0"), port) == f"what answers at 127.0.0.1:{port} shows no metrics."
            (tmp_path / "metrics").write_text("up 1\n")
            assert "shows no breaker" in str(shown(Settings(), port))
            (tmp_path / "metrics").unlink()
            assert "HTTP 404" in str(shown(Settings(), port))
        finally:
            other.kill()


def test_of_several_server_processes_the_open_one_is_not_hidden(tmp_path: Path) -> None:
    """Behind one port, one open and one closed: both states show, until the open one is killed."""
    together = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    opens, stays = Process(**together), Process(**together)
    settings = Settings(metrics_token="a token")
    try:
        opens.do("breaker.probed(False, 1.0)")
        stays.do("breaker.probed(False, 1.0)")
        for _ in range(3):
            stays.do("breaker.probed(True, 0.1)")
        assert shown(settings, stays.port) == [Seen("database", "closed / open", False, 2)]
        opens.end()
        assert shown(settings, stays.port) == [Seen("database", "closed", False, 2)]
    finally:
        opens.end()
        stays.end()


# --- metrics ---


def value(name: str, dependency: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"dependency": dependency, **labels})


def test_metrics_follow_a_breaker() -> None:
    """One state is 1; openings by itself are counted, and how long it stood open, half open included; so is who holds it."""
    now = [100.0]
    policy = DATABASE
    breaker = Breaker("follows", policy, clock=lambda: now[0], on_change=metrics.breaker)

    def states() -> dict[State, float | None]:
        every: tuple[State, ...] = ("closed", "slow", "open", "half_open")
        return {state: value("qasid_breaker_state", "follows", state=state) for state in every}

    metrics.breaker(breaker, breaker.state)
    assert states() == {"closed": 1, "slow": 0, "open": 0, "half_open": 0}
    assert value("qasid_breaker_opened_total", "follows") == 0
    breaker.probed(False, 1.0)
    assert states() == {"closed": 0, "slow": 0, "open": 1, "half_open": 0}
    now[0] += 7
    for _ in range(policy.answers):
        breaker.probed(True, 0.1)
    assert states() == {"closed": 1, "slow": 0, "open": 0, "half_open": 0}
    assert value("qasid_breaker_opened_total", "follows") == 1
    assert value("qasid_breaker_open_seconds_sum", "follows") == 7
    breaker.forced = "open"
    now[0] += 5
    assert value("qasid_breaker_forced", "follows") == 1
    breaker.probed(False, 1.0)  # underneath
    breaker.forced = None
    now[0] += 1
    for _ in range(policy.answers):
        breaker.probed(True, 0.1)
    assert value("qasid_breaker_forced", "follows") == 0
    assert value("qasid_breaker_opened_total", "follows") == 2
    assert value("qasid_breaker_open_seconds_sum", "follows") == 13
    assert value("qasid_breaker_open_seconds_count", "follows") == 2


def test_a_page_of_metrics_is_read_without_guessing() -> None:
    """Other metrics and other dependencies stand beside."""
    page = """
# TYPE qasid_breaker_state gauge
qasid_breaker_state{dependency="database",state="closed"} 0.0
qasid_breaker_state{dependency="database",state="slow"} 1.0
qasid_breaker_state{dependency="channel:noor/main",state="closed"} 1.0
# TYPE qasid_breaker_forced gauge
qasid_breaker_forced{dependency="channel:noor/main"} 1.0
# TYPE qasid_breaker_opened_total counter
qasid_breaker_opened_total{dependency="database"} 4.0
qasid_breaker_opened_total{dependency="channel"} 7.0
# TYPE other gauge
other 1.0
"""
    assert read(page) == [Seen("channel:noor/main", "closed", True, None), Seen("database", "slow", False, 4)]
