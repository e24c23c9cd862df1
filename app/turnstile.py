"""A turnstile before work that many become ready for at once: a few pass in each round of the event loop.

The loop runs all that is ready before it looks at its sockets and timers again. When two hundred answers arrive together
and each is worth a millisecond of work, everybody else waits for a fifth of a second, and meanwhile more arrive. Behind a
turnstile they wait for one another instead: nothing gets slower, and timers, beats and other sockets have their turns.
"""

import asyncio
from collections import deque

# So many pass in one round. What each goes on to do takes about a millisecond. Fewer would leave the database more and
# smaller batches of what they go on to write.
AT_ONCE = 4


class Turnstile:
    """One place where many wait for one another, first come first served. It belongs to the loop that first uses it."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._passed = 0  # in this round of the loop
        self._line: deque[asyncio.Future[None]] = deque()

    async def through(self) -> None:
        """Return in this round if few have passed in it, else in one of the next."""
        if self._passed < self._at_once and not self._line:
            self._pass()
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        await turn

    def _pass(self) -> None:
        if not self._passed:
            asyncio.get_running_loop().call_soon(self._next_round)
        self._passed += 1

    def _next_round(self) -> None:
        self._passed = 0
        while self._line and self._passed < self._at_once:
            turn = self._line.popleft()
            if not turn.done():  # whoever waited may have been cancelled
                turn.set_result(None)
                self._pass()
