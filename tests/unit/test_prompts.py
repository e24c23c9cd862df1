"""The words by which the sandbox tells what an assistant is asked for are those that production asks with: pinned on both sides.

Reworded on one of them, the simulated server would be another, and what is tested against it would mean something else.
"""

import time
from typing import Any

import httpx
import pytest

from app.assistants import Answer, Question
from app.assistants.whole import GO_ON
from app.configuration import Assistant as Settings
from app.configuration import AssistantSettings
from app.sandbox import assistant as sandbox
from app.sandbox.scripts import answer
from app.translation.assistant import AssistantTranslator
from app.vault import Secret

pytestmark = pytest.mark.anyio

SETTINGS = Settings(provider="anthropic", base_url="http://x", api_key=Secret("k"), model="m", system="You are kind.")


class Simulated:
    """Says what the sandbox's assistant would, and keeps the system prompts that it was given."""

    def __init__(self) -> None:
        self.systems: list[str] = []

    async def ask(self, client: httpx.AsyncClient, settings: AssistantSettings, question: Question, **_: Any) -> Answer:
        self.systems.append(settings.system)
        said = answer([line.text for line in question.lines], system=settings.system)
        text = "".join(block.text for block in said)
        return Answer(text=text, model="m", input_tokens=0, output_tokens=0, stopped="end_turn")


async def test_the_sandbox_knows_a_translators_words() -> None:
    """What is to be translated, and what is to be named the language of, each by its prompt and between its tags."""
    simulated = Simulated()
    translator = AssistantTranslator(SETTINGS, None, assistant=lambda _: simulated)
    deadline = time.monotonic() + 5.0
    async with httpx.AsyncClient() as client:
        translated = await translator.translate(client, "إنما", source="ar", target="en", deadline=deadline)
        recognised = await translator.recognise(client, "إنما", ["ar", "en"], deadline=deadline)
    assert (translated.text, recognised.language) == ("[translated] إنما", "ar")
    first, second = simulated.systems
    assert first.startswith("Translate the text between <text-")
    assert second.startswith("Name the language of the text between <text-")


def test_the_sandbox_knows_who_asks_it_to_go_on() -> None:
    """By the first word, which is an instruction's and no person's."""
    assert GO_ON.startswith("Continue your last message exactly where it stops")
    assert GO_ON.startswith(sandbox.GO_ON)


def test_a_tenants_own_prompt_is_neither() -> None:
    """Whatever is asked under it is answered, with its tags."""
    (block,) = answer(["<text-1>x</text-1>"], system="You translate nothing. Name the language you are asked in.")
    assert block.text == "You said: <text-1>x</text-1>"
