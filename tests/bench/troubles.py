"""What may befall PostgreSQL while people write (docs/guarantees.md lists the faults), and one such time from start to end.

It plays and collects; whether what it saw is good enough is said in outage.py.
"""

import asyncio
import contextlib
import functools
import itertools
import json
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path

import msgspec
import psycopg
from msgspec import Struct

from app.sandbox.numbers import Number, now
from app.sandbox.people import Spoken
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from tests.bench.figures import BenchFailed
from tests.bench.installation import ADDRESS, CONFIGURATION, STATE, say
from tests.chaos.database import DISK_BYTES, Degraded
from tests.chaos.fleet import ENDPOINT, Fleet

RATE = 100  # webhooks a second, of one message each
SECONDS = 60
BEGINS = 10.0  # the trouble, after the first webhook
PEOPLE = 1000  # each writes every ten seconds
SPOOL_BYTES = 100_000_000
# How long it may take to come to rest, after the last message (seconds).
PATIENCE = 100.0
# As often as the provider of the fault test asks again.
REDELIVERY = (0.5, 1.0, 2.0, 4.0)
_TOKEN = re.compile(r"(o-\d+)#1/1")

Happens = Callable[[Fleet, float], Awaitable[None]]


class Trouble(Struct, frozen=True, kw_only=True):
    """One kind of it. `lost`: nobody can write meanwhile, so the breaker has to open; else the server is well, or slow."""

    name: str
    what: str
    lasts: float
    happens: Happens
    lost: bool = True


class Change(Struct, frozen=True):
    """The web process's breaker came to be `state` at `at` (unix seconds)."""

    at: float
    state: str


class Ack(Struct, frozen=True, gc=False):
    """One POST of a webhook: when it was answered (unix seconds), how long that took, with what. `new`: of a message."""

    at: float
    ms: float
    status: int | None
    new: bool


class Seen(Struct, frozen=True, kw_only=True):
    """One trouble, with or without a spool; times in unix seconds. `spooled`, `answered`: when each was.

    `waited`: for each message, from its commit to its answer. `pulse`: when, and how many ms /livez took.
    """

    trouble: str
    spool: bool
    began: float
    ended: float
    first: float
    acks: list[Ack]
    changes: list[Change]
    spooled: list[float]
    answered: list[float]
    waited: list[float]
    pulse: list[tuple[float, float]]
    lost: int
    doubled: int
    errors: list[str]
    postgres: str


async def _stop(fleet: Fleet, seconds: float) -> None:
    await fleet.database.restart(seconds)


async def _freeze(fleet: Fleet, seconds: float) -> None:
    await fleet.database.freeze(seconds)


async def _blackhole(fleet: Fleet, seconds: float) -> None:
    await fleet.blackhole(seconds)


async def _latency(fleet: Fleet, seconds: float) -> None:
    await fleet.proxy.latency(0.1, 0.05)
    await asyncio.sleep(seconds)
    await fleet.proxy.latency(0.0, 0.0)


async def _lose_commits(fleet: Fleet, seconds: float) -> None:
    await fleet.proxy.lost_commit(0.01)
    await asyncio.sleep(seconds)
    await fleet.proxy.lost_commit(0.0)


async def _terminate(fleet: Fleet, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await fleet.database.terminate_backends()
        await asyncio.sleep(1.0)


async def _degrade(how: Degraded, fleet: Fleet, seconds: float) -> None:
    async with fleet.database.degraded(how):
        await asyncio.sleep(seconds)


async def _fill(fleet: Fleet, seconds: float) -> None:
    await fleet.database.fill_disk(seconds)


TROUBLES = (
    Trouble(name="stopped", what="pg_ctl stop -m immediate; started again", lasts=20, happens=_stop),
    Trouble(name="frozen", what="SIGSTOP to all of its processes", lasts=10, happens=_freeze),
    Trouble(name="unreachable", what="the network swallows everything", lasts=10, happens=_blackhole),
    Trouble(
        name="connections",
        what="no connection is to be had (53300)",
        lasts=10,
        happens=functools.partial(_degrade, "connections"),
    ),
    Trouble(
        name="read_only", what="it takes no writes (25006)", lasts=15, happens=functools.partial(_degrade, "read_only")
    ),
    Trouble(name="disk_full", what="its disk is full", lasts=20, happens=_fill),
    Trouble(name="locked", what="its tables are locked", lasts=10, happens=functools.partial(_degrade, "locked")),
    Trouble(
        name="held",
        what="somebody holds every conversation's row, and has gone away",
        lasts=10,
        happens=functools.partial(_degrade, "held"),
        lost=False,
    ),
    Trouble(name="far", what="each answer is 100 ± 50 ms late", lasts=30, happens=_latency, lost=False),
    Trouble(name="unheard", what="one COMMIT in a hundred goes unheard", lasts=30, happens=_lose_commits, lost=False),
    Trouble(name="cut", what="all connections are ended, each second", lasts=5, happens=_terminate, lost=False),
)


async def play(trouble: Trouble, *, spool: bool) -> Seen:
    """Fresh processes and a fresh database; people write for a minute; trouble comes. Returns when all is answered.

    Raises:
        BenchFailed: it did not come to rest.
        RigFailed: a process did not do as it was told.
    """
    folder = STATE / f"{trouble.name}-{'spool' if spool else 'plain'}"
    secret = secrets.token_hex(16)
    disk = DISK_BYTES if trouble.happens is _fill else None
    fleet = Fleet(folder, webs=1, workers=1, spool=SPOOL_BYTES if spool else None, disk=disk)
    async with running() as sandbox, fleet:
        environ = {"BENCH_SECRET": secret}
        await fleet.configure(CONFIGURATION.format(url=sandbox.url, endpoint=ENDPOINT, address=ADDRESS), environ)
        await fleet.start()
        number = Number(
            phone_number_id=ADDRESS,
            webhook_url=fleet.webhook_urls[0],
            app_secret=secret,
            token=secret,
            redelivery=REDELIVERY,
            tries=1000,
        )
        sandbox.register(number)
        async with _pulse(fleet.webs[0].port) as pulse:
            first = now()
            writing = asyncio.create_task(_write(sandbox))
            await asyncio.sleep(BEGINS)
            began = now()
            await trouble.happens(fleet, trouble.lasts)
            ended = now()
            say(f"it is over after {ended - began:.1f} s")
            await writing
            say("nobody writes any more")
            await _rest(sandbox, fleet, spool=spool)
        postgres, stored = await _stored(fleet.superuser_url)
        await fleet.stop()
        lines = _lines(fleet.webs[0].log)
    return _seen(sandbox, trouble, spool, (first, began, ended), stored, lines, pulse, postgres)


async def _write(sandbox: Sandbox) -> None:
    """An open loop: each message at its time, whatever became of those before."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as posting:
        for serial in range(RATE * SECONDS):
            if (ahead := began + serial / RATE - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            spoken = Spoken(
                phone_number_id=ADDRESS,
                sender=f"1555{serial % PEOPLE:07d}",
                text=f"Please, tok#o-{serial}/1",
                id=f"wamid.o-{serial}",
                name="A person",
            )
            posting.create_task(_say(sandbox, spoken))


async def _say(sandbox: Sandbox, spoken: Spoken) -> None:
    await sandbox.say(spoken)


async def _rest(sandbox: Sandbox, fleet: Fleet, *, spool: bool) -> None:
    """Return once every message is acknowledged and answered, every status taken, and nothing lies in the spool."""
    deadline = time.monotonic() + PATIENCE
    answers: set[str] = set()
    read = 0
    while True:
        arrivals = sandbox.ledger.arrivals
        for arrival in itertools.islice(arrivals, read, None):
            if arrival.accepted:
                answers.update(_TOKEN.findall(arrival.text))
        read = len(arrivals)
        waiting = sandbox.courier.waiting + sandbox.statuses.waiting
        spooled = fleet.spooled() if spool else 0
        if len(answers) == RATE * SECONDS and not waiting and not spooled:
            return
        if time.monotonic() > deadline:
            raise BenchFailed(
                f"not at rest after {PATIENCE:g} s: {len(answers)} of {RATE * SECONDS} messages are answered, {waiting} "
                f"webhooks wait for their next try, {spooled} lie in the spool; logs: {fleet.folder}"
            )
        await asyncio.sleep(0.2)


async def _stored(url: str) -> tuple[str, list[tuple[str, float]]]:
    """PostgreSQL's version; each message's own id, and when it was committed."""
    sql = """
    SELECT provider_id, extract(epoch FROM stored_at)::float8 FROM messages WHERE direction = 'in'
    """
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        rows = [(str(id), float(at)) for id, at in await (await conn.execute(sql)).fetchall()]
        return conn.info.parameter_status("server_version") or "unknown", rows


def _lines(log: Path) -> list[dict[str, object]]:
    """What a process said, line by line; what is no JSON is granian's."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _at(line: dict[str, object]) -> float:
    return datetime.fromisoformat(str(line["timestamp"])).timestamp()


def _seen(
    sandbox: Sandbox,
    trouble: Trouble,
    spool: bool,
    times: tuple[float, float, float],
    stored: list[tuple[str, float]],
    lines: list[dict[str, object]],
    pulse: list[tuple[float, float]],
    postgres: str,
) -> Seen:
    rows = Counter(id for id, _ in stored)
    committed = dict(stored)
    acknowledged = {id for d in sandbox.ledger.deliveries if d.kind == "inbound" and d.status == 200 for id in d.ids}
    answers: Counter[str] = Counter()
    answered, waited = [], []
    for arrival in sandbox.ledger.arrivals:
        if arrival.accepted:
            for token in _TOKEN.findall(arrival.text):
                answers[token] += 1
                answered.append(arrival.t)
                waited.append(arrival.t - committed.get(f"wamid.{token}", arrival.t))
    first, began, ended = times
    return Seen(
        trouble=trouble.name,
        spool=spool,
        first=first,
        began=began,
        ended=ended,
        acks=[Ack(d.t + d.ack_ms / 1000, d.ack_ms, d.status, d.kind == "inbound") for d in sandbox.ledger.deliveries],
        changes=[Change(_at(line), str(line["state"])) for line in lines if line.get("event") == "breaker changed"],
        spooled=[_at(line) for line in lines if line.get("event") == "webhook spooled"],
        answered=answered,
        waited=waited,
        pulse=pulse,
        lost=len(acknowledged - rows.keys()),
        doubled=sum(n > 1 for n in rows.values()) + sum(n > 1 for n in answers.values()),
        errors=[str(line["event"]) for line in lines if line.get("level") == "error"],
        postgres=postgres,
    )


@contextlib.asynccontextmanager
async def _pulse(port: int) -> AsyncIterator[list[tuple[float, float]]]:
    """Asks /livez in a process of its own; what it heard is in the list afterwards."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.pulse", str(port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # a share of the cores of its own: it measures how long the web process takes
    )
    heard: list[tuple[float, float]] = []
    try:
        yield heard
    finally:
        said, _ = await process.communicate(b"")  # nothing, and no more: which ends it
    heard += msgspec.json.decode(said, type=list[tuple[float, float]])
