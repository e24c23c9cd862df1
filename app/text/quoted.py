"""Where a Markdown text quotes: verses in their brackets, and what it marks as quoted if one of its sources says so. Pure.

Words are compared, not letters: white space, punctuation and vowel signs may be others than the source's.
"""

from collections.abc import Iterator, Mapping, Sequence

import regex

from app.text.matching import UNSEEN

Span = tuple[int, int]

_VERSE = regex.compile(r"﴿[^﴿﴾]++﴾|﴾[^﴿﴾]++﴿")
_LETTER = r"[\p{L}\p{M}\p{N}]"
# What opens, and what closes. Within a word, or before its end, a single one is an apostrophe: “Qur’an”, “Ka‘ba”.
_PAIRS = [
    regex.compile(f"({opening})|{closing}")
    for opening, closing in (
        *("«»", "“”", "‹›", "「」", "『』", "《》"),
        ("„", "[“”]"),
        (f"(?<!{_LETTER})‘", f"’(?!{_LETTER})"),
    )
]
# A straight one opens and closes alike: a stray one must not turn the next paragraph's inside out.
_STRAIGHT = [
    regex.compile(r'"(?:[^"\n]++|\n(?!\n))*+"'),
    regex.compile(rf"(?<!{_LETTER})'(?:[^'\n]++|\n(?!\n)|(?<={_LETTER})'(?={_LETTER}))*+'(?!{_LETTER})"),
]
# So many of the same marks are quotations within each other: what stands in all of them is read once for each.
DEEP = 2
_BLOCK = regex.compile(r"(?m)^[ \t]*+>.*+(?:\n[ \t]*+>.*+)*+")
_BEGINS = regex.compile(r"[\s>]*+")
# What may stand before a mark at the beginning of a line, and behind one at its end.
_EMPHASIS = "*_~"
_ENDS = _EMPHASIS + ".,;:!?…،؛؟。"
_SOURCE = regex.compile(r"\[\d+\]")
_BETWEEN = regex.compile(r"[\p{P}\p{S}\s]+")
# So many different ones are looked for in the sources. No answer for people has as many; a hostile one would take seconds.
MOST = 1_000


def quoted(text: str, sources: Sequence[str]) -> list[Span]:
    """Where each stands, without its marks but for a verse's; by beginning, of one beginning the longest first.

    Of a block quotation the whole, or the lines that stand in a source. The numbers of sources behind are no part of it.
    """
    said = "\n".join(f" {_words(each)} " for each in sources)
    known: dict[str, bool] = {}
    spans: list[Span] = [found.span() for found in _VERSE.finditer(text)]
    for start, end in _marked(text):
        words = _words(text[start:end])
        if words not in known and len(known) < MOST:
            known[words] = words != "" and f" {words} " in said
        if known.get(words):
            spans.append((start, end))
    return sorted(spans, key=lambda span: (span[0], -span[1]))


def _words(text: str) -> str:
    return str(_BETWEEN.sub(" ", UNSEEN.sub("", text))).strip()


def _marked(text: str) -> Iterator[Span]:
    mates: dict[int, int] = {}
    for opening, closing in _pairs(text):
        mates[opening], mates[closing] = closing, opening
        yield _bare(text, opening + 1, closing)
    for block in _BLOCK.finditer(text):
        yield _unmarked(text, *block.span(), mates)
        at = block.start()
        for line in block[0].split("\n"):
            yield _unmarked(text, at, at + len(line), mates)
            at += len(line) + 1


def _pairs(text: str) -> Iterator[Span]:
    """Where the two marks of each stand."""
    for straight in _STRAIGHT:
        for found in straight.finditer(text):
            yield found.start(), found.end() - 1
    for marks in _PAIRS:
        opened: list[Span] = []  # and how deep what it holds is so far
        for found in marks.finditer(text):
            if found[1]:
                opened.append((found.start(), 0))
            elif opened:
                start, holds = opened.pop()
                if holds < DEEP:
                    yield start, found.start()
                if opened:
                    outer, deep = opened[-1]
                    opened[-1] = outer, max(deep, holds + 1)


def _unmarked(text: str, start: int, end: int, mates: Mapping[int, int]) -> Span:
    """What is bare, without the mark of a quotation at either end, unless its mate is in the midst: a lone one would be lost.

    Thus a line that opens a quotation begins where that does, and the longer counts.
    """
    start, end = _bare(text, start, end)
    said = text[start:end]
    first = end - len(said.lstrip(_EMPHASIS))
    last = start + len(said.rstrip(_ENDS)) - 1
    if mates.get(first, -1) >= last:
        start = first + 1
    if mates.get(last, end) <= first:
        end = last
    return _bare(text, start, end)


def _bare(text: str, start: int, end: int) -> Span:
    """Without white space, the marks of a block quotation before it, and the numbers of sources behind it."""
    if begins := _BEGINS.match(text, start, end):
        start = begins.end()
    for number in reversed(list(_SOURCE.finditer(text, start, end))):
        if text[number.end() : end].strip():
            break
        end = number.start()
    return start, start + len(text[start:end].rstrip())
