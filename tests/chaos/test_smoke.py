"""The fault test in small, as everybody runs it: every kind of fault, and a kill at each crash point."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


RIG_FAILED = 2


@pytest.mark.timeout(400)
@pytest.mark.parametrize("run", ["A", "P"])
def test_nothing_is_lost_and_nothing_comes_twice_under_faults(run: str, tmp_path: Path) -> None:
    """`just chaos --run A --size smoke` and `--run P`: every invariant holds, by what the recipients got."""
    for attempt in ("first", "second"):
        command = ["-m", "tests.chaos", "--run", run, "--size", "smoke", "--folder", str(tmp_path / attempt)]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != RIG_FAILED:  # that is no verdict: the machine was too busy for the rig's own processes
            break
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"
