"""Reads one segment for replay: finds every record that is whole, what is damaged or missing, and what follows it.

Where the disk refuses, it goes on behind that: the records there are neither damaged nor lost, but not to be had now.

It holds the segment's lock, and deletes it when it is told to. All of it blocks: threads call it, not the loop.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from app.spool import frames
from app.spool.frames import HEADER_BYTES, MAGIC, Header, Record
from app.spool.segments import CORRUPT, lock, read_at, sync_folder
from app.vault import Vault

# Bounds of one piece that a reader hands over, and of what it searches at a time.
PIECE_FINDINGS, PIECE_BYTES = 64, 1024 * 1024
SEARCH_BYTES = 1024 * 1024
# A disk gives or refuses so much at once. One that refused so many of a segment's is not asked for what comes behind them:
# each may take it seconds.
BLOCK_BYTES, MOST_REFUSALS = 4096, 64


class Sound(NamedTuple):
    """A record as it was kept."""

    record: Record


class Foreign(NamedTuple):
    """A record under a key that the vault does not have."""

    key_id: str


class Damaged(NamedTuple):
    """Bytes that are no record of this place."""

    raw: bytes


class Missing(NamedTuple):
    """So many records, from this number on, are not there, and nothing in their place."""

    records: int
    first: int


class Torn(NamedTuple):
    """A writer was cut short here: nobody was told that this is kept."""

    size: int


class Refused(NamedTuple):
    """The disk does not give these bytes: there may be records among them."""

    size: int
    error: OSError


Flaw = Foreign | Damaged | Missing | Torn | Refused
Finding = Sound | Flaw


class Reader:
    """A segment that is being replayed, by one process at a time. `claim` it first, `close` it last, whatever happens.

    `claim`, `set_aside` and `delete` may raise OSError. The disk is asked for no block again that it has refused.
    """

    def __init__(self, path: Path, vault: Vault) -> None:
        self.path = path
        self._vault = vault
        self._handle = -1
        self._size = 0
        self._refused: dict[int, OSError] = {}  # by block
        self._error: OSError | None = None  # the last refusal between two records
        self.gave_up: int | None = None
        """The place from which on the disk was not asked, since it had refused so much before."""
        self._found = self._find()

    def claim(self) -> bool:
        """Lock it. False: its writer lives, somebody else replays it, or it is gone."""
        try:
            self._handle = self._opened()
        except FileNotFoundError:
            return False
        if not lock(self._handle):
            return False
        self._size = os.fstat(self._handle).st_size
        return True

    def read(self) -> list[Finding]:
        """What comes next in the file, a piece at a time; nothing: that was all."""
        piece: list[Finding] = []
        weight = 0
        for finding in self._found:
            piece.append(finding)
            weight += len(finding.record.body) if isinstance(finding, Sound) else 0
            if len(piece) >= PIECE_FINDINGS or weight >= PIECE_BYTES:
                break
        return piece

    def set_aside(self, raw: bytes) -> bool:
        """Keep damaged bytes beside the segment, for a person. Whether they were not there yet."""
        path = self.path.with_name(self.path.name + CORRUPT)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b") as file:
            if raw in file.read():
                return False
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
        return True

    def delete(self) -> None:
        """Every record of it is safe elsewhere."""
        self.path.unlink()
        sync_folder(self.path.parent)

    def close(self) -> None:
        """Give it up: others may have it."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            with suppress(OSError):  # nothing was written through it
                os.close(handle)

    def _opened(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR)  # to lock a file on NFS takes the right to write it
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            return os.open(self.path, os.O_RDONLY)  # what a broken disk's file system has become: it can be read

    def _find(self) -> Iterator[Finding]:
        at = expected = 0
        damaged = False
        while at < self._size:
            if (frame := self._frame(at)) and frame[0].number >= expected:
                head, finding = frame
                if head.number > expected and not damaged:
                    yield Missing(head.number - expected, expected)
                yield finding
                expected, at, damaged = head.number + 1, at + head.frame_bytes, False
                continue
            end = self._next(at + 1)
            self._error = None
            raw = self._pread(end - at, at)
            if self._error:  # not damaged, as far as we know: nothing of it is set aside
                yield Refused(end - at, self._error)
            else:
                yield Torn(len(raw)) if end == self._size and frames.is_torn(raw) else Damaged(raw)
            at, damaged = end, True
            self._error = None

    def _frame(self, at: int) -> tuple[Header, Sound | Foreign | Refused] | None:
        head = frames.header(self._pread(HEADER_BYTES, at))
        if head is None or at + head.frame_bytes > self._size:
            return None
        if head.key_id not in self._vault.key_ids:
            return head, Foreign(head.key_id)
        before, self._error = self._error, None
        sealed = self._pread(head.sealed_bytes, at + HEADER_BYTES)
        error, self._error = self._error, before
        if error:
            return head, Refused(head.frame_bytes, error)
        record = frames.unseal(self._vault, self.path.name, head, sealed)
        return None if record is None else (head, Sound(record))

    def _next(self, start: int) -> int:
        """Where the next whole frame begins, or the end of the file."""
        while start < self._size and not self._is_behind(start):
            window = self._pread(SEARCH_BYTES, start)
            at = window.find(MAGIC)
            while at >= 0:
                if self._frame(start + at):
                    return start + at
                at = window.find(MAGIC, at + 1)
            end = start + len(window)
            if len(window) == SEARCH_BYTES:  # what begins at its end is searched with the next
                start = end - len(MAGIC) + 1
            else:  # the file's end, or a block that the disk refuses
                start = (end // BLOCK_BYTES + 1) * BLOCK_BYTES
        return self._size

    def _is_behind(self, at: int) -> bool:
        return self.gave_up is not None and at >= self.gave_up

    def _pread(self, size: int, at: int) -> bytes:
        """These bytes, up to the end of the file or the first block that the disk refuses, which is noted."""
        data = bytearray()
        end = min(at + size, self._size)
        while (place := at + len(data)) < end:
            block, within = divmod(place, BLOCK_BYTES)
            if self._is_behind(place) or block in self._refused:
                self._error = self._refused.get(block) or next(reversed(self._refused.values()))
                break
            try:
                piece = read_at(self._handle, min(end - place, BLOCK_BYTES - within), place)
            except OSError as error:
                self._refused[block] = self._error = error
                behind = (block + 1) * BLOCK_BYTES
                if len(self._refused) >= MOST_REFUSALS and behind < self._size:
                    self.gave_up = behind
                break
            if not piece:
                break
            data += piece
        return bytes(data)
