"""Cuts a long text into the fewest chunks that WhatsApp takes: pure, deterministic, in near-linear time.

The identity rule: `"".join(split(text)) == text`. Whitespace at a cut stays at the end of the earlier chunk. There are
two exceptions: blanks that fit beside nothing visible are dropped (WhatsApp refuses a blank text), which takes a run of
about half the limit; and what has to be cut though it is longer than a chunk (code, a pair of markers, a quoted line, a
direction) is closed and opened again, so that both halves show as the whole would. Between isolates only directions are:
there stands somebody else's text, letter for letter.
"""

from collections.abc import Iterator
from typing import NamedTuple

import regex

from app.text.cuts import Cuts
from app.text.direction import EMBEDDINGS, ISOLATES, Directions
from app.text.markup import FENCE, LEAST_FOR_REOPENING, QUOTE, VISIBLE

_OPENS_DIRECTION = regex.compile(f"[{ISOLATES}{EMBEDDINGS}]")


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
        self._turns = _OPENS_DIRECTION.search(text) is not None
        self._cuts = Cuts(text, limit)

    def chunks(self) -> Iterator[str]:
        text, start, before = self._text, 0, _Open()
        while (visible := VISIBLE.search(text, start)) is not None:
            first = visible.start()
            room = self._limit - len(before.line) - len(before.inline)
            end = self._cuts.reach(start, room)
            if end == len(text):
                yield before.opened(text[start:])
                return
            cut, after = self._next(start, first, end, before)
            if after.closing:  # its marks want room as well, perhaps more at another cut
                for reserve in (len(after.closing), self._limit // 4):
                    end = self._cuts.reach(start, room - reserve)
                    cut, after = self._next(start, first, end, before)
                    if self._cuts.size(start, cut) + len(after.closing) <= room:
                        break
            if first > start and not self._cuts.fits(first, end):
                start = first  # these blanks leave no room for what follows them
                continue
            yield after.closed(before.opened(text[start:cut]))
            start, before = cut, after

    def _next(self, start: int, first: int, end: int, before: _Open) -> tuple[int, _Open]:
        """The next cut, and what is open there."""
        cut = self._cuts.best(start, first, end)
        return cut, self._open_at(start, cut, before)

    def _open_at(self, start: int, cut: int, before: _Open) -> _Open:
        """What a cut here leaves open, as far as it is worth the room that its marks take."""
        if self._limit < LEAST_FOR_REOPENING:
            return _Open()
        text = self._text
        turned = before.directions.after(text, start, cut) if self._turns else before.directions
        line = text.rfind("\n", max(start - 1, 0), cut) + 1
        quoted = text.startswith(QUOTE, line) if line or not start else before.quoted
        if line == cut or self._cuts.markup.isolated.around(cut) is not None:
            quoted = False
        if self._cuts.markup.fences.around(cut):
            return _Open(line=FENCE + "\n", closing="\n" + FENCE, directions=turned)
        pairs = self._cuts.markup.open_at(cut)
        found = _Open(
            QUOTE if quoted else "", turned.opened + pairs, pairs[::-1] + turned.closing, quoted, directions=turned
        )
        enough = len(found.line) + len(found.inline) + len(found.closing) <= self._limit // 4
        return found if enough else found._replace(inline="", closing="")
