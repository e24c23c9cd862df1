"""Lock files of the embedded PostgreSQL, by flock: the kernel frees them however their holder ends.

Descriptors are not inheritable (Python's default), so a child holds a lock only where it is handed one on purpose.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import ConfigurationError

POLL_SECONDS = 0.01  # flock has no deadline of its own


def opened(path: Path) -> int:
    """Open a lock file, made if need be; only its owner may lock it."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def try_take(path: Path, how: int) -> int | None:
    """Lock `path` and return its descriptor, or None if others hold it. `how` is LOCK_SH or LOCK_EX."""
    descriptor = opened(path)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    if os.fstat(descriptor).st_nlink == 0:  # deleted between open and flock (see destroy): no lock that others see
        os.close(descriptor)
        return None
    return descriptor


def take(path: Path, how: int, *, seconds: float) -> int:
    """Lock `path`, waiting at most `seconds`. Raises ConfigurationError after that."""
    deadline = time.monotonic() + seconds
    while (descriptor := try_take(path, how)) is None:
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"Another process has held {path} for {seconds:.0f} s: find it with `fuser {path}`."
            )
        time.sleep(POLL_SECONDS)
    return descriptor


@contextmanager
def held(path: Path, how: int, *, seconds: float) -> Iterator[int]:
    """Hold the lock for the length of the block, or of a child that is handed its descriptor."""
    descriptor = take(path, how, seconds=seconds)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
