"""What a planted bug is, and how it is planted into a copy of the tree. It knows none of them, and looks for none."""

import shutil
from pathlib import Path
from typing import Literal

from msgspec import Struct

from tests.chaos.fleet import ROOT

# What a tree needs so that the processes, and the state machine, run from it.
PARTS = ("app", "workers", "migrations", "tests")
Scene = Literal["busy", "held", "frozen", "dying", "blocked", "dark", "kept", "mute", "cut", "machine", "suite"]


class Patch(Struct, frozen=True):
    """`old` stands exactly once in `file`, and becomes `new`."""

    file: str
    old: str
    new: str


class Mutant(Struct, frozen=True, kw_only=True):
    """A bug. `scene`: the run that finds it (tests/chaos/hunt.py); `by`: the invariants that may.

    In `machine` the state machine's own may, in `suite` a `test`, named as for pytest.
    """

    name: str
    breaks: str
    scene: Scene
    by: tuple[int, ...] = ()
    test: str = ""
    patches: tuple[Patch, ...]


def copied(to: Path, source: Path = ROOT) -> None:
    """A tree of its own, the same as `source`."""
    for part in PARTS:
        shutil.copytree(source / part, to / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(source / "pyproject.toml", to)


def plant(mutant: Mutant, tree: Path) -> None:
    """Raises LookupError: a text does not stand exactly once in its file, so this is not the bug that is meant."""
    for patch in mutant.patches:
        file = tree / patch.file
        text = file.read_text(encoding="utf-8")
        if (times := text.count(patch.old)) != 1:
            raise LookupError(f"{mutant.name}: its text stands {times} times in {patch.file}:\n{patch.old}")
        file.write_text(text.replace(patch.old, patch.new), encoding="utf-8")
