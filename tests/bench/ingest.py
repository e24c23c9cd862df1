"""`just bench ingest`: durable webhooks/s, beside what PostgreSQL commits of the same rows in the same run.

No worker runs: the lanes fill up, the wake-ups lie in SAQ's table. After the measurement every 200 is looked up.
"""

import math
from statistics import median

import msgspec
from msgspec import Struct

from tests.bench import load, meters
from tests.bench.baseline import STATEMENT, TRANSACTION, Baseline
from tests.bench.figures import BenchFailed, Report, machine, percentiles
from tests.bench.installation import ADDRESS, ENDPOINT, Installation, say

PEOPLE = 1000
# Seconds at half the top rate before the measurement.
LEAD_IN = 5
ROUNDS = 3
# Requests are built beforehand; nobody answers more than this many in a second.
MOST_PER_SECOND = 12_000


class Round(Struct, frozen=True, kw_only=True):
    """One measurement of the webhooks, and of pgbench just before it. CPU in seconds."""

    commits_per_second: float
    single_statements_per_second: float
    webhooks_per_second: float
    ack_p50_ms: float
    ack_p99_ms: float
    answered: int
    statements: int
    web_cpu: float
    postgres_cpu: float
    load_cpu: float


def measure(seconds: int) -> Report:
    """Three rounds of each, then the answer times at half the top rate."""
    with Installation() as installation:
        return _Ingest(installation, seconds).measure()


class _Ingest:
    def __init__(self, installation: Installation, seconds: int) -> None:
        self._at = installation
        self._seconds = seconds
        self._acknowledged: set[str] = set()
        self._orders = 0

    def measure(self) -> Report:
        at = self._at
        report = Report(bench="ingest", machine=machine(at.postgres_version))
        at.configure(provider_url="http://127.0.0.1:9")  # nobody sends
        self._web = at.start_web()
        say(f"{PEOPLE} people write for the first time …")
        self._post(count=PEOPLE, seconds=30, in_turn=True)
        baseline = Baseline(at.cluster.bin, at.url, at.admin, at.folder, people=PEOPLE)
        self._at.rest()
        baseline.run(TRANSACTION, 1)
        baseline.run(STATEMENT, 1)
        self._post(count=MOST_PER_SECOND, seconds=1)
        before = meters.Metrics(f"http://127.0.0.1:{at.port}/metrics")
        others = meters.Others(at.postmaster)
        rounds = [self._round(baseline, number) for number in range(1, ROUNDS + 1)]
        others_percent = others.percent()
        after = meters.Metrics(f"http://127.0.0.1:{at.port}/metrics")
        top = median(r.webhooks_per_second for r in rounds)
        half = self._half(top / 2)
        self._look_up()
        commits = median(r.commits_per_second for r in rounds)
        ratio = median(r.webhooks_per_second / r.commits_per_second for r in rounds)
        answered = sum(r.answered for r in rounds)
        report.add("durable webhooks, 64 connections", top, "/s", digits=0)
        report.add("pgbench, the same rows, a transaction each", commits, "/s", digits=0)
        report.add("ratio, median of the rounds", ratio, digits=2, at_least=0.8, aim="≥ 1.5")
        singles = median(r.single_statements_per_second for r in rounds)
        report.add("pgbench, one hand-made statement each", singles, "/s", digits=0)
        hard = median(r.webhooks_per_second / r.single_statements_per_second for r in rounds)
        report.add("ratio to that, median of the rounds", hard, digits=2)
        report.add("ack p50 at the top rate", median(r.ack_p50_ms for r in rounds), "ms")
        report.add("ack p99 at the top rate", median(r.ack_p99_ms for r in rounds), "ms")
        p50, p99, most = percentiles(half.ack_ms)
        report.add("half of the top rate, kept", half.sent / half.seconds, "/s", digits=0)
        report.add("ack p50 at half", p50, "ms")
        report.add("ack p99 at half", p99, "ms", at_most=50.0)
        report.add("ack max at half", most, "ms")
        report.add("CPU of web per 1,000 webhooks", sum(r.web_cpu for r in rounds) / answered * 1000, "s", digits=3)
        report.add("CPU of PostgreSQL per 1,000", sum(r.postgres_cpu for r in rounds) / answered * 1000, "s", digits=3)
        report.add("CPU of the load per 1,000", sum(r.load_cpu for r in rounds) / answered * 1000, "s", digits=3)
        report.add("statements per webhook", sum(r.statements for r in rounds) / answered, digits=3)
        flushes, rows = (
            after.sum(series, 'batch="ingest"') - before.sum(series, 'batch="ingest"')
            for series in ("qasid_flush_rows_count", "qasid_flush_rows_sum")
        )
        report.add("messages per commit", rows / flushes)
        report.add("CPU of others meanwhile, of the machine's", others_percent, "%", digits=0)
        report.add("errors in the logs", at.errors(), digits=0, at_most=0)
        report.details["rounds"] = [msgspec.to_builtins(r) for r in rounds]
        return report

    def _round(self, baseline: Baseline, number: int) -> Round:
        at = self._at
        self._at.rest()
        commits = baseline.run(TRANSACTION, self._seconds)
        self._at.rest()
        statements = baseline.run(STATEMENT, self._seconds)
        self._at.rest()
        meters.forget_statements(at.admin)
        used = meters.cpu_seconds(self._web), meters.cpu_seconds(at.postmaster)
        outcome = self._post(count=MOST_PER_SECOND * self._seconds, seconds=self._seconds)
        web, postgres = meters.cpu_seconds(self._web) - used[0], meters.cpu_seconds(at.postmaster) - used[1]
        p50, p99, _ = percentiles(outcome.ack_ms)
        rate = (outcome.sent - len(outcome.refused)) / outcome.seconds
        say(f"round {number}: pgbench {commits:,.0f}/s, webhooks {rate:,.0f}/s, ratio {rate / commits:.2f}")
        return Round(
            commits_per_second=commits,
            single_statements_per_second=statements,
            webhooks_per_second=rate,
            ack_p50_ms=p50,
            ack_p99_ms=p99,
            answered=outcome.sent - len(outcome.refused),
            statements=meters.statements(at.admin).work,
            web_cpu=web,
            postgres_cpu=postgres,
            load_cpu=outcome.cpu_seconds,
        )

    def _half(self, rate: float) -> load.Outcome:
        self._at.rest()
        say(f"half of the top rate: {rate:,.0f}/s …")
        # Just after a checkpoint PostgreSQL logs each page that it touches whole: that is not the state it is in for the
        # next quarter of an hour. So the first seconds at this pace are not measured.
        self._post(count=math.ceil(rate * LEAD_IN), seconds=LEAD_IN, rate=rate)
        return self._post(count=math.ceil(rate * self._seconds), seconds=self._seconds, rate=rate)

    def _post(self, *, count: int, seconds: int, rate: float = 0.0, in_turn: bool = False) -> load.Outcome:
        self._orders += 1
        run = f"{self._orders:04d}"
        order = load.Order(
            port=self._at.port,
            endpoint=ENDPOINT,
            address=ADDRESS,
            secret=self._at.secret,
            run=run,
            people=PEOPLE,
            count=count,
            seconds=seconds,
            rate=rate,
            in_turn=in_turn,
        )
        outcome = load.carried_out(order)
        if len(outcome.refused) * 100 > outcome.sent:
            raise BenchFailed(f"{len(outcome.refused)} of {outcome.sent} webhooks were not answered 200")
        refused = set(outcome.refused)
        self._acknowledged.update(load.wamid(run, serial) for serial in range(outcome.sent) if serial not in refused)
        return outcome

    def _look_up(self) -> None:
        """Every 200 is a row, and no message is there twice."""
        say(f"looking up {len(self._acknowledged):,} messages …")
        stored = [str(row[0]) for row in self._at.admin.execute("SELECT provider_id FROM messages WHERE ack_ms <> 1.5")]
        if missing := self._acknowledged.difference(stored):
            raise BenchFailed(f"{len(missing)} messages were answered 200 and are not stored")
        if len(set(stored)) != len(stored):
            raise BenchFailed(f"{len(stored) - len(set(stored))} messages are stored twice")
