"""Sources under an answer: quotations letter for letter, each in its own direction, numbered as the answer numbers them."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.chunks import split
from app.text.citations import FSI, PDI, Source, isolated, with_sources
from app.text.languages import may_be
from app.text.markup import VISIBLE

WORDS = {"heading": "Sources", "translation": "Translation:", "untranslated": "(not translated)"}
HADITH = "إِنَّمَا الأَعْمَالُ بِالنِّيَّاتِ، وَإِنَّمَا لِكُلِّ امْرِئٍ مَا نَوَى."
URDU = "اعمال کا دار و مدار نیتوں پر ہے۔"
MIXED = "قال في RFC 9110 إن 200 (OK) نجاح!"
OVERRIDE = "abc\u202edef\u2066ghi"
STRAY = "abc\u2069def"
TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")


def shown(*sources: Source, answer: str = "*Yes* [1].") -> str:
    return with_sources(answer, sources, **WORDS)


def test_sources_stand_numbered_below_the_answer() -> None:
    """Title, quotation, translation or the note, as the answer's [n] name them."""
    assert shown(
        Source(text=HADITH, title="Sahih al-Bukhari 1", translation="Actions are but by intentions."),
        Source(text=URDU, title="ایک کتاب", untranslated=True),
        Source(text="In English."),
    ) == "\n".join(
        [
            "*Yes* [1].",
            "",
            "*Sources*",
            "",
            f"[1] {FSI}Sahih al-Bukhari 1{PDI}",
            f"{FSI}{HADITH}{PDI}",
            f"Translation: {FSI}Actions are but by intentions.{PDI}",
            "",
            f"[2] {FSI}ایک کتاب{PDI}",
            f"{FSI}{URDU}{PDI}",
            "(not translated)",
            "",
            "[3]",
            f"{FSI}In English.{PDI}",
        ]
    )


def test_without_sources_an_answer_is_as_it_was() -> None:
    """No heading over nothing."""
    assert with_sources("*Yes*\n", (), **WORDS) == "*Yes*\n"


@pytest.mark.parametrize(
    "text",
    [
        HADITH,
        URDU,
        MIXED,
        OVERRIDE,
        STRAY,
        "  two blanks before, and after  \n",
        "a\n\n\n\tb\r\nc\u2028d",
        "*no* _markup_ ~here~ `nor` ```here``` > 1. [x](y) \\ &amp; <b>",
        "cafe\u0301 ≠ café, ﷺ ≠ صلى الله عليه وسلم",
        "👨‍👩‍👧 a\u200cb\u200dc\u200f",
        "> quote\n# heading\n- item\n| a | b |\n|---|---|\n---",
    ],
)
def test_a_quotation_is_byte_for_byte_the_sources(text: str) -> None:
    """White space, combining marks, compatibility forms, markup, direction marks: nothing is changed, nothing between."""
    whole = shown(Source(text=text, title="T", translation="x"))
    assert text.encode() in whole.encode()
    assert isolated(text) in whole
    assert "".join(split(whole)) == whole


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_quotation_is_byte_for_byte_the_sources(text: str) -> None:
    """Whatever a source may hold."""
    assert VISIBLE.search(text) is None or text in shown(Source(text=text))


@pytest.mark.parametrize(
    "text",
    [
        f"*{'word ' * 924}end*",
        f"_{'word ' * 924}end_",
        f"~{'كلمة ' * 1500}end~",
        f"```{'code ' * 1500}```",
        f"as is said\n> {'word ' * 1500}end",
        f"{STRAY}\n*{'word ' * 1500}end*\n\u2067*{'word ' * 900}end*",
    ],
)
def test_a_quotation_longer_than_a_chunk_is_byte_for_byte_the_sources(text: str) -> None:
    """Its markup is none of ours: nothing comes in where it is cut but the ends and beginnings of directions."""
    chunks = split(shown(Source(text=text), Source(text="*next*")))
    assert TURNS.sub("", text) in TURNS.sub("", "".join(chunks))


@given(
    st.lists(
        st.sampled_from(
            ["*", "_", "~", "```", "`", "> ", "\n", "كلمة ", "word ", "https://a.b/c", *"\u2066\u2068\u2069"]
        )
    )
    .map(lambda pieces: "".join(["w", *pieces] * 20))
    .filter(lambda text: not re.search(r"\s{10}", TURNS.sub("", text))),
    st.integers(64, 400),
)
def test_any_quotation_is_byte_for_byte_the_sources_in_chunks(text: str, limit: int) -> None:
    """Whatever the answer above it leaves open, and however often it is cut."""
    whole = shown(Source(text=text), answer="*Yes* ```code [1] \u2068")
    assert TURNS.sub("", text) in TURNS.sub("", "".join(split(whole, limit)))


def direction_leaks(line: str) -> bool:
    """Whether an isolate of this line is still open at its end, or closed one too many (UAX #9, BD9)."""
    depth = 0
    for character in line:
        if unicodedata.bidirectional(character) in ("LRI", "RLI", "FSI"):
            depth += 1
        elif unicodedata.bidirectional(character) == "PDI":
            depth -= 1
            if depth < 0:
                return True
    return depth != 0


@pytest.mark.parametrize(
    "text",
    [HADITH, MIXED, OVERRIDE, STRAY, "\u2069\u2069a\u2067b", "\u202e", "\u2066", "\u2069", "a\u2066b\u2069\u2069c"],
)
def test_no_text_turns_what_stands_beside_it(text: str) -> None:
    """Overrides, isolates without an end, ends without a beginning: all within the isolate around it."""
    line = f"before {isolated(text)} after"
    assert not direction_leaks(line)
    depth, outside = 0, ""
    for character in line:  # what is left when each isolate is taken away is what stands beside
        depth += {FSI: 1, "\u2066": 1, "\u2067": 1, PDI: -1}.get(character, 0)
        outside += character if depth == 0 and character != PDI else ""
    assert outside == "before  after"


def test_titles_and_translations_are_isolated_too() -> None:
    """A title in Arabic between a number and a line's end, a translation behind its label; a title is one line."""
    lines = shown(Source(text="x", title="صحيح\nالبخاري\u202e 1", translation="a\u2069b")).split("\n")
    assert f"[1] {FSI}صحيح البخاري\u202e 1{PDI}" in lines
    assert f"Translation: {FSI}{FSI}a\u2069b{PDI}" in lines
    assert not any(direction_leaks(line) for line in lines)


@pytest.mark.parametrize("text", ["", " ", "\n", "\0"])
def test_a_citation_without_a_text_is_its_title(text: str) -> None:
    """Nothing is quoted, so nothing is translated."""
    assert shown(Source(text=text, title="T", untranslated=True)).endswith(f"\n\n[1] {FSI}T{PDI}")


@pytest.mark.parametrize("text", ["", " ", "\n", "\0", "\u200b"])
def test_a_source_of_which_nothing_can_be_read_is_not_listed(text: str) -> None:
    """Nor does it change the numbers of the others; without any there is no heading."""
    assert shown(Source(text=text)) == "*Yes* [1]."
    assert shown(Source(text=text), Source(text="x")).endswith(f"\n\n*Sources*\n\n[2]\n{FSI}x{PDI}")


def test_a_translation_that_says_the_same_is_not_said_twice() -> None:
    """An engine that gave the text back had nothing to add."""
    assert shown(Source(text="OK ", translation="OK")).endswith(f"[1]\n{FSI}OK {PDI}")


def test_what_no_database_takes_is_left_out() -> None:
    """U+0000 and lone surrogates, in any part of a source."""
    whole = shown(Source(text="a\0b\ud800c", title="t\0\udfff", translation="x\ud800"))
    whole.encode()
    assert f"{FSI}ab\ufffdc{PDI}" in whole and "\0" not in whole


def test_a_heading_that_cannot_be_bold_is_not() -> None:
    """A tenant's words are as they wrote them."""
    assert "\n\n2 * 2\n\n" in with_sources("a", [Source(text="x")], **{**WORDS, "heading": "2 * 2"})


# --- languages ---


@pytest.mark.parametrize(
    ("text", "language", "possible"),
    [
        (HADITH, "ar", True),
        (URDU, "ar", True),  # the same script: nobody guesses
        ("Actions", "ar", False),
        ("34 — !", "ar", False),
        ("", "en", False),
        ("قال: Actions", "ar", True),
        (HADITH, "en", True),
        ("Что?", "ru", True),
        ("Что?", "zh-Hans", True),  # its script is named: any letter will do
        ("什么", "zh", True),
        ("ਕੀ", "pa", True),
        ("کیہ", "pa", False),
        ("کیہ", "pa-Arab", True),
    ],
)
def test_a_script_rules_a_language_out_and_never_in(text: str, language: str, possible: bool) -> None:
    """A text without a letter of its script is in another language; with one, it may be."""
    assert may_be(text, language) is possible
