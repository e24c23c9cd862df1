"""One run from beginning to end: fleet, provider, people, faults, drain; what it saw goes to the checker as evidence."""

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from tests.chaos import evidence, runs, workload
from tests.chaos.crashes import Crashes
from tests.chaos.database import DISK_BYTES
from tests.chaos.evidence import Broken, Evidence, Fault, Kept, Memory
from tests.chaos.fleet import ROOT, SPOOLING, Fleet
from tests.chaos.monkey import SCHEDULES, Monkey
from tests.chaos.provider import Provider, simulated
from tests.chaos.runs import Policy, Run, Size

Say = Callable[[str], None]
_PROGRESS_SECONDS = 4.0
_SPOOL_SECONDS = 0.2
_ROLL_SECONDS = 30.0
_QUIET = 3  # looks in a row, half a second apart, that must find nothing to do


class Rig:
    """Holds what a run needs while it runs."""

    def __init__(
        self, run: Run, size: Size, name: str, seed: int, policy: Policy, fleet: Fleet, provider: Provider
    ) -> None:
        self.run, self.size, self.size_name, self.seed, self.policy = run, size, name, seed, policy
        self.fleet, self.provider = fleet, provider
        self.faults: Callable[[], Sequence[Fault]] = tuple
        self.broken: list[Broken] = []
        self.memory: list[Memory] = []
        self.spool: list[Kept] = []
        self.stopped: tuple[float, float] | None = None

    async def play(self) -> None:
        """People write, faults happen; returns when both are over."""
        if self.run.crashes:
            await self._crash()
            return
        async with asyncio.TaskGroup() as together:
            together.create_task(self._write(self.size.shape))
            if self.run.stop:
                together.create_task(self._stop_statuses())
            if self.run.monkey:
                monkey = Monkey(self.fleet, self.seed, schedule=SCHEDULES[self.size_name])
                self.faults = lambda: [_fault(event) for event in monkey.events]
                together.create_task(monkey.run(self.size.shape.seconds))
            else:
                together.create_task(self._weigh_early())

    async def drain(self) -> float | None:
        """Seconds until nothing was left to do; None if that took over DRAIN_SECONDS after the last fault.

        The provider's faults go on for a while: what piled up behind the others meets them too.
        """
        began, quiet, calm = time.monotonic(), 0, False
        while (waited := time.monotonic() - began) < self.size.calm_after + runs.DRAIN_SECONDS:
            if not calm and waited > self.size.calm_after:
                self.provider.calm()
                calm = True
            left = await evidence.behind(self.fleet.superuser_url)
            at_rest = left is not None and left[:2] == (0, 0) and self.provider.quiet and not self.look_at_spool()
            quiet = quiet + 1 if at_rest else 0
            if quiet == _QUIET:
                return waited
            await asyncio.sleep(0.5)
        return None

    async def tell(self, say: Say) -> None:
        """A line of progress every few seconds, until cancelled."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            left = await evidence.behind(self.fleet.superuser_url)
            accepted = sum(send.accepted for send in self.provider.sandbox.ledger.arrivals)
            rows = f"{left[2]} in doubt, {left[0]} lanes behind" if left else "the database is away"
            seen = [f"{fault.kind} {fault.target}" for fault in self.faults() if fault.kind != "lost_commit"]
            last = ", ".join(seen[-3:])
            say(
                f"{time.monotonic() - began:5.0f} s  inbound {self.provider.acknowledged}/{len(self.provider.planned)}, "
                f"accepted {accepted}, {rows}  {last}"
            )

    async def watch_spool(self) -> None:
        """Until cancelled."""
        while True:
            self.look_at_spool()
            await asyncio.sleep(_SPOOL_SECONDS)

    def look_at_spool(self) -> int:
        """Bytes that lie there now."""
        bytes = self.fleet.spooled()
        if not self.spool or self.spool[-1].bytes != bytes:
            self.spool.append(Kept(at=time.time(), bytes=bytes))
        return bytes

    def weigh(self, early: bool) -> None:
        for member in self.fleet.members:
            self.memory.append(Memory(name=member.name, when="tenth" if early else "drained", bytes=member.rss()))

    async def _write(self, shape: workload.Shape, wave: int = 0) -> None:
        planned = workload.items(self.seed, shape, wave=wave)
        await self.provider.traffic(workload.webhooks(self.seed, planned, wave=wave))

    async def _crash(self) -> None:
        crashes = Crashes(self.fleet, self.seed, times=self.size.times)
        self.faults = lambda: [_fault(event) for event in crashes.events]

        async def waves() -> None:
            for wave in itertools.count():
                await self._write(runs.WAVE, wave)

        writing = asyncio.create_task(waves())
        await _first_of(crashes.run(), writing)
        self.broken += [Broken(what=what, target="crash points") for what in crashes.violations]

    async def _stop_statuses(self) -> None:
        await asyncio.sleep(self.size.shape.seconds * 0.3)
        self.stopped = (time.time(), time.time() + self.size.stop)
        self.provider.sandbox.statuses.stop(self.size.stop)

    async def _weigh_early(self) -> None:
        await asyncio.sleep(self.size.shape.seconds / 10)
        self.weigh(early=True)


async def played(
    run: Run, name: str, seed: int, policy: Policy, say: Say, *, folder: Path | None = None, source: Path = ROOT
) -> Evidence:
    """Set up, play, drain, read: a run's evidence. Raises RigFailed and whatever else goes wrong with the rig itself.

    `source`: the tree that the processes run from.
    """
    folder = folder or ROOT / ".qasid" / "chaos" / f"{run.name}-{policy}-{seed}"
    secret = secrets.token_hex(16)
    rows = SCHEDULES[name].rows if run.monkey else ()
    disk = DISK_BYTES if any(row.kind == "disk_full" for row in rows) else None
    async with simulated(run, seed, secret) as provider, Fleet(folder, source=source, disk=disk) as fleet:
        sandbox = provider.sandbox
        toml = runs.configuration(seed, policy, assistant_url=sandbox.assistant_url, graph_url=sandbox.graph_url)
        await fleet.configure(toml, {"CHAOS_SECRET": secret})
        await fleet.start()
        provider.open(fleet.webhook_urls)
        rig = Rig(run, runs.SIZES[name], name, seed, policy, fleet, provider)
        say("the fleet is up")
        beside = [asyncio.create_task(rig.tell(say)), asyncio.create_task(rig.watch_spool())]
        try:
            await rig.play()
            say("the load and the faults are over")
            drained = await rig.drain()
        finally:
            for task in beside:
                task.cancel()
        if not run.monkey and not run.crashes:
            rig.weigh(early=False)
        webs = {url: web.name for url, web in zip(fleet.webhook_urls, fleet.webs, strict=True)}
        say("at rest" if drained is not None else "NOT at rest")
        await fleet.stop()
        rig.look_at_spool()
        provider.collect()
        found = await evidence.rows(fleet.superuser_url)
        return Evidence(
            run=run.name,
            policy=policy,
            seed=seed,
            planned=provider.planned,
            deliveries=list(sandbox.ledger.deliveries),
            sends=sandbox.ledger.lines(),
            asked=provider.asked,
            faults=list(rig.faults()),
            memory=rig.memory,
            logged=evidence.logged(folder, re.compile(rf"q{seed}ct\d\dz")),
            broken=rig.broken + _broken(fleet),
            outages=fleet.database.outages,
            lives=fleet.lives,
            breakers=evidence.breakers(folder),
            probes=fleet.proxy.probes,
            spool=rig.spool,
            webs=webs,
            spooling=SPOOLING,
            stopped=rig.stopped,
            drained_in=drained,
            **found,
        )


def _broken(fleet: Fleet) -> list[Broken]:
    slow = [roll for roll in fleet.rolls if roll.seconds > _ROLL_SECONDS or roll.code not in (0, -15)]
    return [
        *(Broken(what=f"stopped in {roll.seconds:.1f} s, with code {roll.code}", target=roll.name) for roll in slow),
        *(
            Broken(what=f"died with code {d.code}, and nobody ordered it: {d.said}", target=d.name)
            for d in fleet.deaths
        ),
    ]


def _fault(event: object) -> Fault:
    return msgspec.convert(event, Fault, from_attributes=True)


async def _first_of(work: Awaitable[object], traffic: asyncio.Task[None]) -> None:
    """Wait for `work`, then end the traffic; if the traffic ends first, it has failed."""
    task = asyncio.ensure_future(work)
    await asyncio.wait((task, traffic), return_when=asyncio.FIRST_COMPLETED)
    ended = [task] if task.done() else [traffic]
    for each in (task, traffic):
        each.cancel()
        with suppress(asyncio.CancelledError):
            if each not in ended:
                await each
    for each in ended:
        each.result()
