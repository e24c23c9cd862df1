"""One answer of several calls, made by one worker after the other: whose parts go together."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from app.assistants import Call, Line, Question
from app.assistants.parts import Block, Ending, Part
from app.assistants.whole import whole
from app.configuration import AssistantSettings
from app.errors import DatabaseUnavailable
from app.vault import Secret

pytestmark = pytest.mark.anyio

SETTINGS = AssistantSettings(provider="anthropic", base_url="http://x", api_key=Secret("k"), model="m")


class Table(dict[str, bytes]):
    """`steps` of one turn: what stands under a name stays."""

    def opened(self, *, away: int = 0) -> "Opened":
        """What the next worker has of it; of its own commits the first so many fail."""
        return Opened(self, away)


class Opened(dict[str, Any]):
    """`app.assistants.Notes` of one claim."""

    def __init__(self, table: Table, away: int) -> None:
        super().__init__({name: msgspec.json.decode(value) for name, value in table.items()})
        self._table = table
        self._away = away

    async def keep(self, name: str, value: Any, *, lasting: bool = False) -> None:
        if self._away:
            self._away -= 1
            raise DatabaseUnavailable("memo")
        # JSON in PostgreSQL has an order of its own.
        self._table.setdefault(name, msgspec.json.encode(value, order="sorted"))
        self[name] = value


class Worker:
    """Asks for the parts that its claim lacks, each a sentence of its own; the call of number `dies` kills it."""

    def __init__(self, name: str, *, dies: int = 0, ending: Ending = "limit") -> None:
        self.asked: list[int] = []
        self._name = name
        self._dies = dies
        self._ending: Ending = ending

    async def once(self, parts: Sequence[Part], call: Call | None) -> Part:
        n = len(parts) + 1
        self.asked.append(n)
        if n == self._dies:
            raise asyncio.CancelledError
        return Part(
            blocks=(Block(text=f"{self._name} says {n}. "),),
            ending="whole" if n == 3 else self._ending,
            stopped="",
            content=({"type": "thought", "by": self._name, "a": [n, 0.5]},),
        )

    async def answer(self, notes: Opened) -> str:
        question = Question(lines=(Line("user", "?"),))
        answer = await whole(self.once, SETTINGS, question, deadline=time.monotonic() + 5, notes=notes, asking=None)
        return answer.text.strip()


async def killed(worker: Worker, notes: Opened) -> None:
    with pytest.raises(asyncio.CancelledError):
        await worker.answer(notes)


@pytest.mark.parametrize("ending", ["limit", "paused"])
async def test_no_answer_is_made_of_two(ending: Ending) -> None:
    """A part follows those that it was asked for behind, and no others: not where the first of them was never committed, and
    another worker has asked for another since.
    """
    table = Table()
    await killed(Worker("A", dies=3, ending=ending), table.opened(away=1))
    await killed(Worker("B", dies=3, ending=ending), table.opened())
    heir = Worker("C", ending=ending)
    assert (await heir.answer(table.opened())) == "B says 1. B says 2. C says 3."
    assert heir.asked == [3]


async def test_a_part_that_is_committed_late_has_those_behind_it() -> None:
    """Its worker has it at hand, and the next claim commits it: all that was kept is gone on from."""
    table, late = Table(), Table()
    await killed(Worker("A", dies=2), late.opened())
    await killed(Worker("A", dies=3), table.opened(away=1))
    heir = Worker("B")
    assert await heir.answer(Table(table | late).opened()) == "A says 1. A says 2. B says 3."
    assert heir.asked == [3]
