"""Cuts a long text into chunks that WhatsApp takes: pure, deterministic, in near-linear time. Never changes a letter.

The identity rule: `"".join(split(text)) == text`. Whitespace at a cut stays at the end of the earlier chunk. There are
two exceptions: blanks that fit beside nothing visible are dropped (WhatsApp refuses a blank text), which takes a run of
about half the limit; and a code fence longer than a chunk is closed and opened again, so that both halves render.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import regex

# What shows on a screen. Format characters do not, but U+06DD (end of ayah) does: hence not the category Cf.
_VISIBLE = regex.compile(r"[^\s\p{Cc}\p{Default_Ignorable_Code_Point}]")
_LAST_VISIBLE = regex.compile(r"(?r)[^\s\p{Cc}\p{Default_Ignorable_Code_Point}]")
# `\X` alone looks back over the whole run of flags at each of them.
_GRAPHEME = regex.compile(r"[\U0001F1E6-\U0001F1FF]{2}(?=[\U0001F1E6-\U0001F1FF])|\X")
_ASTRAL = regex.compile(r"[\U00010000-\U0010FFFF]")

# Where to cut, best first. `(?r)` searches from the end; the look-ahead reads the character behind the cut.
_PARAGRAPH = regex.compile(r"(?r)\n[^\S\n]*\n(?=[^\n])")
_LINE = regex.compile(r"(?r)\n(?=[^\n])")
# A full stop behind a digit is more often "1." or "3.5" than the end of a sentence.
_SENTENCE = regex.compile(
    r"(?r)(?:(?<!\d)\.|[!?…؟۔])[\p{Pe}\p{Pf}\p{Pi}\"'*_~`\u2069]*\s+(?=\S)|[。！？](?=[^\s\p{Pe}\p{Pf}])"
)
_WORD = regex.compile(r"(?r)\s(?=[^\s\p{M}])")

# What is not torn. WhatsApp's pairs stand at word boundaries and, except the fence, within one line.
_SPAN = regex.compile(
    r"(?P<fence>```(?s:.)+?```)"
    r"|(?P<url>(?:[hH][tT][tT][pP][sS]?://|[wW][wW][wW]\.)\S+)"
    r"|`[^`\n]+`"
    r"|(?<![\w*])\*(?=[^\s*])[^*\n]*+(?<=\S)\*(?![\w*])"
    r"|(?<!\w)_(?=[^\s_])[^_\n]*+(?<=\S)_(?!\w)"
    r"|(?<![\w~])~(?=[^\s~])[^~\n]*+(?<=\S)~(?![\w~])"
)
_LIST_MARKER = regex.compile(r"(?m)^[ \t]*(?:[-*•>]|\d+[.)])[ \t]+(?=\S)")
_ISOLATE = regex.compile(r"[\u2066-\u2069\n]")

_FENCE = "```"
_REOPENED = _FENCE + "\n"
_CLOSED = "\n" + _FENCE
_LEAST_FOR_FENCES = 64  # below this the fence's own characters would crowd out the code


def utf16_units(text: str) -> int:
    """The length of `text` in UTF-16 code units; a lone surrogate counts as one.

    WhatsApp says "4096 characters" and not which; UTF-16 units bound code points too.
    """
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def split(text: str, limit: int = 4000) -> list[str]:
    """Cut `text` into chunks of at most `limit` UTF-16 units, none of them blank; a blank text gives [].

    A cut falls behind a paragraph, else a line, a sentence, a word, else between graphemes. It tears no grapheme that
    fits into a chunk, and no URL, WhatsApp markup or bidi isolate that does. A code point is never torn: at a limit
    of 1, one of two units makes a chunk of two. Raises ValueError for a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"limit: a chunk holds at least 1 unit, not {limit}")
    if _VISIBLE.search(text) is None:
        return []
    if len(text) <= limit and utf16_units(text) <= limit:
        return [text]
    return list(_Cutter(text, limit).chunks())


class _Spans:
    """Stretches of a text, in order and apart from each other."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        self.starts.append(start)
        self.ends.append(end)

    def around(self, position: int) -> int | None:
        """The start of the stretch that a cut at `position` would tear."""
        at = bisect_left(self.starts, position) - 1
        return self.starts[at] if at >= 0 and position < self.ends[at] else None


class _Cutter:
    """One text on its way into chunks. Positions are code points, sizes are UTF-16 units."""

    def __init__(self, text: str, limit: int) -> None:
        self._text = text
        self._limit = limit
        self._astral = [match.start() for match in _ASTRAL.finditer(text)]
        self._total = self._units(len(text))
        last = _LAST_VISIBLE.search(text)
        self._last_visible = last.start() if last else 0
        self._long_fences = _Spans()
        self._fence_edges = _Spans()
        self._has_isolates = any(isolate in text for isolate in "\u2066\u2067\u2068")
        self._isolates = self._isolates_between(0, len(text))
        self._whole = [self._markup(), self._isolates, self._list_markers(), self._fence_edges]

    def chunks(self) -> Iterator[str]:
        text, start, reopened = self._text, 0, ""
        while (visible := _VISIBLE.search(text, start)) is not None:
            first = visible.start()
            end = self._reach(start, self._limit - len(reopened))
            if end == len(text):
                yield reopened + text[start:]
                return
            if self._long_fences.around(end) is not None:
                end = self._reach(start, self._limit - len(reopened) - len(_CLOSED))
            if first > start and not self._fits(first, end):
                start = first  # these blanks leave no room for what follows them
                continue
            cut = self._cut(start, first, end)
            chunk, reopened = reopened + text[start:cut], ""
            if self._long_fences.around(cut) is not None:
                closed = chunk + (_FENCE if chunk.endswith("\n") else _CLOSED)
                if utf16_units(closed) <= self._limit:
                    chunk, reopened = closed, _REOPENED
            yield chunk
            start = cut

    def _cut(self, start: int, first: int, end: int) -> int:
        """The best place for the next cut, behind the first visible character and at `end` at the latest."""
        high = min(end, self._last_visible)  # what is left over must not be blank
        self._whole[1] = self._isolates
        clear = self._clear_of_spans(high)
        if clear <= first and self._isolates.around(high) is not None:
            # It fits by itself, but not with the blank or the marks that this chunk begins with: keep those within it.
            self._whole[1] = self._isolates_between(start, self._reach(high, self._limit), first, high)
            clear = self._clear_of_spans(high)
        if clear > first:
            rest = self._total - self._units(start) - self._limit
            enough = self._reach(start, min(rest, self._limit // 2))  # a cut here costs no chunk, or leaves half a one
            floor = max(first, min(enough, start + (clear - start) // 2) - 1)
            for pattern, low in ((_PARAGRAPH, floor), (_LINE, floor), (_SENTENCE, floor), (_WORD, first)):
                if (cut := self._latest(pattern, low, clear)) is not None:
                    return cut
        return self._between_graphemes(start, first, clear, high, end)

    def _latest(self, pattern: regex.Pattern[str], low: int, high: int) -> int | None:
        """The latest cut in (low, high] that `pattern` allows and that tears nothing."""
        while high > low and (match := pattern.search(self._text, low, high + 1)) is not None:
            cut: int = match.end()
            clear = self._clear_of_spans(cut)
            # Left of the cut stands a blank or a full stop, which joins at most with what follows it.
            if clear == cut and _ends_at(_GRAPHEME.match(self._text, cut - 1, cut + 1), cut):
                return cut
            high = min(clear, cut - 1)
        return None

    def _between_graphemes(self, start: int, first: int, clear: int, high: int, end: int) -> int:
        """No blank to cut at: between graphemes, else through a span, else through a grapheme longer than a chunk."""
        seams = [match.end() for match in _GRAPHEME.finditer(self._text, start, end + 1)]
        cut = clear
        while (at := bisect_right(seams, cut) - 1) >= 0 and seams[at] > first:
            cut = self._clear_of_spans(seams[at])
            if cut == seams[at]:
                return cut
        for latest in (high, end):
            if (at := bisect_right(seams, latest) - 1) >= 0 and seams[at] > first:
                return seams[at]
        return end

    def _fits(self, first: int, end: int) -> bool:
        match = _GRAPHEME.match(self._text, first, end + 1) if first < end else None
        return match is not None and match.end() <= end

    def _clear_of_spans(self, cut: int) -> int:
        """The latest place up to `cut` that tears no span; stretches of different kinds may overlap."""
        while (start := next((s for spans in self._whole if (s := spans.around(cut)) is not None), None)) is not None:
            cut = start
        return cut

    def _units(self, position: int) -> int:
        """The UTF-16 units before `position`."""
        return position + bisect_left(self._astral, position)

    def _reach(self, start: int, units: int) -> int:
        """The furthest end that holds at most `units` from `start`, at least one code point on."""
        high = min(start + units, len(self._text))
        if self._astral:
            most = self._units(start) + units
            high = start - 1 + bisect_right(range(start, high + 1), most, key=self._units)
        return max(high, start + 1)

    def _markup(self) -> _Spans:
        """URLs and markup pairs that fit into a chunk; fences that don't go to `_long_fences`."""
        spans, at = _Spans(), 0
        while (match := _SPAN.search(self._text, at)) is not None:
            start, at = match.span()
            if self._units(at) - self._units(start) <= self._limit:
                spans.add(start, at)
            elif match.lastgroup == "fence":
                if self._limit >= _LEAST_FOR_FENCES:
                    self._add_long_fence(start, at)
            elif match.lastgroup != "url":
                at = start + 1  # too long to keep whole; what is inside it may not be
        return spans

    def _add_long_fence(self, start: int, end: int) -> None:
        """A fence that will be reopened: its body may be cut, its two edges with a bit of code may not."""
        body = _VISIBLE.search(self._text, start + len(_FENCE), end - len(_FENCE))
        tail = _LAST_VISIBLE.search(self._text, start + len(_FENCE), end - len(_FENCE))
        if body is None or tail is None:
            return
        self._long_fences.add(start, end)
        if body.end() <= tail.start():
            self._fence_edges.add(start, body.end())
            self._fence_edges.add(tail.start(), end)

    def _isolates_between(self, begin: int, stop: int, first: int = -1, high: int = 0) -> _Spans:
        """The outermost bidi isolates that fit, U+2066..8 until U+2069; a paragraph's end closes what is open (UAX #9, P2).

        Those that begin at `first` or before have to end by `high`.
        """
        spans = _Spans()
        opened: list[int] = []
        if not self._has_isolates:
            return spans
        for match in _ISOLATE.finditer(self._text, begin, stop):
            match match.group():
                case "\n":
                    opened.clear()
                case "\u2069":
                    start, end = opened.pop() if opened else match.end(), match.end()
                    fits = self._units(end) - self._units(start) <= self._limit and (start > first or end <= high)
                    if start < end and fits:
                        while spans.starts and spans.starts[-1] > start:  # those within it are kept with it
                            spans.starts.pop()
                            spans.ends.pop()
                        spans.add(start, end)
                case _:
                    opened.append(match.start())
        return spans

    def _list_markers(self) -> _Spans:
        """A list's or quote's marker with the first character behind it."""
        spans = _Spans()
        for match in _LIST_MARKER.finditer(self._text):
            spans.add(match.start(), match.end() + 1)
        return spans


def _ends_at(match: regex.Match[str] | None, position: int) -> bool:
    return match is not None and match.end() == position
