"""What a person sends to be matched with intents is put in order in no time, however it is made."""

import time

import pytest

from app.text.matching import normalise


@pytest.mark.parametrize(
    "marks", ["\u0301\u0323", "\u05b0\u0301\u0323\u0334", "\u0301\u0323\u200d", "\u0301\u064b\u0323", "ﷺ"]
)
def test_the_longest_message_holds_up_nobody(marks: str) -> None:
    """65,536 marks on one letter, or ligatures that each become 18 letters: a moment, in the loop that serves all."""
    text = "a" + (marks * 65_536)[:65_535]
    begun = time.process_time()
    assert normalise(text)
    assert time.process_time() - begun < 0.5


def test_a_mark_too_many_does_not_count() -> None:
    """Thirty marks on one letter are told from twenty-nine, and not from forty."""
    assert normalise("q" + "\u0301" * 40) == normalise("q" + "\u0301" * 30) != normalise("q" + "\u0301" * 29)
