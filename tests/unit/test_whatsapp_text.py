"""Markdown → WhatsApp markup: what a phone shows, letters that stay as they were, nothing that cannot be stored."""

import time

import pytest

from app.text.whatsapp import from_markdown

MARKUP = {
    "bold": ("**bold** __this too__", "*bold* *this too*"),
    "italic": ("*italic* _too_", "_italic_ _too_"),
    "strike": ("~~gone~~", "~gone~"),
    "bold and italic": ("***both***", "_*both*_"),
    "nested": ("*in **the** middle*", "_in *the* middle_"),
    "code": ("run `just test`", "run `just test`"),
    "code with a backtick": ("``a`b``", "```a`b```"),
    "fence": ("```python\nx = 1\n\ny = **2**\n```", "```\nx = 1\n\ny = **2**\n```"),
    "fence that says more than its language": ("```مرحبا بك\nx\n```", "```\nمرحبا بك\nx\n```"),
    "unclosed fence": ("```\nx", "```\nx\n```"),
    "fence that holds a fence": ("~~~\na```b\n~~~", "a```b"),
    "heading": ("# Title\ntext", "*Title*\ntext"),
    "heading with markup": ("## The **only** _way_", "*The only _way_*"),
    "paragraphs": ("one\n\n\n\ntwo", "one\n\ntwo"),
    "breaks": ("soft\nhard  \nslash\\\nend", "soft\nhard\nslash\nend"),
    "bold over two lines": ("**one\ntwo**", "*one*\n*two*"),
    "rule": ("a\n\n---\n\nb", "a\n\n———\n\nb"),
    "bullets": ("* a\n* b", "- a\n- b"),
    "loose bullets": ("- a\n\n- b", "- a\n\n- b"),
    "numbers": ("3. c\n4. d", "3. c\n4. d"),
    "nested list": ("- a\n  1. b\n     more\n  2. c\n- d", "- a\n  1. b\n     more\n  2. c\n- d"),
    "quote": ("> one\n> two\n>\n> three", "> one\n> two\n\n> three"),
    "nested quote": ("> a\n> > b", "> a\n\n> b"),
    "quote in a list": ("- a\n\n  > b", "- a\n\n> b"),
    "code in a quote": ("> ```\n> x = 1\n> ```", "> `x = 1`"),
    "link": ("see [the site](https://a.b/c).", "see the site: https://a.b/c."),
    "link that is its own label": ("[https://a.b](https://a.b) [a.b](https://a.b)", "https://a.b https://a.b"),
    "number that is its own link": (
        "[+966 (50) 123-4567](tel:+966501234567), [call](tel:+1), [+1 5](tel:+16)",
        "+966 (50) 123-4567, call: tel:+1, +1 5: tel:+16",
    ),
    "bold link": ("**[the site](https://a.b)**", "*the site*: https://a.b"),
    "address in angle brackets": ("<https://a.b/c> <x@a.b>", "https://a.b/c x@a.b"),
    "Arabic address": ("[ويكي](https://ar.wikipedia.org/wiki/قرآن)", "ويكي: https://ar.wikipedia.org/wiki/قرآن"),
    "address before an Arabic comma": ("<https://a.b>، ثم", "https://a.b ، ثم"),
    "address beside letters": ("see<https://a.b>now", "see https://a.b now"),
    "image": ("![a *cat*](https://a.b/c.png)", "a _cat_: https://a.b/c.png"),
    "footnote": ("text [1]\n\n[1]: https://a.b", "text [1]\n\n[1]: https://a.b"),
    "table": ("|Name|Age|\n|-|-:|\n|**Ali**|7|\n|Sara||", "*Name*: *Ali*\n*Age*: 7\n\n*Name*: Sara"),
    "table with a colon and a break": ("|A:|\n|-|\n|x<br>y|", "*A:* x\ny"),
    "table without rows": ("|A|B|\n|-|-|", "*A*\n*B*"),
    "HTML": ("a <b>x</b> <br> &amp; <script>", "a <b>x</b> <br> & <script>"),
    "indented text": ("    no code", "no code"),
    "unfenced code": ("a\n\n    def f():\n        return 1*2*3\n\nb", "a\n\ndef f():\n    return 1*2*3\n\nb"),
    "text that is indented in part": ("a\n\n    b\n  c", "a\n\nb\nc"),
    "blank": (" \n\t\n", ""),
}


@pytest.mark.parametrize(("markdown", "expected"), MARKUP.values(), ids=MARKUP.keys())
def test_markdown_becomes_what_a_phone_shows(markdown: str, expected: str) -> None:
    """Each construct of Markdown has one form in WhatsApp's markup."""
    assert from_markdown(markdown) == expected


@pytest.mark.parametrize(
    "text",
    [
        "2 * 3 * 4",
        "snake_case_name",
        "a * b",
        "5 ~ 6 ~ 7",
        "C:\\dir",
        "1 < 2 > 0",
        "#hashtag",
        "المجموع 2 * 3 * 4 يساوي",
    ],
)
def test_what_is_no_markup_stays(text: str) -> None:
    """Stars, underscores and the like that Markdown leaves alone come out as they went in."""
    assert from_markdown(text) == text


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("و**الله**", "والله"),
        ("كِتَابٌ**ه**", "كِتَابٌه"),
        ("un**frigging**believable", "unfriggingbelievable"),
        ("(**a**), «**b**»", "(*a*), «*b*»"),
        ("**2*3**", "2*3"),
        ("*snake_case*", "snake_case"),
        ("x`a`", "xa"),
        ("**a***b*", "ab"),
        ("\u2067**نص**\u2069 **x**\u200f", "\u2067*نص*\u2069 *x*\u200f"),
    ],
)
def test_a_marker_that_would_show_is_left_out(markdown: str, expected: str) -> None:
    """WhatsApp takes a marker for one at a word boundary only, and pairs it with the next of its kind."""
    assert from_markdown(markdown) == expected


@pytest.mark.parametrize(
    "text", ["\u200b\u2060", "*\u202e\u00ad*", "`\u200b`", "```\n\u2068\n```", "- \u200b\n- \ufeff", "&#8203;"]
)
def test_what_nobody_can_see_is_nothing(text: str) -> None:
    """With markup or without: a person would be sent a blank, or a pair of underscores."""
    assert from_markdown(text) == ""


def test_a_lone_surrogate_is_replaced_and_a_pair_joined() -> None:
    """U+0000 goes, a lone surrogate becomes U+FFFD, and two halves become the character they spell."""
    assert from_markdown("a\0b \ud800c \udc00 \ud83d\ude00") == "ab \ufffdc \ufffd 😀"


@pytest.mark.parametrize(
    "markdown", ["> " * 500 + "deep", "- " * 500 + "deep", "*a **b " * 3000 + "deep" + "c** d*" * 3000]
)
def test_depth_loses_nothing(markdown: str) -> None:
    """What is nested deeper than the parser goes comes out as it was written."""
    assert "deep" in from_markdown(markdown)


def test_an_answer_is_formatted_in_a_moment() -> None:
    """12,000 characters of Arabic do not hold up the event loop."""
    text = ("قال رسول الله ﷺ: **«إنَّما الأعمالُ بالنِّيَّاتِ»**، وإنَّما لكلِّ امرئٍ ما نوى.\n\n- بند\n" * 200)[:12_000]
    begun = time.process_time()
    from_markdown(text)
    assert time.process_time() - begun < 0.25


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("و**«الصبر»** ب**﴿بسم﴾** و*«الصبر»*", "و«الصبر» ب﴿بسم﴾ و«الصبر»"),
        ("**النية:**هي القصد، **سؤال؟**جواب", "النية:هي القصد، سؤال؟جواب"),
        ("**Note:**this, **Dose:**5 mg, **Total=**5, **2.5%**of", "Note:this, Dose:5 mg, Total=5, 2.5%of"),
        ("这是**“重点”**内容，**注意：**每天", "这是“重点”内容，注意：每天"),
        ("\u200f**«الصبر»**\u200f **(نعم)** ثم", "\u200f*«الصبر»*\u200f *(نعم)* ثم"),
        ("انظر**[هنا](https://a.b)** و**`x`**", "انظرهنا: https://a.b وx"),
    ],
)
def test_bold_may_stick_to_a_prefix_and_to_what_follows(markdown: str, expected: str) -> None:
    """Where CommonMark sees no bold, since a sign stands within and a letter without, a chat model means it."""
    assert from_markdown(markdown) == expected
