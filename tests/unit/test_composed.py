"""What an answer of several calls costs, where providers count and where they do not."""

import pytest

from app.assistants.composed import cost
from app.assistants.parts import Block, Part, Tokens


def part(characters: int, tokens: Tokens) -> Part:
    """One that its limit ended."""
    return Part(blocks=(Block(text="x" * characters),), ending="limit", stopped="length", tokens=tokens)


@pytest.mark.parametrize(
    ("first", "second", "read", "written"),
    [
        (Tokens(), Tokens(), 20 + 30, 10 + 2),
        (Tokens(), Tokens(read=5, written=7), 20 + 5, 10 + 7),
        (Tokens(read=4), Tokens(written=6), 4 + 30, 10 + 6),
        (Tokens(read=4, written=3), Tokens(read=5, written=7), 4 + 5, 3 + 7),
    ],
    ids=["none", "the last", "half of it", "all"],
)
def test_what_a_provider_has_not_counted_is_reckoned_call_by_call(
    first: Tokens, second: Tokens, read: int, written: int
) -> None:
    """A third of the characters: of 60 that were asked, of 30 that the next call is shown besides, of what is said."""
    made = cost([part(30, first), part(5, second)], shown=60)
    assert (made.read, made.written, made.cached) == (read, written, 0)
