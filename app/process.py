"""What a process owes to its surroundings: it ends with its parent, asks for a port before it counts on it."""

import ctypes
import errno
import gc
import os
import signal
import socket
import sys

from app.errors import ConfigurationError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(sign: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send us `sign` when our parent ends, however it ends. Linux alone; elsewhere it does nothing."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(sign), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent:  # it ended before we had asked
        os.kill(os.getpid(), sign)


def require_free_port(host: str, port: int, *, setting: str) -> None:
    """Raise unless a server could listen at `host:port` now.

    Raises:
        ConfigurationError: the port is taken, or the host is no address of this machine; names `setting`.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)  # SO_REUSEADDR lets a bind beside a listener through; the listen fails
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"Port {port} on {host} is in use: stop what holds it, or set {setting} to another."
            ) from error
        raise ConfigurationError(f"Cannot listen at {host}:{port}: {error.strerror or error}") from error


def settle_memory() -> None:
    """Call once all is imported and made: the garbage collector then leaves what lasts for ever alone.

    A full collection would walk a few hundred thousand objects of libraries, and stop the event loop for it. What
    requests leave behind is collected as before, only less often: almost all of it goes by reference counting. The event loop
    stands still for each collection. One of the youngest generation walks some 30,000 objects; one of the next comes when there
    are 3,000,000 more than before, not in the midst of a rush: with 2,000 turns at work it walked 400,000, for 0.16 s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(30_000, 100, 10)
