"""Looks whether planted bugs are found: one small run for each, stopped as soon as an invariant that may find it is broken.

The same runs without a bug come first: what they find is a mistake of the rig, not a bug found.
"""

import asyncio
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import click
import msgspec
import psycopg
from msgspec import Struct

from tests.chaos import answers, checker, degraded, doubles, evidence, manners, planting, report, runs, workload
from tests.chaos.evidence import Evidence, Fault, Kept
from tests.chaos.fleet import ROOT, SPOOL_BYTES, SPOOLING, Fleet
from tests.chaos.member import RigFailed
from tests.chaos.monkey import Monkey
from tests.chaos.mutants import MUTANTS
from tests.chaos.planting import Mutant
from tests.chaos.provider import Provider, simulated
from tests.chaos.readings import Violation
from tests.chaos.scenes import SCENES, Scene

Say = Callable[[str], None]

LOOK_SECONDS = 1.5
SETTLED_SECONDS = 2.5  # what is younger than this may not yet be in rows, ledger and events alike
# Rules that hold at every moment. The others are asked when all is at rest.
AT_ANY_TIME: tuple[checker.Check, ...] = (
    checker.stored_once,
    doubles.sent_once,
    doubles.in_turn,
    manners.waits_as_told,
    checker.every_lane_waits_for_something,
    checker.no_reply_to_ourselves,
    checker.owners_only,
    answers.asked_once,
    manners.webhooks_answered,
    degraded.breakers_open,
    degraded.probes_paced,
)
# So does this one, but an outage is known only when it is over: asked while nothing is being done to anybody. A process
# whose breaker stays open is never ready again, and the rig would give up on it before all is at rest.
AMID_NO_FAULT: tuple[checker.Check, ...] = (degraded.breakers_close,)
_MACHINE = "tests/integration/test_state_machine.py"
_MACHINE_SECONDS = 400
_SOUND = "sound"  # the tree without a bug


class Catch(Struct, frozen=True, kw_only=True):
    """What a hunt brought: by which invariant (0: the state machine), after how many seconds, and what it says."""

    by: int
    seconds: float
    what: str
    history: str = ""


class _Hunt:
    """One run of a scene against one tree."""

    def __init__(self, scene: Scene, seed: int, fleet: Fleet, provider: Provider) -> None:
        self._scene, self._seed, self._fleet, self._provider = scene, seed, fleet, provider
        self._monkey = Monkey(fleet, seed, schedule=scene.schedule) if scene.schedule else None
        self._drained: float | None = None
        self._began = time.time()

    async def play(self) -> None:
        """Load, faults, and the wait for rest."""
        planned = workload.items(self._seed, self._scene.shape)
        async with asyncio.TaskGroup() as together:
            together.create_task(self._provider.traffic(workload.webhooks(self._seed, planned)))
            if self._monkey:
                together.create_task(self._monkey.run(self._scene.shape.seconds))
            if self._scene.armed:
                together.create_task(self._fleet.workers[0].arm(self._scene.armed))
            if self._scene.mute:
                together.create_task(self._fall_silent(*self._scene.mute))
        began, quiet = time.monotonic(), 0
        while time.monotonic() < began + self._scene.rest and quiet < 2:
            left = await evidence.behind(self._fleet.superuser_url)
            at_rest = left is not None and left[:2] == (0, 0) and self._provider.quiet and not self._fleet.spooled()
            quiet = quiet + 1 if at_rest else 0
            await asyncio.sleep(0.4)
        if quiet == 2:
            self._drained = time.monotonic() - began

    async def _fall_silent(self, after: float, seconds: float) -> None:
        await asyncio.sleep(after)
        self._provider.sandbox.statuses.stop(seconds)

    async def look(self, by: Collection[int], *, over: bool) -> tuple[Violation, Evidence] | None:
        """The first violation of one of these invariants. `over`: the run is, so every rule can be asked."""
        try:
            seen = await self._seen(over=over)
        except (psycopg.Error, OSError, TimeoutError):
            if over:
                raise
            return None  # the database is away
        amid_none = () if self._monkey and self._monkey.under_way else AMID_NO_FAULT
        now = [r for r in AT_ANY_TIME + amid_none if not (self._scene.spool and r is checker.stored_once)]
        rules = [rule for _, _, rule in checker.CHECKS] if over else now
        return next(((found, seen) for rule in rules for found in rule(seen) if found.invariant in by), None)

    async def _seen(self, *, over: bool) -> Evidence:
        """Ledger first, rows after it: what the ledger says must be in the rows by then."""
        sandbox = self._provider.sandbox
        until = time.time() - (0.0 if over else SETTLED_SECONDS)
        deliveries = list(sandbox.ledger.deliveries)
        sends = [line for line in sandbox.ledger.lines() if line.t < until]
        heard = {id for d in deliveries if d.kind == "inbound" and d.status == 200 for id in d.ids}
        self._provider.collect()
        async with asyncio.timeout(60.0 if over else 3.0):
            found = await evidence.rows(self._fleet.superuser_url)
        webs = {url: web.name for url, web in zip(self._fleet.webhook_urls, self._fleet.webs, strict=True)}
        return Evidence(
            run=self._scene.run.name,
            policy="resend",
            seed=self._seed,
            planned=[item for item in self._provider.planned if over or item.token in heard],
            deliveries=deliveries,
            sends=sends,
            asked=self._provider.asked,
            faults=self._faults(),
            logged=evidence.logged(self._fleet.folder, re.compile(rf"q{self._seed}ct\d\dz")) if over else (),
            outages=self._fleet.database.outages,
            lives=self._fleet.lives,
            breakers=evidence.breakers(self._fleet.folder),
            probes=self._fleet.proxy.probes,
            spool=[Kept(at=time.time(), bytes=self._fleet.spooled())] if over else (),
            webs=webs,
            spooling=SPOOLING if self._scene.spool else None,
            drained_in=self._drained,
            **found,
        )

    def _faults(self) -> list[Fault]:
        """A crash point goes off when it is passed: until now, for all that is known."""
        events = self._monkey.events if self._monkey else ()
        found = [msgspec.convert(event, Fault, from_attributes=True) for event in events]
        if self._scene.armed:
            worker = self._fleet.workers[0].name
            found.append(Fault(kind="block", target=worker, began=self._began, ended=time.time()))
        return found


async def hunted(scene: Scene, seed: int, source: Path, folder: Path, by: Collection[int]) -> Catch | None:
    """Play a scene with the tree `source`; what breaks one of the invariants `by` first. Raises RigFailed."""
    secret = secrets.token_hex(16)
    async with (
        simulated(scene.run, seed, secret) as provider,
        Fleet(folder, source=source, spool=SPOOL_BYTES if scene.spool else None) as fleet,
    ):
        sandbox = provider.sandbox
        toml = runs.configuration(seed, "resend", assistant_url=sandbox.assistant_url, graph_url=sandbox.graph_url)
        await fleet.configure(toml, {"CHAOS_SECRET": secret})
        await fleet.start()
        provider.open(fleet.webhook_urls)
        hunt = _Hunt(scene, seed, fleet, provider)
        began = time.monotonic()
        playing = asyncio.create_task(hunt.play())
        try:
            found, over = None, False
            while found is None and not over:
                over = bool((await asyncio.wait({playing}, timeout=LOOK_SECONDS))[0])
                if over:
                    _result(playing)
                found = await hunt.look(by, over=over)
        finally:
            playing.cancel()
            with suppress(asyncio.CancelledError, Exception):  # what failed in it was told above, or no longer matters
                await playing
        if found is None:
            return None
        violation, seen = found
        # The rule speaks of a whole run's patience; a scene has its own.
        what = violation.what.replace(f"{runs.DRAIN_SECONDS:g} s after", f"{scene.rest:g} s after")
        history = "\n".join(report.histories(seen, [(violation.invariant, scene.what, [violation])]))
        return Catch(by=violation.invariant, seconds=time.monotonic() - began, what=what, history=history)


def _result(playing: asyncio.Task[None]) -> None:
    """Raises what it has failed with: as it is, not as a TaskGroup wraps it."""
    try:
        playing.result()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def tested(tree: Path, test: str) -> Catch | None:
    """Run one test in this tree; none: the state machine of FAULTS.md 6. Raises RigFailed if what fails is not a rule."""
    if not test:
        file = tree / _MACHINE
        # What the smallest example is does not matter here, and looking for it takes minutes.
        file.write_text(file.read_text().replace("machine(EXAMPLES)", "machine(EXAMPLES, shrink=False)"))
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider", test or _MACHINE),
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_MACHINE_SECONDS):
            said = (await process.communicate())[0].decode(errors="replace")
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        raise
    if process.returncode == 0:
        return None
    # What the model or the test says; any other failure is one of the test itself.
    rule = r"^E +assert (.+)|^E +AssertionError: (.+)" if test else r"^E +AssertionError: .*?at [\d.]+ s: ([^'\"]+)"
    if process.returncode != 1 or not (told := re.search(rule, said, re.MULTILINE)):
        raise RigFailed(f"{test or _MACHINE}: {said[-2000:]}")
    return Catch(by=0, seconds=time.monotonic() - began, what=next(filter(None, told.groups())))


# What ends one hunt, and none of the others.
UNPLAYED = (RigFailed, LookupError, TimeoutError, OSError)


async def hunt_all(names: Collection[str], seed: int, folder: Path, say: Say) -> list[tuple[Mutant, Catch | None]]:
    """Each mutant of these names (none: all), and first each scene that they need, without a bug.

    Raises RigFailed: a scene finds something where no bug was planted, or a run could not be played; the rest was.
    """
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    # As it stands now: it takes a while, and somebody may be working here.
    shutil.rmtree(folder / "trees", ignore_errors=True)
    await asyncio.to_thread(planting.copied, folder / "trees" / _SOUND)
    failed: list[str] = []
    found: list[tuple[Mutant, Catch | None]] = []
    for name in dict.fromkeys(mutant.scene for mutant in chosen if mutant.scene in SCENES):
        try:
            catch = await _one(name, None, seed, folder)
        except UNPLAYED as error:
            failed.append(f"the scene {name} without a bug: {error!r}")
            say(failed[-1])
            continue
        if catch:
            failed.append(f"without a bug, the scene {name} finds {catch.by}: {catch.what}\n{catch.history}")
        say(failed[-1] if catch else f"{name}: without a bug nothing is found")
    for test in dict.fromkeys(mutant.test for mutant in chosen if mutant.test):
        if await tested(folder / "trees" / _SOUND, test):
            failed.append(f"{test} fails without a bug")
    for mutant in chosen:
        try:
            catch = await _one(mutant.scene, mutant, seed, folder)
        except UNPLAYED as error:
            failed.append(f"{mutant.name}: {error!r}")
            say(failed[-1])
            continue
        found.append((mutant, catch))
        say(f"{mutant.name}: {f'{catch.seconds:.0f} s, {catch.by}: {catch.what}' if catch else 'SURVIVES'}")
    if failed:
        raise RigFailed("\n".join(failed))
    return found


async def _one(name: str, mutant: Mutant | None, seed: int, folder: Path) -> Catch | None:
    # Each in a place of its own: the database of a test that has just ended may still be writing there.
    tree = folder / "trees" / (mutant.name if mutant else _SOUND)
    if mutant is not None:
        await asyncio.to_thread(planting.copied, tree, folder / "trees" / _SOUND)
        planting.plant(mutant, tree)
        if mutant.scene not in SCENES:
            return await tested(tree, mutant.test)
    by = mutant.by if mutant else {number for number, _, _ in checker.CHECKS}
    return await hunted(SCENES[name], seed, tree, folder / "run", by)


def table(found: list[tuple[Mutant, Catch | None]]) -> str:
    """In Markdown, as docs/mutants.md has it."""
    lines = ["| mutant | what is planted | found by | after | what it says |", "|---|---|---|---|---|"]
    for mutant, catch in found:
        how = (
            "**survives** | | "
            if catch is None
            else f"{_by(mutant, catch)} | {catch.seconds:.0f} s | {_line(catch.what)}"
        )
        lines.append(f"| `{mutant.name}` | {mutant.breaks} | {how} |")
    return "\n".join(lines)


def _by(mutant: Mutant, catch: Catch) -> str:
    if mutant.scene == "suite":
        return f"`{mutant.test.rpartition('::')[2]}`"
    return "state machine" if mutant.scene == "machine" else f"{catch.by}, scene {mutant.scene}"


def _line(text: str) -> str:
    """Names that change from run to run are left out."""
    plain = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "…", text)
    return " ".join(plain.replace("|", "/").split())[:160]


def main(names: Collection[str], seed: int, folder: Path | None) -> int:
    """The count of mutants that survive. Prints the table."""
    began = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"[{time.monotonic() - began:6.1f}] {text}", err=True)

    place = folder or ROOT / ".qasid" / "chaos" / "mutants"
    place.mkdir(parents=True, exist_ok=True)
    found = asyncio.run(hunt_all(names, seed, place, say))
    click.echo(table(found))
    return sum(catch is None for _, catch in found)
