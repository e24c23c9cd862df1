"""One connection through the proxy: pumped both ways, and of what is picked the reply is read and may be swallowed.

A prober's connection is known by its name, and its questions are told, so that nobody's own word is needed for them.
"""

import asyncio
import os
import random
import socket
import struct
import time
from collections import deque
from typing import Protocol, cast

from msgspec import Struct

# The first cycles of a connection belong to its set-up: the pool would only make another.
SPARED_CYCLES = 5
# The application name of a prober's connection (app/prober.py), as its start-up packet says it. What it asks first takes
# two cycles, since the statement is prepared in the first; then each cycle is a question.
PROBER = b"qasid prober\0"
FIRST_CYCLES = 2
FAREWELL = b"X"  # Terminate
READY = b"Z\0\0\0\5"  # ReadyForQuery up to its status byte (PostgreSQL: Message Formats)
_LINGER = struct.pack("ii", 1, 0)  # l_onoff 1, l_linger 0: close() sends RST (socket(7))


class Disturbance(Struct):
    """What is in force now. Times in seconds; `lost_commit` is a probability per commit."""

    mean: float = 0.0
    jitter: float = 0.0
    lost_commit: float = 0.0
    blackhole: bool = False


class Hub(Protocol):
    """What a link needs of the proxy that it belongs to."""

    now: Disturbance
    random: random.Random
    links: set["Link"]

    def connect(self, link: "Link") -> None: ...
    def lost(self, link: "Link") -> None: ...
    def probed(self, link: "Link", at: float) -> None: ...


class Link:
    """One connection: a client's side and the server's, and what was picked of the traffic between them."""

    def __init__(self, proxy: Hub, name: str) -> None:
        self.proxy, self.name = proxy, name
        self.client, self.server = Side(self), Side(self)
        self.client.peer, self.server.peer = self.server, self.client
        self._busy = True  # until the server is ready for the first time
        self._cycles = 0
        self._began = time.time()
        self._probes = False  # a prober's
        self._tail = b""
        self._held: bytearray | None = None  # the reply to a picked cycle

    def from_client(self, data: bytes) -> None:
        if not self._busy:
            self._busy = True
            self._cycles += 1
            if self._probes and self._cycles > FIRST_CYCLES and data[:1] != FAREWELL:
                self.proxy.probed(self, time.time())
            chance = self.proxy.now.lost_commit
            if chance and self._cycles > SPARED_CYCLES and self.proxy.random.random() < chance:
                self._held = bytearray()
        elif self._cycles == 0 and not self._probes and PROBER in data:
            self._probes = True
            # In a blackhole its first bytes are read late, perhaps long after it was given up.
            self.proxy.probed(self, self._began)
        self.server.send(data)

    def from_server(self, data: bytes) -> None:
        if self._held is not None:
            self._held += data
            end = reply_end(self._held)
            if end is None:
                return
            whole, self._held, self._busy, self._tail = bytes(self._held), None, False, b""
            if is_commit(whole[:end]):
                self.proxy.lost(self)
                return
            self._pass_on(whole)
            return
        if self._busy:
            self._tail = (self._tail + data[-6:])[-6:]
            if self._tail[:5] == READY:
                self._busy, self._tail = False, b""
        self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        now = self.proxy.now
        self.client.send(data, self.proxy.random.uniform(now.mean - now.jitter, now.mean + now.jitter))

    def reset(self) -> None:
        for side in (self.client, self.server):
            side.reset()


class Side(asyncio.Protocol):
    """One socket of a link. What is sent to it leaves in order, however each piece is delayed."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.peer: Side = self
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []  # of a client that spoke before the server's side was connected
        # What is delayed, each with its time; a timer for the first alone. Timers of one instant ring in any order, and
        # uvloop's are rounded: with one for each piece the stream would come out shuffled, as no TCP does.
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._reading = True
        self._full = False  # what this side's peer reads has nowhere to go
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by name
        self.link.proxy.links.add(self.link)
        asyncio.get_running_loop().call_soon(self.adjust)  # uvloop begins to read after this call, whatever it says
        if self is self.link.client:
            self.link.proxy.connect(self.link)
        for data in self._early:
            self.transport.write(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self is self.link.client:
            self.link.from_client(data)
        else:
            self.link.from_server(data)

    def send(self, data: bytes, delay: float = 0.0) -> None:
        if delay <= 0 and not self._under_way:
            self._write(data)
            return
        due = asyncio.get_running_loop().time() + delay
        self._under_way.append((due, data))
        if len(self._under_way) == 1:
            asyncio.get_running_loop().call_at(due, self._arrive)

    def _arrive(self) -> None:
        now = asyncio.get_running_loop().time()
        while True:
            _, data = self._under_way.popleft()
            self._write(data)
            if not self._under_way:
                return
            if (due := self._under_way[0][0]) > now:
                asyncio.get_running_loop().call_at(due, self._arrive)
                return

    def _write(self, data: bytes) -> None:
        if self.transport is None:
            self._early.append(data)
        elif not self.transport.is_closing() and not self._ended:
            self.transport.write(data)

    def end(self) -> None:
        """Send FIN and read on."""
        if self.transport is not None and not self.transport.is_closing() and not self._ended:
            self._ended = True
            self.transport.write_eof()

    def pause_writing(self) -> None:
        self._full = True
        self.peer.adjust()

    def resume_writing(self) -> None:
        self._full = False
        self.peer.adjust()

    def adjust(self) -> None:
        """Read, or let the kernel keep what comes: in a blackhole an end of the connection is not noticed either."""
        wanted = not self.link.proxy.now.blackhole and not self.peer._full
        if self.transport is not None and not self.transport.is_closing() and wanted != self._reading:
            self._reading = wanted
            (self.transport.resume_reading if wanted else self.transport.pause_reading)()

    def eof_received(self) -> bool:
        """PostgreSQL and libpq have nothing to say to a side that has ended: both are closed."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.link.proxy.links.discard(self.link)
        if isinstance(error, ConnectionError):
            self.peer.reset()
        elif self.peer.transport is not None:
            self.peer.transport.close()

    def reset(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            self.transport.abort()


def reply_end(data: bytes | bytearray) -> int | None:
    """Where the first ReadyForQuery in a reply ends, or None if it has not come yet."""
    at = 0
    while len(data) - at >= 5:
        length = int.from_bytes(data[at + 1 : at + 5], "big") + 1
        if data[at] == 0x5A and len(data) - at >= length:  # Z
            return at + length
        at += length
    return None


def is_commit(reply: bytes) -> bool:
    """Whether a reply up to its ReadyForQuery says that a command was done, and that no transaction is open."""
    at, done = 0, False
    while at < len(reply):
        done = done or reply[at] == 0x43  # C: CommandComplete
        at += int.from_bytes(reply[at + 1 : at + 5], "big") + 1
    return done and reply.endswith(b"I")
