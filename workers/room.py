"""Room in this worker, for bytes or for places: so much at once, of which a tenant has a share. What it is for it does not know.

Whoever finds none waits. The live ones go first, but for a share of the others; each in order of coming. Whom its tenant's own
share keeps out holds up nobody else's.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from uuid import UUID

from msgspec import Struct

from app.errors import QasidError
from workers.backlog import Share

# It is waited for at least so long (seconds), however little time an answer has: who is given back costs a claim.
PATIENCE = 5.0


class Patience(Struct, frozen=True, kw_only=True):
    """From when and until when (monotonic) one waits, for one thing or for several after each other."""

    began: float
    until: float

    @classmethod
    def of(cls, seconds: float) -> "Patience":
        """From now on for so many seconds, and for `PATIENCE` at least."""
        began = time.monotonic()
        return cls(began=began, until=began + max(seconds, PATIENCE))


class NoPlace(QasidError):
    """There was none for as long as one waited. `in_vain`: though somebody of the tenant was at what they had one for all the
    while, nobody was served.
    """

    def __init__(self, seconds: float, *, in_vain: bool) -> None:
        meanwhile = ", and nobody was served meanwhile: whoever is asked is away, or hangs" if in_vain else ""
        super().__init__(f"no place within {seconds:.3g} s{meanwhile}")
        self.in_vain = in_vain


class Held:
    """What one turn holds. It gives all of it back where it is let go of (`Room.held`)."""

    def __init__(self, room: "Room", tenant: UUID, *, live: bool) -> None:
        self._room = room
        self.tenant = tenant
        self.live = live
        self.size = 0

    async def take(self, size: int = 1, *, patience: Patience | None = None) -> None:
        """So much, for what may come, as soon as there is room for it. `patience`: None waits without end.

        Raises:
            NoPlace: there was none in all that time.
        """
        await self._room.take(self, size, patience)

    def begun(self) -> None:
        """What it was taken for has begun: nothing else is waited for any more, here or in another room."""
        self._room.begun(self)

    def keep(self, size: int) -> None:
        """So much of it: the rest is free."""
        self._room.give(self, self.size - size)

    def served(self) -> None:
        """What it was taken for has come about: who waits for as much does not wait in vain."""
        self._room.served(self.tenant)


class _Turn(Struct, frozen=True, kw_only=True):
    """Somebody who waits."""

    held: Held
    size: int
    number: int
    let_in: asyncio.Future[None]


# Those who wait, by tenant, by their numbers.
_Line = dict[UUID, dict[int, _Turn]]


class Room:
    """See the file's head. Who asks for more than is free is not passed by those behind them who ask for less."""

    def __init__(self, most: int, most_of_a_tenant: int | None = None) -> None:
        """Bytes, or places. Nothing larger than `most_of_a_tenant` may be asked for; None: one may have all."""
        self._free = most
        self._share_of_a_tenant = most if most_of_a_tenant is None else most_of_a_tenant
        self._taken: Counter[UUID] = Counter()
        self._begun: dict[Held, float] = {}  # monotonic, like the next
        self._served_at: dict[UUID, float] = {}
        self._numbers = count()
        self._live: _Line = {}
        self._behind: _Line = {}
        self._share = Share()
        self._behind_next: bool | None = None  # once both wait; it stands until that one has gone in

    @property
    def full(self) -> bool:
        """Whether whoever comes now has to wait."""
        return self._free <= 0

    @contextmanager
    def held(self, tenant: UUID, *, live: bool) -> Iterator[Held]:
        """Nothing yet; all that is taken inside is given back behind it."""
        held = Held(self, tenant, live=live)
        try:
            yield held
        finally:
            self._begun.pop(held, None)
            held.keep(0)

    async def take(self, held: Held, size: int, patience: Patience | None) -> None:
        """See `Held.take`."""
        assert size <= self._share_of_a_tenant
        at_it = patience is not None and self._at_it(held.tenant, patience.began)
        let_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        turn = _Turn(held=held, size=size, number=next(self._numbers), let_in=let_in)
        self._line(turn).setdefault(held.tenant, {})[turn.number] = turn
        self._admit()
        try:
            async with asyncio.timeout(None if patience is None else patience.until - time.monotonic()):
                await let_in
        except (TimeoutError, asyncio.CancelledError) as error:
            if let_in.cancelled():
                self._leave(turn)
                self._admit()  # it may have stood in others' way
            else:  # it was let in just then
                self.give(held, size)
            if patience is None or not isinstance(error, TimeoutError):
                raise
            own = held.tenant in self._taken  # else it is others who keep it out
            unserved = self._served_at.get(held.tenant, float("-inf")) < patience.began
            raise NoPlace(patience.until - patience.began, in_vain=own and at_it and unserved) from None

    def give(self, held: Held, size: int) -> None:
        """See `Held.keep`."""
        self._move(held, -size)
        self._admit()

    def begun(self, held: Held) -> None:
        """See `Held.begun`."""
        self._begun.setdefault(held, time.monotonic())

    def served(self, tenant: UUID) -> None:
        """See `Held.served`."""
        self._served_at[tenant] = time.monotonic()

    def _at_it(self, tenant: UUID, since: float) -> bool:
        """Whether somebody of the tenant has been at what they came for since then."""
        return any(held.tenant == tenant and begun <= since for held, begun in self._begun.items())

    def _admit(self) -> None:
        """Let in whoever fits, in their order."""
        while self._free > 0 and (turn := self._next()) is not None and turn.size <= self._free:
            if turn.held.live is not self._behind_next:
                self._behind_next = None
            self._leave(turn)
            self._move(turn.held, turn.size)
            turn.let_in.set_result(None)

    def _next(self) -> _Turn | None:
        live, behind = self._first(self._live), self._first(self._behind)
        if live is None or behind is None:
            return live or behind
        if self._behind_next is None:
            self._behind_next = self._share.of(1) > 0
        return behind if self._behind_next else live

    def _first(self, line: _Line) -> _Turn | None:
        """Whoever came first, of those whose tenant's share lets them in."""
        firsts: list[_Turn] = []
        for turns in list(line.values()):
            while turns and (first := next(iter(turns.values()))).let_in.done():  # cancelled, and has not run since
                self._leave(first)
            if turns and self._may(first):
                firsts.append(first)
        return min(firsts, key=lambda turn: turn.number, default=None)

    def _may(self, turn: _Turn) -> bool:
        return self._taken[turn.held.tenant] + turn.size <= self._share_of_a_tenant

    def _line(self, turn: _Turn) -> _Line:
        return self._live if turn.held.live else self._behind

    def _leave(self, turn: _Turn) -> None:
        line = self._line(turn)
        turns = line.get(turn.held.tenant, {})
        turns.pop(turn.number, None)
        if not turns:
            line.pop(turn.held.tenant, None)

    def _move(self, held: Held, size: int) -> None:
        held.size += size
        self._free -= size
        self._taken[held.tenant] += size
        if not self._taken[held.tenant]:
            del self._taken[held.tenant]
