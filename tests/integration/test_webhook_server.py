"""The door behind the real server, over real sockets: clients that dawdle, boast or repeat themselves."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests import cloud_bodies as cloud
from tests import receiving
from tests.conftest import Database
from tests.receiving import ENVIRON, Receiver

pytestmark = pytest.mark.anyio

HALF = b"POST /webhooks/meta HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: sha256=0\r\nContent-Length: 1000\r\n\r\n{"


@pytest.fixture
async def web(database: Database, tmp_path: Path) -> AsyncIterator[Receiver]:
    """`qasid web`, as it is run."""
    await receiving.configure(database.url, tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mine = {name: value for name, value in os.environ.items() if not name.startswith("QASID_")}
    theirs = {
        "QASID_DATABASE_URL": database.url,
        "QASID_SECRET_KEY": receiving.KEY,
        "QASID_PORT": str(port),
        "QASID_STATE_DIR": str(tmp_path / "state"),
    }
    command = [str(Path(sys.executable).parent / "qasid"), "web", "--with-parent"]
    with started(command, {**mine, **theirs}) as server:
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
                await answering(http, server)
                yield Receiver(http, database.superuser_url)
        finally:
            server.terminate()


def started(command: list[str], environ: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def answering(http: httpx.AsyncClient, server: "subprocess.Popen[bytes]") -> None:
    """Return once the server is up and ready."""
    async with asyncio.timeout(60):
        while True:
            assert server.poll() is None
            try:
                await receiving.until_ready(http)
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                return


@asynccontextmanager
async def connected(web: Receiver) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", web.http.base_url.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def test_the_real_server_keeps_the_doors_promises(web: Receiver) -> None:
    """One process start for all of them: it is the slowest thing here."""
    await half_sent_bodies_hold_up_nobody(web)
    await what_is_too_large_is_not_read(web)
    await signatures_are_checked_over_raw_bytes(web)


async def half_sent_bodies_hold_up_nobody(web: Receiver) -> None:
    """500 of them stand open; others are answered within a second."""
    async with AsyncExitStack() as open_ones:
        for _ in range(500):
            _, writer = await open_ones.enter_async_context(connected(web))
            writer.write(HALF)
            await writer.drain()
        for _ in range(30):
            began = time.monotonic()
            assert (await web.post(cloud.webhook(cloud.text()))).status_code == 200
            assert time.monotonic() - began < 1
    assert web.counts() == (30, 0, 0)


async def what_is_too_large_is_not_read(web: Receiver) -> None:
    """413 on the announcement, and the connection is closed; chunks without one end the same way."""
    for framing in (b"Content-Length: 5000000\r\n", b"Content-Length: 99999999999999999999\r\n"):
        async with connected(web) as (reader, writer):
            writer.write(b"POST /webhooks/meta HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n")
            async with asyncio.timeout(5):
                head = await reader.read()
        assert head.split(b" ")[1] in (b"413", b"400"), head
    async with connected(web) as (reader, writer):
        writer.write(b"POST /webhooks/meta HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        async with asyncio.timeout(5):
            for _ in range(65):  # a little more than 4 MiB
                writer.write(piece)
                await writer.drain()
            assert b" 413 " in await reader.readline()


async def signatures_are_checked_over_raw_bytes(web: Receiver) -> None:
    """Over a body in any number of pieces; two headers are none."""
    body = cloud.webhook(cloud.text("👍 سلام", id="wamid.pieces"))
    right = cloud.signature(body, ENVIRON["META"])

    async def pieces() -> AsyncIterator[bytes]:
        for n in range(0, len(body), 7):
            yield body[n : n + 7]

    once, twice = [("X-Hub-Signature-256", right)], [("X-Hub-Signature-256", right), ("x-hub-signature-256", right)]
    assert (await web.http.post("/webhooks/meta", content=body, headers=twice)).status_code == 403
    assert (await web.http.post("/webhooks/meta", content=pieces(), headers=once)).status_code == 200
    assert (await web.http.post("/webhooks/%6Deta", content=body, headers=once)).status_code == 404
    assert (await web.http.post("/webhooks/meta?x=1", content=body, headers=once)).status_code == 200
    assert web.one("SELECT count(*) FROM messages WHERE provider_id = 'wamid.pieces'") == 1
