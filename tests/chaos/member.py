"""One process of Qasid under the rig: started again whenever it ends, and killed, paused, rolled and armed on request.

It knows nothing of the database or of the schedule. All signals go to process ids that it started itself.
"""

import asyncio
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import aiohttp
from msgspec import Struct

from tests.chaos.processes import family, freeze, gone, is_free, resident

READY_SECONDS = 60.0
ROLL_SECONDS = 30.0  # the longest that an orderly stop may take (FAULTS.md 3)
GIVE_UP_SECONDS = 60.0
PORT_SECONDS = 10.0
RESPAWN_SECONDS = 0.5  # after a death that nobody ordered, as a service manager would wait
HOPELESS = 4  # deaths during one wait for it
POLL_SECONDS = 0.05
# How often the loop was late at all, and how often by no more than STALLED seconds (app/metrics.py, app/loop_watch.py).
STALLED = 2.5
LATE = re.compile(r"^qasid_loop_lag_seconds_count (\S+)", re.MULTILINE)
LITTLE = re.compile(rf'^qasid_loop_lag_seconds_bucket{{le="{STALLED}"}} (\S+)', re.MULTILINE)


class RigFailed(Exception):
    """The rig itself could not do its part: that says nothing about the service."""


class Death(Struct, frozen=True, kw_only=True):
    """An end that nobody ordered. `ready`: it had been at work; `said`: the last line of its log."""

    name: str
    at: float
    code: int
    ready: bool
    said: str


class Life(Struct, frozen=True, kw_only=True):
    """A process from its start until its end, or until now, in unix seconds."""

    name: str
    began: float
    ended: float


class Roll(Struct, frozen=True, kw_only=True):
    """An orderly stop by SIGTERM: how long it took, and the exit code (0 is right). Over ROLL_SECONDS is a violation."""

    name: str
    at: float
    seconds: float
    code: int


class Member:
    """`live` is its supervisor; the rest may be called while that runs. Times are unix seconds."""

    def __init__(
        self,
        name: str,
        kind: Literal["web", "worker"],
        port: int,
        *,
        source: Path,
        environ: Mapping[str, str],
        log: Path,
    ) -> None:
        """`port`: the web's own, or the worker's metrics'. `source`: the tree it runs from."""
        self.name, self.kind, self.port, self.log = name, kind, port, log
        self.url = f"http://127.0.0.1:{port}"
        self.deaths: list[Death] = []
        self.rolls: list[Roll] = []
        self.starts = 0
        self._source, self._environ = source, dict(environ)
        self._lives: deque[Mapping[str, str]] = deque()  # what the next starts find in their environment besides
        self._ended: list[Life] = []
        self._began = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._up = asyncio.Event()
        self._hands = asyncio.Lock()  # one fault at a time: a process that is paused is not killed meanwhile
        self._ordered = self._ready = self._ending = False
        self._crashes = asyncio.Semaphore(0)

    @property
    def pid(self) -> int:
        """Of the process at the top; 0 while there is none."""
        return self._process.pid if self._process is not None and self._up.is_set() else 0

    @property
    def lives(self) -> list[Life]:
        """One after the other."""
        now = Life(name=self.name, began=self._began, ended=time.time())
        return [*self._ended, now] if self.pid else [*self._ended]

    async def live(self) -> None:
        """Keep it running until `end`."""
        while not self._ending:
            await self._portis_free()
            extra = self._lives.popleft() if self._lives else {}
            self._began = time.time()
            with self.log.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "app.cli", self.kind, "--with-parent"),
                    cwd=self._source,
                    env={**self._environ, **extra},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C is for the rig
                )
            self._process, self._ordered, self._ready = process, False, False
            self.starts += 1
            if self._ending:  # since this start began
                process.kill()
            self._up.set()
            armed = "CRASHPOINT" in extra
            watch = asyncio.create_task(self._server_crash(process)) if armed and self.kind == "web" else None
            code = await process.wait()
            self._up.clear()
            self._ended.append(Life(name=self.name, began=self._began, ended=time.time()))
            if watch is not None:
                watch.cancel()
            if self._ordered or self._ending:
                continue
            if armed and code == -signal.SIGKILL:
                self._crashes.release()
                continue
            said = (self.log.read_bytes()[-4000:].decode(errors="replace").strip().splitlines() or [""])[-1]
            self.deaths.append(Death(name=self.name, at=time.time(), code=code, ready=self._ready, said=said))
            await asyncio.sleep(RESPAWN_SECONDS)

    async def ready(self, timeout: float = READY_SECONDS) -> None:
        """Return once it is at work: web answers /livez and /readyz with 200, a worker's metrics are there.

        Raises RigFailed after `timeout` seconds, or as soon as it dies again and again of itself; with the last of its log.
        """
        paths = ("/livez", "/readyz") if self.kind == "web" else ("/metrics",)
        patience = aiohttp.ClientTimeout(total=3.0)
        deadline, deaths = time.monotonic() + timeout, len(self.deaths)
        async with aiohttp.ClientSession(timeout=patience) as client:
            while not all([await _answers(client, self.url + path) for path in paths]):
                if time.monotonic() > deadline or len(self.deaths) - deaths >= HOPELESS:
                    said = " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-5:])
                    raise RigFailed(f"{self.name} does not get ready; {self.log} ends: {said}")
                await asyncio.sleep(POLL_SECONDS)
        self._ready = True

    async def kill(self) -> None:
        """SIGKILL; it is being started again when this returns."""
        async with self._hands:
            await self._ended_by(signal.SIGKILL)

    async def pause(self, seconds: float) -> None:
        """SIGSTOP to it and its children, SIGCONT after so many seconds."""
        async with self._hands:
            await self._up.wait()
            await freeze(self.pid, seconds)

    async def stalled(self, timeout: float) -> bool:
        """Whether a worker's event loop came later than STALLED once, as its own metrics tell, within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3.0)) as client:
            while time.monotonic() < deadline:
                said = await _text(client, f"{self.url}/metrics")
                if (
                    (late := LATE.search(said))
                    and (little := LITTLE.search(said))
                    and float(late[1]) > float(little[1])
                ):
                    return True
                await asyncio.sleep(5 * POLL_SECONDS)
        return False

    async def roll(self, environ: Mapping[str, str] | None = None) -> Roll:
        """SIGTERM, wait for its end; it is being started again, with `environ` for this one life, when this returns."""
        async with self._hands:
            began, at = time.monotonic(), time.time()
            self._lives = deque([environ or {}])
            try:
                async with asyncio.timeout(GIVE_UP_SECONDS):
                    code = await self._ended_by(signal.SIGTERM)
            except TimeoutError:
                code = await self._ended_by(signal.SIGKILL)
            roll = Roll(name=self.name, at=at, seconds=time.monotonic() - began, code=code)
            self.rolls.append(roll)
            return roll

    async def arm(self, crashpoint: str) -> None:
        """End it with SIGTERM and start it anew with this in CRASHPOINT (app/crashpoints.py), for that one life."""
        await self.roll({"CRASHPOINT": crashpoint})

    def arm_next(self, crashpoint: str) -> None:
        """One more life, after those already planned, has CRASHPOINT so: a crash that follows another saves a start."""
        self._lives.append({"CRASHPOINT": crashpoint})

    def terminate(self) -> None:
        """SIGTERM to an armed process that is to crash while it stops."""
        if self._process is not None and self._up.is_set():
            self._process.terminate()

    async def died(self, timeout: float) -> bool:
        """Whether its crash point has killed it, now or within `timeout` seconds. Each crash is told once."""
        try:
            async with asyncio.timeout(timeout):
                await self._crashes.acquire()
        except TimeoutError:
            return False
        return True

    async def end(self, *, gently: bool = False) -> None:
        """For good. `gently`: by SIGTERM, recorded as a roll."""
        self._ending = True
        if gently and self.pid:
            await self.roll()
        elif self._process is not None and self._process.returncode is None:
            pids = family(self._process.pid)
            self._process.kill()  # a stopped one too
            await self._process.wait()
            await asyncio.gather(*(gone(pid) for pid in pids[1:]))

    def rss(self) -> int:
        """Bytes of it and its children; 0 while it is down."""
        return sum(resident(pid) for pid in family(self.pid)) if self.pid else 0

    async def _ended_by(self, how: signal.Signals) -> int:
        await self._up.wait()
        process = self._process
        assert process is not None
        self._ordered = True
        if process.returncode is None:
            process.send_signal(how)
        return await process.wait()

    async def _server_crash(self, process: asyncio.subprocess.Process) -> None:
        """The armed one is granian's child, and granian would start the next with the same point: so granian goes too."""
        while len(pids := family(process.pid)) < 2:
            await asyncio.sleep(POLL_SECONDS)
        await gone(pids[1])
        if process.returncode is None and not self._ordered:
            self._ordered = True
            process.kill()
            self._crashes.release()

    async def _portis_free(self) -> None:
        """Granian's children end by the kernel, an instant after granian itself."""
        deadline = time.monotonic() + PORT_SECONDS
        while not is_free(self.port):
            if time.monotonic() > deadline:
                raise RigFailed(f"port {self.port} of {self.name} is still in use after {PORT_SECONDS:g} s")
            await asyncio.sleep(POLL_SECONDS)


async def _answers(client: aiohttp.ClientSession, url: str) -> bool:
    return bool(await _text(client, url))


async def _text(client: aiohttp.ClientSession, url: str) -> str:
    """The body of an answer 200, else nothing."""
    try:
        async with client.get(url) as answer:
            return await answer.text() if answer.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError):
        return ""
