"""The gate to a tenant's translator: so many calls at once in this process, whatever they are for. It asks nobody."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from uuid import UUID

from app.at_once import AtOnce
from app.errors import TranslatorBusy

# A place for one call that begins before a deadline (monotonic): see `Gate.of`.
Place = Callable[[float], AbstractAsyncContextManager[None]]


class Gate:
    """One for a process."""

    def __init__(self) -> None:
        self._places = AtOnce()

    def of(self, tenant: UUID, most: int) -> Place:
        """Places for `most` calls of a tenant at once, in order of coming.

        Entering one raises TranslatorBusy where there was none before the deadline: then nobody is to be asked any more.
        """
        return partial(self._place, tenant, most)

    @asynccontextmanager
    async def _place(self, tenant: UUID, most: int, deadline: float) -> AsyncIterator[None]:
        places = self._places.of(tenant, most)
        patience = deadline - time.monotonic()
        if patience <= 0:
            raise TranslatorBusy("no time was left")
        try:
            async with asyncio.timeout(patience):
                await places.acquire()
        except TimeoutError:
            raise TranslatorBusy(f"no place with the translator within {patience:.3g} s") from None
        try:
            yield
        finally:
            places.release()
