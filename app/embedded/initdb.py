"""Makes the embedded cluster: initdb, the role and the database `qasid`, and the passwords. It never starts a server.

A cluster is made under another name and renamed when complete: a kill half-way leaves nothing that looks like one.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from app.embedded.places import Place, run
from app.errors import ConfigurationError

SECONDS = 120.0  # half a second on a fast disk


@dataclass(frozen=True, kw_only=True)
class Passwords:
    """Of the role `qasid` and of the superuser `postgres`; hexadecimal, so they need no quoting anywhere."""

    qasid: str = field(repr=False)
    postgres: str = field(repr=False)


def passwords(pg: Path) -> Passwords:
    """Read the passwords of the cluster in `pg`, made on the first call. Only their owner may read the file."""
    path = pg / "passwords"
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=pg, prefix="passwords.new-", delete=False) as new:  # made with 0600
            new.write(f"{os.urandom(24).hex()}\n{os.urandom(24).hex()}\n")
            new.flush()
            os.fsync(new.fileno())
        os.rename(new.name, path)
    qasid, postgres = path.read_text().split()
    return Passwords(qasid=qasid, postgres=postgres)


def create(place: Place, passwords: Passwords, *, sync: bool, lock: int) -> None:
    """Make the cluster. `sync`: on disk before this returns. `lock`: the descriptor of start.lock, which is held.

    Raises ConfigurationError with the last of what initdb said.
    """
    for left in place.folder.glob("data.new-*"):
        shutil.rmtree(left)  # of a start that was killed
    work = Path(tempfile.mkdtemp(prefix="data.new-", dir=place.folder))
    try:
        work.chmod(0o711)
        data = work / "data"
        data.mkdir(mode=0o700)
        password = work / "password"  # a file, because a pipe of root's cannot be opened by another user
        password.touch(mode=0o600)
        password.write_text(f"{passwords.postgres}\n")
        if place.account is not None:
            for path in (data, password):
                os.chown(path, place.account.uid, place.account.gid)
        _must(place, "initdb", _initdb(data, password, sync=sync), lock=lock)
        # PostgreSQL's single-user mode: no server, no port; one command a line
        single = [
            "--single",
            "-D",
            str(data),
            "-c",
            "exit_on_error=on",
            "-c",
            "log_min_error_statement=panic",
            "postgres",
        ]
        _must(
            place,
            "postgres",
            single,
            input=f"CREATE ROLE qasid LOGIN CREATEROLE CREATEDB PASSWORD '{passwords.qasid}'\n"
            "CREATE DATABASE qasid OWNER qasid\n",
            lock=lock,
        )
        data.rename(place.data)
        if sync:
            _sync(place.folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _initdb(data: Path, password: Path, *, sync: bool) -> list[str]:
    return [
        f"--pgdata={data}",
        "--username=postgres",
        f"--pwfile={password}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",  # the same order and case on every machine, whatever its libc
        "--builtin-locale=C.UTF-8",
        "--no-instructions",
        *([] if sync else ["--no-sync"]),
    ]


def _must(place: Place, program: str, arguments: list[str], *, lock: int, input: str = "") -> None:
    code, said = run(place.account, [str(place.bin / program), *arguments], input=input, seconds=SECONDS, lock=lock)
    if code:
        last = " / ".join(said.strip().splitlines()[-5:]) or f"nothing, exit code {code}"
        raise ConfigurationError(f"The embedded PostgreSQL could not be made in {place.folder}; {program} said: {last}")


def _sync(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
