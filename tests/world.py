"""A worker between a real PostgreSQL, the app's door and the sandbox, with a gate that a test holds open or shut.

What the tests of the worker share; it judges nothing.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import aiohttp
import httpx
import msgspec
import psycopg
import pytest
from aiohttp import web
from prometheus_client import REGISTRY

import workers.main
from app import assistants, db, http
from app.apply import apply
from app.asgi import create_app
from app.directory import Watch
from app.sandbox.ledger import Line
from app.sandbox.numbers import Ladder, Number
from app.sandbox.people import Spoken
from app.sandbox.server import running
from app.sandbox.simulation import Said, Sandbox
from app.settings import Settings
from app.translation.memory import Memory
from app.vault import Vault
from workers.breakers import Breakers
from workers.commits import Commits
from workers.deliver import Delivery
from workers.lane import Lanes
from workers.sessions import Sessions
from workers.wiring import Clients, turns

NUMBER, PERSON, OTHER = "1000200030004000", "15550002222", "15550003333"
KEY = "11" * 32
ENVIRON = {
    "APP_SECRET": "app-secret",
    "VERIFY": "verify",
    "AI_KEY": "sk-of-noor",
    "TOKEN": "token-of-noor",
    "NEW": "token-2",
}
FAST = Ladder(sent=0.0, delivered=0.02, read=None)
SILENT = Ladder(sent=None, delivered=None, read=None)
FAILURE, LOCATION, UNSUPPORTED = "Not now, sorry.", "Thank you for the place.", "Text only, please."
# Short, so that what waits for a time waits briefly; long beside what a busy machine may be late by. How fast the door
# answers is measured elsewhere (tests/bench, test_web.py): here other tests share the cores.
TIMES = {
    "ack_deadline_seconds": 5.0,
    "lease_seconds": 2.0,
    "send_timeout_seconds": 1.0,
    "order_wait_seconds": 1.0,
    "in_doubt_seconds": 0.6,
    "in_doubt_max_seconds": 5.0,
}

FILE = """
[endpoints.meta]
kind = "cloud"
secrets = ["env:APP_SECRET"]
verify_token = "env:VERIFY"
[tenants.noor]
name = "Noor"
in_doubt = "{in_doubt}"
intents = [{{ match = ["hi", "hello"], reply = "Hello! How can we help?" }}]
limits = {{ replies_per_conversation_per_minute = {brake} }}
texts = {{ failure = "{failure}", location = "{location}", unsupported = "{unsupported}" }}
[tenants.noor.assistant]
provider = "anthropic"
base_url = "{url}/anthropic"
model = "claude-sonnet-4-5"
api_key = "env:AI_KEY"
deadline_seconds = {deadline}
[tenants.noor.channels.main]
endpoint = "meta"
address = "{number}"
base_url = "{url}/graph/v23.0"
token = "{token}"
"""


class Hold:
    """Keeps requests of one face (`send`, `read` or `assistant`) that contain `only`: before they are passed on, or after."""

    def __init__(self, face: str, only: str, *, after: bool) -> None:
        self.face, self.only, self.after = face, only.encode(), after
        self.arrived = asyncio.Event()
        self.open = asyncio.Event()

    async def reached(self) -> None:
        async with asyncio.timeout(10):
            await self.arrived.wait()


class Gate:
    """Stands before the app and the sandbox: hands webhooks to the one, calls to the other, and holds what a test says."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.url = ""
        self.apps: list[httpx.AsyncClient] = []
        self._sandbox = sandbox
        self._holds: list[Hold] = []

    def hold(self, face: str, only: str = "", *, after: bool = False) -> Hold:
        self._holds.append(Hold(face, only, after=after))
        return self._holds[-1]

    def webhooks(self, app: int = 0) -> str:
        return f"{self.url}/{app}/webhooks/meta"

    async def take(self, request: web.Request) -> web.Response:
        app = self.apps[int(request.match_info["app"])]
        answer = await app.post("/webhooks/meta", content=await request.read(), headers=dict(request.headers))
        return web.Response(status=answer.status_code, body=answer.content)

    async def call(self, request: web.Request) -> web.Response:
        body = await request.read()
        face = (
            "assistant" if request.path.startswith("/anthropic") else "read" if b'"status":"read"' in body else "send"
        )
        hold = next((hold for hold in self._holds if hold.face == face and hold.only in body), None)
        if hold is not None and not hold.after:
            hold.arrived.set()
            await hold.open.wait()
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{self._sandbox.url}{request.path}", data=body, headers=request.headers) as answer,
        ):
            said = web.Response(
                status=answer.status, body=await answer.read(), headers={"Content-Type": answer.content_type}
            )
        if hold is not None and hold.after:
            hold.arrived.set()
            await hold.open.wait()
        return said

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/{app:[0-9]}/webhooks/meta", self.take)
        app.router.add_post("/{path:.*}", self.call)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


class World:
    """A tenant with one channel, the door open, nobody at work yet."""

    def __init__(
        self, url: str, superuser_url: str, folder: Path, sandbox: Sandbox, gate: Gate, stack: AsyncExitStack
    ) -> None:
        self.url, self.superuser_url, self.folder = url, superuser_url, folder
        self.sandbox, self.gate, self.stack = sandbox, gate, stack
        self.file: dict[str, object] = {"in_doubt": "resend", "deadline": 10, "token": "env:TOKEN", "brake": 20}
        self.direct = True
        self.assistant: Callable[[str], assistants.Assistant] = assistants.assistant

    def settings(self, **more: Any) -> Settings:
        return Settings(database_url=self.url, secret_key=KEY, worker_metrics_port=0, **{**TIMES, **more})

    async def apply(self, **changed: object) -> None:
        """Bring the tenant's file into the database, with these changes from now on."""
        self.file |= changed
        path = self.folder / "qasid.toml"
        base = self.sandbox.url if self.direct else self.gate.url
        texts = {"failure": FAILURE, "location": LOCATION, "unsupported": UNSUPPORTED}
        path.write_text(FILE.format(url=base, number=NUMBER, **texts, **self.file))
        await apply(self.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)

    async def without_assistant(self, address: str) -> None:
        """A second tenant, Amal, which has no assistant, behind this number; and a door that knows it from its start."""
        head, _, rest = (self.folder / "qasid.toml").read_text().partition("[tenants.noor.assistant]")
        path = self.folder / "amal.toml"
        text = head + rest[rest.index("[tenants.noor.channels") :]
        path.write_text(text.replace("noor", "amal").replace(NUMBER, address))
        await apply(self.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)
        self.sandbox.register(msgspec.structs.replace(self.sandbox.numbers[NUMBER], phone_number_id=address))
        await self.open_door()

    async def open_door(self) -> None:
        """One more app on the same database."""
        app = create_app(self.settings())
        await self.stack.enter_async_context(app.lifespan())
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        client = await self.stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://app"))
        async with asyncio.timeout(10):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.02)
        self.gate.apps.append(client)

    async def worker(self, **more: Any) -> Callable[[], Any]:
        """The worker process's own wiring, in this loop; returns what stops it."""
        stop = asyncio.Event()
        task = asyncio.create_task(workers.main.work(self.settings(**more), stop, assistant=self.assistant))

        async def end() -> None:
            stop.set()
            await task

        self.stack.push_async_callback(end)
        return end

    async def parts(self, assistants: httpx.AsyncClient | None = None, **more: Any) -> Lanes:
        """A worker without SAQ, asking through `assistants`: it looks for due lanes when it is rung, or after a second."""
        settings = self.settings(**more)
        pool = db.pool(self.url, "qasid_courier", name="test", max_size=4)
        await self.stack.enter_async_context(pool)
        directory = await self.stack.enter_async_context(Watch(pool, Vault([bytes.fromhex(KEY)])))
        client = await self.stack.enter_async_context(http.client(total=settings.send_timeout_seconds))
        commits = Commits(
            pool,
            uuid4(),
            order_wait=settings.order_wait_seconds,
            silence=settings.in_doubt_seconds,
            patience=settings.send_timeout_seconds,
        )
        lanes = Lanes(commits, settings)
        breakers = Breakers()
        self.stack.callback(breakers.forget)
        delivery = Delivery(commits, lanes, directory, client, settings, breakers)
        clients = Clients(assistants=assistants or client, files=client, outside=client)
        memory = Memory(pool, client, patience=settings.send_timeout_seconds)
        self.stack.push_async_callback(memory.aclose)
        sessions = Sessions(1 << 20)
        lanes.serve(turns(commits, delivery, directory, sessions, breakers, clients, memory=memory).work)
        return await self.stack.enter_async_context(lanes)

    async def process(self, **more: Any) -> asyncio.subprocess.Process:
        """A worker process of its own, registered; it is killed when the test ends."""
        settings = {f"QASID_{name.upper()}": str(value) for name, value in {**TIMES, **more}.items()}
        environ = {name: value for name, value in os.environ.items() if not name.startswith("QASID_")}
        known = [id for (id,) in await self.rows("SELECT id FROM workers")]
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli", "worker", "--with-parent"),
            env=environ | {
                "QASID_DATABASE_URL": self.url,
                "QASID_SECRET_KEY": KEY,
                "QASID_WORKER_METRICS_PORT": "0",
                "QASID_STATE_DIR": str(self.folder),
            } | settings,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

        async def end() -> None:
            if child.returncode is None:
                child.kill()
            await child.wait()

        self.stack.push_async_callback(end)
        # The row of one that was killed may still be there. How fast one starts is no promise: other tests share the cores.
        await self.until("SELECT count(*) > 0 FROM workers WHERE id <> ALL(%s)", known, timeout=30.0)
        return child

    async def say(
        self, text: str = "", *, sender: str = PERSON, copies: int = 1, url: str | None = None, **more: Any
    ) -> Said:
        """A person writes; the door has taken it."""
        said = await self.sandbox.say(
            Spoken(phone_number_id=NUMBER, sender=sender, text=text, **more), copies=copies, url=url
        )
        assert {each.status for each in said.deliveries} == {200}
        return said

    async def got(self, count: int, *, sender: str = PERSON, timeout: float = 8.0) -> list[str]:
        """What the person got, once it is `count` messages and every lane is at rest."""
        await self.sandbox.ledger.wait(sender, count, timeout)
        await self.at_rest()
        return [line.text for line in self.lines(sender) if line.accepted]

    def lines(self, sender: str = PERSON) -> list[Line]:
        """Every POST for this person, taken or not."""
        return self.sandbox.ledger.lines(recipient=sender)

    @property
    def asked(self) -> list[tuple[str, ...]]:
        """The last user turn of each call to the assistant."""
        return [call.user for call in self.sandbox.assistant.calls]

    def shown(self) -> list[str]:
        """What the assistant was shown last, line by line."""
        body = msgspec.json.decode(self.sandbox.assistant.calls[-1].body)
        return [line["content"] for line in body["messages"]]

    async def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self.superuser_url, autocommit=True) as conn:
            return await (await conn.execute(query.encode(), values)).fetchall()

    async def act(self, statement: str, *values: object) -> None:
        async with await psycopg.AsyncConnection.connect(self.superuser_url, autocommit=True) as conn:
            await conn.execute(statement.encode(), values)

    async def until(self, query: str, *values: object, timeout: float = 8.0) -> None:
        """Return once the query's first value is true."""
        async with (
            asyncio.timeout(timeout),
            await psycopg.AsyncConnection.connect(self.superuser_url, autocommit=True) as conn,
        ):
            while not ((row := await (await conn.execute(query.encode(), values)).fetchone()) and row[0]):
                await asyncio.sleep(0.01)

    async def at_rest(self, timeout: float = 8.0) -> None:
        """Return once no lane has anything to do."""
        await self.until("SELECT bool_and(done_seq = head_seq AND owner IS NULL) FROM lanes", timeout=timeout)

    @asynccontextmanager
    async def lane_held(self) -> AsyncIterator[Callable[[], Any]]:
        """Hold the row of the one lane, so that the next statement that needs it waits; yields what awaits that."""
        async with await psycopg.AsyncConnection.connect(self.superuser_url) as conn:
            await conn.execute("SELECT FROM lanes FOR NO KEY UPDATE")

            async def reached() -> int:
                """The backend that waits for the row."""
                blocked = f"FROM pg_stat_activity WHERE {conn.info.backend_pid} = ANY(pg_blocking_pids(pid))"
                await self.until(f"SELECT count(*) > 0 {blocked}")
                [(pid,)] = await self.rows(f"SELECT pid {blocked}")
                return int(pid)

            yield reached
            await conn.rollback()


@pytest.fixture
async def world(database: Any, tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(running(port=0))
        gate = await stack.enter_async_context(Gate(sandbox))
        sandbox.register(
            Number(
                phone_number_id=NUMBER,
                webhook_url=gate.webhooks(),
                app_secret=ENVIRON["APP_SECRET"],
                token=ENVIRON["TOKEN"],
                ladder=FAST,
            )
        )
        world = World(database.url, database.superuser_url, tmp_path, sandbox, gate, stack)
        await world.apply()
        await world.open_door()
        yield world


def ladder(world: World, ladder: Ladder, **more: Any) -> None:
    """Statuses come so from now on."""
    number = world.sandbox.numbers[NUMBER]
    settings = {name: getattr(number, name) for name in number.__struct_fields__}
    world.sandbox.register(Number(**{**settings, "ladder": ladder, **more}))


async def through_gate(world: World) -> None:
    """From now on the worker calls through the gate."""
    world.direct = False
    await world.apply()


def alerts(kind: str) -> float:
    return REGISTRY.get_sample_value("qasid_alerts_total", {"kind": kind}) or 0.0
