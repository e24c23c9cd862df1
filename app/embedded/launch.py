"""Starts the embedded cluster's server: its settings, its port, its log. It never makes, finds or stops one."""

import fcntl
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from app.embedded import locks, postmaster
from app.embedded.places import ENVIRONMENT, Place
from app.errors import ConfigurationError

START_SECONDS = 60  # for one try, crash recovery included; pg_ctl wants whole seconds
LOCK_SECONDS = 10.0
POLL_SECONDS = 0.1
LOG_BYTES = 1_000_000  # at a start, a longer log becomes `.old`

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a path may be too long for a socket, and TCP with a password serves everywhere
    "max_connections": "100",
    "shared_buffers": "128MB",
    # A checkpoint stalls commits for a tenth of a second and more: rarely, then, not every few seconds under load.
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "shared_preload_libraries": "pg_stat_statements",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The log holds the server's own life, no statement and no value: errors go to the client, and people's words and
    # numbers stay out of files. `log` lies above warning and error for the log (PostgreSQL: log_min_messages).
    "logging_collector": "off",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
}


def start(pg: Path, place: Place, settings: Mapping[str, str]) -> None:
    """Start the server on its earlier port, or on another if that is taken. start.lock is held, and no server runs.

    Raises ConfigurationError with the last lines of the log.
    """
    deadline = time.monotonic() + START_SECONDS
    log = pg / "log" / "postgres.log"
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.rename(log.with_suffix(".old"))
    port_file = pg / "port"
    earlier = port_file.read_text().strip() if port_file.exists() else ""
    port = _free_port(int(earlier) if earlier.isdigit() else 0)
    while True:
        if postmaster.running(place.data) is None and postmaster.pid_file(place.data):
            # Ours to remove: PostgreSQL takes a stale pid for a server when it belongs by now to another process of the
            # same user, or to a zombie that nobody reaps. It still checks that no old backend uses the shared memory.
            (place.data / "postmaster.pid").unlink(missing_ok=True)
        _write_configuration(place, {**SETTINGS, **settings, "port": str(port)})
        begin = log.stat().st_size if log.exists() else 0
        if _pg_ctl(pg, place, log) or postmaster.running(place.data) is not None:  # running: another start was orphaned
            port_file.write_text(f"{port}\n")
            return
        said = postmaster.tail(log, begin)
        taken = "Address already in use" in said  # between our look and PostgreSQL's
        leaving = "still in use" in said or "already exists" in said  # the children of a killed server are about to go
        if time.monotonic() > deadline or not (taken or leaving):
            raise ConfigurationError(f"The embedded PostgreSQL in {place.folder} did not start; {log} says: {said}")
        if taken:
            port = _free_port(0)
        else:
            time.sleep(POLL_SECONDS)


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL binds
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            free: int = probe.getsockname()[1]
            return free
    raise ConfigurationError("There is no free port on 127.0.0.1 for the embedded PostgreSQL.")


def _write_configuration(place: Place, settings: Mapping[str, str]) -> None:
    """In our folder, not in PGDATA: root writes nothing where another user could have put a link."""
    lines = [f"include_if_exists = {_quoted(str(place.data / 'postgresql.conf'))}  # what initdb found out"]
    lines += [f"{name} = {_quoted(value)}" for name, value in settings.items()]
    path = place.folder / "postgresql.conf"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o644)


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _pg_ctl(pg: Path, place: Place, log: Path) -> bool:
    """Start by pg_ctl, which makes the server nobody's child and waits until it is ready. True if it is.

    The shell around it has a share of users.lock as its standard input, and pg_ctl does not: if we are killed here, the
    keeper does not find the lock free before there is a server to be stopped.
    """
    command = [
        str(place.bin / "pg_ctl"),
        "start",
        "--silent",
        "--wait",
        f"--timeout={START_SECONDS}",
        f"--pgdata={place.data}",
        f"--options=-c config_file={shlex.quote(str(place.folder / 'postgresql.conf'))}",
    ]
    users = locks.take(pg / "users.lock", fcntl.LOCK_SH, seconds=LOCK_SECONDS)
    try:
        with log.open("ab") as output:  # opened by us: PostgreSQL's user need not be able to
            done = subprocess.run(
                ["/bin/sh", "-c", '"$@" </dev/null; exit $?', "sh", *command],
                stdin=users,
                stdout=output,
                stderr=output,
                cwd="/",
                env=ENVIRONMENT,
                user=place.account.uid if place.account else None,
                group=place.account.gid if place.account else None,
                extra_groups=[] if place.account else None,
                start_new_session=True,
                check=False,
            )
    finally:
        os.close(users)
    return done.returncode == 0
