"""Carries out a schedule of faults, seeded: the same seed asks for the same faults at the same times.

It does things to a fleet and writes down what it did and when. Whether the service bears it is the checker's to say.
"""

import asyncio
import functools
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import get_args

import click
import psycopg
from msgspec import Struct

from tests.chaos.database import Degraded
from tests.chaos.fleet import Fleet
from tests.chaos.member import Member
from tests.chaos.schedule import SCHEDULES, Kind, Row, Schedule

__all__ = ["SCHEDULES", "Event", "Monkey", "Schedule"]

POSTGRES = "postgres"  # the target of what is done to the database or to the way there
LATENCY = (0.1, 0.05)  # seconds: mean, jitter
BLOCK_SECONDS = 5
CLOCK_SECONDS = 3600
BREATH_SECONDS = 3.0  # between two outages of the database
ATTENTION_SECONDS = 60.0  # for all members to be at work after the last fault
FOR_EVER = math.inf  # amid the faults a start may take as long as they last


class Event(Struct, frozen=True, kw_only=True):
    """What was done to whom, in unix seconds; a kill ends when its victim is at work again."""

    kind: str
    target: str
    began: float
    ended: float


class Monkey:
    """`run` it once, beside the load."""

    def __init__(self, fleet: Fleet, seed: int, *, schedule: Schedule) -> None:
        self._fleet, self._seed, self._schedule = fleet, seed, schedule
        self._begun: dict[int, tuple[str, str, float]] = {}
        self._over: list[Event] = []
        self.missed: list[str] = []  # faults of the schedule that could not be done, and why
        self._outage = asyncio.Lock()
        # What is being done to a member is not disturbed: one that is paused is not killed meanwhile.
        self._of = {member.name: asyncio.Lock() for member in fleet.members}
        self._faults: dict[Kind, Callable[[random.Random, float], Awaitable[None]]] = {
            "kill": self._kill,
            "pause": self._pause,
            "roll": self._roll,
            "block": self._block,
            "clock": self._clock,
            "restart": self._restart,
            "freeze": self._freeze,
            "terminate": self._terminate,
            "latency": self._latency,
            "blackhole": self._blackhole,
            "reset": self._reset,
            "half_close": self._half_close,
            "disk_full": self._disk_full,
        } | {how: functools.partial(self._degrade, how) for how in get_args(Degraded)}

    @property
    def events(self) -> list[Event]:
        """All so far by their beginning; what is in effect ends now."""
        now = time.time()
        under_way = [Event(kind=k, target=t, began=began, ended=now) for k, t, began in self._begun.values()]
        lost = [Event(kind="lost_commit", target=e.of, began=e.at, ended=e.at) for e in self._fleet.proxy.lost]
        return sorted([*self._over, *under_way, *lost], key=lambda event: event.began)

    @property
    def under_way(self) -> bool:
        """Whether something is being done, or what it was done to is not back yet."""
        return bool(self._begun)

    async def run(self, duration: float) -> None:
        """Disturb for so many seconds, then undo all: returns when nothing is stopped and every member is at work.

        Raises RigFailed when a member does not come back.
        """
        await self._fleet.proxy.lost_commit(self._schedule.lost_commits)
        until = time.monotonic() + duration
        try:
            # What is under way at the end may end: a pause that is broken off would be no pause.
            async with asyncio.TaskGroup() as self._beside:
                for row in self._schedule.rows:
                    self._beside.create_task(self._repeat(row, until), name=row.kind)
        finally:
            await self._fleet.proxy.calm()
        await self._fleet.ready(ATTENTION_SECONDS)

    async def _repeat(self, row: Row, until: float) -> None:
        chance = random.Random(f"{self._seed} {row.kind}")
        gap: tuple[float, float] | None = row.first
        while gap is not None:
            at = time.monotonic() + chance.uniform(*gap)
            if at >= until:
                return
            await asyncio.sleep(at - time.monotonic())
            await self._faults[row.kind](chance, chance.uniform(*row.lasts))
            gap = row.every

    @asynccontextmanager
    async def _noted(self, kind: Kind, target: str) -> AsyncIterator[None]:
        began, key = time.time(), len(self._over) + len(self._begun)
        while key in self._begun:
            key += 1
        self._begun[key] = (kind, target, began)
        try:
            yield
        finally:
            del self._begun[key]
            self._over.append(Event(kind=kind, target=target, began=began, ended=time.time()))

    # --- to a member ---

    async def _kill(self, chance: random.Random, lasts: float) -> None:
        if (member := self._pick(chance, self._fleet.members)) is not None:
            dead = asyncio.Event()
            self._beside.create_task(self._kill_one(member, dead))
            await dead.wait()

    async def _kill_one(self, member: Member, dead: asyncio.Event) -> None:
        async with self._noted("kill", member.name):
            async with self._of[member.name]:
                await member.kill()
            dead.set()
            await member.ready(FOR_EVER)

    async def _pause(self, chance: random.Random, lasts: float) -> None:
        if (member := self._pick(chance, self._fleet.workers)) is not None:
            async with self._of[member.name], self._noted("pause", member.name):
                await member.pause(lasts)

    async def _roll(self, chance: random.Random, lasts: float) -> None:
        """One after the other, as a new release comes."""
        rolled = self._schedule.rolled
        for member in [*chance.sample(self._fleet.webs, rolled), *chance.sample(self._fleet.workers, rolled)]:
            async with self._of[member.name], self._noted("roll", member.name):
                await member.roll()
                await member.ready(FOR_EVER)

    async def _block(self, chance: random.Random, lasts: float) -> None:
        """The event loop stands still at some claim; it is waited for at most `lasts` seconds."""
        if (member := self._pick(chance, self._fleet.workers)) is not None:
            async with self._of[member.name]:
                async with self._noted("roll", member.name):
                    await member.arm(f"lane.claimed:{self._schedule.block_at}:block={BLOCK_SECONDS}")
                    await member.ready(FOR_EVER)
                async with self._noted("block", member.name):
                    blocked = await member.stalled(lasts)
            if not blocked:
                self._miss(f"{member.name} did not reach the claim that was to block it")

    async def _clock(self, chance: random.Random, lasts: float) -> None:
        """One worker's wall clock is an hour off, its monotonic clock is right, as after a bad NTP step."""
        if (faketime := _libfaketime()) is None:
            self._miss("clock ± 1 h: libfaketime is not installed")
            return
        if (member := self._pick(chance, self._fleet.workers)) is not None:
            sign = chance.choice("+-")
            async with self._of[member.name], self._noted("clock", member.name):
                await member.roll({
                    "LD_PRELOAD": str(faketime),
                    "FAKETIME": f"{sign}{CLOCK_SECONDS}",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                    "DONT_FAKE_MONOTONIC": "1",
                })  # fmt: skip
                await asyncio.sleep(lasts)
                await member.roll()
                await member.ready(FOR_EVER)

    def _pick(self, chance: random.Random, among: list[Member]) -> Member | None:
        """One of those that nothing is being done to; None if there is none, and the fault is left out."""
        ordered = chance.sample(among, len(among))  # the same draws, whoever is busy
        return next((member for member in ordered if not self._of[member.name].locked()), None)

    def _miss(self, what: str) -> None:
        """Visible, since a fault that did not happen shows nothing."""
        self.missed.append(what)
        click.echo(f"  skipped: {what}", err=True)

    # --- to the database ---

    async def _restart(self, chance: random.Random, lasts: float) -> None:
        async with self._alone(), self._noted("restart", POSTGRES):
            await self._fleet.database.restart(lasts)

    async def _freeze(self, chance: random.Random, lasts: float) -> None:
        async with self._alone(), self._noted("freeze", POSTGRES):
            await self._fleet.database.freeze(lasts)

    async def _terminate(self, chance: random.Random, lasts: float) -> None:
        async with self._outage, self._noted("terminate", POSTGRES):
            with suppress(psycopg.OperationalError):  # still recovering: there is nobody to terminate
                await self._fleet.database.terminate_backends()

    async def _degrade(self, how: Degraded, chance: random.Random, lasts: float) -> None:
        async with self._alone(), self._noted(how, POSTGRES):
            try:
                async with self._fleet.database.degraded(how):
                    await asyncio.sleep(lasts)
            except psycopg.OperationalError as error:
                self._miss(f"{how}: {error}")

    async def _disk_full(self, chance: random.Random, lasts: float) -> None:
        if self._fleet.database.disk is None:
            self._miss("disk_full: no tmpfs can be mounted here, which takes root")
            return
        async with self._alone(), self._noted("disk_full", POSTGRES):
            await self._fleet.database.fill_disk(lasts)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One outage at a time, and the service sees the database again before the next."""
        async with self._outage:
            yield
            await asyncio.sleep(BREATH_SECONDS)

    # --- to the way there ---

    async def _blackhole(self, chance: random.Random, lasts: float) -> None:
        async with self._alone(), self._noted("blackhole", POSTGRES):
            await self._fleet.blackhole(lasts)

    async def _latency(self, chance: random.Random, lasts: float) -> None:
        async with self._noted("latency", POSTGRES):
            await self._fleet.proxy.latency(*LATENCY)
            await asyncio.sleep(lasts)
            await self._fleet.proxy.latency(0.0, 0.0)

    async def _reset(self, chance: random.Random, lasts: float) -> None:
        async with self._noted("reset", POSTGRES):
            await self._fleet.proxy.reset()

    async def _half_close(self, chance: random.Random, lasts: float) -> None:
        async with self._noted("half_close", POSTGRES):
            await self._fleet.proxy.half_close()


def _libfaketime() -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
