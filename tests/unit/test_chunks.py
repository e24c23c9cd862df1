"""Chunks: joined they are the text, each fits and shows something, and a cut tears nothing a reader would miss."""

import time
from itertools import accumulate

import pytest
import regex
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from app.text.chunks import split, utf16_units
from tests.corpora import naughty_strings

FAMILY, FLAG, SKIN, KEYCAP = "👨‍👩‍👧‍👦", "🇸🇦", "👍🏽", "1️⃣"
GRAPHEMES = [FAMILY, FLAG, SKIN, KEYCAP, "e\u0301", "نِّ", "كُ", "ہے", "ক্ষ", "한", "\r\n", "𝔘", "ﷺ", "\u0600١"]
WORDS = [
    *GRAPHEMES,
    "\u0301",
    "قال",
    "الأعمالُ",
    "بالنِّيَّاتِ،",
    "نوى؟",
    "کتابیں۔",
    "word",
    "end.",
    "3.14",
    "*",
    "_",
    "~",
    "`",
    "(",
    "1.",
    "-",
]
BLANKS = [" ", "  ", "\n", "\n\n", "\n    ", "\t", "\u200f", "\u00a0", " \n \n"]
WHOLE = [
    "https://example.org/a_b/*c*/~d~?q=" + "x" * 20,
    "www.example.org/قرآن",
    "*two bold words*",
    "_two italic words_",
    "~two struck words~",
    "`two code words`",
    "```\nthree code\nwords\n```",
    "\u2067نص من كلمات\u2069",
    "\u2068a \u2067b c\u2069 d\u2069",
]
texts = st.lists(st.sampled_from([*WORDS, *BLANKS, *BLANKS, *WHOLE]), min_size=1, max_size=80).map("".join)
limits = st.integers(1, 40) | st.integers(1, 4000)

MARKS = regex.compile(r"[*_~`\u2066-\u2069\u202a-\u202e]|^> ")
INVISIBLE = regex.compile(r"[\s\p{Cc}\p{Default_Ignorable_Code_Point}]+")


def longest(pattern: str, text: str) -> int:
    return max((utf16_units(found.group()) for found in regex.finditer(pattern, text)), default=0)


def reopens(text: str, limit: int) -> bool:
    """Whether something may have to be closed and opened again: a line or a fence with marks, longer than a chunk."""
    lines = [line for line in text.split("\n") if MARKS.search(line)]
    return limit >= 64 and (longest(r"(?s)```.+?```", text) > limit or max(map(utf16_units, lines), default=0) > limit)


def bare(text: str) -> str:
    """What shows of a text, without the marks that a cut may add."""
    return regex.sub(r"[*_~`]|(?m:^> )", "", INVISIBLE.sub("", text))


def is_whole(text: str, limit: int) -> bool:
    """Whether the identity rule promises the text itself: no great run of blanks, nothing to be reopened."""
    fits = 2 * longest(INVISIBLE.pattern, text) + longest(r"\X", text) <= limit
    return fits and bool(INVISIBLE.sub("", text)) and not reopens(text, limit)


def cuts(chunks: list[str]) -> list[int]:
    return list(accumulate(map(len, chunks)))[:-1]


@given(texts, limits)
@example("a" + " " * 100 + "b", 10)
@example("a " + FAMILY + " " * 9, 11)
@settings(max_examples=300, deadline=None)
def test_chunks_joined_are_the_text(text: str, limit: int) -> None:
    """Nothing visible is ever lost, added or moved, and no blank either unless it would have made a blank chunk."""
    joined = "".join(split(text, limit))
    assert bare(joined) == bare(text)
    if not reopens(text, limit):
        assert INVISIBLE.sub("", joined) == INVISIBLE.sub("", text)
    if is_whole(text, limit):
        assert joined == text


@given(texts | st.text(st.characters(codec="utf-16-le") | st.sampled_from("\ud800\0"), max_size=60), limits)
@settings(max_examples=200, deadline=None)
def test_every_chunk_fits_and_shows_something(text: str, limit: int) -> None:
    """A chunk is 1 to `limit` UTF-16 units, never blank; a text always gives the same chunks, a chunk itself."""
    chunks = split(text, limit)
    for chunk in chunks:
        assert utf16_units(chunk) <= limit or (limit == 1 and len(chunk) == 1)
        assert INVISIBLE.sub("", chunk)
        assert utf16_units(chunk) > limit or split(chunk, limit) == [chunk]
    assert bool(chunks) == bool(INVISIBLE.sub("", text))
    assert chunks == split(text, limit)


@given(texts, limits)
@example("One two. \u0301three four five", 16)
@settings(max_examples=300, deadline=None)
def test_no_grapheme_that_fits_is_torn(text: str, limit: int) -> None:
    """A cut goes through a grapheme only if that grapheme is longer than a chunk."""
    assume(is_whole(text, limit))
    graphemes = list(regex.finditer(r"\X", text))
    seams = {found.end() for found in graphemes}
    for cut in cuts(split(text, limit)):
        if cut not in seams:
            torn = next(found.group() for found in graphemes if found.start() < cut < found.end())
            assert utf16_units(torn) > limit


@given(
    st.lists(
        st.tuples(st.sampled_from([*WHOLE, "plain", "نص", FLAG]), st.sampled_from([" ", "\n", "\n\n", " (", ") "]))
    ),
    st.integers(64, 200),
)
@settings(max_examples=300, deadline=None)
def test_no_url_markup_or_isolate_is_torn(pieces: list[tuple[str, str]], limit: int) -> None:
    """What belongs together stays in one chunk if it fits into one."""
    text = "".join(piece + blank for piece, blank in pieces)
    chunks = split(text, limit)
    assume(chunks)
    assert "".join(chunks) == text
    ends = list(accumulate(len(piece) + len(blank) for piece, blank in pieces))
    for cut in cuts(chunks):
        for end, (piece, blank) in zip(ends, pieces, strict=True):
            begin = end - len(blank) - len(piece)
            assert not begin < cut < begin + len(piece), f"{piece!r} was torn"


letters = st.sampled_from("ابتجدسعلمنهويےہکڤ")
tashkeel = st.lists(st.sampled_from("\u064b\u064c\u064e\u064f\u0650\u0651\u0652\u0670\u06e1\u06e5\u0655"), max_size=3)
voweled = st.lists(st.tuples(letters, tashkeel.map("".join)).map("".join), min_size=1, max_size=30).map("".join)


@given(st.lists(voweled, min_size=1, max_size=12), st.sampled_from(["", " ", "\u200c", "\u0640"]), st.integers(4, 60))
@settings(max_examples=100, deadline=None)
def test_no_letter_is_parted_from_its_tashkeel(words: list[str], between: str, limit: int) -> None:
    """A mark never opens a chunk: on the phone it would stand on nothing, and the letter before would lose its vowel."""
    text = between.join(words)
    chunks = split(text, limit)
    if limit == 4:  # a letter with three marks fills it: the blank before it is let go of
        assert "".join(chunks).replace(" ", "") == text.replace(" ", "")
    else:
        assert "".join(chunks) == text
    assert not any(regex.match(r"\p{M}", chunk) for chunk in chunks)


clusters = st.sampled_from(
    [*(g for g in GRAPHEMES if g != "\r\n"), "ا", "x", "q" + "\u0301" * 9, "👩🏽\u200d❤️\u200d💋\u200d👨🏿"]
)


@given(st.lists(clusters, min_size=1, max_size=60).map("".join))
@settings(max_examples=200, deadline=None)
def test_the_longest_grapheme_is_limit_enough(text: str) -> None:
    """At that limit every cut falls between graphemes; a unit below it the cutter still comes to its end, and cuts hard."""
    limit = longest(r"\X", text)
    chunks = split(text, limit)
    seams = {found.end() for found in regex.finditer(r"\X", text)}
    assert "".join(chunks) == text
    assert set(cuts(chunks)) <= seams
    assert all(1 <= utf16_units(chunk) <= limit for chunk in chunks)
    assume(limit > 2)
    below = split(text, limit - 1)
    assert INVISIBLE.sub("", "".join(below)) == INVISIBLE.sub("", text)
    assert all(1 <= utf16_units(chunk) <= limit - 1 for chunk in below)


isolates = st.recursive(
    st.sampled_from(["نص", "text", "a b", FAMILY, "(1/3)"]),
    lambda inner: st.tuples(st.sampled_from("\u2066\u2067\u2068"), st.lists(inner, min_size=1, max_size=4)).map(
        lambda found: found[0] + " ".join(found[1]) + "\u2069"
    ),
    max_leaves=8,
)


@given(st.lists(isolates, min_size=2, max_size=12), st.integers(20, 63))
@example(["\u2067" + "كلمة " * 20 + "\u2068an inner one\u2069" + " كلمة" * 20 + "\u2069", "x"], 40)
@example(["نص", "\u2066\u2066\u2066text " + FAMILY + "\u2069\u2069\u2069"], 20)
@example(["نص", "\u2066\u2066نص text text \u2066نص\u2069\u2069\u2069"], 20)
@settings(max_examples=200, deadline=None)
def test_no_isolate_that_fits_is_torn_however_deep(pieces: list[str], limit: int) -> None:
    """A cut inside one that fits into a chunk would leave the rest of the line in the wrong direction.

    What counts is its size with the marks that touch it: between two isolates that open at once there is no blank to cut at.
    """
    text = " ".join(pieces)
    assume(is_whole(text, limit))
    chunks = split(text, limit)
    assert "".join(chunks) == text
    opened: list[int] = []
    for at, letter in enumerate(text):
        if letter in "\u2066\u2067\u2068":
            opened.append(at)
        elif letter == "\u2069":
            start = opened.pop()
            before = len(text[:start].rstrip("\u2066\u2067\u2068"))
            after = len(text) - len(text[at + 1 :].lstrip("\u2069"))
            if utf16_units(text[before:after]) + 2 <= limit:  # with the blanks beside it
                assert not any(start < cut <= at for cut in cuts(chunks)), text[start : at + 1]


@pytest.mark.parametrize("limit", [1, 2, 7, 64, 700, 4000])
def test_naughty_strings_are_cut_by_the_same_rules(limit: int) -> None:
    """Each fits, shows something, loses nothing visible, has no half of a pair, and is cut the same way twice."""
    for name, text in naughty_strings().items():
        chunks = split(text, limit)
        for chunk in chunks:
            assert utf16_units(chunk) <= limit or (limit == 1 and len(chunk) == 1), name
            assert INVISIBLE.sub("", chunk), name
            chunk.encode("utf-16-le")
        assert bare("".join(chunks)) == bare(text), name
        assert reopens(text, limit) or INVISIBLE.sub("", "".join(chunks)) == INVISIBLE.sub("", text), name
        assert not is_whole(text, limit) or "".join(chunks) == text, name
        assert split(text, limit) == chunks, name


CUTS = {
    "a paragraph before a line": (26, ["First one here.\n\n", "Second\nThird one here"]),
    "a line before a sentence": (30, ["First. Second here.\n", "Third one. Fourth one"]),
    "a sentence before a word": (24, ["هل هذا صحيح حقا؟ ", "نعم هو صحيح"]),
    "an Urdu sentence": (24, ["یہ ایک کتاب ہے۔ ", "دوسری کتاب بھی ہے"]),
    "a word before a grapheme": (10, ["one two ", "three four"]),
    "graphemes where there is no blank": (12, [FAMILY, FAMILY + "a"]),
    "flags in a row": (7, [FLAG, FLAG, FLAG]),
    "no number parted from its item": (12, ["x\n", "10. abcdef ", "ijklmnopqr"]),
    "no number taken for a sentence": (21, ["Look at page 12. and ", "then go on"]),
    "blanks stay behind": (6, ["abc   ", "def"]),
    "a sign that would begin a quote": (20, ["one two if HbA1c ", "is > 7 percent"]),
    "a sign that would become a bullet": (9, ["Take 2 * ", "500 or ", "5 - 7 now"]),
    "nothing but such signs": (6, ["> - -", " - > *"]),
    "indents go along": (20, ["- one two three\n", "    - nested item"]),
    "the last paragraph that leaves one chunk": (20, ["a\n\n", "bbbb cccc dddd eeee"]),
    "an ayah's end shows": (4, ["abc ", "\u06dd"]),
}


@pytest.mark.parametrize(("limit", "expected"), CUTS.values(), ids=CUTS.keys())
def test_a_cut_falls_where_a_reader_pauses(limit: int, expected: list[str]) -> None:
    """Behind a paragraph, else a line, a sentence, a word, else between graphemes."""
    assert split("".join(expected), limit) == expected


@pytest.mark.parametrize("text", ["", " ", "\n\n \t", "\u200b\u200f", "\u2068 \u2069", "\0", " " * 9000])
def test_a_blank_text_has_no_chunks(text: str) -> None:
    """WhatsApp refuses a text that shows nothing."""
    assert split(text) == []


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    """There is no chunk without a unit."""
    with pytest.raises(ValueError, match="limit"):
        split("text", limit)


def test_a_grapheme_longer_than_a_chunk_is_cut_between_code_points() -> None:
    """Progress comes before beauty, but a surrogate pair stays whole, even at a limit of 1."""
    zalgo = "a" + "\u0301" * 25
    assert split(zalgo, 10) == [zalgo[:10], zalgo[10:20], zalgo[20:]]
    assert split("a😀b", 1) == ["a", "😀", "b"]


def test_a_span_longer_than_a_chunk_is_cut_and_what_is_inside_it_is_not() -> None:
    """A URL or bold text that fits nowhere is cut like any other text; code inside the bold text is kept."""
    assert split("https://" + "x" * 22, 10) == ["https://xx", "x" * 10, "x" * 10]
    assert split("*bold and `code word` more*", 16) == ["*bold and ", "`code word` ", "more*"]


@given(
    st.lists(st.sampled_from(["x = 1", "    y = [2]", "", "قال", FAMILY, "z" * 90]), min_size=30, max_size=90),
    st.integers(64, 300),
)
@settings(max_examples=100, deadline=None)
def test_a_long_fence_is_closed_and_opened_again(lines: list[str], limit: int) -> None:
    """Each half of a fence renders by itself, and without the added characters the code is what it was."""
    code = "\n".join(["first", *lines, "last"])
    text = f"before\n\n```\n{code}\n```\n\nafter"
    chunks = split(text, limit)
    assume(utf16_units(code) > limit)
    assert all(chunk.count("```") % 2 == 0 and utf16_units(chunk) <= limit for chunk in chunks)
    bodies = [body for chunk in chunks for body in regex.findall(r"(?s)```\n(.*?)```", chunk)]
    assert "".join("".join(bodies).split()) == "".join(code.split())


@pytest.mark.parametrize(
    ("text", "units"), [("", 0), ("abc", 3), ("قُل", 3), ("😀", 2), (FLAG, 4), (FAMILY, 11), ("\ud800", 1)]
)
def test_length_is_counted_in_utf16_units(text: str, units: int) -> None:
    """A character beyond the Basic Multilingual Plane counts twice."""
    assert utf16_units(text) == units


@pytest.mark.parametrize(
    "sentence",
    ["إنَّما الأعمالُ بالنِّيَّاتِ، وإنَّما لكلِّ امرئٍ ما نوى؟ ", "یہ کتاب ہے۔\n\n", FAMILY + FLAG, "*غليظ* https://a.b/c `x`\n"],
)
def test_a_long_answer_comes_whole(sentence: str) -> None:
    """50,000 characters come out as they went in, in the fewest chunks or nearly."""
    text = (sentence * 50_000)[:50_000].rstrip()
    chunks = split(text)
    assert "".join(chunks) == text
    assert all(utf16_units(chunk) <= 4000 for chunk in chunks)
    assert len(chunks) <= utf16_units(text) // 3900 + 1


@pytest.mark.parametrize(
    "piece",
    ["قال رسول الله. ", "x", "\n", "*a _b ", "```", "https://", "\u2068", "😀", FLAG, " \u0301", "\u0301", "\u200d"],
)
def test_time_grows_with_the_text_alone(piece: str) -> None:
    """No text of a quarter of a million characters takes more than a moment, however it is made."""
    text = (piece * 250_000)[:250_000] + "z"
    begun = time.process_time()
    split(text)
    assert time.process_time() - begun < 1.5
