"""What the assistant's calls say of a turn: how its answer may have ended, and that nothing finished was asked for again.

Pure, of the provider's ledger; of the service's rows only the memos, which nobody else can know. The rules of production are
those of app/assistants/whole.py.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Literal

import msgspec
from msgspec import Struct

from app.sandbox.scripts import parts
from tests.chaos import runs
from tests.chaos.evidence import Asked, Evidence, Fault, Turn
from tests.chaos.readings import COMMIT_SECONDS, Violation, calls_about, membership

# Outcomes of calls by what a worker has then: the end of the answer; a piece with which it goes on.
WHOLE = frozenset({"ok", "slow"})
PIECE = frozenset({"max_tokens"})
_LAST_WORD = re.compile(r"\s+\S*\Z")
# Seconds from a call until its memo is committed, on a machine that is busy; longer where the answer is slow, or is none and
# the next try waits.
_ANSWER, _SLOW, _PAUSE = 3.0, 8.0, 5.0
# Seconds until an outage is forgotten: connections are new, and the breaker is closed again.
_RECOVERY = 3.0
# Seconds: a worker whose lane was taken from it goes on with the tries of its question for so long.
_UNAWARE = 15.0
# Hits of an instant, whatever the time until the victim is back.
_INSTANT = ("kill", "crash")
# What takes a lane from a worker that lives on, or holds up a commit: the others kill it, or leave it its lane.
_LASTING = frozenset("pause block freeze blackhole restart connections disk_full read_only locked held".split())


class Ending(Struct, frozen=True, kw_only=True):
    """One way in which these calls make an answer. `text`: what is said, where it is not whole; tokens as they are billed."""

    kind: Literal["whole", "partial", "failed"]
    text: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


def endings(calls: Sequence[Asked], said: Callable[[], str]) -> Iterator[Ending]:
    """Each way in which these calls about one turn may have been taken. `said`: the answer, whole.

    A try that fails is made again, ASSISTANT_TRIES in all for each piece of the answer; then the longest that was cut stands,
    if it is long enough to be worth it or others stand before it. A piece that was cut by its own limit is gone on from, at
    its last whole word, up to ANSWER_PARTS in all.
    """
    yield from _endings(calls, said, ())


def _endings(calls: Sequence[Asked], said: Callable[[], str], before: tuple[Asked, ...]) -> Iterator[Ending]:
    at, since = (len(_kept(before[-1], said)), before[-1].t) if before else (0, 0.0)
    here = [call for call in calls if call.before == at and call.t >= since]
    failed = [call for call in here if call.outcome not in WHOLE | PIECE]
    for call in here:
        if call.outcome in WHOLE and endless(said, call):
            yield _shortened((*before, call), said)
        elif call.outcome in WHOLE:
            yield _ending("whole", (*before, call), said)
        elif call.outcome in PIECE and len(before) + 1 == runs.ANSWER_PARTS:
            yield _ending("partial", (*before, call), said)
        elif call.outcome in PIECE:
            yield from _endings(calls, said, (*before, call))
    cut = [call for call in failed if call.outcome == "cut" and call.said >= (1 if before else runs.SHORTEST)]
    if len(failed) >= runs.ASSISTANT_TRIES:
        for call in cut:
            yield _ending("partial", (*before, call), said)
    # A worker that was cut has something: these are others' tries.
    if len(failed) - len(cut) >= runs.ASSISTANT_TRIES:
        yield _ending("partial" if before else "failed", before, said)


def _ending(kind: Literal["whole", "partial", "failed"], calls: Sequence[Asked], said: Callable[[], str]) -> Ending:
    return Ending(
        kind=kind,
        text=_kept(calls[-1], said) if kind == "partial" else "",
        input_tokens=sum(call.input_tokens for call in calls),
        # A stream that breaks off has not come to its figures: one is what its beginning says.
        output_tokens=sum(1 if call.outcome == "cut" else call.output_tokens for call in calls),
    )


def endless(said: Callable[[], str], call: Asked) -> bool:
    """Whether this answer is longer than a stream is read: many questions in one turn."""
    return len(said()) - call.before > runs.LONGEST


def _shortened(calls: Sequence[Asked], said: Callable[[], str]) -> Ending:
    """What is read of such a one; its figures come at its end, so one is what its beginning says."""
    last = calls[-1]
    return Ending(
        kind="partial",
        text=_LAST_WORD.sub("", said()[: last.before + runs.LONGEST]),
        input_tokens=sum(call.input_tokens for call in calls),
        output_tokens=sum(call.output_tokens for call in calls[:-1]) + 1,
    )


def _kept(call: Asked, said: Callable[[], str]) -> str:
    """The answer up to where this call ended, without what may be half a word."""
    return _LAST_WORD.sub("", said()[: call.before + call.said])


def answer_to(evidence: Evidence) -> Callable[[Sequence[Asked]], Callable[[], str]]:
    """The whole answer to the question that these calls are about, made when it is wanted."""
    counts = {item.token: item.parts for item in evidence.planned}

    def of(calls: Sequence[Asked]) -> Callable[[], str]:
        tokens = calls[0].tokens if calls else ()
        return cache(lambda: "\n\n".join(part for token in tokens for part in parts(token, counts.get(token, 1))))

    return of


class Overtaken:
    """Why an answer of the assistant may not have been the last word: what hit workers and database, and what the business
    wrote itself, which raises the version of a conversation's history."""

    def __init__(self, evidence: Evidence) -> None:
        webs = set(evidence.webs.values())
        # A commit whose reply was lost has happened, and a slow one is waited for.
        self._hits = [
            _felt(fault)
            for fault in evidence.faults
            if fault.target not in webs and fault.kind not in ("lost_commit", "latency")
        ]
        self._echoes: dict[str, list[float]] = defaultdict(list)
        for message in evidence.messages:
            if message.direction == "echo":
                self._echoes[message.conversation].append(message.stored)

    def lost(self, turn: Turn, answer: Asked, last: Asked | None = None) -> bool:
        """Whether it can be that nobody remembers this answer: hit before the commit of its memo, or of another version.

        `last`: the last of the calls that went on from it.
        """
        ended = _over(last or answer)
        hit = any(fault.overlaps(answer.t, ended) for fault in self._hits)
        return hit or self.changes(turn, answer.t - _ANSWER, ended) > 0

    def changes(self, turn: Turn, began: float, ended: float) -> int:
        """How often the history of the turn's conversation changed then."""
        return sum(began <= at <= ended for at in self._echoes[turn.conversation])

    def unaware(self, kept: float, asked: float) -> bool:
        """Whether whoever asked then may have begun with it before the answer was kept, or before that could be seen."""
        return any(fault.kind in _LASTING and fault.overlaps(kept - _UNAWARE, asked) for fault in self._hits)


def _over(call: Asked) -> float:
    """When its worker is done with it, at the latest, if nothing happens to it."""
    if call.outcome in WHOLE | PIECE:
        return call.t + _ANSWER + (_SLOW if call.outcome == "slow" else 0.0)
    return call.t + _ANSWER + _PAUSE


def _felt(fault: Fault) -> Fault:
    """For how long it can be felt: a death is over at once, however long it takes until its victim is back."""
    until = fault.began + 2 * COMMIT_SECONDS if fault.kind.startswith(_INSTANT) else fault.ended + _RECOVERY
    return msgspec.structs.replace(fault, ended=until)


def asked_once(evidence: Evidence) -> Iterator[Violation]:
    """14: no finished call of the assistant is repeated.

    Once the memo of a turn's answer is committed nobody asks again, but at another version, or a living worker that had lost
    its lane and did not know it yet. Before that a call that was answered is made again only if its memo was overtaken: each
    repeat has a hit, or a change, of its own, within the seconds of the answer that it repeats.
    """
    calls, members, overtaken = calls_about(evidence), membership(evidence), Overtaken(evidence)
    memos: dict[str, list[float]] = defaultdict(list)
    for memo in sorted(evidence.memos, key=lambda memo: memo.at):
        memos[memo.turn].append(memo.at)
    for turn in evidence.turns:
        tokens = tuple(sorted(members[turn.id]))
        about = sorted(calls.get(tokens, ()), key=lambda call: call.t)
        for at, call in enumerate(about):
            what = _repeats(overtaken, turn, memos[turn.id], about[:at], call)
            if what:
                yield Violation(invariant=14, what=what, tokens=tokens, at=call.t)


def _repeats(overtaken: Overtaken, turn: Turn, memos: Sequence[float], before: Sequence[Asked], call: Asked) -> str:
    """What this call repeats without an excuse; empty: nothing. `before`: the calls about its turn until then."""
    kept = [memo for memo in memos if memo + COMMIT_SECONDS < call.t]
    if kept:
        changes = overtaken.changes(turn, before[0].t - _ANSWER, call.t) if before else 0
        if len(kept) <= changes or overtaken.unaware(kept[-1], call.t):
            return ""
        return f"the assistant was asked {call.t - kept[-1]:.2f} s after its answer had been kept"
    done = [each for each in before if each.before == call.before and each.outcome in WHOLE | PIECE]
    if not done:
        return ""
    answer = done[-1]
    went_on = [each for each in before if each.before > answer.before and each.t > answer.t]
    if overtaken.lost(turn, answer, went_on[-1] if went_on else None):
        return ""
    return f"the assistant had answered ({answer.outcome}), and was asked again {call.t - answer.t:.2f} s later"
