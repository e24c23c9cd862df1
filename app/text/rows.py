"""Tables' rows, none of whose cells is lost: markdown-it drops those beyond the header's, and cuts code at its pipes. Pure.

Owns the parser's rule for tables; what is a table, markdown-it says.
"""

from collections.abc import Iterator

import regex
from markdown_it.common.utils import mdTrim
from markdown_it.rules_block import StateBlock
from markdown_it.rules_block.table import escapedSplit, getLine
from markdown_it.rules_block.table import table as strict_table

_TICKS = regex.compile(r"\\.|`+")


def table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """markdown-it's rule; in a row that is too long pipes in code are code, and the last cell takes the rest as written.

    But for the empty cells at the rest's ends: a pipe too many says nothing.
    """
    known = len(state.tokens)
    if not strict_table(state, start, end, silent):
        return False
    if silent:
        return True
    tokens = state.tokens[known:]
    columns = sum(token.type == "th_open" for token in tokens)
    cells: Iterator[str] = iter(())
    for token in tokens:
        if token.type == "tr_open" and token.map:
            cells = iter(_cells(mdTrim(getLine(state, token.map[0])), columns))
        elif token.type == "inline":
            token.content = mdTrim(next(cells, ""))
    return True


def _cells(line: str, columns: int) -> list[str]:
    cells = _split(line)
    if len(cells) > columns:
        cells = _split("".join(_code_escaped(line)))
    rest = cells[columns - 1 :]
    filled = [at for at, cell in enumerate(rest) if cell.strip()]
    return [*cells[: columns - 1], "|".join(rest[filled[0] : filled[-1] + 1]) if filled else ""]


def _split(line: str) -> list[str]:
    cells: list[str] = escapedSplit(line)
    return cells[cells[0] == "" : len(cells) - (cells[-1] == "")]


def _code_escaped(line: str) -> Iterator[str]:
    """The line with a backslash before each pipe in code that has none."""
    runs = [match.span() for match in _TICKS.finditer(line) if match.group()[0] == "`"]
    following: dict[int, int] = {}
    closing = [0] * len(runs)
    for at in reversed(range(len(runs))):
        size = runs[at][1] - runs[at][0]
        closing[at] = following.get(size, 0)
        following[size] = at
    done = at = 0
    while at < len(runs):
        if closing[at]:
            begin, end = runs[at][1], runs[closing[at]][0]
            yield line[done:begin] + regex.sub(r"(?<!\\)\|", r"\\|", line[begin:end])
            done, at = end, closing[at]
        at += 1
    yield line[done:]
