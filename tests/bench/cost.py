"""What the breaker costs when all is well: CPU of the web process per webhook with it and without, in turns; and what a
conversation costs that comes from memory.
"""

import itertools
import time
from datetime import UTC, datetime
from statistics import median
from uuid import uuid4

import msgspec

from app.store.histories import Said
from tests.bench import load, meters
from tests.bench.figures import BenchFailed, Report, percentiles
from tests.bench.installation import ADDRESS, ENDPOINT, Installation, say
from workers.sessions import Session, Sessions

ROUNDS = 5
SECONDS = 8
RATE = 1200.0
PEOPLE = 1000
# A conversation as long as a history may usually be, and so many of them.
LINES, CONVERSATIONS, READS = 20, 1000, 20_000


def measure(report: Report, *, most: float) -> None:
    """Five rounds of each in turns; the ratio is the median of the rounds' ratios, `most` its bound."""
    with Installation() as at:
        at.configure(provider_url="http://127.0.0.1:9")  # nobody sends
        webs = {"with": at.start_web(), "without": at.start_other_web("tests.bench.unwatched")}
        ports = {"with": at.port, "without": at.other_port}
        runs = map("{:04d}".format, itertools.count())
        for name in webs:  # each gets to know everybody
            _post(at, ports[name], next(runs), seconds=PEOPLE // 200, rate=200.0, in_turn=True)
        ratios = []
        for number in range(1, ROUNDS + 1):
            order = ("with", "without") if number % 2 else ("without", "with")
            used = {name: _round(at, webs[name], ports[name], next(runs)) for name in order}
            ratios.append(used["with"] / used["without"])
            say(f"round {number}: {used['with']:.3f} ms with, {used['without']:.3f} ms without: {ratios[-1]:.3f}")
        report.add("CPU per webhook with the breaker, without: ratio", median(ratios), digits=3, at_most=most)
        report.add("errors in the logs", at.errors(), digits=0, at_most=0)
    p50, p99, _ = percentiles(_remembered())
    report.add("a conversation from memory, p50", p50, "ms", digits=3)
    report.add("a conversation from memory, p99", p99, "ms", digits=3, at_most=5.0)


def _round(at: Installation, pid: int, port: int, run: str) -> float:
    """CPU (ms) of that web process per webhook."""
    at.rest()
    before = meters.cpu_seconds(pid)
    outcome = _post(at, port, run, seconds=SECONDS, rate=RATE)
    return (meters.cpu_seconds(pid) - before) / outcome.sent * 1000


def _post(at: Installation, port: int, run: str, *, seconds: int, rate: float, in_turn: bool = False) -> load.Outcome:
    order = load.Order(
        port=port,
        endpoint=ENDPOINT,
        address=ADDRESS,
        secret=at.secret,
        run=run,
        people=PEOPLE,
        count=int(seconds * rate),
        seconds=seconds,
        rate=rate,
        in_turn=in_turn,
    )
    outcome = load.carried_out(order)
    if outcome.refused:
        raise BenchFailed(f"{len(outcome.refused)} of {outcome.sent} webhooks were not answered 200")
    return outcome


def _remembered() -> list[float]:
    """Milliseconds of each look at a conversation that a worker remembers."""
    encode = msgspec.msgpack.Encoder(uuid_format="bytes").encode
    sessions, lanes = Sessions(64 * 1024 * 1024), [(uuid4(), uuid4()) for _ in range(CONVERSATIONS)]
    at = datetime.now(UTC)
    for lane in lanes:
        said = [Said(id=uuid4(), mine=bool(n % 2), body=load.TEXT, at=at, revoked=False) for n in range(LINES)]
        sessions.keep(lane, Session(version=1, done_seq=1, history=LINES, read_at=sessions.now(), lines=encode(said)))
    took = []
    for n in range(READS):
        began = time.perf_counter()
        held = sessions.last(lanes[n % CONVERSATIONS])
        if held is None or len(held.said) != LINES:
            raise BenchFailed("what was remembered is not there")
        took.append((time.perf_counter() - began) * 1000)
    return took
