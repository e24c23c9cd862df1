"""The sources under an answer: title, quotation, translation. Pure functions over WhatsApp's markup, no Markdown.

A quotation stands as it is, byte for byte, from the isolate that opens it to the one that closes it. Hence it never
passes through a Markdown parser, whose escapes and white space would be another text.
"""

from collections.abc import Sequence

import regex
from msgspec import Struct

from app.text.markup import VISIBLE
from app.text.storable import storable

FSI, PDI = "\u2068", "\u2069"
_ISOLATES = regex.compile("[\u2066-\u2069]")
_SPACE = regex.compile(r"\s+")


class Source(Struct, frozen=True, kw_only=True):
    """A citation as its reader gets it. `untranslated`: there should be a translation, and there is none."""

    text: str
    title: str = ""
    translation: str | None = None
    untranslated: bool = False


def with_sources(answer: str, sources: Sequence[Source], *, heading: str, translation: str, untranslated: str) -> str:
    """`answer`, formatted for WhatsApp already, with its numbered sources below; as it is where there are none.

    A source without a title and a quotation is not among them: there is nothing of it to read.

    `heading`, `translation`, `untranslated`: a tenant's words above them, before a translation, and in its place. Never
    raises. Of a quotation nothing is changed but what neither PostgreSQL nor JSON takes: U+0000 and lone surrogates.
    """
    blocks = [
        _block(n, source, translation, untranslated)
        for n, source in enumerate(sources, 1)
        if VISIBLE.search(source.title) or VISIBLE.search(source.text)
    ]
    if not blocks:
        return answer
    title = heading if "*" in heading or heading != heading.strip() or "\n" in heading else f"*{heading}*"
    return "\n\n".join([answer, title, *blocks])


def _block(n: int, source: Source, label: str, untranslated: str) -> str:
    text, title = storable(source.text), _SPACE.sub(" ", storable(source.title)).strip()
    lines = [f"[{n}] {isolated(title)}" if title else f"[{n}]"]
    if VISIBLE.search(text):
        lines.append(isolated(text))
        said = storable(source.translation or "").strip()
        if said and said != text.strip():
            lines.append(f"{label} {isolated(said)}")
        elif source.untranslated:
            lines.append(untranslated)
    return "\n".join(lines)


def isolated(text: str) -> str:
    """`text` between FSI and PDI: its first strong letter gives its direction, and it turns nothing outside of it.

    Every isolate, embedding and override ends with its line at the latest (UAX #9, P1 and X8). A PDI in `text` that
    closes nothing of its own would close ours, hence one more is opened for it; what it leaves open is closed. All lines are
    counted as one, so that whoever counts finds the end of ours: what is too many ends with its line.
    """
    closes, opens = _unpaired(text)
    return FSI * (1 + closes) + text + PDI * (1 + opens)


def _unpaired(text: str) -> tuple[int, int]:
    """How many isolates a text closes that it has not opened, and opens without closing them."""
    closes, opens = 0, 0
    for mark in _ISOLATES.findall(text):
        if mark != PDI:
            opens += 1
        elif opens:
            opens -= 1
        else:
            closes += 1
    return closes, opens
