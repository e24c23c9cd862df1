"""When to ask the disk again for what it did not give: seldom enough that a bad disk holds up nothing else."""

import time
from collections.abc import Callable, Collection

# Seconds until a file is tried again, twice as many after each failure, and the most.
FIRST, MOST = 5.0, 300.0


class Pauses:
    """The files that the disk refused, by name. It keeps no time of its own and touches no disk."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, tuple[float, float]] = {}  # by name: not before, and the pause after that

    @property
    def names(self) -> frozenset[str]:
        """All that were refused when they were tried last."""
        return frozenset(self._until)

    def due(self, name: str) -> bool:
        """Whether this file may be tried now."""
        return name not in self._until or self._clock() >= self._until[name][0]

    def refused(self, name: str) -> None:
        """The disk refused it just now."""
        _, pause = self._until.get(name, (0.0, FIRST))
        self._until[name] = (self._clock() + pause, min(2 * pause, MOST))

    def given(self, name: str) -> None:
        """The disk gave all of it."""
        self._until.pop(name, None)

    def keep(self, names: Collection[str]) -> None:
        """Forget all files but these."""
        for gone in self._until.keys() - names:
            del self._until[gone]
