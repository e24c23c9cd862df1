"""Finds and stops the embedded cluster's server process. It never starts one, nor decides whether one should run.

What is true about a running server stands in `postmaster.pid`: pid, data folder, start time, port, socket folder,
address, shared memory, status (PostgreSQL's miscadmin.h, LOCK_FILE_LINE_*).
"""

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from app.errors import ConfigurationError

READY_SECONDS = 60.0  # crash recovery included
FROZEN_SECONDS = 2.0
FAST_SECONDS = 60.0  # a fast stop writes a checkpoint
QUIT_SECONDS = 20.0
POLL_SECONDS = 0.01
SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # answered with one byte, before any login (PostgreSQL: SSLRequest)


def running(data: Path) -> int | None:
    """The pid of the live server on `data`, or None. What a dead one left behind counts for nothing."""
    lines = pid_file(data)
    if not lines or not lines[0].isdigit():
        return None
    pid = int(lines[0])
    return pid if _is_postgres(pid, data) else None


def pid_file(data: Path) -> list[str]:
    """The lines of `postmaster.pid`, whoever left it; none if there is no such file."""
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def ready(data: Path) -> int | None:
    """Wait until the running server takes connections; returns its port, or None when none runs (any more).

    A frozen one is still the server: after FROZEN_SECONDS its callers' own deadlines deal with it.
    Raises ConfigurationError when it runs and does not get ready.
    """
    begin = time.monotonic()
    while (pid := running(data)) is not None:
        waited = time.monotonic() - begin
        lines = pid_file(data)
        if len(lines) > 7 and lines[7].strip() == "ready":
            port = int(lines[3])
            if _answers(port) or waited > FROZEN_SECONDS:
                return port
        elif waited > READY_SECONDS:
            raise ConfigurationError(f"The embedded PostgreSQL in {data} (pid {pid}) runs, but does not get ready.")
        time.sleep(POLL_SECONDS)
    return None


def stop(data: Path) -> None:
    """Stop the server on `data`, if any, as `pg_ctl stop -m fast` does; after a minute as `-m immediate` does.

    By signal: the binaries may be gone by now (a virtual environment made anew). Raises OSError if we may not.
    """
    for how, seconds in ((signal.SIGINT, FAST_SECONDS), (signal.SIGQUIT, QUIT_SECONDS)):
        pid = running(data)
        if pid is None:
            return
        with suppress(ProcessLookupError):  # it went by itself just now
            os.kill(pid, how)
            os.kill(pid, signal.SIGCONT)  # or a frozen one would never hear of it
        deadline = time.monotonic() + seconds
        while running(data) == pid and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def tail(log: Path, begin: int = 0) -> str:
    """The last lines of a log from byte `begin` on, in one line."""
    with log.open("rb") as lines:
        lines.seek(begin)
        said = lines.read()[-4000:].decode(errors="replace").strip().splitlines()[-6:]
    return " / ".join(said) or "nothing"


def _answers(port: int) -> bool:
    """Whether a server speaks there: a killed one is found among the living for some milliseconds more."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(SSL_REQUEST)
            return connection.recv(1) in (b"N", b"S")
    except OSError:
        return False


def _is_postgres(pid: int, data: Path) -> bool:
    """Whether `pid` is alive, is PostgreSQL, and (where we may look) works in `data`: pids come round again."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, PermissionError):
        return False
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False  # it went between the two lines
        ps = subprocess.run(["ps", "-o", "stat=,comm=", "-p", str(pid)], stdout=subprocess.PIPE, text=True, check=False)
        state, _, command = ps.stdout.strip().partition(" ")
        return not state.startswith("Z") and Path(command.strip()).name == "postgres"
    name, _, rest = stat.partition("(")[2].rpartition(")")
    if name != "postgres" or rest.split()[0] in "ZX":
        return False
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(data)
    except OSError:
        return True  # root in a container may not look
