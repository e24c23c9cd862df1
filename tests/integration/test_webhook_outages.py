"""The door while PostgreSQL is frozen, away or slow: 503 in time, then 200, and everything is there once.

On a cluster of its own, whose processes it stops by their ids.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest

from tests import cloud_bodies as cloud
from tests import outages, receiving
from tests.outages import Server
from tests.receiving import ENVIRON, Receiver

pytestmark = pytest.mark.anyio

state, server = outages.state, outages.server

DEADLINE = 0.6
MARGIN = 0.45  # of a machine that others use too; together they stay below the 2 × DEADLINE after which flushes fail
CHALLENGE = {"hub.mode": "subscribe", "hub.challenge": "1", "hub.verify_token": ENVIRON["VERIFY"]}


@asynccontextmanager
async def process(server: Server, *, ready: bool = True) -> AsyncIterator[Receiver]:
    url, superuser_url = server.cluster.url, server.cluster.superuser_url
    async with receiving.process(url, superuser_url, ready=ready, ack_deadline_seconds=DEADLINE) as receiver:
        yield receiver


async def in_time(asking: Awaitable[httpx.Response]) -> int:
    """The status, which comes within the deadline and a small margin."""
    began = time.monotonic()
    status = (await asking).status_code
    assert time.monotonic() - began < DEADLINE + MARGIN
    return status


async def refused_in_time(web: Receiver, bodies: list[bytes]) -> None:
    """Each of them, all at once, is answered 503 in time."""
    posts = [asyncio.create_task(web.post(body)) for body in bodies]
    assert await asyncio.gather(*map(in_time, posts)) == [503] * len(bodies)


async def redelivered(web: Receiver, bodies: list[bytes]) -> None:
    """As a provider does: each again, until it is answered 200, within ten seconds."""
    async with asyncio.timeout(10):
        for body in bodies:
            while (await web.post(body)).status_code != 200:
                await asyncio.sleep(0.05)


def stored_once(web: Receiver, bodies: list[bytes]) -> None:
    """Each body's message and status is there once; the outbox has no gap."""
    for body in bodies:
        assert web.unaccounted(body) == []
    assert web.counts() == (len(bodies), len(bodies), 0)
    assert web.one("SELECT array_agg(seq ORDER BY seq) FROM outbox") == list(range(1, len(bodies) + 1))
    assert web.execute("SELECT head_seq FROM lanes") == [(len(bodies),)]


def webhooks(number: int) -> list[bytes]:
    """Of one person: a message and a status each."""
    return [cloud.webhook(cloud.text(), statuses=[cloud.status(cloud.fresh())]) for _ in range(number)]


async def test_a_frozen_database_is_not_waited_for(server: Server, tmp_path: Path) -> None:
    """503 in time, again and again; what needs no database is answered as ever; then all is stored once."""
    await receiving.configure(server.cluster.url, tmp_path)
    doubted = uuid4()
    heard = cloud.status(cloud.fresh(), biz_opaque_callback_data=f"{doubted}:1")
    bodies = [*webhooks(19), cloud.webhook(cloud.text(), statuses=[heard])]
    async with process(server) as web:
        assert (await web.post(bodies[0])).status_code == 200
        web.execute(
            "INSERT INTO chunks (tenant_id, id, conversation_id, channel_id, seq, no, body, state, in_doubt_at) "
            "SELECT tenant_id, %s, conversation_id, channel_id, 1, 1, 'x', 'in_doubt', '2000-01-01' FROM lanes",
            doubted,
        )
        with server.frozen():
            for _ in range(3):
                await refused_in_time(web, bodies)
                forged = asyncio.create_task(web.post(bodies[0], signature="sha256=" + "0" * 64))
                assert await in_time(forged) == 403
                challenge = asyncio.create_task(web.http.get("/webhooks/meta", params=CHALLENGE))
                assert await in_time(challenge) == 200
                assert (await web.http.get("/livez")).status_code == 200
            assert (await web.http.post("/webhooks/nobody", content=b"{}")).status_code == 503
            answer = await web.post(bodies[0])
            assert answer.headers["retry-after"] == "1"
        await redelivered(web, bodies)
        stored_once(web, bodies)
        async with asyncio.timeout(5):
            while web.one("SELECT missed_at IS NULL FROM chunks"):  # a status has come, and will come again
                await asyncio.sleep(0.05)  # it is written by a task of the process, at most once a second
        assert (await web.http.post("/webhooks/nobody", content=b"{}")).status_code == 404


async def test_a_database_that_is_away_comes_back(server: Server, tmp_path: Path) -> None:
    """Stopped under a running process, and not there when the process starts."""
    await receiving.configure(server.cluster.url, tmp_path)
    bodies = webhooks(10)
    async with process(server) as web:
        assert (await web.post(bodies[0])).status_code == 200
        await asyncio.to_thread(server.stop)
        try:
            await refused_in_time(web, bodies)
            async with process(server, ready=False) as late:
                await refused_in_time(late, bodies)
                await asyncio.to_thread(server.start)
                await receiving.until_ready(late.http)
                await redelivered(late, bodies[5:])
        finally:
            await asyncio.to_thread(server.start)
        await redelivered(web, bodies)
        stored_once(web, bodies)


async def test_a_slow_database_is_not_waited_for_either(server: Server, tmp_path: Path) -> None:
    """A lock holds every insert up: 503 in time; what the server did meanwhile is recognised when it comes again."""
    await receiving.configure(server.cluster.url, tmp_path)
    bodies = webhooks(10)
    async with process(server) as web:
        assert (await web.post(bodies[0])).status_code == 200
        with psycopg.connect(server.cluster.superuser_url) as holder:
            holder.execute("LOCK TABLE messages, statuses IN ACCESS EXCLUSIVE MODE")
            for _ in range(2):
                await refused_in_time(web, bodies)
            other = asyncio.create_task(web.post(b"{}"))
            assert (await other).status_code in (200, 503)  # behind the others in their batch, or in the next
            holder.rollback()
        await redelivered(web, [*bodies, b"{}"])
        assert web.one("SELECT count(*) FROM quarantine") == 1
        web.execute("DELETE FROM quarantine")
        stored_once(web, bodies)


async def test_backends_that_are_ended_cost_a_redelivery(server: Server, tmp_path: Path) -> None:
    """Every connection is cut, several times, while webhooks come: 200 or 503, and all is stored once."""
    await receiving.configure(server.cluster.url, tmp_path)
    bodies = webhooks(60)
    async with process(server) as web:
        ended = 0
        for n in range(0, 60, 20):
            posts = [asyncio.create_task(web.post(body)) for body in bodies[n : n + 20]]
            await asyncio.sleep(0)
            ended += web.one(
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE application_name = 'qasid courier'"
            )
            assert set(await asyncio.gather(*map(in_time, posts))) <= {200, 503}
        assert ended
        await redelivered(web, bodies)
        stored_once(web, bodies)
