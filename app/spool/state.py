"""How the spool stands, in numbers: for whoever looks, and for /metrics. It touches no disk."""

from typing import Self

from msgspec import Struct

from app import metrics
from app.spool.folder import Census


class State(Struct, frozen=True, kw_only=True):
    """How the spool stands, of all processes that share the folder: at most about a second old."""

    bytes: int
    records: int
    """Not those behind a damaged place."""
    segments: int
    corrupt: int
    """Files with damaged bytes that were set aside: they wait for a person."""
    oldest: float | None
    """Seconds since the oldest segment was begun that is not apart; None: there is none."""
    refuses: str | None
    """Why it takes nothing more; None: it takes."""
    unreadable: int = 0
    """Segments that the disk does not give whole."""
    apart: int = 0
    """Segments that cannot be replayed: unreadable ones, and those of a key that is missing. They count for no age."""
    missing_keys: tuple[str, ...] = ()
    """The ids of keys that are not in the vault, and that something lies there under."""

    @classmethod
    def of(cls, census: Census, *, now: float, refuses: str | None) -> Self:
        """What was counted, as it is at this time, in seconds since 1970."""
        return cls(
            bytes=census.bytes,
            records=census.records,
            segments=len(census.names),
            corrupt=census.corrupt,
            oldest=None if census.born is None else max(0.0, now - census.born),
            refuses=refuses,
            unreadable=len(census.unreadable),
            apart=len(census.apart),
            missing_keys=tuple(sorted(census.missing_keys)),
        )

    def show(self) -> None:
        """Show it at /metrics."""
        metrics.spool(
            bytes=self.bytes,
            records=self.records,
            oldest=self.oldest or 0.0,
            corrupt=self.corrupt,
            unreadable=self.unreadable,
            refuses=self.refuses is not None,
        )
