"""The citations of an answer, translated all at once: one task each, within one deadline, and one memo for all of them.

What fails or comes too late stands in the original. Each finished translation is in the memory at once as well.
"""

import asyncio
import time
from collections.abc import Sequence

import msgspec
import structlog
from msgspec import Struct

from app.alerts import alert
from app.assistants import Citation, Notes
from app.assistants.parts import LONGEST
from app.configuration import Translation
from app.crashpoints import crashpoint
from app.directory import Tenant
from app.errors import DatabaseUnavailable, TranslationError
from app.text.citations import Source
from app.text.languages import may_be
from app.translation import Translated, Translator
from app.translation.gate import Place
from app.translation.memory import Memory, Wanted

log = structlog.get_logger(__name__)

# What is remembered is waited for even where the deadline is over (seconds).
LEAST = 0.25
MEMO = "citations"


class Fate(Struct, frozen=True):
    """What became of a citation: its translation, or that it should have one and has none. Neither: it wants none."""

    translation: str | None = None
    untranslated: bool = False


class Sourced(Struct, frozen=True, kw_only=True):
    """The memo of the step: what became of each citation, in order. Tokens: of the translations that were made for it."""

    fates: tuple[Fate, ...]
    input_tokens: int = 0
    output_tokens: int = 0

    def sources(self, citations: Sequence[Citation]) -> tuple[Source, ...]:
        """The citations as their reader gets them."""
        return tuple(
            Source(text=each.text, title=each.title, translation=fate.translation, untranslated=fate.untranslated)
            for each, fate in zip(citations, self.fates, strict=True)
        )


class Round(Struct, frozen=True, kw_only=True):
    """One answer's translations: for whom, by whom, into which language, until when (monotonic). `correlation`: for the log.

    `place`: where each call to the translator is made, this answer's and the tenant's others.
    """

    tenant: Tenant
    settings: Translation
    translator: Translator
    place: Place
    target: str
    deadline: float
    correlation: str

    @property
    def of(self) -> dict[str, str]:
        """What each line in the log says of it."""
        return {"tenant": self.tenant.slug, "correlation": self.correlation}


def untouched(citations: Sequence[Citation]) -> Sourced:
    """As they are, where nobody translates."""
    return Sourced(fates=(Fate(),) * len(citations))


async def translated(memory: Memory, round: Round, citations: Sequence[Citation], notes: Notes) -> Sourced:
    """The citations with their translations; from the memo where this step was finished before.

    Raises:
        DatabaseUnavailable: nobody knows what is remembered.
    """
    try:
        return msgspec.convert(notes[MEMO], Sourced)
    except KeyError:
        pass
    wanted = dict.fromkeys(each.text for each in citations if _foreign(each.text, round))
    made = await _all(memory, round, list(wanted))
    fates, room = [], LONGEST
    for each in citations:
        came = made.get(each.text)
        fits = came is not None and len(came.text) <= room
        room -= len(came.text) if came and fits else 0
        fates.append(Fate(came.text if came and fits else None, each.text in wanted and not fits))
    sourced = Sourced(
        fates=tuple(fates),
        input_tokens=sum(each.input_tokens for each in made.values()),
        output_tokens=sum(each.output_tokens for each in made.values()),
    )
    if failed := sum(fate.untranslated for fate in fates):
        alert(log.warning, "untranslated", "citations stand untranslated", failed=failed, **round.of)
    if wanted:
        await notes.keep(MEMO, msgspec.to_builtins(sourced))
        crashpoint("answer.cited")
    return sourced


def _foreign(text: str, round: Round) -> bool:
    """Whether a quotation wants a translation: it may be in the source language, and its reader's is another."""
    return round.settings.source != round.target and may_be(text, round.settings.source)


async def _all(memory: Memory, round: Round, texts: Sequence[str]) -> dict[str, Translated]:
    """What came in time, by text."""
    made: dict[str, Translated] = {}
    unavailable: list[DatabaseUnavailable] = []

    async def one(text: str) -> None:
        wanted = Wanted(
            tenant_id=round.tenant.id,
            translator=round.translator,
            text=text,
            source=round.settings.source,
            target=round.target,
            seconds=round.settings.deadline_seconds,
            place=round.place,
        )
        try:
            made[text] = await memory.translate(wanted, deadline=round.deadline)
        except DatabaseUnavailable as error:
            unavailable.append(error)
        except TranslationError as error:
            log.info("a citation stands untranslated", error=error, **round.of)
        except Exception:  # whatever it was, an answer does not fail for a translation
            log.exception("a citation cannot be translated", **round.of)

    try:
        async with asyncio.timeout(max(LEAST, round.deadline - time.monotonic())), asyncio.TaskGroup() as group:
            for text in texts:
                group.create_task(one(text))
    except TimeoutError:
        pass  # what is there is there
    if unavailable:
        raise unavailable[0]
    return made
