"""The prober on a real PostgreSQL, over a link that breaks: how soon a loss is known, and its end, and what it costs."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from app import db
from app.breaker import Breaker, Forced, State
from app.policies import DATABASE
from app.prober import Prober
from app.store import breakers
from tests import outages
from tests.chaos.links import Link
from tests.chaos.proxy import Proxy
from tests.outages import Server

pytestmark = pytest.mark.anyio

state, server = outages.state, outages.server

KNOWN, MENDED = 2.0, 10.0  # seconds, as promised
MARGIN = 0.4  # of a machine that others use too; one probe too many would be a second
MENDED_HERE = 5.0  # three answers a second apart, after one that may still hang


class Line(Proxy):
    """The link: it notes who comes and who asks, turns people away, and may be closed."""

    def __init__(self, port: int) -> None:
        super().__init__(port, lambda _: None)
        self.came: list[float] = []
        self.turns_away = False
        self.asked: Callable[[], None] = lambda: None
        self.port = 0

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Heard(self, "prober").client, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._server.close()
        self.reset()

    def connect(self, link: Link) -> None:
        self.came.append(time.monotonic())
        if self.turns_away:
            asyncio.get_running_loop().call_soon(link.client.reset)
        else:
            super().connect(link)


class Heard(Link):
    """Tells the line of each question on a connection that stands."""

    def from_client(self, data: bytes) -> None:
        cycles = self._cycles
        super().from_client(data)
        if self._cycles > cycles:
            self.proxy.asked()  # type: ignore[attr-defined]


class Ear:
    """A breaker, a prober for it, and what became of either."""

    def __init__(self, server: Server, line: Line) -> None:
        self.breaker = Breaker("database", DATABASE, on_change=self._changed)
        self.moved = asyncio.Event()
        self.words: list[Mapping[str, Forced]] = []  # one for each probe that was answered
        url = server.cluster.url.replace(f":{port_of(server)}/", f":{line.port}/")
        assert url != server.cluster.url
        self.prober = Prober(url, self.breaker, heard=self.hear)

    def hear(self, words: Mapping[str, Forced]) -> None:
        self.words.append(words)
        self.moved.set()

    def _changed(self, _: Breaker, __: State) -> None:
        self.moved.set()

    async def until(self, true: Callable[[], bool], *, within: float = MENDED) -> float:
        """How many seconds it took."""
        began = time.monotonic()
        async with asyncio.timeout(within):
            while not true():
                self.moved.clear()
                await self.moved.wait()
        return time.monotonic() - began

    async def is_(self, state: State, *, within: float = MENDED) -> float:
        return await self.until(lambda: self.breaker.state == state, within=within)

    async def holds(self, word: Forced | None) -> None:
        await self.until(lambda: self.breaker.forced == word, within=KNOWN)

    async def answers(self, number: int = 1) -> None:
        heard = len(self.words)
        await self.until(lambda: len(self.words) >= heard + number)


def port_of(server: Server) -> int:
    return int(server.cluster.url.rpartition(":")[2].partition("/")[0])


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[tuple[Ear, Line]]:
    """A prober at work, which has been answered just now: what happens next is a whole second from its next question."""
    line = Line(port_of(server))
    await line.open()
    ear = Ear(server, line)
    try:
        async with ear.prober:
            await ear.answers(2)
            yield ear, line
    finally:
        line.blackhole(0)
        line.close()


def tasks_left() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name in ("prober", "probe")]


# --- losses ---


@asynccontextmanager
async def stopped(server: Server, _: Line) -> AsyncIterator[None]:
    """A shutdown: backends are ended in order, then nobody listens."""
    await asyncio.to_thread(server.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@asynccontextmanager
async def frozen(server: Server, _: Line) -> AsyncIterator[None]:
    """All processes stand still; the kernel goes on taking connections in their name."""
    with server.frozen():
        yield


@asynccontextmanager
async def silent(_: Server, line: Line) -> AsyncIterator[None]:
    """The network takes everything and brings nothing."""
    line.blackhole(60)
    yield
    line.blackhole(0)


@asynccontextmanager
async def reset(_: Server, line: Line) -> AsyncIterator[None]:
    """A middle box that ends whatever comes."""
    line.turns_away = True
    line.reset()
    yield
    line.turns_away = False


@asynccontextmanager
async def refused(_: Server, line: Line) -> AsyncIterator[None]:
    """A port where nobody listens."""
    line.close()
    yield
    await line.open()


Loss = Callable[[Server, Line], AbstractAsyncContextManager[None]]


@pytest.mark.parametrize("loss", [stopped, frozen, silent, reset, refused], ids=lambda loss: loss.__name__)
async def test_a_loss_is_known_within_two_seconds_and_its_end_within_ten(server: Server, loss: Loss) -> None:
    """Even when it comes straight after an answer; meanwhile nobody is asked more than once a second."""
    async with listening(server) as (ear, line):
        assert len(line.came) == 1
        lost = time.monotonic()
        async with loss(server, line):
            await ear.is_("open", within=KNOWN + MARGIN)
            known = time.monotonic() - lost
            came = len(line.came)
            async with asyncio.timeout(MENDED):
                while loss is not refused and len(line.came) < came + 3:  # a port that is closed cannot count
                    await asyncio.sleep(0.05)
            assert ear.breaker.state == "open"
        mended = await ear.is_("closed", within=MENDED_HERE)
        assert known < KNOWN + MARGIN
        assert 1.5 < mended < MENDED_HERE < MENDED  # not at the first answer
        assert [b - a for a, b in pairwise(line.came) if b - a < 0.7] == []
        assert ear.breaker.opened == 1
        await ear.answers(2)
        assert len(line.links) == 1


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})])
async def test_the_promise_holds_on_the_loop_that_processes_run(server: Server, anyio_backend: Any) -> None:
    """uvloop: its timers may ring a millisecond early, which is no excuse for another second."""
    async with listening(server) as (ear, line):
        for _ in range(2):
            async with silent(server, line):
                assert await ear.is_("open", within=KNOWN + MARGIN) < KNOWN + MARGIN
            await ear.is_("closed")
            await ear.answers()


async def test_an_answer_that_lay_unread_while_our_loop_stood_still_counts(server: Server) -> None:
    """Blocked, or stopped and continued: the server was there."""
    async with listening(server) as (ear, line):
        blocked: list[float] = []

        def block() -> None:
            if not blocked:
                blocked.append(time.monotonic())
                time.sleep(1.3)

        line.asked = block
        await ear.until(lambda: bool(blocked))
        await ear.answers(2)
        assert (ear.breaker.opened, ear.breaker.state, len(line.came)) == (0, "closed", 1)


async def test_a_connection_that_breaks_alone_is_no_loss(server: Server) -> None:
    """It is made anew within the same probe."""
    async with listening(server) as (ear, line):
        line.reset()
        await ear.answers(2)
        assert (ear.breaker.opened, ear.breaker.state, len(line.came)) == (0, "closed", 2)


async def test_what_an_outage_left_dead_fails_no_call_after_it(server: Server) -> None:
    """Before the breaker closes the pools are renewed: as many calls as there are connections, and none finds a dead one."""
    connections = 4
    async with listening(server) as (ear, line):
        url = server.cluster.url.replace(f":{port_of(server)}/", f":{line.port}/")
        async with db.pool(url, "qasid_courier", name="calls", min_size=connections, max_size=connections) as pool:
            await pool.wait()
            breaker = pool.breaker = Breaker("database", DATABASE)
            async with Prober(url, breaker, (pool,)):
                breaker.on_change = ear._changed
                async with stopped(server, line):
                    await ear.until(lambda: breaker.state == "open")
                await ear.until(lambda: breaker.state == "closed")
                held = asyncio.Barrier(connections)

                async def call() -> None:
                    async with db.connection(pool) as conn:
                        await held.wait()  # so that no two of them share a connection
                        await conn.execute("SELECT 1")

                async with asyncio.TaskGroup() as calls:
                    for _ in range(connections):
                        calls.create_task(call())
            assert breaker.opened == 1


async def test_connections_that_a_server_ended_fail_a_call_or_two(server: Server) -> None:
    """`pg_terminate_backend`, or a restart too short to notice: the first that is found dead has the others thrown out."""
    failed = 0
    async with db.pool(server.cluster.url, "qasid_courier", name="calls", min_size=8, max_size=8) as pool:
        await pool.wait()
        breaker = pool.breaker = Breaker("database", DATABASE)
        with psycopg.connect(server.cluster.superuser_url, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'qasid calls'"
            )
        for _ in range(20):
            try:
                async with db.connection(pool) as conn_:
                    await conn_.execute("SELECT 1")
            except psycopg.OperationalError:
                failed += 1
        assert 1 <= failed < DATABASE.failures
        assert breaker.opened == 0


async def test_a_server_without_our_schema_is_there(server: Server) -> None:
    """An older schema has no table `breakers`: a breaker that is open closes all the same."""
    with psycopg.connect(server.cluster.superuser_url, autocommit=True) as conn:
        conn.execute("DROP TABLE breakers")
    line = Line(port_of(server))
    await line.open()
    ear = Ear(server, line)
    ear.breaker.probed(False, 1.0)
    assert ear.breaker.state == "open"
    async with ear.prober:
        await ear.is_("closed", within=MENDED_HERE)
    assert ear.words == []
    line.close()


async def test_a_server_that_takes_no_writes_is_as_good_as_away(server: Server) -> None:
    """Read-only (25006): open, and closed again when it takes them."""

    def read_only(value: str) -> None:
        with psycopg.connect(server.cluster.superuser_url, autocommit=True) as conn:
            conn.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}".encode())
            conn.execute("SELECT pg_reload_conf()")

    async with listening(server) as (ear, line):
        try:
            read_only("on")
            # Each probe is answered at once: two of them, a second apart, and a second before the first.
            await ear.is_("open", within=KNOWN + 1.0 + MARGIN)
            assert ear.words[-1] == {}
        finally:
            read_only("off")
        await ear.is_("closed", within=MENDED_HERE)
        assert len(line.came) == 1


# --- the person's word ---


async def say(server: Server, word: Forced | None) -> None:
    """As `qasid breaker` does."""
    async with db.pool(server.cluster.url, "qasid_app", name="cli", max_size=1) as pool, db.acting(pool) as conn:
        if word is None:
            assert await breakers.let_go(conn, "database")
        else:
            await breakers.force(conn, "database", word)


async def test_a_persons_word_is_heard_within_two_seconds(server: Server) -> None:
    """Whichever it is, and when it is taken back."""
    async with listening(server) as (ear, _):
        words: tuple[Forced | None, ...] = ("open", "closed", None, "open", None)
        for word in words:
            await say(server, word)
            await ear.holds(word)
        assert ear.breaker.state == "closed"


async def test_a_persons_word_outlives_the_database(server: Server) -> None:
    """Held closed, it stays so while nobody can be asked; what the prober hears meanwhile stands underneath."""
    async with listening(server) as (ear, line):
        await say(server, "closed")
        await ear.holds("closed")
        async with silent(server, line):
            await ear.until(lambda: ear.breaker.opened == 1, within=KNOWN + 1.0 + MARGIN)
            assert (ear.breaker.forced, ear.breaker.state) == ("closed", "closed")
            ear.breaker.forced = None
            assert ear.breaker.state == "open"
        await ear.until(lambda: ear.breaker.forced == "closed", within=KNOWN + MARGIN)
        await say(server, None)
        await ear.holds(None)
        await ear.is_("closed", within=MENDED_HERE)


# --- mistakes, and the end ---


async def test_a_listener_that_fails_does_not_end_the_probing(server: Server) -> None:
    """Nobody else would ever close the breaker."""
    line = Line(port_of(server))
    await line.open()
    ear = Ear(server, line)
    failed: list[Mapping[str, Forced]] = []

    def hear(words: Mapping[str, Forced]) -> None:
        if not failed:
            failed.append(words)
            raise RuntimeError("a mistake of ours")
        ear.hear(words)

    async with Prober(server.cluster.url, ear.breaker, heard=hear):
        await ear.answers()
    assert failed
    line.close()


@pytest.mark.parametrize("how", ["asking", "connecting", "idle"])
async def test_leaving_takes_no_longer_than_a_second_and_leaves_nothing(server: Server, how: str) -> None:
    """While a question hangs on the connection that was there, or hangs in making one, or none is under way."""
    async with listening(server) as (ear, line):
        if how != "idle":
            line.blackhole(60)
        if how == "connecting":
            await ear.is_("open")
        async with asyncio.timeout(5):
            while how != "idle" and "probe" not in tasks_left():
                await asyncio.sleep(0.02)
        leaving = time.monotonic()
        await ear.prober.__aexit__(None, None, None)
        assert time.monotonic() - leaving < 1.0 + MARGIN
        assert tasks_left() == []
        came = len(line.came)
        line.blackhole(0)
        gc.collect()  # a connection that was forgotten would warn
        await asyncio.sleep(1.2)
        assert len(line.came) <= came + (how == "connecting")  # accepted by the kernel in the dark
