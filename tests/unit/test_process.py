"""What a process owes to its surroundings."""

import subprocess
import sys

ASKED = """
import os, pathlib
from app.process import give_way
give_way()
session = pathlib.Path("/proc/self/autogroup")
print(os.nice(0), session.read_text().strip() if session.exists() else "", sep="\\n")
"""


def test_a_worker_gives_way_with_its_whole_session() -> None:
    """By its own priority, and where the kernel shares cores among sessions by that of the session that it leads."""
    done = subprocess.run(
        [sys.executable, "-c", ASKED], capture_output=True, text=True, check=True, start_new_session=True
    )
    own, session = done.stdout.splitlines()
    assert own == "6"
    assert session == "" or session.endswith("nice 6")  # a kernel may be without
