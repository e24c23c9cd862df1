"""Room for pictures: never more than there is, a share for each tenant, in order of coming. Without files."""

import asyncio
from contextlib import ExitStack
from uuid import UUID

import pytest

from workers.room import Held, Room

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = (UUID(int=n) for n in (1, 2, 3))


class Hand:
    """Asks for room, and says what it got."""

    def __init__(self, room: Room, stack: ExitStack) -> None:
        self._room, self._stack = room, stack

    async def ask(self, tenant: UUID, size: int) -> tuple[Held, asyncio.Task[None]]:
        held = self._stack.enter_context(self._room.held(tenant))
        task = asyncio.create_task(held.take(size))
        await settled()
        return held, task


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_fits_is_had_at_once_and_the_rest_in_order() -> None:
    """A large one that waits is not passed for ever by small ones that come after it."""
    with ExitStack() as stack:
        hand = Hand(Room(10, 10), stack)
        first, _ = await hand.ask(ONE, 8)
        large, _ = await hand.ask(TWO, 5)
        small, _ = await hand.ask(THREE, 1)
        assert (first.size, large.size, small.size) == (8, 0, 0)
        first.keep(4)
        await settled()
        assert (first.size, large.size, small.size) == (4, 5, 1)


async def test_a_tenants_share_holds_up_that_tenant_alone() -> None:
    """Its next waits, in its own order; another's goes in before it."""
    with ExitStack() as stack:
        hand = Hand(Room(10, 4), stack)
        first, _ = await hand.ask(ONE, 3)
        second, _ = await hand.ask(ONE, 3)
        third, _ = await hand.ask(ONE, 1)
        other, _ = await hand.ask(TWO, 4)
        assert [each.size for each in (first, second, third, other)] == [3, 0, 0, 4]
        first.keep(0)
        await settled()
        assert [each.size for each in (second, third)] == [3, 1]


async def test_who_leaves_before_their_turn_holds_up_nobody() -> None:
    """Given up at a deadline: whoever stood behind goes in. So it is with one who is let in at that very instant."""
    with ExitStack() as stack:
        hand = Hand(Room(4, 4), stack)
        first, _ = await hand.ask(ONE, 3)
        _, leaving = await hand.ask(TWO, 4)
        behind, _ = await hand.ask(THREE, 1)
        assert behind.size == 0
        leaving.cancel()
        await settled()
        assert behind.size == 1
    with ExitStack() as stack:
        room = Room(4, 4)
        first, _ = await Hand(room, stack).ask(ONE, 4)
        with room.held(TWO) as late:
            taking = asyncio.create_task(late.take(4))
            await settled()
            first.keep(0)
            taking.cancel()
            await settled()
            assert taking.cancelled()
        again, _ = await Hand(room, stack).ask(THREE, 4)
        assert again.size == 4
