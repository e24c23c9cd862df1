"""The fleet does to real processes what the schedule will ask of it, and leaves nothing behind."""

import os
import time
from pathlib import Path

import psycopg
import pytest

from tests.chaos.fleet import Fleet
from tests.chaos.processes import family, free_ports
from tests.chaos.schedule import SCHEDULES

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


def test_free_ports_are_none_that_a_connection_could_take() -> None:
    """A member's port must still be its own when it comes back."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) < low


def test_smoke_has_every_kind_of_fault_that_full_has_and_time_for_each() -> None:
    """What is shown in CI is the whole schedule, only shorter: each kind begins before the load of 25 s is over."""
    full, smoke = ({row.kind: row for row in SCHEDULES[size].rows} for size in ("full", "smoke"))
    assert full.keys() == smoke.keys()
    assert max(row.first[1] for row in smoke.values()) < 25
