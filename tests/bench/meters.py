"""Reads what processes and PostgreSQL have used: CPU and memory from /proc, statements, metrics. It changes nothing but
the counters of pg_stat_statements.
"""

import os
import re
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psycopg
from msgspec import Struct

Admin = psycopg.Connection[tuple[Any, ...]]

_TICKS = os.sysconf("SC_CLK_TCK")
_SERIES = re.compile(r"^([a-zA-Z_:]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all below it: those that live, and those that were waited for."""
    children: dict[int, list[int]] = defaultdict(list)
    used: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children[int(fields[1])].append(int(entry.name))
        used[int(entry.name)] = sum(map(int, fields[11:15])) / _TICKS  # utime, stime, cutime, cstime: proc(5)
    total, looking = 0.0, [pid]
    while looking:
        one = looking.pop()
        total += used.get(one, 0.0)
        looking += children[one]
    return total


class Others:
    """How much of the machine has gone to processes that are none of ours since this was made."""

    def __init__(self, postmaster: int) -> None:
        self._postmaster = postmaster
        self._total, self._others = self._now()

    def percent(self) -> float:
        """Of the CPU time of all cores."""
        total, others = self._now()
        return 100 * max(0.0, others - self._others) / max(1 / _TICKS, total - self._total)

    def _now(self) -> tuple[float, float]:
        """Seconds of all cores since the start of the machine, and those that others used."""
        times = [int(ticks) / _TICKS for ticks in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
        busy = sum(times) - times[3] - times[4]  # idle and iowait: proc_stat(5)
        return sum(times), busy - cpu_seconds(os.getpid()) - cpu_seconds(self._postmaster)


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory of one process now, and at its peak, in MB (10⁶ bytes)."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    resident, peak = (int(status[key].split()[0]) * 1024 / 1e6 for key in ("VmRSS", "VmHWM"))
    return resident, peak


class Statements(Struct, frozen=True, kw_only=True):
    """Statements of our processes by what they are for: the way of messages, statuses, SAQ's own, beats and polls.

    `brackets` are BEGIN, COMMIT and the like: SAQ's, as long as all on the way of a message commits by itself.
    """

    work: int = 0
    statuses: int = 0
    saq: int = 0
    brackets: int = 0
    beats: int = 0
    by_text: dict[str, int] = {}


# The first that fits counts. Beats and polls come once a second or less, whether anybody writes or not.
_KINDS = (
    ("brackets", r"^(BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE)\b"),
    ("saq", r"\bsaq_|^(UN)?LISTEN|^NOTIFY|pg_notify|pg_(try_)?advisory"),
    ("statuses", r"INSERT INTO statuses"),
    ("beats", r"(UPDATE|INTO|DELETE FROM) workers\b|FROM configuration|WITH (mine|gone) AS|UPDATE endpoints"),
    ("work", ""),
)


def forget_statements(admin: Admin) -> None:
    """Count from nothing."""
    admin.execute("SELECT pg_stat_statements_reset()")


def statements(admin: Admin) -> Statements:
    """What the two roles of our processes have executed since `forget_statements`, in this database."""
    found = admin.execute(
        """
        SELECT query, calls
        FROM pg_stat_statements(true) s JOIN pg_database d ON d.oid = s.dbid JOIN pg_roles r ON r.oid = s.userid
        WHERE d.datname = current_database() AND r.rolname IN ('qasid_courier', 'qasid_app') ORDER BY calls DESC
        """
    ).fetchall()
    counts: Counter[str] = Counter()
    by_text: Counter[str] = Counter()
    for query, calls in found:
        kind = next(kind for kind, pattern in _KINDS if re.search(pattern, query))
        counts[kind] += calls
        by_text[f"{kind}: {' '.join(query.split())[:100]}"] += calls
    return Statements(**counts, by_text=dict(by_text))


class Metrics:
    """The numbers of a process's /metrics, as they are when it is made."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        self._series = [(name, labels or "", float(value)) for name, labels, value in _SERIES.findall(text)]

    def sum(self, name: str, labels: str = "") -> float:
        """The sum of all series of this name whose labels hold this text."""
        return sum(value for series, held, value in self._series if series == name and labels in held)

    def at_most(self, histogram: str, share: float, *, since: "Metrics") -> float:
        """The upper edge of the bucket under which this share of a histogram's observations since then lies."""
        total = self.sum(f"{histogram}_count") - since.sum(f"{histogram}_count")
        for name, labels, value in self._series:
            if name == f"{histogram}_bucket" and value - since.sum(name, labels) >= share * total:
                edge = re.search(r'le="([^"]+)"', labels)
                assert edge is not None  # every bucket has its edge
                return float(edge[1])
        return float("nan")
