"""Runs the demo: brings everything up, plays the conversation, stays or ends, and leaves nothing running."""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from app.demo import installation
from app.demo.children import Child, ChildEnded, Children
from app.demo.control import Control, request
from app.demo.installation import ENDPOINT, OPERATOR, Place, Secrets
from app.demo.performance import Performance, Result
from app.demo.transcript import Terminal
from app.errors import QasidError
from app.settings import Settings

T = TypeVar("T")

READY_SECONDS = 60.0  # for one process to come up
LOOK = 0.03


class Interrupted(QasidError):
    """A signal ended the demo: `sign`."""

    def __init__(self, sign: signal.Signals) -> None:
        super().__init__(f"interrupted by {sign.name}")
        self.sign = sign


def run(asked: Settings, *, once: bool) -> int:
    """The demo, until Ctrl-C or, with `once`, the end of the conversation. Returns the exit code: 0 if all was right.

    Raises:
        ConfigurationError: a port is in use, or another demo runs in this state folder.
        QasidError: a process did not come up, or ended early; with the end of its log.
    """
    began = time.monotonic()
    terminal = Terminal()
    ignored = installation.ignored()
    with installation.place(asked) as place:
        if ignored:
            terminal.line(f"The demo has a database, key and settings of its own. It ignores {', '.join(ignored)}.")
        environ = installation.environment(place.settings)
        for name in set(os.environ) - set(environ):
            del os.environ[name]
        return asyncio.run(_Demo(place, terminal, environ, once, began).run())


class _Demo:
    def __init__(self, place: Place, terminal: Terminal, environ: dict[str, str], once: bool, began: float) -> None:
        self._place = place
        self._terminal = terminal
        self._once = once
        self._began = began
        self._control = Control(place.settings.sandbox_port)
        self._children = Children(place.logs, environ, place.hold)
        self._stop: asyncio.Future[signal.Signals] | None = None

    async def run(self) -> int:
        """Bring up, play, stay, take down."""
        loop = asyncio.get_running_loop()
        self._stop = loop.create_future()
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(sign, self._asked_to_stop, sign)
        try:
            return await self._all()
        except Interrupted as ended:
            return 128 + ended.sign
        finally:
            await self._children.stop()
            await installation.database_stopped(self._place.state)

    async def _all(self) -> int:
        keys = installation.new_secrets()
        url, tenant = await self._bring_up(keys)
        result = await self._unless_ended(self._play(url, tenant, keys))
        if self._once:
            self._tell(result)
            return 1 if result.faults else 0
        self._tell(result)
        self._tell_where(keys)
        try:
            await self._unless_ended(asyncio.Event().wait())
        except Interrupted:  # what was asked for
            self._terminal.line("Stopping …")
        return 1 if result.faults else 0

    # --- up ---

    async def _bring_up(self, keys: Secrets) -> tuple[str, dict[str, Any]]:
        """Everything that takes long to import is started before it is needed; the database's URL, the tenant's table."""
        from app import embedded

        step, place = self._terminal.step, self._place
        self._terminal.line(self._terminal.bold("Qasid's demo: all of it on this machine, nothing leaves it."))
        new = not (place.state / "pg" / "port").exists()
        started = time.monotonic()
        await self._children.start("sandbox", "--port", str(place.settings.sandbox_port))
        if not new:
            web = await self._children.start("web")
        with step(f"PostgreSQL, embedded{', made now' if new else ''}"):
            # On this thread: nothing else is to be done yet, and a thread could not be left when a signal comes.
            url = embedded.ensure(place.state).url
        with step("schema"):
            installation.migrate(url)
        with step("demo tenant, operator"):
            tenant = await installation.configure(url, place, keys)
        if new:  # not before: what finds no schema tries again, a second later
            web = await self._children.start("web")
        worker = await self._children.start("worker")
        with step(f"sandbox: WhatsApp and an assistant, simulated", started):
            await self._until(self._control.healthy)
        with step(f"web at {place.web_url}", started):
            await self._until(lambda: self._web_ready(keys))
        with step("worker", started):
            await self._until(lambda: _has_line(worker, "worker registered"))
        self._terminal.line(f"  Ready after {time.monotonic() - self._began:.1f} s.")
        return url, tenant
