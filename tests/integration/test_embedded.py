"""The embedded PostgreSQL's life, with real processes that are really killed."""

import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from app import embedded
from app.embedded import locks, places, postmaster
from app.errors import ConfigurationError

FAST = {"fsync": "off"}
USER = """
import subprocess, sys
from pathlib import Path
from app import embedded
print(embedded.ensure(Path(sys.argv[1]), settings={"fsync": "off"}).url, flush=True)
subprocess.Popen(["cat"])  # a child that outlives us: it ends with our standard input
sys.stdin.read()
"""
NewState = Callable[[], Path]


@pytest.fixture(scope="module")
def new_state() -> Iterator[NewState]:
    """Make state folders that any user may enter (pytest's own are private as root); destroy their clusters at the end."""
    root = Path(tempfile.mkdtemp(prefix="qasid-test-"))
    root.chmod(0o755)
    made: list[Path] = []

    def new() -> Path:
        made.append(root / str(len(made)))
        return made[-1]

    yield new
    for state in made:
        embedded.destroy(state)
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def shared(new_state: NewState) -> Path:
    """A state that the tests of this file share in turn: each ends with no user, whatever it killed."""
    return new_state()


@pytest.fixture
def state(shared: Path) -> Iterator[Path]:
    """The shared state, as it would be given to a first user."""
    yield shared
    embedded.release(shared)


@contextmanager
def user(state: Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that calls `ensure` and then stays; its first line is the URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(state)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )
    with process:
        yield process
        process.kill()


def url_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def keeper_of(state: Path) -> int:
    return int((state / "pg" / "keeper.lock").read_text())


def wait_for_keeper_to_end(state: Path) -> None:
    """Return when the keeper gives its lock back, which it does last."""
    os.close(locks.take(state / "pg" / "keeper.lock", fcntl.LOCK_SH, seconds=20))


def ask(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def test_a_second_ensure_finds_the_running_cluster(state: Path) -> None:
    """Whoever comes second, in the same process or another, gets the same server."""
    first = embedded.ensure(state, settings=FAST)
    pid = postmaster.running(first.data)
    assert pid is not None
    assert embedded.ensure(state, settings={"max_connections": "7"}) == first
    with user(state) as other:
        assert url_of(other) == first.url
    assert postmaster.running(first.data) == pid
    assert ask(first.url, "SELECT current_setting('max_connections')") == "100"


def test_two_processes_at_once_get_one_cluster(new_state: NewState) -> None:
    """Of two first users one makes the cluster and the other waits for it."""
    state = new_state()
    with user(state) as one, user(state) as two:
        urls = {url_of(one), url_of(two)}
        assert len(urls) == 1
        assert ask(urls.pop(), "SELECT 1") == 1


def test_postgresql_stops_when_its_only_user_is_killed(state: Path) -> None:
    """A killed user's hold is freed by the kernel, even while a child of it lives on; then the keeper stops PostgreSQL."""
    with user(state) as only:
        url = url_of(only)
        only.kill()
        only.wait()
        wait_for_keeper_to_end(state)
        assert postmaster.running(places.find(state / "pg").data) is None
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)


def test_postgresql_outlives_its_starter(state: Path) -> None:
    """While anybody uses it, neither Ctrl-C at the starter's terminal nor the starter's death reaches it."""
    with user(state) as starter:
        url = url_of(starter)
        cluster = embedded.ensure(state, settings=FAST)
        pid = postmaster.running(cluster.data)
        os.killpg(starter.pid, signal.SIGINT)
        starter.wait()
    assert ask(url, "SELECT 1") == 1
    assert postmaster.running(cluster.data) == pid


def test_the_next_user_has_the_data_of_the_last(state: Path) -> None:
    """A stop by the keeper loses nothing, and the port stays where it was if it is free."""
    cluster = embedded.ensure(state, settings=FAST)
    ask(cluster.url, "CREATE TABLE IF NOT EXISTS stayed AS SELECT 42 AS answer")
    embedded.release(state)
    wait_for_keeper_to_end(state)
    again = embedded.ensure(state, settings=FAST)
    assert ask(again.url, "SELECT answer FROM stayed") == 42
    assert again == cluster


def test_a_killed_postgresql_is_started_again(state: Path) -> None:
    """After kill -9 of the server the next `ensure` of the same process recovers what was committed."""
    cluster = embedded.ensure(state, settings=FAST)
    ask(cluster.url, "CREATE TABLE IF NOT EXISTS committed AS SELECT 'here' AS it")
    pid = postmaster.running(cluster.data)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    again = embedded.ensure(state, settings=FAST)
    assert ask(again.url, "SELECT it FROM committed") == "here"
    assert postmaster.running(again.data) not in (None, pid)


def test_a_killed_keeper_is_replaced(state: Path) -> None:
    """The next `ensure` starts a new keeper, which does what the old one would have done."""
    cluster = embedded.ensure(state, settings=FAST)
    killed = keeper_of(state)
    os.kill(killed, signal.SIGKILL)
    wait_for_keeper_to_end(state)
    embedded.ensure(state, settings=FAST)
    embedded.release(state)
    wait_for_keeper_to_end(state)
    assert keeper_of(state) != killed
    assert postmaster.running(cluster.data) is None


def test_a_frozen_postgresql_is_still_the_server_and_can_be_stopped(state: Path) -> None:
    """A second server beside a frozen one would be worse than waiting; and the last user's end stops a frozen one too."""
    cluster = embedded.ensure(state, settings=FAST)
    pid = postmaster.running(cluster.data)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert embedded.ensure(state, settings=FAST) == cluster
    assert postmaster.running(cluster.data) == pid
    embedded.release(state)
    wait_for_keeper_to_end(state)
    assert postmaster.running(cluster.data) is None


def test_a_taken_port_is_left_to_its_holder(state: Path) -> None:
    """The earlier port is wanted, not needed."""
    port = psycopg.conninfo.conninfo_to_dict(embedded.ensure(state, settings=FAST).url)["port"]
    assert isinstance(port, str)
    embedded.release(state)
    wait_for_keeper_to_end(state)
    with socket.create_server(("127.0.0.1", int(port))):
        again = embedded.ensure(state, settings=FAST)
        assert ask(again.url, "SELECT inet_server_port()") != int(port)


def test_a_left_over_pid_that_is_somebody_elses_by_now_is_no_server(state: Path) -> None:
    """After a restart of the machine or container the old pid may belong to any process: here, to ourselves."""
    cluster = embedded.ensure(state, settings=FAST)
    embedded.release(state)
    wait_for_keeper_to_end(state)
    left = cluster.data / "postmaster.pid"
    left.write_text(f"{os.getpid()}\n{cluster.data}\n1\n1\n\n127.0.0.1\n  1 1\nready   \n")
    assert ask(embedded.ensure(state, settings=FAST).url, "SELECT 1") == 1


def test_the_role_of_the_url_owns_its_database_and_is_no_superuser(state: Path) -> None:
    """Row-level security does not bind superusers; migrations need CREATEROLE, test databases CREATEDB."""
    cluster = embedded.ensure(state, settings=FAST)
    rights = (
        "SELECT ARRAY[rolsuper, rolbypassrls, rolcreaterole, rolcreatedb] FROM pg_roles WHERE rolname = current_user"
    )
    assert ask(cluster.url, rights) == [False, False, True, True]
    owner = "SELECT datdba::regrole::text FROM pg_database WHERE datname = current_database()"
    assert ask(cluster.url, owner) == "qasid"
    assert ask(cluster.superuser_url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is True
    ask(cluster.superuser_url, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    assert ask(cluster.superuser_url, "SELECT count(*) > 0 FROM pg_stat_statements") is True


def test_passwords_are_for_their_owner_alone(state: Path) -> None:
    """The URLs' passwords are asked for, stand in a file of mode 0600 and in no repr."""
    cluster = embedded.ensure(state, settings=FAST)
    password = psycopg.conninfo.conninfo_to_dict(cluster.url)["password"]
    assert isinstance(password, str)
    assert password not in repr(cluster)
    assert stat.S_IMODE((state / "pg" / "passwords").stat().st_mode) == 0o600
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(cluster.url, password="wrong")


def test_what_postgresql_refuses_is_told_in_its_words(new_state: NewState) -> None:
    """A wrong setting names itself in the error, and the next start without it works."""
    state = new_state()
    with pytest.raises(ConfigurationError, match=r"work_mem.*several"):
        embedded.ensure(state, settings={**FAST, "work_mem": "several"})
    assert ask(embedded.ensure(state, settings=FAST).url, "SELECT 1") == 1


def test_a_folder_outside_that_is_gone_is_told_in_words_and_can_be_destroyed(tmp_path: Path) -> None:
    """Swept, or on a disk that is not mounted: the error says what to do, and does so when it is asked for again."""
    pg = tmp_path / "state" / "pg"
    pg.mkdir(parents=True)
    (pg / "place").write_text(f"{tmp_path / 'swept'}\n")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=rf"swept, named in .*/pg/place, is not there: .* delete {pg}"):
            embedded.ensure(tmp_path / "state", settings=FAST)
    embedded.destroy(tmp_path / "state")
    assert not pg.exists()


def test_as_root_private_folders_are_no_hindrance(tmp_path: Path) -> None:
    """As root PostgreSQL runs as another user, who may enter neither the state nor the package: rights stay as they are."""
    if os.geteuid() != 0:
        pytest.skip("needs root: an ordinary user's PostgreSQL runs as that user")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    package = places.find(tmp_path).bin.parents[1]
    shutil.copytree(package, private / "site" / package.name)
    shutil.copytree(package.with_suffix(".libs"), private / "site" / f"{package.name}.libs")
    state = private / "state"
    try:
        with user(state, PYTHONPATH=str(private / "site")) as only:
            assert ask(url_of(only), "SELECT 1") == 1
            outside = places.find(state / "pg").folder
            assert not outside.is_relative_to(tmp_path)
            assert list(outside.glob("binaries-*/*/pginstall/bin/postgres"))
        wait_for_keeper_to_end(state)
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    finally:
        embedded.destroy(state)
    assert not outside.exists()
