"""The spool's folder: whether it can be used at all, which segments lie there, and how much. It changes no segment.

One file that the disk refuses hides no other.
"""

import errno
import os
import secrets
import stat
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path

from msgspec import Struct, structs

from app.errors import ConfigurationError
from app.spool.hand import Hand
from app.spool.left import Left
from app.spool.pauses import Pauses
from app.spool.segments import CORRUPT, born, headers, lock, sync_folder
from app.vault import Vault

_PROBE = ".probe-"


class Census(Struct, frozen=True, kw_only=True):
    """What lies there, of all processes. `bytes` counts what was set aside too; `names` are the segments."""

    bytes: int = 0
    records: int = 0
    corrupt: int = 0
    names: frozenset[str] = frozenset()
    born: float | None = None
    """When the oldest segment was begun, but for those apart."""
    apart: frozenset[str] = frozenset()
    """Segments that cannot be replayed, as far as is known: they count for no age, or the first of them would end the spool."""
    unreadable: frozenset[str] = frozenset()
    """Segments that the disk does not let us count."""
    missing_keys: frozenset[str] = frozenset()
    """The ids of keys that segments are sealed under, and that the vault has not."""


def require(folder: Path, vault: Vault, *, patience: float = 5.0) -> None:
    """See that webhooks can be kept there and all that lies there be opened: for whoever starts, once, with a person by.

    Raises:
        ConfigurationError: it is none, cannot be read or written, or holds a segment of a key that the vault has not; or
            nothing of this was answered for `patience` seconds.
    """
    hand = Hand("spool's start")
    try:
        hand.begin(lambda: prepare(folder, writes=True)).result(patience)
        for path in hand.begin(lambda: segments(folder)).result(patience):
            hand.begin(partial(_check_key, path, vault)).result(patience)
    except TimeoutError:
        raise hanging(folder) from None
    finally:
        hand.end()


def prepare(folder: Path, *, writes: bool) -> None:
    """Make the folder if need be, and see that it can be listed, and if it `writes` be written.

    Raises:
        ConfigurationError: it cannot.
    """
    try:
        make(folder)
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise ConfigurationError(
                f"QASID_SPOOL_DIR: {folder} is no folder. Name a folder on a disk that stays; it is made if need be."
            )
        if writes:
            for left in folder.glob(f"{_PROBE}*"):
                left.unlink(missing_ok=True)
            probe(folder)
        segments(folder)
    except OSError as error:
        where = error.filename or folder
        no_room = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ConfigurationError(
            f"QASID_SPOOL_DIR: the spool cannot be used: {where}: {error.strerror}. This process must be able to write "
            f"there, and the disk must have room."
            f"{' `qasid spool replay` needs none to bring in what lies there.' if no_room else ''}"
        ) from error


def hanging(folder: Path) -> ConfigurationError:
    """What to say of a disk that gives neither answer nor error."""
    return ConfigurationError(
        f"QASID_SPOOL_DIR: the disk of {folder} does not answer. Mend it, or name a folder on another one."
    )


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


def measure(folder: Path, apart: frozenset[str] = frozenset()) -> tuple[Census, dict[str, int]]:
    """All but the number of records, which is left 0, and each segment's size. Raises OSError."""
    total = corrupt = 0
    sizes: dict[str, int] = {}
    unreadable = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            set_aside = entry.name.endswith(CORRUPT)
            if born(entry.name.removesuffix(CORRUPT)) is None:
                continue
            try:
                size = entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:  # replayed meanwhile
                continue
            except OSError:
                unreadable.add(entry.name)
                size = 0
            total += size
            corrupt += set_aside
            if (size or entry.name in unreadable) and not set_aside:
                sizes[entry.name] = size
    census = Census(
        bytes=total,
        names=frozenset(sizes),
        corrupt=corrupt,
        born=oldest(sizes, apart),
        apart=apart,
        unreadable=frozenset(unreadable),
    )
    return census, sizes


def oldest(names: Collection[str], apart: Collection[str]) -> float | None:
    """When the oldest of these was begun, but for those apart, in seconds since 1970; None: there is none."""
    first = min((name for name in names if name not in apart), default=None)
    return None if first is None else born(first)


class _Counted(Struct):
    """A segment as far as it was counted: its size then, the place up to there, the records and foreign keys before it."""

    size: int = 0
    at: int = 0
    records: int = 0
    keys: frozenset[str] = frozenset()


class Counter:
    """Counts records, reading of each segment only what is new. Behind a place that is damaged or refused it counts none.

    `whole`: it sees whether the disk gives the records too, and not their headers alone.
    """

    def __init__(self, folder: Path, key_ids: Collection[str], left: Left, *, whole: bool) -> None:
        self._folder = folder
        self._key_ids = key_ids
        self._left = left
        self._whole = whole
        self._counted: dict[str, _Counted] = {}
        self._pauses = Pauses()

    def look(self) -> Census:
        """All that lies there now. Raises OSError: the folder cannot be read."""
        census, sizes = measure(self._folder)
        counted = {}
        for name, size in sizes.items():
            counted[name] = one = self._counted.get(name) or _Counted()
            if size != one.size and self._pauses.due(name):
                self._count(name, one, size)
        self._counted = counted
        self._pauses.keep(sizes)
        unreadable = census.unreadable | self._pauses.names | self._left.pauses.names
        foreign = frozenset(name for name, one in counted.items() if one.keys)
        apart = (unreadable | foreign | self._left.stuck) & census.names
        return structs.replace(
            census,
            records=sum(one.records for one in counted.values()),
            born=oldest(census.names, apart),
            apart=apart,
            unreadable=unreadable,
            missing_keys=frozenset[str]().union(*(one.keys for one in counted.values())),
        )

    def _count(self, name: str, one: _Counted, size: int) -> None:
        try:
            for head, behind in headers(self._folder / name, one.at, whole=self._whole):
                one.at, one.records = behind, one.records + 1
                if head.key_id not in self._key_ids:
                    one.keys |= {head.key_id}
        except FileNotFoundError:  # replayed meanwhile
            return
        except OSError:
            self._pauses.refused(name)
            return
        one.size = size
        self._pauses.given(name)


def make(folder: Path) -> None:
    """Make it unless it is there. Raises OSError."""
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError):  # a parent that we may not read: then its owner has made it, or sees to it
            sync_folder(folder.parent)


def _check_key(path: Path, vault: Vault) -> None:
    try:
        first = next((head for head, _ in headers(path)), None)
    except OSError:  # replayed meanwhile; or the disk refuses it, and the rest can be used all the same
        return
    if first and first.key_id not in vault.key_ids:
        raise ConfigurationError(
            f"QASID_SPOOL_DIR: {path} was sealed under key {first.key_id}, which is not in QASID_SECRET_KEY (there: "
            f"{', '.join(vault.key_ids)}). Put that key back, behind the first, until the spool is replayed. If it is "
            f"lost, so are the webhooks in that file: move it elsewhere."
        )
