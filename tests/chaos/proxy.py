"""Stands before PostgreSQL, in a process of its own, and disturbs: latency, silence, resets, replies to COMMIT that are lost.

`python -m tests.chaos.proxy PORT NAME…` opens one port per name, tells them as a JSON line on stdout, obeys JSON lines on
stdin and ends with it. It is a plain pump: of PostgreSQL's protocol it reads only the reply to a statement it has picked.
"""

import asyncio
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import uvloop

from tests.chaos.links import Disturbance, Link


class Proxy:
    """All links, what is in force, and the controls."""

    def __init__(self, port: int, tell: Callable[[dict[str, Any]], None], seed: int = 0) -> None:
        self.now = Disturbance()
        self.random = random.Random(seed)
        self.links: set[Link] = set()
        self._port, self._tell = port, tell
        self._connecting: set[asyncio.Task[None]] = set()
        self._light: asyncio.TimerHandle | None = None

    async def listen(self, name: str) -> int:
        """Take connections in the name of one client; returns the port."""
        server = await asyncio.get_running_loop().create_server(lambda: Link(self, name).client, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def connect(self, link: Link) -> None:
        task = asyncio.create_task(self._connect(link))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, link: Link) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: link.server, "127.0.0.1", self._port)
        except OSError:
            link.client.reset()  # as if nobody listened
            return
        if link.client.transport is None or link.client.transport.is_closing():
            link.server.reset()

    def lost(self, link: Link) -> None:
        """The server has committed and said so; nobody hears it."""
        link.reset()
        self._tell({"lost": time.time(), "of": link.name})

    def probed(self, link: Link, at: float) -> None:
        """A prober has asked, at this unix time."""
        self._tell({"probe": at, "of": link.name})

    def latency(self, mean: float, jitter: float) -> None:
        self.now.mean, self.now.jitter = mean, jitter

    def lost_commit(self, probability: float) -> None:
        self.now.lost_commit = probability

    def blackhole(self, seconds: float) -> None:
        """Bytes are held for so long, both ways; nothing is closed. 0 ends it."""
        if self._light is not None:
            self._light.cancel()
        self._shade(seconds > 0)
        if seconds > 0:
            self._light = asyncio.get_running_loop().call_later(seconds, self._shade, False)

    def _shade(self, dark: bool) -> None:
        self.now.blackhole = dark
        for link in self.links:
            link.client.adjust()
            link.server.adjust()

    def reset(self) -> None:
        """RST to both sides of every link."""
        for link in list(self.links):
            link.reset()

    def half_close(self) -> None:
        """The clients see the end of the stream; what they had asked for goes on in the server."""
        for link in self.links:
            link.client.end()

    async def obey(self, line: bytes) -> None:
        """One control: `{"do": name, …arguments}`."""
        control: dict[str, Any] = msgspec.json.decode(line)
        name = control.pop("do")
        controls: dict[str, Callable[..., None]] = {
            each.__name__: each
            for each in (self.latency, self.lost_commit, self.blackhole, self.reset, self.half_close)
        }
        links = len(self.links)
        controls[name](**control)
        self._tell({"done": name, "links": links})


async def main(port: int, names: list[str]) -> None:
    """Until stdin ends."""

    def tell(line: dict[str, Any]) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
        sys.stdout.buffer.flush()

    proxy = Proxy(port, tell)
    tell({"ports": {name: await proxy.listen(name) for name in names}})
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        await proxy.obey(line)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2:]))
