"""A second assistant, asked within the deadline of the first."""

import asyncio
import time
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from app.errors import AssistantBusy, AssistantError
from app.sandbox.faults import Fault
from tests import tenants
from tests import world as shared
from tests.scripted import says
from tests.tenants import ASSISTANT, Script, configure
from tests.world import FAILURE, World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

world = shared.world
script = tenants.script


async def with_fallback(world: World, *, deadline: float = 4, theirs: float = 60) -> None:
    """Two assistants at the sandbox, told apart by their models."""
    url = world.sandbox.url
    await configure(
        world,
        f"[tenants.noor.assistant]{ASSISTANT.format(url=url, model='first', deadline=deadline)}"
        f"[tenants.noor.assistant.fallback]{ASSISTANT.format(url=url, model='second', deadline=theirs)}",
    )


def models(world: World) -> list[str]:
    return [msgspec.json.decode(call.body)["model"] for call in world.sandbox.assistant.calls]


async def until_held(held: bool) -> None:
    """Return once the worker has heard whether somebody holds the breaker of the tenant's assistant."""
    async with asyncio.timeout(5):
        while (REGISTRY.get_sample_value("qasid_breaker_forced", {"dependency": "assistant:noor"}) == 1) != held:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("fault", ["http_401", "refusal"])
async def test_whom_the_first_refuses_the_fallback_answers(world: World, fault: Any) -> None:
    """At once, and nobody reads a failure."""
    await with_fallback(world)
    world.sandbox.faults.queue("assistant", [fault])
    await world.worker()
    await world.say("question")
    assert await world.got(1) == ["You said: question"]
    assert models(world) == ["first", "second"]
    assert await world.rows("SELECT model FROM usage") == [("second",)]


async def test_the_fallback_has_its_share_of_the_deadline(world: World) -> None:
    """The first stalls: it is given up at half of the whole, or earlier where the fallback wants less."""
    await with_fallback(world, deadline=2, theirs=0.5)
    world.sandbox.faults.queue("assistant", [Fault(kind="stall"), "ok", Fault(kind="stall"), Fault(kind="stall")])
    await world.worker()
    began = time.monotonic()
    await world.say("question")
    assert await world.got(1) == ["You said: question"]
    assert 1.4 < time.monotonic() - began < 3.0
    began = time.monotonic()
    await world.say("and now?")
    assert (await world.got(2))[1] == FAILURE
    assert 1.8 < time.monotonic() - began < 3.0


async def test_a_first_whose_breaker_is_open_is_skipped_at_once(world: World) -> None:
    """Nobody waits for it; it is not asked; when it may be asked again, it is."""
    await with_fallback(world)
    await world.worker()
    await world.say("who are you?")
    await world.got(1)
    await world.act("INSERT INTO breakers VALUES ('assistant:noor', 'open', now())")
    await until_held(True)
    began = time.monotonic()
    await world.say("question")
    await world.got(2)
    assert time.monotonic() - began < 1.9
    assert models(world) == ["first", "second"]
    await world.act("DELETE FROM breakers")
    await until_held(False)
    await world.say("and now?")
    await world.got(3)
    assert models(world) == ["first", "second", "first"]


async def test_a_cut_answer_is_completed_by_the_fallback_or_marked(world: World, script: Script) -> None:
    """Cut by a fault: the fallback's whole one, else what there is, marked. Too long: marked, nobody else is asked."""
    await with_fallback(world)
    cut = says("Half of", partial=True)
    scripted = script(
        *(cut, says("The whole.")),
        *(cut, AssistantBusy("busy")),
        *(says("So far", partial=True, long=True),),
        *(AssistantError("no"), AssistantError("no")),
    )
    await world.worker()
    for n in (1, 2, 3, 4):
        await world.say(f"question {n}")
        await world.got(n)
    marked = "\n\n(This answer was cut short.)"
    assert await world.got(4) == ["The whole.", f"Half of{marked}", f"So far{marked}", FAILURE]
    assert [settings.model for settings in scripted.settings] == ["first", "second"] * 2 + ["first"] + [
        "first",
        "second",
    ]


async def test_an_answer_that_cannot_be_gone_on_from_is_the_fallbacks(world: World) -> None:
    """Cut by its own limit, and overloaded ever since: what is missing is no matter of length, and another may have it."""
    await with_fallback(world)
    world.sandbox.faults.queue("assistant", ["max_tokens", Fault(kind="http_529", seconds=60)])
    await world.worker()
    question = " ".join(["Where are you, and when?"] * 8)
    await world.say(question)
    assert await world.got(1) == [f"You said: {question}"]
    assert models(world) == ["first", "first", "second"]
    assert await world.rows("SELECT model FROM usage") == [("second",)]
