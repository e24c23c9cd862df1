"""More than we can take: what is refused first, that it comes again, and that nobody waits in another's queue.

A lock on tables is the load: what needs them waits for as long as a test wants.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from prometheus_client import REGISTRY

from app import batches, db, ingest, passwords, wake
from app.breaker import Breaker
from app.errors import DatabaseUnavailable, Overloaded
from app.policies import DATABASE
from app.store import operators
from app.wake import Bell
from app.web import auth, webhooks
from tests import cloud_bodies as cloud
from tests import receiving
from tests.conftest import Database
from tests.receiving import Receiver

pytestmark = pytest.mark.anyio

NAME, PASSWORD = "Layla", "correct horse battery"


@pytest.fixture
async def web(database: Database, tmp_path: Path) -> AsyncIterator[Receiver]:
    """A patient web process with a spool, and an operator."""
    await receiving.configure(database.url, tmp_path)
    async with db.pool(database.url, "qasid_app", name="test", max_size=1) as pool, db.acting(pool) as conn:
        assert await operators.add(conn, NAME, passwords.hashed(PASSWORD))
    spool = tmp_path / "spool"
    async with receiving.process(
        database.url, database.superuser_url, ack_deadline_seconds=20.0, spool_dir=spool
    ) as receiver:
        yield receiver


@contextmanager
def held(web: Receiver, *tables: str) -> Iterator[None]:
    """Whoever needs these tables waits."""
    with psycopg.connect(web.url) as holder:
        holder.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE".encode())
        yield
        holder.rollback()


async def under_way(*asked: Awaitable[httpx.Response]) -> list[asyncio.Future[httpx.Response]]:
    """Requests that have got as far as they can without the database."""
    begun: list[asyncio.Future[httpx.Response]] = [asyncio.ensure_future(each) for each in asked]
    for _ in range(100):
        await asyncio.sleep(0)
    return begun


def message() -> bytes:
    return cloud.webhook(cloud.text())


def status() -> bytes:
    return cloud.webhook(statuses=[cloud.status(cloud.fresh())])


def opened() -> float:
    return REGISTRY.get_sample_value("qasid_breaker_opened_total", {"dependency": "database"}) or 0.0


def overloaded() -> float:
    labels = {"endpoint": "meta", "outcome": "overloaded"}
    return REGISTRY.get_sample_value("qasid_webhooks_total", labels) or 0.0


async def test_statuses_are_refused_before_messages_and_all_come_again(
    web: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From half the bound on, webhooks of statuses alone get 503; at the bound all do; what is in hand is taken."""
    monkeypatch.setattr(ingest, "MOST_IN_HAND", 4)
    before, shed = opened(), overloaded()
    with held(web, "messages", "statuses"):
        taken = await under_way(web.post(message()), web.post(status()))
        refused = status()
        answer = await web.post(refused)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        both = cloud.webhook(cloud.text(), statuses=[cloud.status(cloud.fresh())])
        taken += await under_way(web.post(both))
        last = message()
        assert (await web.post(last)).status_code == 503
        assert not any(task.done() for task in taken)
    assert [answer.status_code for answer in await asyncio.gather(*taken)] == [200, 200, 200]
    assert overloaded() == shed + 2
    for body in (refused, last):
        assert (await web.post(body)).status_code == 200
        assert web.unaccounted(body) == []
    assert web.counts() == (3, 3, 0)
    assert opened() == before


async def test_what_is_refused_for_its_number_goes_to_no_spool(web: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spool is for what the database cannot take; the provider keeps what we cannot."""
    monkeypatch.setattr(ingest, "MOST_IN_HAND", 1)
    with held(web, "messages"):
        taken = await under_way(web.post(message()))
        assert (await web.post(message())).status_code == 503
    assert (await taken[0]).status_code == 200
    assert web.one("SELECT count(*) FROM messages") == 1


async def test_a_webhook_that_is_larger_than_the_bound_is_taken_where_there_is_room(
    web: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would come again for ever, or lie in the spool before all others."""
    monkeypatch.setattr(ingest, "MOST_IN_HAND", 2)
    large = cloud.webhook(*(cloud.text() for _ in range(5)))
    assert (await web.post(large)).status_code == 200
    assert web.unaccounted(large) == []


async def test_bodies_in_hand_are_bounded_in_bytes(web: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever would go beyond it gets 503 at once, and 200 when those before have been answered."""
    body = cloud.webhook(cloud.text("x" * 500))
    monkeypatch.setattr(webhooks, "MOST_BYTES", len(body) + 100)
    with held(web, "messages"):
        taken = await under_way(web.post(body))
        answer = await web.post(message())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (await taken[0]).status_code == 200
    assert (await web.post(message())).status_code == 200


async def test_a_webhook_that_is_left_gives_its_room_back(web: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops waiting, at the deadline or by hanging up, is not in hand any more."""
    monkeypatch.setattr(ingest, "MOST_IN_HAND", 2)
    with held(web, "messages"):
        for _ in range(3):
            [gone] = await under_way(web.post(cloud.webhook(cloud.text(), cloud.text())))
            gone.cancel()
            await asyncio.wait({gone})
    assert (await web.post(cloud.webhook(cloud.text(), cloud.text()))).status_code == 200


async def test_pages_never_use_the_connections_of_ingest(web: Receiver) -> None:
    """Operators' requests that wait for the database by the dozen hold up no webhook, and no wake-up: each has its pool."""
    login = {"name": NAME, "password": PASSWORD}
    assert (await web.http.post("/login", data=login)).status_code == 303
    assert (await web.http.get("/jobs/api/queues")).status_code == 200
    with held(web, "saq_stats"):
        asked = await under_way(*(web.http.get("/jobs/api/queues") for _ in range(12)))
        for _ in range(20):
            assert (await web.post(message())).status_code == 200
        async with asyncio.timeout(5):
            while not web.one("SELECT count(*) FROM saq_jobs"):
                await asyncio.sleep(0.01)
        waiting = web.execute("SELECT DISTINCT application_name FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        assert waiting == [("qasid saq",)]
    await asyncio.gather(*asked)
    with held(web, "operators"):
        asked = await under_way(*(web.http.post("/login", data=login) for _ in range(5)))
        for _ in range(20):
            assert (await web.post(message())).status_code == 200
        waiting = web.execute("SELECT DISTINCT application_name FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        assert waiting == [("qasid console",)]
    await asyncio.gather(*asked)


async def test_webhooks_that_wait_hold_up_no_page(web: Receiver) -> None:
    """Login and readiness answer while ingest waits for the database."""
    with held(web, "messages", "statuses"):
        taken = await under_way(*(web.post(message()) for _ in range(50)), *(web.post(status()) for _ in range(50)))
        assert (await web.http.post("/login", data={"name": NAME, "password": PASSWORD})).status_code == 303
        assert (await web.http.get("/jobs/")).status_code == 200
        assert (await web.http.get("/readyz")).status_code == 200
    assert {answer.status_code for answer in await asyncio.gather(*taken)} == {200}


async def test_logins_that_wait_are_bounded(web: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound 503, which is not a bad try."""
    monkeypatch.setattr(auth, "MOST_WAITING", 2)
    login = {"name": NAME, "password": PASSWORD}
    with held(web, "operators"):
        waiting = await under_way(*(web.http.post("/login", data=login) for _ in range(2)))
        for _ in range(8):
            answer = await web.http.post("/login", data=login)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {303}


async def test_a_full_pool_is_no_failure_of_the_database(database: Database) -> None:
    """Who finds too many waiting hears so at once; neither that nor a wait in vain moves the breaker."""
    pool = db.pool(database.url, "qasid_courier", name="small", max_size=1, max_waiting=1)
    pool.timeout = 0.2
    async with pool:
        pool.breaker = breaker = Breaker("database", DATABASE)

        async def ask() -> None:
            with breaker.watching():  # as one that stands around another does
                async with db.connection(pool):
                    pass

        async with db.connection(pool):
            ends = await asyncio.gather(*(ask() for _ in range(20)), return_exceptions=True)
            assert [type(end) for end in ends] == [DatabaseUnavailable, *[Overloaded] * 19]
        assert (breaker.state, breaker.opened) == ("closed", 0)
        await ask()


async def test_a_full_batch_is_no_failure_of_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that finds no room is refused as overload, which no breaker counts."""
    monkeypatch.setattr(batches, "MOST_WAITING", 1)
    free = asyncio.Event()

    async def write(rows: Sequence[int]) -> Sequence[int]:
        await free.wait()
        return rows

    one: batches.Batches[int, int] = batches.Batches("test", write)
    flying = one.submit(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = one.submit(2)
    with pytest.raises(Overloaded) as full:
        await one.submit(3)
    assert DATABASE.judge(full.value) == "neither"
    free.set()
    assert (await flying, await waiting) == (1, 2)


class SlowQueue:
    """A queue whose `enqueue` a test holds up."""

    def __init__(self) -> None:
        self.jobs: list[list[str]] = []
        self.begun, self.free = asyncio.Event(), asyncio.Event()

    async def connect(self) -> None: ...

    async def mend(self, failure: Exception) -> None: ...

    async def enqueue(self, job: str, *, lanes: list[str], **_: Any) -> None:
        self.jobs.append(lanes)
        self.begun.set()
        await self.free.wait()


async def test_lanes_that_a_wake_up_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a ring cannot get out, names are gathered up to the bound; the rest are found without."""
    monkeypatch.setattr(wake, "MOST_NAMED", 10)
    queue = SlowQueue()
    bell = Bell(queue)  # type: ignore[arg-type]
    async with bell:
        bell.ring([(UUID(int=0), UUID(int=0))])
        await queue.begun.wait()
        for n in range(100):
            bell.ring([(UUID(int=n % 50), UUID(int=n % 50))])
        queue.free.set()
        async with asyncio.timeout(5):
            while len(queue.jobs) < 2:
                await asyncio.sleep(0.005)
    assert [len(job) for job in queue.jobs] == [1, 10]


def test_bad_logins_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names and clients are tried within a minute."""
    monkeypatch.setattr(auth, "MOST_REMEMBERED", 20)
    tries = auth.Attempts(clock=lambda: 1.0)
    for n in range(1_000):
        tries.count(f"name {n}", f"client {n}")
        assert len(tries) <= 20
    for _ in range(5):
        tries.count("name last")
    assert tries.wait("name last") > 0
