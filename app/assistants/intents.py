"""Fixed replies: what a tenant's intents answer without asking an assistant, and what follows from it. Pure, no I/O."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from app.configuration import Intent
from app.text.assent import assents
from app.text.matching import Pattern, normalise

# No fixed phrase is longer (characters): WhatsApp takes no longer text, and what a stranger's bytes cost stays bounded.
LONGEST = 4_096


class Fixed(Struct, frozen=True, kw_only=True):
    """What a turn is answered with by intents, and what follows. `reply`: empty where something is left for the assistant."""

    reply: str
    stops: bool | None = None
    """The person wants no answers any more; False: they do again."""
    asks: str | None = None
    """The intent whose question is in the reply, for `Intents.answer` at the next turn."""
    pauses: float | None = None
    """The conversation is people's for so many hours."""
    weighs: bool = False
    """It stops, starts or hands over, or asks whether to: no limit of a day is to keep it from anybody."""


class Intents:
    """A tenant's intents, ready to look up: whole texts at once, then patterns in the file's order."""

    def __init__(self, intents: Iterable[Intent] = ()) -> None:
        self._whole: dict[str, Intent] = {}
        self._patterns: list[tuple[Pattern, Intent]] = []
        self._asking: dict[str, Intent] = {}
        self.can_start = False
        """Whether a word takes a stop back: only then one counts."""
        for intent in intents:
            for text in intent.match:
                self._whole.setdefault(normalise(text), intent)
            self._patterns += [(Pattern(text), intent) for text in intent.patterns]
            self.can_start |= intent.then == "start"
            if intent.then == "confirm":
                self._asking.setdefault(_name(intent), intent)

    def __len__(self) -> int:
        """Texts and patterns."""
        return len(self._whole) + len(self._patterns)

    def of(self, text: str) -> Intent | None:
        """The intent that this text is, if it is one."""
        if len(text) > LONGEST or not (bare := normalise(text)) or len(bare) > LONGEST:  # of one letter it may make 18
            return None
        if (intent := self._whole.get(bare)) is not None:
            return intent
        return next((intent for pattern, intent in self._patterns if pattern.matches(bare)), None)

    def answer(self, texts: Sequence[str], asking: str | None = None, *, beside: bool = False) -> Fixed | None:
        """What answers a turn of these messages; None if it is the assistant's alone.

        `asking`: the intent whose question the person was asked last. Whole texts that say yes or no in its language are
        the answer to it; anything else is taken as if nothing had been asked. Different replies come in the order of the
        messages, each once, with an empty line between.

        Where a message is no intent, or `beside` these there are some that cannot be, the turn is for the assistant. But
        the last word on stopping is heard whatever stands beside it: whoever wants no answers gets its reply alone, and
        behind one that wants them again the assistant answers.
        """
        if not texts or not len(self):
            return None
        if not beside and asking is not None and (asked := self._asking.get(asking)) is not None:
            said = _assent(asked, texts)
            if said is not None:
                return _confirmed(asked, said)
        matched = [self.of(text) for text in texts]
        found = [intent for intent in matched if intent is not None]
        last = next((intent for intent in reversed(found) if intent.then in ("stop", "start")), None)
        stops = None if last is None else last.then == "stop"
        if beside or len(found) < len(texts):
            return None if last is None else Fixed(reply=last.reply if stops else "", stops=stops, weighs=True)
        asks = [_name(intent) for intent in found if intent.then == "confirm"]
        return Fixed(
            reply="\n\n".join(dict.fromkeys(intent.reply for intent in found)),
            stops=stops,
            asks=asks[-1] if asks and not stops else None,
            pauses=max((intent.pause_hours for intent in found if intent.then == "hand_over"), default=None),
            weighs=any(_weighs(intent) for intent in found),
        )


def _confirmed(intent: Intent, yes: bool) -> Fixed:
    if not yes:
        return Fixed(reply=intent.no or "", weighs=_weighs(intent))
    return Fixed(
        reply=intent.yes or "",
        stops=True if intent.yes_then == "stop" else None,
        pauses=intent.pause_hours if intent.yes_then == "hand_over" else None,
        weighs=_weighs(intent),
    )


def _weighs(intent: Intent) -> bool:
    return intent.then in ("stop", "start", "hand_over") or intent.yes_then != "reply"


def _assent(intent: Intent, texts: Sequence[str]) -> bool | None:
    """Whether each of these texts says yes, or each says no; None: neither."""
    said = {assents(normalise(text), intent.language) if len(text) <= LONGEST else None for text in texts}
    return said.pop() if len(said) == 1 else None


def _name(intent: Intent) -> str:
    """What a lane remembers an intent by: the first text or pattern that it goes by, which no other has."""
    return normalise(intent.match[0]) if intent.match else Pattern(intent.patterns[0]).name
