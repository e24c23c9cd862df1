"""The embedded PostgreSQL: whoever needs it first starts it, and it stops with its last user.

The door of this room: `ensure`, `release`, `destroy`. A user is a process that holds a shared lock on `users.lock`; the
kernel frees a killed one's. PostgreSQL is nobody's child. It never imports anything but the standard library.

Three locks in `<state>/pg`, always taken in this order: `start.lock` (exclusive, while someone looks and starts),
`users.lock` (shared by users; exclusive by the keeper while it stops PostgreSQL), `keeper.lock` (the keeper's life).
"""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.embedded import initdb, launch, locks, places, postmaster
from app.errors import ConfigurationError

START_SECONDS = 180.0  # the longest anybody may look and start: initdb on a slow disk, then crash recovery
STOP_SECONDS = 100.0  # longer than the keeper takes at worst: postmaster.FAST_SECONDS and QUIT_SECONDS

_users: dict[Path, int] = {}  # `<state>/pg` → the open file that holds this process's share of users.lock
_guard = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running PostgreSQL 18. The URLs are libpq's and hold passwords, so they are left out of its repr.

    `url`: database `qasid` as role `qasid`: owns it, has CREATEROLE and CREATEDB, is no superuser.
    `superuser_url`: the same database as `postgres`, for pg_stat_statements, benchmarks and tests.
    `bin`: the folder of pg_ctl, psql, pgbench and the rest. `data`: PGDATA.
    """

    url: str = field(repr=False)
    superuser_url: str = field(repr=False)
    bin: Path
    data: Path


def ensure(state: Path, *, settings: Mapping[str, str] | None = None) -> Cluster:
    """Start the cluster of `state` unless it runs, and hold it until this process ends or calls `release`.

    `settings` are lines of postgresql.conf; they count only if this call is the one that starts PostgreSQL.
    Blocking: 3 ms when it runs, 0.2 s to start it, 2 s the first time; 2 s more when it runs and is frozen.
    Raises ConfigurationError: the package, the disk, the rights or a setting is wrong, with PostgreSQL's own words.
    """
    pg = state.resolve() / "pg"
    try:
        with _guard:
            return _ensure(pg, settings or {})
    except OSError as error:
        raise ConfigurationError(f"The embedded PostgreSQL in {pg} cannot be used: {error}") from error


def release(state: Path) -> None:
    """Give up this process's hold on the cluster of `state`, if it has one; the keeper stops what no one holds."""
    with _guard:
        descriptor = _users.pop(state.resolve() / "pg", None)
        if descriptor is not None:
            os.close(descriptor)  # not LOCK_UN: that would also end the hold of processes forked from this one


def destroy(state: Path) -> None:
    """Stop the cluster of `state` and delete it with all its data, wherever they lie. For tests and the demo.

    Raises ConfigurationError while another process uses it.
    """
    release(state)
    pg = state.resolve() / "pg"
    if not pg.is_dir():
        return
    with (
        locks.held(pg / "start.lock", fcntl.LOCK_EX, seconds=START_SECONDS),
        locks.held(pg / "users.lock", fcntl.LOCK_EX, seconds=STOP_SECONDS),
    ):
        with suppress(places.Gone):  # then so are the data
            place = places.find(pg)
            postmaster.stop(place.data)
            if place.folder != pg:
                shutil.rmtree(place.folder)
        shutil.rmtree(pg)


def _ensure(pg: Path, settings: Mapping[str, str]) -> Cluster:
    pg.mkdir(parents=True, exist_ok=True)
    with locks.held(pg / "start.lock", fcntl.LOCK_EX, seconds=START_SECONDS) as starting:
        held = _users.get(pg)
        users = held if held is not None else locks.take(pg / "users.lock", fcntl.LOCK_SH, seconds=STOP_SECONDS)
        try:
            cluster = _start(pg, settings, starting)
        except BaseException:
            if held is None:
                os.close(users)
            raise
        _users[pg] = users
        return cluster


def _start(pg: Path, settings: Mapping[str, str], starting: int) -> Cluster:
    """Have a keeper and a ready PostgreSQL. Both locks are held, start.lock by the descriptor `starting`."""
    if pg.stat().st_uid == os.geteuid():
        pg.chmod(0o711)  # as root, PostgreSQL's own user passes through; what is secret in here has a mode of its own
    (pg / "log").mkdir(mode=0o700, exist_ok=True)
    passwords = initdb.passwords(pg)
    place = places.find(pg)
    port = postmaster.ready(place.data)
    if port is None:
        place = places.prepare(pg)
    _keep(pg, place.data)  # before a start, so that nothing we start is ever without one
    if port is None:
        if not place.data.is_dir():
            initdb.create(place, passwords, sync=settings.get("fsync") != "off", lock=starting)
        launch.start(pg, place, settings)
        port = postmaster.ready(place.data)
    if port is None:
        log = pg / "log" / "postgres.log"
        raise ConfigurationError(
            f"The embedded PostgreSQL in {place.folder} ended at once; {log} says: {postmaster.tail(log)}"
        )
    address = f"127.0.0.1:{port}/qasid"
    return Cluster(
        url=f"postgresql://qasid:{passwords.qasid}@{address}",
        superuser_url=f"postgresql://postgres:{passwords.postgres}@{address}",
        bin=place.bin,
        data=place.data,
    )


def _interpreter_needs() -> dict[str, str]:
    """All that a keeper gets of our environment, which holds secrets and ends long before it."""
    names = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
    return {name: os.environ[name] for name in names if name in os.environ}


def _keep(pg: Path, data: Path) -> None:
    """Spawn a keeper unless one lives. It gets keeper.lock already locked: the open file, and so the lock, is handed on."""
    lock = locks.try_take(pg / "keeper.lock", fcntl.LOCK_EX)
    if lock is None:
        return
    log = pg / "log" / "keeper.log"
    try:
        with log.open("wb") as output:
            started = subprocess.run(
                # -P -S: its imports are the standard library and this package, whatever folder it stands in
                [sys.executable, "-P", "-S", "-m", "app.embedded.keeper", str(pg), str(data), str(lock)],
                env={"PYTHONPATH": str(Path(__file__).parents[2]), **_interpreter_needs()},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[lock],
                start_new_session=True,
                check=False,
            )
    finally:
        os.close(lock)
    if started.returncode:
        raise ConfigurationError(f"The keeper of {pg} did not start: {postmaster.tail(log)}")
