"""Answers that nobody meant well: bounded time and length, nothing reordered, nothing lost but U+0000."""

import time

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.chunks import split
from app.text.direction import Directions
from app.text.markup import VISIBLE
from app.text.whatsapp import from_markdown

MILLION = 1_000_000
SAID = regex.compile(r"[^\p{L}\p{M}\p{N}]")


def repeated(piece: str) -> str:
    return (piece * (MILLION // len(piece) + 1))[:MILLION]


BOMBS = {
    **{
        repr(piece): repeated(piece)
        for piece in ("[", "![", "[]", "[a](", "*", "**a", "_*", "~~a", "`", "<", "&", "\\", ":", "~~~a ")
    },
    **{
        repr(piece): repeated(piece)
        for piece in ("> ", "- ", "- a\n", "1. ", "# a\n", "a\n\n", "\n", "|-|\n", "```\n", "x")
    },
    **{
        repr(piece): repeated(piece)
        for piece in ("\u2067", "\u202ea ", "[a](https://a.b) ", "<https://a.b>", "https://a.b ")
    },
    **{
        repr(piece): piece * 7_400
        for piece in ("*1*[a]", "*1*a b c ", "a**b", "|*", "5**b,", "**2.**5 ", "~~a~b~~", "__a", "(5)*")
    },
    "a name of 20,000 underscores": "‿_" * 20_000,
    "links in links": "[" * 300_000 + "a" + "](b)" * 100_000,
    "images in images": "![" * 200_000 + "a" + "](b)" * 100_000,
    "growing code marks": " ".join("`" * n for n in range(1, 1_400)),
    "a table of 60,000 cells": "|a|b|c|\n|-|-|-|\n" + "|one|two|three|\n" * 20_000,
    "a row of 60,000 cells": "|a" * 60_000 + "|\n" + "|-" * 60_000 + "|\n" + "|b" * 60_000 + "|",
    "empty rows below a long header": "|a" * 3_000 + "|\n" + "|-" * 3_000 + "|\n" + "|\n" * 400_000,
    "many tables with empty rows": ("|a" * 256 + "|\n" + "|-" * 256 + "|\n" + "|\n" * 256 + "\n") * 600,
    "a header of half a million letters": "|" + "h" * 500_000 + "|\n|-|\n" + "|x|\n" * 5_000,
    "lines that are all indented": "    a\n" * 29_900,
    "a figure in bold that ends nowhere": "片**5" + "x " * 499_000,
    "a prefix before markup that ends nowhere": "و*س" + "x " * 499_000,
    "lines in a list 50 deep": "- " * 50 + "x\n" + "y\n" * 29_000,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_a_million_characters_take_bounded_time_and_length(text: str) -> None:
    """Formatting and cutting an answer of 1 MB ends in seconds, whatever it is made of, and does not multiply it."""
    begun = time.process_time()
    result = from_markdown(text)
    chunks = split(result)
    assert time.process_time() - begun < 5
    assert len(result) <= 8 * len(text) + 20_000
    assert bool(chunks) == bool(VISIBLE.search(result))


def test_an_answer_of_a_megabyte_loses_no_letter_and_no_number() -> None:
    """Every letter and every digit of it is in some chunk, in its place."""
    text = repeated(
        "قال رسول الله ﷺ: **«إنَّما الأعمالُ بالنِّيَّاتِ»**، وإنَّما لكلِّ امرئٍ ما نوى.\n\n- بند `x_1` 👨‍👩‍👧‍👦\n\n"
        "5. 2*500*3 mg و**5** dial *100*1#\n7. x\n\n||\n|-|\n|3|4|`5|6`|\n\n"
    )
    joined = "".join(split(from_markdown(text)))
    assert SAID.sub("", joined) == SAID.sub("", text)
    assert joined.count("2*500*3 mg") == text.count("2*500*3 mg")
    assert joined.count("*100*1#") == text.count("*100*1#")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n",
        "\0",
        "*",
        "**",
        "****",
        "_",
        "~~~~",
        "`",
        "```\n```",
        "```\n\n",
        "---",
        "> ",
        ">>> ",
        "- ",
        "- \n- ",
        "# ",
        "#",
        "|-|",
        "| |\n|-|\n| |",
        "[]()",
        "![]()",
        "\\",
        "* * *",
        "+",
    ],
)
def test_only_markup_is_nothing(text: str) -> None:
    """It has no words, so there is no text of it and no chunk: whoever asked hears what a blank answer makes them hear."""
    assert from_markdown(text) == ""
    assert split(from_markdown(text)) == []


@pytest.mark.parametrize(
    "text",
    ["?", "!", "…", "👍", "5", "ﷺ", "۝", "—", "()", ":-)", "$", "<3", "5.", "=", "`*`", "```\n-\n```", "https://a.b"],
)
def test_a_sign_is_an_answer(text: str) -> None:
    """What is short is not blank."""
    assert from_markdown(text) == text


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("&#xD800; &#0; &#x202E;x", "\ufffd \ufffd \u202ex"),
        ("[\u202elabel](https://a.b)", "\u202elabel\u202c: https://a.b"),
        ("[\u2067نص](https://a.b)", "\u2067نص\u2069: https://a.b"),
        ("![\u2067نص](https://a.b)", "\u2067نص\u2069: https://a.b"),
        ("[x](https://a.b/\u202egpj.exe)", "x: https://a.b/%E2%80%AEgpj.exe"),
        ("|\u202eA|B|\n|-|-|\n|x|y|", "*\u202eA*\u202c: x\n*B*: y"),
    ],
)
def test_a_direction_turns_nothing_that_we_put_behind_it(markdown: str, expected: str) -> None:
    """A label or a header that leaves one open is closed before its URL or value; no URL holds a mark of its own."""
    assert from_markdown(markdown) == expected


@given(
    st.lists(
        st.sampled_from(["\u202e", "\u202c", "\u2067", "\u2069", "قال", "a", " ", "\n\n", "**", "- ", "> ", "# ", "`"]),
        max_size=60,
    )
)
@settings(max_examples=200, deadline=None)
def test_no_paragraph_and_no_chunk_begins_in_a_direction_left_open(pieces: list[str]) -> None:
    """Whatever the answer leaves open is over at the end of its line: each paragraph starts in its own direction."""
    result = from_markdown("".join(pieces))
    for at in (match.end() for match in regex.finditer(r"\n", result)):
        assert Directions().after(result, 0, at).opened == ""


CODE = st.text(
    st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])
    | st.sampled_from("قرآنُ\u2067\u2069*_~ \n\t|<&"),
    min_size=1,
)


@given(
    CODE.filter(lambda text: VISIBLE.search(text) is not None and "```" not in text and "~~~" not in text),
    st.sampled_from(["", "- ", "1. "]),
)
@settings(max_examples=300, deadline=None)
def test_a_block_of_code_comes_out_byte_for_byte(content: str, marker: str) -> None:
    """Alone or in a list: no mark, entity or blank of it is touched; only empty lines at its end are."""
    indent = " " * len(marker)
    markdown = marker + "\n".join(indent + line for line in f"```\n{content}\n```".split("\n")).removeprefix(indent)
    expected = content.rstrip("\n")
    assert from_markdown(markdown) == f"{marker}```\n{expected}\n```"


@pytest.mark.parametrize(
    "url",
    [
        "https://a.b/__init__.py",
        "https://a.b/_next_/x",
        "http://a.b/*x*/y",
        "https://a.b/?q=1&copy=2#~x~",
        "https://ar.wikipedia.org/wiki/_قرآن_/",
    ],
)
def test_a_bare_url_keeps_its_letters(url: str) -> None:
    """What stands in it is no markup, and markup around it is none of it."""
    assert from_markdown(f"see {url}, and ({url}).") == f"see {url}, and ({url})."
    assert from_markdown(f"**{url}**") == f"*{url}*" or "*" in url
    assert from_markdown(f"[label]({url})") == f"label: {url}"


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("<https://a.b/><https://c.d>", "https://a.b/ https://c.d"),
        ("<https://a.b>![c](https://e.f)", "https://a.b c: https://e.f"),
        ("now![](https://a.b)now", "now https://a.b now"),
        ("[1](https://a.b/c),[2](https://d.e/f).", "1: https://a.b/c, 2: https://d.e/f."),
        ("[a](https://a.b/c),[b](https://d.e/f);**c**", "a: https://a.b/c, b: https://d.e/f; *c*"),
        ("<https://a.b/c>,<https://d.e/f>.`x`", "https://a.b/c, https://d.e/f. `x`"),
        ("[Ali](https://a.b/c)'s, (<https://a.b/c>)(b)", "Ali: https://a.b/c 's, (https://a.b/c )(b)"),
        (
            "[a](https://a.b/c).), [b](https://a.b/c)!\n**[c](https://a.b/c).**",
            "a: https://a.b/c.), b: https://a.b/c!\n*c*: https://a.b/c.",
        ),
    ],
)
def test_urls_do_not_stick_together(markdown: str, expected: str) -> None:
    """A phone takes whatever touches a URL for a part of it."""
    assert from_markdown(markdown) == expected
