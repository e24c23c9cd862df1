"""What one call brought: text, what it rests on, what it cost, how it ended. composed.py makes an answer of it.

Pure: no call is made here, and nothing of a provider's format is known.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr

from app.assistants import Call, Citation
from app.errors import AssistantBusy, Withdrawn
from app.text.storable import storable

# An answer is read no further than so many characters (of Markdown): 25 messages of WhatsApp's, more than anybody reads. Its
# quotations together are no longer, nor are their translations.
LONGEST = 100_000
# Of an answer so many citations are kept: more than anybody reads, and each may be a call to a translator.
MOST_CITATIONS = 100
# Nobody has used so many tokens for an answer: what a provider counts beyond it, or below 0, is no count.
MOST_TOKENS = 1_000_000_000

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

    def plus(self, read: int, written: int) -> "Tokens":
        """With so many more."""
        return Tokens(read=self.read + read, written=self.written + written, cached=self.cached)


def counts(told: object) -> dict[str, int]:
    """What a provider has counted, by its names. Of what is no figure there is no count: an answer does not fail for that."""
    if not isinstance(told, dict):
        return {}
    figures = {
        name: said for name, said in told.items() if isinstance(said, int | float) and not isinstance(said, bool)
    }
    return {name: int(said) for name, said in figures.items() if isinstance(said, int) or math.isfinite(said)}


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


class Declined(Withdrawn):
    """It will not answer this, nor what it had begun to."""


DECLINED = "it refuses to answer"


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
        self.declined = False
        """It has said that it will not answer: that counts at once, whatever becomes of the stream."""
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

    def cut(self, reason: str) -> Cut | Declined:
        """The error that carries what has come; of what was declined nothing."""
        return Declined(DECLINED) if self.declined else Cut(reason, self.part("cut", stopped="cut"))

    def shortened(self) -> Part:
        """What has come of an answer that never ends."""
        part = self.part("short", stopped="too_long")
        left, kept = LONGEST, []
        for block in part.blocks:
            kept.append(Block(text=block.text[:left], citations=block.citations))
            left -= len(block.text)
            if left <= 0:
                break
        return msgspec.structs.replace(part, blocks=tuple(kept))
