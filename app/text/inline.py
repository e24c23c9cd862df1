"""One paragraph's tokens → lines of WhatsApp markup: pure, deterministic.

A marker is written only where WhatsApp renders it (at a word boundary, within one line, with no such marker inside),
else it is left out. Letters stay as they are; only a link's target loses its direction marks to percent signs.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple
from urllib.parse import quote

import regex
from markdown_it.token import Token

from app.text.direction import EMBEDDINGS, END_OF_EMBEDDING, END_OF_ISOLATE, ISOLATES, closed

FENCE = "```"
_STRIKE = "~"
_MARKERS = {"strong_open": "*", "em_open": "_", "s_open": _STRIKE}
_WORD = regex.compile(r"\w")  # regex, not re: its \w holds tashkeel and the joiners of Persian and Urdu
_NUMBER = regex.compile(r"\p{N}")
_BEFORE_LINK = regex.compile(r"[\w\p{N}\p{Pe}\p{Pf}]|(?!:)\p{Po}")  # after a colon it is a verse: 2:[255](…)
_WITHIN_NUMBER = regex.compile(r"[\s().\-‑–\p{Cf}]+")  # how a dialled number may be written
_ENDS_IN_NUMBER = regex.compile(r"(?r)\p{N}[\p{P}\p{S}]")
# Two stars of a product that WhatsApp would take for a pair: (5)*3*(2).
_PRODUCT = regex.compile(
    r"(?V1)((?<![\w*])\*(?=[^\s*])[^*]*+(?<=[\w\p{N}\p{Pe}%°!|]))\*(?=[[\p{Ps}|√\p{Sc}\p{No}]--[\[{]]|[-+−.]\p{N})"
)
# And two tildes of ranges: (1)~(3), (5)~(7).
_RANGE = regex.compile(r"(?V1)((?<![\w~])~(?=[^\s~])[^~]*+(?<=\S))~(?=[[\p{Ps}|\p{Sc}\p{No}]--[\[{]]|[-+−±.]\p{N})")
# No linkifier takes these signs for the end of a URL, but each does for its midst: https://a.b/c,d
_ENDS_URL = regex.compile(r"[.,;:!?)\]}'\"»”]*+(?:\s|\Z)")
_BREAK_TAG = regex.compile(r"(?i)<br ?/?>")
# An address must not hold these (RFC 3987, 4.1); left in, they would show it as another.
_TURNS = regex.compile(f"[\u200e\u200f\u061c{ISOLATES}{EMBEDDINGS}{END_OF_EMBEDDING}{END_OF_ISOLATE}]")


class _Run(NamedTuple):
    """Text of one style. `styles` are the markers around it, outermost first."""

    text: str
    styles: tuple[str, ...] = ()
    code: bool = False
    linked: bool = False


class _Url(_Run):
    """A run that a phone makes a link of: nothing may stick to it, so it takes no marker."""


def inline(token: Token, *styles: str, cell: bool = False) -> str:
    """An inline token as lines of WhatsApp markup, all of it within `styles`; in a `cell`, <br> breaks the line."""
    lines: list[list[_Run]] = [[]]
    for run in _spaced(_runs(token.children or (), styles, cell=cell)):
        first, *others = run.text.split("\n")
        lines[-1].append(run._replace(text=first))
        lines.extend([run._replace(text=other)] for other in others)
    return "\n".join(_line([run for run in line if run.text]) for line in lines)


def code(text: str, before: str = "", after: str = "") -> str:
    """`text` as code within a line, if it can stand as such between the characters `before` and `after`."""
    marker = FENCE if "`" in text else "`"
    torn = not text.strip() or FENCE in text or text[0] == "`" or text[-1] == "`"
    return text if torn or not (_apart(before, "`") and _apart(after, "`")) else marker + text + marker


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
                runs[at:] = _link(runs[at:], url)
            case "image":
                runs += _link(_runs(token.children or (), inside), str(token.attrs.get("src", "")))
            case _:
                runs.append(_Run(_BREAK_TAG.sub("\n", token.content) if cell else token.content, inside))
    return runs


def _spaced(runs: Sequence[_Run]) -> list[_Run]:
    """The runs, with a blank wherever a phone would take one for a part of the URL beside it, or two numbers for one."""
    out: list[_Run] = []
    goes_on = False  # a URL stands last, with nothing but signs behind it
    for run in runs:
        if not run.text:
            continue
        url = isinstance(run, _Url)
        ends = None if url else _ENDS_URL.match(run.text)
        if out:
            last = out[-1]
            swallowed = goes_on and ends is None
            url_before = url and not last.text[-1].isspace() and not _apart(last.text[-1], "")
            if swallowed or url_before or _is_joined(out, run):
                out.append(_Run(" "))
                goes_on = False
        goes_on = url or (goes_on and ends is not None and not ends.group()[-1].isspace())
        out.append(run)
    return out


def _is_joined(out: Sequence[_Run], run: _Run) -> bool:
    """Whether a number would become part of the number before it, or a link's of what is before that: 5 mg[1](…).

    Where markup ends, a sign does not part them: of **Step 2:**500 mg would become another dose.
    """
    if _NUMBER.match(run.text) is None:
        return False
    last = out[-1]
    before = _BEFORE_LINK if run.linked and not last.linked else _NUMBER
    ends = last.code > run.code or not set(last.styles) <= set(run.styles)
    return bool(before.match(last.text[-1]) or (ends and _ENDS_IN_NUMBER.match(_plain(out[-2:]))))


def _link(label: list[_Run], url: str) -> list[_Run]:
    """`label: url`; just one of them if the other adds nothing."""
    label = [run._replace(linked=True) for run in label]
    plain = _plain(label).strip()
    if url in ("", f"mailto:{plain}") or _WITHIN_NUMBER.sub("", url) == f"tel:{_WITHIN_NUMBER.sub('', plain)}":
        return label
    target = _Url(_TURNS.sub(lambda mark: quote(mark.group()), url))
    if not plain or url in (plain, f"http://{plain}", f"https://{plain}"):
        return [target]
    whole = _plain(label)
    return [*label, _Run(closed(whole)[len(whole) :] + ": "), target]


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
        elif plain == plain.strip() and marker not in plain and (blanks := _blanks(left, right, marker)) is not None:
            out.append(blanks[0] + marker + _line(group, depth + 1) + marker + blanks[1])
        elif marker == _STRIKE and plain.strip():  # as it was written: without its marks it would say the opposite
            out.append(
                _line([_Run("~~"), *(run._replace(styles=run.styles[depth + 1 :]) for run in group), _Run("~~")])
            )
        else:
            out.append(_line(group, depth + 1, left, right))
    return "".join(out)


def _blanks(left: str, right: str, marker: str) -> tuple[str, str] | None:
    """What to put between these characters and a pair of markers; None if the pair cannot stand there.

    A blank is put for a struck text only: without its marks it would say the opposite.
    """
    before, after = _apart(left, marker), _apart(right, marker)
    if before and after:
        return "", ""
    if marker != _STRIKE or marker in (left, right):
        return None
    return "" if before else " ", "" if after else " "


def _unmarked(runs: Sequence[_Run], before: str, after: str) -> str:
    """Runs with no marker left to write but those of code."""
    out = []
    for at, run in enumerate(runs):
        left = runs[at - 1].text[-1] if at else before
        right = runs[at + 1].text[0] if at + 1 < len(runs) else after
        out.append(code(run.text, left, right) if run.code else _spread(run.text))
    return "".join(out)


def _spread(text: str) -> str:
    return _RANGE.sub(r"\1 ~ ", _PRODUCT.sub(r"\1 * ", text))


def _apart(neighbour: str, marker: str) -> bool:
    """Whether WhatsApp takes a marker beside this character for one."""
    return neighbour != marker and _WORD.match(neighbour) is None
