"""What a bench found: figures, the bounds they must keep, the machine they were measured on. It measures nothing."""

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal

from msgspec import Struct, field

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("granian", "litestar", "uvloop", "msgspec", "psycopg", "saq", "httpx", "aiohttp")


class BenchFailed(Exception):
    """What was measured was wrong: a message lost, doubled or unanswered. No figure makes up for it."""


class Bound(Struct, frozen=True):
    """What a figure must keep: at most, or at least, `limit`."""

    side: Literal["≤", "≥"]
    limit: float

    def kept(self, value: float) -> bool:
        return value <= self.limit if self.side == "≤" else value >= self.limit


class Figure(Struct, frozen=True, kw_only=True):
    """One line of the table. `aim` is what the design is made for; only `bound` can be missed."""

    name: str
    value: float
    unit: str = ""
    digits: int = 1
    bound: Bound | None = None
    aim: str = ""

    @property
    def missed(self) -> bool:
        return self.bound is not None and not self.bound.kept(self.value)


class Report(Struct, kw_only=True):
    """A run's figures, in the order in which they are read. `details` go into the JSON file alone."""

    bench: str
    machine: dict[str, str]
    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def add(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        digits: int = 1,
        at_most: float | None = None,
        at_least: float | None = None,
        aim: str = "",
    ) -> None:
        """One more line; a bound if one is given."""
        bound = Bound("≤", at_most) if at_most is not None else Bound("≥", at_least) if at_least is not None else None
        self.figures.append(Figure(name=name, value=value, unit=unit, digits=digits, bound=bound, aim=aim))

    @property
    def missed(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.missed]

    def table(self) -> str:
        """The figures in columns, then the machine."""
        rows = [("", "figure", "bound", "aim", "")]
        for figure in self.figures:
            bound = f"{figure.bound.side} {figure.bound.limit:g}" if figure.bound else ""
            value = f"{figure.value:,.{figure.digits}f} {figure.unit}".rstrip()
            rows.append((figure.name, value, bound, figure.aim, "MISSED" if figure.missed else ""))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            f"{name:<{widths[0]}}  {value:>{widths[1]}}  {bound:<{widths[2]}}  {aim:<{widths[3]}}  {mark}".rstrip()
            for name, value, bound, aim, mark in rows
        ]
        return "\n".join([f"bench {self.bench}", *lines, "", *(f"{k}: {v}" for k, v in self.machine.items())])


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 50th and the 99th percentile, and the largest; NaN of nothing."""
    if len(values) < 2:
        only = values[0] if values else float("nan")
        return only, only, only
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98], max(values)


def machine(postgres: str) -> dict[str, str]:
    """What the figures depend on: cores, processor, versions, and how busy the machine was when the bench began."""
    return {
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "processor": _processor(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", f"PostgreSQL {postgres}", *(f"{p} {version(p)}" for p in PACKAGES)]
        ),
        "commit": _commit(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str:
    """The commit in the working folder, or "unknown" outside a repository."""
    git = ["git", "--no-optional-locks", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
