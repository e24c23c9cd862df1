"""Whether each person got what they must get, once and in order. Pure; judges by the recipient's side alone."""

import itertools
from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from app.demo.script import Outcome, Turn

SHOWN = 40  # characters of a text in a fault


class Expected(Struct, frozen=True, kw_only=True):
    """What one person sent in one step (`label`), and every right way to answer it."""

    label: str
    outcomes: Sequence[Outcome]


def matched(outcomes: Sequence[Outcome], texts: Sequence[str]) -> Outcome | None:
    """The outcome that these texts are, whole; None: not yet, or wrong."""
    return next((outcome for outcome in outcomes if _flat([outcome]) == list(texts)), None)


def faults(steps: Sequence[Expected], texts: Sequence[str]) -> list[str]:
    """What is wrong with the `texts` that one person got, for the steps in order; nothing if all is right."""
    ways = list(itertools.product(*(step.outcomes for step in steps)))
    for way in ways:
        if _flat(way) == list(texts):
            turns = [(step, turn) for step, outcome in zip(steps, way, strict=True) for turn in outcome]
            return [
                f"a source is not as it was quoted, in the answer to: {step.label}"
                for step, turn in turns
                if _mangled(turn)
            ]
    got = Counter(texts)
    # Measured by the way that comes nearest: the most of it is there, then the least beside it.
    way = max(ways, key=lambda way: ((Counter(_flat(way)) & got).total(), -len(_flat(way))))
    wanted = _flat(way)
    missing, extra = Counter(wanted) - got, got - Counter(wanted)
    found: list[str] = []
    for step, outcome in zip(steps, way, strict=True):
        for turn in outcome:
            found += _missing(step.label, turn, missing)
    for text, times in extra.items():
        what = f"doubled, {times} too many" if text in wanted else "not expected"
        found.append(f"{what}: {_short(text)}")
    firsts = [text for text in dict.fromkeys(texts) if text in wanted]
    if firsts != [text for text in dict.fromkeys(wanted) if text in got]:
        found.append("out of order: " + ", then ".join(_short(text) for text in firsts))
    return found or ["out of order"]


def _mangled(turn: Turn) -> bool:
    whole = "".join(turn.texts)
    return any(quotation not in whole for quotation in turn.quoted)


def _missing(label: str, turn: Turn, missing: Counter[str]) -> list[str]:
    lost = [n for n, text in enumerate(turn.texts, 1) if missing[text] > 0]
    missing.subtract(turn.texts)
    if len(lost) == len(turn.texts):
        return [f"unanswered: {label}"]
    return [f"chunk {n} of {len(turn.texts)} never came, of the answer to: {label}" for n in lost]


def _flat(way: Sequence[Outcome]) -> list[str]:
    return [text for outcome in way for turn in outcome for text in turn.texts]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return f"“{line[:SHOWN]}…”" if len(line) > SHOWN else f"“{line}”"
