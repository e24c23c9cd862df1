"""Posts signed webhooks of one text message each: as fast as they are answered, or at a pace.

A process of its own: reads an `Order` as JSON from standard input, writes an `Outcome` to standard output. All requests
are built beforehand: while it measures, it writes bytes and reads status lines.
"""

import asyncio
import hashlib
import hmac
import json
import random
import subprocess
import sys
import time
from collections import deque
from typing import cast

import msgspec
import uvloop
from msgspec import Struct

from app.process import end_with_parent
from tests.bench.figures import BenchFailed

TEXT = (
    "Peace be upon you. I wrote last week about the appointment for my mother, who is seventy-four and walks with a "
    "stick. The clinic said that somebody would call, and nobody has. Could you tell me whether Thursday morning is "
    "still free, whether the lift works again, and what papers she needs to bring? السلام عليكم ورحمة الله. "
    "Thank you, and forgive the length!"
)


class Order(Struct, frozen=True, kw_only=True):
    """What to send where. `count` requests at most, for `seconds` at most; `rate` per second, 0: as they are answered.

    `run` marks this order's message ids. Each message is of one of `people`, drawn by chance, or of each in turn.
    """

    port: int
    endpoint: str
    address: str
    secret: str
    run: str
    people: int
    count: int
    seconds: float
    rate: float = 0.0
    connections: int = 64
    in_turn: bool = False


class Outcome(Struct, frozen=True, kw_only=True):
    """`sent` requests, the first `sent` serials; `refused` are the serials that were not answered 200."""

    sent: int
    refused: list[int]
    seconds: float
    cpu_seconds: float
    ack_ms: list[float]


def wamid(run: str, serial: int) -> str:
    """The message id of one request: shaped like Meta's, never the same twice."""
    return f"wamid.HBgLMTU1NTAwMDIyMjIVAgASGBQz{run}{serial:08d}A=="


def person(number: int) -> str:
    """A phone number of nobody."""
    return f"1555{number:07d}"


def requests(order: Order) -> list[bytes]:
    """Every request of an order, whole."""
    draw = random.Random(order.run)
    text, stamp, key = json.dumps(TEXT)[1:-1], int(time.time()), order.secret.encode()
    head = (
        f"POST /webhooks/{order.endpoint} HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\n"
        "User-Agent: facebookexternalua\r\nContent-Type: application/json\r\n"
    ).encode()
    before = (
        '{"object":"whatsapp_business_account","entry":[{"id":"900000000000001","changes":[{"value":{'
        '"messaging_product":"whatsapp","metadata":{"display_phone_number":"15550001111",'
        f'"phone_number_id":"{order.address}"}},'
    ).encode()
    built = []
    for serial in range(order.count):
        who = person(serial % order.people if order.in_turn else draw.randrange(order.people))
        body = (
            before
            + (
                f'"contacts":[{{"profile":{{"name":"Person {who}"}},"wa_id":"{who}"}}],"messages":[{{"from":"{who}",'
                f'"id":"{wamid(order.run, serial)}","timestamp":"{stamp}","text":{{"body":"{text}"}},"type":"text"}}]'
                '},"field":"messages"}]}]}'
            ).encode()
        )
        built.append(
            head
            + f"X-Hub-Signature: sha1={hmac.digest(key, body, hashlib.sha1).hex()}\r\n"
            f"X-Hub-Signature-256: sha256={hmac.digest(key, body, hashlib.sha256).hex()}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
    return built


class Load:
    """Hands requests to idle connections and notes when each was answered."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.refused: list[int] = []
        self.ack_ms: list[float] = []
        self.sent = 0
        self.began = 0.0
        self.ended = 0.0
        self._requests = requests(order)
        # In turn: one that rests for some seconds is closed by the server.
        self._idle: deque[_Connection] = deque()
        self._late: deque[float] = deque()  # when they were due: requests that found every connection at work
        self._flying = 0
        self._over = asyncio.Event()
        self._at_will = not order.rate  # each answer brings the next request
        self._paced = False  # the pace has been kept to its end
        self.lost = ""

    async def run(self) -> None:
        """Connect, send, and wait for the last answer."""
        loop = asyncio.get_running_loop()
        for _ in range(self.order.connections):
            _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.order.port)
            self._idle.append(connection)
        self.began = time.perf_counter()
        if self._at_will:
            while self._idle:
                self._next(self._idle.popleft(), self.began)
        else:
            await self._pace()
        async with asyncio.timeout(self.order.seconds + 30):
            await self._over.wait()

    async def _pace(self) -> None:
        """An open loop: a request's time runs from when it was due, whoever is late."""
        count = min(self.order.count, int(self.order.rate * self.order.seconds))
        for serial in range(count):
            due = self.began + serial / self.order.rate
            if self.lost:
                return
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            if self._idle:
                self._send(self._idle.popleft(), due)
            else:
                self._late.append(due)
        self._paced = True
        self._end_if_over()

    def _next(self, connection: "_Connection", now: float) -> None:
        if self.sent < self.order.count and now - self.began < self.order.seconds:
            self._send(connection, now)
        else:
            self._end_if_over()

    def _send(self, connection: "_Connection", since: float) -> None:
        self._flying += 1
        connection.send(self.sent, self._requests[self.sent], since)
        self.sent += 1

    def answered(self, connection: "_Connection", serial: int, since: float, status: bytes) -> None:
        """An answer is whole."""
        self.ended = now = time.perf_counter()
        self._flying -= 1
        self.ack_ms.append((now - since) * 1000)
        if status != b"200":
            self.refused.append(serial)
        if self._at_will:
            self._next(connection, now)
        elif self._late:
            self._send(connection, self._late.popleft())
        else:
            self._idle.append(connection)
            self._end_if_over()

    def hung_up(self) -> None:
        """The server closed a connection on us: with a request under way, or while it rested."""
        self.lost = "the server closed a connection"
        self._over.set()

    def _end_if_over(self) -> None:
        if self._flying == 0 and not self._late and (self._at_will or self._paced):
            self._over.set()


class _Connection(asyncio.Protocol):
    """One kept-alive connection with one request under way at most."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._serial = -1
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are not registered as such

    def send(self, serial: int, request: bytes, since: float) -> None:
        self._serial, self._since = serial, since
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        answer = self._buffer + data
        head, blank, body = answer.partition(b"\r\n\r\n")
        if not blank or len(body) < _length(head):
            self._buffer = answer
            return
        self._buffer = b""
        serial, self._serial = self._serial, -1
        self._load.answered(self, serial, self._since, answer[9:12])

    def connection_lost(self, error: Exception | None) -> None:
        self._load.hung_up()


def _length(head: bytes) -> int:
    lower = head.lower()
    at = lower.find(b"content-length:")
    return int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


def carried_out(order: Order) -> Outcome:
    """What came of an order, carried out by a process of its own. Raises BenchFailed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.load"],
        input=msgspec.json.encode(order),
        capture_output=True,
        timeout=order.seconds + 120,
        check=False,
    )
    if done.returncode:
        raise BenchFailed(f"the load generator failed: {done.stderr.decode().strip()[-500:]}")
    return msgspec.json.decode(done.stdout, type=Outcome)


async def _carry_out(order: Order) -> Outcome:
    load = Load(order)
    began = time.process_time()
    await load.run()
    if load.lost:
        raise SystemExit(f"load: {load.lost}")
    return Outcome(
        sent=load.sent,
        refused=load.refused,
        seconds=load.ended - load.began,
        cpu_seconds=time.process_time() - began,
        ack_ms=load.ack_ms,
    )


def main() -> None:
    """Carry out the order on standard input."""
    end_with_parent()
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(_carry_out(order))
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()
