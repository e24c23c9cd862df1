"""What a cut keeps whole: URLs, WhatsApp's markup, list markers, bidi isolates and embeddings. Pure; never cuts."""

from bisect import bisect_left
from collections.abc import Callable, Iterable

import regex

from app.text.direction import EMBEDDINGS, END_OF_EMBEDDING, END_OF_ISOLATE, ISOLATES, MARK

# What shows on a screen. Format characters do not, but U+06DD (end of ayah) does: hence not the category Cf.
VISIBLE = regex.compile(r"[^\s\p{Cc}\p{Default_Ignorable_Code_Point}]")
LAST_VISIBLE = regex.compile(r"(?r)[^\s\p{Cc}\p{Default_Ignorable_Code_Point}]")

# WhatsApp's pairs stand at word boundaries and, except the fence, within one line.
_SPAN = regex.compile(
    r"(?P<fence>```(?s:.)+?```)"
    r"|(?P<url>(?:[hH][tT][tT][pP][sS]?://|[wW][wW][wW]\.)\S+)"
    r"|`[^`\n]+`"
    r"|(?<![\w*])\*(?=[^\s*])[^*\n]*+(?<=\S)\*(?![\w*])"
    r"|(?<!\w)_(?=[^\s_])[^_\n]*+(?<=\S)_(?!\w)"
    r"|(?<![\w~])~(?=[^\s~])[^~\n]*+(?<=\S)~(?![\w~])"
)
_ISOLATE = regex.compile(f"[{ISOLATES}{END_OF_ISOLATE}]")
_LIST_MARKER = regex.compile(r"(?m)^[ \t]*(?:[-*•>]|\d+[.)])[ \t]+(?=\S)")
_SIGN = regex.compile(r"[^\S\n][-*>](?=[ \t])")

FENCE = "```"
QUOTE = "> "
LEAST_FOR_REOPENING = 64  # in a smaller chunk the marks that open and close again would crowd out the text

Size = Callable[[int, int], int]  # the units between two places of the text


class Spans:
    """Stretches of a text, in the order of their starts."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        ordered = sorted(spans)
        self.starts = [start for start, _ in ordered]
        self.ends = [end for _, end in ordered]

    def add(self, start: int, end: int) -> None:
        self.starts.append(start)
        self.ends.append(end)

    def around(self, position: int) -> tuple[int, int] | None:
        """The stretch that a cut at `position` would tear; of two, the one that begins later."""
        at = bisect_left(self.starts, position) - 1
        return (self.starts[at], self.ends[at]) if at >= 0 and position < self.ends[at] else None


class Markup:
    """The markup of one text, for chunks of `limit` units.

    `isolated` is what stands between isolates: somebody else's text, whose markup is none of ours. `whole` fits into a chunk
    and is not torn. `fences` and `pairs` (by their marker) do not: they may be torn, but have
    to be closed and opened again, and so not at their very `edges`, where nothing would stand between the marks.
    """

    def __init__(self, text: str, limit: int, size: Size) -> None:
        self.isolated = isolated(text)
        self.whole = Spans()
        self.fences = Spans()
        self.pairs = {marker: Spans() for marker in "*_~`"}
        self.edges = Spans()
        at = 0
        for start, end in zip(self.isolated.starts, self.isolated.ends, strict=True):
            self._scan(text, at, start, limit, size, ours=True)
            self._scan(text, start, end, limit, size, ours=False)
            at = end
        self._scan(text, at, len(text), limit, size, ours=True)

    def _scan(self, text: str, at: int, stop: int, limit: int, size: Size, *, ours: bool) -> None:
        """The markup in a stretch. `ours`: it may be closed and opened again."""
        edges: list[tuple[int, int]] = []
        while (match := _SPAN.search(text, at, stop)) is not None:
            start, end = match.span()
            at = end
            if size(start, end) <= limit:
                self.whole.add(start, end)
            elif match.lastgroup == "url":
                continue
            elif limit < LEAST_FOR_REOPENING or not ours:
                at = end if match.lastgroup == "fence" else start + 1
            elif match.lastgroup == "fence":
                edges += self._fence(text, start, end)
            else:
                self.pairs[text[start]].add(start, end)
                edges += [(start, start + 2), (end - 2, end)]
                at = start + 1  # too long to keep whole; what is inside it may not be
        for edge in sorted(edges):
            self.edges.add(*edge)

    def _fence(self, text: str, start: int, end: int) -> list[tuple[int, int]]:
        """A fence that will be reopened: its body may be cut, its two edges with a bit of code may not."""
        body = VISIBLE.search(text, start + len(FENCE), end - len(FENCE))
        tail = LAST_VISIBLE.search(text, start + len(FENCE), end - len(FENCE))
        if body is None or tail is None:
            return []
        self.fences.add(start, end)
        return [(start, body.end()), (tail.start(), end)] if body.end() <= tail.start() else []

    def open_at(self, position: int) -> str:
        """The markers of the long pairs around this place, outermost first."""
        found = [(span[0], marker) for marker, spans in self.pairs.items() if (span := spans.around(position))]
        return "".join(marker for _, marker in sorted(found))


def isolated(text: str) -> Spans:
    """The outermost isolates with all that is in them, over as many lines as it takes to the end that is their own."""
    spans, depth, start = Spans(), 0, 0
    for match in _ISOLATE.finditer(text):
        if match.group() != END_OF_ISOLATE:
            start = start if depth else match.start()
            depth += 1
        elif depth:
            depth -= 1
            if not depth:
                spans.add(start, match.end())
    if depth:
        spans.add(start, len(text))
    return spans


def list_markers(text: str) -> Spans:
    """A list's or quote's marker with the first character behind it."""
    return Spans((match.start(), match.end() + 1) for match in _LIST_MARKER.finditer(text))


def signs(text: str) -> Spans:
    """A sign in the midst of a line with the blank before it: at the start of a chunk "> 7" would be a quote of 7."""
    return Spans(match.span() for match in _SIGN.finditer(text))


def directions(text: str, begin: int, stop: int, fits: Callable[[int, int], bool]) -> Spans:
    """The outermost isolates and embeddings that are closed and fit; the end of a paragraph closes what is open."""
    spans = Spans()
    opened: list[int] = []
    isolates = 0
    for match in MARK.finditer(text, begin, stop):
        mark, end = match.group(), match.end()
        if mark in ISOLATES or mark in EMBEDDINGS:
            opened.append(match.start())
            isolates += mark in ISOLATES
            continue
        if mark == END_OF_ISOLATE:
            if not isolates:
                continue
            while text[opened[-1]] not in ISOLATES:
                opened.pop()
            isolates -= 1
        elif mark == END_OF_EMBEDDING:
            if not opened or text[opened[-1]] not in EMBEDDINGS:
                continue
        else:
            opened.clear()
            isolates = 0
            continue
        start = opened.pop()
        if fits(start, end):
            while spans.starts and spans.starts[-1] > start:  # those within it are kept with it
                spans.starts.pop()
                spans.ends.pop()
            spans.add(start, end)
    return spans
