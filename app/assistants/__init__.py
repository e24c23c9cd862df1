"""The room of those who answer: what an assistant must be able to do, and which ones there are."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

import httpx
from msgspec import Struct

from app.configuration import AssistantSettings
from app.errors import AssistantRefused


class Image(Struct, frozen=True, kw_only=True):
    """A picture that a person sent, for assistants that see."""

    media_type: str
    data: bytes


class Line(Struct, frozen=True):
    """One message of the conversation, as the assistant sees it."""

    role: Literal["user", "assistant"]
    text: str
    images: tuple[Image, ...] = ()


class Question(Struct, frozen=True, kw_only=True):
    """What is asked: `lines`, oldest first, the last of them a person's. `person`: their address, digits or an id.

    `last`: what an assistant that keeps conversations itself noted of the turn that it answered last in this session; None:
    it has answered none in it. Such a one goes by these two.
    """

    lines: tuple[Line, ...]
    person: str = ""
    last: Any = None


class Citation(Struct, frozen=True, kw_only=True):
    """What an answer rests on: `text` is byte for byte the source's, `title` whose it is ("" where nobody says)."""

    text: str
    title: str = ""


class Answer(Struct, frozen=True, kw_only=True):
    """A whole answer, in Markdown; `text` is never blank. Tokens as the provider counts them, of all calls that the answer is
    made of; where it counts none an estimate, by the characters of what was asked and answered. `cached_tokens` are those of
    `input_tokens` that came from the provider's cache.

    Where the text says `[n]` it rests on the n-th of `citations`, counted from 1; each stands there once.
    """

    text: str
    model: str
    input_tokens: int
    output_tokens: int
    stopped: str
    """The provider's reason to stop: `end_turn`, `max_tokens`, … Ours: `cut` by a fault or the deadline, `too_long` to read on."""
    citations: tuple[Citation, ...] = ()
    partial: bool = False
    """It was cut short, by its own limit or a fault, and could not be completed: people are told so."""
    long: bool = False
    """It is partial for its length alone: nobody else who is asked has more room."""
    cached_tokens: int = 0
    verbatim: str = ""
    """What stands below the text letter for letter, and is no Markdown: sources that the assistant has listed itself."""


def keeps(settings: AssistantSettings) -> str | None:
    """What each note begins with of an assistant that keeps conversations itself; None: it is shown them with each question."""
    return f"ansari {settings.base_url} " if settings.provider == "ansari" else None


class Notes(Protocol):
    """What an assistant has to remember of a turn from one try to the next, committed before it goes on."""

    def __getitem__(self, name: str) -> Any:
        """Raises KeyError: nothing was kept under this name."""
        ...

    async def keep(self, name: str, value: Any, *, lasting: bool = False) -> None:
        """Commit it: JSON. A name is kept once for a turn as it stands now: gone with an edit of it, or of what was said before.

        `lasting`: once for the turn, whatever changes meanwhile. Then the name says all that the note depends on.

        Raises:
            DatabaseUnavailable: nobody knows whether it is kept.
        """
        ...


class Call(Protocol):
    """One call under watch, of those who count whether the provider is well."""

    def began(self) -> None:
        """The first words of the answer are here."""
        ...


Asking = Callable[[], AbstractAsyncContextManager[Call]]


class Assistant(Protocol):
    """Somebody who answers. `tests/conformance/test_assistants.py` holds what every one must do."""

    async def ask(
        self,
        client: httpx.AsyncClient,
        settings: AssistantSettings,
        question: Question,
        *,
        deadline: float,
        notes: Notes,
        asking: Asking | None = None,
    ) -> Answer:
        """The answer, before `deadline` (by the monotonic clock). `notes`: of this turn, for calls that may not be repeated.

        Each call is made inside `asking()`, which may let it wait: the deadline goes on meanwhile.

        Raises:
            AssistantBusy: no usable answer within the deadline.
            AssistantRefused: another try would end the same way.
        """
        ...


def assistant(provider: str) -> Assistant:
    """The assistant of a provider's name.

    Raises:
        AssistantRefused: there is none of this name; `qasid apply` lets none in.
    """
    from app.assistants import ansari, anthropic, openai

    match provider:
        case "anthropic":
            return anthropic.ASSISTANT
        case "openai":
            return openai.ASSISTANT
        case "ansari":
            return ansari.Ansari()
    raise AssistantRefused(f"there is no assistant of the provider {provider!r}")
