"""Asks /livez of a port of loopback, again and again, until stdin ends; then says when, and how many ms each answer took.

A process of its own, so that what it measures is the web process and not whoever else is busy in this one.
"""

import select
import socket
import sys
import time

import msgspec

from app.process import end_with_parent

EVERY = 0.02  # seconds
REQUEST = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def main(port: int) -> None:
    """Write a JSON list of (unix seconds, ms)."""
    end_with_parent()
    heard: list[tuple[float, float]] = []
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not select.select([sys.stdin], [], [], EVERY)[0]:
            asked, began = time.time(), time.perf_counter()
            connection.sendall(REQUEST)
            answer = b""
            while not answer.endswith(b"alive\n"):
                more = connection.recv(4096)
                if not more:
                    raise SystemExit("the web process has hung up")
                answer += more
            heard.append((asked, (time.perf_counter() - began) * 1000))
    sys.stdout.buffer.write(msgspec.json.encode(heard))


if __name__ == "__main__":
    main(int(sys.argv[1]))
