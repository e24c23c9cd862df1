"""Tells people that they were read, and that an answer is being written, for as long as it is.

It holds no lane, waits for nothing and is waited for by nobody: what it cannot tell now it does not tell. Its requests are
no messages, but they come to the same number: a pace of their own, and none while the number must be left alone.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import httpx
import structlog

from app import metrics, tasks
from app.channels import TYPING_SECONDS, provider
from app.directory import Channel, Tenant, Watch
from app.errors import InDoubt, QasidError, Refused

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
# Whoever was not let through looks again so often while the turn runs (seconds).
LOOK = 1.0
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


class Typing:
    """`shown` while an answer is made; `read` where it is there at once. An async context manager: leaving it ends all."""

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
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way = 0

    @contextmanager
    def shown(self, tenant: Tenant, channel: Channel, message_id: str) -> Iterator[None]:
        """Mark this message read and show typing until the block is left; "" shows nothing.

        The block never waits for it, nor does it end before what was said last: an answer ends it, else it lapses.
        """
        if not message_id:
            yield
            return
        task = self._start(self._keep(tenant, channel, message_id))
        try:
            yield
        finally:
            task.cancel()

    def read(self, tenant: Tenant, channel: Channel, message_id: str) -> None:
        """Mark this message read, if that can be done now. No typing: it would come after the answer, and stay."""
        if message_id and self._let_go(tenant, channel):
            self._start(self._tell(channel, message_id, typing=False))
        elif message_id:
            metrics.typing("dropped")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await tasks.end(*self._tasks)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="typing")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep(self, tenant: Tenant, channel: Channel, message_id: str) -> None:
        dropped = False
        while True:
            if self._let_go(tenant, channel):
                await self._tell(channel, message_id, typing=True)
                await asyncio.sleep(self._renew)
                continue
            if not dropped:
                dropped = True
                metrics.typing("dropped")
            await asyncio.sleep(LOOK)

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

    async def _tell(self, channel: Channel, message_id: str, *, typing: bool) -> None:
        """One request. What becomes of it is counted; no breaker and no budget of messages hears of it."""
        try:
            transport = provider(self._directory.current.endpoint_of(channel).kind)
            await transport.read(self._client, channel, message_id, typing=typing, timeout=TIMEOUT)
        except QasidError as error:
            metrics.typing("failed")
            if (quiet := _quiet(error)) > 0:
                self._room(channel.id).quiet_until = self._clock() + quiet
            log.debug("typing not shown", channel=channel.slug, code=getattr(error, "code", None), error=error)
        else:
            metrics.typing("shown")
        finally:
            self._under_way -= 1


def _quiet(error: QasidError) -> float:
    """Seconds that the number is left alone after this; 0 where it was about this one message (one that it does not know)."""
    if isinstance(error, Refused):
        alone = error.then == "dead" and error.scope == "chunk" and not error.after
        return 0.0 if alone else max(error.after, QUIET)
    return max(error.after, QUIET) if isinstance(error, InDoubt) else QUIET
