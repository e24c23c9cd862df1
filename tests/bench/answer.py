"""`just bench answer`: the whole way of a message, one by one and in a rush, with an AI that answers at once."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise

import uvloop
from msgspec import Struct

from app.sandbox.assistant_calls import Pace
from tests.bench import meters
from tests.bench.figures import BenchFailed, Report, machine, percentiles
from tests.bench.installation import Installation, say
from tests.bench.people import HELLO, Asked, People, people

# Between two messages when idle (seconds): the ladder of the one before is still being climbed, as in life.
GAPS = (0.05, 0.25)

# How long nobody writes at all.
QUIET_SECONDS = 5

# Where the time of a lone message goes, by the database's clock, which is this machine's.
STAGES = """
SELECT i.value, extract(epoch FROM m.stored_at)::float8, extract(epoch FROM t.begun_at)::float8,
       extract(epoch FROM a.begun_at)::float8, coalesce(u.ai_ms, 0)
FROM identities i
JOIN conversations v ON (v.tenant_id, v.contact_id) = (i.tenant_id, i.contact_id)
JOIN turns t ON (t.tenant_id, t.conversation_id) = (v.tenant_id, v.id)
JOIN outbox o ON (o.tenant_id, o.conversation_id, o.seq) = (t.tenant_id, t.conversation_id, t.first_seq)
JOIN messages m ON (m.tenant_id, m.id) = (o.tenant_id, o.message_id)
JOIN chunks c ON (c.tenant_id, c.turn_id) = (t.tenant_id, t.id)
JOIN attempts a ON (a.tenant_id, a.chunk_id) = (c.tenant_id, c.id)
JOIN usage u ON (u.tenant_id, u.turn_id) = (t.tenant_id, t.id)
WHERE i.value = ANY(%(people)s)
"""


class Rush(Struct, frozen=True, kw_only=True):
    """Seconds, and CPU seconds by who used them."""

    seconds: float
    web: float
    worker: float
    postgres: float
    sandbox: float
    statements: meters.Statements


def measure(idle: int, messages: int, conversations: int, in_flight: int) -> Report:
    """Idle with the assistant, idle by intents, the rush; one installation for all."""
    with Installation() as installation, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = Report(bench="answer", machine=machine(installation.postgres_version))
        try:
            runner.run(_measure(installation, report, idle, messages, conversations, in_flight))
        except TimeoutError:
            raise BenchFailed("the bench did not end in its time") from None
        return report


async def _measure(
    at: Installation, report: Report, idle: int, messages: int, conversations: int, in_flight: int
) -> None:
    async with asyncio.timeout(120 + idle * 2 + messages / 10), people(at, pace=Pace()) as everybody:
        at.settle()
        await _nothing(everybody, report)
        say(f"idle: {idle} messages, one by one …")
        others = meters.Others(at.postmaster)
        meters.forget_statements(at.admin)
        alone = await _one_by_one(everybody, [f"15551{n:06d}" for n in range(idle)], everybody.question)
        await everybody.ladders_climbed()
        _tell_idle(report, everybody, alone, meters.statements(at.admin))
        report.add("CPU of others meanwhile, of the machine's", others.percent(), "%", digits=0)
        say(f"idle: {idle // 2} messages that an intent answers …")
        fixed = await _one_by_one(everybody, [f"15552{n:06d}" for n in range(max(2, idle // 2))], lambda: HELLO)
        p50, p99, _ = percentiles([asked.ms for asked in fixed])
        report.add("intents alone, p50", p50, "ms", at_most=15.0)
        report.add("intents alone, p99", p99, "ms", at_most=50.0)
        known = [f"15553{n:06d}" for n in range(conversations)]
        say(f"{conversations} people say hello …")
        await _rush(everybody, known, conversations, in_flight, lambda: HELLO)
        await everybody.ladders_climbed()
        at.settle()
        say(f"rush: {messages} messages, {in_flight} at once …")
        before = len(everybody.asked)
        others = meters.Others(at.postmaster)
        rush = await _measured_rush(everybody, known, messages, in_flight)
        _tell_rush(report, everybody.asked[before:], rush)
        report.add("CPU of others meanwhile, of the machine's", others.percent(), "%", digits=0)
        everybody.check()
        report.add("webhooks not taken at once", everybody.redelivered, digits=0)
        report.add("errors in the logs", at.errors(), digits=0, at_most=0)


async def _nothing(everybody: People, report: Report) -> None:
    """What waiting costs."""
    say(f"{QUIET_SECONDS} seconds of nothing …")
    at, pids = everybody.at, (everybody.web, everybody.worker, everybody.at.postmaster)
    meters.forget_statements(at.admin)
    before = [meters.cpu_seconds(pid) for pid in pids]
    await asyncio.sleep(QUIET_SECONDS)
    for name, pid, was in zip(("web", "worker", "PostgreSQL"), pids, before, strict=True):
        used = meters.cpu_seconds(pid) - was
        report.add(f"nothing to do: CPU of {name}, of one core", used / QUIET_SECONDS * 100, "%")
    statements = meters.statements(at.admin)
    everything = sum((statements.work, statements.statuses, statements.saq, statements.brackets, statements.beats))
    report.add("nothing to do: statements", everything / QUIET_SECONDS, "/s")


async def _one_by_one(everybody: People, persons: list[str], text: Callable[[], str]) -> list[Asked]:
    draw = random.Random(0)
    asked = []
    for person in persons:
        await asyncio.sleep(draw.uniform(*GAPS))
        asked.append(await everybody.ask(person, text()))
    return asked


async def _rush(everybody: People, persons: list[str], messages: int, in_flight: int, text: Callable[[], str]) -> None:
    """So many at once, nobody twice at once: who has been answered goes to the end of the queue."""
    left, free = messages, deque(persons)

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            person = free.popleft()
            await everybody.ask(person, text())
            free.append(person)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(in_flight, len(persons))):
            tasks.create_task(one_after_the_other())


async def _measured_rush(everybody: People, persons: list[str], messages: int, in_flight: int) -> Rush:
    at, pids = everybody.at, (everybody.web, everybody.worker, everybody.at.postmaster)
    meters.forget_statements(at.admin)
    used, own = [meters.cpu_seconds(pid) for pid in pids], time.process_time()
    before = len(everybody.asked)
    await _rush(everybody, persons, messages, in_flight, everybody.question)
    ended = await everybody.ladders_climbed()
    web, worker, postgres = (meters.cpu_seconds(pid) - was for pid, was in zip(pids, used, strict=True))
    return Rush(
        seconds=ended - min(asked.delivery.t for asked in everybody.asked[before:]),
        web=web,
        worker=worker,
        postgres=postgres,
        sandbox=time.process_time() - own,
        statements=meters.statements(at.admin),
    )


def _tell_idle(report: Report, everybody: People, alone: list[Asked], statements: meters.Statements) -> None:
    asked_at = {call.user[-1]: call.t for call in everybody.sandbox.assistant.calls}
    rows = everybody.at.admin.execute(STAGES, {"people": [asked.person for asked in alone]}).fetchall()
    times = {str(person): [float(value) for value in row] for person, *row in rows}
    raw, without_ai, stages = [], [], []
    for asked in alone:
        stored, begun, intended, ai_ms = times[asked.person]
        moments = [asked.delivery.t, stored, begun, asked_at[asked.text], intended, asked.answer.t]
        stages.append([(later - earlier) * 1000 for earlier, later in pairwise(moments)])
        raw.append(asked.ms)
        without_ai.append(asked.ms - ai_ms)
    p50, p99, most = percentiles(raw)
    report.add("idle: webhook → send, p50", p50, "ms", at_most=25.0, aim="≤ 10")
    report.add("idle: webhook → send, p99", p99, "ms", at_most=80.0, aim="≤ 40")
    report.add("idle: webhook → send, max", most, "ms")
    p50, p99, _ = percentiles(without_ai)
    report.add("the same without the AI's call, p50", p50, "ms")
    report.add("the same without the AI's call, p99", p99, "ms")
    for name, column in zip(
        (
            "webhook → storing",
            "storing → turn begun",
            "turn begun → AI asked",
            "AI asked → settling",
            "settling → send",
        ),
        zip(*stages, strict=True),
        strict=True,
    ):
        p50, p99, _ = percentiles(column)
        aim = "≤ 4 from commit to claim" if name.startswith("storing") else ""
        report.add(f"  {name}, p50", p50, "ms", aim=aim)
        report.add(f"  {name}, p99", p99, "ms")
    _tell_statements(report, "statements per message, idle", statements, len(alone), "≤ 6")
    report.details["statements when idle"] = statements.by_text


def _tell_rush(report: Report, asked: list[Asked], rush: Rush) -> None:
    n = len(asked)
    report.add("rush: answered messages, ladder climbed", n / rush.seconds, "/s", at_least=120.0, aim="≥ 200")
    p50, p99, _ = percentiles([one.ms for one in asked])
    report.add("rush: webhook → send, p50", p50, "ms", digits=0)
    report.add("rush: webhook → send, p99", p99, "ms", digits=0)
    own = rush.web + rush.worker + rush.postgres
    report.add("CPU per answered message", own / n * 1000, "ms", digits=2, aim="≤ 5")
    for name, seconds in (("web", rush.web), ("worker", rush.worker), ("PostgreSQL", rush.postgres)):
        report.add(f"  {name}", seconds / n * 1000, "ms", digits=2)
    report.add("CPU of sandbox and people, besides", rush.sandbox / n * 1000, "ms", digits=2)
    _tell_statements(report, "statements per message, rush", rush.statements, n, "≤ 1.5")


def _tell_statements(report: Report, name: str, statements: meters.Statements, messages: int, aim: str) -> None:
    report.add(name, statements.work / messages, digits=2, aim=aim)
    report.add("  of statuses, besides", statements.statuses / messages, digits=2)
    report.add("  of SAQ, besides", statements.saq / messages, digits=2)
    report.add("  BEGIN, COMMIT and the like (SAQ's)", statements.brackets / messages, digits=2)
    report.details[name] = statements.by_text
