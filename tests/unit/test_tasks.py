"""Tasks end when they are told to, even where a library loses the first telling."""

import asyncio

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
