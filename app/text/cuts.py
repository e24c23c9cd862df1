"""Where one text may be cut for chunks of a given size, and where best: pure, in near-linear time. Makes no chunks."""

from array import array
from bisect import bisect_left, bisect_right
from functools import cached_property

import regex

from app.text.markup import LAST_VISIBLE, Markup, directions, list_markers, signs

# `\X` alone looks back over the whole run of flags at each of them.
_GRAPHEME = regex.compile(r"[\U0001F1E6-\U0001F1FF]{2}(?=[\U0001F1E6-\U0001F1FF])|\X")
_ASTRAL = regex.compile(r"[\U00010000-\U0010FFFF]")

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


class Cuts:
    """The cuts of one text. Positions are code points, sizes are UTF-16 units."""

    def __init__(self, text: str, limit: int) -> None:
        self._text = text
        self._limit = limit
        self._astral = [match.start() for match in _ASTRAL.finditer(text)]
        last = LAST_VISIBLE.search(text)
        self._last_visible = last.start() if last else 0
        self.markup = Markup(text, limit, self.size)
        self._directions = directions(text, 0, len(text), self._holds)
        self._whole = [self.markup.whole, self._directions, list_markers(text), signs(text), self.markup.edges]
        self._floors = self._least()

    def reach(self, start: int, units: int) -> int:
        """The furthest end that holds at most `units` from `start`, at least one code point on."""
        high = min(start + units, len(self._text))
        if self._astral:
            most = self._units(start) + units
            high = start - 1 + bisect_right(range(start, high + 1), most, key=self._units)
        return max(high, start + 1)

    def size(self, start: int, end: int) -> int:
        return self._units(end) - self._units(start)

    def fits(self, first: int, end: int) -> bool:
        match = _GRAPHEME.match(self._text, first, end + 1) if first < end else None
        return match is not None and match.end() <= end

    def best(self, start: int, first: int, end: int) -> int:
        """The best place for the next cut, behind the first visible character and at `end` at the latest."""
        high = min(end, self._last_visible)  # what is left over must not be blank
        self._whole[1] = self._directions
        clear = self._clear_of_spans(high)
        if clear <= first and self._directions.around(high) is not None:
            # It fits by itself, but not with the blank or the marks that this chunk begins with: keep those within it.
            self._whole[1] = directions(
                self._text,
                start,
                self.reach(high, self._limit),
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
        word = self._earliest_word(low, self.reach(low, self._limit))
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
                return cut if self.size(low, cut) < self._limit else low
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

    def _clear_of_spans(self, cut: int) -> int:
        """The latest place up to `cut` that tears no span; stretches of different kinds may overlap."""
        while (span := next((s for spans in self._whole if (s := spans.around(cut)) is not None), None)) is not None:
            cut = span[0]
        return cut

    def _units(self, position: int) -> int:
        """The UTF-16 units before `position`."""
        return position + bisect_left(self._astral, position)

    def _behind(self, units: int) -> int:
        """The first position that has at least so many units before it."""
        return bisect_left(range(len(self._text)), units, key=self._units)

    def _holds(self, start: int, end: int) -> bool:
        return self.size(start, end) <= self._limit
