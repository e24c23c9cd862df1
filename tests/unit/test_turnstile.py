"""A few pass in each round of the loop, in the order of their coming, and whoever leaves the line holds nobody up."""

import asyncio

import pytest
import uvloop

from app.turnstile import Turnstile

AT_ONCE, MANY = 3, 20


async def crowd(turnstile: Turnstile, rounds: list[int]) -> list[asyncio.Task[int]]:
    """Many that want through in one round; each task tells in which it passed."""

    async def one() -> int:
        await turnstile.through()
        return rounds[0]

    return [asyncio.create_task(one()) for _ in range(MANY)]


async def passed(each: list[asyncio.Task[int]], rounds: list[int]) -> list[int]:
    while not all(task.done() for task in each):
        await asyncio.sleep(0)
        rounds[0] += 1
    return [task.result() for task in each if not task.cancelled()]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_few_pass_in_each_round_and_in_order(new_loop: object) -> None:
    async def scene() -> None:
        rounds = [0]
        went = await passed(await crowd(Turnstile(AT_ONCE), rounds), rounds)
        assert went == sorted(went)
        assert max(went.count(round) for round in went) <= AT_ONCE
        assert went[-1] <= 2 + MANY // AT_ONCE  # and no round is left out

    with asyncio.Runner(loop_factory=new_loop) as runner:  # type: ignore[arg-type]
        runner.run(scene())


def test_who_comes_alone_waits_for_nothing() -> None:
    async def scene() -> None:
        turnstile = Turnstile(AT_ONCE)
        for _ in range(MANY):
            await asyncio.sleep(0)
            way = turnstile.through()
            with pytest.raises(StopIteration):  # it never gives the loop its turn
                way.send(None)

    asyncio.run(scene())


def test_who_comes_later_does_not_overtake_the_line() -> None:
    async def scene() -> None:
        turnstile, order = Turnstile(1), list[int]()

        async def one(n: int) -> None:
            await turnstile.through()
            order.append(n)

        async with asyncio.TaskGroup() as group:
            for n in range(MANY):
                group.create_task(one(n))
                if n % 4 == 0:
                    await asyncio.sleep(0)
        assert order == list(range(MANY))

    asyncio.run(scene())


def test_who_leaves_the_line_takes_nobodys_place() -> None:
    async def scene() -> None:
        rounds = [0]
        each = await crowd(Turnstile(1), rounds)
        await asyncio.sleep(0)
        for task in each[1:-1]:
            task.cancel()
        went = await passed(each, rounds)
        assert len(went) == 2
        assert went[1] <= 3

    asyncio.run(scene())


def test_in_another_loop_it_begins_anew() -> None:
    """Whoever was in line when the last one ended is not waited for, and what passed in it takes nobody's place."""
    turnstile = Turnstile(1)

    async def leave_some() -> None:
        for _ in range(3):
            asyncio.create_task(turnstile.through())  # noqa: RUF006  the loop ends, and they with it
        await turnstile.through()

    async def scene() -> None:
        async with asyncio.timeout(5):
            for _ in range(3):
                await turnstile.through()

    asyncio.run(leave_some())
    asyncio.run(scene())
