"""Tasks that run beside something, and end with it for certain."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

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


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a coroutine beside whatever happens inside."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await end(task)
