"""How answers are read: CommonMark as chat models write it, and which texts are not worth reading as such. Pure.

Owns the parser and its bounds (its rules of our own: `emphasis`, `verbatim`, `rows`); never writes WhatsApp's markup.
"""

from itertools import islice

import regex
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_block.blockquote import blockquote
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from app.text import emphasis, rows, verbatim

_DEEPEST = 60  # nested quotes and lists; markdown-it drops what lies deeper, and each level costs stack frames
# Marks that the parser looks at, lines, or cells of tables: each costs it up to 40 µs, so these at most a second. An
# answer of 100,000 characters, half of its words bold or in lists, has 20,000.
_MOST = 30_000
_MARK = regex.compile(r"[\n!#$%&*+\-:<=>@\[\\\]^_`{|}~]|\d[.)][ \t]")
_BELOW_HEADER = regex.compile(r"[ \t>]*[|:-][|:\- \t]+")

_MORE_THAN = regex.compile(r">(?:[=≥]|\p{N})")


def parsed(text: str) -> list[Token] | None:
    """The tokens of `text`; None if it is nested too deep or has too many marks, whatever its length.

    Paragraphs that are code by their looks have their lines' `indents` in `meta`.
    """
    if next(islice(_MARK.finditer(text), _MOST, None), None) is not None or _cells(text) > _MOST:
        return None
    tokens = _PARSER.parse(text)
    deep = any(token.level >= _DEEPEST - 1 for token in tokens)  # something was dropped
    return None if deep else tokens


def _cells(text: str) -> int:
    """The cells that tables may have at most: a row of one character is filled up to the header's length."""
    cells = columns = 0
    for line in text.split("\n"):
        if "|" in line and _BELOW_HEADER.fullmatch(line):
            columns = max(columns, line.count("|") + 1)
        elif not line.strip():
            columns = 0
        cells += columns
    return cells


def _keep_indents(state: StateCore) -> None:
    """Notes the blanks before each line of a paragraph that is code by its looks: all its lines are indented by four."""
    lines = state.src.split("\n") if "    " in state.src else []
    for token in state.tokens:
        if lines and token.type == "paragraph_open" and not token.level and token.map:
            widths = [len(line) - len(line.lstrip(" ")) for line in lines[slice(*token.map)]]
            least = min(widths)
            if least >= 4:
                token.meta["indents"] = [width - least for width in widths]


def _quotation(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """markdown-it's rule, but >200 and >= 7 begin none: a phone would show it without its sign."""
    return _MORE_THAN.match(state.src, state.bMarks[start] + state.tShift[start]) is None and bool(
        blockquote(state, start, end, silent)
    )


def _parser() -> MarkdownIt:
    # HTML stays text. What a chat model indents by four spaces is no code. A reference definition ("[1]: …") stays a
    # footnote, where CommonMark would make it disappear. Links keep their letters: no percent signs for Arabic.
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": _DEEPEST})
    parser.enable(["table", "strikethrough"]).disable(["code", "reference"])
    parser.inline.ruler.at("text", verbatim.text)
    parser.inline.ruler.before("escape", "as_written", verbatim.as_written)
    parser.inline.ruler.at("emphasis", emphasis.stars_and_underscores)
    parser.inline.ruler.at("strikethrough", emphasis.tildes)
    parser.block.ruler.at("blockquote", _quotation, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    parser.block.ruler.at("table", rows.table, {"alt": ["paragraph", "reference"]})
    parser.core.ruler.after("block", "keep_indents", _keep_indents)
    for rule in ("normalizeLink", "normalizeLinkText"):
        setattr(parser, rule, lambda url: url)
    return parser


_PARSER = _parser()
