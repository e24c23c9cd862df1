"""Opens claimed lanes with the history from memory where it stands there. It keeps no row and decides no answer."""

import msgspec
from msgspec import Struct

from app import metrics
from app.errors import DatabaseUnavailable
from app.store.lanes import Claim
from app.store.settlements import Settled
from app.store.turns import Open, Opening, Turn
from workers import sessions
from workers.commits import Commits
from workers.sessions import SOFT, Session, Sessions


class Opened(Struct, frozen=True, kw_only=True):
    """An opening whose turn may be worked on, and where its history comes from."""

    opening: Opening
    history: int
    read_at: float | None = None
    """When its history was read; None where it is not what the database would bring, or nobody knows."""
    stale_s: float | None = None
    """The age of a history (seconds) that the database could not be asked about."""


class Openings:
    """Reads the history only where the cache does not have it at the lane's pair.

    While the breaker takes no reads, the last that is remembered stands in for what cannot be read; what is not remembered
    is read all the same, since an opening is a write, and whoever left the lane would come back with one every second.
    """

    def __init__(self, commits: Commits, remembered: Sessions) -> None:
        self._commits = commits
        self._sessions = remembered

    async def open(self, wanted: Open) -> Opened:
        """See `Commits.open`.

        Raises:
            DatabaseUnavailable: not even without the history.
            msgspec.DecodeError: the rows cannot be read.
        """
        claim, history = wanted.claim, wanted.history
        if not history:
            return Opened(opening=await self._commits.open(wanted), history=0)
        held = self._sessions.last(claim.lane)
        spared = held is not None and (
            self._no_reads()
            or (held.reaches(claim.version, claim.done_seq, history) and self._sessions.age(held) <= SOFT)
        )
        began = self._sessions.now()
        opening, spared = await self._open(wanted, held, spared)
        moved = held and not held.stands_at(opening.version, opening.done_seq, history)
        if spared and moved and _to_answer(opening) and not self._no_reads():
            began = self._sessions.now()
            opening, spared = await self._open(wanted, held, spared=False)
        if not _to_answer(opening):
            return Opened(opening=opening, history=history)
        if spared and held:
            return self._from_memory(opening, history, held)
        metrics.session("miss")
        self._sessions.keep(claim.lane, sessions.read(opening, history, began))
        return Opened(opening=opening, history=history, read_at=began)

    def settled(self, claim: Claim, opened: Opened, turn: Turn, settled: Settled, body: str) -> None:
        """Remember what the next turn will begin with. The turn was settled at the version that it was opened at."""
        if opened.read_at is not None:
            opening, history = opened.opening, opened.history
            if session := sessions.after(opening, history, opened.read_at, turn, settled, body):
                self._sessions.keep(claim.lane, session)

    async def _open(self, wanted: Open, held: Session | None, spared: bool) -> tuple[Opening, bool]:
        """The opening, and whether it was made without the history."""
        if not spared:
            try:
                return await self._commits.open(wanted), False
            except DatabaseUnavailable:
                # While reads are let through this is no slowness: the lane is given back, and its next claim reads anew.
                if held is None or not self._no_reads():
                    raise
        return await self._commits.open(msgspec.structs.replace(wanted, history=0)), True

    def _from_memory(self, opening: Opening, history: int, held: Session) -> Opened:
        age = self._sessions.age(held)
        stands = held.stands_at(opening.version, opening.done_seq, history)
        stale = not stands or age > SOFT
        metrics.session("stale" if stale else "hit")
        self._sessions.served_stale += stale
        said = held.said[-history:]
        if not stands:  # it may know of them already, by another's replay or another's database
            asked = {message.id for message in opening.asked}
            said = [line for line in said if line.id not in asked]
        return Opened(
            opening=msgspec.structs.replace(opening, said=said),
            history=history,
            read_at=held.read_at if stands else None,
            stale_s=age if stale else None,
        )

    def _no_reads(self) -> bool:
        breaker = self._commits.pool.breaker
        return breaker is not None and not breaker.allows_reads


def _to_answer(opening: Opening) -> bool:
    """Whether a turn is to be answered: else nobody looks at the history, and it may know the answer already."""
    turn = opening.turn
    return turn is not None and not turn.settled and all(chunk.seq <= opening.done_seq for chunk in opening.chunks)
