"""The command `qasid`: what people type, what it says, how it ends."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import click
import psycopg
import pytest
from click.testing import CliRunner, Result

from app import cli, passwords
from app.settings import Settings
from tests import receiving
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


# --- dead letters ---

ROWS = """
INSERT INTO contacts (tenant_id) SELECT id FROM tenants;
INSERT INTO identities SELECT tenant_id, 'wa_id', '15550002222', id FROM contacts;
INSERT INTO conversations (tenant_id, channel_id, contact_id)
  SELECT c.tenant_id, h.id, c.id FROM contacts c JOIN channels h USING (tenant_id) WHERE h.slug = 'main';
INSERT INTO lanes (tenant_id, conversation_id, channel_id, head_seq, done_seq)
  SELECT tenant_id, id, channel_id, 1, 1 FROM conversations;
INSERT INTO messages (tenant_id, id, conversation_id, channel_id, direction, kind, sent_at, correlation, body)
  SELECT tenant_id, uuidv7(), conversation_id, channel_id, 'in', 'text', now(), 'c', 'a private question' FROM lanes;
INSERT INTO outbox (tenant_id, conversation_id, seq, kind, message_id)
  SELECT tenant_id, conversation_id, 1, 'answer', id FROM messages;
INSERT INTO turns (tenant_id, conversation_id, first_seq, last_seq) SELECT tenant_id, conversation_id, 1, 1 FROM lanes;
INSERT INTO usage (tenant_id, turn_id, outcome, messages, chunks)
  SELECT t.tenant_id, t.id, CASE n.slug WHEN 'noor' THEN 'answered' ELSE 'failed' END, 1, 1
  FROM turns t JOIN tenants n ON n.id = t.tenant_id;
INSERT INTO chunks (tenant_id, conversation_id, channel_id, turn_id, seq, no, body, state, attempt, code, reason)
  SELECT t.tenant_id, l.conversation_id, l.channel_id, t.id, 1, 1, E'a private\\nanswer\\x1b[2J \\u200fسلام', 'parked', 1, 131026,
         'cannot reach +1 555 000 2222'
  FROM turns t JOIN lanes l USING (tenant_id, conversation_id) JOIN tenants n ON n.id = t.tenant_id WHERE n.slug = 'noor';
INSERT INTO attempts (tenant_id, chunk_id, n, token, state, endpoint_id)
  SELECT c.tenant_id, c.id, 1, 1, 'in_doubt', e.id FROM chunks c, endpoints e WHERE e.slug = 'meta';
INSERT INTO quarantine (endpoint_id, digest, reason, raw, address, part)
  SELECT id, 'x', 'message: unknown type', '{"type":"hologram","from":"15550002222"}', '1001', 'message'
  FROM endpoints WHERE slug = 'meta';
"""


@pytest.fixture
def dead(database: Database, tmp_path: Path) -> dict[str, str]:
    """A tenant with a parked chunk, another with a failed turn, an unreadable item; settings that lead there."""
    asyncio.run(receiving.configure(database.url, tmp_path))
    with psycopg.connect(database.superuser_url, autocommit=True) as conn:
        conn.execute(ROWS)
    return {"QASID_DATABASE_URL": database.url, "QASID_SECRET_KEY": receiving.KEY}


def listed(at: dict[str, str], *words: str) -> dict[str, str]:
    """The lines of `qasid dead` by the kind of letter, each without its heading."""
    shown = qasid("dead", *words, **at)
    assert shown.exit_code == 0, shown.output
    return {
        kind: line
        for line in shown.output.splitlines()
        for kind in ("chunk", "turn", "quarantine")
        if f" {kind} " in line
    }


def id_in(line: str) -> str:
    """What stands last."""
    return line.rsplit(" ", 1)[1]


def test_dead_letters_are_listed_without_what_people_wrote(dead: dict[str, str]) -> None:
    """One line each: how old, whose, what, why, and the id that `replay` takes; --text shows the words and numbers too."""
    found = listed(dead)
    assert set(found) == {"chunk", "turn", "quarantine"}
    assert "chunk parked" in found["chunk"]
    assert "131026 cannot reach *** (may have arrived)" in found["chunk"]
    assert ("noor" in found["chunk"], "amal" in found["turn"], "noor" in found["quarantine"]) == (True, True, True)
    options: list[tuple[str, ...]] = [(), ("--limit", "2"), ("--tenant", "noor"), ("--kind", "turn"), ("--since", "1h")]
    for words in options:
        output = qasid("dead", *words, **dead).output
        assert "private" not in output
        assert "5550002222" not in output.replace(" ", "")
    shown = qasid("dead", "--text", **dead).output
    for said in ("a private question", "15550002222", "    a private\n    answer\\u001b[2J", "سلام", "hologram"):
        assert said in shown
    assert "\x1b" not in shown


def test_the_list_is_narrowed_as_asked(dead: dict[str, str], database: Database) -> None:
    """By tenant, kind, age and number; what is wrong with an option is said, with code 2."""
    assert set(listed(dead, "--tenant", "noor")) == {"chunk", "quarantine"}
    assert set(listed(dead, "--tenant", "amal")) == {"turn"}
    assert set(listed(dead, "--kind", "quarantine")) == {"quarantine"}
    assert len(listed(dead, "--limit", "1")) == 1
    assert "There are more" in qasid("dead", "--limit", "1", **dead).output
    with psycopg.connect(database.superuser_url, autocommit=True) as conn:
        conn.execute("UPDATE quarantine SET last_at = now() - interval '3 days'")
    assert "3 d" in listed(dead)["quarantine"]
    assert set(listed(dead, "--since", "2d")) == {"chunk", "turn"}
    assert set(listed(dead, "--since", "2020-01-01")) == {"chunk", "turn", "quarantine"}
    for words in (("--tenant", "nobody"), ("--since", "soon"), ("--kind", "fish"), ("--limit", "0")):
        refused = qasid("dead", *words, **dead)
        assert (refused.exit_code, words[1] in refused.output) == (2, True), refused.output


def test_a_replay_says_what_it_did(dead: dict[str, str]) -> None:
    """By id, twice, again; a parked chunk may have arrived."""
    found = listed(dead)
    chunk, turn, item = (id_in(found[kind]) for kind in ("chunk", "turn", "quarantine"))
    done = qasid("replay", chunk, turn, **dead)
    assert done.exit_code == 0, done.output
    assert "To replay: 1 chunk, 1 turn." in done.output
    assert f"chunk {chunk}  as chunk " in done.output
    assert "it may have arrived before" in done.output
    assert f"turn {turn}  as entry 2" in done.output
    assert "private" not in done.output
    assert set(listed(dead)) == {"quarantine"}
    twice = qasid("replay", chunk, item, **dead)
    assert (twice.exit_code, twice.output.count("\n")) == (2, 1)
    assert "already replayed as chunk" in twice.output
    assert "--again" in twice.output
    assert qasid("replay", chunk, "--again", **dead).exit_code == 0
    stays = qasid("replay", item, **dead)
    assert stays.exit_code == 1
    assert "stays: message: " in stays.output
    assert set(listed(dead)) == {"quarantine"}


def test_all_are_replayed_with_a_count_first(dead: dict[str, str]) -> None:
    """Each with its number; what stays makes the code 1, nothing left to do is 0."""
    nothing = qasid("replay", "--all", "--since", "0s", **dead)
    assert (nothing.exit_code, nothing.output) == (0, "No dead letters.\n")
    some = qasid("replay", "--all", "--tenant", "amal", **dead)
    assert some.exit_code == 0, some.output
    lines = qasid("replay", "--all", **dead)
    assert lines.exit_code == 1
    assert "To replay: 1 chunk, 1 item in quarantine." in lines.output
    assert ("1/2  quarantine" in lines.output, "2/2  chunk" in lines.output) == (True, True)
    assert "1 of them stayed as they were." in lines.output
    assert qasid("replay", "--all", "--kind", "chunk", **dead).output == "No dead letters.\n"


def test_a_replay_that_makes_no_sense_is_refused_whole(dead: dict[str, str]) -> None:
    """An unknown id, no id, ids and --all: code 2, and nothing of it is done."""
    chunk, unknown = id_in(listed(dead)["chunk"]), "01900000-0000-7000-8000-000000000000"
    refused = qasid("replay", chunk, unknown, **dead)
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
    assert refused.output.startswith("qasid: Nothing was replayed. ")
    assert unknown in refused.output
    wrong: list[tuple[str, ...]] = [(), (chunk, "--all"), ("x",), (chunk, "--kind", "chunk"), ("--all", "--again")]
    for words in wrong:
        assert qasid("replay", *words, **dead).exit_code == 2, words
    assert set(listed(dead)) == {"chunk", "turn", "quarantine"}
