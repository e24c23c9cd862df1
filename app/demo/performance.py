"""Plays the scenes through the sandbox, prints what was said, and reports what must have come to whom."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from app.demo import verdict
from app.demo.control import Control, Said
from app.demo.script import Outcome, Person, Says, Step, outcomes, scenes
from app.demo.stages import Measured, turns
from app.demo.transcript import Terminal
from app.sandbox.ledger import Line

STEP_SECONDS = 60.0  # the longest anybody waits for an answer
LOG_SECONDS = 2.0  # the worker tells of a turn a moment after its text arrived
# As a real assistant talks: seconds to its first word, seconds between pieces of so many characters.
PACE = {"first_token": 0.4, "between": 0.01, "characters": 80}
TRANSLATION_SECONDS = 0.4


class Result(Struct, frozen=True, kw_only=True):
    """`faults` is empty if each message was answered once, in order, and every status was taken."""

    faults: list[str]
    messages: int
    texts: int


class _Played(Struct, frozen=True, kw_only=True):
    step: Step
    said: list[Said]
    texts: list[Line]
    outcome: Outcome | None


class Performance:
    """One conversation with `number`. `correlations` tells what the logs call a message, by its provider's id."""

    def __init__(
        self,
        control: Control,
        terminal: Terminal,
        *,
        number: str,
        tenant: Mapping[str, Any],
        worker_log: Path,
        correlations: Callable[[Sequence[str]], Awaitable[dict[str, str]]],
    ) -> None:
        self._control = control
        self._terminal = terminal
        self.number = number
        self._tenant = tenant
        self._log = worker_log
        self._correlations = correlations
        self._began: float | None = None
        self._played: list[_Played] = []
        self._measured: list[Measured] = []

    async def play(self) -> Result:
        """The whole conversation, up to the first message that nobody answers within a minute."""
        await self._control.pace(**PACE)
        await self._control.translator(seconds=TRANSLATION_SECONDS)
        for scene in scenes():
            self._terminal.title(scene.title)
            played = await asyncio.gather(*(self._step(step) for step in scene.steps))
            self._played += played
            self._show(played)
            if any(each.outcome is None for each in played):
                break
            await self._measure(played)
        if self._measured:
            self._terminal.summary(self._measured)
        return await self._judged()

    async def _step(self, step: Step) -> _Played:
        await asyncio.sleep(step.after)
        before = len(await self._texts(step.person, 0, timeout=0.0))
        said = [await self._control.say(**self._spoken(step.person, each)) for each in step.says]
        right = outcomes(step, self._tenant)
        deadline = time.monotonic() + STEP_SECONDS
        texts: list[Line] = []
        outcome = None
        while outcome is None and (left := deadline - time.monotonic()) > 0:
            texts = (await self._texts(step.person, before + len(texts) + 1, timeout=left))[before:]
            outcome = verdict.matched(right, [line.text for line in texts])
        return _Played(step=step, said=said, texts=texts, outcome=outcome)

    def _spoken(self, person: Person, says: Says) -> dict[str, str]:
        named = {"from": person.number, "name": person.name, "kind": says.kind, "text": says.text}
        return {"phone_number_id": self.number, **named}

    async def _texts(self, person: Person, count: int, *, timeout: float) -> list[Line]:
        return await self._control.wait(person.number, count, timeout=timeout)

    # --- what is shown ---

    def _show(self, played: Sequence[_Played]) -> None:
        """The scene's events in the order of their times, by the sandbox's clock."""
        terminal = self._terminal
        events: list[tuple[float, Callable[[float], None]]] = []
        for each in played:
            name = each.step.person.name
            for says, webhook in zip(each.step.says, each.said, strict=True):
                shown = partial(terminal.said, name=name, text=says.shown or says.text)
                events.append((webhook.deliveries[0].t, shown))
            parts = [(n, len(turn.texts)) for turn in each.outcome or () for n in range(1, len(turn.texts) + 1)]
            for line, (n, of) in zip(each.texts, parts or [(1, 1)] * len(each.texts), strict=True):
                got = partial(terminal.got, name=name, text=line.text, chunk=n, chunks=of, whole=each.step.whole)
                events.append((line.t, got))
        events.sort(key=lambda event: event[0])
        if self._began is None:
            self._began = events[0][0]
        for at, show in events:
            show(at - self._began)

    async def _measure(self, played: Sequence[_Played]) -> None:
        """Print the stages of the scene's turns."""
        names = await self._correlations([id for each in played for said in each.said for id in said.ids])
        firsts: list[tuple[str, int, Said, Line]] = []
        for each in played:
            m = t = 0
            for turn in each.outcome or ():
                firsts.append((each.step.person.name, turn.messages, each.said[m], each.texts[t]))
                m, t = m + turn.messages, t + len(turn.texts)
        deadline = time.monotonic() + LOG_SECONDS
        while True:
            told = turns(self._log)
            found = [told.get(names.get(said.ids[0], "")) for _, _, said, _ in firsts]
            if all(found) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        for (name, messages, said, line), stages in zip(firsts, found, strict=True):
            sent = said.deliveries[0]
            measured = Measured(ack_ms=sent.ack_ms, first_ms=(line.t - sent.t) * 1000, stages=stages)
            self._measured.append(measured)
            self._terminal.measured(name, measured, messages)

    # --- the verdict ---

    async def _judged(self) -> Result:
        """By the sandbox's ledger, once it has told us every status: a double may come late."""
        found = await self._statuses()
        entries = (await self._control.ledger()).entries
        if entries and not any(post.status == 200 for post in await self._control.status_webhooks()):
            found.append("no status was taken")
        steps: dict[str, list[verdict.Expected]] = defaultdict(list)
        people: dict[str, Person] = {}
        for each in self._played:
            person = each.step.person
            people[person.number] = person
            label = " / ".join(says.shown or says.text for says in each.step.says)
            steps[person.number].append(verdict.Expected(label=label, outcomes=outcomes(each.step, self._tenant)))
        texts = 0
        for number, person in people.items():
            got = [line.text for line in entries if line.recipient == number]
            texts += len(got)
            found += [f"{person.name}: {fault}" for fault in verdict.faults(steps[number], got)]
        return Result(faults=found, messages=sum(len(each.said) for each in self._played), texts=texts)

    async def _statuses(self) -> list[str]:
        """Wait until every message was reported read; what is wrong about it."""
        deadline = time.monotonic() + STEP_SECONDS / 4
        while True:
            waiting = (await self._control.ledger()).waiting
            if not waiting.statuses and not waiting.redeliveries:
                return []
            if time.monotonic() > deadline:
                return [f"{waiting.statuses} statuses, {waiting.redeliveries} webhooks were not taken"]
            await asyncio.sleep(0.05)
