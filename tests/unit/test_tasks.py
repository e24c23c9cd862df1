"""Tasks end when they are told to, even where a library loses the first telling."""

import asyncio
import gc
import weakref

import pytest

from app import tasks

pytestmark = pytest.mark.anyio


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """`end` returns only when the task has ended, however often it must ask."""
    monkeypatch.setattr(tasks, "AGAIN", 0.01)
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await tasks.end(task)
    assert (task.cancelled(), swallowed) == (True, 3)


async def test_work_beside_ends_with_what_it_stood_beside() -> None:
    """`running` ends its work when its block ends, and what the work raised stays its own."""
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        raise ValueError

    async with tasks.running(work()):
        await began.wait()


async def test_a_task_that_nobody_waits_for_is_held_until_it_has_ended() -> None:
    """The event loop holds tasks weakly. What runs still ends with whoever started it."""
    behind, began = tasks.Behind(), asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.get_running_loop().create_future()

    held = weakref.ref(behind.start(work(), "work"))
    await began.wait()
    gc.collect()
    task = held()
    assert task is not None
    await behind.end()
    assert task.cancelled()


async def test_a_cancelled_gather_is_no_error_and_all_else_that_went_unheard_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What nobody asks for is told of, but for a cancellation."""
    loop = asyncio.get_running_loop()
    tasks.hear(loop)
    try:
        loop.call_exception_handler({"message": "never retrieved", "exception": asyncio.CancelledError()})
        assert not caplog.records
        loop.call_exception_handler({"message": "never retrieved", "exception": ValueError("lost")})
        assert [record.message.splitlines()[0] for record in caplog.records] == ["never retrieved"]
    finally:
        loop.set_exception_handler(None)


async def test_both_come_to_their_end_whatever_the_other_raises() -> None:
    """What one has paid for is not cut off by the other's failure; who cancels cancels both."""
    done: list[str] = []

    async def slow() -> str:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            done.append("cancelled")
            raise
        done.append("slow")
        return "slow"

    async def failing() -> None:
        raise ValueError("no")

    assert await tasks.both(slow(), slow()) == ("slow", "slow")
    for pair in (tasks.both(failing(), slow()), tasks.both(slow(), failing())):
        with pytest.raises(ValueError, match="no"):
            await pair
    assert done == ["slow"] * 4
    whole = asyncio.create_task(tasks.both(slow(), slow()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    whole.cancel()
    await asyncio.wait({whole})
    assert done[4:] == ["cancelled"] * 2
