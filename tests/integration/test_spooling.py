"""The door with a spool while PostgreSQL is away, frozen or slow: 200 in time, and all of it is in the database afterwards, once.

On the cluster of test_webhook_outages.py, whose processes may be stopped.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from click.testing import CliRunner, Result
from prometheus_client import REGISTRY

from app import backlog, cli, prober
from app.spool import Record, frames
from app.spool.segments import Segment
from app.vault import Vault
from tests import cloud_bodies as cloud
from tests import receiving
from tests.integration import test_webhook_outages as outages
from tests.integration.test_webhook_outages import DEADLINE, in_time, stored_once, webhooks
from tests.integration.test_webhook_server import answering, started
from tests.outages import Server, children
from tests.receiving import Receiver

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

state, server = outages.state, outages.server

# The breaker opens within two seconds of a loss, and closes within ten of its end.
OPENS, CLOSES = 2.0, 10.0
WEB = [sys.executable, "-m", "app.cli", "web", "--with-parent"]
TAKES_NOTHING = "The spool takes nothing: the spool's disk: Not a directory."


@asynccontextmanager
async def process(server: Server, folder: Path, *, ready: bool = True, **more: Any) -> AsyncIterator[Receiver]:
    url, superuser_url = server.cluster.url, server.cluster.superuser_url
    settings = {"ack_deadline_seconds": DEADLINE, "spool_dir": folder, **more}
    async with receiving.process(url, superuser_url, ready=ready, **settings) as receiver:
        yield receiver


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The breaker closes, and a replay begins anew, in a part of a second: where that is not what is tested."""
    monkeypatch.setattr(prober, "INTERVAL", 0.1)
    monkeypatch.setattr(backlog, "AGAIN", 0.2)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


async def breaker(web: Receiver, state: str, timeout: float) -> float:
    """Wait until /metrics shows the database's breaker so; the seconds that took."""
    began = time.monotonic()
    async with asyncio.timeout(timeout):
        while f'qasid_breaker_state{{dependency="database",state="{state}"}} 1.0' not in await metrics(web):
            await asyncio.sleep(0.05)
    return time.monotonic() - began


async def metrics(web: Receiver) -> str:
    return (await web.http.get("/metrics")).text


def counted(name: str, **labels: str) -> float:
    """What a counter of this process says."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def brought_in(web: Receiver, folder: Path) -> None:
    """Nothing lies in the spool any more."""
    async with asyncio.timeout(CLOSES + 10):
        while segments(folder):
            await asyncio.sleep(0.05)


async def test_what_a_frozen_database_cannot_take_is_kept_and_brought_in(server: Server, tmp_path: Path) -> None:
    """200 in time before the breaker opens and at once when it is open; then each message and status once, in one lane."""
    await receiving.configure(server.cluster.url, tmp_path)
    folder = tmp_path / "spool"
    bodies = webhooks(40)
    async with process(server, folder) as web:
        assert (await web.post(bodies[0])).status_code == 200
        with server.frozen():
            posts = [asyncio.create_task(web.post(body)) for body in bodies[:20]]
            assert await asyncio.gather(*map(in_time, posts)) == [200] * 20
            await breaker(web, "open", OPENS)
            began = time.monotonic()
            posts = [asyncio.create_task(web.post(body)) for body in bodies[20:]]
            assert [answer.status_code for answer in await asyncio.gather(*posts)] == [200] * 20
            assert time.monotonic() - began < DEADLINE, "an open breaker is not waited for"
            assert (await web.http.get("/readyz")).status_code == 200, "taken out of rotation it would keep nothing"
            assert (await web.http.get("/livez")).status_code == 200
            assert segments(folder)
        await breaker(web, "closed", CLOSES)
        await brought_in(web, folder)
        stored_once(web, bodies)


@pytest.mark.usefixtures("impatient")
async def test_another_process_brings_in_what_one_has_kept(server: Server, tmp_path: Path) -> None:
    """It ends with the database still away; the next one finds the folder."""
    await receiving.configure(server.cluster.url, tmp_path)
    folder = tmp_path / "spool"
    bodies = webhooks(10)
    async with process(server, folder) as web:
        await asyncio.to_thread(server.stop)
        posts = [asyncio.create_task(web.post(body)) for body in bodies]
        assert await asyncio.gather(*map(in_time, posts)) == [200] * 10
    await asyncio.to_thread(server.start)
    async with process(server, folder) as web:
        await brought_in(web, folder)
        stored_once(web, bodies)


def free_port() -> str:
    """One on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environ(server: Server, folder: Path, **more: str) -> dict[str, str]:
    """This spool, this database, and no other QASID_* settings."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("QASID_")}
    ours = {
        "QASID_DATABASE_URL": server.cluster.url,
        "QASID_SECRET_KEY": receiving.KEY,
        "QASID_SPOOL_DIR": str(folder),
    }
    return {**others, **ours, **more}


def qasid_spool(server: Server, folder: Path, *words: str) -> Result:
    """`qasid spool` with these words."""
    unset: dict[str, str | None] = dict.fromkeys(os.environ)
    ours = environ(server, folder, QASID_SPOOL_MAX_BYTES="2000000")
    return CliRunner().invoke(cli.main, ("spool", *words), env={**unset, **ours})


def refusal(server: Server, folder: Path) -> str:
    """What `qasid web` says at its start, of which it dies: its exit code is 2."""
    ours = environ(server, folder, QASID_PORT=free_port(), QASID_STATE_DIR=str(folder.parent / "state of nobody"))
    ended = subprocess.run(WEB, env=ours, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2
    return ended.stderr


async def test_a_person_sees_what_lies_there_and_brings_it_in(server: Server, tmp_path: Path) -> None:
    """`qasid spool` needs no database; `qasid spool replay` says when there is none, and else stores each webhook once."""
    await receiving.configure(server.cluster.url, tmp_path)
    folder = tmp_path / "spool"
    bodies = webhooks(10)
    async with process(server, folder) as web:
        await asyncio.to_thread(server.stop)
        posts = [asyncio.create_task(web.post(body)) for body in bodies]
        assert await asyncio.gather(*map(in_time, posts)) == [200] * 10
    shown = await asyncio.to_thread(qasid_spool, server, folder)
    assert (shown.exit_code, "10 in " in shown.output, "of 2,000,000" in shown.output) == (0, True, True), shown.output
    too_soon = await asyncio.to_thread(qasid_spool, server, folder, "replay")
    assert (too_soon.exit_code != 0, len(segments(folder)) > 0) == (True, True), too_soon.output
    await asyncio.to_thread(server.start)
    brought = await asyncio.to_thread(qasid_spool, server, folder, "replay")
    assert (brought.exit_code, brought.output.startswith("10 webhooks brought in")) == (0, True), brought.output
    assert not segments(folder)
    async with process(server, folder) as web:
        stored_once(web, bodies)


@pytest.mark.usefixtures("impatient")
async def test_a_lane_that_is_held_holds_up_nobody_elses_webhooks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is spooled for it waits for the next replay; what is spooled behind it is brought in."""
    monkeypatch.setattr(backlog, "PATIENCE", 0.3)
    await receiving.configure(server.cluster.url, tmp_path)
    folder = tmp_path / "spool"
    held = [cloud.webhook(cloud.text()) for _ in range(backlog.AT_ONCE + 1)]
    others = [cloud.webhook(cloud.text(**{"from": f"1555000{n:04d}"})) for n in range(3)]
    async with process(server, folder) as web:
        assert (await web.post(held[0])).status_code == 200
        with server.frozen():
            for body in [*held[1:], *others]:
                assert (await web.post(body)).status_code == 200
        with psycopg.connect(server.cluster.superuser_url) as holder:
            holder.execute("SELECT FROM lanes FOR UPDATE")
            async with asyncio.timeout(30):
                while any(web.unaccounted(body) for body in others):
                    await asyncio.sleep(0.1)
            assert web.unaccounted(held[1])
            holder.rollback()
        await brought_in(web, folder)
        assert [body for body in [*held, *others] if web.unaccounted(body)] == []


@pytest.mark.usefixtures("impatient")
async def test_a_full_spool_answers_503_and_drops_nothing(server: Server, tmp_path: Path) -> None:
    """At its bound it takes nothing more: the provider keeps the rest; what it holds is brought in."""
    await receiving.configure(server.cluster.url, tmp_path)
    folder = tmp_path / "spool"
    bodies = [cloud.webhook(cloud.text("x" * 4000), statuses=[cloud.status(cloud.fresh())]) for _ in range(20)]
    async with process(server, folder, spool_max_bytes=50_000) as web:
        assert (await web.post(bodies[0])).status_code == 200
        await asyncio.to_thread(server.stop)
        try:
            await breaker(web, "open", OPENS)
            answers = [(await web.post(body)).status_code for body in bodies]
            assert set(answers) == {200, 503} and answers[0] == 200 and answers[-1] == 503
        finally:
            await asyncio.to_thread(server.start)
        await brought_in(web, folder)
        await outages.redelivered(web, bodies)
        stored_once(web, bodies)


@pytest.mark.usefixtures("impatient")
async def test_a_spool_that_cannot_be_opened_answers_503_and_keeps_again_when_it_can(
    server: Server, tmp_path: Path
) -> None:
    """The process begins beside it and takes webhooks all the same; what the database cannot take is refused and counted."""
    await receiving.configure(server.cluster.url, tmp_path)
    folder = tmp_path / "spool"
    folder.write_text("")
    bodies = webhooks(4)
    refused, called = counted("qasid_spooled_total", result="refused"), receiving.alerts("spool_refuses")
    async with process(server, folder) as web:
        assert (await web.http.get("/readyz")).json() == {"ready": True, "reason": TAKES_NOTHING}
        assert receiving.alerts("spool_refuses") == called + 1
        assert (await web.post(bodies[0])).status_code == 200
        await asyncio.to_thread(server.stop)
        await breaker(web, "open", OPENS)
        try:
            assert (await web.post(bodies[1])).status_code == 503
            assert counted("qasid_spooled_total", result="refused") == refused + 1
            answer = await web.http.get("/readyz")
            assert (answer.status_code, answer.json()["reason"].endswith(f". {TAKES_NOTHING}")) == (503, True)
            folder.unlink()
            async with asyncio.timeout(5):
                while (await web.post(bodies[2])).status_code != 200:
                    await asyncio.sleep(0.05)
            assert segments(folder)
        finally:
            await asyncio.to_thread(server.start)
        await brought_in(web, folder)
        await outages.redelivered(web, bodies)
        stored_once(web, bodies)


@pytest.mark.usefixtures("impatient")
async def test_while_statuses_may_lie_in_the_spool_silence_does_not_count(server: Server, tmp_path: Path) -> None:
    """They were answered 200 and never come again: until they are brought in, each beat of the door begins silence anew."""
    await receiving.configure(server.cluster.url, tmp_path)
    folder = tmp_path / "spool"
    [body] = webhooks(1)
    async with process(server, folder) as web:
        with psycopg.connect(server.cluster.superuser_url) as holder:
            holder.execute("LOCK TABLE messages, statuses IN ACCESS EXCLUSIVE MODE")
            assert (await web.post(body)).status_code == 200
            kept = web.one("SELECT clock_timestamp()")
            async with asyncio.timeout(10):
                while not web.one("SELECT bool_and(at > %s + interval '1 second') FROM disturbances", kept):
                    await asyncio.sleep(0.05)
            holder.rollback()
        await brought_in(web, folder)
        stored_once(web, [body])


@asynccontextmanager
async def armed(server: Server, tmp_path: Path, crashpoint: str) -> AsyncIterator[Receiver]:
    """`qasid web` whose process is killed each time it first passes this point."""
    async with qasid_web(server, tmp_path, CRASHPOINT=f"{crashpoint}:1") as (web, _):
        yield web


@asynccontextmanager
async def qasid_web(server: Server, tmp_path: Path, **more: str) -> AsyncIterator[tuple[Receiver, int]]:
    """`qasid web` as it is run, with one server process, and its id."""
    port = free_port()
    ours = environ(
        server,
        tmp_path / "spool",
        QASID_PORT=port,
        QASID_STATE_DIR=str(tmp_path / "state of the web process"),
        QASID_WEB_WORKERS="1",
        **more,
    )
    with started(WEB, ours) as child:
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
                await answering(http, child)
                yield Receiver(http, server.cluster.superuser_url), child.pid
        finally:
            child.kill()  # its server process ends with it; one that has just begun would swallow a SIGTERM for 15 s


async def test_killed_between_the_disk_and_the_answer_it_is_stored_once(server: Server, tmp_path: Path) -> None:
    """The provider heard nothing and sends it again; it lies in the spool besides."""
    await receiving.configure(server.cluster.url, tmp_path)
    folder = tmp_path / "spool"
    [body] = webhooks(1)
    async with armed(server, tmp_path, "spool.synced") as web:
        await asyncio.to_thread(server.stop)
        with pytest.raises(httpx.TransportError):
            await web.post(body)
    await asyncio.to_thread(server.start)
    assert segments(folder)
    async with process(server, folder) as web:
        await outages.redelivered(web, [body])
        await brought_in(web, folder)
        stored_once(web, [body])


async def test_killed_between_the_commit_and_the_end_of_the_segment_it_is_stored_once(
    server: Server, tmp_path: Path
) -> None:
    """All of it is in the database, and comes once more."""
    await receiving.configure(server.cluster.url, tmp_path)
    folder = tmp_path / "spool"
    bodies = webhooks(10)
    async with process(server, folder) as web:
        await asyncio.to_thread(server.stop)
        posts = [asyncio.create_task(web.post(body)) for body in bodies]
        assert await asyncio.gather(*map(in_time, posts)) == [200] * 10
    await asyncio.to_thread(server.start)
    with pytest.raises((httpx.TransportError, TimeoutError, AssertionError)):
        async with armed(server, tmp_path, "spool.replayed") as web, asyncio.timeout(20):
            while True:  # until it has died of it
                await web.http.get("/livez")
                await asyncio.sleep(0.02)
    assert segments(folder), "the kill came before the end of the segment"
    async with process(server, folder) as web:
        assert web.counts() == (10, 10, 0)
        await brought_in(web, folder)
        stored_once(web, bodies)


async def test_a_server_process_that_begins_anew_beside_a_broken_spool_serves(server: Server, tmp_path: Path) -> None:
    """`qasid web` refuses such a folder at its start, once; after that PostgreSQL alone decides who is answered 200."""
    await receiving.configure(server.cluster.url, tmp_path)
    folder, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    bodies = webhooks(2)
    async with qasid_web(server, tmp_path) as (web, pid):
        assert (await web.post(bodies[0])).status_code == 200
        folder.rename(elsewhere)
        folder.write_text("")
        for each in children(pid):
            os.kill(each, signal.SIGKILL)
        async with asyncio.timeout(30):
            while True:
                with suppress(httpx.TransportError):
                    answer = await web.http.get("/readyz")
                    if answer.status_code == 200 and answer.json()["reason"] == TAKES_NOTHING:
                        break
                await asyncio.sleep(0.05)
        assert (await web.post(bodies[1])).status_code == 200
        stored_once(web, bodies)
        assert "qasid_spool_refuses 1.0" in await metrics(web)
        assert "is no folder" in await asyncio.to_thread(refusal, server, folder)
        folder.unlink()
        elsewhere.rename(folder)
        async with asyncio.timeout(5):
            while (await web.http.get("/readyz")).json() != {"ready": True, "reason": ""}:
                await asyncio.sleep(0.05)


def test_who_only_looks_makes_no_folder(server: Server, tmp_path: Path) -> None:
    """A wrong QASID_SPOOL_DIR is said: exit code 2, nothing made."""
    folder = tmp_path / "nobody" / "spool"
    for words in ((), ("replay",)):
        told = qasid_spool(server, folder, *words)
        assert (told.exit_code, told.output) == (
            2,
            f"qasid: QASID_SPOOL_DIR: there is no folder {folder}. `qasid web` makes it when it starts.\n",
        )
    assert not folder.parent.exists()


def test_qasid_web_refuses_a_spool_that_cannot_be_used(server: Server, tmp_path: Path) -> None:
    """Before it begins any server process: the folder, what is wrong, what to do, and exit code 2."""
    (tmp_path / "file").write_text("")
    assert f"QASID_SPOOL_DIR: {tmp_path / 'file'} is no folder" in refusal(server, tmp_path / "file")
    folder, other = tmp_path / "spool", Vault([bytes(32)])
    folder.mkdir()
    segment = Segment.begin(folder, 1_000.0)
    record = Record(endpoint_id=uuid4(), endpoint="meta", correlation="c", received_at=0.0, body=b"{}")
    segment.append(frames.seal(other, segment.path.name, 0, record), 1)
    segment.close()
    said = refusal(server, folder)
    assert f"{segment.path} was sealed under key {other.key_ids[0]}" in said and "Put that key back" in said
    brought = qasid_spool(server, folder, "replay")
    assert (brought.exit_code, "1 webhook is sealed under a key" in brought.output) == (1, True), brought.output
    shown = qasid_spool(server, folder)
    assert "webhooks    1 in 1 file\n" in shown.output
    assert (shown.exit_code, f"no key for  {other.key_ids[0]}" in shown.output) == (0, True), shown.output
    assert "apart       1 that" in shown.output, shown.output
