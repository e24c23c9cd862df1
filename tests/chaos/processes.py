"""What Linux tells of processes and ports, and how a process is stopped for a while. It starts nothing of Qasid's."""

import asyncio
import os
import random
import socket
import time
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")

# A shell of its own stops and continues: so what is stopped goes on in time even if the rig is killed meanwhile. The
# parent is stopped first, or it might have one child more than were listed.
FREEZE = """kill -STOP "$1" || exit; all="$1 $(cat "/proc/$1/task/$1/children")"; kill -STOP $all
echo; sleep "$2"; kill -CONT $all"""


async def freeze(pid: int, seconds: float) -> float:
    """Stop a process and its children for so long; returns since when they stood still, in unix seconds."""
    shell = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", FREEZE, "sh", str(pid), str(seconds)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # one of them may have ended meanwhile
        start_new_session=True,
    )
    assert shell.stdout is not None
    await shell.stdout.readline()
    began = time.time()
    await shell.wait()
    return began


def family(pid: int) -> list[int]:
    """A process and its children."""
    try:
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except OSError:
        return [pid]


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


async def gone(pid: int) -> None:
    """Return once a process that is not our child has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has, below those that the kernel gives to outgoing connections."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = range(10_000, low) if low > 20_000 else range(20_000, 60_000)
    found: list[int] = []
    while len(found) < count:
        port = random.choice(candidates)
        if port not in found and is_free(port):
            found.append(port)
    return found
