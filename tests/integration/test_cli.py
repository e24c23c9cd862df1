"""The command `qasid`: what people type, what it says, how it ends."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from app import cli, passwords
from app.settings import Settings
from tests.conftest import Database

KEY = "11" * 32


def qasid(*words: str, stdin: str | None = None, **environ: str) -> Result:
    """Run `qasid` with these words and these QASID_* settings alone."""
    ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith("QASID_")}
    return CliRunner().invoke(cli.main, words, input=stdin, env={**ours, **environ})


def commands(group: click.Group, *path: str) -> list[tuple[str, ...]]:
    """Every command below a group."""
    found: list[tuple[str, ...]] = [path]
    for name, command in group.commands.items():
        found += commands(command, *path, name) if isinstance(command, click.Group) else [(*path, name)]
    return found


@pytest.mark.parametrize("path", [path for path in commands(cli.main) if path != ("sandbox",)], ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    """--help works everywhere, with a sentence that is not cut."""
    shown = qasid(*path, "--help")
    assert shown.exit_code == 0
    assert "..." not in shown.output.replace("[ARGS]...", "")


def test_operators_come_change_and_go(database: Database) -> None:
    """add, list, password, remove; a name is taken once; what is missing is said."""
    at = {"QASID_DATABASE_URL": database.url}
    assert "No" not in qasid("user", "list", **at).output
    added = qasid("user", "add", "ليلى", "--generate", **at)
    assert added.exit_code == 0
    generated = added.output.rsplit(" ", 1)[1].strip()
    assert len(generated) >= passwords.SHORTEST
    again = qasid("user", "add", "ليلى", "--password-stdin", stdin="a long enough password\n", **at)
    assert (again.exit_code, "already" in again.output) == (2, True)
    assert "ليلى" in qasid("user", "list", **at).output
    changed = qasid("user", "password", "ليلى", "--password-stdin", stdin="another long password\n", **at)
    assert changed.exit_code == 0
    assert "another" not in changed.output
    assert qasid("user", "remove", "ليلى", **at).exit_code == 0
    assert qasid("user", "remove", "ليلى", **at).exit_code == 2
    assert qasid("user", "password", "ليلى", "--generate", **at).exit_code == 2


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        (("add", "x", "--password-stdin"), "short\n"),
        (("add", "x", "--password-stdin"), "x" * 1025),
        (("add", "x", "--password-stdin", "--generate"), ""),
        (("add", "x"), ""),
        (("add", " x", "--generate"), ""),
        (("add", "x\n", "--generate"), ""),
        (("add", "", "--generate"), ""),
    ],
)
def test_a_bad_name_or_password_is_refused_in_one_line(words: tuple[str, ...], stdin: str) -> None:
    """Exit code 2 and one line, before anything is asked of the database."""
    refused = qasid("user", *words, stdin=stdin, QASID_DATABASE_URL="postgresql://nobody@127.0.0.1:9/none")
    assert refused.exit_code == 2
    assert refused.output.startswith("qasid: ")
    assert refused.output.count("\n") == 1


def test_a_wrong_setting_is_2_and_a_missing_database_is_1() -> None:
    """Codes tell what a person must mend from what may pass by itself; never a traceback."""
    wrong = qasid("migrate", QASID_PROT="1")
    assert (wrong.exit_code, "QASID_PROT" in wrong.output) == (2, True)
    for words in (("migrate",), ("user", "list")):
        away = qasid(*words, QASID_DATABASE_URL="postgresql://nobody@127.0.0.1:9/none")
        assert away.exit_code == 1
        assert "Traceback" not in away.output
        assert "refused" in away.output


def test_migrating_twice_says_that_nothing_was_left(database: Database) -> None:
    """The second run changes nothing and says so."""
    assert qasid("migrate", QASID_DATABASE_URL=database.url).output == "The schema is up to date.\n"


def test_a_port_in_use_is_said_before_the_server_starts() -> None:
    """`qasid web` names the port and the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = qasid("web", QASID_PORT=port, QASID_SECRET_KEY=KEY, QASID_DATABASE_URL="postgresql://x")
    assert refused.exit_code == 2
    assert port in refused.output
    assert "QASID_PORT" in refused.output


def test_the_servers_command_line() -> None:
    """What granian is told: HTTP/1 alone, bounded in headers, connections and time to stop, no log of requests."""
    words = cli.granian(Settings(host="0.0.0.0", port=8080, web_workers=2))
    assert words[0] == sys.executable
    assert " ".join(words[1:]) == (
        "-m granian --factory --no-ws --no-access-log --respawn-failed-workers --interface asgi --host 0.0.0.0 "
        "--port 8080 --http 1 --loop uvloop --workers 2 --workers-kill-timeout 15 --backlog 4096 --backpressure 4096 "
        "--http1-header-read-timeout 5000 --log-level info app.served:create_app"
    )


def test_a_process_ends_with_its_parent() -> None:
    """Killed with SIGKILL, a parent takes a child along that asked for it."""
    root = Path(__file__).parents[2]
    child = (
        "import time; from app.process import end_with_parent\n"
        "end_with_parent(); print('ready', flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], cwd=root, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"ready\n"
        started.kill()
        assert started.stdout.read() == b""  # the pipe ends when the child, who holds it too, has ended
