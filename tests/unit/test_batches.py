"""Group commit: what forms a batch, what becomes of each row, and that nobody waits for ever."""

import asyncio
import os
import time
from collections.abc import Sequence

import psycopg
import pytest

from app import batches as module
from app.batches import Batches
from app.errors import DatabaseUnavailable
from app.turnstile import AT_ONCE

pytestmark = pytest.mark.anyio


class Database:
    """Writes rows. `hold` stops it before the next answer, `bad` rows are refused for their data."""

    def __init__(self) -> None:
        self.flushes: list[list[str]] = []
        self.written: list[str] = []
        self.bad: set[str] = set()
        self.failure: Exception | None = None
        self.free = asyncio.Event()
        self.free.set()
        self.begun = asyncio.Event()

    async def write(self, rows: Sequence[str]) -> list[str]:
        self.flushes.append(list(rows))
        self.begun.set()
        await self.free.wait()
        if self.failure:
            raise self.failure
        if bad := self.bad & set(rows):
            raise psycopg.DataError(f"{len(bad)} bad rows")
        self.written += rows
        return [f"wrote {row}" for row in rows]

    async def refuse(self, row: str, error: Exception) -> str:
        return f"refused {row}: {type(error).__name__}"

    def batches(self, *, patience: float = 5.0, weigh: int = 0) -> Batches[str, str]:
        return Batches("test", self.write, refuse=self.refuse, weigh=lambda _: weigh, patience=patience)


async def test_a_lone_row_waits_for_nothing() -> None:
    """There is no timer: its flush begins as soon as the loop turns."""
    database = Database()
    waiting = database.batches().submit("a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert database.flushes == [["a"]]
    assert await waiting == "wrote a"


async def test_what_arrives_during_a_flush_is_the_next_batch() -> None:
    """One flush at a time; the next takes all that waits, in order."""
    database = Database()
    database.free.clear()
    batches = database.batches()
    waiting = [batches.submit("a")]
    await database.begun.wait()
    waiting += [batches.submit(row) for row in "bcd"]
    await asyncio.sleep(0)
    assert database.flushes == [["a"]]
    database.free.set()
    assert await asyncio.gather(*waiting) == ["wrote a", "wrote b", "wrote c", "wrote d"]
    assert database.flushes == [["a"], ["b", "c", "d"]]


@pytest.mark.parametrize("bad", ["a", "h", "d", "ah", "abcdefgh"])
async def test_a_bad_row_is_refused_alone_and_its_neighbours_are_written(bad: str) -> None:
    """The batch is halved until the bad row stands alone; each row has its own verdict."""
    database = Database()
    database.bad = set(bad)
    verdicts = await asyncio.gather(*map(database.batches().submit, "abcdefgh"))
    assert verdicts == [f"refused {row}: DataError" if row in bad else f"wrote {row}" for row in "abcdefgh"]
    assert sorted(database.written) == sorted(set("abcdefgh") - set(bad))


async def test_what_cannot_be_refused_either_has_no_verdict() -> None:
    """If the last resort fails, its row alone is left without one; it comes again."""
    database = Database()
    database.bad = {"b"}

    async def refuse(row: str, error: Exception) -> str:
        raise OSError("away")

    batches = Batches("test", database.write, refuse=refuse)
    good, bad = await asyncio.gather(*map(batches.submit, "ab"), return_exceptions=True)
    assert good == "wrote a"
    assert isinstance(bad, DatabaseUnavailable)


async def test_a_failed_flush_fails_its_rows_and_no_others() -> None:
    """The next one is tried as if nothing had been."""
    database = Database()
    database.failure = psycopg.OperationalError("server closed the connection")
    batches = database.batches()
    ends = await asyncio.gather(*map(batches.submit, "ab"), return_exceptions=True)
    assert all(isinstance(end, DatabaseUnavailable) for end in ends)
    assert database.flushes == [["a", "b"]]
    database.failure = None
    assert await batches.submit("c") == "wrote c"


async def test_too_few_verdicts_are_a_failure_and_no_silence() -> None:
    """A writer that loses count leaves nobody waiting."""

    async def write(rows: Sequence[str]) -> list[str]:
        return ["one too few"] * (len(rows) - 1)

    batches: Batches[str, str] = Batches("test", write)
    async with asyncio.timeout(5):
        ends = await asyncio.gather(*map(batches.submit, "ab"), return_exceptions=True)
    assert all(isinstance(end, DatabaseUnavailable) for end in ends)


async def test_a_stuck_flush_is_left_behind() -> None:
    """After `patience` its rows fail and the next flush goes on beside it; nothing of it comes back later."""
    database = Database()
    database.free.clear()
    batches = database.batches(patience=0.05)
    stuck = batches.submit("a")
    await database.begun.wait()
    behind = batches.submit("b")
    with pytest.raises(DatabaseUnavailable):
        await stuck
    database.begun.clear()
    await database.begun.wait()
    database.free.set()
    assert await behind == "wrote b"
    assert database.written == ["b"]
    await batches.drain()


async def test_a_flush_that_nobody_answers_counts_as_two_deadlines() -> None:
    """`late` is told after half of the patience, and when it is left behind; one that ends in time tells nothing."""
    database = Database()
    told: list[float] = []
    loop = asyncio.get_running_loop()
    batches = Batches("test", database.write, patience=0.2, late=lambda: told.append(loop.time()))
    assert await batches.submit("quick") == "wrote quick"
    database.free.clear()
    began = loop.time()
    with pytest.raises(DatabaseUnavailable):
        await batches.submit("stuck")
    assert len(told) == 2
    assert told[0] - began >= 0.09
    assert told[1] - began >= 0.19
    database.free.set()
    assert await batches.submit("next") == "wrote next"
    await asyncio.sleep(0.15)  # longer than half of the patience: what its flush left armed would ring now
    assert len(told) == 2


async def test_a_flush_is_not_left_because_we_stood_still_ourselves() -> None:
    """Its answer may lie unread when the loop turns again: it is read first."""
    told: list[str] = []

    async def write(rows: Sequence[str]) -> list[str]:
        reader, writer = os.pipe()  # an answer that comes by the loop's own way, while it stands still
        answered = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(reader, answered.set_result, None)
        os.write(writer, b"x")
        time.sleep(0.5)  # noqa: ASYNC251  the loop itself is to stand still
        await answered
        asyncio.get_running_loop().remove_reader(reader)
        os.close(reader)
        os.close(writer)
        return list(rows)

    batches = Batches("test", write, patience=0.2, late=lambda: told.append("late"))
    assert await batches.submit("a") == "a"
    assert told == []


async def test_a_row_whose_submitter_has_left_is_not_written() -> None:
    """As long as it waits; in flight, it is written all the same and disturbs nobody."""
    database = Database()
    database.free.clear()
    batches = database.batches()
    flying = batches.submit("a")
    await database.begun.wait()
    leaving, staying = batches.submit("b"), batches.submit("c")
    flying.cancel()
    leaving.cancel()
    database.free.set()
    assert await staying == "wrote c"
    assert database.written == ["a", "c"]


async def test_a_batch_is_bounded_in_rows() -> None:
    """No flush takes more, and none waits for the bound to be reached."""
    database = Database()
    await asyncio.gather(*map(Batches("test", database.write, most_rows=3).submit, "abcdefgh"))
    assert [len(flush) for flush in database.flushes] == [3, 3, 2]
    assert database.written == list("abcdefgh")


async def test_a_batch_is_bounded_in_bytes_but_takes_any_single_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that alone outweighs the bound is written alone."""
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    light, heavy = Database(), Database()
    await asyncio.gather(*map(light.batches(weigh=5).submit, "abcde"))
    await asyncio.gather(*map(heavy.batches(weigh=11).submit, "abc"))
    assert [len(flush) for flush in light.flushes] == [2, 2, 1]
    assert [len(flush) for flush in heavy.flushes] == [1, 1, 1]


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound one hears at once that there is no room, and those who wait keep their place."""
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    database = Database()
    database.free.clear()
    batches = database.batches()
    flying = batches.submit("a")
    await database.begun.wait()
    waiting = [batches.submit("b"), batches.submit("c")]
    with pytest.raises(DatabaseUnavailable):
        await batches.submit("d")
    database.free.set()
    assert await asyncio.gather(flying, *waiting) == ["wrote a", "wrote b", "wrote c"]


async def test_drain_returns_once_nothing_waits() -> None:
    """At once if nothing does."""
    database = Database()
    batches = database.batches()
    await batches.drain()
    waiting = [batches.submit(row) for row in "ab"]
    await batches.drain()
    assert all(each.done() for each in waiting)


async def test_many_verdicts_are_told_a_few_at_a_time() -> None:
    """Between two handfuls the loop turns: what one of them goes on to do keeps no other waiting for all the rest."""
    database = Database()
    batches = database.batches()
    turns = 0
    told: list[int] = []

    async def hear(row: str) -> None:
        await batches.submit(row)
        told.append(turns)

    hearing = [asyncio.create_task(hear(f"{n}")) for n in range(5 * AT_ONCE)]
    while not all(each.done() for each in hearing):
        await asyncio.sleep(0)
        turns += 1
    assert max(told.count(turn) for turn in set(told)) <= AT_ONCE
    assert len(database.flushes) == 1


async def test_whoever_has_left_keeps_nobody_from_hearing() -> None:
    """Verdicts that nobody waits for take no turn of the loop."""
    database = Database()
    batches = database.batches()
    gone = [batches.submit(f"{n}") for n in range(20 * AT_ONCE)]
    stays = batches.submit("last")
    await asyncio.sleep(0)  # the flush has them
    for each in gone:
        each.cancel()
    turns = 0
    while not stays.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns < 15
    assert len(database.flushes) == 1


async def test_drain_returns_once_everybody_has_been_told() -> None:
    """A process that ends leaves nobody without the verdict on what was written."""
    database = Database()
    batches = database.batches()
    waiting = [batches.submit(f"{n}") for n in range(5 * AT_ONCE)]
    await batches.drain()
    assert all(each.done() for each in waiting)


async def test_whoever_ends_a_flush_leaves_nobody_waiting() -> None:
    """Also between two handfuls: who was not told hears that nobody knows."""
    database = Database()
    batches = database.batches()
    waiting = [batches.submit(f"{n}") for n in range(5 * AT_ONCE)]
    flights = [task for task in asyncio.all_tasks() if task.get_name().startswith("flush")]
    while not waiting[0].done():
        await asyncio.sleep(0)
    for flight in flights:
        flight.cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results[0] == "wrote 0"
    assert isinstance(results[-1], DatabaseUnavailable)
