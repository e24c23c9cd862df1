"""The keeper: waits until no process uses the embedded PostgreSQL any more, stops it and ends. It never starts one.

Run as `python -m app.embedded.keeper <pg> <data> <descriptor>`: the descriptor is keeper.lock, open and locked by who
started us, and the lock lasts as long as we do.
"""

import fcntl
import os
import sys
from pathlib import Path

from app.embedded import locks, postmaster


def main() -> None:
    """Become nobody's child, then wait. The first process returns at once: what it could import, the second can run."""
    pg, data, keeper = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    users = locks.opened(pg / "users.lock")
    if os.fork():
        return
    os.ftruncate(keeper, 0)
    os.pwrite(keeper, f"{os.getpid()}\n".encode(), 0)  # for people who look
    fcntl.flock(users, fcntl.LOCK_EX)  # hours, as a rule
    try:
        postmaster.stop(data)
    finally:
        # In this order: whoever waits for users.lock looks next whether keeper.lock is free, to start the next keeper.
        os.close(keeper)
        os.close(users)


if __name__ == "__main__":
    main()
