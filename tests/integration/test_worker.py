"""A worker between a real PostgreSQL, the app's door and the sandbox: answered, in order, once, whatever fails.

Wherever a process is killed or paused, the moment is one that a test holds open; it is never hit by chance.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
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
from app import db, http
from app.apply import apply
from app.asgi import create_app
from app.directory import Watch
from app.sandbox import scripts
from app.sandbox.faults import Fault
from app.sandbox.ledger import Line
from app.sandbox.numbers import Ladder, Number
from app.sandbox.numbers import now as sandbox_now
from app.sandbox.people import Spoken
from app.sandbox.server import running
from app.sandbox.simulation import Said, Sandbox
from app.settings import Settings
from app.vault import Vault
from workers.answer import Turns
from workers.commits import Commits
from workers.deliver import Delivery
from workers.lane import Lanes

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

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
# Short, so that what waits for a time waits briefly; long beside what a busy machine may be late by.
TIMES = {
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
    """Keeps requests of one face (`send` or `assistant`) that contain `only`: before they are passed on, or after."""

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
        face = "assistant" if request.path.startswith("/anthropic") else "send"
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
        self.file: dict[str, object] = {"in_doubt": "resend", "deadline": 10, "token": "env:TOKEN"}
        self.direct = True

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
        task = asyncio.create_task(workers.main.work(self.settings(**more), stop))

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
        delivery = Delivery(commits, lanes, directory, client, settings)
        lanes.serve(Turns(commits, delivery, directory, assistants or client).work)
        return await self.stack.enter_async_context(lanes)

    async def process(self, **more: Any) -> asyncio.subprocess.Process:
        """A worker process of its own, registered; it is killed when the test ends."""
        settings = {f"QASID_{name.upper()}": str(value) for name, value in {**TIMES, **more}.items()}
        environ = {name: value for name, value in os.environ.items() if not name.startswith("QASID_")}
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli", "worker", "--with-parent"),
            env=environ | settings | {
                "QASID_DATABASE_URL": self.url,
                "QASID_SECRET_KEY": KEY,
                "QASID_WORKER_METRICS_PORT": "0",
                "QASID_STATE_DIR": str(self.folder),
            },
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

        async def end() -> None:
            if child.returncode is None:
                child.kill()
            await child.wait()

        self.stack.push_async_callback(end)
        await self.until("SELECT count(*) > 0 FROM workers")
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
async def world(database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(workers.main, "JOBS_GRACE", 0.05)  # nothing hangs on SAQ's jobs; each test ends the sooner
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


# --- what is answered with what ---


async def test_an_intent_is_answered_without_the_assistant(world: World) -> None:
    """What an intent matches gets its reply, once, and nobody is asked."""
    await world.worker()
    await world.say("  Hi!! ")
    assert await world.got(1) == ["Hello! How can we help?"]
    assert world.asked == []
    assert await world.rows("SELECT outcome, messages, chunks FROM usage") == [("intent", 1, 1)]


async def test_the_assistant_is_shown_the_session_and_nothing_from_before_its_gap(world: World) -> None:
    """The conversation so far goes with the question, back to a gap longer than `session_gap_hours`."""
    await world.worker()
    await world.say("long ago", timestamp=int(sandbox_now()) - 5 * 3600)
    await world.got(1)
    await world.act("UPDATE messages SET sent_at = sent_at - interval '5 hours' WHERE direction = 'out'")
    await world.say("first")
    await world.got(2)
    await world.say("second")
    assert await world.got(3) == ["You said: long ago", "You said: first", "You said: second"]
    body = msgspec.json.decode(world.sandbox.assistant.calls[-1].body)
    assert [(line["role"], line["content"]) for line in body["messages"]] == [
        ("user", "first"),
        ("assistant", "You said: first"),
        ("user", "second"),
    ]


async def test_what_comes_during_a_turn_becomes_one_turn_in_the_providers_order(world: World) -> None:
    """Three messages, the later two while the first is being answered: two turns; equal seconds keep their order."""
    await through_gate(world)
    await world.worker()
    hold = world.gate.hold("assistant", "one")
    at = int(sandbox_now())
    await world.say("one", timestamp=at)
    await hold.reached()
    await world.say("three", timestamp=at + 2)
    await world.say("two", timestamp=at + 1)
    await world.say("four", timestamp=at + 2)
    hold.open.set()
    await world.got(2)
    assert [len(asked) for asked in world.asked] == [1, 1]
    assert world.asked[1] == ("two\n\nthree\n\nfour",)
    assert await world.rows("SELECT first_seq, last_seq FROM turns ORDER BY 1") == [(1, 1), (2, 4)]


@pytest.mark.parametrize(
    ("kind", "reply"),
    [("location", LOCATION), ("audio", UNSUPPORTED), ("unsupported", UNSUPPORTED), ("image", UNSUPPORTED)],
)
async def test_what_cannot_be_read_is_told_so(world: World, kind: str, reply: str) -> None:
    """A place and a kind that we cannot read get the tenant's own words, without the assistant."""
    await world.worker()
    await world.say(kind=kind)
    assert await world.got(1) == [reply]
    assert world.asked == []


async def test_a_reaction_is_answered_by_nobody(world: World) -> None:
    """What a person expects no answer to gets none, and is stored."""
    await world.worker()
    said = await world.say("question")
    await world.got(1)
    await world.say("👍", kind="reaction", target=said.ids[0])
    assert await world.got(1) == ["You said: question"]
    assert await world.rows("SELECT count(*) FROM messages WHERE kind = 'reaction'") == [(1,)]


async def test_an_assistant_that_fails_costs_one_sentence_and_an_alert(world: World) -> None:
    """After a refusal people read the tenant's failure text once, and somebody is told."""
    before = alerts("assistant_failed")
    world.sandbox.faults.queue("assistant", ["http_401"])
    await world.worker()
    await world.say("question")
    assert await world.got(1) == [FAILURE]
    assert world.sandbox.assistant.count == 1
    assert alerts("assistant_failed") == before + 1
    assert await world.rows("SELECT outcome FROM usage") == [("failed",)]
    await world.say("and now?")
    assert (await world.got(2))[1] == "You said: and now?"


async def test_an_assistant_that_never_ends_is_left_at_the_deadline(world: World) -> None:
    """A stream that stalls ends at `deadline_seconds`; nobody waits longer."""
    await world.apply(deadline=1)
    world.sandbox.faults.queue("assistant", [Fault(kind="stall")])
    await world.worker()
    began = time.monotonic()
    await world.say("question")
    assert await world.got(1) == [FAILURE]
    assert 0.9 < time.monotonic() - began < 3.0


async def test_a_provider_that_has_no_assistant_yet_is_answered_with_the_failure_text(world: World) -> None:
    """`qasid apply` promises it for the providers that do nothing yet, and nobody waits for it."""
    path = world.folder / "other.toml"
    text = (world.folder / "qasid.toml").read_text().replace('"anthropic"', '"openai"')
    path.write_text(text)
    await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)
    await world.worker()
    await world.say("question")
    assert await world.got(1, timeout=3) == [FAILURE]


@pytest.mark.parametrize("change", ["edit", "revoke"])
async def test_a_change_before_the_turn_changes_what_is_asked(world: World, change: str) -> None:
    """An edit is asked in its new words; with the only message revoked nobody is answered."""
    said = await world.say("the old words")
    await world.say("the new words", kind=change, target=said.ids[0])
    await world.worker()
    if change == "edit":
        assert await world.got(1) == ["You said: the new words"]
    else:
        await world.at_rest()
        assert world.lines() == [] and world.asked == []
        assert await world.rows("SELECT outcome FROM usage") == [("revoked",)]


async def test_an_edit_during_the_turn_starts_it_again(world: World) -> None:
    """The answer to what no longer stands is not sent: the turn is asked again with the new words."""
    await through_gate(world)
    await world.worker()
    hold = world.gate.hold("assistant", "old words")
    said = await world.say("the old words")
    await hold.reached()
    await world.say("the new words", kind="edit", target=said.ids[0])
    hold.open.set()
    assert await world.got(1) == ["You said: the new words"]
    assert [each[0] for each in world.asked] == ["the old words", "the new words"]


async def test_a_paused_lane_is_left_to_a_person(world: World) -> None:
    """While paused, messages settle unanswered, so that nothing waits for a resume."""
    await through_gate(world)
    await world.worker()
    hold = world.gate.hold("assistant", "first")
    await world.say("first")
    await hold.reached()
    await world.act("UPDATE lanes SET paused_until = now() + interval '1 hour'")
    hold.open.set()
    await world.at_rest()
    await world.say("second")
    await world.at_rest()
    assert world.lines() == []
    assert await world.rows("SELECT outcome FROM usage") == [("left",), ("left",)]
    await world.act("UPDATE lanes SET paused_until = NULL")
    await world.say("third")
    [answer] = await world.got(1)
    assert answer.endswith("third")


# --- in order ---


async def test_a_long_answer_goes_out_in_order_each_part_after_the_last_was_delivered(world: World) -> None:
    """Part two is posted only once part one's `delivered` has come."""
    ladder(world, Ladder(sent=0.0, delivered=0.3, read=None))
    await world.worker(order_wait_seconds=8.0)
    await world.say("tok#way/3")
    texts = await world.got(3)
    assert [text.split()[0] for text in texts] == ["way#1/3", "way#2/3", "way#3/3"]
    assert " ".join(texts).split() == " ".join(scripts.parts("way", 3)).split()
    times = [line.t for line in world.lines()]
    assert all(0.3 <= later - earlier < 2.0 for earlier, later in pairwise(times))


async def test_without_statuses_the_next_part_waits_for_the_bounded_time(world: World) -> None:
    """No status at all: each part goes out `order_wait_seconds` after the last, so does the next turn's answer."""
    ladder(world, SILENT)
    await world.worker()
    await world.say("tok#slow/2")
    await world.got(2)
    await world.say("hi")
    texts = await world.got(3)
    assert [text.split()[0] for text in texts] == ["slow#1/2", "slow#2/2", "Hello!"]
    times = [line.t for line in world.lines()]
    assert all(0.95 <= later - earlier < 2.5 for earlier, later in pairwise(times))


async def test_the_gates_wait_runs_while_the_assistant_writes(world: World) -> None:
    """The bounded wait counts from the last part's acceptance, not from the end of the next answer."""
    ladder(world, SILENT)
    await world.worker(order_wait_seconds=1.5)
    await world.say("hi")
    await world.got(1)
    world.sandbox.faults.queue("assistant", [Fault(kind="slow", seconds=1.0)])
    await world.say("question")
    await world.got(2)
    first, second = world.lines()
    assert 1.4 <= second.t - first.t < 2.3


# --- what the provider refuses ---


async def test_a_dead_refusal_fails_the_part_and_cancels_the_rest(world: World) -> None:
    """131026 is final: the chunk has failed, the rest is never sent, the lane goes on, somebody is told."""
    before = alerts("chunk_failed")
    world.sandbox.faults.queue("send", [Fault(kind="graph_error", code=131026)])
    await world.worker()
    await world.say("tok#dead/3")
    await world.until("SELECT count(*) = 3 FROM chunks")
    await world.at_rest()
    assert await world.rows("SELECT state, code FROM chunks ORDER BY no") == [
        ("failed", 131026),
        ("cancelled", None),
        ("cancelled", None),
    ]
    assert len(world.lines()) == 1
    assert alerts("chunk_failed") == before + 1
    await world.say("hi")
    assert await world.got(1) == ["Hello! How can we help?"]


async def test_a_failed_status_fails_the_part_and_cancels_the_rest(world: World) -> None:
    """What was accepted and then failed by status is not sent again, nor is what would follow it."""
    world.sandbox.faults.queue("send", [Fault(kind="status_failed", code=131026)])
    await world.worker(order_wait_seconds=8.0)
    await world.say("tok#gone/2")
    await world.until("SELECT count(*) = 2 FROM chunks")
    await world.at_rest()
    assert await world.rows("SELECT state, code FROM chunks ORDER BY no") == [("failed", 131026), ("cancelled", None)]
    assert len(world.lines()) == 1


async def test_too_many_to_one_person_is_sent_again_later(world: World) -> None:
    """131056 says not now: the same chunk, four seconds on, and everything after it waits."""
    world.sandbox.faults.queue("send", [Fault(kind="graph_error", code=131056)])
    await world.worker()
    await world.say("hi")
    await world.until("SELECT extract(epoch FROM due_at - now()) BETWEEN 2 AND 4 FROM chunks WHERE state = 'ready'")
    await world.until("SELECT run_at > now() + interval '2 seconds' FROM lanes WHERE owner IS NULL")
    await world.act("UPDATE chunks SET due_at = now()")
    await world.act("UPDATE lanes SET run_at = now()")
    assert await world.got(1) == ["Hello! How can we help?"]
    assert [(line.outcome, line.attempt) for line in world.lines()] == [("131056", 0), ("ok", 1)]


async def test_a_channel_that_must_be_mended_holds_what_it_has_until_apply(world: World) -> None:
    """190 holds the chunk and alerts; the new token of `qasid apply` sends it, and only the new one is tried."""
    before = alerts("channel_held")
    ladder(world, FAST, token="token-2")
    await world.worker()
    await world.say("hi")
    await world.until("SELECT due_at > now() + interval '10 seconds' FROM chunks WHERE state = 'ready' AND code = 190")
    assert alerts("channel_held") == before + 1
    await world.apply(token="env:NEW")
    assert await world.got(1) == ["Hello! How can we help?"]
    assert await world.rows("SELECT n, code FROM attempts ORDER BY n") == [(1, 190), (2, None)]
    assert alerts("channel_held") == before + 1


async def test_a_code_that_no_integer_holds_is_in_doubt_and_settled_by_silence(world: World) -> None:
    """An error whose code makes no sense cannot stop a lane: it says nothing of the send."""
    await through_gate(world)
    calls = 0
    forward = world.gate.call

    async def nonsense(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        if calls > 1:
            return await forward(request)
        return web.Response(status=400, body=b'{"error":{"code":%s,"message":"x"}}' % (b"9" * 40))

    runner = web.AppRunner(site := web.Application(), access_log=None, shutdown_timeout=0.1)
    site.router.add_post("/{path:.*}", nonsense)
    await runner.setup()
    world.stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    world.gate.url, url = f"http://127.0.0.1:{runner.addresses[0][1]}", world.gate.url
    await world.apply()
    world.gate.url = url
    await world.worker()
    await world.say("hi")
    assert await world.got(1, timeout=5) == ["Hello! How can we help?"]
    assert await world.rows("SELECT n, state FROM attempts ORDER BY n LIMIT 1") == [(1, "in_doubt")]


# --- in doubt ---


async def test_a_status_resolves_what_was_in_doubt_without_a_second_post(world: World) -> None:
    """Accepted, the answer lost: the status says so, and nothing is sent twice."""
    ladder(world, Ladder(sent=0.2, delivered=0.3, read=None))
    world.sandbox.faults.queue("send", ["rst_after_accept"])
    await world.worker()
    await world.say("hi")
    await world.until("SELECT count(*) = 1 FROM attempts WHERE state = 'in_doubt'")
    assert await world.got(1) == ["Hello! How can we help?"]
    await world.until("SELECT state = 'delivered' FROM chunks")
    assert len(world.lines()) == 1


async def test_a_status_before_the_answer_of_the_post_stands(world: World) -> None:
    """The status overtakes the POST's answer, which then never comes: there is no doubt at all."""
    world.sandbox.faults.queue("send", [Fault(kind="no_answer", seconds=3)])
    await world.worker()
    await world.say("hi")
    await world.got(1)
    assert await world.rows("SELECT c.state, a.state FROM chunks c JOIN attempts a ON a.chunk_id = c.id") == [
        ("delivered", "delivered")
    ]
    assert len(world.lines()) == 1


async def test_after_silence_it_is_sent_again(world: World) -> None:
    """Never accepted, the answer lost, no status: after QASID_IN_DOUBT_SECONDS it goes out again."""
    world.sandbox.faults.queue("send", ["rst_before_accept"])
    await world.worker()
    await world.say("hi")
    assert await world.got(1) == ["Hello! How can we help?"]
    first, second = world.lines()
    assert (first.accepted, second.accepted) == (False, True)
    assert 0.6 <= second.t - first.t < 3.0


async def test_under_the_policy_park_silence_ends_in_a_visible_count(world: World) -> None:
    """`park` sends nothing twice: the chunk is parked, the rest cancelled, somebody told; the lane goes on."""
    before = alerts("chunk_parked")
    await world.apply(in_doubt="park")
    world.sandbox.faults.queue("send", ["rst_before_accept"])
    await world.worker()
    await world.say("tok#park/2")
    await world.until("SELECT count(*) = 2 FROM chunks")
    await world.at_rest()
    assert await world.rows("SELECT state FROM chunks ORDER BY no") == [("parked",), ("cancelled",)]
    assert len(world.lines()) == 1
    assert alerts("chunk_parked") == before + 1
    await world.say("hi")
    assert await world.got(1) == ["Hello! How can we help?"]


# --- once ---


async def test_a_webhook_twenty_times_at_two_doors_is_one_answer(world: World) -> None:
    """Duplicates, at once and at different processes, cost nothing: one call, one answer."""
    await world.open_door()
    await world.worker()
    await world.worker()
    number = world.sandbox.numbers[NUMBER]
    spoken = [Spoken(phone_number_id=NUMBER, sender=PERSON, text="once", id="wamid.one", timestamp=int(sandbox_now()))]
    await asyncio.gather(
        world.sandbox.say(*spoken, copies=10), world.sandbox.say(*spoken, copies=10, url=world.gate.webhooks(1))
    )
    assert await world.got(1) == ["You said: once"]
    assert world.asked == [("once",)] and number.phone_number_id == NUMBER
    assert await world.rows("SELECT count(*) FROM messages WHERE direction = 'in'") == [(1,)]


async def test_two_workers_share_the_lanes_and_double_nothing(world: World) -> None:
    """Forty people, two workers, every answer once."""
    people = [f"1555001{n:04}" for n in range(40)]
    await world.worker()
    await world.worker()
    await asyncio.gather(*(world.say(f"from {person}", sender=person) for person in people))
    await asyncio.gather(*(world.sandbox.ledger.wait(person, 1, 10) for person in people))
    await world.at_rest()
    assert sorted(line.text for line in world.sandbox.ledger.lines()) == sorted(f"You said: from {p}" for p in people)
    assert world.sandbox.assistant.count == 40


# --- killed, paused, stopped ---


async def test_killed_between_memo_and_settle_nobody_is_asked_again(world: World) -> None:
    """The memo outlives the worker: another settles and sends what was answered, in one POST."""
    await through_gate(world)
    child = await world.process()
    hold = world.gate.hold("assistant")
    await world.say("question")
    await hold.reached()
    async with world.lane_held() as reached:
        hold.open.set()
        pid = await reached()
        assert await world.rows("SELECT step FROM steps") == [("answer",)]
        child.kill()
        await world.rows("SELECT pg_terminate_backend(%s)", pid)  # or the server would settle for the dead
    await world.worker()
    assert await world.got(1) == ["You said: question"]
    assert world.asked == [("question",)]
    assert len(world.lines()) == 1


async def test_killed_in_mid_post_is_in_doubt_and_ends_in_one_message(world: World) -> None:
    """Two people, one POST accepted and one not when the worker dies: each ends with one message."""
    await through_gate(world)
    ladder(world, Ladder(sent=0.0, delivered=0.1, read=None))
    taken, lost = world.gate.hold("send", PERSON, after=True), world.gate.hold("send", OTHER)
    child = await world.process()
    await world.say("hi")
    await world.say("hi", sender=OTHER)
    await taken.reached()
    await lost.reached()
    child.kill()
    await child.wait()
    await world.worker()
    lost.open.set()
    assert await world.got(1) == ["Hello! How can we help?"]
    assert await world.got(1, sender=OTHER) == ["Hello! How can we help?"]
    assert (len(world.lines()), len(world.lines(OTHER))) == (1, 1)
    states = await world.rows("SELECT n, state FROM attempts ORDER BY n, state")
    assert [n for n, _ in states] == [1, 1, 2] and "in_doubt" in [state for _, state in states]


async def test_paused_while_it_asks_it_finds_its_lane_another_s(world: World) -> None:
    """Paused beyond its lease; another answers. When it goes on, the fence turns its answer away."""
    await through_gate(world)
    child = await world.process()
    [(old,)] = await world.rows("SELECT id FROM workers")
    hold = world.gate.hold("assistant")
    await world.say("question")
    await hold.reached()
    child.send_signal(signal.SIGSTOP)
    await world.worker()
    hold.open.set()
    assert await world.got(1) == ["You said: question"]
    child.send_signal(signal.SIGCONT)
    await world.until("SELECT count(*) = 2 AND count(*) FILTER (WHERE id = %s) = 0 FROM workers", old)
    await world.say("hi")  # whatever the first had in hand is done by the time that this is
    assert await world.got(2) == ["You said: question", "Hello! How can we help?"]
    assert len(world.lines()) == 2
    assert len(world.asked) == 2  # the answer was not committed: it had to be asked again


async def test_paused_between_intent_and_post_it_does_not_send_any_more(world: World) -> None:
    """The intent is committed, then the process stands still beyond its lease: the last check keeps the POST back."""
    await through_gate(world)
    child = await world.process()
    [(old,)] = await world.rows("SELECT id FROM workers")
    hold = world.gate.hold("assistant")
    await world.say("question")
    await hold.reached()
    async with world.lane_held() as reached:
        hold.open.set()
        await reached()
        child.send_signal(signal.SIGSTOP)
    await world.until("SELECT state = 'sending' FROM chunks")
    await world.worker()
    assert await world.got(1) == ["You said: question"]
    child.send_signal(signal.SIGCONT)
    await world.until("SELECT count(*) = 2 AND count(*) FILTER (WHERE id = %s) = 0 FROM workers", old)
    await world.say("hi")  # whatever the first had in hand is done by the time that this is
    await world.got(2)
    assert [line.text for line in world.lines()] == ["You said: question", "Hello! How can we help?"]
    [(one, why), (two, _)] = await world.rows(
        "SELECT n, a.reason FROM attempts a JOIN chunks c ON c.id = chunk_id AND seq = 1 ORDER BY n"
    )
    # Woken, it sees first either that its settlement is through (the last check) or that it took too long.
    assert (one, two) == (1, 2)
    assert "lease" in why or why in ("the worker that sent it is gone", "the answer to its intent was lost, nothing was sent")


async def test_without_time_left_in_its_lease_a_worker_does_not_send(world: World) -> None:
    """Its beats get no answer: what is settled stays unsent, recorded as never left, until the lease holds again."""
    await through_gate(world)
    lanes = await world.parts(lease_seconds=3.0)
    hold = world.gate.hold("assistant")
    await world.say("question")
    lanes.ring()
    await hold.reached()
    async with await psycopg.AsyncConnection.connect(world.superuser_url) as conn:
        await conn.execute("SELECT FROM workers FOR UPDATE")
        async with asyncio.timeout(5):
            while lanes.may_send():
                await asyncio.sleep(0.01)
        hold.open.set()
        await world.until("SELECT count(*) = 1 FROM attempts WHERE state = 'never_left'")
        await world.until("SELECT due_at > now() FROM chunks WHERE state = 'ready'")  # not tried again and again
        assert world.lines() == []
        await conn.rollback()
    assert await world.got(1) == ["You said: question"]
    assert world.asked == [("question",)]
    assert len(world.lines()) == 1


async def test_sigterm_lets_the_turn_at_work_end(world: World) -> None:
    """A worker told to stop finishes what it has, claims nothing more, says farewell and ends with 0."""
    await through_gate(world)
    child = await world.process()
    hold = world.gate.hold("assistant")
    await world.say("question")
    await hold.reached()
    child.send_signal(signal.SIGTERM)
    await world.until("SELECT count(*) > 0 FROM workers")
    hold.open.set()
    assert await asyncio.wait_for(child.wait(), 10) == 0
    assert [line.text for line in world.lines()] == ["You said: question"]
    assert await world.rows("SELECT owner, done_seq, head_seq FROM lanes") == [(None, 1, 1)]
    assert await world.rows("SELECT count(*) FROM workers") == [(0,)]
    await world.say("hi")
    assert len(world.lines()) == 1


# --- without SAQ, and beside poison ---


async def test_without_saqs_tables_answers_come_a_second_later(world: World) -> None:
    """Wake-ups carry no truth: with their tables gone before and while a worker runs, nobody is forgotten."""
    await world.worker()
    await world.say("hi")
    await world.got(1)
    await world.act("ALTER TABLE saq_jobs RENAME TO saq_gone")
    await world.act("ALTER TABLE saq_stats RENAME TO saq_stats_gone")
    began = time.monotonic()
    await world.say("question")
    assert await world.got(2) == ["Hello! How can we help?", "You said: question"]
    assert time.monotonic() - began < 2.5
    stop = await world.worker()
    await world.say("hi")
    assert len(await world.got(3)) == 3
    began = time.monotonic()
    await stop()
    assert time.monotonic() - began < 3.0


class Poison(httpx.AsyncBaseTransport):
    """An assistant that breaks what asks it: in a way that nobody foresaw, or by what no column can hold."""

    def __init__(self, model: bytes | None) -> None:
        self.tries = 0
        self.model = model

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.tries += 1
        if self.model is None:
            raise RuntimeError("nobody foresaw this")
        said = (
            b'data: {"type":"message_start","message":{"model":"%s"}}\n\n'
            b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"fine"}}\n\n'
            b'data: {"type":"message_stop"}\n\n'
        ) % self.model
        return httpx.Response(200, stream=httpx.ByteStream(said))


@pytest.mark.parametrize("model", [None, b"a\\u0000b"])
async def test_what_fails_at_every_try_is_parked_and_its_lane_goes_on(world: World, model: bytes | None) -> None:
    """Five tries, each later than the last; then the head is parked with the failure text and an alert."""
    before = alerts("turn_parked")
    poison = Poison(model)
    broken = await world.stack.enter_async_context(httpx.AsyncClient(transport=poison))
    lanes = await world.parts(broken)
    await world.say("question")
    for n in range(1, 6):
        await world.until("SELECT attempts = %s AND owner IS NULL AND run_at > now() FROM lanes", n)
        assert world.lines() == []
        await world.act("UPDATE lanes SET run_at = now()")
        lanes.ring()
    assert await world.got(1) == [FAILURE]
    assert poison.tries == 5
    assert alerts("turn_parked") == before + 1
    assert await world.rows("SELECT outcome FROM usage") == [("parked",)]
    await world.say("hi")
    lanes.ring()
    assert await world.got(2) == [FAILURE, "Hello! How can we help?"]
