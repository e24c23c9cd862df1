"""What an answer may be at most, and where it is made fit for people: bounded before anything is done with it."""

import time
from threading import get_ident
from typing import Any

import pytest

from app.assistants import Answer, Citation
from app.assistants.parts import LONGEST, MOST_CITATIONS
from app.configuration import Texts
from app.text.citations import Source, with_sources
from tests.unit.test_breakers import tenant
from workers import formatting
from workers.asking import LONGEST_TITLE, bounded

pytestmark = pytest.mark.anyio


def cited(*citations: Citation) -> tuple[Citation, ...]:
    """These citations, as an answer keeps them."""
    answer = Answer(
        text="As is said.", model="m", input_tokens=1, output_tokens=1, stopped="end_turn", citations=citations
    )
    return bounded(tenant("noor"), answer).citations


def test_of_thousands_of_citations_the_first_are_kept() -> None:
    """Each may be a call to a translator: their number is bounded."""
    many = [Citation(text=f"نص {n}", title=str(n)) for n in range(5_000)]
    assert cited(*many) == tuple(many[:MOST_CITATIONS])


def test_a_quotation_that_is_too_long_is_its_title_and_takes_no_others_room() -> None:
    """It is never cut, since half of one is another; each citation keeps its number."""
    long, short = Citation(text="ن" * 200_000, title="Long"), Citation(text="نص", title="Short")
    assert cited(short, long, short) == (short, Citation(text="", title="Long"), short)


def test_quotations_are_together_no_longer_than_an_answer() -> None:
    """What no longer fits is its title; what comes behind it and fits is kept."""
    kept = cited(*(Citation(text=str(n) * 999, title="T" * 999) for n in range(10, 99)), Citation(text="last"))
    assert LONGEST - 2_000 < sum(len(each.text) for each in kept) <= LONGEST
    assert {len(each.title) for each in kept[:-1]} == {LONGEST_TITLE}
    assert kept[-1].text == "last" and kept[-2].text == ""


def test_what_stands_below_an_answer_letter_for_letter_is_bounded_with_it() -> None:
    """The list that an assistant has written itself: text and list together are no longer than an answer, or marked."""
    answer = Answer(
        text="Yes. " * 10, model="m", input_tokens=1, output_tokens=1, stopped="", verbatim="\0[1]\ud800 t\n" * 20_000
    )
    kept = bounded(tenant("noor"), answer)
    assert kept.partial and kept.text == answer.text and LONGEST - 10 < len(kept.text + kept.verbatim) <= LONGEST
    assert kept.verbatim.startswith("[1]\ufffd t\n[1]") and kept.verbatim.endswith(" t")


@pytest.mark.parametrize("text", ["", " ", "\0", "\u200b"])
def test_an_empty_citation_keeps_its_place(text: str) -> None:
    """The numbers of the others stand in the text."""
    kept = cited(Citation(text=text), Citation(text="x"))
    assert kept[0].text.strip("\u200b ") == "" and kept[1].text == "x"


def test_halves_of_characters_are_replaced_and_marks_of_direction_are_the_sources() -> None:
    """What neither PostgreSQL nor JSON takes goes; an override is a letter of the quotation, isolated when it is shown."""
    [kept] = cited(Citation(text="a\ud800b\0c\u202ed", title="\udfff"))
    assert kept == Citation(text="a\ufffdbc\u202ed", title="\ufffd")


async def test_what_is_long_is_worked_on_beside_the_event_loop() -> None:
    """And what is short is not sent to a thread for a few microseconds."""
    assert await formatting.apart(formatting.LONG + 1, get_ident) != get_ident()
    assert await formatting.apart(formatting.LONG, get_ident) == get_ident()


@pytest.mark.parametrize("piece", ["![", "[", "[[", "[a][", "* a\n", "> a\n", "*(", "\ud800"])
async def test_what_is_short_takes_a_moment_whatever_it_is(piece: str) -> None:
    """A person may ask an assistant for thousands of brackets: all others would wait while they are read as Markdown."""
    text = (piece * formatting.LONG)[: formatting.LONG]
    began = time.thread_time()
    await formatting.pieces(await formatting.whatsapp(text))
    assert time.thread_time() - began < 0.15


@pytest.mark.parametrize("where", ["text", "translation"])
async def test_long_sources_below_a_short_answer_are_long(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The length of all that is put together counts, not the answer's."""
    threads: list[int] = []

    def seen(*args: Any, **named: Any) -> str:
        threads.append(get_ident())
        return with_sources(*args, **named)

    monkeypatch.setattr(formatting, "with_sources", seen)
    fields: dict[str, Any] = {"text": "x", where: "\u2068" + "y" * formatting.LONG}
    source = Source(**fields)
    assert "yyy" in await formatting.sourced("Yes.", [source], Texts())
    assert "x" in await formatting.sourced("Yes.", [Source(text="x")], Texts())
    assert threads[0] != get_ident() == threads[1]
