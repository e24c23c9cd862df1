"""Asks a tenant's assistant, and where that cannot answer in time its fallback: one deadline over both. It settles nothing.

What comes back is fit for the database and for people: bounded, without characters that PostgreSQL cannot store.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

import httpx
import msgspec
import structlog

from app import assistants, metrics
from app.assistants import Answer, Call, Citation, Notes, Question
from app.assistants.parts import LONGEST, MOST_CITATIONS
from app.configuration import AssistantSettings
from app.directory import Tenant
from app.errors import AssistantError, AssistantRefused
from app.text.storable import storable
from workers.breakers import Breakers, Outdated
from workers.notes import FALLBACK

log = structlog.get_logger(__name__)

LONGEST_TITLE = 200
# Where an answer that is too long is cut at a space, it is one of its last so many characters.
_NEAR = 200

# The note of an answer that a fault cut short, while the fallback is asked for a whole one.
CUT = "cut"

# What is asked of an assistant with these settings, and what it may note under the name of its stage.
Asked = Callable[[AssistantSettings], Question]
Noted = Callable[[str], Notes]


class Asking:
    """`ask` a tenant's assistants."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        breakers: Breakers,
        *,
        assistant: Callable[[str], assistants.Assistant] = assistants.assistant,
    ) -> None:
        """`assistant`: that of a provider's name."""
        self._assistant = assistant
        self._client = client
        self._breakers = breakers

    async def ask(self, tenant: Tenant, asked: Asked, notes: Noted, deadline: float, correlation: str) -> Answer:
        """The answer of the first that has one, before `deadline` (monotonic), which is for all together. `correlation`: the
        turn's, for the log.

        The fallback has its own `deadline_seconds` of what is left, at most half: then the first is given up. It is asked as
        soon as the first has failed, for whatever reason, and at once where the first's breaker is open. Where a fault cut
        the first's answer short, that is kept, and the fallback's counts if it is whole or the longer of the two. Whoever
        waits while the tenant's settings change goes on with the new ones.

        Raises:
            AssistantError: nobody has a usable answer.
            DatabaseUnavailable: nobody knows whether something is kept.
        """
        first, second = notes(""), notes(FALLBACK)
        while True:
            try:
                return await self._ask(tenant, asked, first, second, deadline, correlation)
            except Outdated as change:
                tenant = change.tenant

    async def _ask(
        self, tenant: Tenant, asked: Asked, first: Notes, second: Notes, deadline: float, correlation: str
    ) -> Answer:
        if tenant.assistant is None:
            raise AssistantRefused("this tenant has no assistant")
        other = tenant.assistant.fallback
        if other is None:
            return await self._one(
                tenant, tenant.assistant, asked, first, deadline, partial(self._breakers.assistant, tenant)
            )
        cut, reason = _kept(first), "its answer was cut short"
        if cut is None:
            share = min(other.deadline_seconds, (deadline - time.monotonic()) / 2)
            try:
                skipping = partial(self._breakers.assistant_now, tenant)
                answer = await self._one(tenant, tenant.assistant, asked, first, deadline - share, skipping)
            except AssistantError as error:
                reason = str(error)
            else:
                if not answer.partial or answer.long:
                    return answer
                await first.keep(CUT, msgspec.to_builtins(answer))
                cut = answer
        log.warning("the fallback is asked", tenant=tenant.slug, correlation=correlation, reason=reason)
        try:
            until = min(deadline, time.monotonic() + other.deadline_seconds)
            calls = partial(self._breakers.assistant, tenant, fallback=True)
            answer = await self._one(tenant, other, asked, second, until, calls)
        except Outdated:
            raise
        except AssistantError:
            metrics.fallback("failed")
            if cut is None:
                raise
            return cut
        metrics.fallback("answered")
        return _better(cut, answer) if cut else answer

    async def _one(
        self,
        tenant: Tenant,
        settings: AssistantSettings,
        asked: Asked,
        notes: Notes,
        deadline: float,
        asking: Callable[[], AbstractAsyncContextManager[Call]],
    ) -> Answer:
        answer = await self._assistant(settings.provider).ask(
            self._client, settings, asked(settings), deadline=deadline, notes=notes, asking=asking
        )
        return bounded(tenant, answer)


def _kept(notes: Notes) -> Answer | None:
    """What an earlier try heard of the first, before it was cut."""
    try:
        return msgspec.convert(notes[CUT], Answer)
    except KeyError:
        return None


def _better(cut: Answer, answer: Answer) -> Answer:
    """The fallback's answer, unless that is not whole either, and the shorter one. Both were paid for."""
    best = cut if answer.partial and len(answer.text) < len(cut.text) else answer
    return msgspec.structs.replace(
        best,
        input_tokens=cut.input_tokens + answer.input_tokens,
        output_tokens=cut.output_tokens + answer.output_tokens,
        cached_tokens=cut.cached_tokens + answer.cached_tokens,
    )


def bounded(tenant: Tenant, answer: Answer) -> Answer:
    """The answer as it may be stored and sent: without U+0000 and halves of characters, and of a length that people read."""
    text, verbatim = storable(answer.text), storable(answer.verbatim)
    if len(answer.citations) > MOST_CITATIONS:
        log.warning(
            "an answer has too many citations, and is left the first", tenant=tenant.slug, count=len(answer.citations)
        )
    size = len(text) + len(verbatim)
    if size > LONGEST:
        log.warning("an answer is too long, and cut", tenant=tenant.slug, size=size)
        text = _cut(text, LONGEST)
        verbatim = _cut(verbatim, LONGEST - len(text))
    return msgspec.structs.replace(
        answer,
        text=text,
        verbatim=verbatim,
        partial=answer.partial or size > LONGEST,
        long=answer.long or size > LONGEST,
        model=storable(answer.model),
        citations=_bounded(answer.citations),
    )


def _cut(text: str, room: int) -> str:
    """As much of it as there is room for, up to a line's end or a space, if one is near."""
    if len(text) <= room:
        return text
    kept = text[:room]
    head, space, tail = kept.rpartition("\n") if "\n" in kept[-_NEAR:] else kept.rpartition(" ")
    return head if space and len(tail) < _NEAR else kept


def _bounded(citations: Sequence[Citation]) -> tuple[Citation, ...]:
    """The first so many, and of these the quotations that together are as long as an answer may be; of the rest the titles.

    A quotation is never cut: half of one is another. None changes its place, for the numbers in the text.
    """
    room, kept = LONGEST, list[Citation]()
    for citation in citations[:MOST_CITATIONS]:
        text = storable(citation.text) if len(citation.text) <= room else ""
        room -= len(text)
        kept.append(Citation(text=text, title=storable(citation.title[:LONGEST_TITLE])))
    return tuple(kept)
