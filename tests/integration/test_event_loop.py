"""No request handler and no job holds the event loop up for 50 ms: each is done over and over, every stretch measured.

By the clock, asleep or busy alike, less what the kernel says that the thread waited for a core; and each thing several
times, since what truly blocks does so each time. So a machine that others use, too, makes no offender.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute

from app import db, metrics, passwords
from app.asgi import create_app
from app.settings import Settings
from app.spool import Record, Spool
from app.store import operators
from app.vault import Vault
from tests import cloud_bodies as cloud
from tests import receiving
from tests import world as shared
from tests.conftest import Database
from tests.loop_meter import LIMIT, Meter, Stretch, source
from tests.receiving import ENVIRON
from tests.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

world = shared.world
MOST_BYTES = 4 * 1024 * 1024
NAME, PASSWORD = "Layla", "correct horse battery"
HERE = source(__file__)
Drive = Callable[[], Awaitable[object]]


@pytest.fixture
def meter() -> Iterator[Meter]:
    with Meter().looking() as meter:
        yield meter


@pytest.fixture
def anyio_backend(meter: Meter) -> tuple[str, dict[str, Any]]:
    """asyncio's own loop, whose selector measures."""
    return "asyncio", {"loop_factory": meter.new_loop}


@pytest.fixture
async def app(database: Database, tmp_path: Path) -> AsyncIterator[Litestar]:
    """The web process's application, with an operator, and patient: a slow machine is no outage."""
    await receiving.configure(database.url, tmp_path)
    async with db.pool(database.url, "qasid_app", name="test", max_size=1) as pool, db.acting(pool) as conn:
        assert await operators.add(conn, NAME, passwords.hashed(PASSWORD))
    app = create_app(Settings(database_url=database.url, secret_key=receiving.KEY, ack_deadline_seconds=30.0))
    async with app.lifespan():
        yield app


@pytest.fixture
async def http(app: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="https://qasid.test") as http:
        await receiving.until_ready(http)
        yield http


def told(worst: dict[str, Stretch]) -> str:
    """Each of them, the longest first."""
    return "\n".join(f"{name}: {stretch}" for name, stretch in sorted(worst.items(), key=lambda each: -each[1].took))


def offenders(worst: dict[str, Stretch]) -> dict[str, Stretch]:
    return {name: stretch for name, stretch in worst.items() if stretch.took >= LIMIT}


# --- web -------------------------------------------------------------------------------------------------------------


def filled(size: int, item: Callable[[str], cloud.Json], kind: str, count: int) -> bytes:
    """A webhook of so many items, and as near below `size` bytes as they make it."""

    def made(words: str) -> bytes:
        return cloud.encode(cloud.envelope(cloud.value(**{kind: [item(words) for _ in range(count)]})))

    room = (size - len(made(""))) // count
    return made("سلام 👍 " * (room // len(json.dumps("سلام 👍 "))))


def bodies() -> dict[str, Callable[[], bytes]]:
    """Webhooks small and as large as the door lets in, by what they are. Each is made anew, with ids of its own."""

    def texts(count: int) -> bytes:
        return filled(MOST_BYTES, cloud.text, "messages", count)

    def statuses(count: int) -> bytes:
        return filled(
            MOST_BYTES, lambda words: cloud.status(cloud.fresh(), pricing={"category": words}), "statuses", count
        )

    return {
        "a text": lambda: cloud.webhook(cloud.text("salam")),
        "a status": lambda: cloud.webhook(statuses=[cloud.status(cloud.fresh())]),
        "one text of 4 MiB": lambda: texts(1),
        "2,000 texts of 4 MiB": lambda: texts(2_000),
        "2,000 statuses of 4 MiB": lambda: statuses(2_000),
        "20,000 texts of 4 MiB": lambda: texts(20_000),
        "2,000 texts of 4 MiB, and half an emoji": lambda: texts(2_000).replace(rb"\ud83d\udc4d", rb"\ud83d", 1),
        "4 MiB of nonsense": lambda: b"[" * MOST_BYTES,
        "40,000 entries of 4 MiB that cannot be read": lambda: (
            b'{"entry":[' + b",".join([b'"%s"' % (b"x" * 100)] * 40_000) + b"]}"
        ),
    }


async def post(http: httpx.AsyncClient, body: bytes, status: int, secret: str = ENVIRON["META"]) -> None:
    headers = {"x-hub-signature-256": await asyncio.to_thread(cloud.signature, body, secret)}
    answered = await http.post("/webhooks/meta", content=body, headers=headers)
    assert answered.status_code == status, answered.text


async def posting(http: httpx.AsyncClient, make: Callable[[], bytes]) -> None:
    await post(http, await asyncio.to_thread(make), 200)


def asking(http: httpx.AsyncClient, method: str, path: str, *statuses: int, **more: Any) -> Drive:
    async def ask() -> None:
        answered = await http.request(method, path, **more)
        assert answered.status_code in statuses, (method, path, answered.status_code)

    return ask


CHALLENGE = (
    f"/webhooks/meta?hub.mode=subscribe&hub.challenge=1&hub.verify_token={ENVIRON['VERIFY'].replace('&', '%26')}"
)


def requests(http: httpx.AsyncClient) -> dict[str, Drive]:
    """What people, probes and machines ask of it, in the order in which a browser could. All but the last leave it logged in."""
    right, wrong = {"name": NAME, "password": PASSWORD}, {"name": "Nobody", "password": "x"}
    asked: list[tuple[str, str, int, dict[str, Any]]] = [
        ("GET", "/livez", 200, {}),
        ("GET", "/readyz", 200, {}),
        ("GET", "/metrics", 200, {}),
        ("GET", CHALLENGE, 200, {}),
        ("GET", "/webhooks/nobody", 404, {}),
        ("GET", "/login", 200, {}),
        ("POST", "/login", 401, {"data": wrong}),
        ("POST", "/login", 303, {"data": right}),
        ("GET", "/jobs", 302, {}),
        ("GET", "/jobs/", 200, {}),
        ("GET", "/jobs/queues/wake", 200, {}),
        ("GET", "/jobs/queues/wake/jobs/x", 200, {}),
        ("GET", "/jobs/health", 200, {}),
        ("GET", "/jobs/static/app.js", 200, {}),
        ("GET", "/jobs/api/queues", 200, {}),
        ("GET", "/jobs/api/queues/wake", 200, {}),
        ("GET", "/jobs/api/queues/wake/jobs/x", 404, {}),
        ("POST", "/jobs/api/queues/wake/jobs/x/retry", 404, {}),
        ("POST", "/jobs/api/queues/wake/jobs/x/abort", 404, {}),
        ("GET", "/schema", 200, {}),
        ("GET", "/schema/openapi.json", 200, {}),
        ("GET", "/schema/static/swagger-ui-bundle.js.gz", 200, {}),
        ("POST", "/logout", 303, {}),
    ]
    return {
        f"{method} {path} → {status}": asking(http, method, path, status, 429 if path == "/login" else status, **more)
        for method, path, status, more in asked
    }


def undriven(app: Litestar, names: dict[str, Drive]) -> list[str]:
    """The ways in that none of these goes."""
    asked = [tuple(name.partition("?")[0].split(" ")[:2]) for name in names]
    return [
        f"{method} {route.path_format}"
        for route in app.routes
        for method in (sorted(route.methods - {"OPTIONS", "HEAD"}) if isinstance(route, HTTPRoute) else ())
        if not any(
            method == how and re.fullmatch(re.sub(r"\{[^}]*\}", ".+", route.path_format), path) for how, path in asked
        )
    ]


async def test_no_request_holds_the_loop_up(app: Litestar, http: httpx.AsyncClient, meter: Meter) -> None:
    """Every way into the web process, and webhooks of all kinds up to the largest: no stretch of 50 ms."""
    drives = requests(http)
    assert undriven(app, drives) == []
    worst = {name: await meter.worst_of(drive) for name, drive in drives.items()}
    print(told(worst))
    assert not offenders(worst), told(offenders(worst))


async def test_no_webhook_holds_the_loop_up(http: httpx.AsyncClient, meter: Meter) -> None:
    """One item or thousands, up to the largest body, whole, broken or forged: no stretch of 50 ms."""
    worst = {name: await meter.worst_of(partial(posting, http, make)) for name, make in bodies().items()}
    forged = await asyncio.to_thread(bodies()["2,000 texts of 4 MiB"])
    worst["forged"] = await meter.worst_of(lambda: post(http, forged, 403, "not the secret"))
    print(told(worst))
    assert not offenders(worst), told(offenders(worst))


async def test_no_webhook_from_the_spool_holds_the_loop_up(database: Database, tmp_path: Path, meter: Meter) -> None:
    """The largest webhook on its way back from the disk: no stretch of 50 ms."""
    await receiving.configure(database.url, tmp_path)
    keys, folder = Vault([bytes.fromhex(receiving.KEY)]), tmp_path / "spool"
    async with receiving.process(database.url, database.superuser_url, spool_dir=folder) as web:
        [(endpoint,)] = web.execute("SELECT id FROM endpoints WHERE slug = 'meta'")

        async def comes_back() -> None:
            before = web.one("SELECT count(*) FROM messages")
            body = await asyncio.to_thread(bodies()["2,000 texts of 4 MiB"])
            async with Spool(folder, keys, max_bytes=100_000_000, max_age=3_600) as spool:
                await spool.keep(
                    Record(endpoint_id=endpoint, endpoint="meta", correlation="c", received_at=time.time(), body=body)
                )
            async with asyncio.timeout(60):
                while await asyncio.to_thread(web.one, "SELECT count(*) FROM messages") < before + 2_000:
                    await asyncio.sleep(0.05)

        worst = await meter.worst_of(comes_back)
        print(worst)
        assert worst.took < LIMIT, worst


async def test_a_handler_that_sleeps_or_reckons_is_found(
    http: httpx.AsyncClient, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 ms in the midst of a request, asleep or at work, are found each time, with their line; none are not."""
    livez, text = asking(http, "GET", "/webhooks/nobody", 404), bodies()["a text"]
    assert (await meter.worst_of(livez)).took < LIMIT

    def sleeps(*_: object) -> None:
        time.sleep(0.06)

    def reckons(*_: object) -> None:
        until = time.thread_time() + 0.06
        while time.thread_time() < until:
            pass

    for planted in (sleeps, reckons):
        monkeypatch.setattr(metrics, "webhook", planted)
        for drive in (livez, lambda: posting(http, text)):
            found = await meter.worst_of(drive)
            assert found.took >= LIMIT
            assert found.places[0].startswith(f"{HERE}:"), found
            assert found.places[0].endswith(planted.__name__)
            assert found.places[1].startswith("app/web/webhooks.py:")


# --- worker ----------------------------------------------------------------------------------------------------------


MARKDOWN = "## Zakat\n\n- **فرض** على [كل مسلم](https://example.org/a) 👍 `x`\n\n> a *quote*\n\n|a|b|\n|-|-|\n|1|2|\n\n"
# 13 parts of the sandbox's, about 4,000 characters each, in English, Arabic and emoji; and 50,000 of markup.
LONG = {
    "English": "tok#a/13",
    "emoji": "tok#b/13",
    "Arabic": "tok#g/13",
    "Markdown": MARKDOWN * (50_000 // len(MARKDOWN)),
}


async def conversing(world: World, words: str, least: int = 1) -> None:
    """Somebody writes, and has the whole answer: so many characters at the least."""
    before = len(world.lines())
    await world.say(words)
    async with asyncio.timeout(60):
        while len(world.lines()) == before:
            await asyncio.sleep(0.01)
    await world.at_rest(timeout=60)
    assert sum(len(line.text) for line in world.lines()[before:]) >= least


async def test_no_turn_of_a_worker_holds_the_loop_up(world: World, meter: Meter) -> None:
    """Claim, answer, settle, deliver, statuses and all; answers of 50,000 characters too: no stretch of 50 ms."""
    await world.worker()
    await world.until("SELECT count(*) > 0 FROM workers")
    worst = {}
    for name, words in {"an intent": "hi", "a question": "salam", **LONG}.items():
        worst[name] = await meter.worst_of(partial(conversing, world, words, 40_000 if name in LONG else 1))
    print(told(worst))
    assert not offenders(worst), told(offenders(worst))


async def test_a_job_that_sleeps_is_found(world: World, meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 ms asleep in the midst of a turn are found, with their line."""
    monkeypatch.setattr(metrics, "turn", lambda outcome: time.sleep(0.06))
    await world.worker()
    found = await meter.worst_of(lambda: conversing(world, "hi"))
    assert found.took >= LIMIT
    assert found.places[0].startswith(f"{HERE}:"), found
    assert found.places[1].startswith("workers/settle.py:")
