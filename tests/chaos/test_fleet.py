"""The fleet does to real processes what the schedule will ask of it, and leaves nothing behind."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import psycopg
import pytest

from app import db
from tests.chaos import degraded, evidence
from tests.chaos.database import Database, Degraded
from tests.chaos.disk import PARENT, PREFIX, Disk
from tests.chaos.fleet import Fleet
from tests.chaos.processes import family, free_ports
from tests.chaos.schedule import FULL_ONLY, SCHEDULES

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


def alive(pid: int) -> bool:
    """Zombies are not: nobody may be there to take note of an orphan's end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_members_come_back_from_what_is_done_to_them_and_end_with_the_fleet(tmp_path: Path) -> None:
    """Kill, pause, roll, crash point and a database that restarts: each returns to ready; after the fleet nothing runs."""
    async with Fleet(tmp_path, webs=1, workers=1) as fleet:
        await fleet.start()
        [web], [worker] = fleet.webs, fleet.workers
        before = (web.pid, worker.pid)
        assert min(web.rss(), worker.rss()) > 10_000_000

        await web.kill()
        await worker.kill()
        await fleet.ready()
        assert not any(alive(pid) for pid in before)

        began = time.monotonic()
        await worker.pause(0.5)
        assert 0.5 <= time.monotonic() - began < 2.0

        rolls = [await worker.roll(), await web.roll()]
        assert fleet.rolls == rolls
        assert [roll.code for roll in rolls] == [0, 0]
        assert max(roll.seconds for roll in rolls) < 30

        await fleet.database.restart(0.1)
        await fleet.database.freeze(0.2)
        await fleet.ready()
        assert await fleet.database.terminate_backends() > 0
        async with await psycopg.AsyncConnection.connect(fleet.superuser_url) as conn:
            await conn.execute("SELECT 1")

        await worker.arm("worker.draining:1")
        await fleet.ready()
        assert not await worker.died(0.1)
        worker.terminate()
        assert await worker.died(10)
        await fleet.ready()
        assert fleet.deaths == []
        last = [pid for member in fleet.members for pid in family(member.pid)]
    assert not any(alive(pid) for pid in last)


async def test_an_end_that_nobody_ordered_is_recorded_and_the_member_comes_back(tmp_path: Path) -> None:
    """A process that ends by itself is a death with its exit code, not a fault of ours."""
    async with Fleet(tmp_path, webs=0, workers=1) as fleet:
        await fleet.start()
        [worker] = fleet.workers
        os.kill(worker.pid, 9)
        while not fleet.deaths:
            await worker.ready()
        [death] = fleet.deaths
        assert (death.name, death.code, death.ready) == ("worker1", -9, True)


async def test_what_processes_do_in_an_outage_is_evidence(tmp_path: Path) -> None:
    """Their breakers by their logs, their probes by the proxy, their lives and the outage by the rig: all fit together."""
    async with Fleet(tmp_path, webs=1, workers=1) as fleet:
        await fleet.start()
        while min(time.time() - life.began for life in fleet.lives) < degraded.START_SECONDS:
            await asyncio.sleep(0.1)
        await fleet.database.freeze(5.0)
        async with asyncio.timeout(30):
            while [change.state for change in evidence.breakers(tmp_path)] != ["open", "closed"] * 2:
                await asyncio.sleep(0.2)
        seen = evidence.Evidence(
            run="A",
            policy="resend",
            seed=0,
            outages=fleet.database.outages,
            lives=fleet.lives,
            breakers=evidence.breakers(tmp_path),
            probes=fleet.proxy.probes,
        )
    names = ["web1", "worker1"]
    assert [outage.kind for outage in seen.outages] == ["freeze"]
    assert [life.name for life in seen.lives] == names
    assert sorted({probe.of for probe in seen.probes}) == names
    assert [life.name for life, _, _ in degraded.openings(seen)] == names
    assert [life.name for life, _, _ in degraded.closings(seen)] == names
    assert not list(degraded.probes_paced(seen))


def test_free_ports_are_none_that_a_connection_could_take() -> None:
    """A member's port must still be its own when it comes back."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) < low


def test_smoke_has_every_kind_of_fault_that_full_has_and_time_for_each() -> None:
    """What is shown in CI is the schedule, only shorter: each kind begins before the load of 25 s is over.

    But for the outages that last for ten seconds and more.
    """
    full, smoke = ({row.kind: row for row in SCHEDULES[size].rows} for size in ("full", "smoke"))
    assert full.keys() - smoke.keys() == FULL_ONLY and smoke.keys() < full.keys()
    assert max(row.first[1] for row in smoke.values()) < 25


# --- what degrades the database --------------------------------------------------------------------------------------

# What the service hears; 57014: nothing, until its own deadline (here a second).
HEARS = {"connections": {"53300"}, "read_only": {"25006"}, "locked": {"57014"}, "held": {"57014"}}


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    """One event loop for the module, so that its cluster lives as long."""
    return "asyncio"


@pytest.fixture(scope="module")
async def ground(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """A migrated database with one lane, which the service's role may write to, and no process."""
    async with Fleet(tmp_path_factory.mktemp("degraded"), webs=0, workers=0) as fleet:
        await one_lane(fleet.superuser_url)
        yield fleet


async def one_lane(url: str) -> None:
    tenant, conversation, channel = (uuid4() for _ in range(3))
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute("SET session_replication_role = replica")  # a lane alone, without all that it refers to
        await conn.execute(
            "INSERT INTO lanes (tenant_id, conversation_id, channel_id) VALUES (%s, %s, %s)",
            (tenant, conversation, channel),
        )


async def heard(url: str, statement: str = "UPDATE lanes SET attempts = attempts") -> str:
    """The SQLSTATE that a write of the service's ends with; empty: it was done. Within five seconds."""
    options = db.options("qasid_courier", timeout=1.0)
    try:
        async with (
            asyncio.timeout(5),
            await psycopg.AsyncConnection.connect(url, autocommit=True, **options) as conn,
        ):
            await conn.execute(statement.encode())
    except psycopg.Error as error:
        # One that is refused at the door has none: libpq does not hand it on.
        return error.sqlstate or ("53300" if "too many connections" in str(error) else str(error))
    return ""


@pytest.mark.parametrize("how", get_args(Degraded))
async def test_a_degraded_database_takes_no_write_of_the_service_until_it_is_well(ground: Fleet, how: Degraded) -> None:
    """Each kind with its own SQLSTATE; who was connected before fares the same; afterwards all is as it was."""
    url, database = ground.database.cluster.url, ground.database
    assert await heard(url) == ""
    options = db.options("qasid_courier", timeout=1.0)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, **options) as before:
        async with database.degraded(how):
            assert await heard(url) in HEARS[how]
            with pytest.raises(psycopg.Error):
                await before.execute("UPDATE lanes SET attempts = attempts")
            async with await psycopg.AsyncConnection.connect(database.superuser_url) as conn:
                await conn.execute("SELECT 1")
        assert await heard(url) == ""
    assert database.outages[-1].kind == how
    assert 0 < database.outages[-1].ended - database.outages[-1].began < 5


@pytest.mark.parametrize("how", ["read_only", "locked"])
async def test_what_degrades_it_is_undone_also_if_it_broke_meanwhile(ground: Fleet, how: Degraded) -> None:
    """The connection that holds it is gone, as by a server that gave up: no role keeps a setting, no lock stays."""
    database = ground.database
    async with (
        await psycopg.AsyncConnection.connect(database.superuser_url, autocommit=True) as conn,
        database.degraded(how),
    ):
        await conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres' AND pid <> pg_backend_pid()"
        )
    assert await heard(database.cluster.url) == ""


async def test_it_is_undone_if_its_run_is_cancelled(ground: Fleet) -> None:
    """Ctrl-C in the midst of it."""
    began = asyncio.Event()

    async def outage() -> None:
        async with ground.database.degraded("read_only"):
            began.set()
            await asyncio.sleep(60)

    playing = asyncio.create_task(outage())
    await began.wait()
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    assert await heard(ground.database.cluster.url) == ""


MUCH = "INSERT INTO much SELECT n, repeat('x', 1000) FROM generate_series(1, 5000) n"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")


@needs_root
async def test_a_full_disk_takes_nothing_and_the_server_recovers_when_there_is_room(tmp_path: Path) -> None:
    """53100, then the server gives up; afterwards everything that was committed is there. Nothing stays mounted."""
    async with Database(tmp_path, disk=400 * 1024 * 1024) as database:
        if database.disk is None:
            pytest.skip("no tmpfs can be mounted here")
        folder = database.disk.folder
        async with await psycopg.AsyncConnection.connect(database.superuser_url, autocommit=True) as conn:
            await conn.execute("CREATE ROLE qasid_courier; GRANT qasid_courier TO qasid")
            await conn.execute("CREATE TABLE much (n int, words text); GRANT ALL ON much TO qasid_courier")
        url = database.cluster.url
        assert await heard(url, MUCH) == ""
        filling = asyncio.create_task(database.fill_disk(6.0))
        said = set()
        while not filling.done():
            said.add(await heard(url, MUCH))
            await asyncio.sleep(0.1)
        await filling
        assert "53100" in said and len(said - {"", "53100"}) > 0, "it was full, and then it was away"
        assert await heard(url, MUCH) == ""
        async with await psycopg.AsyncConnection.connect(database.superuser_url) as conn:
            row = await (await conn.execute("SELECT count(*) % 5000 FROM much")).fetchone()
            assert row == (0,)
        [outage] = database.outages
        assert outage.kind == "disk_full" and outage.ended - outage.began > 6
    assert not folder.exists()


@needs_root
def test_a_disk_that_a_killed_run_left_is_removed_by_the_next() -> None:
    """Nobody holds its lock any more; those that are in use stay."""
    left, mine = Disk.mounted(1024 * 1024), Disk.mounted(1024 * 1024)
    if left is None or mine is None:
        pytest.skip("no tmpfs can be mounted here")
    os.close(left._lock)  # as the kernel does when its process ends
    (left.folder / "something").write_text("of a run that was killed")
    with_a_third = Disk.mounted(1024 * 1024)
    assert with_a_third is not None
    assert not left.folder.exists() and mine.folder.exists()
    for disk in (mine, with_a_third):
        disk.remove()
        assert not disk.folder.exists()
    assert not [base for base in PARENT.glob(f"{PREFIX}*") if base == left.folder.parent]


@needs_root
def test_a_disk_that_is_filled_has_no_byte_left_until_it_is_freed() -> None:
    """Not even for a single page, and all of it afterwards."""
    disk = Disk.mounted(8 * 1024 * 1024)
    if disk is None:
        pytest.skip("no tmpfs can be mounted here")
    try:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (disk.folder / "more").write_bytes(bytes(4096))
        disk.free()
        (disk.folder / "more").write_bytes(bytes(4 * 1024 * 1024))
    finally:
        disk.remove()
