"""Whatever is written in Markdown, its letters and numbers come out whole and in order, and what comes out can be stored."""

from collections import Counter

import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.markup import VISIBLE
from app.text.whatsapp import from_markdown
from tests.corpora import naughty_strings

ARABIC = [
    "إنَّما",
    "الأعمالُ",
    "بالنِّيَّاتِ،",
    "ﷺ",
    "﴿الله﴾",
    "لَآ",
    "ٱلۡحَمۡدُ",
    "ہے۔",
    "کتابیں",
    "نیم\u200cفاصله",
    "\u2067x\u2069",
    "\u2068نص (a)\u2069",
    "۝١",
    "؟",
]
# Numbers that Markdown or a table might take a sign, a digit or all of.
NUMBERS = [
    "7",
    "10",
    "٥",
    "2*500*3",
    "5*",
    "$5*2",
    "(5)*3",
    "2**10",
    "*100*1#",
    "*123#",
    "_id",
    "user_id_",
    "~~50~~",
    "www.a.b/__7__",
    "7. ",
    "12) ",
    "01. ",
    "+ ",
    "`^(7|10)$`",
    "|7|10|12|\n",
]
MARKDOWN = [
    *ARABIC,
    *NUMBERS,
    "**",
    "*",
    "_",
    "~~",
    "`",
    "```",
    "> ",
    "- ",
    "# ",
    "\n",
    "\n\n",
    "    ",
    " ",
    "|",
    "|-|-|\n",
    "[",
    "](",
    ")",
    "!",
    "<",
    ">",
    "\\",
    "---",
]


@given(st.lists(st.sampled_from(ARABIC), min_size=1), st.sampled_from([" ", "\n", "\n\n"]))
@settings(max_examples=100, deadline=None)
def test_a_quotation_stays_byte_for_byte(words: list[str], between: str) -> None:
    """Arabic and Urdu, their marks, ligatures, joiners and isolates are never rewritten."""
    assert from_markdown(between.join(words)) == between.join(words)


SAID = regex.compile(r"[^\p{L}\p{M}\p{N}\p{Cf}]")
PIECES = regex.compile(r"\p{N}+|[\p{L}\p{M}\p{Cf}]")

rows = st.lists(
    st.lists(st.sampled_from([*ARABIC, *NUMBERS[:14], "`7|10`", "`", "\\|", "", " "]), max_size=5).map("|".join),
    min_size=1,
    max_size=5,
)
tables = st.tuples(st.sampled_from(["|A|B|\n|-|-|\n", "|**7**|\n|-|\n", "٥|10|12\n-|-|-\n"]), rows).map(
    lambda table: "\n\n" + table[0] + "".join(f"|{row}|\n" for row in table[1]) + "\n"
)


@given(st.lists(st.sampled_from(MARKDOWN) | tables, max_size=60).map("".join))
@settings(max_examples=500, deadline=None)
def test_no_letter_and_no_number_is_lost_or_moved(markdown: str) -> None:
    """Whatever the markup around them, they come out in the order in which they went in, and no two numbers as one.

    A table says each of them at least once: it repeats its header with every row.
    """
    result = from_markdown(markdown)
    if "|" in markdown:
        assert not Counter(PIECES.findall(markdown)) - Counter(PIECES.findall(result))
    else:
        assert SAID.sub("", result) == SAID.sub("", markdown)
        assert PIECES.findall(result) == PIECES.findall(markdown)


@given(
    st.text(st.characters() | st.sampled_from("\0\ud800\udc00"), max_size=80)
    | st.lists(st.sampled_from(MARKDOWN)).map("".join)
)
@settings(max_examples=300, deadline=None)
def test_the_result_can_be_stored_and_sent(text: str) -> None:
    """Whatever goes in, UTF-8 without U+0000 comes out, and the same each time."""
    result = from_markdown(text)
    assert "\0" not in result
    result.encode()
    assert result == from_markdown(text)
    assert result == result.strip("\n")


# What Markdown may read as markup, as an escape, an entity, a list, the end of a line.
SPEAKS = regex.compile(r"[*_~`\[\]|<&\\\t\r\n]|^\s*(?:[-+#>=]|\d+[.)])|^ {4}")


def test_naughty_strings_without_markup_come_out_as_they_went_in() -> None:
    """Zalgo, emoji families, bidi marks, ligatures, control characters, BOM: no one asked for them to be changed.

    What consists of nothing that could be seen is no text.
    """
    plain = {name: text for name, text in naughty_strings().items() if not SPEAKS.search(text)}
    assert len(plain) > 200
    for name, text in plain.items():
        assert from_markdown(text) == (text.strip() if VISIBLE.search(text) else ""), name


def test_naughty_strings_with_markup_lose_no_letter() -> None:
    """Whatever they do to Markdown, letters, marks, numbers and format characters stay, in their order; the result is storable."""
    for name, text in naughty_strings().items():
        result = from_markdown(text)
        result.encode()
        if (
            VISIBLE.search(text) and "|" not in text and not regex.search(r"&#?\w+;", text)
        ):  # a table repeats its header; an entity is a letter
            assert SAID.sub("", result) == SAID.sub("", text), name
