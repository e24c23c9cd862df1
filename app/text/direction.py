"""Which directions a text has opened and not yet closed: the stack of UAX #9 (X1–X8). Pure; never changes a text."""

from typing import NamedTuple

import regex

ISOLATES = "\u2066\u2067\u2068"
EMBEDDINGS = "\u202a\u202b\u202d\u202e"  # overrides among them
END_OF_ISOLATE = "\u2069"
END_OF_EMBEDDING = "\u202c"
ENDS_OF_PARAGRAPH = "\n\r\x1c-\x1e\x85\u2029"  # Bidi_Class B: they close whatever is open (P2, X8)
MARK = regex.compile(rf"[{ISOLATES}{EMBEDDINGS}{END_OF_ISOLATE}{END_OF_EMBEDDING}{ENDS_OF_PARAGRAPH}]")
_DEEPEST = 125  # max_depth (BD2): what is opened deeper has no effect, though its end is still its own


class Directions(NamedTuple):
    """The openers that hold at one place of a text, outermost first, and how many beyond the deepest do not."""

    opened: str = ""
    idle_isolates: int = 0
    idle_embeddings: int = 0

    @property
    def closing(self) -> str:
        """What closes them, innermost first; those without effect have to be closed before the others."""
        marks = (END_OF_ISOLATE if mark in ISOLATES else END_OF_EMBEDDING for mark in reversed(self.opened))
        return END_OF_ISOLATE * self.idle_isolates + END_OF_EMBEDDING * self.idle_embeddings + "".join(marks)

    def after(self, text: str, start: int = 0, end: int | None = None) -> "Directions":
        """These, `text[start:end]` later; in time linear in its marks."""
        opened, isolates, embeddings = list(self.opened), self.idle_isolates, self.idle_embeddings
        within = sum(mark in ISOLATES for mark in opened)
        for match in MARK.finditer(text, start, len(text) if end is None else end):
            mark = match.group()
            if mark in ISOLATES or mark in EMBEDDINGS:
                if len(opened) < _DEEPEST and not isolates and not embeddings:
                    opened.append(mark)
                    within += mark in ISOLATES
                elif mark in ISOLATES:
                    isolates += 1
                elif not isolates:
                    embeddings += 1
            elif mark == END_OF_ISOLATE:
                if isolates:
                    isolates -= 1
                elif within:
                    embeddings = 0
                    while opened.pop() not in ISOLATES:
                        pass  # an isolate's end ends the embeddings within it
                    within -= 1
            elif mark == END_OF_EMBEDDING:
                if not isolates and embeddings:
                    embeddings -= 1
                elif not isolates and opened and opened[-1] in EMBEDDINGS:
                    opened.pop()
            else:
                opened, isolates, embeddings, within = [], 0, 0, 0
        return Directions("".join(opened), isolates, embeddings)


def closed(text: str) -> str:
    """`text` with the directions closed that its last line leaves open, so that none turns what is put behind it."""
    return text + Directions().after(text).closing
