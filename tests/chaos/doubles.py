"""Invariant 3: nothing twice, one part behind the other, and nothing given up but what is in doubt in earnest."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from app.sandbox.ledger import Line
from tests.chaos import runs
from tests.chaos.evidence import Evidence
from tests.chaos.readings import (
    MARK,
    Violation,
    acknowledged,
    attempt_of,
    chunk_of,
    first_heard,
    tokens_in,
    worker_hit,
)

# An attempt that ended so was taken or refused for certain; all else leaves doubt.
_SLACK = 0.05  # seconds; clocks of database and rig tick in other grains
_CERTAIN = frozenset({"ok", "slow", "close_idle", "silent", "http_429"})


def sent_once(evidence: Evidence) -> Iterator[Violation]:
    """3: each chunk once in the recipient's view, counted by chunk and by `token#i/N`.

    A, P, E and `park`: no duplicate at all. B and C with `resend`: a duplicate's earlier send was accepted, its fact
    was not committed (the answer was lost, or a fault hit the worker or the database before), and no status of it was
    heard before the later one: what lies in the spool is not heard. Parked is only what was in doubt in earnest, without
    a status; with `resend`, nothing.
    """
    heard = first_heard(evidence)
    accepted: dict[str, list[Line]] = defaultdict(list)
    carriers: dict[tuple[str, int], set[str]] = defaultdict(set)
    for send in evidence.sends:
        if send.accepted:
            accepted[chunk_of(send)].append(send)
            for token, i, _ in MARK.findall(send.text):
                carriers[token, int(i)].add(chunk_of(send))
    for (token, i), chunks in carriers.items():
        if len(chunks) > 1:
            what = f"part {i} stands in {len(chunks)} chunks"
            yield Violation(invariant=3, what=what, tokens=(token,), chunks=tuple(sorted(chunks)))
    for chunk, lines in accepted.items():
        for earlier, later in pairwise(lines):
            why = _no_excuse(evidence, earlier, later, heard)
            if why:
                yield Violation(
                    invariant=3,
                    what=f"sent twice: {earlier.key} ({earlier.outcome}) and {later.key}, {why}",
                    tokens=tokens_in(earlier.text),
                    chunks=(chunk,),
                    at=later.t,
                )
    yield from _parked(evidence, acknowledged(evidence))


def nothing_blind(evidence: Evidence) -> Iterator[Violation]:
    """3: in C nothing is sent again while no status flows: silence says nothing then.

    Counted from SILENCE after the stop began, when whoever looks can know of it. What was refused is no matter of silence.
    """
    if evidence.stopped is None:
        return
    began, ended = evidence.stopped
    before = {send.key: send for send in evidence.sends if send.key}
    for send in evidence.sends:
        last = before.get(f"{chunk_of(send)}:{attempt_of(send) - 1}")
        if last is not None and last.outcome not in _CERTAIN and began + runs.SILENCE < send.t < ended:
            yield Violation(
                invariant=3,
                what=f"{send.key} was sent {send.t - began:.1f} s after statuses had stopped, the one before being in doubt",
                tokens=tokens_in(send.text),
                chunks=(chunk_of(send),),
                at=send.t,
            )


def in_turn(evidence: Evidence) -> Iterator[Violation]:
    """3: a part leaves when the one before it was delivered, or its bounded wait was over: phones may show them as they come.

    By the ledger: not before a status of the one before was on its way to us, or that wait had passed since it was
    accepted.
    """
    told: dict[str, float] = {}
    for d in evidence.deliveries:
        if d.kind == "statuses":
            for id in d.ids:
                told[id] = min(told.get(id, float("inf")), d.t)
    lanes: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for send in evidence.sends:
        lanes[send.phone_number_id, send.recipient].append(send)
    for lines in lanes.values():
        begun: set[str] = set()
        before: list[Line] = []  # what was accepted of the chunk before
        for line in lines:
            if chunk_of(line) not in begun and before and chunk_of(before[0]) != chunk_of(line):
                wait = before[-1].t + runs.ORDER_WAIT - _SLACK
                if line.t < min(wait, *(told.get(each.provider_id, wait) for each in before)):
                    yield Violation(
                        invariant=3,
                        what=f"a part left {line.t - before[-1].t:.2f} s after the one before, which was not delivered",
                        tokens=tokens_in(line.text),
                        chunks=(chunk_of(line), chunk_of(before[0])),
                        at=line.t,
                    )
            begun.add(chunk_of(line))
            if line.accepted:
                before = [*before, line] if before and chunk_of(before[0]) == chunk_of(line) else [line]


def _no_excuse(evidence: Evidence, earlier: Line, later: Line, heard: dict[str, float]) -> str:
    """Why this duplicate may not be; empty: it lies in the set that is allowed."""
    if evidence.run not in ("B", "C"):
        return f"and in run {evidence.run} none may be"
    if evidence.policy == "park":
        return "though the policy is park"
    if heard.get(earlier.provider_id, float("inf")) < later.t:
        return "though a status of the first was heard before"
    if evidence.run == "B" and not earlier.silent:
        return "though the first would have had statuses"
    if earlier.responded and earlier.outcome in _CERTAIN and not worker_hit(evidence, earlier.t):
        return "though the answer to the first had reached an undisturbed worker"
    return ""


def _parked(evidence: Evidence, heard: dict[str, float]) -> Iterator[Violation]:
    attempts = defaultdict(list)
    for attempt in evidence.attempts:
        attempts[attempt.chunk].append(attempt)
    sends = {send.key: send for send in evidence.sends if send.key}
    for chunk in evidence.chunks:
        if chunk.state == "failed":
            yield Violation(invariant=3, what=f"given up: {chunk.reason}", chunks=(chunk.id,))
        if chunk.state != "parked":
            continue
        last = max(attempts[chunk.id], key=lambda attempt: attempt.n, default=None)
        send = sends.get(f"{chunk.id}:{last.n}") if last else None
        if evidence.policy != "park":
            yield Violation(invariant=3, what="parked, though the policy is resend", chunks=(chunk.id,))
        elif last is None:
            yield Violation(invariant=3, what="parked without an attempt", chunks=(chunk.id,))
        elif send is None:
            if not worker_hit(evidence, last.began, unheard=True):
                what = "parked, though nothing of it reached the provider and nobody was disturbed"
                yield Violation(invariant=3, what=what, chunks=(chunk.id,))
        elif send.provider_id in heard:
            yield Violation(invariant=3, what="parked, though it had a status", chunks=(chunk.id,))
        elif send.responded and send.outcome in _CERTAIN and not worker_hit(evidence, send.t):
            what = "parked, though its answer had reached an undisturbed worker"
            yield Violation(invariant=3, what=what, chunks=(chunk.id,))
