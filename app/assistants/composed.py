"""How what several calls brought is one answer: the seams between, citations with their marks, what it cost. Pure."""

import math
import re
from collections.abc import Sequence

from app.assistants import Answer, Citation
from app.assistants.parts import MOST_CITATIONS, Block, Part, Tokens

# Rough, and on the safe side for Arabic: a token is about three characters.
CHARACTERS_PER_TOKEN = 3
# The last word of a text that was cut is looked for so far from its end (characters); some scripts have no spaces.
LONGEST_WORD = 100


def joined(parts: Sequence[Part]) -> list[Block]:
    """The blocks of all parts in a row. Where one was cut, half a word is taken back: whoever goes on says it whole."""
    blocks: list[Block] = []
    gap = ""
    for part in parts:
        more = "".join(block.text for block in part.blocks)
        if gap and more and not more[0].isspace():
            blocks.append(Block(text=gap))
        blocks += part.blocks
        gap = _take_back(blocks) if part.ending in ("limit", "cut", "short") else ""
    return blocks


def said(parts: Sequence[Part]) -> str:
    """The text of all parts, without marks."""
    return "".join(block.text for block in joined(parts))


def _take_back(blocks: list[Block]) -> str:
    """Cut the last word off, and the space before it, which is returned; "": there was none near."""
    for n in range(len(blocks) - 1, -1, -1):
        text = blocks[n].text
        found = re.search(rf"\s+\S{{0,{LONGEST_WORD}}}\Z", text[-2 * LONGEST_WORD :])
        if found is not None:
            start = len(text) - len(found[0])
            if not any(each.text.strip() for each in (*blocks[:n], Block(text=text[:start]))):
                break  # half a word is better than none
            blocks[n:] = [Block(text=text[:start], citations=blocks[n].citations)]
            return found[0][: len(found[0]) - len(found[0].lstrip())]
        if blocks[n].citations or len(text) > LONGEST_WORD:
            break
    return ""


def answer(parts: Sequence[Part], *, ended: bool, shown: int) -> Answer:
    """The parts as one answer. `ended`: by itself, or by its length; else a fault or the deadline has cut it.

    It is `partial` unless its last part is whole. `shown`: characters of the question, for tokens that nobody has counted.
    """
    text, citations = composed(joined(parts))
    last, tokens = parts[-1], cost(parts, shown)
    return Answer(
        text=text,
        model=parts[0].model,
        input_tokens=tokens.read,
        output_tokens=tokens.written,
        cached_tokens=tokens.cached,
        stopped=last.stopped if ended else "cut",
        citations=citations,
        partial=last.ending != "whole",
        long=ended and last.ending in ("limit", "short"),
    )


def cost(parts: Sequence[Part], shown: int) -> Tokens:
    """What all of them cost. Where the provider has counted nothing, an estimate by the characters of what it was shown, the
    parts before among them, and of what it said.
    """
    read = written = cached = 0
    for part in parts:
        read += part.tokens.read or estimated(shown)
        written += part.tokens.written or estimated(part.length)
        cached += part.tokens.cached
        shown += part.length
    return Tokens(read=read, written=written, cached=cached)


def estimated(characters: int) -> int:
    """Tokens, about."""
    return math.ceil(characters / CHARACTERS_PER_TOKEN)


def composed(blocks: Sequence[Block]) -> tuple[str, tuple[Citation, ...]]:
    """The text with ` [n]` behind each stretch that rests on something, and what it rests on: each once, in order. Of those
    that will not be kept there is no mark.
    """
    numbers: dict[Citation, int] = {}
    texts: list[str] = []
    open_mark = False
    for block in blocks:
        text = block.text
        if open_mark and text.startswith(("(", ":")):  # `[1](` would be a link, `[1]:` the definition of one
            text = f" {text}"
        rests_on = dict.fromkeys(numbers.setdefault(each, len(numbers) + 1) for each in block.citations)
        marks = "".join(f" [{n}]" for n in rests_on if n <= MOST_CITATIONS)
        texts.append(_marked(text, marks) if marks else text)
        if text or marks:
            open_mark = bool(marks) and texts[-1].endswith("]")
    return "".join(texts), tuple(numbers)


def _marked(text: str, marks: str) -> str:
    """The marks before the space that ends the text; not in the line that closes a code block, nor behind a table's."""
    bare = text.rstrip()
    rest = text[len(bare) :]
    line = bare.rpartition("\n")[2].strip()
    if line.startswith(("```", "~~~")):
        return f"{bare}\n{marks.lstrip()}{rest}"
    if line.startswith("|") and line.endswith("|") and len(line) > 1:
        return f"{bare[:-1].rstrip()}{marks} |{rest}"
    return f"{bare}{marks}{rest}"
