"""Cuts a long text into the fewest chunks that WhatsApp takes: pure, deterministic, in near-linear time.

The identity rule: `"".join(split(text)) == text`. Whitespace at a cut stays at the end of the earlier chunk. There are
two exceptions: blanks that fit beside nothing visible are dropped (WhatsApp refuses a blank text), which takes a run of
about half the limit; and what has to be cut though it is longer than a chunk (code, a pair of markers, a quoted line, a
direction) is closed and opened again, so that both halves show as the whole would.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import regex

from app.text.direction import EMBEDDINGS, ISOLATES, Directions
from app.text.whole import FENCE, LAST_VISIBLE, LEAST_FOR_REOPENING, QUOTE, VISIBLE, Markup, directions, list_markers

# `\X` alone looks back over the whole run of flags at each of them.
_GRAPHEME = regex.compile(r"[\U0001F1E6-\U0001F1FF]{2}(?=[\U0001F1E6-\U0001F1FF])|\X")
_ASTRAL = regex.compile(r"[\U00010000-\U0010FFFF]")
_OPENS_DIRECTION = regex.compile(f"[{ISOLATES}{EMBEDDINGS}]")

# Where to cut, best first. `(?r)` searches from the end; the look-ahead reads the character behind the cut.
_PARAGRAPH = regex.compile(r"(?r)\n[^\S\n]*\n(?=[^\n])")
_LINE = regex.compile(r"(?r)\n(?=[^\n])")
# A full stop behind a digit is more often "1." or "3.5" than the end of a sentence.
_SENTENCE = regex.compile(
    r"(?r)(?:(?<!\d)\.|[!?…؟۔])[\p{Pe}\p{Pf}\p{Pi}\"'*_~`\u2069]*\s+(?=[^\s\p{M}])|[。！？](?=[^\s\p{M}\p{Pe}\p{Pf}])"
)
_LONGEST_END = 16  # a full stop with its quotation marks and blanks, or a paragraph's end with its own
_ANY = r"\n(?=[^\n])|\s(?=[^\s\p{M}])|[。！？](?=[^\s\p{M}\p{Pe}\p{Pf}])"  # behind a word, or any of those
_WORD, _NEXT_WORD = regex.compile(f"(?r){_ANY}"), regex.compile(_ANY)


def utf16_units(text: str) -> int:
    """The length of `text` in UTF-16 code units; a lone surrogate counts as one.

    WhatsApp says "4096 characters" and not which; UTF-16 units bound code points too.
    """
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def split(text: str, limit: int = 4000) -> list[str]:
    """Cut `text` into chunks of at most `limit` UTF-16 units, none of them blank; a blank text gives [].

    A cut falls behind a paragraph, else a line, a sentence, a word; between graphemes only in a word that fits into no
    chunk. It tears no grapheme that fits, and no URL, WhatsApp markup or bidi isolate or embedding that does. Among all
    such cuts there is none with fewer chunks, except where something had to be closed and opened again. A code point is
    never torn: at a limit of 1, one of two units makes a chunk of two. Raises ValueError for a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"limit: a chunk holds at least 1 unit, not {limit}")
    if VISIBLE.search(text) is None:
        return []
    if len(text) <= limit and utf16_units(text) <= limit:
        return [text]
    return list(_Cutter(text, limit).chunks())


class _Open(NamedTuple):
    """What is open at a cut: marks that open it again at the start of a line and of a text, and those that close it."""

    line: str = ""
    inline: str = ""
    closing: str = ""
    quoted: bool = False
    directions: Directions = Directions()

    def closed(self, chunk: str) -> str:
        if self.closing.endswith(FENCE):
            return chunk + (FENCE if chunk.endswith("\n") else self.closing)
        body = chunk.rstrip()  # behind a blank a marker does not close
        return body + self.closing + chunk[len(body) :]

    def opened(self, chunk: str) -> str:
        body = chunk.lstrip() if self.inline else chunk
        return self.line + chunk[: len(chunk) - len(body)] + self.inline + body


class _Cutter:
    """One text on its way into chunks. Positions are code points, sizes are UTF-16 units."""

    def __init__(self, text: str, limit: int) -> None:
        self._text = text
        self._limit = limit
        self._astral = [match.start() for match in _ASTRAL.finditer(text)]
        last = LAST_VISIBLE.search(text)
        self._last_visible = last.start() if last else 0
        self._turns = _OPENS_DIRECTION.search(text) is not None
        self._markup = Markup(text, limit, self._size)
        self._directions = directions(text, 0, len(text), self._holds)
        self._whole = [self._markup.whole, self._directions, list_markers(text), self._markup.edges]
        self._floors = self._least()

    def chunks(self) -> Iterator[str]:
        text, start, before = self._text, 0, _Open()
        while (visible := VISIBLE.search(text, start)) is not None:
            first = visible.start()
            room = self._limit - len(before.line) - len(before.inline)
            end = self._reach(start, room)
            if end == len(text):
                yield before.opened(text[start:])
                return
            cut, after = self._next(start, first, end, before)
            if after.closing:  # its marks want room as well, perhaps more at another cut
                for reserve in (len(after.closing), self._limit // 4):
                    end = self._reach(start, room - reserve)
                    cut, after = self._next(start, first, end, before)
                    if self._size(start, cut) + len(after.closing) <= room:
                        break
            if first > start and not self._fits(first, end):
                start = first  # these blanks leave no room for what follows them
                continue
            yield after.closed(before.opened(text[start:cut]))
            start, before = cut, after

    def _next(self, start: int, first: int, end: int, before: _Open) -> tuple[int, _Open]:
        """The next cut, and what is open there."""
        cut = self._cut(start, first, end)
        return cut, self._open_at(start, cut, before)

    def _open_at(self, start: int, cut: int, before: _Open) -> _Open:
        """What a cut here leaves open, as far as it is worth the room that its marks take."""
        if self._limit < LEAST_FOR_REOPENING:
            return _Open()
        text = self._text
        turned = before.directions.after(text, start, cut) if self._turns else before.directions
        line = text.rfind("\n", max(start - 1, 0), cut) + 1
        quoted = text.startswith(QUOTE, line) if line or not start else before.quoted
        if line == cut:
            quoted = False
        if self._markup.fences.around(cut):
            return _Open(line=FENCE + "\n", closing="\n" + FENCE, directions=turned)
        pairs = self._markup.open_at(cut)
        found = _Open(
            QUOTE if quoted else "", turned.opened + pairs, pairs[::-1] + turned.closing, quoted, directions=turned
        )
        enough = len(found.line) + len(found.inline) + len(found.closing) <= self._limit // 4
        return found if enough else found._replace(inline="", closing="")

    def _cut(self, start: int, first: int, end: int) -> int:
        """The best place for the next cut, behind the first visible character and at `end` at the latest."""
        high = min(end, self._last_visible)  # what is left over must not be blank
        self._whole[1] = self._directions
        clear = self._clear_of_spans(high)
        if clear <= first and self._directions.around(high) is not None:
            # It fits by itself, but not with the blank or the marks that this chunk begins with: keep those within it.
            self._whole[1] = directions(
                self._text,
                start,
                self._reach(high, self._limit),
                lambda begin, stop: self._holds(begin, stop) and (begin > first or stop <= high),
            )
            clear = self._clear_of_spans(high)
        if clear > first:
            low, good = self._window(start, first, clear)
            for pattern, least in ((_PARAGRAPH, good), (_LINE, good), (_SENTENCE, good), (_WORD, low)):
                if (cut := self._latest(pattern, least, clear)) is not None:
                    return cut
        return self._between_graphemes(start, first, clear, high, end)

    def _window(self, start: int, first: int, clear: int) -> tuple[int, int]:
        """Behind which places any cut costs no chunk, and a good one is worth to be taken: the last, or of half a chunk."""
        at = bisect_right(self._floors, start)
        floor = self._floors[at] - 1 if at < len(self._floors) else first
        low = max(first, floor) if floor < clear else first
        return low, low if at >= len(self._floors) - 1 else max(low, start + (clear - start) // 2 - 1)

    def _least(self) -> list[int]:
        """For k = …, 2, 1 the first place from which k chunks take the rest: where a cut keeps their number least.

        Going back from the end, as far as each chunk can hold; no other way reaches the start in fewer steps.
        """
        floors: list[int] = []
        place = len(self._text)
        while (units := self._units(place) - self._limit) > 0:
            place = min(self._earliest(self._behind(units)), place - 1)
            floors.append(place)
        return floors[::-1]

    def _earliest(self, low: int) -> int:
        """The first place from `low` on where a cut may be: behind a word, or in one that is longer than a chunk."""
        word = self._earliest_word(low, self._reach(low, self._limit))
        if word is not None and (
            word == low or self._latest(_WORD, max(self._behind(self._units(word) - self._limit) - 1, 0), low)
        ):
            return word
        if word is not None and self._units(word) <= self._limit:
            return word
        cut = low
        while (at := bisect_left(self._seams, cut)) < len(self._seams):
            cut = self._seams[at]
            torn = [span for spans in self._whole if (span := spans.around(cut)) is not None]
            if not torn:
                return cut if self._size(low, cut) < self._limit else low
            cut = max(end for _, end in torn)
        return low

    def _earliest_word(self, low: int, high: int) -> int | None:
        at = max(low - 1, 0)
        while (match := _NEXT_WORD.search(self._text, at, min(high + 1, len(self._text)))) is not None:
            cut: int = match.end()
            if cut >= low and self._allowed(cut):
                return cut
            at = cut
        return None

    def _latest(self, pattern: regex.Pattern[str], low: int, high: int) -> int | None:
        """The latest cut in (low, high] that `pattern` allows and that tears nothing."""
        begin = max(low - _LONGEST_END, 0)
        while high > low and (match := pattern.search(self._text, begin, high + 1)) is not None:
            cut: int = match.end()
            if cut <= low or self._allowed(cut):
                return cut if cut > low else None
            high = min(self._clear_of_spans(cut), cut - 1)
        return None

    def _allowed(self, cut: int) -> bool:
        # Left of the cut stands a blank or a full stop, which joins at most with what follows it.
        if any(spans.around(cut) is not None for spans in self._whole):
            return False
        grapheme = _GRAPHEME.match(self._text, cut - 1, cut + 1)
        return grapheme is not None and grapheme.end() == cut

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

    @cached_property
    def _seams(self) -> "array[int]":
        """The ends of all graphemes; asked for only if a word is longer than a chunk."""
        return array("l", (match.end() for match in _GRAPHEME.finditer(self._text)))

    def _fits(self, first: int, end: int) -> bool:
        match = _GRAPHEME.match(self._text, first, end + 1) if first < end else None
        return match is not None and match.end() <= end

    def _clear_of_spans(self, cut: int) -> int:
        """The latest place up to `cut` that tears no span; stretches of different kinds may overlap."""
        while (span := next((s for spans in self._whole if (s := spans.around(cut)) is not None), None)) is not None:
            cut = span[0]
        return cut

    def _units(self, position: int) -> int:
        """The UTF-16 units before `position`."""
        return position + bisect_left(self._astral, position)

    def _size(self, start: int, end: int) -> int:
        return self._units(end) - self._units(start)

    def _holds(self, start: int, end: int) -> bool:
        return self._size(start, end) <= self._limit

    def _behind(self, units: int) -> int:
        """The first position that has at least so many units before it."""
        return bisect_left(range(len(self._text)), units, key=self._units)

    def _reach(self, start: int, units: int) -> int:
        """The furthest end that holds at most `units` from `start`, at least one code point on."""
        high = min(start + units, len(self._text))
        if self._astral:
            most = self._units(start) + units
            high = start - 1 + bisect_right(range(start, high + 1), most, key=self._units)
        return max(high, start + 1)
