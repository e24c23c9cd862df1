"""When SAQ hears of a wake-up: workers/ears.py. What it does then, tests/integration/test_saq.py."""

import asyncio
from typing import Any, cast

import pytest
from saq.queue.postgres import ENQUEUE

from workers.ears import Ear

pytestmark = pytest.mark.anyio


class Deaf(Ear):
    """Hears what it is told alone."""

    async def _start(self) -> None:
        await asyncio.Event().wait()


async def test_the_lanes_are_looked_at_before_saq_takes_its_job() -> None:
    """At the notification the worker looks for what is due; SAQ, which would share its event loop, hears of it later."""
    ear = Deaf(cast(Any, None), "wake")
    looked: list[bool] = []
    heard: asyncio.Queue[Any] = await ear.subscribe(ENQUEUE)
    ear.heard = lambda: looked.append(heard.empty())
    ear.publish(ENQUEUE, ENQUEUE)
    assert (looked, heard.empty()) == ([True], True)
    async with asyncio.timeout(5):
        assert await heard.get() == ENQUEUE
    await ear.end()
