"""The schedule of faults (FAULTS.md 3): which kinds come when, in full and in smoke. It does none of them."""

from typing import Literal, get_args

from msgspec import Struct

from tests.chaos.database import Degraded
from tests.chaos.fleet import LEASE_SECONDS

OfMember = Literal["kill", "pause", "roll", "block", "clock"]
OfDatabase = Literal[
    "restart", "freeze", "terminate", "latency", "blackhole", "reset", "half_close", "disk_full", Degraded
]
Kind = OfMember | OfDatabase
LOST_COMMITS = 0.01


class Row(Struct, frozen=True, kw_only=True):
    """When a kind of fault comes, in seconds. `first`: after the beginning; `every`: after its last end, None: once.

    A kill has ended when it is done, not when its victim is back: the next may come in the midst of a start.
    """

    kind: Kind
    first: tuple[float, float]
    every: tuple[float, float] | None = None
    lasts: tuple[float, float] = (0.0, 0.0)


class Schedule(Struct, frozen=True, kw_only=True):
    """The rows; the share of commits that go unheard; how many webs, and how many workers, a roll is of."""

    rows: tuple[Row, ...]
    lost_commits: float = LOST_COMMITS
    rolled: int = 2
    block_at: int = 10  # the claim that blocks


def _recurring(kind: Kind, low: float, high: float, *lasts: float) -> Row:
    return Row(kind=kind, first=(low, high), every=(low, high), lasts=(lasts[0], lasts[-1]) if lasts else (0.0, 0.0))


PAUSE_SECONDS = 1.5 * LEASE_SECONDS
FULL = Schedule(
    rows=(
        _recurring("kill", 4, 12),
        _recurring("pause", 36, 36, PAUSE_SECONDS),  # every 45 s with the pause itself
        _recurring("restart", 20, 60, 0, 2),
        _recurring("freeze", 85, 85, 5),
        _recurring("terminate", 15, 15),
        _recurring("latency", 45, 75, 30),
        _recurring("blackhole", 50, 70, 5),
        _recurring("reset", 40, 60),
        _recurring("half_close", 40, 60),
        _recurring("roll", 120, 120),
        # A quarter of the time in all: spread, so that much is answered between two of them.
        Row(kind="connections", first=(40, 60), every=(130, 130), lasts=(10, 10)),
        Row(kind="disk_full", first=(80, 100), lasts=(20, 20)),
        Row(kind="read_only", first=(130, 150), lasts=(15, 15)),
        Row(kind="locked", first=(210, 230), lasts=(10, 10)),
        Row(kind="held", first=(245, 260), lasts=(10, 10)),
        Row(kind="block", first=(30, 120), lasts=(40, 40)),
        Row(kind="clock", first=(120, 200), lasts=(30, 30)),
    )
)
# Each kind at least once in 25 s, with time between the outages of PostgreSQL: those that last for ten and more seconds
# have none there.
SMOKE = Schedule(
    rows=(
        _recurring("kill", 3, 6),
        Row(kind="block", first=(0, 1), lasts=(15, 15)),
        Row(kind="roll", first=(2, 3)),  # a worker's drain takes up to 20 s
        Row(kind="terminate", first=(4, 5)),
        Row(kind="restart", first=(6, 8), lasts=(0, 2)),
        Row(kind="latency", first=(9, 10), lasts=(4, 4)),
        Row(kind="pause", first=(11, 13), lasts=(PAUSE_SECONDS, PAUSE_SECONDS)),
        Row(kind="freeze", first=(12, 14), lasts=(3, 3)),
        Row(kind="clock", first=(15, 16), lasts=(5, 5)),
        Row(kind="reset", first=(16, 17)),
        Row(kind="blackhole", first=(18, 20), lasts=(2, 2)),
        Row(kind="half_close", first=(22, 23)),
    ),
    rolled=1,
    block_at=3,
)
FULL_ONLY: frozenset[Kind] = frozenset({"disk_full", *get_args(Degraded)})
SCHEDULES = {"smoke": SMOKE, "full": FULL, "soak": FULL}
