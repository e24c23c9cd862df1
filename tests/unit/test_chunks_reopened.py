"""What is longer than a chunk and has to be cut is closed and opened again: each half shows as the whole would."""

import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app.text.chunks import split, utf16_units
from app.text.direction import Directions

LRI, RLI, PDI = "\u2066", "\u2067", "\u2069"
PDF, LRO, RLO = "\u202c", "\u202d", "\u202e"
WORDS = st.lists(
    st.sampled_from(["قال", "الأعمالُ", "ہے۔", "word", "end.", "👨‍👩‍👧‍👦", "(1)"]), min_size=40, max_size=120
)
LIMITS = st.integers(64, 200)


@given(WORDS, st.sampled_from("*_~`"), LIMITS)
@settings(max_examples=150, deadline=None)
def test_a_pair_longer_than_a_chunk_is_a_pair_in_each(words: list[str], marker: str, limit: int) -> None:
    """Every chunk of a long bold line is bold, and without the added markers the text is what it was."""
    body = " ".join(words)
    chunks = split(f"before {marker}{body}{marker} after", limit)
    assert all(utf16_units(chunk) <= limit for chunk in chunks)
    for chunk in chunks:
        assert chunk.count(marker) % 2 == 0
        assert not regex.search(regex.escape(marker) + r"\s*" + regex.escape(marker), chunk.strip()), (
            "a marker beside a marker or a blank shows"
        )
    assert "".join(chunks).replace(marker, "") == f"before {body} after"


@given(WORDS, LIMITS)
@settings(max_examples=100, deadline=None)
def test_pairs_in_pairs_are_closed_from_within(words: list[str], limit: int) -> None:
    """What was opened last is closed first, and what was outermost is opened first."""
    body = " ".join(words)
    chunks = split(f"*_{body}_*", limit)
    assert all(regex.fullmatch(r"\*_\S(?s:.*)\S_\*\s*", chunk) for chunk in chunks)
    assert "".join(regex.sub(r"[*_]", "", chunk) for chunk in chunks) == body


@given(WORDS, LIMITS)
@settings(max_examples=100, deadline=None)
def test_a_quote_goes_on_as_a_quote(words: list[str], limit: int) -> None:
    """Each chunk of a quoted line begins as one; the line after it does not."""
    body = " ".join(words)
    chunks = split(f"said:\n> {body}\nand more", limit)
    quoted = [line for chunk in chunks for line in chunk.split("\n") if line.startswith("> ")]
    assert "".join(line.removeprefix("> ") for line in quoted) == body
    assert all(utf16_units(chunk) <= limit for chunk in chunks)
    assert chunks[-1].endswith("and more")
    assert "> and more" not in chunks[-1]


def seen(text: str) -> tuple[list[tuple[str, str]], int]:
    """Each letter with the directions it stands in, and how many are open at most."""
    letters, deepest, now = [], 0, Directions()
    for at, letter in enumerate(text):
        now = now.after(text, at, at + 1)
        deepest = max(deepest, len(now.opened))
        if letter.isalpha():
            letters.append((letter, now.opened))
    return letters, deepest


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["قال", "word", "\n", " ", " ", "👨‍👩‍👧‍👦"]),
            st.sampled_from([LRI, RLI, PDI, PDF, LRO, RLO]),
        ),
        min_size=60,
        max_size=300,
    ),
    LIMITS,
)
@settings(max_examples=200, deadline=None)
def test_a_cut_leaves_no_direction_open_and_loses_none(pieces: list[str], limit: int) -> None:
    """Each chunk but the last closes what it opens, and each letter stands in the directions it stood in."""

    text = "".join(pieces)
    assume(2 * max(map(len, regex.findall(r"[\s\p{Default_Ignorable_Code_Point}]+", text)), default=0) + 11 <= limit)
    chunks = split(text, limit)
    assert all(utf16_units(chunk) <= limit for chunk in chunks)
    letters, depth = seen(text)
    if 2 * depth <= limit // 4:  # deeper than that, the marks would crowd out the text
        assert [letter for chunk in chunks for letter in seen(chunk)[0]] == letters
        assert all(Directions().after(chunk).opened == "" for chunk in chunks[:-1])


@pytest.mark.parametrize("opener", [LRI, RLI, LRO, RLO])
def test_an_unclosed_direction_ends_with_its_line(opener: str) -> None:
    """It is opened again in the next chunk only while its own line goes on (UAX #9, P2), and turns nothing after it."""
    line = "before " + opener + "word " * 30
    chunks = split(line + "\n\nnext " + "text " * 30, 100)
    assert [chunk.count(opener) for chunk in chunks] == [1, 1, 0, 0]
    assert sum(len(chunk) for chunk in chunks) == len(line) + len("\n\nnext ") + len("text " * 30) + 2


def test_what_would_crowd_out_the_text_is_not_opened_again() -> None:
    """Of a hundred nested directions none is reopened: their marks would take the chunk."""
    text = RLI * 100 + "word " * 100
    chunks = split(text, 200)
    assert "".join(chunks) == text
    assert all(utf16_units(chunk) <= 200 for chunk in chunks)
