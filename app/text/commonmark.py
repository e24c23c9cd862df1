"""How answers are read: CommonMark as chat models write it, and which texts are not worth reading as such. Pure.

Owns the parser and its bounds; never writes WhatsApp's markup.
"""

from itertools import islice

import regex
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

_DEEPEST = 60  # nested quotes and lists; markdown-it drops what lies deeper, and each level costs stack frames
# Marks that the parser looks at, lines, or cells of tables: each costs it up to 40 µs, so these at most a second. An
# answer of 100,000 characters, half of its words bold or in lists, has 20,000.
_MOST = 30_000
_MARK = regex.compile(r"[\n!#$%&*+\-:<=>@\[\\\]^_`{|}~]|\d[.)][ \t]")
_BELOW_HEADER = regex.compile(r"[ \t>]*[|:-][|:\- \t]+")
# A bare URL, from its "://" on. What stands at its end is more often the sentence's, and `**` and `~~` are its markup.
_REST_OF_URL = regex.compile(r"://(?:(?!\*\*|~~)[^\s<>\[\]\\`|])+")
_LAST_OF_URL = regex.compile(r"(?r)[^\p{P}~]|/")


def parsed(text: str) -> list[Token] | None:
    """The tokens of `text`; None if it is nested too deep or has too many marks, whatever its length."""
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


def _bare_url(state: StateInline, silent: bool) -> bool:
    """Takes a URL in the midst of a text as it stands: "/__init__.py" holds no bold word."""
    start, scheme = state.pos, state.src[max(state.pos - 5, 0) : state.pos].lower()
    if state.src[start] != ":" or not scheme.endswith(("http", "https")):
        return False
    match = _REST_OF_URL.match(state.src, start, state.posMax)
    if match is None:
        return False
    last = _LAST_OF_URL.search(state.src, start, match.end())  # never None: "://" has one
    end = last.end() if last else match.end()
    if not silent:
        state.append_pending(state.src[start:end])
    state.pos = end
    return True


def _parser() -> MarkdownIt:
    # HTML stays text. What a chat model indents by four spaces is no code. A reference definition ("[1]: …") stays a
    # footnote, where CommonMark would make it disappear. Links keep their letters: no percent signs for Arabic.
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": _DEEPEST})
    parser.enable(["table", "strikethrough"]).disable(["code", "reference"])
    parser.inline.ruler.before("escape", "bare_url", _bare_url)
    for rule in ("normalizeLink", "normalizeLinkText"):
        setattr(parser, rule, lambda url: url)
    return parser


_PARSER = _parser()
