"""Markdown → WhatsApp markup, by walking markdown-it-py's tokens: pure, deterministic, no I/O.

Never touches a letter: what is not markup comes out byte for byte, no NFKC, bidi isolates included. What cannot be made
markup of in bounded time and length comes out as it was written.
"""

from collections.abc import Iterator, Sequence

import regex
from markdown_it.token import Token

from app.text.commonmark import parsed
from app.text.direction import closed
from app.text.inline import FENCE, code, inline
from app.text.markup import VISIBLE
from app.text.storable import storable

_RULE = "———"
_LANGUAGE = regex.compile(r"[A-Za-z][!-~]*")
_SAYS = regex.compile(r"[^-\s*_~`>#|\\\p{Cc}\p{Default_Ignorable_Code_Point}]")  # seen (as in VISIBLE), and no markup
_LIKE_A_QUOTE = regex.compile(r"(?m)^> ")  # "> 12 years": a phone would show it without its sign, but not ">12 years"
# A header stands again in each row, a list's indent before each line: 20 kB could become gigabytes.
_MOST_LABELS = 20_000
_MOST_TIMES = 8


def from_markdown(text: str) -> str:
    """WhatsApp markup for `text`, which is CommonMark with tables and ~~strikethrough~~; "" if all that is seen of it is markup.

    Never raises. Characters that cannot be stored: `app.text.storable`. At most a second
    or so, whatever the text; at most eight times as long as it, and 20,000 characters.
    """
    clean = storable(text)
    tokens = parsed(clean)
    if not (_SAYS.search(clean) if tokens is None else any(map(_says, tokens))):
        return ""
    if tokens is None:
        return clean.strip()
    result = _blocks(iter(tokens), "", quoted=False)[0].strip("\n")  # a hard break may come first
    return result if len(result) <= _MOST_TIMES * len(clean) + _MOST_LABELS else clean.strip()


def _says(token: Token) -> bool:
    """Whether a block has anything but markup: a word, a sign, code, a number ("5." is a list), somewhere to go."""
    if token.type in ("fence", "ordered_list_open"):
        return token.type != "fence" or VISIBLE.search(token.info + token.content) is not None
    return any(
        _SAYS.search(child.content)
        or (child.type == "code_inline" and VISIBLE.search(child.content))
        or child.attrs.get("href")
        or child.attrs.get("src")
        for child in token.children or ()
    )


def _blocks(tokens: Iterator[Token], closing: str, *, quoted: bool) -> tuple[str, bool]:
    """The blocks up to the token `closing`, and whether a paragraph among them stands loose."""
    out, gap, loose = "", "", False
    for token in tokens:
        if token.type == closing:
            break
        following = "\n\n"
        match token.type:
            case "paragraph_open":
                block = _paragraph(inline(next(tokens)), token.meta.get("indents", ()))
                loose = loose or not token.hidden
                following = "\n" if token.hidden else "\n\n"
            case "heading_open":
                block = inline(next(tokens), "*")
                following = "\n"  # so that a chunk does not end with a heading
            case "fence":
                block = _fence(token, quoted=quoted)
            case "bullet_list_open" | "ordered_list_open":
                block = _list(tokens, token, quoted=quoted)
            case "blockquote_open":
                block = _quote(_blocks(tokens, "blockquote_close", quoted=True)[0])
            case "table_open":
                block = _LIKE_A_QUOTE.sub(">", _table(tokens))
            case "hr":
                block = _RULE
            case _:  # the closing halves of paragraphs and headings
                continue
        if block:
            out += gap + block
            gap = following
    return out, loose


def _paragraph(body: str, indents: Sequence[int]) -> str:
    """`body` with its lines' indents, unless lines became others."""
    body = _LIKE_A_QUOTE.sub(">", body)
    lines = body.split("\n")
    if len(lines) != len(indents):
        return body
    return "\n".join(" " * indent + line for indent, line in zip(indents, lines, strict=True))


def _list(tokens: Iterator[Token], opening: Token, *, quoted: bool) -> str:
    numbers: list[str] = []
    bodies: list[str] = []
    any_loose = False
    for token in tokens:
        if token.type != "list_item_open":
            break
        body, loose = _blocks(tokens, "list_item_close", quoted=quoted)
        any_loose = any_loose or loose
        numbers.append(token.info)
        bodies.append(body)
    if opening.type == "ordered_list_open":
        markers = [f"{number}. " for number in _counted(numbers)]
    else:  # a plus may be a sign before a number; what the others say, a phone shows as a bullet
        markers = ["+ " if opening.markup == "+" else "- "] * len(bodies)
    items = map(_item, markers, bodies)
    return ("\n\n" if any_loose else "\n").join(items)


def _counted(numbers: Sequence[str]) -> Sequence[str]:
    """The numbers as they are written; counted up where each is 0 or each is 1, Markdown's way to leave that to others."""
    if len(numbers) > 1 and len(set(numbers)) == 1 and numbers[0] in ("0", "1"):
        return [str(number) for number in range(int(numbers[0]), int(numbers[0]) + len(numbers))]
    return numbers


def _item(marker: str, body: str) -> str:
    indent = " " * len(marker)
    return marker + _indented(body, indent).removeprefix(indent) if body else marker.rstrip()


def _indented(body: str, indent: str) -> str:
    """Each line behind `indent`, but for those of a quote, which is one at the start of a line only, and of code."""
    lines, within = [], False
    for line in body.split("\n"):
        turns = line.count(FENCE) % 2 == 1
        bare = within or turns or not line or line.startswith("> ")
        lines.append(line if bare else indent + line)
        within = within != turns
    return "\n".join(lines)


def _quote(body: str) -> str:
    """Each line as a quote; WhatsApp knows one level."""
    return "\n".join(line if not line or line.startswith("> ") else "> " + line for line in body.split("\n"))


def _fence(token: Token, *, quoted: bool) -> str:
    content, info = token.content.rstrip("\n"), token.info.strip()
    # The name of a language would show as code; whatever else stands behind the fence is somebody's text.
    if info and not (content and _LANGUAGE.fullmatch(info)):
        content = f"{info}\n{content}" if content else info
    if not content.strip() or FENCE in content:
        return content.strip("\n")
    if quoted:  # a quote is made line by line, and so is the code in it
        return "\n".join(code(line) for line in content.split("\n"))
    return f"{FENCE}\n{content}\n{FENCE}"


def _table(tokens: Iterator[Token]) -> str:
    """A phone is too narrow for columns: each row becomes lines of "*Header*: value"; if that is too long, one line."""
    rows: list[list[tuple[str, str]]] = []
    for token in tokens:
        match token.type:
            case "table_close":
                break
            case "tr_open":
                rows.append([])
            case "th_open":
                cell = next(tokens)
                name = closed(inline(cell, "*", cell=True))
                rows[-1].append((name, ":" if not cell.content.endswith(":") else ""))
            case "td_open":
                rows[-1].append((inline(next(tokens), cell=True), ""))
    header, *body = rows
    if not body:
        return "\n".join(name for name, _ in header if name)
    if len(body) * sum(len(name) for name, _ in header) > _MOST_LABELS:
        lines = "\n".join(" | ".join(closed(cell) for cell, _ in row if cell) for row in rows)
        return lines.strip("\n")
    unsaid = {column for column in range(len(header)) if not any(row[column][0] for row in body)}
    blocks = []
    for row in body:  # the first of them also has the names of columns without any value
        cells = enumerate(zip(header, row, strict=True))  # the parser fills rows to the header's length
        pairs = [
            (name and f"{name}{colon} ", value) for at, ((name, colon), (value, _)) in cells if value or at in unsaid
        ]
        blocks.append("\n".join(label + value if value else label.rstrip() for label, value in pairs if label or value))
        unsaid.clear()
    return "\n\n".join(block for block in blocks if block)
