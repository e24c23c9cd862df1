"""The demo's verdict over made-up ledgers."""

import tomllib
from pathlib import Path

import pytest

from app import demo
from app.demo.script import Person, Says, Step, Turn, outcomes
from app.demo.verdict import Expected, faults, matched

GREETING = Expected(label="Amal: hello", outcomes=[(Turn(messages=1, texts=("Hi!",)),)])
LONG = Expected(label="Amal: tell me", outcomes=[(Turn(messages=1, texts=("part one", "part two")),)])
BURST = Expected(
    label="Amal: a / b",
    outcomes=[
        (Turn(messages=1, texts=("A",)), Turn(messages=1, texts=("B",))),
        (Turn(messages=2, texts=("AB",)),),
    ],
)


@pytest.mark.parametrize("burst", [["A", "B"], ["AB"]])
def test_a_conversation_answered_once_and_in_order_has_no_faults(burst: list[str]) -> None:
    """Whole answers, in order, a burst cut into turns in any right way: nothing to find."""
    assert faults([GREETING, LONG, BURST], ["Hi!", "part one", "part two", *burst]) == []


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([], ["unanswered: Amal: hello", "unanswered: Amal: tell me"]),
        (["Hi!"], ["unanswered: Amal: tell me"]),
        (["Hi!", "part one"], ["chunk 2 of 2 never came, of the answer to: Amal: tell me"]),
        (["Hi!", "Hi!", "part one", "part two"], ["doubled, 1 too many: “Hi!”"]),
        (["Hi!", "part one", "part two", "part one"], ["doubled, 1 too many: “part one”"]),
        (["Hi!", "part two", "part one"], ["out of order: “Hi!”, then “part two”, then “part one”"]),
        (["part one", "Hi!", "part two"], ["out of order: “part one”, then “Hi!”, then “part two”"]),
        (["Hi!", "part one", "part two", "Sorry"], ["not expected: “Sorry”"]),
    ],
)
def test_what_is_wrong_is_found_and_named(texts: list[str], found: list[str]) -> None:
    """Unanswered, cut short, doubled, out of order, unexpected: each is a fault that says what."""
    assert faults([GREETING, LONG], texts) == found


def test_a_burst_answered_twice_is_a_double() -> None:
    """One right way to answer a burst does not excuse a text of it that came again."""
    assert faults([BURST], ["AB", "AB"]) == ["doubled, 1 too many: “AB”"]
    assert faults([BURST], ["A", "B", "B"]) == ["doubled, 1 too many: “B”"]
    assert faults([BURST], ["A", "AB"]) != []


def test_an_answer_is_complete_only_when_all_of_it_is_there() -> None:
    """Who waits for an answer waits for its last chunk, and for every message of a burst."""
    assert matched(LONG.outcomes, ["part one"]) is None
    assert matched(LONG.outcomes, ["part one", "part two"]) is not None
    assert matched(BURST.outcomes, ["A"]) is None
    assert matched(BURST.outcomes, ["AB"]) == (Turn(messages=2, texts=("AB",)),)


def test_a_burst_of_three_may_fall_into_turns_in_four_ways() -> None:
    """Each outcome has all messages, in order, cut at other places."""
    tenant = tomllib.loads((Path(demo.__file__).parent / "demo.toml").read_text())["tenants"]["noor"]
    step = Step(person=Person(name="Amal", number="1"), says=tuple(Says(text=text) for text in ("x", "y", "z")))
    sizes = [[turn.messages for turn in outcome] for outcome in outcomes(step, tenant)]
    assert sorted(sizes) == [[1, 1, 1], [1, 2], [2, 1], [3]]
    assert all("z" in outcome[-1].texts[0] for outcome in outcomes(step, tenant))


def test_a_source_that_is_not_letter_for_letter_is_a_fault() -> None:
    """Though what was expected, which Qasid's own code has put together, came just so."""
    good, bad = (
        Turn(messages=1, texts=("It is said [1].", f"[1] {said}"), quoted=("أ  ب",)) for said in ("أ  ب", "أ ب")
    )
    assert faults([Expected(label="Dalia: why", outcomes=[(good,)])], good.texts) == []
    [fault] = faults([Expected(label="Dalia: why", outcomes=[(bad,)])], bad.texts)
    assert "source" in fault and "Dalia: why" in fault


def test_what_must_stand_in_an_answer_are_the_assistants_own_sources() -> None:
    """As it told them, not as they were put together; where it quotes nothing, or is not asked, nothing must."""
    tenant = tomllib.loads((Path(demo.__file__).parent / "demo.toml").read_text())["tenants"]["noor"]
    quoted = {
        says.text: outcomes(Step(person=Person(name="Amal", number="1"), says=(says,)), tenant)[0][0].quoted
        for says in (
            Says(text="What do the sources say about intentions?"),
            Says(text="x"),
            Says(kind="unsupported", text="poll"),
        )
    }
    assert len(quoted["What do the sources say about intentions?"]) > 1 and quoted["x"] == quoted["poll"] == ()
