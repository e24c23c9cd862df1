"""`just bench outage`: what people and the provider feel of each trouble of the database, without and with a spool.

And what the breaker costs when all is well: webhooks with it and without, in turns.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from tests.bench import cost, timeline
from tests.bench.elsewhere import elsewhere
from tests.bench.figures import Report, machine, percentiles
from tests.bench.troubles import RATE, SECONDS, TROUBLES, Seen, Trouble, play

# What each must keep (seconds, but for /livez: ms).
OPENS, CLOSES, ANSWERS, ACK, LIVE_MS = 2.0, 10.0, 60.0, 2.0, 10.0
DEEPEST_COST = 1.02


def measure(names: Sequence[str], spools: Sequence[bool], drawing: Path, *, with_cost: bool) -> Report:
    """`names`: of troubles, all if empty. `spools`: without, with, or both."""
    report = Report(bench="outage", machine=machine("unknown"))
    if with_cost:
        cost.measure(report, most=DEEPEST_COST)
    chosen = [trouble for trouble in TROUBLES if not names or trouble.name in names]
    seen: list[Seen] = []
    with elsewhere():
        for trouble in chosen:
            for spool in spools:
                click.echo(f"  {trouble.name}, {'with' if spool else 'without'} a spool …", err=True)
                one = asyncio.run(play(trouble, spool=spool))  # asyncio's own loop, as the rig runs on
                click.echo(timeline.strips(one, trouble))
                seen.append(one)
                _judge(report, one, trouble)
                timeline.draw(seen, drawing)  # each time: what was seen so far is not lost if somebody ends it
    click.echo(f"  drawn: {drawing}", err=True)
    report.machine["versions"] = machine(seen[0].postgres)["versions"]
    report.details["seen"] = [
        {"trouble": one.trouble, "spool": one.spool, "changes": [[c.at - one.first, c.state] for c in one.changes]}
        for one in seen
    ]
    return report


def _judge(report: Report, seen: Seen, trouble: Trouble) -> None:
    def add(what: str, value: float, unit: str = "", *, digits: int = 1, at_most: float | None = None) -> None:
        name = f"{seen.trouble}, {'spool' if seen.spool else 'plain'}: {what}"
        report.add(name, value, unit, digits=digits, at_most=at_most)

    add("acknowledged and lost", seen.lost, digits=0, at_most=0)
    add("twice", seen.doubled, digits=0, at_most=0)
    add("webhook max", max(ack.ms for ack in seen.acks) / 1000, "s", digits=2, at_most=ACK)
    add("neither 200 nor 503", sum(ack.status not in (200, 503) for ack in seen.acks), digits=0, at_most=0)
    _, p99, most = percentiles([ms for _, ms in seen.pulse])
    add("/livez p99", p99, "ms", at_most=LIVE_MS)
    add("/livez max", most, "ms")
    opened = next((change.at for change in seen.changes if change.state == "open" and change.at >= seen.began), None)
    if trouble.lost:
        add("breaker open after", float("inf") if opened is None else opened - seen.began, "s", at_most=OPENS)
    if opened is not None:
        closed = next((c.at for c in reversed(seen.changes) if c.state == "closed"), float("inf"))
        add("breaker closed after the end", max(0.0, closed - seen.ended), "s", at_most=CLOSES)
    add("answered 503", sum(ack.status == 503 for ack in seen.acks if ack.new), digits=0)
    add("answered by the spool", len(seen.spooled), digits=0)
    add("longest from commit to answer", max(seen.waited), "s", at_most=ANSWERS)
    add("the last answer, after the end", max(seen.answered) - seen.ended, "s")


def described() -> str:
    """The troubles by name, for --help."""
    return "; ".join(f"{trouble.name}: {trouble.what}" for trouble in TROUBLES)


LOAD = f"{RATE} webhooks a second for {SECONDS} s"
