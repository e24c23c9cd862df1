"""Reads one segment for replay: finds every record that is whole, what is damaged or missing, and what follows it.

It holds the segment's lock, and deletes it when it is told to. All of it blocks: threads call it, not the loop.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from app.spool import frames
from app.spool.frames import HEADER_BYTES, MAGIC, Header, Record
from app.spool.segments import CORRUPT, lock, sync_folder
from app.vault import Vault

# Bounds of one piece that a reader hands over, and of what it searches at a time.
PIECE_FINDINGS, PIECE_BYTES = 64, 1024 * 1024
SEARCH_BYTES = 1024 * 1024


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
    """So many records are not there, and nothing in their place."""

    records: int


class Torn(NamedTuple):
    """A writer was cut short here: nobody was told that this is kept."""

    size: int


Flaw = Foreign | Damaged | Missing | Torn
Finding = Sound | Flaw


class Reader:
    """A segment that is being replayed, by one process at a time. `claim` it first, `close` it last, whatever happens.

    All its methods may raise OSError.
    """

    def __init__(self, path: Path, vault: Vault) -> None:
        self.path = path
        self._vault = vault
        self._handle = -1
        self._size = 0
        self._found = self._find()

    def claim(self) -> bool:
        """Lock it. False: its writer lives, somebody else replays it, or it is gone."""
        try:
            self._handle = os.open(self.path, os.O_RDWR)
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
            os.close(handle)

    def _find(self) -> Iterator[Finding]:
        at = expected = 0
        damaged = False
        while at < self._size:
            if (frame := self._frame(at)) and frame[0].number >= expected:
                head, finding = frame
                if head.number > expected and not damaged:
                    yield Missing(head.number - expected)
                yield finding
                expected, at, damaged = head.number + 1, at + head.frame_bytes, False
                continue
            end = self._next(at + 1)
            raw = os.pread(self._handle, end - at, at)
            yield Torn(len(raw)) if end == self._size and frames.is_torn(raw) else Damaged(raw)
            at, damaged = end, True

    def _frame(self, at: int) -> tuple[Header, Sound | Foreign] | None:
        head = frames.header(os.pread(self._handle, HEADER_BYTES, at))
        if head is None or at + head.frame_bytes > self._size:
            return None
        if head.key_id not in self._vault.key_ids:
            return head, Foreign(head.key_id)
        sealed = os.pread(self._handle, head.sealed_bytes, at + HEADER_BYTES)
        record = frames.unseal(self._vault, self.path.name, head, sealed)
        return None if record is None else (head, Sound(record))

    def _next(self, start: int) -> int:
        """Where the next whole frame begins, or the end of the file."""
        while start < self._size:
            window = os.pread(self._handle, SEARCH_BYTES, start)
            at = window.find(MAGIC)
            while at >= 0:
                if self._frame(start + at):
                    return start + at
                at = window.find(MAGIC, at + 1)
            if len(window) < SEARCH_BYTES:
                break
            start += SEARCH_BYTES - len(MAGIC) + 1
        return self._size
