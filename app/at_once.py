"""How many things of a sort are done at once for one tenant, in this process. What they are it does not know."""

import asyncio
from uuid import UUID
from weakref import WeakValueDictionary


class AtOnce:
    """Semaphores by tenant, there as long as somebody holds or awaits one."""

    def __init__(self) -> None:
        self._places: WeakValueDictionary[tuple[UUID, int], asyncio.Semaphore] = WeakValueDictionary()

    def of(self, tenant: UUID, most: int) -> asyncio.Semaphore:
        """That of a tenant for `most` at once. Whoever goes by another number, settings of before say, has another: neither
        takes the other's bound away.
        """
        return self._places.setdefault((tenant, most), asyncio.Semaphore(most))
