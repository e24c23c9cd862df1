"""The demo's processes: started so that they end with it however it ends, their output in files, ended in order."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from msgspec import Struct

from app.errors import QasidError
from app.process import end_with_parent

GRACE = 8.0  # seconds for a child to end by itself
TAIL = 15  # lines of a log that are shown


class ChildEnded(QasidError):
    """A process of the demo ended before the demo did."""


class Child(Struct, frozen=True, kw_only=True):
    """One process and the file that takes what it writes."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def tail(self) -> str:
        """The last lines of its log, for a person."""
        text = self.log.read_text(errors="replace").rstrip()
        lines = "\n".join(f"  | {line[:400]}" for line in text.splitlines()[-TAIL:]) or "  | (nothing)"
        return f"The end of {self.log}:\n{lines}"


def tie(demo: int) -> None:
    """Have this process, which `demo` (its id) has just forked, end with it.

    Before the exec: a child that asks for it itself, after its imports, may already have lost its parent. And by the signal's
    default: the demo's own handler, which the fork has left to the child, would swallow what the kernel sends before the exec.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    if os.getppid() != demo:
        os._exit(1)


class Children:
    """Starts from the main thread: the kernel takes the end of the thread that started a child for the parent's end."""

    def __init__(self, logs: Path, environ: Mapping[str, str], hold: int) -> None:
        """`hold`: a descriptor that each child keeps open, so that its lock tells whether one still lives."""
        self.all: list[Child] = []
        self._logs = logs
        self._environ = environ
        self._hold = hold
        self._ends: list[asyncio.Task[Child]] = []

    async def start(self, *command: str) -> Child:
        """Start `qasid <command>`."""
        log = self._logs / f"{command[0]}.log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "app.cli", *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environ,
                pass_fds=[self._hold],
                process_group=0,  # a Ctrl-C is for the demo, which ends them in order
                preexec_fn=partial(tie, os.getpid()),
            )
        child = Child(name=command[0], process=process, log=log)
        self.all.append(child)
        self._ends.append(asyncio.create_task(_end(child)))
        return child

    async def first_end(self) -> None:
        """Return never; raise ChildEnded when one ends."""
        done, _ = await asyncio.wait(self._ends, return_when=asyncio.FIRST_COMPLETED)
        child = done.pop().result()
        raise ChildEnded(f"The {child.name} process ended with {_told(child.process.returncode)}. {child.tail()}")

    async def stop(self) -> None:
        """End all that still run: ask first, then make them."""
        # The sandbox last: the others may want to finish what they say to it.
        for group in ([c for c in self.all if c.name != "sandbox"], [c for c in self.all if c.name == "sandbox"]):
            for child in group:
                _signal(child, signal.SIGTERM)
            ends = [end for child, end in zip(self.all, self._ends, strict=True) if child in group]
            if ends:
                await asyncio.wait(ends, timeout=GRACE)
        for child in self.all:
            _signal(child, signal.SIGKILL)
        if self._ends:
            await asyncio.wait(self._ends)


async def _end(child: Child) -> Child:
    await child.process.wait()
    return child


def _signal(child: Child, sign: signal.Signals) -> None:
    """To the child's whole group when it is to be killed: a server may have processes of its own."""
    if child.process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        if sign is signal.SIGKILL:
            os.killpg(child.process.pid, sign)
        else:
            child.process.send_signal(sign)


def _told(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
