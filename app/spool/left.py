"""Segments that stay: what a person was told of them, when the disk is asked for them again, and which are stuck.

It reads no file. The loop changes it; any thread may read what it holds.
"""

from collections.abc import Collection

import structlog

from app.alerts import alert
from app.spool.pauses import Pauses

log = structlog.get_logger(__name__)


class Left:
    """By the names of the segments, for as long as they lie there."""

    def __init__(self) -> None:
        self.pauses = Pauses()
        """Those of which the disk refused something when they were replayed last."""
        self.stuck: frozenset[str] = frozenset()
        """Those of which all that can be read was taken, and a person told that the rest cannot be."""
        self._told: set[tuple[str, str]] = set()

    def is_new(self, name: str, reason: str) -> bool:
        """Whether nobody was told this of that segment before: now somebody is."""
        is_new = (name, reason) not in self._told
        self._told.add((name, reason))
        return is_new

    def stays(self, name: str, reason: str, error: BaseException | None = None) -> None:
        """Call somebody, once: this segment is not done with."""
        if self.is_new(name, reason):
            alert(log.error, "spool_left", "a segment of the spool stays", file=name, reason=reason, error=error)

    def damaged(self, name: str, reason: str) -> None:
        """Call somebody: webhooks that were answered 200 are lost there."""
        alert(log.error, "spool_damaged", "a segment of the spool is damaged", file=name, reason=reason)

    def keep(self, names: Collection[str]) -> None:
        """Forget all segments but these."""
        self.pauses.keep(names)
        self.stuck &= frozenset(names)
        self._told = {told for told in self._told if told[0] in names}
