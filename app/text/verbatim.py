"""What stands in the midst of a line as it is written, whatever Markdown sees in it: addresses, dial codes, names. Pure.

Owns the parser's rules that take it; decides nothing about other stars and underscores (`app.text.emphasis`).
"""

import regex
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.text import text as plain_text

# What stands at an address's end is more often the sentence's, and `**` and `~~` are its markup.
_REST_OF_URL = regex.compile(r"(?:(?!\*\*|~~)[^\s<>\[\]\\`|])+")
_LAST_OF_URL = regex.compile(r"(?r)[^\p{P}~]|/")
_HOST = regex.compile(r"(?i)(?<![\w@.])(?:www\.|(?:\w+\.)++[a-z]{2,}/)")
_BLANK = regex.compile(r"(?r)\s")
# A part of a dial code, or what is to be put there: *1, *+966501234567, *phone number, *[amount].
_PART = r"\*++(?:\+?\w++(?:[ \t]\w++){0,3}|\[[^\[\]\n*]{1,40}\]|<[^<>\n*]{1,40}>|\{[^{}\n*]{1,40}\}|\([^()\n*]{1,40}\))"
_DIAL_CODE = regex.compile(  # *100*1#, **21*5551234#, *#*#4636#*#*
    rf"(?<![\w*#])(?:\*#?\d++(?:{_PART}){{0,9}}+\*{{0,9}}+#|\*\*\d++(?:{_PART}){{1,9}}+\*{{0,9}}+#|\*#\*#\d++#\*#\*)"
)
_PAIR = regex.compile(r"(?<!\*)\*[^\w*]")
# One word between double underscores is bold, unless only a name looks like it: __my_name__, os.__x__, __init__.
_NAME = regex.compile(
    r"(?<!\w)__(?:[A-Za-z][A-Za-z0-9]*_[A-Za-z0-9_]*(?<=[A-Za-z0-9])|(?<=(?:\.|\bdef[ ])__)[A-Za-z][A-Za-z0-9]*|"
    r"(?:init|main|name|file|all|doc|str|repr|call|dict|class|version|del|new|len|iter|next|enter|exit|eq|ne|lt|le"
    r"|gt|ge|hash|bool|bytes|int|float|add|sub|mul|pow|getitem|setitem|delitem|contains|getattr|setattr|slots|module"
    r"|qualname|annotations|future|import))__(?!\w)"
)


def as_written(state: StateInline, silent: bool) -> bool:
    """Takes a URL from its "://" on, a dial code, a name between double underscores."""
    src, start = state.src, state.pos
    match src[start]:
        case ":":
            scheme = src[max(start - 5, 0) : start].lower()
            url = scheme.endswith(("http", "https")) and src.startswith("://", start)
            end = _end_of_address(src, start, state.posMax) if url else start
        case "*":
            return _dial_code(state, silent)
        case "_":
            end = _end(_NAME.match(src, start, state.posMax), start)
        case _:
            return False
    return _taken(state, end, silent)


def text(state: StateInline, silent: bool) -> bool:
    """markdown-it's rule, which goes on to the next sign; within an address without "://" to the end of that."""
    src, start = state.src, state.pos
    if not plain_text(state, silent):
        return False
    if state.pos < state.posMax:
        blank = _BLANK.search(src, start, state.pos)
        host = _HOST.search(src, blank.end() if blank else start, state.pos)
        if host is not None:
            _taken(state, _end_of_address(src, host.start(), state.posMax), silent)
    return True


def _dial_code(state: StateInline, silent: bool) -> bool:
    """Takes one; as code if a phone would take two of its stars for a pair: *555*[amount]#, *123*#."""
    end = _end(_DIAL_CODE.match(state.src, state.pos, state.posMax), state.pos)
    if _PAIR.search(state.src, state.pos + 1, end) is None:
        return _taken(state, end, silent)
    if not silent:
        state.push("code_inline", "code", 0).content = state.src[state.pos : end]
    state.pos = end
    return True


def _end_of_address(src: str, start: int, most: int) -> int:
    rest = _end(_REST_OF_URL.match(src, start, most), start)
    return _end(_LAST_OF_URL.search(src, start, rest), rest)


def _end(match: regex.Match[str] | None, otherwise: int) -> int:
    return match.end() if match is not None else otherwise


def _taken(state: StateInline, end: int, silent: bool) -> bool:
    if end <= state.pos:
        return False
    if not silent:
        state.append_pending(state.src[state.pos : end])
    state.pos = end
    return True
