"""What blocks the event loop is named, what does not is not, and the watch ends with what it stood beside."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from prometheus_client import REGISTRY

from app import log, loop_watch
from app.loop_watch import LoopWatch
from app.settings import Settings

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
ROOT = Path(__file__).parents[2]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged, through the gate that all lines pass."""
    stream = io.StringIO()
    log.configure(Settings(), process="worker", stream=stream)
    yield stream
    log.configure(Settings(), process="cli")


def lines(told: io.StringIO) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in told.getvalue().splitlines()]
    return [line for line in found if line["event"].startswith("event loop")]


def blocked() -> float:
    return REGISTRY.get_sample_value("qasid_loop_blocked_total") or 0.0


def observed() -> float:
    return REGISTRY.get_sample_value("qasid_loop_lag_seconds_count") or 0.0


async def turns(watch: LoopWatch) -> None:
    """Return once the loop has beaten again."""
    due = watch._due
    while watch._due == due:
        await asyncio.sleep(0.005)


async def until_told(watch: LoopWatch, told: io.StringIO, culprit: Callable[[], Awaitable[None]]) -> None:
    """Let it block until a line tells of it: on a machine that starves us, the watch may come too late for the first."""
    for _ in range(20):
        await turns(watch)
        await culprit()
        await turns(watch)
        if lines(told):
            return


async def sleeper() -> None:
    time.sleep(0.2)  # noqa: ASYNC251  what nobody should do


async def reckoner() -> None:
    until = time.thread_time() + 0.2
    while time.thread_time() < until:
        pass


@LOOPS
@pytest.mark.parametrize("culprit", [sleeper, reckoner])
def test_what_blocks_is_named_with_its_file_and_function(new_loop: Any, culprit: Any, told: io.StringIO) -> None:
    """Asleep or busy: one line with how long and where, innermost first, and one more in the counter."""
    before = blocked()

    async def scene() -> None:
        async with LoopWatch(beat=0.02, slow=0.05) as watch:
            await until_told(watch, told, culprit)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scene())
    [line] = lines(told)
    assert (line["event"], line["level"]) == ("event loop blocked", "warning")
    assert line["milliseconds"] >= 150
    file, number, function = line["function"][0].split(":")
    assert (file, function) == ("tests/unit/test_loop_watch.py", culprit.__name__)
    assert abs(int(number) - culprit.__code__.co_firstlineno) <= 3
    callers = [each.rpartition(":")[2].rpartition(".")[2] for each in line["function"][1:]]
    assert callers == ["until_told", "scene"]  # and not who runs the loop
    assert "dropped" not in line
    assert blocked() == before + 1


@LOOPS
def test_a_quick_loop_names_nothing_and_its_lag_is_exported(new_loop: Any, told: io.StringIO) -> None:
    """Many short callbacks, and nothing said; each lag is in the histogram."""
    before, seen = blocked(), observed()

    async def scene() -> None:
        async with LoopWatch(beat=0.01, slow=1.0):
            until = time.monotonic() + 0.3
            while time.monotonic() < until:
                await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scene())
    assert lines(told) == []
    assert blocked() == before
    assert observed() > seen


def test_a_late_beat_stands_for_those_that_it_kept_from_coming() -> None:
    """Whoever asked every 20 ms while the loop stood still for 200 was late by 200, 180, 160 …: each of them counts."""

    async def scene() -> None:
        async with LoopWatch(beat=0.02, slow=1.0) as watch:
            await turns(watch)
            time.sleep(0.2)  # noqa: ASYNC251
            await turns(watch)

    def slower(than: str) -> float:
        below = REGISTRY.get_sample_value("qasid_loop_lag_seconds_bucket", {"le": than}) or 0.0
        return observed() - below

    late, very_late = slower("0.05"), slower("0.15")
    asyncio.run(scene())
    assert slower("0.05") - late >= 7
    assert slower("0.15") - very_late >= 2


@LOOPS
def test_it_ends_with_what_it_stood_beside(new_loop: Any) -> None:
    """No thread and no timer is left, however short its life was, and whatever ended it."""

    async def scene(pause: float) -> None:
        with pytest.raises(KeyError):
            async with LoopWatch(beat=0.01, slow=0.02):
                await asyncio.sleep(pause)
                raise KeyError
        assert not [each for each in threading.enumerate() if each.name == "loop watch"]

    for pause in (0.0, 0.03):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(scene(pause))


def test_one_place_does_not_fill_the_log(monkeypatch: pytest.MonkeyPatch, told: io.StringIO) -> None:
    """Each time counts; the same place is told of once in a while, with how many were not; another place at once."""
    monkeypatch.setattr(loop_watch, "ANY", 0.0)
    before = blocked()

    async def scene() -> None:
        async with LoopWatch(beat=0.02, slow=0.05) as watch:
            for culprit, times in ((sleeper, 3), (reckoner, 4)):
                while blocked() < before + times:
                    await turns(watch)
                    await culprit()
                    await turns(watch)

    asyncio.run(scene())
    assert [line["function"][0].rpartition(":")[2] for line in lines(told)] == ["sleeper", "reckoner"]
    assert [line["count"] for line in lines(told)] == [0, 2]


def test_what_stands_still_for_long_is_told_before_it_ends(monkeypatch: pytest.MonkeyPatch, told: io.StringIO) -> None:
    """A loop that never turns again would tell of nothing: the thread does, once."""
    monkeypatch.setattr(loop_watch, "STUCK", 0.3)
    seen: list[int] = []

    async def scene() -> None:
        async with LoopWatch(beat=0.02, slow=0.05) as watch:
            await turns(watch)
            time.sleep(1.0)  # noqa: ASYNC251
            seen.append(len(lines(told)))
            await turns(watch)

    asyncio.run(scene())
    assert seen == [1]
    assert [line["event"] for line in lines(told)] == ["event loop stands still", "event loop blocked"]


STOPPED = """
import asyncio, sys, time
from app import log
from app.loop_watch import LoopWatch
from app.settings import Settings
log.configure(Settings(log_format="json"), process="worker")
async def work():
    until = time.monotonic() + 3.0
    async with LoopWatch():
        print("ready", flush=True)
        while time.monotonic() < until:
            for _ in range(2000):
                pass
            await asyncio.sleep(0)
asyncio.run(work())
"""


def test_a_process_that_stood_still_as_a_whole_is_no_fault_of_a_line() -> None:
    """SIGSTOP for a second, again and again, in the midst of callbacks: nobody is blamed."""
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "ready\n"
        for _ in range(2):
            os.kill(child.pid, signal.SIGSTOP)
            time.sleep(1.0)
            os.kill(child.pid, signal.SIGCONT)
            time.sleep(0.2)
        said = child.stderr.read()
    assert "event loop" not in said, said
