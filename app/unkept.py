"""What was paid for and the database did not take: at hand in this process until it does, bounded in bytes. It asks nobody."""

from collections import OrderedDict
from typing import Generic, TypeVar

Key = TypeVar("Key")

MOST_BYTES = 32 * 1024 * 1024
# What an entry takes in memory besides what it holds: its key, its place in the table (bytes).
OVERHEAD = 300


class Unkept(Generic[Key]):
    """By key. Beyond `most_bytes` what was held first is let go of: it is paid for again."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[Key, bytes] = OrderedDict()
        self.bytes = 0

    def get(self, key: Key) -> bytes | None:
        """What is held under this key."""
        return self._held.get(key)

    def all(self) -> list[tuple[Key, bytes]]:
        """All that is held, the oldest first."""
        return list(self._held.items())

    def hold(self, key: Key, what: bytes) -> None:
        """Hold this, instead of what was held under this key."""
        self.drop(key)
        self._held[key] = what
        self.bytes += OVERHEAD + len(what)
        while self.bytes > self._most_bytes:
            self.drop(next(iter(self._held)))

    def drop(self, key: Key) -> None:
        """The database has it, or nobody wants it any more."""
        if (what := self._held.pop(key, None)) is not None:
            self.bytes -= OVERHEAD + len(what)
