"""The number of chunks is the least that the rules of cutting allow: beside a model that tries every way."""

from itertools import accumulate

import regex
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from app.text.chunks import split, utf16_units

FAMILY, FLAG = "👨‍👩‍👧‍👦", "🇸🇦"
WORDS = [
    "a",
    "قال",
    "الأعمالُ",
    "نوى؟",
    "ہے۔",
    "word",
    "end.",
    "3.14",
    "word-by-word",
    "e\u0301",
    FAMILY,
    FLAG * 3,
    "x" * 70,
]
WHOLE = [
    "https://example.org/قرآن?q=1",
    "*two bold words*",
    "_two italic words_",
    "`code words`",
    "\u2067نص من كلمات\u2069",
    "\u202btwo words\u202c",
]
pieces = st.lists(
    st.tuples(st.sampled_from(WORDS * 2 + WHOLE), st.sampled_from([" ", " ", "  ", "\n", "\n\n"])),
    min_size=1,
    max_size=24,
)


def places(found: list[tuple[str, str]], limit: int) -> tuple[str, list[int]]:
    """The text, and where the rules let it be cut: behind a word, or between graphemes of a word too long for a chunk."""
    text = "".join(piece + blank for piece, blank in found).rstrip()
    ends = list(accumulate(len(piece) + len(blank) for piece, blank in found))
    torn = [
        place
        for end, (piece, blank) in zip(ends, found, strict=True)
        if piece in WHOLE and utf16_units(piece) <= limit
        for place in range(end - len(blank) - len(piece) + 1, end - len(blank))
    ]
    words = [at for at in range(1, len(text)) if text[at - 1].isspace() and not text[at].isspace() and at not in torn]
    stretches = zip([0, *words], [*words, len(text)], strict=True)
    long = [(begin, end) for begin, end in stretches if utf16_units(text[begin:end]) > limit]
    seams = [match.end() for match in regex.finditer(r"\X", text)]
    inside = [at for begin, end in long for at in seams if begin < at < end and at not in torn]
    return text, sorted({0, *words, *inside, len(text)})


def least(text: str, allowed: list[int], limit: int) -> int:
    """The least number of chunks, over every choice of cuts."""
    steps = {0: 0}
    for end in allowed[1:]:
        ways = [steps[at] for at in allowed if at < end and at in steps and utf16_units(text[at:end]) <= limit]
        if ways:
            steps[end] = 1 + min(ways)
    return steps[len(text)]


def rank(text: str, at: int) -> int:
    """0 behind a paragraph, 1 a line, 2 a sentence, 3 a word, 4 in a word."""
    if text[at].isspace():
        return 4
    ends = (r"\n\s*\n$", r"\n$", r"(?:(?<!\d)\.|[؟۔])\s+$", r"\s$")
    return next((n for n, end in enumerate(ends) if regex.search(end, text[:at])), 4)


@given(pieces, st.integers(30, 63))
@settings(max_examples=400, deadline=None)
def test_no_other_way_to_cut_makes_fewer_chunks(found: list[tuple[str, str]], limit: int) -> None:
    """As few as the best of all sequences of cuts that tear nothing."""
    text, allowed = places(found, limit)
    chunks = split(text, limit)
    assert "".join(chunks) == text
    assert set(accumulate(map(len, chunks))) <= set(allowed)
    assert len(chunks) == least(text, allowed, limit)


@given(pieces, st.integers(52, 95))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_of_the_cuts_that_cost_no_chunk_the_best_is_taken(found: list[tuple[str, str]], percent: int) -> None:
    """Two chunks are cut behind the last paragraph, else line, sentence, word, that leaves both small enough."""
    limit = max(30, min(63, utf16_units("".join(piece + blank for piece, blank in found)) * percent // 100))
    text, allowed = places(found, limit)
    chunks = split(text, limit)
    assume(len(chunks) == 2)
    free = [at for at in allowed if utf16_units(text[:at]) <= limit and utf16_units(text[at:]) <= limit]
    best = min((rank(text, at), -at) for at in free if 0 < at < len(text))
    assert (rank(text, len(chunks[0])), -len(chunks[0])) == best


@given(
    st.lists(st.sampled_from(["قال", "word", "كُتُبٌ", "ہے۔", "end."]), min_size=1, max_size=4000), st.integers(1000, 4000)
)
@settings(max_examples=30, deadline=None)
def test_words_fill_their_chunks(words: list[str], limit: int) -> None:
    """Of words of at most seven units with their blank, a chunk leaves at most six units empty."""
    text = " ".join(words)
    assert len(split(text, limit)) <= -(-utf16_units(text) // (limit - 6))
