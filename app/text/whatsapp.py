"""Markdown → WhatsApp markup, by walking markdown-it-py's tokens: pure, deterministic, no I/O.

Never touches a letter: what is not markup comes out byte for byte, no NFKC, bidi isolates included. A marker is written
only where WhatsApp renders it (at a word boundary, within one line, with no such marker inside), else it is left out.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import regex
from markdown_it import MarkdownIt
from markdown_it.token import Token

_DEEPEST = 60  # nested quotes and lists; markdown-it drops what lies deeper, and each level costs stack frames


def _parser() -> MarkdownIt:
    # HTML stays text. What a chat model indents by four spaces is no code. A reference definition ("[1]: …") stays a
    # footnote, where CommonMark would make it disappear. Links keep their letters: no percent signs for Arabic.
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": _DEEPEST})
    parser.enable(["table", "strikethrough"]).disable(["code", "reference"])
    for rule in ("normalizeLink", "normalizeLinkText"):
        setattr(parser, rule, lambda url: url)
    return parser


_PARSER = _parser()
_MARKERS = {"strong_open": "*", "em_open": "_", "s_open": "~"}
_RULE = "———"
_WORD = regex.compile(r"\w")  # regex, not re: its \w holds tashkeel and the joiners of Persian and Urdu
_ENDS_URL = regex.compile(r"[\s.,;:!?)\]}'\"»”]")  # no linkifier takes these for the end of a URL
_BREAK_TAG = regex.compile(r"(?i)<br ?/?>")
_LANGUAGE = regex.compile(r"[!-~]+")
_FENCE = "```"


class _Run(NamedTuple):
    """Text of one style. `styles` are the markers around it, outermost first."""

    text: str
    styles: tuple[str, ...] = ()
    code: bool = False


def from_markdown(text: str) -> str:
    """WhatsApp markup for `text`, which is CommonMark with tables and ~~strikethrough~~; "" for a blank text.

    Never raises. U+0000 is removed and a lone surrogate becomes U+FFFD: PostgreSQL and JSON take neither.
    """
    clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", "")
    tokens = _PARSER.parse(clean)
    if any(token.level >= _DEEPEST - 1 for token in tokens):
        return clean.strip()  # something was dropped: better as it was written than not at all
    return _blocks(iter(tokens), "", quoted=False)[0]


def _blocks(tokens: Iterator[Token], closing: str, *, quoted: bool) -> tuple[str, bool]:
    """The blocks up to the token `closing`, and whether a paragraph among them stands loose."""
    out, gap, loose = "", "", False
    for token in tokens:
        if token.type == closing:
            break
        following = "\n\n"
        match token.type:
            case "paragraph_open":
                block = _inline(next(tokens))
                loose = loose or not token.hidden
                following = "\n" if token.hidden else "\n\n"
            case "heading_open":
                block = _inline(next(tokens), "*")
                following = "\n"  # so that a chunk does not end with a heading
            case "fence":
                block = _fence(token, quoted=quoted)
            case "bullet_list_open" | "ordered_list_open":
                block = _list(tokens, token, quoted=quoted)
            case "blockquote_open":
                block = _quote(_blocks(tokens, "blockquote_close", quoted=True)[0])
            case "table_open":
                block = _table(tokens)
            case "hr":
                block = _RULE
            case _:  # the closing halves of paragraphs and headings
                continue
        if block:
            out += gap + block
            gap = following
    return out, loose


def _list(tokens: Iterator[Token], opening: Token, *, quoted: bool) -> str:
    items: list[str] = []
    number = int(opening.attrs.get("start", 1)) if opening.type == "ordered_list_open" else None
    any_loose = False
    for token in tokens:
        if token.type != "list_item_open":
            break
        body, loose = _blocks(tokens, "list_item_close", quoted=quoted)
        any_loose = any_loose or loose
        marker = "- " if number is None else f"{number + len(items)}. "
        # A quote is one at the start of a line only, so its lines are not indented.
        lines = (line if not line or line.startswith("> ") else " " * len(marker) + line for line in body.split("\n"))
        items.append(marker + "\n".join(lines).removeprefix(" " * len(marker)))
    return ("\n\n" if any_loose else "\n").join(items)


def _quote(body: str) -> str:
    """Each line as a quote; WhatsApp knows one level."""
    return "\n".join(line if not line or line.startswith("> ") else "> " + line for line in body.split("\n"))


def _fence(token: Token, *, quoted: bool) -> str:
    content, info = token.content.rstrip("\n"), token.info.strip()
    # The name of a language would show as code; whatever else stands behind the fence is somebody's text.
    if info and not (content and _LANGUAGE.fullmatch(info)):
        content = f"{info}\n{content}" if content else info
    if not content.strip() or _FENCE in content:
        return content.strip("\n")
    if quoted:  # a quote is made line by line, and so is the code in it
        return "\n".join(_code(line, "", "") for line in content.split("\n"))
    return f"{_FENCE}\n{content}\n{_FENCE}"


def _table(tokens: Iterator[Token]) -> str:
    """A phone is too narrow for columns: each row becomes lines of "*Header*: value"."""
    rows: list[list[tuple[str, str]]] = []
    for token in tokens:
        match token.type:
            case "table_close":
                break
            case "tr_open":
                rows.append([])
            case "th_open":
                inline = next(tokens)
                rows[-1].append((_inline(inline, "*", cell=True), ":" if not inline.content.endswith(":") else ""))
            case "td_open":
                rows[-1].append((_inline(next(tokens), cell=True), ""))
    header, *body = rows
    if not body:
        return "\n".join(name for name, _ in header if name)
    blocks = []
    for row in body:
        cells = zip(header, row, strict=True)  # markdown-it cuts and fills rows to the header's length
        pairs = ((name and f"{name}{colon} ", value) for (name, colon), (value, _) in cells)
        blocks.append("\n".join(label + value for label, value in pairs if value))
    return "\n\n".join(block for block in blocks if block)


def _inline(token: Token, *styles: str, cell: bool = False) -> str:
    """An inline token as lines of WhatsApp markup, all of it within `styles`."""
    lines: list[list[_Run]] = [[]]
    for run in _runs(token.children or (), styles, cell=cell):
        first, *others = run.text.split("\n")
        lines[-1].append(run._replace(text=first))
        lines.extend([run._replace(text=other)] for other in others)
    return "\n".join(_line([run for run in line if run.text]) for line in lines)


def _runs(tokens: Sequence[Token], styles: tuple[str, ...], *, cell: bool = False) -> list[_Run]:
    """The tokens as runs. A loop with a stack: emphasis nests deeper than Python does."""
    runs: list[_Run] = []
    stack = [styles]
    links: list[tuple[int, str]] = []
    for token in tokens:
        inside = stack[-1]
        match token.type:
            case "strong_open" | "em_open" | "s_open":
                marker = _MARKERS[token.type]
                stack.append(inside if marker in inside else (*inside, marker))
            case "strong_close" | "em_close" | "s_close":
                stack.pop()
            case "softbreak" | "hardbreak":
                runs.append(_Run("\n"))
            case "code_inline":
                runs.append(_Run(token.content, inside, code=True))
            case "link_open":
                links.append((len(runs), str(token.attrs.get("href", ""))))
            case "link_close":
                at, url = links.pop()
                linked = _link(runs[at:], url)
                stuck = at > 0 and linked and isinstance(linked[0], _Url) and not _apart(runs[at - 1].text[-1:], "")
                runs[at:] = [_Run(" "), *linked] if stuck else linked
            case "image":
                runs += _link(_runs(token.children or (), inside), str(token.attrs.get("src", "")))
            case _:
                runs.append(_Run(_BREAK_TAG.sub("\n", token.content) if cell else token.content, inside))
        if token.type in ("text", "code_inline") and len(runs) > 1 and _swallows(runs[-2], runs[-1]):
            runs.insert(-1, _Run(" "))
    return runs


class _Url(_Run):
    """A run that a phone makes a link of: nothing may stick to it, so it takes no marker."""


def _swallows(previous: _Run, following: _Run) -> bool:
    """Whether a phone would take `following` for a part of the URL before it."""
    return isinstance(previous, _Url) and bool(following.text) and _ENDS_URL.match(following.text) is None


def _link(label: list[_Run], url: str) -> list[_Run]:
    """`label: url`; just one of them if the other adds nothing."""
    plain = _plain(label).strip()
    if url in ("", f"mailto:{plain}", f"tel:{plain}"):
        return label
    if not plain or url in (plain, f"http://{plain}", f"https://{plain}"):
        return [_Url(url)]
    return [*label, _Run(": "), _Url(url)]


def _plain(runs: Sequence[_Run]) -> str:
    return "".join(run.text for run in runs)


def _line(runs: Sequence[_Run], depth: int = 0, before: str = "", after: str = "") -> str:
    """One line. `before` and `after` are the characters around it, "" where a marker may stand."""
    groups = [
        (marker, list(group)) for marker, group in groupby(runs, lambda run: "".join(run.styles[depth : depth + 1]))
    ]
    edges = [before, *(_plain(group) for _, group in groups), after]
    out = []
    for (marker, group), (left, plain, right) in zip(
        groups, zip(edges, edges[1:], edges[2:], strict=False), strict=True
    ):
        left, right = left[-1:], right[:1]
        if not marker:
            out.append(_unmarked(group, left, right))
        elif plain == plain.strip() and marker not in plain and _apart(left, marker) and _apart(right, marker):
            out.append(marker + _line(group, depth + 1) + marker)
        else:
            out.append(_line(group, depth + 1, left, right))
    return "".join(out)


def _unmarked(runs: Sequence[_Run], before: str, after: str) -> str:
    """Runs with no marker left to write but those of code."""
    out = []
    for at, run in enumerate(runs):
        left = runs[at - 1].text[-1] if at else before
        right = runs[at + 1].text[0] if at + 1 < len(runs) else after
        out.append(_code(run.text, left, right) if run.code else run.text)
    return "".join(out)


def _code(text: str, before: str, after: str) -> str:
    marker = _FENCE if "`" in text else "`"
    torn = not text.strip() or _FENCE in text or text[0] == "`" or text[-1] == "`"
    return text if torn or not (_apart(before, "`") and _apart(after, "`")) else marker + text + marker


def _apart(neighbour: str, marker: str) -> bool:
    """Whether WhatsApp takes a marker beside this character for one."""
    return neighbour != marker and _WORD.match(neighbour) is None
