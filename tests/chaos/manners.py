"""Invariants 7 and 11: how the service treats the provider. It waits as told, retries little, answers webhooks in time."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator

from app.sandbox.ledger import Line
from tests.bench.figures import percentiles
from tests.chaos import runs
from tests.chaos.evidence import Evidence
from tests.chaos.readings import (
    COMMIT_SECONDS,
    Violation,
    attempt_of,
    chunk_of,
    items_of,
    tokens_in,
    worker_hit,
)

# A process that is being started takes no connections yet; some wait for it in the backlog.
_START_SECONDS = 5.0


def waits_as_told(evidence: Evidence) -> Iterator[Violation]:
    """7: no POST to a number before its Retry-After ends. What left within a second of the 429 was under way.

    So was what had its permission before the fact of the 429 was committed: the machine may stand still for a second. A
    429 that fell into a fault of worker or database is excused: nobody may have known of it.
    """
    attempts = {f"{attempt.chunk}:{attempt.n}": attempt for attempt in evidence.attempts}
    by_number: dict[str, list[Line]] = defaultdict(list)
    for send in evidence.sends:
        by_number[send.phone_number_id].append(send)
    for number, lines in by_number.items():
        times = [line.t for line in lines]
        for busy in lines:
            if busy.retry_after is None or not busy.responded or worker_hit(evidence, busy.t, before=0.5, after=1.5):
                continue
            early = bisect_right(times, busy.t + 1.0)
            known = attempts.get(busy.key or "")
            for line in lines[early : bisect_left(times, busy.t + busy.retry_after, early)]:
                permitted = attempts.get(line.key or "")
                if known and known.ended and permitted and permitted.began < known.ended + COMMIT_SECONDS:
                    continue
                yield Violation(
                    invariant=7,
                    what=f"number {number} was told to wait {busy.retry_after} s; a POST came after {line.t - busy.t:.2f} s",
                    tokens=tokens_in(line.text),
                    chunks=(chunk_of(line),),
                    at=line.t,
                )


def retries_bounded(evidence: Evidence) -> Iterator[Violation]:
    """7: retries after a refusal ≤ 20 % of first attempts over any 60 s, and 20 for each worker, per number."""
    refused: dict[str, bool] = {}
    firsts: dict[str, list[float]] = defaultdict(list)
    retries: dict[str, list[float]] = defaultdict(list)
    for send in evidence.sends:
        chunk, n = chunk_of(send), attempt_of(send)
        if n == 1:
            firsts[send.phone_number_id].append(send.t)
        elif refused.get(f"{chunk}:{n - 1}"):
            retries[send.phone_number_id].append(send.t)
        if send.key:
            refused[send.key] = not send.accepted and (send.outcome == "http_429" or send.outcome.isdecimal())
    for number, times in retries.items():
        for end in times:
            many = bisect_right(times, end) - bisect_left(times, end - 60)
            first = bisect_right(firsts[number], end) - bisect_left(firsts[number], end - 60)
            if many > 0.2 * first + 20 * runs.WORKERS:
                what = f"number {number}: {many} retries and {first} first attempts within 60 s"
                yield Violation(invariant=7, what=what, at=end)
                break


def webhooks_answered(evidence: Evidence) -> Iterator[Violation]:
    """11: each authentic webhook is answered 200 or 503, within 2 s in every fault window; E: p50 ≤ 50, p99 ≤ 250 ms.

    A connection that a dying process refuses or resets is no answer, not a slow one.
    """
    down: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for fault in evidence.faults:
        down[fault.target].append((fault.began, fault.ended))
    for d in evidence.deliveries:
        if d.status is not None and d.status not in (200, 503):
            yield Violation(
                invariant=11, what=f"{d.url} answered an authentic webhook {d.status}", tokens=items_of(d), at=d.t
            )
        if d.ack_ms > 2000:
            ended = d.t + d.ack_ms / 1000
            if not any(
                began <= ended and d.t <= till + _START_SECONDS for began, till in down[evidence.webs.get(d.url, "")]
            ):
                what = f"{d.url} took {d.ack_ms:.0f} ms: {d.status or d.error}"
                yield Violation(invariant=11, what=what, tokens=items_of(d), at=d.t)
    if evidence.run == "E" and evidence.deliveries:
        p50, p99, _ = percentiles([d.ack_ms for d in evidence.deliveries])
        for name, value, limit in (("p50", p50, 50.0), ("p99", p99, 250.0)):
            if value > limit:
                yield Violation(
                    invariant=11, what=f"webhook latency without faults: {name} {value:.1f} ms > {limit:g} ms"
                )
