"""The rig's hand on the proxy's process: starts it, gives it its orders, hears what it did."""

import asyncio
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

ROOT = Path(__file__).parents[2]
START_SECONDS = 20.0
ANSWER_SECONDS = 10.0


class LostCommit(Struct, frozen=True, kw_only=True):
    """A commit whose reply was swallowed: unix seconds, and the client by its name."""

    at: float
    of: str


class Probe(Struct, frozen=True, kw_only=True):
    """A prober's question: unix seconds, and the client by its name."""

    at: float
    of: str


class Proxied:
    """Enter it: the proxy runs before PostgreSQL at `port` of loopback, with a port of its own for each name."""

    def __init__(self, port: int, names: list[str]) -> None:
        self.ports: dict[str, int] = {}
        self.lost: list[LostCommit] = []
        self.probes: list[Probe] = []
        self._target, self._names = port, names
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._one_at_a_time = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.proxy", str(self._target), *self._names),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the rig, which then closes our stdin
        )
        self._reading = asyncio.create_task(self._read())
        async with asyncio.timeout(START_SECONDS):
            self.ports = (await self._answers.get())["ports"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._reading

    async def latency(self, mean: float, jitter: float) -> None:
        """What the server says arrives so many seconds later; 0, 0 ends it."""
        await self._order("latency", mean=mean, jitter=jitter)

    async def blackhole(self, seconds: float) -> None:
        """Nothing passes for so long, nothing is closed; returns at once. 0 ends it."""
        await self._order("blackhole", seconds=seconds)

    async def lost_commit(self, probability: float) -> None:
        """From now on this share of all commits happens and is not heard of."""
        await self._order("lost_commit", probability=probability)

    async def reset(self) -> int:
        """RST to all connections; returns how many."""
        return await self._order("reset")

    async def half_close(self) -> int:
        """FIN to all clients, while what they asked for goes on; returns how many."""
        return await self._order("half_close")

    async def calm(self) -> None:
        """A plain pump again."""
        await self.latency(0.0, 0.0)
        await self.blackhole(0.0)
        await self.lost_commit(0.0)

    async def _order(self, name: str, **arguments: float) -> int:
        assert self._process.stdin is not None
        async with self._one_at_a_time, asyncio.timeout(ANSWER_SECONDS):
            self._process.stdin.write(msgspec.json.encode({"do": name, **arguments}) + b"\n")
            done = await self._answers.get()
            assert done["done"] == name, done
            return int(done["links"])

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said: dict[str, Any] = msgspec.json.decode(line)
            if "lost" in said:
                self.lost.append(LostCommit(at=said["lost"], of=said["of"]))
            elif "probe" in said:
                self.probes.append(Probe(at=said["probe"], of=said["of"]))
            else:
                self._answers.put_nowait(said)
