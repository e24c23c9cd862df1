"""The breakers of this worker: one for each channel, each tenant's assistant, its fallback, its translator, its transcriber.

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
from typing import Literal
from uuid import UUID

import structlog

from app import metrics
from app.alerts import alert
from app.breaker import STANDS_OPEN, Breaker, Call, Forced, Policy, State
from app.directory import Channel, Directory, Tenant, Watch
from app.errors import AssistantBusy, TranslatorBusy, Unknown, Withdrawn
from app.policies import ASSISTANT, CHANNEL, TRANSCRIBER, TRANSLATOR, AssistantOpen, AssistantSkipped, ChannelOpen
from app.store.breakers import Kind, name_of
from workers.budget import jittered

log = structlog.get_logger(__name__)

# Lanes that a channel's breaker turned away come again one by one, so far apart (seconds): each of them may be the probe,
# and none of the thousand behind them costs more than a look at the longest pause's end.
STEP = 0.25
# A turn that waits for its assistant looks so often whether it may ask (seconds): in memory, at no cost.
LOOK = 1.0

POLICIES: Mapping[Kind, Policy] = {
    "channel": CHANNEL,
    "assistant": ASSISTANT,
    "translator": TRANSLATOR,
    "transcriber": TRANSCRIBER,
}
Place = Callable[[], AbstractAsyncContextManager[None]]
# Of a tenant: one of its channels, its assistant's fallback, or whoever it has only one of.
Part = UUID | Literal["fallback"] | None
Key = tuple[Kind, UUID, Part]


class Outdated(Withdrawn):
    """Whoever waited for this assistant has settings of before: `tenant` has those of now, to ask with instead."""

    def __init__(self, tenant: Tenant) -> None:
        super().__init__("its settings have changed")
        self.tenant = tenant


class _Kept:
    """A breaker, and where it leads."""

    def __init__(self, breaker: Breaker, leads_to: object) -> None:
        self.breaker = breaker
        self.leads_to = leads_to
        self.next_turn = 0.0
        """When the next lane that is turned away comes again (by the breakers' clock)."""
        self.answers = 0
        """How many of the calls that nobody waits for were answered."""


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
        """How many there are."""
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
        key: Key = ("channel", channel.tenant_id, channel.id)
        return self._get(key, name_of("channel", tenant.slug, channel.slug), _sends(channel))

    # --- assistants ---

    @asynccontextmanager
    async def assistant(self, tenant: Tenant, *, fallback: bool = False) -> AsyncIterator[Call]:
        """One call to the tenant's assistant or its fallback, as soon as it may be made: the caller's deadline bounds the wait.

        Raises:
            Outdated: while they waited the tenant's settings have changed.
        """
        part: Literal["fallback"] | None = "fallback" if fallback else None
        while True:
            with ExitStack() as stack:
                try:
                    call = stack.enter_context(self._of_tenant(tenant, "assistant", part).breaker.watching())
                except AssistantOpen as refusal:
                    wait = LOOK if refusal.retry_after is None else min(refusal.retry_after, LOOK)
                else:
                    yield call
                    return
            await asyncio.sleep(jittered(max(wait, 0.05), self._draw))
            if self.directory is not None and self._left(
                ("assistant", tenant.id, part), _asked(tenant, "assistant", part)
            ):
                raise Outdated(self.directory.current.tenant(tenant.id))

    @asynccontextmanager
    async def assistant_now(self, tenant: Tenant, *, place: Place = nullcontext) -> AsyncIterator[Call]:
        """One call to the tenant's assistant, now or not at all. It is made in a `place()`, which may have to be waited for.

        Raises:
            AssistantSkipped: it may not be made now; nobody waits for a place then.
        """
        while True:
            breaker = self._of_tenant(tenant, "assistant", None).breaker
            if not breaker.allows_writes:
                raise AssistantSkipped(breaker.name, retry_after=breaker.retry_in)
            async with place():
                with ExitStack() as stack:
                    try:
                        call = stack.enter_context(breaker.watching())
                    except AssistantOpen:  # it opened while they waited for their place
                        continue
                    yield call
                    return

    # --- those who help it ---

    @asynccontextmanager
    async def now(self, tenant: Tenant, kind: Literal["translator", "transcriber"]) -> AsyncIterator[Call]:
        """One call to the tenant's translator or transcriber, now or not at all: people can do without what it brings.

        One that fails after another was answered meanwhile counts nowhere: who is slow is not away.

        Raises:
            TranslatorOpen, TranscriberOpen: it may not be made now.
        """
        kept = self._of_tenant(tenant, kind, None)
        answers = kept.answers
        with kept.breaker.watching() as call:
            try:
                yield call
            except (TranslatorBusy, AssistantBusy):
                if kept.answers != answers:
                    call.ended(asyncio.CancelledError())
                raise
            kept.answers += 1

    # --- all ---

    def _of_tenant(self, tenant: Tenant, kind: Kind, part: Literal["fallback"] | None) -> _Kept:
        return self._get((kind, tenant.id, part), name_of(kind, tenant.slug, part or ""), _asked(tenant, kind, part))

    def _get(self, key: Key, name: str, leads_to: object) -> _Kept:
        kept = self._kept.get(key)
        if kept is None or kept.leads_to != leads_to:  # whoever mended it has it asked at once
            breaker = Breaker(name, POLICIES[key[0]], clock=self._clock, draw=self._draw)
            new = kept = _Kept(breaker, leads_to)
            # A turn under way may have settings of before: what it meets counts nowhere.
            if not self._left(key, leads_to):
                self._forget(key)
                self._kept[key] = new
                breaker.on_change = lambda _, before: self._changed(key, new, before)
            breaker.forced = self._forced.get(name)
        return kept

    def _left(self, key: Key, leads_to: object) -> bool:
        """Whether the configuration of now leads elsewhere."""
        return self.directory is not None and _leads_to(key, self.directory.current) != leads_to

    def _changed(self, key: Key, kept: _Kept, before: State) -> None:
        kind, tenant, part = key
        breaker = kept.breaker
        metrics.breaker(breaker, before, kind=kind)
        if breaker.state in STANDS_OPEN and before not in STANDS_OPEN:
            alert(log.error, f"{kind}_away", "a provider is away", breaker=breaker.name, reason=breaker.reason)
        elif breaker.state == "closed" and before in STANDS_OPEN:
            kept.next_turn = 0.0
            log.warning(
                "a provider is back",
                breaker=breaker.name,
                seconds=round(breaker.stood_open, 1),
                reason=breaker.reason,
            )
            if isinstance(part, UUID):
                self.reopened(tenant, part)

    def _drop_what_left(self, directory: Directory) -> None:
        for key in [key for key, kept in self._kept.items() if kept.leads_to != _leads_to(key, directory)]:
            self._forget(key)
        self._version = directory.version

    def forget(self) -> None:
        """Their worker ends: none of them is shown any more."""
        for key in list(self._kept):
            self._forget(key)

    def _forget(self, key: Key) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            kept.breaker.on_change = None  # a call that is under way may move it still
            metrics.forget_breaker(kept.breaker)


def _leads_to(key: Key, directory: Directory) -> object:
    """Where it leads by this configuration; None: nowhere."""
    kind, tenant_id, part = key
    try:
        tenant = directory.tenant(tenant_id)
        if not tenant.enabled:
            return None
        if isinstance(part, UUID):
            channel = directory.channel(tenant_id, part)
            return _sends(channel) if channel.enabled else None
        return _asked(tenant, kind, part)
    except Unknown:
        return None


def _sends(channel: Channel) -> object:
    """Who is sent to, and with what."""
    return channel.endpoint_id, channel.base_url, channel.address, channel.token


def _asked(tenant: Tenant, kind: Kind, part: Literal["fallback"] | None) -> object:
    """Who is asked, and with what: whatever mends that asks somebody else. None: the tenant has nobody of this kind."""
    match kind:
        case "translator":
            engine = tenant.translation
            if engine is None or engine.provider != "libretranslate":  # or it is the assistant, who has its own breaker
                return None
            return engine.base_url, engine.api_key
        case "transcriber":
            writer = tenant.transcription
            return writer and (writer.base_url, writer.model, writer.api_key)
        case _:
            settings = tenant.assistant and (tenant.assistant.fallback if part else tenant.assistant)
            return settings and (settings.provider, settings.base_url, settings.model, settings.api_key)
