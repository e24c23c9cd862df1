"""Production's workers, each a process of its own on a clock of the test's: they run until nothing moves, and no further.

Lanes, Turns, Delivery and Commits are production's. What is swapped are seams: the pool (statements run one at a time on
one connection, where faults may be armed by the statement's name), the transport under the HTTP clients, the directory,
and the clock, which each process reads from its event loop. Judges nothing: tests/model.py does.
"""

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, Protocol, cast
from uuid import UUID, uuid4

import httpx
import msgspec
import psycopg
from psycopg.rows import tuple_row

from app.directory import Directory, Watch
from app.errors import InDoubt, NeverLeft
from app.settings import Settings
from app.store import chunks, doors, lanes, settlements, steps, turns
from app.translation.memory import Memory
from workers import wiring
from workers.breakers import Breakers
from workers.commits import Commits
from workers.deliver import Delivery
from workers.lane import Lanes
from workers.sessions import Sessions

# Modules that read the clock of the process they run in; `time` in them is replaced by `CLOCK`.
CLOCKED = (
    "workers.lane",
    "workers.deliver",
    "workers.breakers",
    "workers.stopwatch",
    "workers.answer",
    "workers.asking",
    "workers.places",
    "workers.room",
    "workers.answering",
    "workers.spending",
    "workers.files",
    "workers.hearing",
    "workers.translations",
    "app.retrying",
    "app.assistants.calls",
    "app.assistants.whole",
)
CLOCK = SimpleNamespace(monotonic=lambda: Loop.running.time())

Fault = Literal[
    "killed before", "killed after", "stopped before", "stopped after", "lost before", "lost after", "delayed"
]
Outcome = Literal["taken", "cut", "hung", "lost", "502", "503", "pair", "throttled", "held", "refused", "unreachable"]
TAKEN = ("taken", "cut", "hung", "502")
RETRY_AFTER = 2  # seconds, said with "503" and "throttled"
# A server ends a statement that takes longer, as app/db.py asks it to (seconds).
STATEMENT_TIMEOUT = 10.0
NONE: Mapping[str, Any] = {}


def statements() -> dict[str, str]:
    """The name of each statement that faults and judgements go by, as the store has it now."""
    return {
        lanes.REGISTER: "register",
        lanes.BEAT: "beat",
        lanes.LEAVE: "leave",
        lanes.CLAIM: "claim",
        lanes.RELEASE: "release",
        lanes.BURY_LANES: "bury",
        lanes.DISOWN: "disown",
        turns.OPEN: "open",
        steps.MEMO: "memo",
        settlements.SETTLE: "settle",
        chunks.INTENT: "intend",
        chunks.FACT: "record",
        chunks.ABANDON: "abandon",
        doors.BURY: "bury doors",
    }


class Judge(Protocol):
    """Looks at every statement as the server runs it, and at every POST as it reaches the provider."""

    now: float

    def expect(self, holds: bool, rule: str) -> None: ...
    def after(
        self, kind: str, worker: UUID | None, parameters: Mapping[str, Any], rows: list[Any], touched: int
    ) -> None: ...
    def posted(self, worker: UUID, chunk: UUID, n: int, outcome: Outcome, *, late: bool) -> None: ...


class Loop(asyncio.SelectorEventLoop):
    """An event loop that reads a clock it is given, and runs only when told to."""

    running: ClassVar["Loop"]

    def __init__(self, clock: Any) -> None:
        self._read = clock
        self._moved = False
        super().__init__()

    def time(self) -> float:
        return float(self._read())

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]  # typeshed ties the arguments
        self._moved = True
        return super().call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]  # as above
        """At once, in no thread: how long one takes is another clock's matter."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  whatever it is, it is the awaiter's
            done.set_exception(error)
        return done

    def turn(self) -> bool:
        """Run what is ready once; whether that made anything else ready."""
        super().call_soon(self.stop)
        self._moved, Loop.running = False, self
        self.run_forever()
        return self._moved


class Cursor:
    """What of a psycopg cursor the store uses; its rows are read at once."""

    def __init__(self, wire: "Wire", row_factory: Any) -> None:
        self._wire = wire
        self.cursor = wire.world.conn.cursor(row_factory=row_factory)
        self.rows: list[Any] = []

    @property
    def rowcount(self) -> int:
        return self.cursor.rowcount

    async def execute(self, query: str, parameters: Mapping[str, Any] = NONE) -> "Cursor":
        await self._wire.run(self, query, parameters)
        return self

    async def fetchall(self) -> list[Any]:
        return self.rows

    async def fetchone(self) -> Any:
        return self.rows[0] if self.rows else None


class Wire:
    """The connection of one process to the server; of nobody in particular where there is no process."""

    breaker = None
    broken = False

    def __init__(self, world: "World", process: "Process | None") -> None:
        self.world, self.process = world, process

    async def execute(self, query: str, parameters: Mapping[str, Any] = NONE) -> Cursor:
        return await Cursor(self, tuple_row).execute(query, parameters)

    @asynccontextmanager
    async def cursor(self, *, row_factory: Any) -> AsyncIterator[Cursor]:
        yield Cursor(self, row_factory)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator["Wire"]:
        """As the pool that it stands for."""
        yield self

    async def run(self, cursor: Cursor, query: str, parameters: Mapping[str, Any]) -> None:
        kind = self.world.statements.get(query, "")
        fault = self.world.armed.pop(kind, None) if self.process and self.process.runs else None
        worker = self.process.commits.worker if self.process else None
        if fault is None or self.process is None:
            return self.world.run(cursor, kind, worker, query, parameters)
        when = fault.rpartition(" ")[2]
        if fault == "delayed":
            reply = asyncio.get_running_loop().create_future()
            self.world.delayed.append(
                Delayed(self.process, cursor, kind, worker, query, parameters, reply, self.world.judge.now)
            )
            return cast(None, await reply)
        if when == "before":
            await self.process.struck(fault)
        self.world.run(cursor, kind, worker, query, parameters)
        if when == "after":
            await self.process.struck(fault)
        return None


class Delayed(msgspec.Struct):
    """A statement on its way to the server; whoever sent it may be gone when it arrives."""

    process: "Process"
    cursor: Cursor
    kind: str
    worker: UUID | None
    query: str
    parameters: Mapping[str, Any]
    reply: "asyncio.Future[None]"
    since: float


class Call:
    """A request of a worker's that waits for the test to say what becomes of it."""

    def __init__(self, process: "Process", request: httpx.Request) -> None:
        self.process = process
        self.body = msgspec.json.decode(request.content)
        self.may_leave: Any = request.extensions.get("may_leave")
        self.for_assistant = request.url.host == "assistant"
        self.written = False
        self.checked = False  # its process was stopped after the last check, before the first byte
        self.reply: asyncio.Future[httpx.Response] = asyncio.get_running_loop().create_future()

    def answer(self, response: httpx.Response | Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(response) if isinstance(response, Exception) else self.reply.set_result(response)


class Transport(httpx.AsyncBaseTransport):
    """Production's is held to the same by tests/conformance/test_http.py: a deadline, and two words for what failed."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = Call(self._process, request)
        self._process.calls.append(call)
        try:
            async with asyncio.timeout(request.extensions["total"]):
                return await call.reply
        except TimeoutError:
            raise (InDoubt if call.written else NeverLeft)("no answer in time") from None
        finally:
            self._process.calls.remove(call)


class Process:
    """One worker, wired as workers/main.py wires it."""

    def __init__(self, world: "World", offset: float) -> None:
        self.world = world
        self.stopped = self.dead = False
        self.calls: list[Call] = []
        self.loop = Loop(lambda: world.judge.now + offset)
        self.loop.set_exception_handler(lambda _, what: world.judge.expect(False, f"a task failed: {what}"))
        pool: Any = Wire(world, self)
        settings = world.settings
        self.commits = Commits(
            pool,
            uuid4(),
            order_wait=settings.order_wait_seconds,
            silence=settings.in_doubt_seconds,
            patience=settings.send_timeout_seconds,
        )
        self.lanes = Lanes(self.commits, settings)
        directory = cast(Watch, SimpleNamespace(current=world.directory))
        client = httpx.AsyncClient(transport=Transport(self), trust_env=False)
        breakers = Breakers()
        delivery = Delivery(self.commits, self.lanes, directory, client, settings, breakers)
        clients = wiring.Clients(assistants=client, files=client, outside=client)
        memory = Memory(pool, client, patience=settings.send_timeout_seconds)
        sessions = Sessions(0)
        answers = wiring.turns(self.commits, delivery, directory, sessions, breakers, clients, memory=memory)
        self.lanes.serve(answers.work)
        self._tasks: list[asyncio.Task[Any]] = [self.loop.create_task(self.lanes.__aenter__())]

    @property
    def runs(self) -> bool:
        return not (self.stopped or self.dead)

    async def struck(self, fault: Fault) -> None:
        """In the midst of a statement: nothing more happens in this process, for now or for ever; or no answer comes."""
        if fault.startswith("lost"):
            raise psycopg.OperationalError("the connection is lost")
        self.stop() if fault.startswith("stopped") else self.kill()
        await asyncio.sleep(0)

    def run(self) -> None:
        """Until nothing moves any more without the clock or the test."""
        for _ in range(5000):
            if not self.runs or not self.loop.turn():
                return
        raise AssertionError("a worker turns in a circle")

    def kill(self) -> None:
        self.dead = True

    def stop(self) -> None:
        """As SIGSTOP does."""
        self.stopped = True
        for call in self.calls:
            call.checked = not call.written and call.may_leave is not None and self.asked(call.may_leave)

    def cont(self) -> None:
        self.stopped = False

    def drain(self) -> None:
        """As SIGTERM does."""
        if len(self._tasks) == 1:
            self._tasks.append(self.loop.create_task(self.lanes.__aexit__(None, None, None)))
        self.run()

    @property
    def drained(self) -> bool:
        return len(self._tasks) > 1 and self._tasks[1].done()

    def asked(self, question: Callable[[], bool]) -> bool:
        """What it answers by the clock of this process."""
        reading, Loop.running = Loop.running, self.loop
        try:
            return question()
        finally:
            Loop.running = reading

    def bury(self) -> None:
        """Let go of what is left of it."""
        self.dead = True
        self.loop.set_exception_handler(lambda *_: None)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", RuntimeWarning
            )  # a task that ends before it began never awaits its coroutine
            for _ in range(50):
                if not (left := asyncio.all_tasks(self.loop)):
                    break
                for task in left:
                    task.cancel()
                self.loop.turn()
        self.loop.close()


class World:
    """The server, the provider and the assistant of one example, and the processes that use them."""

    def __init__(
        self, conn: psycopg.Connection[Any], judge: Judge, directory: Directory, settings: Settings, epoch: datetime
    ) -> None:
        self.conn, self.judge, self.directory, self.settings = conn, judge, directory, settings
        self._epoch = epoch
        self.statements = statements()
        self.processes: list[Process] = []
        self.armed: dict[str, Fault] = {}  # the next statement of this name goes wrong so, whosever it is
        self.delayed: list[Delayed] = []
        self.wire = cast(Any, Wire(self, None))
        self._began = 0
        self.pass_time(0.0)

    # --- the server ---

    def run(self, cursor: Cursor, kind: str, worker: UUID | None, query: str, parameters: Mapping[str, Any]) -> None:
        """One statement, judged."""
        try:
            cursor.cursor.execute(query, parameters)
        except psycopg.Error as error:
            self.judge.expect(False, f"{kind}: {type(error).__name__}: {error}")
            raise
        cursor.rows = cursor.cursor.fetchall() if cursor.cursor.description else []
        if kind == "claim":
            cursor.rows.sort(key=lambda claim: claim.conversation_id)  # the server's order depends on the hashes of ids
        self.judge.after(kind, worker, parameters, cursor.rows, cursor.rowcount)

    def arrive(self, delayed: Delayed) -> None:
        """A statement reaches the server, if its time is not over."""
        self.delayed.remove(delayed)
        in_time = self.judge.now - delayed.since < STATEMENT_TIMEOUT
        if in_time:
            self.run(delayed.cursor, delayed.kind, delayed.worker, delayed.query, delayed.parameters)
        if not delayed.reply.done() and not delayed.process.dead:
            if in_time:
                delayed.reply.set_result(None)
            else:
                delayed.reply.set_exception(psycopg.OperationalError("statement timeout"))
        self.settle()

    def pass_time(self, seconds: float) -> None:
        self.judge.now += seconds
        now = (self._epoch + timedelta(seconds=self.judge.now)).isoformat()
        self.conn.execute("SELECT set_config('test.now', %s, false)", (now,))
        self.settle()

    # --- the processes ---

    def begin(self) -> Process:
        """One more worker. Their clocks agree in nothing but their pace."""
        self._began += 1
        process = Process(self, offset=self._began * 10_000.0)
        self.processes.append(process)
        process.run()
        return process

    def settle(self) -> None:
        """Let every process run that can."""
        for process in self.processes:
            process.run()
            if process.drained:
                process.kill()

    def end(self) -> None:
        for process in self.processes:
            process.bury()

    # --- those at the other end ---

    def answer(self, call: Call) -> None:
        """The assistant's answer: what it was asked, in two chunks where that is long."""
        asked = " ".join(call.body["messages"][-1]["content"].split())
        text = f"re {asked}" + ("\n\n" + "x" * 3980 if "long" in asked else "")
        events = [
            {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 1, "output_tokens": 1}}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
            {"type": "message_stop"},
        ]
        body = b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events)
        call.answer(httpx.Response(200, stream=httpx.ByteStream(body)))
        call.process.run()

    def send(self, call: Call, outcome: Outcome, *, late: bool = False) -> bool:
        """What becomes of a POST; whether it was taken. `late`: it is written though it may no longer be, checked long ago."""
        if outcome == "unreachable" or not (late or call.process.asked(call.may_leave)):
            call.answer(NeverLeft("nothing of it reached the provider"))
            call.process.run()
            return False
        call.written = True
        chunk, _, n = call.body["biz_opaque_callback_data"].partition(":")
        self.judge.posted(call.process.commits.worker, UUID(chunk), int(n), outcome, late=late)
        match outcome:
            case "taken":
                call.answer(httpx.Response(200, json={"messages": [{"id": f"wamid.{chunk}:{n}"}]}))
            case "cut":
                call.answer(InDoubt("the answer broke off"))
            case "502":
                call.answer(httpx.Response(502, content=b"<html>"))
            case "503":
                call.answer(httpx.Response(503, content=b"<html>", headers={"retry-after": str(RETRY_AFTER)}))
            case "pair":
                call.answer(httpx.Response(400, json={"error": {"code": 131056}}))
            case "throttled":
                call.answer(
                    httpx.Response(429, json={"error": {"code": 130429}}, headers={"retry-after": str(RETRY_AFTER)})
                )
            case "held":
                call.answer(httpx.Response(401, json={"error": {"code": 190}}))
            case "refused":
                call.answer(httpx.Response(400, json={"error": {"code": 131026}}))
        call.process.run()
        return outcome in TAKEN
