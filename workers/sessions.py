"""What a worker remembers of conversations, so that a turn reads no history: a cache bounded in bytes. It asks nobody.

What it holds is shown to the assistant and to nothing else. Dedupe, ownership, usage and pauses are never asked here.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from app import metrics
from app.store.histories import History, Said
from app.store.lanes import LaneId
from app.store.settlements import Settled
from app.store.turns import Opening, Turn

# Read longer ago, it is read again where the database can: whatever changes a history without telling the lane (a
# restore, a deletion by hand) is in answers no longer than that. And longer ago than `HARD`, nobody sees it (seconds).
SOFT = 60.0
HARD = 900.0
# What a session takes in memory besides its lines: its key of two ids, its numbers, its places in the table (bytes).
OVERHEAD = 600

# As bytes: what is counted is what is held, and the garbage collector has nothing to look through.
_encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
_decoder = msgspec.msgpack.Decoder(list[Said])


class Session(Struct, frozen=True, kw_only=True):
    """The last `history` messages of a conversation, as they stood at the lane's pair of numbers."""

    version: int
    done_seq: int
    history: int
    read_at: float
    """When the database was last asked for them: the oldest of them is known to stand since then at the least."""
    lines: bytes

    @property
    def said(self) -> list[Said]:
        """Its messages, oldest first."""
        return _decoder.decode(self.lines)

    @property
    def size(self) -> int:
        """What it takes in memory (bytes)."""
        return OVERHEAD + len(self.lines)

    def stands_at(self, version: int, done_seq: int, history: int) -> bool:
        """Whether this is what the database would bring for a turn that begins at this pair."""
        return (self.version, self.done_seq, self.history) == (version, done_seq, history)

    def reaches(self, version: int, done_seq: int, history: int) -> bool:
        """Likewise; or the turn that begins there is the one that it ends with, and only chunks are left to send."""
        return (self.version, self.history) == (version, history) and self.done_seq >= done_seq


def read(found: Opening | History, history: int, at: float) -> Session:
    """What was read at `at`, asked for with `history`: with a turn that nobody has settled yet, or ahead of any turn."""
    return Session(
        version=found.version,
        done_seq=found.done_seq,
        history=history,
        read_at=at,
        lines=_encoder.encode(found.said),
    )


def after(opening: Opening, history: int, read_at: float, turn: Turn, settled: Settled, body: str) -> Session | None:
    """What the next opening will bring, now that this turn is settled at the version that it was opened at.

    The newest of what was there, what was asked and what was answered are the newest of all: nothing else enters a history
    at one version. None where that cannot be told: a replayed message may have been entered once more behind this turn.
    """
    if any(asked.replayed for asked in opening.asked):
        return None
    lines = {said.id: said for said in opening.said}
    for asked in opening.asked:
        if not asked.blank:
            body_now = "" if asked.revoked else asked.body
            lines[asked.id] = Said(id=asked.id, mine=False, body=body_now, at=asked.sent_at, revoked=asked.revoked)
    if settled.answer_id and settled.at:
        lines[settled.answer_id] = Said(id=settled.answer_id, mine=True, body=body, at=settled.at, revoked=False)
    newest: Sequence[Said] = [lines[id] for id in sorted(lines)][-history:]
    return Session(
        version=opening.version,
        done_seq=turn.last_seq,
        history=history,
        read_at=read_at,
        lines=_encoder.encode(newest),
    )


class Sessions:
    """By lane, hence by tenant; the one used longest ago goes first. The owner of a lane alone asks for it: single flight."""

    def __init__(self, most_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: monotonic seconds."""
        self._most_bytes = most_bytes
        self._clock = clock
        self._sessions: OrderedDict[LaneId, Session] = OrderedDict()
        self.bytes = 0
        self.served_stale = 0
        """How many turns had their history from here though the database could not be asked whether it stands."""

    @property
    def room(self) -> int:
        """Bytes that are free."""
        return self._most_bytes - self.bytes

    def now(self) -> float:
        """By its clock (seconds)."""
        return self._clock()

    def age(self, session: Session) -> float:
        """How long ago it was read (seconds)."""
        return self._clock() - session.read_at

    def last(self, lane: LaneId) -> Session | None:
        """What is remembered of this lane, at whatever pair; None if nothing, or nothing young enough."""
        session = self._sessions.get(lane)
        if session is None:
            return None
        if self.age(session) > HARD:
            self._drop(lane)
            return None
        self._sessions.move_to_end(lane)
        return session

    def keep(self, lane: LaneId, session: Session) -> None:
        """Remember this of the lane, instead of what was; forget what is too old or does not fit beside it."""
        if lane in self._sessions:
            self._drop(lane)
        if session.size <= self._most_bytes:
            self._sessions[lane] = session
            self.bytes += session.size
        while self._sessions:
            oldest, unused = next(iter(self._sessions.items()))
            if self.bytes <= self._most_bytes and self.age(unused) <= HARD:
                break
            self._drop(oldest)
        metrics.session_bytes(self.bytes)

    def add(self, lane: LaneId, session: Session) -> bool:
        """Remember this as the one used longest ago, unless the lane is remembered; False: there is no room for it.

        Nothing is forgotten for it: what a turn has left here is known better than what was read ahead of any.
        """
        if lane in self._sessions:
            return True
        if self.bytes + session.size > self._most_bytes:
            return False
        self._sessions[lane] = session
        self._sessions.move_to_end(lane, last=False)
        self.bytes += session.size
        metrics.session_bytes(self.bytes)
        return True

    def _drop(self, lane: LaneId) -> None:
        self.bytes -= self._sessions.pop(lane).size
