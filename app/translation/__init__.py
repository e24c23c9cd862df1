"""The room of those who translate: what a translator must be able to do, and which one a tenant has."""

from collections.abc import Sequence
from typing import Protocol

import httpx
import regex
from msgspec import Struct

from app.assistants import Asking
from app.assistants.parts import LONGEST, Tokens
from app.configuration import Assistant, Translation
from app.errors import AssistantRefused, TranslatorRefused
from app.text.markup import VISIBLE
from app.text.passages import makes_up

# What a translation has no use for and PostgreSQL or a reader may stumble over: control characters, and those that turn
# the direction of whatever follows.
_UNWANTED = regex.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# A translation that is so much longer is something else: an essay that the text asked for, or a loop. None is longer than an
# answer may be.
TIMES_LONGER, CHARACTERS_LONGER = 8, 400

_NOBODY = "this tenant has nobody who could translate"


class Translated(Struct, frozen=True, kw_only=True):
    """A translation; of `text` something can be seen. Tokens as the engine counts them (0: it counts none, or nobody was asked)."""

    text: str
    input_tokens: int = 0
    output_tokens: int = 0


class Recognised(Struct, frozen=True, kw_only=True):
    """The language of a text: one of those that were asked about, or None. Tokens as in `Translated`."""

    language: str | None
    input_tokens: int = 0
    output_tokens: int = 0


class Translator(Protocol):
    """A tenant's translator. `tests/conformance/test_translators.py` holds what every one must do.

    `deadline` is by the monotonic clock. Both calls raise:
        TranslatorBusy: nothing usable within the deadline.
        TranslatorRefused: another try would end the same way.
    """

    @property
    def engine(self) -> str:
        """Its name in the memory: what another engine has translated is not used in its place."""
        ...

    @property
    def in_vain(self) -> Tokens:
        """What it was paid for so far and nobody can use: calls whose answer was no translation."""
        ...

    async def translate(
        self, client: httpx.AsyncClient, text: str, *, source: str, target: str, deadline: float
    ) -> Translated:
        """`text`, which is not blank, in another language, and nothing else. `source` may be "auto"."""
        ...

    async def recognise(
        self, client: httpx.AsyncClient, text: str, among: Sequence[str], *, deadline: float
    ) -> Recognised:
        """Which of these languages a text is written in; None where it is none of them, or the engine is not sure."""
        ...


class Nobody:
    """The translator of a tenant that has none: whatever should be translated stands as it is."""

    engine = "nobody"
    in_vain = Tokens()

    async def translate(
        self, client: httpx.AsyncClient, text: str, *, source: str, target: str, deadline: float
    ) -> Translated:
        """Raises TranslatorRefused."""
        raise TranslatorRefused(_NOBODY)

    async def recognise(
        self, client: httpx.AsyncClient, text: str, among: Sequence[str], *, deadline: float
    ) -> Recognised:
        """Raises TranslatorRefused."""
        raise TranslatorRefused(_NOBODY)


def translator(settings: Translation, assistant: Assistant | None, asking: Asking | None = None) -> Translator:
    """The translator of a tenant, by its `[translation]`. `asking`: under whose watch each call is made. Whom nobody may ask
    for now it refuses, or all that is to be translated waits: `Asking` of `app.assistants`.
    """
    from app.translation.assistant import AssistantTranslator
    from app.translation.libretranslate import LibreTranslate

    if settings.provider == "libretranslate" and settings.base_url is not None:
        return LibreTranslate(settings.base_url, settings.api_key, asking)
    if settings.provider == "assistant" and assistant is not None and assistant.provider != "ansari":
        try:
            return AssistantTranslator(assistant, asking)
        except AssistantRefused:  # of a provider that is not built
            pass
    return Nobody()


def checked(said: str, text: str) -> str:
    """What an engine said of `text`, fit to be kept and shown.

    Raises:
        TranslatorRefused: nothing of it can be seen, it is too long to be a translation, or has marks of its own.
    """
    if len(said) > min(TIMES_LONGER * len(text) + CHARACTERS_LONGER, LONGEST):
        raise TranslatorRefused("what came back is far longer than what was to be translated")
    translation = str(_UNWANTED.sub("", said)).strip()
    if VISIBLE.search(translation) is None:
        raise TranslatorRefused("an empty translation")
    if makes_up(translation, text):
        raise TranslatorRefused("what came back has a mark like [Q1], or a number of a source, that is made up")
    return translation
