"""A small disk for PostgreSQL that can be filled: a tmpfs of limited size, which root alone can mount.

It ends with `remove`; what a killed run left is found and removed when the next one mounts its own.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from app import embedded

# Where PostgreSQL's own user gets to, and files of this kind are swept by age should all else fail.
PARENT = Path("/var/tmp")
PREFIX = "qasid-chaos-"
# All at once; less and less as the room ends (bytes).
PIECES = (16 * 1024 * 1024, 1024 * 1024, 64 * 1024, 4096)
BUSY_SECONDS = 5.0


class Disk:
    """`folder` is empty, of this run alone, and takes so many bytes. `mounted` makes one."""

    def __init__(self, base: Path, lock: int) -> None:
        self._base, self._lock = base, lock
        self.folder = base / "disk"
        self._filler = self.folder / "filler"

    @classmethod
    def mounted(cls, size: int) -> Self | None:
        """One of so many bytes; None: we may not mount here. It blocks, as do the others."""
        if os.geteuid() != 0:
            return None
        _remove_left()
        base = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PARENT))
        disk = cls(base, _locked(base))
        base.chmod(0o711)
        disk.folder.mkdir()
        options = f"size={size},mode=0711"
        command = ["mount", "-t", "tmpfs", "-o", options, PREFIX.rstrip("-"), str(disk.folder)]
        if not _done(command):
            disk.remove()
            return None
        return disk

    def fill(self) -> None:
        """Take all that is left. Again, whatever has become free since."""
        handle = os.open(self._filler, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            end = os.fstat(handle).st_size
            for piece in PIECES:
                try:
                    while True:
                        os.posix_fallocate(handle, end, piece)
                        end += piece
                except OSError:  # ENOSPC: smaller, then
                    os.ftruncate(handle, end)
        finally:
            os.close(handle)

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink(missing_ok=True)

    def remove(self) -> None:
        """Whatever lies there goes; nothing may run there any more."""
        _unmount(self.folder)
        shutil.rmtree(self._base, ignore_errors=True)
        os.close(self._lock)


def _remove_left() -> None:
    """Disks whose runs have ended without removing them: nobody holds their locks."""
    for base in PARENT.glob(f"{PREFIX}*"):
        try:
            lock = _locked(base)
        except OSError:  # it is of a run that lives, or gone by now
            continue
        left = Disk(base, lock)
        embedded.destroy(left.folder)
        left.remove()


def _locked(base: Path) -> int:
    """Raises OSError: somebody has it."""
    handle = os.open(base / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _unmount(folder: Path) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    while os.path.ismount(folder):
        gone = _done(["umount", str(folder)])
        if not gone and time.monotonic() > deadline:  # a process of PostgreSQL's is still about to end
            _done(["umount", "--lazy", str(folder)])
            return
        time.sleep(0 if gone else 0.1)


def _done(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:  # no such program
        return False
