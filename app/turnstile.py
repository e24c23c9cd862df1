"""A turnstile before work that many become ready for at once: a few pass in each round of the event loop.

The loop runs all that is ready before it looks at its sockets and timers again. When two hundred answers arrive together
and each is worth a millisecond of work, everybody else waits for a fifth of a second, and meanwhile more arrive. Behind a
turnstile they wait for one another instead: the last of them is done as soon as before, and timers, beats and other sockets
have their turns.
"""

import asyncio
from collections import deque

# So many pass in one round. What each goes on to do takes about a millisecond. Fewer would leave the database more and
# smaller batches of what they go on to write.
AT_ONCE = 4


class Turnstile:
    """One place where many wait for one another, first come first served. In another event loop it begins anew."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._passed = 0  # in this round of the loop
        self._line: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def through(self) -> None:
        """Return in this round if few have passed in it, else in one of the next."""
        if (loop := asyncio.get_running_loop()) is not self._loop:
            self._loop, self._passed = loop, 0
            self._line.clear()
        if self._passed < self._at_once and not self._line:
            self._pass(loop)
            return
        turn = loop.create_future()
        self._line.append(turn)
        await turn

    def _pass(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._passed:
            loop.call_soon(self._next_round, loop)
        self._passed += 1

    def _next_round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._passed = 0
        while self._line and self._passed < self._at_once:
            turn = self._line.popleft()
            if not turn.done():  # whoever waited may have been cancelled
                turn.set_result(None)
                self._pass(loop)
