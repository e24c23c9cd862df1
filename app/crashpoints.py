"""Where a fault test may kill this very process: named places between two commits. In production they do nothing.

The environment chooses: `CRASHPOINT="<name>:<n>"` kills at the n-th pass (from 1), as `kill -9` would;
`CRASHPOINT="<name>:<n>:block=<seconds>"` blocks the event loop instead. Several are separated by commas.
"""

import os
import signal
import time
from collections.abc import Callable

from msgspec import Struct

# In the order in which a message passes them. docs/lanes.md says what each stands behind. The fault test passes each
# (tests/chaos/crashes.py), but for those of `TENANTS`: tests/integration/test_steps.py passes these and its neighbours.
NAMES = (
    "ingest.writing",
    "ingest.committed",
    "lane.claimed",
    "question.heard",
    "answer.continued",
    "answer.asked",
    "answer.remembered",
    "answer.recognised",
    "answer.translated",
    "answer.worded",
    "answer.cited",
    "answer.finished",
    "deliver.intended",
    "deliver.posting",
    "deliver.answered",
    "deliver.recorded",
    "statuses.writing",
    "spool.synced",
    "spool.replayed",
    "worker.draining",
)
# What only a tenant passes that has voice messages written down, answers translated, or some that their limit cuts short.
TENANTS = (
    "question.heard",
    "answer.continued",
    "answer.recognised",
    "answer.translated",
    "answer.worded",
    "answer.cited",
)


class _Armed(Struct):
    """`passes` are left until it goes off."""

    passes: int
    go_off: Callable[[], None]


def crashpoint(name: str) -> None:
    """A place of this name was reached."""
    if _armed and (armed := _armed.get(name)):
        armed.passes -= 1
        if armed.passes == 0:
            armed.go_off()


def _read(text: str) -> dict[str, _Armed]:
    """Raises ValueError for a name that is none: a typing error must not look like a test that was passed."""
    armed = {}
    for part in filter(None, text.split(",")):
        name, hit, *action = part.split(":")
        if name not in NAMES:
            raise ValueError(f"no crash point {name!r}; there are {', '.join(NAMES)}")
        armed[name] = _Armed(int(hit), _action(action[0] if action else "kill"))
    return armed


def _action(text: str) -> Callable[[], None]:
    kind, _, seconds = text.partition("=")
    if kind == "kill":
        return lambda: os.kill(os.getpid(), signal.SIGKILL)
    if kind == "block":
        return lambda: time.sleep(float(seconds))
    raise ValueError(f"a crash point can kill or block=SECONDS, not {text!r}")


_armed = _read(os.environ.get("CRASHPOINT", ""))
