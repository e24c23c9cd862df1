"""Tells people that they were read, and that an answer is being written, for as long as it is.

It holds no lane and is waited for by nobody: what it cannot tell within a minute it does not tell. Its requests are no
messages, but they come to the same number: a pace of their own, and none while the number must be left alone.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self
from uuid import UUID

import httpx
import structlog

from app import metrics, tasks
from app.channels import TYPING_SECONDS, provider
from app.directory import Channel, Tenant, Watch
from app.errors import DatabaseUnavailable, InDoubt, QasidError, Refused

log = structlog.get_logger(__name__)

# Renewed so much after it has lapsed (seconds): one report has it that a provider is annoyed by an early one.
LAPSED = 0.5
# What a number gets of these a second, with as many at once as have gathered: a quarter of the 80 messages that Meta lets
# through. Beyond it typing is shown later, when there is room, or not at all.
PACE = 20.0
BURST = 40.0
# So long (seconds) one may take, and so many are under way at once in a worker.
TIMEOUT = 5.0
AT_ONCE = 64
# After a refusal, or no answer, a number hears nothing of these for so long at the least (seconds).
QUIET = 10.0
# Whoever was not let through looks again so often (seconds): for typing while the turn runs, with a receipt for so long.
LOOK = 1.0
PATIENCE = 60.0
# Receipts that wait for that in a worker: what a number is told in its patience.
MOST_WAITING = 1_200
# Channels that are remembered: those in use are far fewer.
MOST_CHANNELS = 10_000


class _Room:
    """What one channel may still be asked, and until when it is left alone (monotonic)."""

    def __init__(self, now: float) -> None:
        self.left = BURST
        self.at = now
        self.quiet_until = 0.0

    def take(self, now: float) -> bool:
        self.left = min(BURST, self.left + (now - self.at) * PACE)
        self.at = now
        if now < self.quiet_until or self.left < 1.0:
            return False
        self.left -= 1.0
        return True


class Shown:
    """What has become of it: `told`, the message is marked read."""

    told = False


class Silent:
    """Tells nobody anything: a `Typing` for those who have none."""

    @contextmanager
    def shown(
        self, tenant: Tenant, channel: Channel, message_id: str, stands: Callable[[], Awaitable[bool]]
    ) -> Iterator[Shown]:
        """Show nothing."""
        yield Shown()

    def read(self, tenant: Tenant, channel: Channel, message_id: str) -> None:
        """Mark nothing."""


SILENT = Silent()


class Typing:
    """`shown` while an answer is made; `read` behind one that was not. An async context manager: leaving it ends all."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        directory: Watch,
        free: Callable[[Tenant, Channel], bool],
        *,
        life: float = TYPING_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`free`: whether a number may be asked for what is no message. `life`: seconds that the provider shows it."""
        self._client = client
        self._directory = directory
        self._free = free
        self._renew = life + LAPSED
        self._clock = clock
        self._rooms: OrderedDict[UUID, _Room] = OrderedDict()
        self._behind = tasks.Behind()
        self._under_way = 0
        self._waiting = 0

    @contextmanager
    def shown(
        self, tenant: Tenant, channel: Channel, message_id: str, stands: Callable[[], Awaitable[bool]]
    ) -> Iterator[Shown]:
        """Mark this message read and show typing until the block is left, or `stands` no more; "" shows nothing.

        The block never waits for it, nor does it end before what was said last: an answer ends it, else it lapses.
        `stands` is asked before each renewal; it may raise DatabaseUnavailable.
        """
        shown = Shown()
        if not message_id:
            yield shown
            return
        task = self._behind.start(self._keep(tenant, channel, message_id, stands, shown), "typing")
        try:
            yield shown
        finally:
            task.cancel()

    def read(self, tenant: Tenant, channel: Channel, message_id: str) -> None:
        """Mark this message read as soon as that can be done. No typing: it would come after the answer, and stay."""
        if not message_id:
            return
        if self._waiting >= MOST_WAITING:
            metrics.typing("dropped")
            return
        self._waiting += 1
        self._behind.start(self._read(tenant, channel, message_id), "read").add_done_callback(self._read_on)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._behind.end()

    async def _keep(
        self, tenant: Tenant, channel: Channel, message_id: str, stands: Callable[[], Awaitable[bool]], shown: Shown
    ) -> None:
        dropped = False
        while True:
            if self._let_go(tenant, channel):
                shown.told |= await self._tell(channel, message_id, typing=True)
                await asyncio.sleep(self._renew)
                if not await _known(stands):
                    return
                continue
            if not dropped:
                dropped = True
                metrics.typing("dropped")
            await asyncio.sleep(LOOK)

    async def _read(self, tenant: Tenant, channel: Channel, message_id: str) -> None:
        until = self._clock() + PATIENCE
        while not self._let_go(tenant, channel):
            if self._clock() >= until:
                metrics.typing("dropped")
                return
            await asyncio.sleep(LOOK)
        await self._tell(channel, message_id, typing=False)

    def _read_on(self, _: asyncio.Task[None]) -> None:
        self._waiting -= 1

    def _let_go(self, tenant: Tenant, channel: Channel) -> bool:
        """Whether one may be told now: then it is counted, and `_tell` follows."""
        may = self._under_way < AT_ONCE and self._free(tenant, channel) and self._room(channel.id).take(self._clock())
        self._under_way += may
        return may

    def _room(self, channel: UUID) -> _Room:
        room = self._rooms.setdefault(channel, _Room(self._clock()))
        self._rooms.move_to_end(channel)
        while len(self._rooms) > MOST_CHANNELS:
            self._rooms.popitem(last=False)
        return room

    async def _tell(self, channel: Channel, message_id: str, *, typing: bool) -> bool:
        """One request; whether it was taken. What becomes of it is counted; no breaker and no budget of messages hears of it."""
        try:
            transport = provider(self._directory.current.endpoint_of(channel).kind)
            await transport.read(self._client, channel, message_id, typing=typing, timeout=TIMEOUT)
        except QasidError as error:
            metrics.typing("failed")
            if (quiet := _quiet(error)) > 0:
                self._room(channel.id).quiet_until = self._clock() + quiet
            log.debug("typing not shown", channel=channel.slug, code=getattr(error, "code", None), error=error)
            return False
        else:
            metrics.typing("shown")
            return True
        finally:
            self._under_way -= 1


async def _known(stands: Callable[[], Awaitable[bool]]) -> bool:
    """Whether it stands; what the database does not say is not shown."""
    try:
        return await stands()
    except DatabaseUnavailable:
        return False


def _quiet(error: QasidError) -> float:
    """Seconds that the number is left alone after this; 0 where it was about this one message (one that it does not know)."""
    if isinstance(error, Refused):
        alone = error.then == "dead" and error.scope == "chunk" and not error.after
        return 0.0 if alone else max(error.after, QUIET)
    return max(error.after, QUIET) if isinstance(error, InDoubt) else QUIET
