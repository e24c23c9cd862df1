"""`qasid demo` as a person starts it: whole, on ports that are free, ended in every way."""

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app import embedded
from app.embedded import locks

SECONDS = 60.0

# A demo that starts a child as app/demo does, and is killed between the child's tie and its exec.
KILLED_AMID = """
import asyncio, os, signal, sys
from app.demo.children import tie

async def demo():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
    parent = os.getpid()

    def between():
        tie(parent)
        os.kill(parent, signal.SIGKILL)
        while os.getppid() == parent:
            pass

    await asyncio.create_subprocess_exec(sys.executable, "-c", "print('outlived')", preexec_fn=between)

asyncio.run(demo())
"""


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """A state folder whose demo's database is made once; destroyed at the end."""
    root = Path(tempfile.mkdtemp(prefix="qasid-demo-"))
    root.chmod(0o755)  # PostgreSQL's own user passes through, where the tests run as root
    yield root
    embedded.destroy(root / "demo")
    shutil.rmtree(root)


@contextmanager
def demo(state: Path, *arguments: str, **settings: str) -> Iterator["subprocess.Popen[str]"]:
    """A demo on free ports, its output readable line by line; killed at the end if it still runs."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("QASID_")}
    ours = {"QASID_STATE_DIR": str(state), "QASID_PORT": "0", "QASID_SANDBOX_PORT": "0", **settings}
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "demo", *arguments],
        env=environ | ours,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        yield process
        process.kill()


def read_until(process: "subprocess.Popen[str]", words: str) -> str:
    """What it writes, up to the line with these words."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"it ended before it said {words!r}: {''.join(lines)}")


def wait_until_all_is_over(state: Path) -> None:
    """Return once no process of the demo lives, nor its PostgreSQL: each of them holds one of these locks."""
    for lock in (state / "demo" / "demo.lock", state / "demo" / "pg" / "keeper.lock"):
        os.close(locks.take(lock, fcntl.LOCK_EX, seconds=12.0))


def test_once_plays_the_conversation_and_leaves_nothing_running(state: Path) -> None:
    """All parts of the transcript, exit code 0, no word of another installation's database, nothing left."""
    foreign = "postgresql://nobody:secret@127.0.0.1:1/none"
    with demo(state, "--once", QASID_DATABASE_URL=foreign, PGOPTIONS="-c search_path=nowhere") as process:
        output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert "QASID_DATABASE_URL: ignored" in output
    assert "secret" not in output
    assert "\x1b" not in output, "colour is for terminals"
    for part in (
        "السلام عليكم",
        "ما هي أركان الإسلام؟",
        "What are the pillars",
        "chunk 2 of 2",
        "[a location]",
        "[a poll]",
        "*Sources*",
        "Sahih al-Bukhari 1",
        "Actions are but by intentions",
    ):
        assert part in output
    assert re.search(r"ack [\d.,]+ ms · queue [\d.,]+ ms · AI [\d.,]+ ms · send [\d.,]+ ms", output)
    assert re.search(r"^PASSED: 10 messages, \d+ texts\.", output.splitlines()[-1])
    for lock in (state / "demo" / "demo.lock", state / "demo" / "pg" / "keeper.lock"):
        taken = locks.try_take(lock, fcntl.LOCK_EX)
        assert taken is not None, f"somebody still holds {lock}"
        os.close(taken)


def test_a_port_in_use_is_told_and_nothing_is_started(tmp_path: Path) -> None:
    """Exit code 2, the port and its setting in one line, and no database was made."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with demo(tmp_path, QASID_SANDBOX_PORT=str(port)) as process:
            output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert f"Port {port} on 127.0.0.1 is in use" in output
    assert "QASID_SANDBOX_PORT" in output
    assert "Traceback" not in output
    assert not (tmp_path / "demo" / "pg").exists()


def test_it_stays_up_until_asked_to_end(state: Path) -> None:
    """After the conversation it says where to log in and stays; a second demo is refused; Ctrl-C ends it all with 0."""
    with demo(state) as process:
        said = read_until(process, "  Logs ")
        assert re.search(r"/jobs\n.*/schema\n.*Log in as +demo, password \S{20,}", said)
        with demo(state) as second:
            output, _ = second.communicate(timeout=SECONDS)
        assert second.returncode == 2
        assert f"process {process.pid}" in output
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=SECONDS) == 0
    wait_until_all_is_over(state)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_child_that_is_being_started_ends_with_a_killed_demo() -> None:
    """Nothing is lost of the kernel's signal while the child still has the demo's handlers."""
    done = subprocess.run([sys.executable, "-c", KILLED_AMID], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
@pytest.mark.parametrize("moment", ["demo tenant", "Up after"])
def test_a_killed_demo_leaves_nothing_running(state: Path, moment: str) -> None:
    """SIGKILL, while its processes still import or once all is up: they end, and so does PostgreSQL."""
    with demo(state) as process:
        read_until(process, moment)
        process.kill()
    wait_until_all_is_over(state)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the child in /proc")
def test_a_process_that_ends_early_ends_the_demo_with_its_log(state: Path) -> None:
    """Who starts the demo is told which process ended, how, and what it wrote last; the exit code is 1."""
    with demo(state) as process:
        read_until(process, "sandbox at")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        sandbox = next(pid for pid in children if "sandbox" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"))
        os.kill(int(sandbox), signal.SIGKILL)
        output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "The sandbox process ended with SIGKILL." in output
    assert "  | sandbox: http://127.0.0.1:" in output
    wait_until_all_is_over(state)
