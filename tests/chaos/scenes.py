"""Small runs, each with only the faults that some planted bugs need to show. It plays none of them: see hunt.py."""

import msgspec
from msgspec import Struct

from app.sandbox.faults import Chance, Fault, StatusFaults
from tests.chaos.runs import Run
from tests.chaos.schedule import Row, Schedule
from tests.chaos.workload import Shape

_FAULTY = StatusFaults(triple=0.1, reorder=0.2)
# Below the half at which its breaker would open.
_CUT = (Chance(fault=Fault(kind="cut"), chance=0.35), Chance(fault=Fault(kind="max_tokens"), chance=0.35))


class Scene(Struct, frozen=True, kw_only=True):
    """A small run. `rest`: seconds after load and faults in which it must come to rest."""

    what: str
    run: Run
    shape: Shape
    schedule: Schedule | None = None
    mute: tuple[float, float] | None = None  # statuses stop: when, for how long
    armed: str = ""  # a crash point of one worker
    spool: bool = False  # one of the webs has one: what was answered 200 is in the database at rest, not before
    rest: float = 40.0


def _run(what: str) -> Run:
    return Run(name="A", what=what, statuses=_FAULTY)


def _scene(what: str, shape: Shape, *rows: Row, lost: float = 0.0, rest: float = 40.0) -> Scene:
    schedule = Schedule(rows=rows, lost_commits=lost) if rows else None
    return Scene(what=what, run=_run(what), shape=shape, schedule=schedule, rest=rest)


def _row(kind: str, at: float, lasts: float = 0.0, every: float | None = None) -> Row:
    again = (every, every) if every else None
    return msgspec.convert(
        {"kind": kind, "first": (at, at), "every": again, "lasts": (lasts, lasts)}, Row, from_attributes=False
    )


SCENES = {
    "busy": _scene(
        "the provider's faults alone",
        Shape(inbound=450, conversations=250, busiest=4, seconds=8, parts={1: 0.4, 2: 0.4, 3: 0.2}),
        rest=60.0,
    ),
    "held": _scene(
        "somebody holds the rows of all lanes, for half a second and again",
        Shape(inbound=240, conversations=60, busiest=8, seconds=8, parts={1: 1.0}),
        _row("held", 2.0, 0.5, every=1.5),
    ),
    "frozen": _scene(
        "the database stands still for 7 s",
        Shape(inbound=240, conversations=200, busiest=3, seconds=9, parts={1: 1.0}),
        _row("freeze", 2.0, 7.0),
    ),
    "dying": _scene(
        "kills, and one commit in twenty goes unheard",
        Shape(inbound=400, conversations=300, busiest=3, seconds=12, parts={1: 0.7, 2: 0.3}),
        _row("kill", 3.0, every=3.0),
        lost=0.05,
        rest=30.0,
    ),
    "blocked": Scene(
        what="far from the database; a worker stands still between an intent and its POST, for over two leases",
        # The provider takes all: what is sent twice is received twice.
        run=Run(name="A", what="an event loop that is blocked", provider_faults=False),
        shape=Shape(inbound=450, conversations=400, busiest=2, seconds=22, parts={1: 1.0}),
        schedule=Schedule(rows=(_row("latency", 0.0, 40.0),), lost_commits=0.0),
        armed="deliver.intended:12:block=18",
    ),
    "dark": _scene(
        "no database for 8 s, and web processes that start meanwhile",
        Shape(inbound=150, conversations=100, busiest=2, seconds=12, parts={1: 1.0}),
        _row("restart", 1.0, 8.0),
        _row("kill", 1.5, every=0.7),
    ),
    "kept": Scene(
        what="the database stands still for 6 s, and one of the webs has a spool",
        run=_run("a spool"),
        shape=Shape(inbound=300, conversations=250, busiest=3, seconds=11, parts={1: 1.0}),
        schedule=Schedule(rows=(_row("freeze", 4.0, 6.0),), lost_commits=0.0),  # no process is young by then
        spool=True,
    ),
    "mute": Scene(
        what="statuses stop for 8 s",
        run=_run("statuses stop"),
        shape=Shape(inbound=250, conversations=200, busiest=3, seconds=10, parts={1: 0.6, 2: 0.4}),
        mute=(3.0, 8.0),
    ),
    "cut": Scene(
        what="a third of the assistant's answers break off, and a third come to their limit",
        run=Run(name="A", what="cut answers", answers=_CUT, statuses=_FAULTY),
        shape=Shape(inbound=300, conversations=250, busiest=3, seconds=8, parts={1: 0.5, 2: 0.3, 3: 0.2}),
        rest=60.0,
    ),
}
