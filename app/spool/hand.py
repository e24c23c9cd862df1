"""A thread of the spool's own, for what blocks on its disk. It knows no file, and no loop but its caller's.

It is a daemon: the interpreter waits at its end for the threads of a pool, and so for a disk that hangs.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


class Hand:
    """Does one thing after the other, beside the loop. What has begun ends, whether or not somebody still waits."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._ended = False

    def begin(self, job: Callable[[], Result]) -> Future[Result]:
        """The future of what the job returns or raises. Raises RuntimeError: it has ended."""
        if self._ended:
            raise RuntimeError(f"{self._name} has ended")
        done: Future[Result] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001  whoever waits for it hears of it
                done.set_exception(error)
            else:
                done.set_result(result)

        self._jobs.put(run)
        if self._thread is None:
            self._thread = Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
            self._thread.start()
        return done

    async def do(self, job: Callable[[], Result]) -> Result:
        """What the job returns or raises."""
        return await asyncio.shield(asyncio.wrap_future(self.begin(job)))

    def end(self) -> None:
        """Take nothing more. What was begun is done all the same, if the process lives so long."""
        self._ended = True
        self._jobs.put(None)


def _work(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while job := jobs.get():
        job()
        del job  # and what it held: the next may be long in coming
