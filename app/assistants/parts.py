"""What one call brought, and how several of them are one answer: text, citations with their marks, the seams between.

Pure: no call is made here, and nothing of a provider's format is known.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import force_setattr

from app.assistants import Answer, Call, Citation
from app.errors import AssistantBusy, AssistantRefused
from app.text.storable import storable

# An answer is read no further than so many characters (of Markdown): 25 messages of WhatsApp's, more than anybody reads. Its
# quotations together are no longer, nor are their translations.
LONGEST = 100_000
# Of an answer so many citations are kept: more than anybody reads, and each may be a call to a translator.
MOST_CITATIONS = 100
# Nobody has used so many tokens for an answer: what a provider counts beyond it, or below 0, is no count.
MOST_TOKENS = 1_000_000_000
# The last word of a text that was cut is looked for so far from its end (characters); some scripts have no spaces.
LONGEST_WORD = 100

Ending = Literal["whole", "limit", "cut", "paused", "short", "waiting"]


class Block(Struct, frozen=True, kw_only=True):
    """A stretch of text that rests on the same citations."""

    text: str
    citations: tuple[Citation, ...] = ()


class Tokens(Struct, frozen=True, kw_only=True):
    """What a call cost, as the provider counts, each 0 to `MOST_TOKENS`. `read`: all that the model read, `cached` of it from
    the cache.
    """

    read: int = 0
    written: int = 0
    cached: int = 0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            force_setattr(self, name, min(max(getattr(self, name), 0), MOST_TOKENS))


class Part(Struct, frozen=True, kw_only=True):
    """What one call brought. `whole`: the provider says that it is finished.

    `limit`: its own limit ended it; `cut`: a fault did. Either may be asked to go on. `paused`: it goes on when `content`, its
    own words in its own format, is sent back. `short`: too long, and nothing can be done about it. `waiting`: for a tool,
    and we offer none.
    """

    blocks: tuple[Block, ...]
    ending: Ending
    stopped: str
    model: str = ""
    tokens: Tokens = Tokens()
    content: tuple[dict[str, Any], ...] = ()

    @property
    def length(self) -> int:
        """Characters, without outer space."""
        return len("".join(block.text for block in self.blocks).strip())


class Cut(AssistantBusy):
    """The stream ended before its end. `part` is what had come."""

    def __init__(self, message: str, part: Part) -> None:
        super().__init__(message)
        self.part = part


class Declined(AssistantRefused):
    """It will not answer this: what it had said before is withdrawn with it."""


class Draft:
    """One call's answer while it streams in."""

    def __init__(self, call: Call | None) -> None:
        self._call = call
        self.restart()

    def restart(self) -> None:
        """Forget all: the provider began anew."""
        self._blocks: list[Block] = []
        self._texts: list[str] = []
        self._citations: list[Citation] = []
        self._length = 0
        self.model = ""
        self.stopped = ""
        self.tokens = Tokens()

    def say(self, text: str) -> None:
        if text and not self._length and self._call is not None:
            self._call.began()
        self._texts.append(text)
        self._length += len(text)

    def rest_on(self, citation: Citation) -> None:
        self._citations.append(citation)

    def end_block(self) -> None:
        if self._texts or self._citations:
            self._blocks.append(Block(text=storable("".join(self._texts)), citations=tuple(self._citations)))
        self._texts, self._citations = [], []

    @property
    def text(self) -> str:
        """What has come, without marks."""
        return "".join([*(block.text for block in self._blocks), storable("".join(self._texts))])

    @property
    def too_long(self) -> bool:
        return self._length > LONGEST

    def part(self, ending: Ending, *, stopped: str = "", content: Sequence[dict[str, Any]] = ()) -> Part:
        """What has come, ended so. `stopped`: why, where it was not the provider who said so."""
        self.end_block()
        return Part(
            blocks=tuple(self._blocks),
            ending=ending,
            stopped=storable(stopped or self.stopped)[:50],
            model=storable(self.model)[:100],
            tokens=self.tokens,
            content=tuple(content),
        )

    def cut(self, reason: str) -> Cut:
        """The error that carries what has come."""
        return Cut(reason, self.part("cut", stopped="cut"))

    def shortened(self) -> Part:
        """What has come of an answer that never ends."""
        part = self.part("short", stopped="too_long")
        left, kept = LONGEST, []
        for block in part.blocks:
            kept.append(Block(text=block.text[:left], citations=block.citations))
            left -= len(block.text)
            if left <= 0:
                break
        return Part(blocks=tuple(kept), ending=part.ending, stopped=part.stopped, model=part.model, tokens=part.tokens)


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


def answer(parts: Sequence[Part]) -> Answer:
    """The parts as one answer, which is `partial` unless the last of them is whole."""
    text, citations = composed(joined(parts))
    last = parts[-1]
    return Answer(
        text=text,
        model=parts[0].model,
        input_tokens=sum(part.tokens.read for part in parts),
        output_tokens=sum(part.tokens.written for part in parts),
        cached_tokens=sum(part.tokens.cached for part in parts),
        stopped=last.stopped,
        citations=citations,
        partial=last.ending != "whole",
        long=last.ending in ("limit", "short"),
    )


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
