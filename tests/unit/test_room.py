"""Room for bytes and for places: never more than there is, a share for each tenant, the live ones first. Without files."""

import asyncio
import time
from contextlib import ExitStack
from uuid import UUID

import pytest

from workers.room import Held, NoPlace, Patience, Room

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = (UUID(int=n) for n in (1, 2, 3))


class Hand:
    """Asks for room, and says what it got."""

    def __init__(self, room: Room, stack: ExitStack) -> None:
        self._room, self._stack = room, stack

    async def ask(self, tenant: UUID, size: int, *, live: bool = True) -> tuple[Held, asyncio.Task[None]]:
        held = self._stack.enter_context(self._room.held(tenant, live=live))
        task = asyncio.create_task(held.take(size))
        await settled()
        return held, task


def patience(seconds: float, *, ago: float = 0.0) -> Patience:
    """It ends so many seconds from now, and began some before."""
    now = time.monotonic()
    return Patience(began=now - ago, until=now + seconds)


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
        with room.held(TWO, live=True) as late:
            taking = asyncio.create_task(late.take(4))
            await settled()
            first.keep(0)
            taking.cancel()
            await settled()
            assert taking.cancelled()
        again, _ = await Hand(room, stack).ask(THREE, 4)
        assert again.size == 4


async def test_the_live_go_first_and_the_others_are_not_forgotten() -> None:
    """Of four who are let in, three are live and one has waited long, whatever their tenants; each side in order of coming."""
    with ExitStack() as stack:
        hand = Hand(Room(1, 1), stack)
        first, _ = await hand.ask(ONE, 1)
        behind = [(await hand.ask(ONE, 1, live=False))[0] for _ in range(2)]
        live = [(await hand.ask((ONE, TWO)[n % 2], 1))[0] for n in range(5)]
        came: list[Held] = [first]
        for _ in range(7):
            came[-1].keep(0)
            [inside] = [held for held in (*behind, *live) if held.size]
            came.append(inside)
        assert came[1:] == [*live[:3], behind[0], *live[3:], behind[1]]


async def test_whose_turn_it_is_keeps_it_until_there_is_room_for_it() -> None:
    """A large one of those who have waited long is not passed by live ones who ask for less."""
    with ExitStack() as stack:
        hand = Hand(Room(8, 8), stack)
        held = [(await hand.ask(ONE, 2))[0] for _ in range(4)]
        large, _ = await hand.ask(TWO, 6, live=False)
        small = [(await hand.ask(THREE, 2))[0] for _ in range(8)]
        for n in range(3):
            held[n].keep(0)
        assert [each.size for each in small[:4]] == [2, 2, 2, 0]
        held[3].keep(0)
        small[0].keep(0)
        assert large.size == 0 and small[3].size == 0
        small[1].keep(0)
        assert large.size == 6 and small[3].size == 0
        large.keep(0)
        assert [each.size for each in small[3:6]] == [2, 2, 2]


@pytest.mark.parametrize("kept_out_by", [ONE, TWO])
@pytest.mark.parametrize("begun", ["before", "later", "never"])
@pytest.mark.parametrize("served", [True, False])
async def test_who_waits_in_vain_is_told_from_who_waits(kept_out_by: UUID, begun: str, served: bool) -> None:
    """In vain is a wait for one's own tenant, of whom somebody was at it and nobody was served in all that time; what others
    do says nothing of it, nor does who waits for something else, or has only just begun.
    """
    with ExitStack() as stack:
        room = Room(1, 1)
        first, _ = await Hand(room, stack).ask(kept_out_by, 1)
        if begun == "before":
            first.begun()
        waits = asyncio.create_task(stack.enter_context(room.held(ONE, live=True)).take(patience=patience(0.05)))
        await settled()
        if begun == "later":
            first.begun()
        if served:
            first.served()
        with pytest.raises(NoPlace) as none:
            await waits
        assert none.value.in_vain is (kept_out_by == ONE and begun == "before" and not served)
        first.keep(0)
        assert (await Hand(room, stack).ask(TWO, 1))[0].size == 1


async def test_the_end_of_a_wait_alone_is_not_in_vain() -> None:
    """Of one patience that went by elsewhere: who began, or was served, since it began counts. What is free is had at its end."""
    with ExitStack() as stack:
        room = Room(1, 1)
        first, _ = await Hand(room, stack).ask(ONE, 1)
        first.begun()
        late = stack.enter_context(room.held(ONE, live=True))
        with pytest.raises(NoPlace, match=r"no place within 5 s$"):
            await late.take(patience=patience(0.01, ago=4.99))
        first.keep(0)
        await late.take(patience=patience(-1.0, ago=5.0))
        assert late.size == 1


async def test_those_who_fail_one_after_another_are_waited_for_in_vain() -> None:
    """Whoever was at it has given up meanwhile, unserved, and the next is at it. Behind the last of them all begins anew."""
    with ExitStack() as stack:
        room = Room(1, 1)
        with room.held(ONE, live=True) as first:
            await first.take()
            first.begun()
            second, _ = await Hand(room, stack).ask(ONE, 1)
            waits = asyncio.create_task(stack.enter_context(room.held(ONE, live=True)).take(patience=patience(0.05)))
            await settled()
        assert second.size == 1
        with pytest.raises(NoPlace) as none:
            await waits
        assert none.value.in_vain
        with pytest.raises(NoPlace) as none:
            await stack.enter_context(room.held(ONE, live=True)).take(patience=patience(0.05))
        assert not none.value.in_vain
