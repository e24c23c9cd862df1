"""One segment, a file of frames: its name, its writer, and the lock (flock) that shows which process has it.

Writing stops for good at a failed fsync: what the kernel says of that file afterwards means nothing. All of it blocks:
threads call it, not the loop.
"""

import fcntl
import functools
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from app.spool import frames
from app.spool.frames import HEADER_BYTES, Header

# A name sorts by the time at which its segment was begun. Dots keep digits apart: app/redaction.py takes seven in a row
# for a phone number, and operators need the name.
_NAME = re.compile(r"(\d{4}\.\d\d\.\d\d\.\d{6}\.\d{6})\.[0-9a-f]{6}\.spool")
_STAMP = "%Y.%m.%d.%H%M%S.%f"
CORRUPT = ".corrupt"


@functools.lru_cache(maxsize=4096)
def born(name: str) -> float | None:
    """When the segment of this name was begun, in seconds since 1970; None: that is no segment's name."""
    if (match := _NAME.fullmatch(name)) is None:
        return None
    try:
        return datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(handle: int) -> bool:
    """Whether the file is ours now, and still there: whoever had it before may have deleted it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(handle).st_nlink > 0


class Segment:
    """A segment that is being written, by the process that began it alone."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.size = 0
        self.records = 0
        self.usable = True
        self._handle = handle

    @classmethod
    def begin(cls, folder: Path, now: float) -> Self:
        """A new one, on the disk by its name. Raises OSError."""
        while True:
            stamp = datetime.fromtimestamp(now, UTC).strftime(_STAMP)
            path = folder / f"{stamp}.{secrets.token_hex(3)}.spool"
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            segment = cls(path, handle)
            try:
                if lock(handle):  # else somebody who replays was quicker, and will delete it as empty
                    sync_folder(folder)
                    return segment
            except BaseException:
                segment.close()
                raise
            os.close(handle)

    def append(self, data: bytes, records: int) -> None:
        """Write frames and return once they are on the disk.

        Raises:
            OSError: they may be there or not. What was there before is whole; if not `usable`, write no more to it.
        """
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except OSError:
            self._cut_back()
            raise
        try:
            os.fsync(self._handle)
        except OSError:
            # The kernel may call the pages clean now, so that another fsync would succeed without them.
            self._cut_back()
            self.usable = False
            raise
        self.size += len(data)
        self.records += records

    def close(self) -> None:
        """Give it up; an empty one leaves nothing behind. Its lock is free afterwards."""
        with suppress(OSError):
            if self.size == 0:
                self._cut_back()
                if os.fstat(self._handle).st_size == 0:
                    self.path.unlink(missing_ok=True)
        with suppress(OSError):
            os.close(self._handle)

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._handle, self.size)
        except OSError:
            self.usable = False


def read_at(handle: int, size: int, at: int) -> bytes:
    """So many bytes, fewer only where the file ends. Raises OSError.

    The kernel gives what comes before a bad block as if it were all there is, and an error only to whoever asks on.
    """
    data = os.pread(handle, size, at)
    while data and len(data) < size:
        if not (more := os.pread(handle, size - len(data), at + len(data))):
            break
        data += more
    return data


def headers(path: Path, at: int = 0, *, whole: bool = False) -> Iterator[tuple[Header, int]]:
    """The headers from this place on, each with the place of the next, up to the first that is torn or damaged.

    What follows a header is read if `whole`: for OSError, if the disk refuses it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(handle).st_size
        while (head := frames.header(read_at(handle, HEADER_BYTES, at))) and at + head.frame_bytes <= size:
            if whole:
                read_at(handle, head.sealed_bytes, at + HEADER_BYTES)
            at += head.frame_bytes
            yield head, at
    finally:
        os.close(handle)
