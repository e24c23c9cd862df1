"""Opens the port: the faces as one aiohttp application, in a test or as a process. Loopback only."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from app.sandbox.ansari import AnsariFace
from app.sandbox.anthropic import AnthropicFace
from app.sandbox.chat import ChatFace
from app.sandbox.control import Control
from app.sandbox.files import FilesFace
from app.sandbox.graph import GraphFace
from app.sandbox.libretranslate import TranslatorFace
from app.sandbox.numbers import NotLoopback, is_loopback
from app.sandbox.simulation import Sandbox

# A webhook of Meta's is at most 3 MB (WIRE.md 2); a conversation with an assistant may be larger.
MAX_BODY = 32 * 1024 * 1024


def create_app(sandbox: Sandbox) -> web.Application:
    """The routes of all faces over one sandbox."""
    app = web.Application(client_max_size=MAX_BODY)
    for face in (
        GraphFace(sandbox),
        FilesFace(sandbox.files, sandbox.faults, lambda: sandbox.url),
        AnthropicFace(sandbox),
        ChatFace(sandbox),
        AnsariFace(sandbox),
        TranslatorFace(sandbox),
        sandbox.transcriptions,
        Control(sandbox),
    ):
        app.add_routes(face.routes())
    return app


@asynccontextmanager
async def running(*, host: str = "127.0.0.1", port: int = 0, seed: int = 0) -> AsyncIterator[Sandbox]:
    """A sandbox that listens, in this event loop; port 0 takes a free one. Raises NotLoopback."""
    if not is_loopback(host):
        raise NotLoopback("the sandbox listens on 127.x.x.x, ::1 or localhost only")
    sandbox = Sandbox(seed=seed)
    # Cancelled when the client leaves: a held connection costs nothing longer than its client waits.
    runner = web.AppRunner(create_app(sandbox), access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    try:
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=1024)
        await site.start()
        bound = runner.addresses[0][1]
        sandbox.url = f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"
        yield sandbox
    finally:
        await sandbox.close()
        await runner.cleanup()
