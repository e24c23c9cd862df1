"""`just bench waiting`: many conversations wait for a slow AI in one worker."""

import asyncio

import uvloop

from app.sandbox.assistant_calls import Pace
from tests.bench import meters
from tests.bench.elsewhere import elsewhere
from tests.bench.figures import BenchFailed, Report, machine, percentiles
from tests.bench.installation import Installation, say
from tests.bench.people import people

# What the bounds were set for.
CONVERSATIONS, AI_SECONDS = 2000, 3.0


def measure(conversations: int, ai_seconds: float) -> Report:
    """All ask at once; the figures when the last has been answered."""
    with (
        elsewhere(),
        Installation() as installation,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        report = Report(bench="waiting", machine=machine(installation.postgres_version))
        try:
            runner.run(_measure(installation, report, conversations, ai_seconds))
        except TimeoutError:
            raise BenchFailed("the bench did not end in its time") from None
        return report


async def _measure(at: Installation, report: Report, conversations: int, ai_seconds: float) -> None:
    patience = 60 + ai_seconds * 2
    async with asyncio.timeout(120 + patience), people(at, pace=Pace()) as everybody:
        everybody.sandbox.assistant.pace = Pace(first_token=ai_seconds)
        metrics = f"http://127.0.0.1:{at.worker_metrics_port}/metrics"
        before = meters.Metrics(metrics)
        others = meters.Others(at.postmaster)
        idle, _ = meters.memory_mb(everybody.worker)
        say(f"{conversations} people ask at once …")
        asked = await asyncio.gather(
            *(everybody.ask(f"15554{n:06d}", everybody.question(), patience=patience) for n in range(conversations))
        )
        began = min(one.delivery.t for one in asked)
        await everybody.ladders_climbed()
        _, peak = meters.memory_mb(everybody.worker)
        others_percent = others.percent()
        after = meters.Metrics(metrics)
        everybody.check()
        as_bounded = conversations <= CONVERSATIONS and ai_seconds <= AI_SECONDS
        report.add("conversations", conversations, digits=0)
        report.add("the AI takes", ai_seconds, "s")
        last = max(one.answer.t for one in asked) - began
        report.add("all answered within", last, "s", digits=2, at_most=12.0 if as_bounded else None)
        p50, p99, _ = percentiles([one.ms / 1000 for one in asked])
        report.add("webhook → send, p50", p50, "s", digits=2)
        report.add("webhook → send, p99", p99, "s", digits=2)
        acks = percentiles([one.delivery.ack_ms for one in asked])
        report.add("webhook → 200, p99", acks[1], "ms", digits=0)
        report.add("worker's memory before", idle, "MB", digits=0)
        report.add(
            "worker's memory at its peak",
            peak,
            "MB",
            digits=0,
            at_most=300.0 if as_bounded else None,
        )
        lag = "qasid_loop_lag_seconds"
        report.add(
            "event loop's lag, p99 below",
            after.at_most(lag, 0.99, since=before) * 1000,
            "ms",
            digits=0,
            at_most=50.0 if as_bounded else None,
        )
        report.add("event loop's lag, largest below", after.at_most(lag, 1.0, since=before) * 1000, "ms", digits=0)
        report.add("CPU of others meanwhile, of the machine's", others_percent, "%", digits=0)
        report.add("webhooks not taken at once", everybody.redelivered, digits=0)
        report.add("errors in the logs", at.errors(), digits=0, at_most=0)
