"""Passages of a Markdown text that a translator must not touch: cut out before, put back after. Pure."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from itertools import count
from unicodedata import decimal

import regex
from msgspec import Struct

from app.text.quoted import Span, quoted

# The first passage of a sort that begins there or behind; None: there is none.
Finder = Callable[[int], Span | None]

_UNTOUCHED = regex.compile(r"```(?s:.)*?(?:```|\Z)|`[^`\n]+`|(?i:https?://|www\.)[^\s<>)\]]+")
# Of a source, or a mark: also one like it that the text has itself.
_NUMBER = regex.compile(r"\[(?:QX*+)?\d+\]")
_LIKE_OURS = regex.compile(r"\[Q(X*+)")


class Masked(Struct, frozen=True):
    """A text with marks like [Q1] in it, and the passage that each stands for."""

    text: str
    passages: Mapping[str, str]


def masked(text: str, quotations: Sequence[str]) -> Masked:
    """`text` without the quotations, code and URLs in it: each is a mark that `text` has nowhere else.

    `quotations`: what its sources say. Where they stand whole, and where `app.text.quoted` finds parts of them, and verses.
    Where they overlap, what begins first counts; of what begins at one place a quotation, the longest.
    """
    taken = {len(found) for found in _LIKE_OURS.findall(text)}
    letters = "Q" + "X" * next(each for each in count() if each not in taken)
    parts: list[str] = []
    passages: dict[str, str] = {}
    at = 0
    for start, end in _untouched(text, quotations):
        name = f"[{letters}{len(passages) + 1}]"
        passages[name] = text[start:end]
        parts += (text[at:start], name)
        at = end
    return Masked("".join((*parts, text[at:])), passages)


def _untouched(text: str, quotations: Sequence[str]) -> Iterator[Span]:
    """Where the passages stand. Each quotation is looked for on its own: one pattern of all tries all of them everywhere."""
    whole = {each.strip() for each in quotations} - {""}
    finders = [_code(text), _first(quoted(text, quotations)), *(_same(text, each) for each in whole)]
    ahead = [(*_rank(span, no), no) for no, find in enumerate(finders) if (span := find(0))]
    heapify(ahead)
    at = 0
    while ahead:
        start, _, end, no = ahead[0]
        if start >= at:
            at = -end
            yield start, at
        if (span := finders[no](at)) is None:
            heappop(ahead)
        else:
            heapreplace(ahead, (*_rank(span, no), no))


def _rank(span: Span, no: int) -> tuple[int, bool, int]:
    """What is less counts: who begins first, a quotation before code, the longest."""
    return span[0], no == 0, -span[1]


def _code(text: str) -> Finder:
    def find(at: int) -> Span | None:
        found = _UNTOUCHED.search(text, at)
        return found.span() if found else None

    return find


def _same(text: str, quotation: str) -> Finder:
    def find(at: int) -> Span | None:
        start = text.find(quotation, at)
        return None if start < 0 else (start, start + len(quotation))

    return find


def _first(spans: Sequence[Span]) -> Finder:
    """Of these, which are in order; asked from left to right."""
    left = deque(spans)

    def find(at: int) -> Span | None:
        while left and left[0][0] < at:
            left.popleft()
        return left[0] if left else None

    return find


def makes_up(translation: str, text: str) -> bool:
    """Whether a translation has a mark, or the number of a source, that `text` has not, in whatever digits."""
    return not _numbers(translation) <= _numbers(text)


def _numbers(text: str) -> set[str]:
    return {regex.sub(r"\d", lambda digit: str(decimal(digit[0])), found) for found in _NUMBER.findall(text)}


def unmasked(translation: str, original: Masked) -> str | None:
    """The translation of `original.text`, its passages put back; None where a mark, or the number of a source, is not
    in it as often as there: lost, doubled, or the engine's own.
    """
    if Counter(_NUMBER.findall(translation)) != Counter(_NUMBER.findall(original.text)):
        return None
    return str(_NUMBER.sub(lambda found: original.passages.get(found[0], found[0]), translation))
