"""SAQ made harmless: whatever becomes of its jobs, its rows and its tables, every message is answered, once, in time.

The oracle is the sandbox's ledger.
"""

import asyncio
import gc
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from saq.job import Job, Status
from structlog.testing import capture_logs

import migrations
from app import embedded
from app.wake import DRAIN, LIMITS, Bell, Wakes, jobs_queue
from tests import world as shared
from tests.world import OTHER, PERSON, World, through_gate
from workers.ears import STALE, Ears

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

bare = shared.world

HELLO = "Hello! How can we help?"
# The look of each second, a claim, an answer, on a machine that does other things too (seconds).
SOON = 2.5
# The directory says so when the whole database is away.
OUTAGE = ("configuration cannot be read, the last one holds", "the database is away")
TABLES = ("saq_jobs", "saq_stats", "saq_versions")


@pytest.fixture(autouse=True)
async def every_end_is_heard() -> AsyncIterator[None]:
    """Invariant 13 of the fault test: a task tells of what it raised, when nobody asked, as it is collected."""
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    yield
    gc.collect()
    assert unheard == []


@pytest.fixture
def said(bare: World, caplog: pytest.LogCaptureFixture) -> Iterator[list[Any]]:
    """What our files log while a test runs. Nothing that happens to SAQ is an error, in our words or in SAQ's."""
    with capture_logs() as lines:
        yield lines
    errors: list[object] = [line for line in lines if line["log_level"] == "error" and line["event"] not in OUTAGE]
    errors += [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert errors == []


@pytest.fixture
def world(bare: World, said: list[Any]) -> World:
    return bare


@pytest.fixture
async def page(world: World) -> AsyncIterator[Wakes]:
    """The queue as SAQ's page has it."""
    queue = jobs_queue(world.url)
    await queue.connect()
    yield queue
    await queue.disconnect()


async def answered(world: World, *texts: str, sender: str = PERSON) -> None:
    """These are, in order, what the person got, each soon, in one POST each."""
    assert await world.got(len(texts), sender=sender, timeout=SOON) == list(texts)
    assert len(world.lines(sender)) == len(texts)


async def woken(world: World, *, tries: int = 1) -> None:
    """A message is answered whose wake-up SAQ has taken and worked off."""
    newcomer = f"1555{uuid4().int % 10**7:07}"
    await world.say("hi", sender=newcomer)
    await answered(world, HELLO, sender=newcomer)
    [(lane,)] = await world.rows(
        "SELECT conversation_id FROM lanes ORDER BY conversation_id DESC LIMIT 1"
    )  # the newest
    try:
        await world.until(
            "SELECT count(*) > 0 FROM saq_jobs WHERE status = 'complete' AND position(convert_to(%s, 'utf8') IN job) > 0",
            str(lane),
            timeout=3.0,
        )
    except TimeoutError:
        if tries == 1:
            raise
        await woken(world, tries=tries - 1)


async def insert(world: World, row: bytes, *, status: str = "queued", age: int = 0) -> str:
    """A row of the queue, as anybody may have left it; returns its key."""
    key = str(uuid4())
    await world.act(
        "INSERT INTO saq_jobs (key, job, queue, status, scheduled) VALUES (%s, %s, 'wake', %s, %s)",
        *(key, row, status, int(time.time()) - age),
    )
    return key


async def gone(world: World, keys: list[str]) -> None:
    await world.until("SELECT count(*) = 0 FROM saq_jobs WHERE key = ANY(%s)", keys)


@asynccontextmanager
async def without_tables(world: World) -> AsyncIterator[None]:
    """They are dropped; afterwards they are there again, empty, as the migrations make them."""
    await world.act(f"DROP TABLE {', '.join(TABLES)}")
    yield
    [made] = Path(migrations.__file__).parent.glob("*_saq.sql")
    await world.act("SET ROLE qasid; " + made.read_text())
    await world.act(
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(TABLES)} TO qasid_courier;"
        "GRANT USAGE ON SEQUENCE saq_jobs_lock_key_seq TO qasid_courier"
    )


# --- its tables ---


async def test_tables_dropped_under_a_worker_cost_a_second_and_come_back(world: World) -> None:
    """Gone, nobody is forgotten and nothing asks in a hurry; there again, wake-ups go on without a restart."""
    await through_gate(world)
    hold = world.gate.hold("assistant")
    await world.worker()
    await woken(world)
    await world.say("question")
    await world.until("SELECT count(*) > 0 FROM saq_jobs WHERE status = 'active'")
    await hold.reached()
    refused = "SELECT pg_stat_clear_snapshot(), xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    async with without_tables(world):
        [(_, before)] = await world.rows(refused)
        hold.open.set()
        await answered(world, "You said: question")
        await world.say("hi")
        await answered(world, "You said: question", HELLO)
        await asyncio.sleep(1.5)  # statistics are a second late
        [(_, after)] = await world.rows(refused)
        assert after - before < 50
    await woken(world)


@pytest.mark.parametrize(
    ("harm", "remedy"),
    [
        (
            "ALTER TABLE saq_jobs RENAME TO saq_x; ALTER TABLE saq_versions RENAME TO saq_y",
            "ALTER TABLE saq_x RENAME TO saq_jobs; ALTER TABLE saq_y RENAME TO saq_versions",
        ),
        ("UPDATE saq_versions SET version = 4", "UPDATE saq_versions SET version = 3"),
    ],
)
async def test_web_and_worker_start_and_answer_without_saq(world: World, harm: str, remedy: str) -> None:
    """Tables missing, or of another version: both processes serve; once it is mended they ring and hear again."""
    await world.act(harm)
    await world.open_door()
    await world.worker()
    await world.say("question", url=world.gate.webhooks(1))
    await answered(world, "You said: question")
    await world.act(remedy)
    await world.until("SELECT count(*) > 0 FROM saq_stats", timeout=4.0)
    await woken(world)


async def test_tables_locked_for_seconds_hold_up_neither_an_answer_nor_a_stop(world: World) -> None:
    """Another's ACCESS EXCLUSIVE lock: answers come, and a worker told to stop is gone before it is over."""
    stop = await world.worker()
    await woken(world)
    async with await psycopg.AsyncConnection.connect(world.superuser_url) as conn:
        await conn.execute(f"LOCK TABLE {', '.join(TABLES)} IN ACCESS EXCLUSIVE MODE")
        for n in range(1, 3):
            await world.say(f"question {n}")
            await answered(world, *(f"You said: question {n}" for n in range(1, n + 1)))
        stopping = time.monotonic()
        await stop()
        assert time.monotonic() - stopping < SOON
        await world.worker()
        await world.say("hi")
        await answered(world, "You said: question 1", "You said: question 2", HELLO)
        await conn.rollback()
    await woken(world)


async def test_a_wake_up_that_is_lost_costs_a_second(world: World) -> None:
    """Neither its row nor its notification exists; and a table that is emptied all the time takes nothing along."""
    await world.worker()
    await woken(world)
    await world.act("CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    await world.act("CREATE TRIGGER lose BEFORE INSERT ON saq_jobs FOR EACH ROW EXECUTE FUNCTION lose()")
    await world.say("question")
    await answered(world, "You said: question")
    await world.act("DROP TRIGGER lose ON saq_jobs")
    for n in range(10):
        await world.say(f"{n}", sender=OTHER)
        await world.act("TRUNCATE saq_jobs")
    await world.sandbox.ledger.wait(OTHER, 1, SOON)
    await world.at_rest()
    told = " ".join(line.text for line in world.lines(OTHER))
    assert [told.count(str(n)) for n in range(10)] == [1] * 10


# --- its rows ---

FINE: dict[str, Any] = {"function": DRAIN, "queue": "wake", "kwargs": {"lanes": []}, "key": "fine", **LIMITS}
BAD = [
    b"",
    b"no JSON",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"[" * 100_000,
    b'{"queue": "wake"}',
    *(
        json.dumps(FINE | more).encode()
        for more in (
            {"queue": "another"},
            {"function": "unknown"},
            {"kwargs": ["lanes"]},
            {"key": None},
            {"key": "a\0b"},
            {"key": "\ud800"},
            {"retries": None},
            {"ttl": "long"},
            {"timeout": "long"},
            {"attempts": "many"},
            {"scheduled": 10**30},
            {"status": 7, "nonsense": 1},
        )
    ),
]


async def test_rows_that_cannot_be_read_hold_up_nobody(world: World, page: Wakes, said: list[Any]) -> None:
    """A worker deletes them with a warning, and takes the next job; SAQ's page leaves them out."""
    waiting = [await insert(world, row) for row in BAD]
    begun = [await insert(world, row, status=status) for row in BAD for status in ("active", "aborting", "odd")]
    assert (await page.info(jobs=True))["jobs"] == []
    await world.worker()
    await world.say("question")
    await answered(world, "You said: question")
    await gone(world, waiting + begun)
    waiting = [await insert(world, row) for row in BAD]
    await woken(world)
    await gone(world, waiting)
    assert "wake-ups set aside that cannot be read" in [line["event"] for line in said]


async def test_each_of_them_alone_is_set_aside(database: Any) -> None:
    """Whatever SAQ stumbles over: the next try takes the job behind it."""
    queue = jobs_queue(database.url, Ears)
    await queue.connect()
    try:
        async with await psycopg.AsyncConnection.connect(database.superuser_url, autocommit=True) as conn:
            for row in BAD:
                await conn.execute(
                    "INSERT INTO saq_jobs (key, job, queue, status, scheduled) VALUES ('bad', %s, 'wake', 'queued', 0)",
                    (row,),
                )
                sent = await queue.enqueue(DRAIN, lanes=[], priority=1, **LIMITS)
                found = await queue.dequeue(timeout=5, poll_interval=0.01)
                # Where SAQ cannot say at which row it stumbled, those that wait with it go too.
                assert found in (sent, None), row
                left = await (await conn.execute("SELECT key FROM saq_jobs WHERE key = 'bad'")).fetchall()
                assert left == [], row
    finally:
        await queue.disconnect()


async def test_what_a_wake_up_says_wrongly_is_left(world: World, page: Wakes, said: list[Any]) -> None:
    """Doubled twenty times, of lanes that are nobody's, or garbage: each job ends well, the message is answered once."""
    await through_gate(world)
    hold = world.gate.hold("assistant")
    await world.worker()
    await world.say("question")
    await hold.reached()
    [(lane,)] = await world.rows("SELECT tenant_id || '/' || conversation_id FROM lanes")
    for lanes in [[lane]] * 20 + [
        [f"{uuid4()}/{uuid4()}"],
        [lane, lane, "a/b", "", 7, None, {"a": 1}, [lane]],
        {},
        5,
        "x",
    ]:
        await page.enqueue(DRAIN, lanes=lanes, **LIMITS)
    for kwargs in ({}, {"context": 1, "self": 2, "lanes": None}, {"more": [lane]}):
        await page.enqueue(Job(function=DRAIN, kwargs=kwargs), **LIMITS)
    hold.open.set()
    await answered(world, "You said: question")
    assert world.asked == [("question",)]
    await world.until("SELECT count(*) >= 28 AND bool_and(status = 'complete') FROM saq_jobs")
    assert "a wake-up names what is no lane" in [line["event"] for line in said]


# --- its jobs, by hand and by itself ---


async def the_job(page: Wakes, world: World) -> Job:
    """The one that is being worked on, as SAQ's page finds it."""
    await world.until("SELECT count(*) = 1 FROM saq_jobs WHERE status = 'active'")
    [job] = [job async for job in page.iter_jobs([Status.ACTIVE])]
    return job


async def test_aborted_and_retried_by_hand_it_cancels_and_doubles_no_turn(world: World, page: Wakes) -> None:
    """What the page's buttons do, while its lanes are being answered and after: one call, one answer."""
    await through_gate(world)
    hold = world.gate.hold("assistant")
    await world.worker()
    await world.say("question")
    await hold.reached()
    job = await the_job(page, world)
    await job.retry("retried from ui")  # it runs twice now
    await world.until("SELECT bool_and(status = 'active') FROM saq_jobs")
    job = await the_job(page, world)
    await job.abort("aborted from ui")
    await world.until("SELECT bool_and(status = 'aborted') FROM saq_jobs")
    assert await world.rows("SELECT count(*) FROM lanes WHERE owner IS NOT NULL") == [(1,)]
    await job.retry("retried from ui")
    await world.until("SELECT bool_and(status = 'active') FROM saq_jobs")
    await world.act("DELETE FROM saq_jobs")
    hold.open.set()
    await answered(world, "You said: question")
    for button in (job.retry, job.abort, job.retry):
        await button("from ui")
    assert world.asked == [("question",)]
    await woken(world)


async def test_a_sweep_takes_what_is_over_and_stops_no_turn(world: World, page: Wakes) -> None:
    """Jobs of dead workers and old wake-ups go; a live one stays, and if it is swept too, its turn goes on."""
    old = {"started": 1, "worker_id": "of the dead", "attempts": 1}
    dead = [
        await insert(world, json.dumps(FINE | old).encode(), status=status, age=STALE)
        for status in ("active", "aborting")
    ]
    late = [await insert(world, json.dumps(FINE).encode(), age=STALE + 1) for _ in range(20)]
    kept = await insert(world, json.dumps(FINE | old | {"started": int(time.time() * 1000)}).encode(), status="active")
    await through_gate(world)
    hold = world.gate.hold("assistant")
    await world.worker()
    await world.until("SELECT count(*) > 0 FROM saq_stats")
    await gone(world, dead + late)
    assert await world.rows("SELECT key FROM saq_jobs") == [(kept,)]
    await world.act("DELETE FROM saq_jobs")
    await world.say("question")
    await hold.reached()
    job = await the_job(page, world)
    sweeper = jobs_queue(world.url, Ears)
    await sweeper.connect()
    assert await sweeper.sweep() == []
    await page.update(job, timeout=1, started=1)  # it seems to be stuck
    assert await sweeper.sweep() == [job.key]
    await sweeper.disconnect()
    hold.open.set()
    await answered(world, "You said: question")
    assert world.asked == [("question",)]


# --- its connections ---


async def test_an_outage_in_the_midst_of_its_jobs_ends_no_task_unheard(
    world: World, cluster: embedded.Cluster, page: Wakes
) -> None:
    """Every connection dies while jobs are active, none can be had for a second: answered once, and then as before."""
    await through_gate(world)
    hold = world.gate.hold("assistant")
    await world.worker(lease_seconds=8.0)
    people = [f"1555004{n:04}" for n in range(5)]
    for person in people:
        await world.say("question", sender=person)
    await world.until("SELECT count(*) > 0 FROM saq_jobs WHERE status = 'active'")
    await hold.reached()
    [(name,)] = await world.rows("SELECT current_database()")
    async with await psycopg.AsyncConnection.connect(cluster.superuser_url, autocommit=True) as conn:
        await conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        await conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        hold.open.set()
        await asyncio.sleep(1)
        await conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
    for person in people:
        await world.sandbox.ledger.wait(person, 1, 10)
    await world.at_rest()
    assert {person: [line.text for line in world.lines(person) if line.accepted] for person in people} == {
        person: ["You said: question"] for person in people
    }
    await woken(world, tries=2)  # the bell finds its connections dead when it rings: that one wake-up is lost


async def test_its_connections_alone_cut_again_and_again(world: World) -> None:
    """Twenty times under load: nobody waits, nobody is answered twice."""
    await world.worker()
    people = [f"1555005{n:04}" for n in range(20)]
    for person in people:
        await world.say("hi", sender=person)
        await world.act("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'qasid saq'")
    for person in people:
        await answered(world, HELLO, sender=person)


async def test_a_bell_never_fails(database: Any) -> None:
    """Its queue was closed under it, or raises what nobody foresaw: rung lanes cost a warning, once in a while."""
    queue = jobs_queue(database.url)
    bell = Bell(queue)
    with capture_logs() as lines:
        async with bell:
            await queue.connect()
            await queue.pool.close()
            for _ in range(5):
                bell.ring([(uuid4(), uuid4())])
                await asyncio.sleep(0.02)

            async def unforeseen(_: Job) -> None:
                raise RuntimeError("nobody foresaw this")

            queue.register_before_enqueue(unforeseen)
            bell.ring([(uuid4(), uuid4())])
            await asyncio.sleep(0.02)
    assert [line["event"] for line in lines] == ["wake-up lost"]
