"""Intents: which texts count as the same, and which turns they answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.assistants.intents import reply_for
from app.text.matching import normalise

INTENTS = {normalise(text): "Hello!" for text in ("hi", "hello", "привет", "السلام عليكم")} | {
    normalise("opening hours"): "9 to 5",
    normalise("👍"): "Glad to help.",
}


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("  HI  ", "hi"),
        ("Hi!!!", "hi"),
        ("¡Hola!", "hola"),
        ("«Привет», ", "привет"),
        ("السَّلَامُ عَلَيْكُمْ", "السلام عليكم"),
        ("الســلام   عليكم؟", "السلام عليكم"),
        ("السلام، عليكم", "السلام عليكم"),
        ("*_~`hi`~_*", "hi"),
        ("opening\n\u00a0 hours", "opening hours"),
        ("\u200fhi\u200e", "hi"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("cafe\u0301", "café"),
        ("cafe\u064b\u0301", "café"),
        ("ｈｉ", "hi"),
        ("hi 👋", "hi 👋"),
        ("❤\ufe0f", "❤"),
        ("h.i", "h i"),
        ("1.5", "1 5"),
        ("٣", "٣"),
        ("…", ""),
        ("", ""),
    ],
)
def test_case_punctuation_space_and_tashkeel_do_not_count(text: str, bare: str) -> None:
    """`normalise` drops what the contract names, and nothing else."""
    assert normalise(text) == bare


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    """A match from the file and a text from a person meet in the same form."""
    once = normalise(text)
    assert normalise(once) == once


@pytest.mark.parametrize(
    ("texts", "reply"),
    [
        (["Hi!"], "Hello!"),
        (["hi", "hello"], "Hello!"),
        (["hi", "Opening hours?"], "Hello!\n\n9 to 5"),
        (["Opening hours?", "hi", "hi"], "9 to 5\n\nHello!"),
        (["👍"], "Glad to help."),
        (["hi there"], None),
        (["this"], None),
        (["hi", "can I come at five?"], None),
        (["?"], None),
        ([""], None),
        ([], None),
    ],
)
def test_a_turn_is_answered_only_if_each_message_matches_whole(texts: list[str], reply: str | None) -> None:
    """One message for the assistant makes it a turn for the assistant; equal replies are said once."""
    assert reply_for(INTENTS, texts) == reply


def test_without_intents_nothing_is_answered() -> None:
    """A tenant without intents leaves every turn to the assistant."""
    assert reply_for({}, ["hi"]) is None
