"""Invariant 12, and what 4 and 13 say of the spool: what the service does while the database is of no use, and after.

Breakers are read from the processes' logs, losses and lives from the rig, probes from the proxy: nobody speaks for himself
alone.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator

from app import prober
from tests.chaos.database import Outage
from tests.chaos.evidence import Evidence
from tests.chaos.fleet import SPOOL_BYTES
from tests.chaos.member import Life
from tests.chaos.readings import Violation

OPENS, CLOSES = 2.0, 10.0
# What a process allows itself where its own loop came late.
LATE = prober.LATE + prober.GRACE
# A loss that is over sooner need not be noticed.
LEAST = 2.5
# Nothing at all could be had of the database. While a table is locked, all rows of the lanes are held, or only its disk is
# full, it answers, and each call's own deadline decides: that a breaker opens by that is judged nowhere, that it closes is.
WHOLE = frozenset({"restart", "freeze", "blackhole", "connections", "read_only"})
START_SECONDS = 5.0
# Ten in ten seconds, one at each edge, and one asked again at once because its connection had broken.
WINDOW, MOST_PROBES = 10.0, 13
LONG_LIFE = 20.0

Span = tuple[float, float]


def breakers_open(evidence: Evidence) -> Iterator[Violation]:
    """12: the breaker of each process is open 2 s after the loss of the database. In E none ever opens.

    A process that was being started, ended or disturbed just then is excused.
    """
    for life, outage, after in openings(evidence):
        if after is None:
            what = f"{life.name} did not open its breaker within {OPENS:g} s: {outage.kind}, {_length(outage)}"
            yield Violation(invariant=12, what=what, at=outage.began)
    if evidence.run == "E":
        for change in evidence.breakers:
            if change.state in ("open", "half_open"):
                yield Violation(invariant=12, what=f"{change.process} opened its breaker for nothing", at=change.at)


def breakers_close(evidence: Evidence) -> Iterator[Violation]:
    """12: no breaker stands open for over 10 s while the database is well and nobody disturbs the process."""
    for life, began, ended in closings(evidence):
        if ended - began > CLOSES + LATE:
            what = f"{life.name} kept its breaker open for {ended - began:.1f} s while the database was well"
            yield Violation(invariant=12, what=what, at=began)


def probes_paced(evidence: Evidence) -> Iterator[Violation]:
    """12: each process probes the database, and no more than once a second, by the proxy's count."""
    asked = _by_process((probe.of, probe.at) for probe in evidence.probes)
    for life in evidence.lives:
        times = asked[life.name][bisect_left(asked[life.name], life.began) : bisect_right(asked[life.name], life.ended)]
        if not times and life.ended - life.began > LONG_LIFE:
            yield Violation(invariant=12, what=f"{life.name} lived for {_length(life)} without a probe", at=life.began)
        for first, one_too_many in zip(times, times[MOST_PROBES:], strict=False):
            if one_too_many - first < WINDOW:
                what = f"{life.name} probed over {MOST_PROBES} times within {WINDOW:g} s"
                yield Violation(invariant=12, what=what, at=first)
                break


def spool_emptied(evidence: Evidence) -> Iterator[Violation]:
    """4: nothing lies in the spool when all is at rest; what was damaged and set aside lies there too."""
    if evidence.spool and (left := evidence.spool[-1].bytes):
        yield Violation(invariant=4, what=f"{left} bytes are left in the spool")


def spool_bounded(evidence: Evidence) -> Iterator[Violation]:
    """13: the spool keeps within the bound that it was given."""
    most = max((kept.bytes for kept in evidence.spool), default=0)
    if most > SPOOL_BYTES:
        yield Violation(invariant=13, what=f"the spool held {most} bytes, {SPOOL_BYTES} being its bound")


def openings(evidence: Evidence) -> Iterator[tuple[Life, Outage, float | None]]:
    """Who should have noticed which loss, and how long after it the breaker was open (seconds); None: too late."""
    open_at = _open(evidence)
    for outage in evidence.outages:
        if outage.kind not in WHOLE or outage.ended - outage.began < LEAST:
            continue
        until = outage.began + OPENS + LATE
        for life in evidence.lives:
            if life.began + START_SECONDS > outage.began or life.ended < until:
                continue
            if any(fault.overlaps(outage.began - 1.0, until) for fault in evidence.faults if fault.target == life.name):
                continue
            spans = (began for began, ended in open_at[life] if began <= until and ended >= outage.began)
            first = next(spans, None)
            yield life, outage, None if first is None else max(0.0, first - outage.began)


def closings(evidence: Evidence) -> Iterator[tuple[Life, float, float]]:
    """When whose breaker stood open, though the database was well and nobody disturbed the process."""
    away = [(outage.began, outage.ended) for outage in evidence.outages]
    for life, spans in _open(evidence).items():
        own = [(fault.began, fault.ended) for fault in evidence.faults if fault.target == life.name]
        for began, ended in spans:
            for since, till in _without(began, ended, [*away, *own]):
                yield life, since, till


def _open(evidence: Evidence) -> dict[Life, list[Span]]:
    """When each process's breaker was open; one that never closed was so until the end of its life."""
    found: dict[Life, list[Span]] = {life: [] for life in evidence.lives}
    for life, spans in found.items():
        since: float | None = None
        for change in evidence.breakers:
            if change.process != life.name or not life.began <= change.at <= life.ended:
                continue
            is_open = change.state in ("open", "half_open")
            if is_open and since is None:
                since = change.at
            elif not is_open and since is not None:
                spans.append((since, change.at))
                since = None
        if since is not None:
            spans.append((since, life.ended))
    return found


def _without(began: float, ended: float, busy: list[Span]) -> Iterator[Span]:
    """What is left of a span without the others."""
    at = began
    for since, till in sorted(busy):
        if at < min(since, ended):
            yield at, min(since, ended)
        at = max(at, till)
    if at < ended:
        yield at, ended


def _by_process(told: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for name, at in sorted(told):
        found[name].append(at)
    return found


def _length(of: Outage | Life) -> str:
    return f"{of.ended - of.began:.1f} s"
