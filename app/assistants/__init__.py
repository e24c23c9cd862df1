"""The room of those who answer: what an assistant must be able to do, and which ones there are."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import httpx
from msgspec import Struct

from app.configuration import Assistant as AssistantSettings
from app.errors import AssistantRefused


class Line(Struct, frozen=True):
    """One message of the conversation, as the assistant sees it."""

    role: Literal["user", "assistant"]
    text: str


class Answer(Struct, frozen=True, kw_only=True):
    """A whole answer, in Markdown; `text` is never blank. Tokens as the provider counts them."""

    text: str
    model: str
    input_tokens: int
    output_tokens: int
    stopped: str
    """The provider's reason to stop: `end_turn`, `max_tokens`, …"""


class Call(Protocol):
    """One call under watch, of those who count whether the provider is well."""

    def began(self) -> None:
        """The first words of the answer are here."""
        ...


Asking = Callable[[], AbstractAsyncContextManager[Call]]


class Assistant(Protocol):
    """Somebody who answers. `tests/conformance/test_assistants.py` holds what every one must do."""

    async def ask(
        self, client: httpx.AsyncClient, settings: AssistantSettings, lines: list[Line], asking: Asking | None = None
    ) -> Answer:
        """The answer to `lines`, oldest first, the last of them a person's; within `settings.deadline_seconds`.

        Each call is made inside `asking()`, which may let it wait: the deadline goes on meanwhile.

        Raises:
            AssistantBusy: no usable answer within the deadline.
            AssistantRefused: another try would end the same way.
        """
        ...


def assistant(provider: str) -> Assistant:
    """The assistant of a provider's name.

    Raises:
        AssistantRefused: there is none yet; `qasid apply` warns of that.
    """
    from app.assistants import anthropic

    if provider != "anthropic":
        raise AssistantRefused(f"no assistant of the provider {provider!r} is built yet")
    return anthropic.Anthropic()
