"""One question, as many calls as it takes: tried again where that may help, continued where an answer was cut short.

It knows no provider; `once` makes one call. All calls share one deadline. A part that is gone on from is kept first, so that
whoever has the turn next goes on from it, too.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256

import msgspec
import structlog

from app.assistants import Answer, Asking, Call, Notes, Question
from app.assistants.composed import answer
from app.assistants.lines import shown
from app.assistants.parts import Cut, Part
from app.configuration import AssistantSettings
from app.crashpoints import crashpoint
from app.errors import AssistantBusy, AssistantError, AssistantRefused, DatabaseUnavailable, LaneLost, Withdrawn
from app.retrying import tried, watched

log = structlog.get_logger(__name__)

# For each part of an answer.
TRIES = 4
# An answer is continued twice at most: then it is longer than anybody meant it to be.
MOST_PARTS = 3
# What a broken stream left behind is worth sending from so many characters on. Below, "please try again" says more.
SHORTEST = 80
# With less time left than this (seconds) no continuation is begun.
LEAST = 0.5
# Said to whoever was cut short. Not in the form of a prefilled answer: Claude refuses that since 4.6 (Anthropic's
# migration guide), and of the others only some know it.
GO_ON = (
    "Continue your last message exactly where it stops, in the same language and format. "
    "Repeat nothing of it and do not mention that it was cut."
)

Once = Callable[[Sequence[Part], Call | None], Awaitable[Part]]


async def whole(
    once: Once,
    settings: AssistantSettings,
    question: Question,
    *,
    deadline: float,
    notes: Notes,
    asking: Asking | None,
) -> Answer:
    """The answer, made of calls to `once(the parts so far, the call under watch)`. Errors: see `Assistant.ask`.

    What was cut and could not be completed in time is `partial`. `notes` hold the parts that were gone on from.
    """
    asked, kept = _Asked(once, deadline, asking), _Kept(notes, settings)
    parts = kept.parts()
    ended = False
    try:
        while True:
            parts.append(await asked.next(parts))
            ended = parts[-1].ending not in ("limit", "cut", "paused") or len(parts) == MOST_PARTS
            if ended or asked.left < LEAST:
                break
            await kept.keep(parts)
    except Withdrawn:
        raise
    except AssistantError:
        half = asked.half
        if half is not None and (half.length >= SHORTEST or (parts and half.length)):
            parts.append(half)
        if not parts:
            raise
    if not any(part.length for part in parts):  # it paused, and had nothing to say then
        raise AssistantBusy("an empty answer")
    return answer(parts, ended=ended, shown=shown(settings, question))


class _Kept:
    """The parts of one turn's answer as its notes have them, of this provider's model: another's are not gone on from.

    A part's name says which parts it follows: of two answers, of each of which some parts were kept, none is made.
    """

    def __init__(self, notes: Notes, settings: AssistantSettings) -> None:
        self._notes = notes
        self._who = f"{settings.provider} {settings.base_url} {settings.model}".encode("utf-8", "surrogatepass")

    def parts(self) -> list[Part]:
        """Those that were finished before, by whomever."""
        found: list[Part] = []
        try:
            while True:
                found.append(msgspec.convert(self._notes[self._name(found)], Part))
        except KeyError:
            return found

    async def keep(self, parts: Sequence[Part]) -> None:
        """Commit the last of them. What the database does not take is at hand here: it is paid for, and gone on from.

        Raises:
            LaneLost: the turn is another worker's.
        """
        try:
            await self._notes.keep(self._name(parts[:-1]), msgspec.to_builtins(parts[-1]))
        except LaneLost:
            raise
        except DatabaseUnavailable as error:
            log.info("a part of an answer is not kept", error=error)
        crashpoint("answer.continued")

    def _name(self, before: Sequence[Part]) -> str:
        """Of the part behind these. Their keys in order: PostgreSQL gives them back in one of its own."""
        digest = sha256(self._who)
        for part in before:
            digest.update(msgspec.json.encode(part, order="sorted"))
        return f"part/{len(before) + 1} {digest.hexdigest()[:16]}"


class _Asked:
    """A question on its way. `half`: the longest piece that a broken stream left of the part that is asked for now."""

    def __init__(self, once: Once, deadline: float, asking: Asking | None) -> None:
        self._once = once
        self._deadline = deadline
        self._asking = asking
        self.half: Part | None = None

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - time.monotonic()

    async def next(self, parts: Sequence[Part]) -> Part:
        """The next part; a call that failed is made again, from the start."""
        self.half = None

        async def once() -> Part:
            began = time.monotonic()
            try:
                async with watched(self._asking) as call:
                    part = await self._once(parts, call)
                    # Who paused may have nothing to add; who was cut has, whatever it says now.
                    if not parts or parts[-1].ending != "paused":
                        _check(part)
                    return part
            except Cut as cut:
                if self.half is None or cut.part.length > self.half.length:
                    self.half = cut.part
                # The time that is left would not do for all of it again; to go on from here it may.
                if cut.part.length >= SHORTEST and LEAST < self.left < time.monotonic() - began:
                    self.half = None
                    return cut.part
                raise

        return await tried(once, busy=AssistantBusy, deadline=self._deadline, tries=TRIES, what="whole answer")


def _check(part: Part) -> None:
    """A part has words, unless it pauses before them."""
    if part.length or part.ending == "paused":
        return
    if part.ending == "whole":
        raise AssistantBusy("an empty answer")
    advice = ": is max_tokens too small?" if part.ending == "limit" else ""
    raise AssistantRefused(f"it stopped before it had said a word ({part.stopped}){advice}")
