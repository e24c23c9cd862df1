"""Intents: which texts count as the same, which turns they answer, and what follows from it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.assistants.intents import LONGEST, Intents
from app.configuration import Intent, Then, YesThen
from app.text.assent import LANGUAGES, assents
from app.text.matching import Pattern, normalise

INTENTS = Intents(
    [
        Intent(match=("hi", "hello", "привет", "السلام عليكم"), reply="Hello!"),
        Intent(match=("opening hours",), patterns=("* opening hours *", "when * open"), reply="9 to 5"),
        Intent(match=("👍",), reply="Glad to help."),
        Intent(patterns=("*سعار*",), reply="الأسعار على الموقع.", language="ar"),
        Intent(match=("agent",), patterns=("* a person *",), reply="One moment.", then="hand_over", pause_hours=2.0),
        Intent(match=("cancel",), reply="Cancel it?", then="confirm", yes="Cancelled.", no="It stands."),
        Intent(match=("موظف",), reply="هل تريد موظفا؟", then="confirm", language="ar-EG", yes="لحظة.", no="حسنا.",
               yes_then="hand_over"),
        Intent(match=("stop",), reply="No more answers.", then="stop"),
        Intent(match=("start",), reply="Welcome back.", then="start"),
    ]
)  # fmt: skip


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


def reply(*texts: str) -> str | None:
    fixed = INTENTS.answer(texts)
    return fixed.reply if fixed else None


@pytest.mark.parametrize(
    ("texts", "said"),
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
def test_a_turn_is_answered_only_if_each_message_matches_whole(texts: list[str], said: str | None) -> None:
    """One message for the assistant makes it a turn for the assistant; equal replies are said once."""
    assert reply(*texts) == said


def test_without_intents_nothing_is_answered() -> None:
    """A tenant without intents leaves every turn to the assistant."""
    assert Intents().answer(["hi"]) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("What are your opening hours?", "9 to 5"),
        ("OPENING   HOURS, please", "9 to 5"),
        ("your opening hour", None),
        ("reopening hours", None),
        ("When are you open?", "9 to 5"),
        ("When open", "9 to 5"),
        ("So when are you open", None),
        ("كم أسعاركم؟", "الأسعار على الموقع."),
        ("والأسْعَار", "الأسعار على الموقع."),
        ("can I talk to a person", "One moment."),
        ("a persona", None),
    ],
)
def test_a_star_stands_for_words_or_for_letters(text: str, said: str | None) -> None:
    """Between spaces for any words, none too; beside letters for any characters. The rest is compared as `match` is."""
    assert reply(text) == said


@given(st.lists(st.text(st.sampled_from("ab *"), max_size=6), max_size=5), st.text(st.sampled_from("ab "), max_size=20))
def test_a_pattern_is_read_as_one_would_with_all_the_time_in_the_world(pieces: list[str], text: str) -> None:
    """Left to right and each piece once finds what trying everything finds."""
    pattern, bare = Pattern(" ".join(pieces)), normalise(text)
    framed = f" {bare.replace(' ', '  ')} "

    def slowly(parts: list[str], rest: str) -> bool:
        first, *others = parts
        if not others:
            return rest.endswith(first)
        return any(
            rest.startswith(first, at) and slowly(others, rest[at + len(first) :]) for at in range(len(rest) + 1)
        )

    first, *others = pattern._pieces
    expected = framed == first if not others else framed.startswith(first) and slowly(others, framed[len(first) :])
    assert pattern.matches(bare) is expected


def test_no_pattern_and_no_text_is_slow() -> None:
    """What makes expressions backtrack for ages is read once; what is longer than any phrase is not read at all."""
    many = Intents([Intent(patterns=tuple("*" + "a*" * 9 + f"b{n}" for n in range(500)), reply="x")])
    began = time.process_time()
    assert many.of("a" * LONGEST) is None
    assert many.of("a " * 2_000_000) is None
    assert Intents([Intent(match=("ﷺ" * 400,), reply="x")]).of("ﷺ" * 400) is None  # 18 letters each
    assert time.process_time() - began < 0.5


def test_a_question_waits_for_yes_or_no_in_its_language() -> None:
    """Yes and no are whole answers; anything else is taken as if nothing had been asked."""
    asked = INTENTS.answer(["Cancel!"])
    assert asked and (asked.reply, asked.asks) == ("Cancel it?", "cancel")
    said = {
        text: fixed and fixed.reply
        for text in ("Yes!", "no", "👍", "نعم", "hi", "perhaps", "yes or no")
        for fixed in [INTENTS.answer([text], asked.asks)]
    }
    assert said == {
        "Yes!": "Cancelled.",
        "no": "It stands.",
        "👍": "Cancelled.",
        "نعم": None,
        "hi": "Hello!",
        "perhaps": None,
        "yes or no": None,
    }
    assert INTENTS.answer(["yes", "no"], asked.asks) is None
    assert INTENTS.answer(["yes"]) is None and INTENTS.answer(["yes"], "an intent that is gone") is None


def test_what_follows_a_yes_follows_it_alone() -> None:
    """The question hands nothing over, nor does a no."""
    asked = INTENTS.answer(["موظف"])
    assert asked and asked.asks and asked.pauses is None
    yes, no = INTENTS.answer(["نَعَم"], asked.asks), INTENTS.answer(["لا"], asked.asks)
    assert yes and no and (yes.pauses, no.pauses, yes.asks) == (24.0, None, None)


def test_of_several_messages_the_last_word_on_stopping_counts() -> None:
    """A hand-over is one wherever it stands; a question that somebody stops is no question."""
    both = INTENTS.answer(["stop", "start", "agent"])
    assert both and (both.stops, both.pauses) == (False, 2.0)
    end = INTENTS.answer(["cancel", "stop"])
    assert end and (end.stops, end.asks) == (True, None)


@pytest.mark.parametrize(
    ("texts", "beside", "heard"),
    [
        (["stop", "leave me alone"], False, ("No more answers.", True)),
        (["where are you?", "Stop!"], False, ("No more answers.", True)),
        (["stop"], True, ("No more answers.", True)),
        (["start", "where are you?"], False, ("", False)),
        (["start"], True, ("", False)),
        (["stop", "no, start", "start", "where are you?"], False, ("", False)),
        (["start", "what?", "stop", "hi"], False, ("No more answers.", True)),
        (["agent", "where are you?"], False, None),
        (["hi"], True, None),
    ],
)
def test_a_word_on_stopping_is_heard_whatever_stands_beside_it(
    texts: list[str], beside: bool, heard: tuple[str, bool] | None
) -> None:
    """A question, a picture: who stops reads the word's reply alone, who starts is left to the assistant with the rest."""
    fixed = INTENTS.answer(texts, beside=beside)
    assert (fixed and (fixed.reply, fixed.stops)) == heard
    assert fixed is None or (fixed.asks, fixed.pauses) == (None, None)


@pytest.mark.parametrize(
    ("then", "yes_then", "texts", "weighs"),
    [
        ("reply", "reply", ["cancel"], [False]),
        ("confirm", "reply", ["cancel", "yes"], [False, False]),
        ("confirm", "stop", ["cancel", "yes"], [True, True]),
        ("confirm", "hand_over", ["cancel", "no"], [True, True]),
        ("hand_over", "reply", ["cancel"], [True]),
        ("stop", "reply", ["cancel"], [True]),
        ("start", "reply", ["cancel"], [True]),
    ],
)
def test_what_stops_starts_or_hands_over_weighs_from_the_question_on(
    then: Then, yes_then: YesThen, texts: list[str], weighs: list[bool]
) -> None:
    """No limit holds for it; for what only says something it does."""
    intents = Intents([Intent(match=("cancel",), reply="?", then=then, yes="yes", no="no", yes_then=yes_then)])
    found, asking = [], None
    for text in texts:
        fixed = intents.answer([text], asking)
        assert fixed is not None
        asking = fixed.asks
        found.append(fixed.weighs)
    assert found == weighs


def test_a_stop_can_be_taken_back_where_an_intent_does_so() -> None:
    """Whatever stands before or behind it."""
    assert INTENTS.can_start
    assert not Intents().can_start and not Intents([Intent(match=("hi",), reply="Hello!")]).can_start


def test_a_yes_beside_a_picture_answers_no_question() -> None:
    """What the picture says nobody knows."""
    assert INTENTS.answer(["yes"], "cancel", beside=True) is None


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_language_says_yes_with_its_no(language: str) -> None:
    """Each has words for both, as `normalise` leaves them, and thumbs besides."""
    assert assents("👍", language) is True and assents("👎", f"{language}-XX") is False
