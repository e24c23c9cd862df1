"""The planted bugs still fit the code: one that no longer applies would count as found by nobody looking."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos import checker, hunt, planting
from tests.chaos.fleet import ROOT
from tests.chaos.mutants import MUTANTS
from tests.chaos.planting import Mutant, Patch
from tests.chaos.scenes import SCENES

LIST = ROOT / "docs" / "mutants.md"
EACH = pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])


def trees(mutant: Mutant, folder: Path) -> dict[str, str]:
    """The files that a mutant changes, planted; as text."""
    for file in {patch.file for patch in mutant.patches}:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes((ROOT / file).read_bytes())
    planting.plant(mutant, folder)
    return {patch.file: (folder / patch.file).read_text() for patch in mutant.patches}


@EACH
def test_each_bug_fits_the_code_as_it_stands(mutant: Mutant, tmp_path: Path) -> None:
    """Each old text stands once in its file, each new one differs, and what comes out is still Python."""
    for file, text in trees(mutant, tmp_path).items():
        assert text != (ROOT / file).read_text()
        ast.parse(text)


@EACH
def test_each_bug_names_what_may_find_it(mutant: Mutant) -> None:
    """By invariants that the checker has, in a scene that there is; or by a test, or the state machine with its own."""
    if mutant.scene in ("machine", "suite"):
        assert mutant.by == ()
        file, _, test = mutant.test.partition("::")
        assert bool(test) == (mutant.scene == "suite")
        assert not test or f"def {test}(" in (ROOT / file).read_text()
    else:
        assert mutant.scene in SCENES
        assert mutant.by and set(mutant.by) <= {number for number, _, _ in checker.CHECKS}


def test_a_bug_that_no_longer_fits_is_refused(tmp_path: Path) -> None:
    """Planting fails where the text is gone or stands twice."""
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for old in ("x = 1", "y = 1"):
        with pytest.raises(LookupError):
            planting.plant(Mutant(name="m", breaks="", scene="busy", patches=(Patch("a.py", old, ""),)), tmp_path)


def test_the_list_in_the_documents_is_the_list_that_is_planted() -> None:
    """docs/mutants.md has a row for each mutant, with the words of its definition, and for no other."""
    rows = [line.split(" | ") for line in LIST.read_text().splitlines() if line.startswith("| `")]
    assert [(row[0].strip("| `"), row[1]) for row in rows] == [(mutant.name, mutant.breaks) for mutant in MUTANTS]
    assert not any("survives" in cell for row in rows for cell in row)


def test_names_are_unique() -> None:
    """Each can be asked for by its name."""
    assert set(Counter(mutant.name for mutant in MUTANTS).values()) == {1}


def test_what_is_asked_while_a_scene_is_played_are_rules_of_the_checker() -> None:
    """What a hunt finds early is what a whole run would be found guilty of."""
    assert {*hunt.AT_ANY_TIME, *hunt.AMID_NO_FAULT} <= {rule for _, _, rule in checker.CHECKS}
