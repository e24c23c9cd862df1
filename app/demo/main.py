"""Runs the demo: brings everything up, plays the conversation, stays or ends, and leaves nothing running."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlencode

from app.demo import installation, runners
from app.demo.children import Child, Children
from app.demo.control import Control, request
from app.demo.installation import ENDPOINT, OPERATOR, Place
from app.demo.performance import Performance, Result
from app.demo.transcript import Terminal
from app.errors import QasidError
from app.settings import Settings

T = TypeVar("T")

READY_SECONDS = 60.0  # for one process to come up
LOOK = 0.03  # seconds between two looks whether it has


class Interrupted(QasidError):
    """A signal (`sign`) asks the demo to end."""

    def __init__(self, sign: signal.Signals) -> None:
        super().__init__(f"interrupted by {sign.name}")
        self.sign = sign


def run(asked: Settings, *, once: bool) -> int:
    """The demo, until Ctrl-C or, with `once`, the end of the conversation.

    Returns the exit code: 0 if each message was answered once and in order, 1 if not, 128 + n after signal n.

    Raises:
        ConfigurationError: a port is in use, or another demo runs in this state folder.
        QasidError: a process did not come up, or ended early; with the end of its log.
    """
    began = time.monotonic()
    terminal = Terminal()
    with installation.place(asked) as place:
        if ignored := installation.ignored():
            terminal.line(f"{', '.join(ignored)}: ignored. The demo has a database, a key and settings of its own.")
        environ = installation.environment(place.settings)
        for name in set(os.environ) - set(environ):
            del os.environ[name]  # libpq's own would change this process's connections too
        return asyncio.run(_Demo(place, terminal, environ, once, began).run())


class _Demo:
    def __init__(self, place: Place, terminal: Terminal, environ: dict[str, str], once: bool, began: float) -> None:
        self._place = place
        self._terminal = terminal
        self._once = once
        self._began = began
        self._control = Control(place.settings.sandbox_port)
        self._children = Children(place.logs, environ, place.hold)
        self._keys = installation.new_secrets()
        self._stop: asyncio.Queue[signal.Signals] = asyncio.Queue()

    async def run(self) -> int:
        """Bring up, play, stay, take down."""
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(sign, self._stop.put_nowait, sign)
        for runner in runners.above():
            loop.add_reader(runner, self._left_alone, runner)
        try:
            return await self._all()
        except Interrupted as ended:
            self._terminal.line("\nStopping …")
            return 128 + ended.sign
        finally:
            await self._children.stop()
            await installation.database_stopped(self._place.state)

    def _left_alone(self, runner: int) -> None:
        asyncio.get_running_loop().remove_reader(runner)
        self._stop.put_nowait(signal.SIGTERM)

    async def _all(self) -> int:
        performance = await self._bring_up()
        result = await self._unless_ended(performance.play())
        code = 1 if result.faults else 0
        self._tell(result)
        if self._once:
            return code
        self._tell_where(performance.number)
        try:
            await self._unless_ended(asyncio.Event().wait())
        except Interrupted:
            self._terminal.line("\nStopping …")
        return code

    # --- up ---

    async def _bring_up(self) -> Performance:
        """Start everything; what takes long to import is started before it is needed."""
        from app import embedded

        place, step = self._place, self._terminal.step
        self._terminal.line(self._terminal.bold("Qasid's demo: everything on this machine, nothing leaves it."))
        new = not (place.state / "pg" / "port").exists()
        started = time.monotonic()
        sandbox = await self._children.start("sandbox", "--port", str(place.settings.sandbox_port))
        web = None if new else await self._children.start("web")
        with step("PostgreSQL, embedded" + (", made for the first time" if new else "")):
            # On this thread: nothing else is to be done before, and a thread could not be left when a signal comes.
            url = embedded.ensure(place.state).url
        with step("schema"):
            installation.migrate(url)
        with step("demo tenant and operator"):
            tenant = await installation.configure(url, place, self._keys)
        web = web or await self._children.start("web")  # before there is a schema it would look again only later
        worker = await self._children.start("worker")
        with step(f"sandbox at {place.sandbox_url}", started):
            await self._up(sandbox, self._control.healthy)
            await self._control.number(
                number := tenant["channels"]["main"]["address"],
                webhook_url=f"{place.web_url}/webhooks/{ENDPOINT}",
                app_secret=self._keys.app_secret,
                token=self._keys.channel_token,
            )
        with step(f"web at {place.web_url}", started):
            await self._up(web, self._web_is_ready)
        with step("worker", started):
            await self._up(worker, lambda: _says(worker, b'"worker registered"'))
        self._terminal.line(f"  Up after {time.monotonic() - self._began:.1f} s.")
        return Performance(
            self._control,
            self._terminal,
            number=number,
            tenant=tenant,
            worker_log=worker.log,
            correlations=lambda ids: installation.correlations(url, ids),
        )

    async def _up(self, child: Child, ready: Callable[[], Awaitable[bool]]) -> None:
        """Return once `ready`. Raises QasidError after a minute, or when a child or the demo ends."""

        async def wait() -> None:
            while not await ready():
                await asyncio.sleep(LOOK)

        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._unless_ended(wait())
        except TimeoutError:
            raise QasidError(
                f"The {child.name} process is not ready after {READY_SECONDS:g} s. {child.tail()}"
            ) from None

    async def _web_is_ready(self) -> bool:
        """Whether it takes webhooks, with the configuration of this start: it knows the new verify token."""
        challenge = {"hub.mode": "subscribe", "hub.verify_token": self._keys.verify_token, "hub.challenge": "1"}
        address = (self._place.web_host, self._place.settings.port)
        try:
            status, _ = await request(*address, "GET", "/readyz", timeout=2.0)
            if status == 200:
                status, _ = await request(*address, "GET", f"/webhooks/{ENDPOINT}?{urlencode(challenge)}", timeout=2.0)
                if status != 200:
                    await asyncio.sleep(0.5)  # it looks for changes once a second; asked too often, it says no for long
        except (OSError, TimeoutError):
            return False
        return status == 200

    async def _unless_ended(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work`. Raises ChildEnded when a process ends meanwhile, Interrupted when a signal comes."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._stop.get())
        ended = asyncio.create_task(self._children.first_end())
        try:
            await asyncio.wait({task, stop, ended}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                raise Interrupted(stop.result())
            if ended.done():
                await ended
            return await task
        finally:
            for each in (task, stop, ended):
                each.cancel()
            await asyncio.gather(task, stop, ended, return_exceptions=True)

    # --- what came of it ---

    def _tell(self, result: Result) -> None:
        terminal = self._terminal
        terminal.line()
        if result.faults:
            for fault in result.faults:
                terminal.line(f"  ✗ {fault}")
            for child in self._children.all:
                terminal.line(child.tail())
            terminal.line(terminal.bold(f"FAILED: {len(result.faults)} faults, see above.", "red"))
        else:
            terminal.line(
                terminal.bold(
                    f"PASSED: {result.messages} messages, {result.texts} texts. "
                    "Each message was answered once, in order, and every text was read.",
                    "green",
                )
            )

    def _tell_where(self, number: str) -> None:
        place, line, dim = self._place, self._terminal.line, self._terminal.dim
        say = f'{{"phone_number_id": "{number}", "from": "15550100100", "text": "Hello!"}}'
        line()
        line(self._terminal.bold("It stays up until Ctrl-C."))
        line(f"  Jobs (SAQ)   {place.web_url}/jobs")
        line(f"  API docs     {place.web_url}/schema")
        line(f"  Log in as    {OPERATOR}, password {self._keys.password}   {dim('(for this start alone)')}")
        line(f"  Say more     curl {place.sandbox_url}/control/say -d '{say}'")
        line(f"  Who got what {place.sandbox_url}/control/ledger")
        line(f"  Logs         {place.logs}")


async def _says(child: Child, words: bytes) -> bool:
    """Whether its log has these words."""
    return words in child.log.read_bytes()
