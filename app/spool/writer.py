"""Writes records to this process's segment within the folder's bounds, and counts what lies there.

All of it blocks and runs in one thread, one call after the other. It never drops what is kept.
"""

import errno
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path

import structlog
from msgspec import structs

from app.alerts import alert
from app.errors import SpoolError, SpoolFailed, SpoolFull
from app.spool import folder as folders
from app.spool import frames
from app.spool.folder import Census
from app.spool.frames import Record
from app.spool.left import Left
from app.spool.segments import Segment
from app.vault import Vault

log = structlog.get_logger(__name__)

# A replay that is interrupted begins its segment anew: some thousand webhooks, two seconds of its pace.
SEGMENT_BYTES = 1024 * 1024
LEAST_ROOM = 1024 * 1024
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

Verdict = SpoolError | None


class Sight(IntEnum):
    """What is known of the folder: of two the greater one says more."""

    NONE = 0
    """The first look has not ended."""
    ANSWERS = 1
    """Nor has it now, but the disk has answered: what takes longer is counting."""
    NEVER = 2
    """It was looked at, and could not be counted yet."""
    LOST = 3
    """It could be counted, and cannot now. It is not made anew: that would be an empty spool."""
    COUNTED = 4
    """Writing failed, though."""
    TAKES = 5


class Writer:
    """`append` keeps records, `look` counts anew. `census` and `trouble` may be read from any thread."""

    def __init__(
        self,
        folder: Path,
        vault: Vault,
        left: Left,
        *,
        max_bytes: int,
        max_age: float,
        keeps: bool = True,
        segment_bytes: int = SEGMENT_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.census = Census()
        self.trouble: str | None = None
        """Why it takes nothing more; None: it does."""
        self._folder = folder
        self._vault = vault
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._own: Segment | None = None
        self._keeps = keeps
        self._left = left
        self._counter = folders.Counter(folder, vault.key_ids, left, whole=not keeps)
        # It stops a little below its bound, so that it is full to everybody and not only to the larger webhooks.
        self._full_at = max_bytes - min(LEAST_ROOM, max_bytes // 16)
        self._sight = Sight.NONE

    @property
    def looked(self) -> bool:
        """Whether it was looked at ever, with whatever end."""
        return self._sight >= Sight.NEVER

    @property
    def answers(self) -> bool:
        """Whether the disk has answered ever."""
        return self._sight >= Sight.ANSWERS

    @property
    def holds_anything(self) -> bool:
        """Whether anything may lie there that was not replayed, as far as this process has looked; it may if it cannot."""
        return self._may_hold(self.census.names)

    @property
    def awaits_replay(self) -> bool:
        """Likewise, but for segments of which a replay has had all that can be read."""
        return self._may_hold(self.census.names - self._left.stuck)

    def append(self, records: Sequence[Record]) -> list[Verdict]:
        """Keep records, in this order. Of each: None, it is on the disk; or why it may not be."""
        verdicts: list[Verdict] = []
        trouble: Verdict = None
        if self._sight < Sight.LOST:  # `look` tries that, once a second; not each webhook
            return [SpoolFailed(self.trouble or "the spool was not looked at yet")] * len(records)
        try:
            verdicts = self._append(records)
            trouble = next((verdict for verdict in verdicts if verdict), None)
        except SpoolFull as error:
            trouble = error
        except OSError as error:
            if self._own and not self._own.usable:
                self.seal()
            kind = SpoolFull if error.errno in _NO_ROOM else SpoolFailed
            trouble = kind(f"the spool's disk: {error.strerror}")
            trouble.__cause__ = error
            self._sight = min(self._sight, Sight.COUNTED)
        if trouble:  # that it is over is for `look` to tell, once a second at most
            self._tell(trouble)
        return verdicts or [trouble] * len(records)

    def look(self, *, probe: bool = False) -> None:
        """Count anew, and if the last writing failed, or to `probe`, see whether another would.

        The folder is made if this process has never seen it: one that goes away later is no empty spool.
        """
        sight = Sight.LOST if self._sight >= Sight.LOST else Sight.NEVER
        try:
            if sight < Sight.LOST:
                folders.make(self._folder)
                self._sight = max(self._sight, Sight.ANSWERS)
            self.census = self._counter.look()
            sight = Sight.COUNTED
            if probe or (
                self._keeps and self._sight < Sight.TAKES
            ):  # nobody may come to try: who hears it is full stays away
                folders.probe(self._folder)
            sight = Sight.TAKES
            bound = self._bound()
            self._tell(SpoolFull(bound) if bound else None)
        except OSError as error:
            self._tell(SpoolFailed(f"the spool's disk: {error.strerror}"), error)
        self._sight = sight

    def seal(self) -> None:
        """End this process's segment, so that it can be replayed; what comes next begins another."""
        own, self._own = self._own, None
        if own:
            own.close()

    def _append(self, records: Sequence[Record]) -> list[Verdict]:
        before = self.census
        census, sizes = folders.measure(self._folder, before.apart)
        self.census = structs.replace(
            census, records=before.records, unreadable=before.unreadable, missing_keys=before.missing_keys
        )
        if bound := self._bound():
            raise SpoolFull(bound)
        if self._own and self._own.size and self._own.path.name not in sizes:
            self.seal()  # somebody took the file away: what comes now must not go where nobody finds it
        if self._own is None or self._own.size >= self._segment_bytes:
            self.seal()
            self._own = Segment.begin(self._folder, self._clock())
        own = self._own
        room = self._max_bytes - self.census.bytes
        data = bytearray()
        verdicts: list[Verdict] = []
        number = own.records
        for record in records:
            frame = frames.seal(self._vault, own.path.name, number, record)
            if len(data) + len(frame) > room:
                full = self._full(self.census.bytes + len(data))
                verdicts.append(SpoolFull(f"{full}: {len(frame):,} more are too many"))
                continue
            data += frame
            number += 1
            verdicts.append(None)
        if data:
            kept = number - own.records
            own.append(bytes(data), kept)
            self.census = structs.replace(
                self.census,
                bytes=self.census.bytes + len(data),
                records=self.census.records + kept,
                names=self.census.names | {own.path.name},
                born=self.census.born if self.census.born is not None else self._clock(),
            )
        return verdicts

    def _may_hold(self, names: frozenset[str]) -> bool:
        own = self._own
        return self._sight < Sight.COUNTED or bool(names) or (own is not None and own.records > 0)

    def _bound(self) -> str | None:
        """Which bound is reached."""
        census = self.census
        if census.bytes >= self._full_at:
            return self._full(census.bytes)
        if census.born is not None and (age := self._clock() - census.born) > self._max_age:
            return f"the spool holds webhooks since {age:.0f} s, longer than {self._max_age:g} s"
        return None

    def _full(self, held: int) -> str:
        # With commas: app/redaction.py takes seven digits in a row for a phone number.
        return f"the spool holds {held:,} of {self._max_bytes:,} bytes"

    def _tell(self, trouble: SpoolError | None, cause: OSError | None = None) -> None:
        before, self.trouble = self.trouble, str(trouble) if trouble else None
        if trouble and before is None:
            alert(log.error, "spool_refuses", "the spool takes nothing more", reason=str(trouble), error=cause)
        elif before and trouble is None:
            log.info("the spool takes webhooks again")
