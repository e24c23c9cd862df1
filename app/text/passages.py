"""Passages of a Markdown text that a translator must not touch: cut out before, put back after. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heapreplace

import regex
from msgspec import Struct

_UNTOUCHED = regex.compile(r"```(?s:.)*?(?:```|\Z)|`[^`\n]+`|(?i:https?://|www\.)[^\s<>)\]]+")
_SOURCE = regex.compile(r"\[\d+\]")
_MARK = regex.compile(r"\[QX*\d+\]")


class Masked(Struct, frozen=True):
    """A text with marks like [Q1] in it, and the passage that each stands for."""

    text: str
    passages: Mapping[str, str]


def masked(text: str, quotations: Sequence[str]) -> Masked:
    """`text` without the quotations, code and URLs in it: each is a mark that `text` has nowhere else.

    Where they overlap, what begins first counts; of what begins at one place a quotation, the longest.
    """
    letters = "Q"
    while f"[{letters}" in text:
        letters += "X"
    parts: list[str] = []
    passages: dict[str, str] = {}
    at = 0
    for start, end in _untouched(text, quotations):
        name = f"[{letters}{len(passages) + 1}]"
        passages[name] = text[start:end]
        parts += (text[at:start], name)
        at = end
    return Masked("".join((*parts, text[at:])), passages)


def _untouched(text: str, quotations: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where the passages stand. Each quotation is looked for on its own: one pattern of all tries all of them everywhere."""
    quoted = [(text.find(each), -len(each), each) for each in {each for each in quotations if each.strip()}]
    ahead = [place for place in quoted if place[0] >= 0]
    heapify(ahead)
    at, other = 0, _UNTOUCHED.search(text)
    while True:
        while ahead and ahead[0][0] < at:
            _, size, quotation = ahead[0]
            if (found := text.find(quotation, at)) >= 0:
                heapreplace(ahead, (found, size, quotation))
            else:
                heappop(ahead)
        if other is not None and other.start() < at:
            other = _UNTOUCHED.search(text, at)
        if ahead and (other is None or ahead[0][0] <= other.start()):
            start, at = ahead[0][0], ahead[0][0] - ahead[0][1]
        elif other is not None:
            start, at = other.span()
        else:
            return
        yield start, at


def unmasked(translation: str, original: Masked) -> str | None:
    """The translation of `original.text`, its passages put back; None where a mark, or the number of a source, is not
    in it as often as it should be.
    """
    if Counter(_SOURCE.findall(translation)) != Counter(_SOURCE.findall(original.text)):
        return None
    marks = Counter(mark for mark in _MARK.findall(translation) if mark in original.passages)
    if len(marks) != len(original.passages) or any(count != 1 for count in marks.values()):
        return None
    return str(_MARK.sub(lambda found: original.passages.get(found[0], found[0]), translation))
