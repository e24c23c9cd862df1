"""Passages of a Markdown text that a translator must not touch: cut out before, put back after. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence

import regex
from msgspec import Struct

_UNTOUCHED = r"```(?s:.)*?(?:```|\Z)|`[^`\n]+`|(?i:https?://|www\.)[^\s<>)\]]+"
_SOURCE = regex.compile(r"\[\d+\]")


class Masked(Struct, frozen=True):
    """A text with marks like [Q1] in it, and the passage that each stands for."""

    text: str
    passages: Mapping[str, str]


def masked(text: str, quotations: Sequence[str]) -> Masked:
    """`text` without the quotations, code and URLs in it: each is a mark that `text` has nowhere else."""
    longest_first = sorted({each for each in quotations if each.strip()}, key=len, reverse=True)
    untouched = regex.compile("|".join([*map(regex.escape, longest_first), _UNTOUCHED]))
    letters = "Q"
    while f"[{letters}" in text:
        letters += "X"
    passages: dict[str, str] = {}

    def mark(found: "regex.Match[str]") -> str:
        name = f"[{letters}{len(passages) + 1}]"
        passages[name] = found[0]
        return name

    return Masked(str(untouched.sub(mark, text)), passages)


def unmasked(translation: str, original: Masked) -> str | None:
    """The translation of `original.text`, its passages put back; None where a mark, or the number of a source, is not
    in it as often as it should be.
    """
    if Counter(_SOURCE.findall(translation)) != Counter(_SOURCE.findall(original.text)):
        return None
    if any(translation.count(mark) != 1 for mark in original.passages):
        return None
    if not original.passages:
        return translation
    mark = regex.compile("|".join(map(regex.escape, original.passages)))
    return str(mark.sub(lambda found: original.passages[found[0]], translation))
