"""What becomes of an answer between the assistant and the chunks: its citations translated, itself where that is wanted.

Steps of the turn: each that was finished is a memo, and is not done again after a crash.
"""

import time
from functools import partial

import httpx
import msgspec
from msgspec import Struct

from app import metrics, tasks
from app.assistants import Answer, Asking, Notes
from app.configuration import Translation
from app.directory import Tenant
from app.text.citations import Source
from app.translation import translator
from app.translation.gate import Gate
from app.translation.memory import Memory
from workers import citations, wording
from workers.breakers import Breakers
from workers.citations import Round
from workers.places import Places
from workers.wording import Language, Worded


class Finished(Struct, frozen=True, kw_only=True):
    """An answer as its person reads it: `text` in Markdown, and the sources to put below it (`app.text.citations`).

    `untranslated`: `text` should be in another language, and is not: people are told so. Tokens: what translating cost
    besides the answer, what was paid in vain among it.
    """

    text: str
    untranslated: bool = False
    sources: tuple[Source, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0


class Translations:
    """`finish` an answer."""

    def __init__(self, memory: Memory, client: httpx.AsyncClient, breakers: Breakers, places: Places) -> None:
        """`client`, `places`: those of the assistants, who may be asked to translate."""
        self._memory = memory
        self._client = client
        self._breakers = breakers
        self._places = places
        self._gate = Gate()

    async def finish(
        self, tenant: Tenant, words: str, answer: Answer, notes: Notes, *, deadline: float, correlation: str
    ) -> Finished:
        """The answer with its sources, before `deadline` (monotonic) or the translation's own, whichever is earlier.

        `words`: what the person wrote. `notes`, `correlation`: of this turn.

        Raises:
            DatabaseUnavailable: nobody knows what is remembered, or what was kept; nothing is lost.
        """
        began = time.monotonic()
        settings = tenant.translation
        if settings is None or settings.provider == "none" or not (answer.citations or settings.answers):
            return Finished(text=answer.text, sources=citations.untouched(answer.citations).sources(answer.citations))
        round = Round(
            tenant=tenant,
            settings=settings,
            translator=translator(settings, tenant.assistant, self._calls(tenant, settings)),
            place=self._gate.of(tenant.id, settings.at_once),
            target=settings.target,
            deadline=min(began + settings.deadline_seconds, deadline),
            correlation=correlation,
        )
        try:
            return await self._finish(round, words, answer, notes)
        finally:
            metrics.stage("translate", time.monotonic() - began)

    def _calls(self, tenant: Tenant, settings: Translation) -> Asking:
        """Each call is made now or not at all: nobody waits for an engine that is away, the original is there."""
        if settings.provider == "assistant":
            place = partial(self._places.aside, tenant)
            return lambda: self._breakers.assistant_now(tenant, place=place)
        return lambda: self._breakers.now(tenant, "translator")

    async def _finish(self, round: Round, words: str, answer: Answer, notes: Notes) -> Finished:
        spoken = Language()
        if round.settings.answers:
            spoken = await wording.language(self._client, round, words, answer, notes)
            round = msgspec.structs.replace(round, target=spoken.spoken or round.target)
        sourced, worded = await tasks.both(
            citations.translated(self._memory, round, answer.citations, notes),
            self._worded(round, spoken, answer, notes),
        )
        steps, in_vain = (spoken, sourced, worded), round.translator.in_vain
        return Finished(
            text=answer.text if worded.text is None else worded.text,
            untranslated=spoken.missed or worded.text is None,
            sources=sourced.sources(answer.citations),
            input_tokens=sum(step.input_tokens for step in steps) + in_vain.read,
            output_tokens=sum(step.output_tokens for step in steps) + in_vain.written,
        )

    async def _worded(self, round: Round, spoken: Language, answer: Answer, notes: Notes) -> Worded:
        """The answer in the person's language; as it is where it is in that, or where theirs is none of the tenant's."""
        if spoken.spoken is None or spoken.met:
            return Worded(text=answer.text)
        return await wording.worded(self._client, round, answer, notes)
