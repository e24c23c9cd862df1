"""The proxy disturbs as it says, and nothing else: tried with a real PostgreSQL behind it."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import AsyncConnection

from tests.chaos.links import SPARED_CYCLES, is_commit, reply_end
from tests.chaos.proxied import Proxied

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

COMPLETE, READY, OPEN = b"C\0\0\0\x0dINSERT 0\0", b"Z\0\0\0\5I", b"Z\0\0\0\5T"


@pytest.fixture
async def proxied(database: Any) -> AsyncIterator[Proxied]:
    async with Proxied(urlsplit(database.superuser_url).port or 0, ["one", "two"]) as proxied:
        yield proxied


async def connected(database: Any, proxied: Proxied, name: str = "one", **more: Any) -> AsyncConnection[Any]:
    parts = urlsplit(database.superuser_url)
    login = parts.netloc.rpartition("@")[0]
    url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{proxied.ports[name]}"))
    return await AsyncConnection.connect(url, autocommit=True, **{"connect_timeout": 5, **more})


async def count(database: Any) -> int:
    async with await AsyncConnection.connect(database.superuser_url, autocommit=True) as conn:
        row = await (await conn.execute("SELECT count(*) FROM scratch")).fetchone()
        assert row is not None
        return int(row[0])


async def test_it_passes_everything_on_when_left_alone(database: Any, proxied: Proxied) -> None:
    """Idle, it is a pump: megabytes go through unchanged, both ways."""
    async with await connected(database, proxied) as conn:
        text = "قاصد" * 1_000_000
        row = await (await conn.execute("SELECT %s::text", (text,))).fetchone()
        assert row == (text,)
    assert proxied.lost == []


async def test_a_lost_commit_has_happened_and_nobody_hears_it(database: Any, proxied: Proxied) -> None:
    """The server commits, its reply is swallowed, the connection is reset; the loss is told with the client's name."""
    conn = await connected(database, proxied, "two")
    await conn.execute("CREATE TABLE scratch (n int)")
    for _ in range(SPARED_CYCLES):
        await conn.execute("SELECT 1")
    await proxied.lost_commit(1.0)
    with pytest.raises(psycopg.OperationalError):
        await conn.execute("INSERT INTO scratch VALUES (1)")
    assert await count(database) == 1
    assert [lost.of for lost in proxied.lost] == ["two"]


async def test_within_a_transaction_only_the_commit_is_lost(database: Any, proxied: Proxied) -> None:
    """Statements of an open transaction are heard; the reply to its COMMIT is what goes."""
    conn = await connected(database, proxied)
    await conn.execute("CREATE TABLE scratch (n int)")
    for _ in range(SPARED_CYCLES):
        await conn.execute("SELECT 1")
    await proxied.lost_commit(1.0)
    with pytest.raises(psycopg.OperationalError):
        async with conn.transaction():
            assert (await conn.execute("INSERT INTO scratch VALUES (1)")).rowcount == 1
            assert (await conn.execute("INSERT INTO scratch VALUES (2)")).rowcount == 1
    assert await count(database) == 2


async def test_the_setting_up_of_a_connection_is_spared(database: Any, proxied: Proxied) -> None:
    """The first cycles are never picked: else no pool would ever fill."""
    await proxied.lost_commit(1.0)
    async with await connected(database, proxied) as conn:
        for _ in range(SPARED_CYCLES):
            await conn.execute("SELECT 1")


async def test_a_blackhole_holds_bytes_and_closes_nothing(database: Any, proxied: Proxied) -> None:
    """What is said in it is heard after it, on old connections and on those that were begun in it."""
    async with await connected(database, proxied) as conn:
        await proxied.blackhole(1.0)
        begin = time.monotonic()
        await conn.execute("SELECT 1")
        assert time.monotonic() - begin > 0.9
        await proxied.blackhole(1.0)
        begin = time.monotonic()
        async with await connected(database, proxied) as late:
            await late.execute("SELECT 1")
        assert time.monotonic() - begin > 0.9


async def test_latency_delays_every_reply_and_keeps_the_order(database: Any, proxied: Proxied) -> None:
    """Each round trip takes at least mean − jitter; a reply in pieces arrives as it was sent."""
    async with await connected(database, proxied) as conn:
        await proxied.latency(0.1, 0.05)
        begin = time.monotonic()
        rows = await (await conn.execute("SELECT n, repeat('x', 500) FROM generate_series(1, 2000) n")).fetchall()
        assert time.monotonic() - begin > 0.05
        assert [row[0] for row in rows] == list(range(1, 2001))
        await proxied.latency(0.0, 0.0)
        begin = time.monotonic()
        await conn.execute("SELECT 1")
        assert time.monotonic() - begin < 0.05


async def test_under_latency_a_stream_stays_in_order(database: Any, proxied: Proxied) -> None:
    """Thousands of pieces, each delayed by another time: they come out as they went in, as TCP promises."""
    async with await connected(database, proxied) as conn:
        await proxied.latency(0.02, 0.019)
        for _ in range(3):
            cursor = await conn.execute("SELECT n, repeat('x', 400) FROM generate_series(1, 20000) n")
            assert [n for n, _ in await cursor.fetchall()] == list(range(1, 20001))


@pytest.mark.parametrize("how", ["reset", "half_close"])
async def test_a_cut_ends_every_connection_and_new_ones_are_taken(database: Any, proxied: Proxied, how: str) -> None:
    """After RST or FIN nobody's connection works, and the next one does."""
    conns = [await connected(database, proxied, name) for name in proxied.ports]
    assert await getattr(proxied, how)() == len(conns)
    for conn in conns:
        with pytest.raises(psycopg.OperationalError):
            await conn.execute("SELECT 1")
        await conn.close()
    async with await connected(database, proxied) as conn:
        await conn.execute("SELECT 1")


async def test_a_probers_questions_are_counted_and_nobody_elses(database: Any, proxied: Proxied) -> None:
    """By the name of its connection; what it asks first, prepared as it is, is one question, and each further is one."""
    began = time.time()
    async with await connected(database, proxied) as other:
        other.prepare_threshold = 0
        async with await connected(database, proxied, "two", application_name="qasid prober") as prober:
            prober.prepare_threshold = 0
            for _ in range(3):
                await prober.execute("SELECT 1")
                await other.execute("SELECT 1")
    await proxied.calm()  # by its answer, all that it had to tell before is here
    assert [probe.of for probe in proxied.probes] == ["two"] * 3
    assert all(began <= probe.at <= time.time() for probe in proxied.probes)


async def test_a_question_that_is_read_late_counts_from_when_it_was_asked(database: Any, proxied: Proxied) -> None:
    """In a blackhole nothing is read: whoever gave up by then has asked all the same."""
    await proxied.blackhole(1.0)
    asked = time.time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await connected(database, proxied, "two", application_name="qasid prober", sslmode="disable")
    async with await connected(database, proxied) as conn:  # when it is over
        await conn.execute("SELECT 1")
    await proxied.calm()
    [probe] = proxied.probes
    assert abs(probe.at - asked) < 0.5


def test_a_reply_counts_as_a_commit_only_if_a_command_was_done_outside_a_transaction() -> None:
    """CommandComplete, then ReadyForQuery with status I; a mere Parse, or a statement in a transaction, is none."""
    assert is_commit(COMPLETE + READY)
    assert not is_commit(COMPLETE + OPEN)
    assert not is_commit(b"1\0\0\0\4" + READY)


def test_a_reply_that_comes_in_pieces_ends_at_its_last_byte() -> None:
    """Until ReadyForQuery is whole there is no end; what follows it is not part of it."""
    whole = COMPLETE + READY
    assert [reply_end(whole[:n]) for n in range(len(whole))] == [None] * len(whole)
    assert reply_end(whole + b"A\0\0\0\4") == len(whole)
