"""The breakers of this worker: one for each channel, for each tenant's assistant and for its fallback.

It says who may ask now, and when who was turned away comes again. What is asked, and of whom, is not its business.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from typing import Literal, cast
from uuid import UUID

import structlog

from app import metrics
from app.breaker import STANDS_OPEN, Breaker, Call, Forced, Policy, State
from app.directory import Channel, Directory, Tenant, Watch
from app.errors import Unknown
from app.policies import ASSISTANT, CHANNEL, AssistantOpen, ChannelOpen
from app.store.breakers import assistant_of, channel_of
from workers.budget import jittered

log = structlog.get_logger(__name__)

# Lanes that a channel's breaker turned away come again one by one, so far apart (seconds): each of them may be the probe,
# and none of the thousand behind them costs more than a look at the longest pause's end.
STEP = 0.25
# A turn that waits for its assistant looks so often whether it may ask (seconds): in memory, at no cost.
LOOK = 1.0

Kind = Literal["channel", "assistant", "fallback"]
Place = Callable[[], AbstractAsyncContextManager[None]]
Key = tuple[Kind, UUID, UUID | None]


class _Kept:
    """A breaker, and where it leads."""

    def __init__(self, breaker: Breaker, leads_to: object) -> None:
        self.breaker = breaker
        self.leads_to = leads_to
        self.next_turn = 0.0
        """When the next lane that is turned away comes again (by the breakers' clock)."""


class Breakers:
    """Made as they are first asked, dropped when what they lead to leaves the configuration: so bounded by that.

    `directory` says what is configured, as soon as somebody knows. `reopened(tenant, channel)` hears that a channel may be
    asked again, by whomever. `clock` gives seconds and never goes back; `draw` a number in [0, 1).
    """

    def __init__(
        self, *, clock: Callable[[], float] = lambda: time.monotonic(), draw: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._kept: dict[Key, _Kept] = {}
        self._forced: Mapping[str, Forced] = {}
        self._version: int | None = None
        self.directory: Watch | None = None
        self.reopened: Callable[[UUID, UUID], None] = lambda tenant, channel: None

    def __len__(self) -> int:
        """Channels and assistants that have one."""
        return len(self._kept)

    def heard(self, forced: Mapping[str, Forced]) -> None:
        """What people want of the breakers, by name; the prober brings it once a second, all of it each time."""
        self._forced = forced
        for kept in self._kept.values():
            kept.breaker.forced = forced.get(kept.breaker.name)
        if self.directory is not None and self.directory.current.version != self._version:
            self._drop_what_left(self.directory.current)

    # --- channels ---

    @contextmanager
    def channel(self, tenant: Tenant, channel: Channel) -> Iterator[Call | None]:
        """A place for one send, taken before its intent; None: turned away. Tell it how the send ended, or it counts nowhere."""
        breaker = self._of_channel(tenant, channel).breaker
        call: Call | None = None
        with ExitStack() as stack:
            with suppress(ChannelOpen):
                call = stack.enter_context(breaker.watching())
            try:
                yield call
            finally:
                if call is not None:
                    call.ended(asyncio.CancelledError())  # unless it has ended before

    def comes_again(self, tenant: Tenant, channel: Channel) -> float:
        """In how many seconds a lane that this channel's breaker turned away asks anew; it is woken if that opens before."""
        kept = self._of_channel(tenant, channel)
        longest = kept.breaker.policy.longest_pause
        now, wait = self._clock(), kept.breaker.retry_in
        if wait is None and kept.breaker.state == "closed":
            return 0.0
        if wait is not None:
            if kept.breaker.state == "half_open":
                wait = STEP  # nobody knows how long the one that asks will take
            turn = max(kept.next_turn, now + max(wait, STEP))
            if turn - now <= longest:
                kept.next_turn = turn + STEP
                return turn - now
        return jittered(longest, self._draw)

    def well(self, tenant: Tenant, channel: Channel) -> bool:
        """Whether nothing is known against asking this channel; it takes no place and counts nothing."""
        return self._of_channel(tenant, channel).breaker.state == "closed"

    def _of_channel(self, tenant: Tenant, channel: Channel) -> _Kept:
        return self._get(
            ("channel", channel.tenant_id, channel.id),
            channel_of(tenant.slug, channel.slug),
            CHANNEL,
            (channel.endpoint_id, channel.base_url, channel.address, channel.token),
        )

    # --- assistants ---

    @asynccontextmanager
    async def assistant(
        self, tenant: Tenant, *, fallback: bool = False, waits: bool = True, place: Place = nullcontext
    ) -> AsyncIterator[Call]:
        """One call to the tenant's assistant or its fallback, as soon as it may be made: the caller's deadline bounds the wait.

        It is made in a `place()`, which nobody holds while the breaker lets nobody in.

        Raises:
            AssistantOpen: it may not be made now, and the caller does not wait for that.
        """
        while True:
            async with place():
                with ExitStack() as stack:
                    try:
                        call = stack.enter_context(self._of_assistant(tenant, fallback).breaker.watching())
                    except AssistantOpen as refusal:
                        if not waits:
                            raise
                        wait = LOOK if refusal.retry_after is None else min(refusal.retry_after, LOOK)
                    else:
                        yield call
                        return
            await asyncio.sleep(jittered(max(wait, 0.05), self._draw))

    def lets_ask(self, tenant: Tenant) -> bool:
        """Whether a call to the tenant's assistant that began now would be let in; asking takes nobody's place."""
        return self._of_assistant(tenant, False).breaker.allows_writes

    def _of_assistant(self, tenant: Tenant, fallback: bool) -> _Kept:
        settings = tenant.assistant and (tenant.assistant.fallback if fallback else tenant.assistant)
        leads_to = settings and (settings.provider, settings.base_url, settings.model, settings.api_key)
        key: Key = ("fallback" if fallback else "assistant", tenant.id, None)
        return self._get(key, assistant_of(tenant.slug, fallback=fallback), ASSISTANT, leads_to)

    # --- both ---

    def _get(self, key: Key, name: str, policy: Policy, leads_to: object) -> _Kept:
        kept = self._kept.get(key)
        if kept is None or kept.leads_to != leads_to:  # whoever mended it has it asked at once
            self._forget(key)
            breaker = Breaker(name, policy, clock=self._clock, draw=self._draw)
            new = kept = self._kept[key] = _Kept(breaker, leads_to)
            breaker.on_change = lambda _, before: self._changed(key, new, before)
            breaker.forced = self._forced.get(name)
        return kept

    def _changed(self, key: Key, kept: _Kept, before: State) -> None:
        kind, tenant, channel = key
        breaker = kept.breaker
        metrics.breaker(breaker, before, kind="channel" if kind == "channel" else "assistant")
        if breaker.state in STANDS_OPEN and before not in STANDS_OPEN:
            if kind == "channel":
                metrics.alert("channel_away")
                log.error("a channel is away", alert="channel_away", breaker=breaker.name, reason=breaker.reason)
            else:
                metrics.alert("assistant_away")
                log.error("an assistant is away", alert="assistant_away", breaker=breaker.name, reason=breaker.reason)
        elif breaker.state == "closed" and before in STANDS_OPEN:
            kept.next_turn = 0.0
            told = {"breaker": breaker.name, "seconds": round(breaker.stood_open, 1), "reason": breaker.reason}
            if kind == "channel":
                log.warning("a channel is back", **told)
                self.reopened(tenant, cast(UUID, channel))
            else:
                log.warning("an assistant is back", **told)

    def _drop_what_left(self, directory: Directory) -> None:
        for key in [key for key in self._kept if not _configured(key, directory)]:
            self._forget(key)
        self._version = directory.version

    def _forget(self, key: Key) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            kept.breaker.on_change = None  # a call that is under way may move it still
            metrics.forget_breaker(kept.breaker)


def _configured(key: Key, directory: Directory) -> bool:
    kind, tenant_id, channel_id = key
    try:
        tenant = directory.tenant(tenant_id)
        if channel_id is None:
            asked = tenant.assistant
            return tenant.enabled and asked is not None and (kind == "assistant" or asked.fallback is not None)
        return tenant.enabled and directory.channel(tenant_id, channel_id).enabled
    except Unknown:
        return False
