"""The spool's folder: whether it can be used at all, which segments lie there, and how much. It changes no segment."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from app.errors import ConfigurationError
from app.spool.segments import CORRUPT, born, headers, lock, sync_folder
from app.vault import Vault

_PROBE = ".probe-"


class Census(Struct, frozen=True, kw_only=True):
    """What lies there, of all processes. `bytes` counts what was set aside too; `born` is the oldest segment's time."""

    bytes: int = 0
    records: int = 0
    segments: int = 0
    corrupt: int = 0
    born: float | None = None


def prepare(folder: Path, vault: Vault, *, writes: bool) -> None:
    """Make the folder if need be, and see that all of it can be used.

    Raises:
        ConfigurationError: it is none, cannot be read or written, or holds a segment of a key that the vault has not.
    """
    try:
        _make(folder)
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise ConfigurationError(
                f"QASID_SPOOL_DIR: {folder} is no folder. Name a folder on a disk that stays; it is made if need be."
            )
        if writes:
            for left in folder.glob(f"{_PROBE}*"):
                left.unlink(missing_ok=True)
            probe(folder)
        for path in segments(folder):
            _check_key(path, vault)
    except OSError as error:
        where = error.filename or folder
        raise ConfigurationError(
            f"QASID_SPOOL_DIR: the spool cannot be used: {where}: {error.strerror}. This process must be able to write "
            f"there, and the disk must have room. A full disk: `qasid spool` needs no room to replay what lies there."
        ) from error


def probe(folder: Path) -> None:
    """Write something, make it outlive a power cut, take it away. Raises OSError, also where files cannot be locked."""
    path = folder / f"{_PROBE}{secrets.token_hex(4)}"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        lock(handle)
        if os.write(handle, bytes(4096)) < 4096:
            os.write(handle, bytes(4096))  # a short write does not say why; the next one does
        os.fsync(handle)
        sync_folder(folder)
    finally:
        os.close(handle)
        with suppress(OSError):
            path.unlink(missing_ok=True)


def segments(folder: Path) -> list[Path]:
    """All segments, of all processes, oldest first. Raises OSError."""
    return sorted(path for path in folder.iterdir() if born(path.name) is not None)


def measure(folder: Path) -> tuple[Census, dict[str, int]]:
    """All but the number of records, which is left 0, and each segment's size. Raises OSError."""
    total = corrupt = 0
    sizes: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            set_aside = entry.name.endswith(CORRUPT)
            if born(entry.name.removesuffix(CORRUPT)) is None:
                continue
            try:
                size = entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:  # replayed meanwhile
                continue
            total += size
            corrupt += set_aside
            if size and not set_aside:
                sizes[entry.name] = size
    oldest = born(min(sizes)) if sizes else None
    return Census(bytes=total, segments=len(sizes), corrupt=corrupt, born=oldest), sizes


class Counter:
    """Counts records, reading of each segment only what is new. Behind a damaged place it counts none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counted: dict[str, tuple[int, int, int]] = {}  # by name: size then, place, records before it

    def look(self) -> Census:
        """All that lies there now. Raises OSError."""
        census, sizes = measure(self._folder)
        counted = {}
        for name, size in sizes.items():
            seen, at, records = self._counted.get(name, (0, 0, 0))
            if size != seen:
                with suppress(FileNotFoundError):
                    for _, behind in headers(self._folder / name, at):
                        at, records = behind, records + 1
            counted[name] = (size, at, records)
        self._counted = counted
        return Census(
            bytes=census.bytes,
            records=sum(records for _, _, records in counted.values()),
            segments=census.segments,
            corrupt=census.corrupt,
            born=census.born,
        )


def _make(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError):  # a parent that we may not read: then its owner has made it, or sees to it
            sync_folder(folder.parent)


def _check_key(path: Path, vault: Vault) -> None:
    try:
        first = next((head for head, _ in headers(path)), None)
    except FileNotFoundError:  # replayed meanwhile
        return
    if first and first.key_id not in vault.key_ids:
        raise ConfigurationError(
            f"QASID_SPOOL_DIR: {path} was sealed under key {first.key_id}, which is not in QASID_SECRET_KEY (there: "
            f"{', '.join(vault.key_ids)}). Put that key back, behind the first, until the spool is replayed. If it is "
            f"lost, so are the webhooks in that file: move it elsewhere."
        )
