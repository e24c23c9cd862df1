"""Tasks that run beside something, or behind it, and end with it for certain."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

First = TypeVar("First")
Second = TypeVar("Second")

# Between two cancellations (seconds): time for a task to clean up after the first.
AGAIN = 1.0


def hear(loop: asyncio.AbstractEventLoop) -> None:
    """Let this loop tell of what went unheard, as it does, but of no cancellation.

    asyncio says nothing of a cancelled task, yet takes a cancelled gather for an error: psycopg_pool leaves one behind when
    a process ends while it still waits for its own tasks.
    """

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), asyncio.CancelledError):
            loop.default_exception_handler(context)

    loop.set_exception_handler(tell)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and return once all have ended, whatever they raise.

    It cancels again while one goes on: before Python 3.12, asyncio.wait_for loses a cancellation that comes just as its
    wait ends, and psycopg_pool waits with it for connections.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)  # nobody else will ask what they raised


async def both(first: Coroutine[Any, Any, First], second: Coroutine[Any, Any, Second]) -> tuple[First, Second]:
    """What both return, at once. Each is let come to its end, whatever the other raises: what it has paid for is not lost.

    Raises what the first raised, else the second.
    """
    one, other = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(one, BaseException):
        raise one
    if isinstance(other, BaseException):
        raise other
    return one, other


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a coroutine beside whatever happens inside."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await end(task)


class Behind:
    """Tasks that nobody waits for, held until they have ended: the event loop itself would let go of them in their midst."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run it from now on. Its task is for whoever ends it before."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self) -> None:
        """See `end`: of all that run still."""
        await end(*self._tasks)
