"""`python -m app.sandbox --port 8001`: the sandbox as a process, until SIGINT or SIGTERM."""

import argparse
import asyncio
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence

from app.sandbox.numbers import NotLoopback
from app.sandbox.server import running


def main(argv: Sequence[str] | None = None) -> int:
    """Serve; prints the URL once the port is open. 0 after a signal, 2 when it cannot listen there."""
    parser = argparse.ArgumentParser(prog="sandbox", description="A simulated WhatsApp and assistant, on loopback.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=int(os.environ.get("QASID_SANDBOX_PORT", "8001")))
    parser.add_argument("--seed", type=int, default=0, help="what the chances of faults are drawn from")
    asked = parser.parse_args(argv)
    factory = None
    if importlib.util.find_spec("uvloop") is not None:  # comes with granian[uvloop]; half the CPU of asyncio's own
        factory = importlib.import_module("uvloop").new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_serve(asked.host, asked.port, asked.seed))
    except (NotLoopback, OSError) as reason:
        print(f"sandbox: {reason}", file=sys.stderr)
        return 2
    return 0


async def _serve(host: str, port: int, seed: int) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with running(host=host, port=port, seed=seed) as sandbox:
        print(f"sandbox: {sandbox.url} (seed {seed})", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    raise SystemExit(main())
