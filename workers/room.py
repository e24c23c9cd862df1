"""Room for pictures in this worker's memory: so many bytes at once, of which a tenant has a share. It knows no file.

It is taken for as much as may come, before any of it does; what did not come is given back.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

MOST = 128 * 1024 * 1024
MOST_OF_A_TENANT = 32 * 1024 * 1024


class Held:
    """What one turn holds. It gives all of it back where it is let go of (`Room.held`)."""

    def __init__(self, room: "Room", tenant: UUID) -> None:
        self._room = room
        self.tenant = tenant
        self.size = 0

    async def take(self, size: int) -> None:
        """So many bytes, as soon as there is room for them: the caller's deadline bounds the wait."""
        await self._room.take(self, size)

    def keep(self, size: int) -> None:
        """So many of them: the others are free."""
        self._room.give(self, self.size - size)


class Room:
    """Who asks for more than is free waits, in order of coming; whom its tenant's own share keeps out holds up nobody else's."""

    def __init__(self, most: int = MOST, most_of_a_tenant: int = MOST_OF_A_TENANT) -> None:
        """Bytes. Nothing larger than `most_of_a_tenant` may be asked for."""
        self._free = most
        self._share = most_of_a_tenant
        self._taken: Counter[UUID] = Counter()
        self._waiting: dict[asyncio.Future[None], tuple[Held, int]] = {}

    @contextmanager
    def held(self, tenant: UUID) -> Iterator[Held]:
        """Nothing yet; all that is taken inside is given back behind it."""
        held = Held(self, tenant)
        try:
            yield held
        finally:
            held.keep(0)

    async def take(self, held: Held, size: int) -> None:
        """See `Held.take`."""
        assert size <= self._share
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = held, size
        self._admit()
        try:
            await turn
        finally:
            if self._waiting.pop(turn, None):  # it left before its turn, and may have stood in others' way
                self._admit()

    def give(self, held: Held, size: int) -> None:
        """See `Held.keep`."""
        self._move(held, -size)
        self._admit()

    def _admit(self) -> None:
        """Let in whoever fits, in order of coming."""
        full: set[UUID] = set()
        for turn, (held, size) in list(self._waiting.items()):
            if held.tenant in full or turn.done():
                continue
            if self._taken[held.tenant] + size > self._share:
                full.add(held.tenant)
                continue
            if size > self._free:
                return
            del self._waiting[turn]
            self._move(held, size)
            turn.set_result(None)

    def _move(self, held: Held, size: int) -> None:
        held.size += size
        self._free -= size
        self._taken[held.tenant] += size
        if not self._taken[held.tenant]:
            del self._taken[held.tenant]
