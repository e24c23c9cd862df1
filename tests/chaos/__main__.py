"""`python -m tests.chaos`: plays runs, prints what they found. Exit code 0: all held; 1: a violation; 2: the rig failed."""

import asyncio
import gc
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import click
import msgspec

from tests.chaos import checker, hunt, report, runs
from tests.chaos.fleet import ROOT
from tests.chaos.mutants import MUTANTS
from tests.chaos.play import played
from tests.chaos.runs import Policy

VIOLATED, RIG_FAILED = 1, 2


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--run", "name", type=click.Choice(sorted(runs.RUNS)), default="A", show_default=True)
@click.option("--size", type=click.Choice(list(runs.SIZES)), default="full", show_default=True)
@click.option("--seed", type=click.IntRange(0), help="Of everything that is drawn; printed first. Unset: by chance.")
@click.option("--policy", type=click.Choice(["resend", "park"]), help="Unset: each policy that the run is meant for.")
@click.option(
    "--mutants", is_flag=True, help="Plant bugs instead, one after the other: is each found? Names: which ones."
)
@click.argument("names", nargs=-1)
@click.option("--source", type=click.Path(exists=True, file_okay=False, path_type=Path), default=ROOT, hidden=True)
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), help="For logs and database; it is emptied."
)
@click.option(
    "--evidence", type=click.Path(dir_okay=False, path_type=Path), help="Write all that was seen there, as JSON."
)
def main(
    name: str,
    size: str,
    seed: int | None,
    policy: Policy | None,
    mutants: bool,
    names: tuple[str, ...],
    source: Path,
    folder: Path | None,
    evidence: Path | None,
) -> None:
    """Exactly once, under faults: Qasid's real processes, judged by what the recipients got.

    Runs: A every fault; B and statuses that never come; C and statuses that stop; E no faults; P a kill at each crash
    point. Loopback only; it ends by itself, and what it started ends with it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if mutants:
        sys.exit(_mutants(names, seed or 0, folder))
    if names:
        raise click.UsageError("Names are those of mutants: `--mutants NAME…`.")
    first = seed if seed is not None else random.SystemRandom().randrange(100_000)
    run = runs.RUNS[name]
    violations = 0
    for at in range(first, first + runs.SIZES[size].seeds):
        for each in (policy,) if policy else run.policies:
            click.echo(f"run {name} ({run.what}), {size}, {each}, seed {at}", err=True)
            violations += _one(name, size, at, each, source, folder, evidence)
    sys.exit(VIOLATED if violations else 0)


def _mutants(names: tuple[str, ...], seed: int, folder: Path | None) -> int:
    """The exit code."""
    if unknown := set(names) - {mutant.name for mutant in MUTANTS}:
        raise click.UsageError(f"No mutant {', '.join(sorted(unknown))}; docs/mutants.md lists them.")
    try:
        return VIOLATED if hunt.main(names, seed, folder) else 0
    except Exception:  # noqa: BLE001 - as below
        traceback.print_exc()
        return RIG_FAILED


def _one(
    name: str, size: str, seed: int, policy: Policy, source: Path, folder: Path | None, evidence: Path | None
) -> int:
    """The count of violations."""
    began = time.monotonic()
    # Its garbage is little and its live objects are many: a collection would stop the simulated provider for a while.
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)

    def say(text: str) -> None:
        click.echo(f"[{time.monotonic() - began:6.1f}] {text}", err=True)

    try:
        found = asyncio.run(played(runs.RUNS[name], size, seed, policy, say, folder=folder, source=source))
        if evidence is not None:
            evidence.write_bytes(msgspec.json.encode(found))
        say("checking")
        verdicts = checker.check(found)
    except Exception:  # noqa: BLE001 - whatever it was, it is told, and is no verdict on the service
        traceback.print_exc()
        sys.exit(RIG_FAILED)
    for line in report.histories(found, verdicts):
        click.echo(line)
    click.echo(report.table(found, verdicts))
    say("done")
    return sum(len(violations) for _, _, violations in verdicts)


if __name__ == "__main__":
    main()
