"""What stands for an answer that was cut, and who may be asked again: what the checker accepts, and what it finds."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from app.sandbox.scripts import parts
from tests.chaos import checker, recipients, runs
from tests.chaos.answers import asked_once
from tests.chaos.evidence import Asked, Evidence, Fault, Memo, Message
from tests.chaos.test_checker import BEGAN, CANARY, ONE, TWO, changed, found, send, well, with_

swap = msgspec.structs.replace
ANSWER = "\n\n".join([*parts(ONE, 2), *parts(TWO, 2)])
HALF = len(ANSWER) // 2


def call(t: float, outcome: str, *, before: int = 0, said: int = 0, **other: Any) -> Asked:
    fields = {"tokens": (ONE, TWO), "input_tokens": 10, "output_tokens": 20, "canaries": (CANARY,)}
    return Asked(**{**fields, "t": BEGAN + t, "outcome": outcome, "before": before, "said": said, **other})


def kept(length: int) -> str:
    """So much of the answer, without its last word, which may be half a one."""
    return re.sub(r"\s+\S*\Z", "", ANSWER[:length])


def read(text: str, *calls: Asked, input_tokens: int = 10, output_tokens: int = 20) -> Evidence:
    """One turn for which these calls were made; the recipient reads `text`, a chunk for each mark in it."""
    texts = [piece.strip() for piece in re.split(rf"(?=(?:{ONE}|{TWO})#\d/\d)", text) if piece.strip()]
    e = swap(
        well(),
        asked=calls,
        sends=[send(n, id, 1, said) for n, (id, said) in enumerate(zip("abcd", texts, strict=False))],
    )
    return changed(e, "turns", 0, input_tokens=input_tokens, output_tokens=output_tokens)


def marked(text: str) -> str:
    return f"{text}\n\n{runs.PARTIAL}"


def judged(e: Evidence) -> set[int]:
    return {
        violation.invariant
        for rule in (recipients.answered_wholly, checker.billed_once, asked_once)
        for violation in rule(e)
    }


CUT = [call(n, "cut", said=HALF) for n in range(4)]
LIMITED = call(0, "max_tokens", said=HALF)
SECOND = len(kept(HALF))
REST = len(ANSWER) - SECOND
HIT = Fault(kind="kill", target="worker1", began=BEGAN + 5, ended=BEGAN + 9)


def test_an_answer_that_was_gone_on_with_is_the_whole_answer_and_is_billed_as_such() -> None:
    """All its words, none marked; the tokens of all its calls, and of no call that failed."""
    calls = [LIMITED, call(1, "http_529", before=SECOND), call(2, "ok", before=SECOND, said=REST)]
    assert not judged(read(ANSWER, *calls, input_tokens=20, output_tokens=40))
    assert judged(read(ANSWER, *calls)) == {5}
    assert judged(read(ANSWER, *calls, input_tokens=30, output_tokens=60)) == {5}
    assert judged(read(marked(ANSWER), *calls, input_tokens=20, output_tokens=40)) == {2}
    assert judged(read(marked(kept(HALF)), *calls, input_tokens=20, output_tokens=40)) == {2}
    elsewhere = [LIMITED, call(2, "ok", before=SECOND - 9, said=REST)]  # that one goes on from nothing that was said
    assert judged(read(ANSWER, *elsewhere, input_tokens=20, output_tokens=40)) == {5}


def test_a_beginning_stands_for_the_answer_where_every_try_failed_and_one_was_cut() -> None:
    """As long as it was said, without the word that may be half a one, and marked once, at its end."""
    bill = {"input_tokens": 10, "output_tokens": 1}
    assert not judged(read(marked(kept(HALF)), *CUT, **bill))
    failed = [call(n, kind) for n, kind in enumerate(("http_429", "empty", "http_529"))]
    assert not judged(read(marked(kept(HALF)), CUT[0], *(swap(each, t=each.t + 1) for each in failed), **bill))
    for text in (
        kept(HALF),
        marked(marked(kept(HALF))),
        f"{runs.PARTIAL} {kept(HALF)}",
        marked(kept(HALF - 50)),
        marked(ANSWER[: HALF + 50]),
        marked(kept(HALF).replace(" ", " x ", 1)),
        marked(ANSWER),
        kept(HALF) + runs.PARTIAL,
    ):
        assert 2 in judged(read(text, *CUT, **bill)), text[-100:]
    assert 2 in judged(read(marked(kept(HALF)), *CUT[:3], **bill))  # one try is left
    assert 2 in judged(read(marked(kept(HALF)), *[swap(each, outcome="empty", said=0) for each in CUT], **bill))
    assert 5 in judged(read(marked(kept(HALF)), *CUT))  # a stream that broke off had not come to its figures


def test_a_beginning_may_be_longer_by_what_further_calls_said() -> None:
    """Three pieces at most, or what there is when it cannot be gone on with."""
    second = call(1, "max_tokens", before=SECOND, said=REST // 2)
    third = len(kept(SECOND + REST // 2))
    last = call(2, "max_tokens", before=third, said=(len(ANSWER) - third) // 2)
    whole = marked(kept(third + (len(ANSWER) - third) // 2))
    assert not judged(read(whole, LIMITED, second, last, input_tokens=30, output_tokens=60))
    assert judged(read(marked(kept(SECOND + REST // 2)), LIMITED, second, last, input_tokens=30, output_tokens=60)) == {
        2
    }
    assert judged(read(marked(kept(SECOND + REST // 2)), LIMITED, second, input_tokens=20, output_tokens=40)) == {2, 5}
    broken = [call(1 + n, "http_529", before=SECOND) for n in range(4)]
    assert not judged(read(marked(kept(HALF)), LIMITED, *broken))
    assert judged(read(marked(kept(HALF)), LIMITED, *broken[1:])) == {2, 5}
    cut = [swap(broken[0], outcome="cut", said=60), *broken[1:]]
    assert not judged(read(marked(kept(SECOND + 60)), LIMITED, *cut, input_tokens=20, output_tokens=21))
    assert judged(read("", LIMITED, *broken)) == {2}  # what was said is worth sending


def test_a_beginning_never_stands_where_the_assistant_has_answered_wholly() -> None:
    """But where nobody remembers that: its worker was killed before the memo, or the question had changed."""
    bill = {"input_tokens": 10, "output_tokens": 1}
    later = [swap(each, t=each.t + 20) for each in CUT]
    e = read(marked(kept(HALF)), call(4.9, "ok", said=len(ANSWER)), *later, **bill)
    assert judged(e) == {2, 14}
    assert not judged(swap(e, faults=[HIT]))
    assert judged(swap(e, faults=[swap(HIT, target="web1")])) == {2, 14}
    assert judged(swap(e, faults=[swap(HIT, kind="lost_commit")])) == {2, 14}
    assert judged(swap(e, faults=[swap(HIT, began=BEGAN + 15, ended=BEGAN + 16)])) == {2, 14}
    first = read(marked(kept(HALF)), *CUT, call(9, "ok", said=len(ANSWER)), **bill)
    assert judged(first) == {2}


def test_a_turn_fails_only_without_a_word_worth_sending() -> None:
    """Four tries with nothing; a long piece of a cut answer is something, a short one is not; and nothing else is read."""
    failed = [call(n, kind) for n, kind in enumerate(("http_429", "empty", "http_529", "empty"))]

    def fails(*calls: Asked, text: str = runs.FAILURE) -> bool:
        e = swap(well(), asked=calls, sends=[send(0, "a", 1, text)])
        return not found(changed(e, "turns", 0, outcome="failed"), recipients.answered_wholly)

    assert fails(*failed)
    assert not fails(*failed[:3])
    assert not fails(*failed[:3], CUT[3])
    assert fails(*failed, swap(CUT[3], t=BEGAN + 9))
    assert fails(*failed[:3], swap(CUT[3], said=runs.SHORTEST - 1))
    assert not fails(LIMITED, *(swap(each, before=SECOND) for each in failed))
    assert not fails(*failed, call(9, "ok"))
    assert not fails(*failed, text=marked(kept(HALF)))
    read_too = changed(swap(well(), asked=failed), "turns", 0, outcome="failed")
    assert found(with_(read_too, "sends", send(9, "x", 1, runs.FAILURE)), recipients.answered_wholly)


def test_a_second_answer_is_billed_where_what_was_asked_changed_and_both_were_remembered() -> None:
    """Behind the back of who had read it: before the first call, maybe. One that nobody remembered was settled by nobody."""
    calls = [call(3, "ok", said=len(ANSWER)), call(9, "ok", said=len(ANSWER))]
    e = read(ANSWER, *calls, input_tokens=20, output_tokens=40)
    echo = swap(e.messages[0], direction="echo", provider_id="e", seq=None)
    both = [Memo(tenant="t00", turn="turn", version=n, at=BEGAN + at) for n, at in enumerate((3.5, 9.5))]
    for at, memos, right in (
        (1, both, True),
        (8, both, True),
        (-1, both, False),
        (10, both, False),
        (1, both[:1], False),
    ):
        with_echo = with_(e, "messages", swap(echo, stored=BEGAN + at))
        assert (not found(with_(with_echo, "memos", *memos), checker.billed_once)) == right, at
    assert found(with_(e, "memos", *both), checker.billed_once), "nothing had changed"


# --- asked once ---


def asked(*calls: Asked, memos: Sequence[float] = (), echoes: Sequence[float] = (), **other: Any) -> bool:
    """Whether the rule finds nothing: calls about the one turn, its memos, and what the business wrote meanwhile."""
    e = swap(well(), asked=calls, **other)
    e = with_(e, "memos", *(Memo(tenant="t00", turn="turn", version=n, at=BEGAN + at) for n, at in enumerate(memos)))
    echo = swap(e.messages[0], direction="echo", provider_id="e", seq=None)
    wrote: list[Message] = [swap(echo, stored=BEGAN + at) for at in echoes]
    return not found(with_(e, "messages", *wrote), asked_once)


AGAIN = (call(4.9, "ok"), call(20, "ok"))
PAUSE = Fault(kind="pause", target="worker1", began=BEGAN + 3, ended=BEGAN + 12)


def test_nobody_is_asked_again_once_the_answer_is_kept() -> None:
    """Not after a kill, nor where the memo's commit went unheard; whatever the first call's outcome was."""
    assert not asked(*AGAIN, memos=[5.1])
    assert not asked(*AGAIN, memos=[5.1], faults=[HIT])
    assert not asked(*AGAIN, memos=[5.1], faults=[swap(HIT, kind="crash answer.remembered")])
    assert not asked(*AGAIN, memos=[5.1], faults=[swap(HIT, kind="lost_commit")])
    assert not asked(*CUT, call(20, "ok"), memos=[4.0], faults=[HIT])
    assert asked(AGAIN[0], memos=[5.1])
    assert asked(*CUT, memos=[4.0])
    assert asked(AGAIN[0], swap(AGAIN[1], t=BEGAN + 5.2), memos=[5.1], faults=[HIT])  # begun before that could be seen


def test_a_living_worker_that_has_lost_its_lane_may_not_know_better() -> None:
    """It stood still for longer than its lease, and tries on; long after that it does not."""
    assert asked(call(1, "http_529"), call(9, "ok"), call(12.5, "ok"), memos=[9.3], faults=[PAUSE])
    assert not asked(call(1, "http_529"), call(9, "ok"), call(12.5, "ok"), memos=[9.3])
    early = swap(PAUSE, began=BEGAN - 30, ended=BEGAN - 20)
    assert not asked(call(1, "http_529"), call(9, "ok"), call(12.5, "ok"), memos=[9.3], faults=[early])


def test_another_version_of_the_conversation_permits_one_more() -> None:
    """What the business writes meanwhile: one for each."""
    assert asked(*AGAIN, memos=[5.1, 20.1], echoes=[6])
    assert not asked(*AGAIN, call(30, "ok"), memos=[5.1, 20.1], echoes=[6])
    assert asked(*AGAIN, call(30, "ok"), memos=[5.1, 20.1], echoes=[6, 21])
    assert not asked(*AGAIN, memos=[5.1, 20.1], echoes=[21])


@pytest.mark.parametrize("outcome", ["ok", "slow", "max_tokens"])
def test_an_answer_that_was_not_kept_is_asked_for_again_only_after_a_hit_of_its_own(outcome: str) -> None:
    """Killed between the end of the stream and the commit of the memo: one repeat for each."""
    again = (call(4.9, outcome), call(20, outcome), call(40, outcome))
    assert not asked(*again[:2])
    assert asked(*again[:2], faults=[HIT])
    assert not asked(*again, faults=[HIT])
    assert asked(*again, faults=[HIT, swap(HIT, began=BEGAN + 21, ended=BEGAN + 22)])
    assert not asked(*again[:2], faults=[swap(HIT, kind="lost_commit")])
    assert not asked(*again[:2], faults=[swap(HIT, target="web1")])
    # Until its victim was back does not count: others were at work meanwhile.
    assert not asked(*again[:2], faults=[swap(HIT, began=BEGAN - 2, ended=BEGAN + 9)])


def test_what_goes_on_from_a_piece_repeats_nothing() -> None:
    """A kill in the midst of the second piece lets all be asked again."""
    rest = call(6, "slow", before=SECOND)
    assert asked(LIMITED, rest)
    assert asked(LIMITED, swap(rest, outcome="cut"), swap(rest, t=BEGAN + 7))
    assert not asked(LIMITED, rest, swap(rest, t=BEGAN + 30))
    late = swap(HIT, began=BEGAN + 12, ended=BEGAN + 13)
    assert not asked(LIMITED, swap(LIMITED, t=BEGAN + 30), faults=[late])
    for outcome, lost in (("ok", False), ("slow", True), ("http_529", True)):
        assert asked(LIMITED, swap(rest, outcome=outcome), swap(LIMITED, t=BEGAN + 30), faults=[late]) is lost, outcome


def test_an_answer_without_an_end_is_read_so_far_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many questions in one turn: what is longer than a stream is read ends there, for what its beginning says that it cost."""
    monkeypatch.setattr(runs, "LONGEST", HALF)
    whole = call(0, "ok")
    assert judged(read(marked(kept(HALF)), whole, output_tokens=1)) == set()
    assert judged(read(kept(HALF), whole, output_tokens=1)) == {2}, "unmarked"
    assert judged(read(marked(kept(HALF)), whole)) == {5}, "figures that never came"
    monkeypatch.undo()
    assert 2 in judged(read(marked(kept(HALF)), whole, output_tokens=1)), "an answer that was heard to its end"
