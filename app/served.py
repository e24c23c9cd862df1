"""What granian loads in each process that it forks: `create_app`, by a way on which a signal is not lost.

Such a process inherits granian's handlers, which swallow a SIGTERM until it serves; importing app.asgi takes a second or
two, and granian would then wait the whole of its kill timeout (seen with granian 2.8.7). So it dies of a SIGTERM first,
and imports then.
"""

import multiprocessing
import os
import signal
from typing import TYPE_CHECKING

from app.process import end_with_parent

if TYPE_CHECKING:
    from litestar import Litestar

if (_granian := multiprocessing.parent_process()) is not None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Not SIGTERM: granian's handler for it may wait for a lock that only its main process would free. A webhook that is
    # cut off here comes again.
    end_with_parent(signal.SIGKILL)
    if os.getppid() != _granian.pid:  # it had ended before we asked
        os._exit(1)


def create_app() -> "Litestar":
    """See app.asgi. An error of ours ends the process with one line: granian would show a traceback."""
    from app.asgi import create_app
    from app.errors import QasidError

    try:
        return create_app()
    except QasidError as error:
        raise SystemExit(f"qasid: {error}") from None
