"""Where Qasid shares a machine with the world that a bench simulates: that world gives way, since in life it is elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How far it steps back (nice): to a tenth of a share.
FAR = 10


@contextmanager
def elsewhere() -> Iterator[None]:
    """The provider, the assistant and those who write are other machines' in life: here they give way to Qasid's.

    Linux shares cores among sessions (sched(7), autogroup); ours holds them all, and none of Qasid's processes.
    """
    weight = Path("/proc/self/autogroup")
    try:
        before = weight.read_text().split()[-1]  # "/autogroup-123 nice 0"
        weight.write_text(str(FAR))
    except OSError:  # no such kernel, or no such file in this container
        yield
        return
    try:
        yield
    finally:
        weight.write_text(before)
