"""A worker whose channel, assistant or database is away or held by hand: nothing lost, nothing doubled, no long waits."""

import asyncio
import os
import socket
import time
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from app import cli
from app.sandbox.people import Spoken
from tests import world as shared
from tests.world import FAILURE, KEY, NUMBER, OTHER, World, alerts

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

world = shared.world

HELLO = "Hello! How can we help?"
PEOPLE = [f"1555002{n:04}" for n in range(12)]


async def qasid(world: World, *words: str) -> str:
    """`qasid breaker …`, as a person runs it."""
    ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith("QASID_")}
    environ = {
        "QASID_DATABASE_URL": world.url,
        "QASID_SECRET_KEY": KEY,
        "QASID_PORT": "9",
        "QASID_WORKER_METRICS_PORT": "0",
    }
    runner = CliRunner()
    result = await asyncio.to_thread(runner.invoke, cli.main, ("breaker", *words), env={**ours, **environ})
    assert result.exit_code == 0, result.output
    return result.output


class Away:
    """The provider's address while nobody listens there, and once somebody does."""

    def __init__(self, world: World) -> None:
        self.world = world
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])

    async def apply(self) -> None:
        """From now on the worker calls there."""
        world = self.world
        world.direct, (world.gate.url, url) = False, (f"http://127.0.0.1:{self.port}", world.gate.url)
        await world.apply()
        world.gate.url = url

    async def back(self) -> None:
        runner = web.AppRunner(site := web.Application(), access_log=None, shutdown_timeout=0.1)
        site.router.add_post("/{path:.*}", self.world.gate.call)
        await runner.setup()
        self.world.stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", self.port).start()


async def test_a_channel_that_is_away_is_left_alone_and_then_sent_all_that_waited(world: World) -> None:
    """Twelve people, nobody listens: ten failures, then a probe a pause; back again, each gets the answer once, within seconds."""
    before = alerts("channel_away")
    away = Away(world)
    await away.apply()
    await world.worker()
    await asyncio.gather(*(world.say("hi", sender=person) for person in PEOPLE))
    async with asyncio.timeout(10):
        while alerts("channel_away") == before:
            await asyncio.sleep(0.02)
    await asyncio.sleep(3.0)
    [(tries,)] = await world.rows("SELECT count(*) FROM attempts")
    assert 10 <= tries <= len(PEOPLE) + 3
    assert await world.rows("SELECT DISTINCT state FROM attempts") == [("never_left",)]
    [(claims,)] = await world.rows("SELECT sum(token) FROM lanes")
    await away.back()
    began = time.monotonic()
    for person in PEOPLE:
        assert await world.got(1, sender=person, timeout=15) == [HELLO]
    assert time.monotonic() - began < 12.0
    assert await world.rows("SELECT DISTINCT state FROM chunks") == [("delivered",)]
    assert claims < 40 * len(PEOPLE)
    assert alerts("channel_away") == before + 1


async def test_a_channel_held_open_by_hand_sends_nothing_and_then_all_of_it_in_order(world: World) -> None:
    """A worker process of its own hears of it within two seconds; not even an intent is written. `auto`: all goes out."""
    await world.process()
    await world.say("hi")
    await world.got(1)
    said = await qasid(world, "open", "channel", "noor/main")
    assert "qasid breaker auto channel noor/main" in said
    assert "channel noor/main is held OPEN by a person" in await qasid(world)
    await asyncio.sleep(2.2)
    await world.say("tok#held/3")
    await world.until("SELECT count(*) = 4 FROM chunks", timeout=20)
    await world.say("hello")
    await asyncio.sleep(2.0)
    assert len(world.lines()) == 1
    assert await world.rows("SELECT count(*) FROM attempts") == [(1,)]
    assert await world.rows("SELECT run_at > now() + interval '20 seconds', attempts FROM lanes") == [(True, 0)]
    await qasid(world, "auto", "channel", "noor/main")
    texts = await world.got(5, timeout=20)
    assert [text.split()[0] for text in texts] == ["Hello!", "held#1/3", "held#2/3", "held#3/3", "Hello!"]
    assert await world.rows("SELECT count(*), max(attempt) FROM chunks") == [(5, 1)]


async def test_the_database_held_open_by_hand_stops_the_doors_and_the_worker_and_loses_nothing(world: World) -> None:
    """Webhooks are answered 503, a worker process claims nothing that is due. `auto`: both go on, and what came is answered."""
    await world.process()
    await world.say("hi")
    await world.got(1)
    await qasid(world, "open", "database")
    await asyncio.sleep(2.2)
    ready = await world.gate.apps[0].get("/readyz")
    assert (ready.status_code, "qasid breaker auto database" in ready.text) == (503, True)
    refused = asyncio.create_task(world.sandbox.say(Spoken(phone_number_id=NUMBER, sender=OTHER, text="hello")))
    await world.act("UPDATE lanes SET done_seq = 0, run_at = now()")  # as good as new, for whoever claims it
    [before] = await world.rows("SELECT token, owner FROM lanes")
    await asyncio.sleep(2.5)
    assert await world.rows("SELECT token, owner FROM lanes") == [before]
    assert len(world.lines()) == 1 and not world.lines(OTHER)
    await qasid(world, "auto", "database")
    assert await world.got(1, sender=OTHER, timeout=20) == [HELLO]
    assert [each.status for each in (await refused).deliveries][:1] == [503]
    assert await world.got(1) == [HELLO]
    assert (await world.rows("SELECT token FROM lanes ORDER BY token DESC LIMIT 1"))[0][0] > before[0]


async def test_whose_assistant_is_away_waits_for_it_within_the_deadline(world: World) -> None:
    """Ten calls answered 529: it is left alone for a second, one asks, and everybody is answered; nobody reads a failure."""
    before = alerts("assistant_away")
    world.sandbox.faults.queue("assistant", ["http_529"] * 10)
    await world.worker()
    people = PEOPLE[:5]
    await asyncio.gather(*(world.say("question", sender=person) for person in people))
    for person in people:
        assert await world.got(1, sender=person, timeout=15) == ["You said: question"]
    assert world.sandbox.assistant.count == 15
    assert alerts("assistant_away") == before + 1


async def test_an_assistant_held_open_by_hand_is_not_asked_and_people_are_told_at_the_deadline(world: World) -> None:
    """Not at once, and not later; what needs no assistant is answered as ever. `auto`: it is asked again."""
    await world.apply(deadline=2)
    await world.worker()
    await qasid(world, "open", "assistant", "noor")
    await asyncio.sleep(2.2)
    began = time.monotonic()
    await asyncio.gather(world.say("question"), world.say("hi", sender=OTHER))
    assert await world.got(1, sender=OTHER) == [HELLO]
    assert await world.got(1) == [FAILURE]
    assert 1.9 < time.monotonic() - began < 5.0
    assert world.asked == []
    await qasid(world, "auto", "assistant", "noor")
    await asyncio.sleep(2.2)
    await world.say("and now?")
    assert (await world.got(2))[1] == "You said: and now?"


async def test_a_word_for_a_name_that_is_none_is_refused_with_those_that_are(world: World) -> None:
    """Whatever the word: with what the configuration has, and nothing is kept of it."""
    runner = CliRunner()
    environ: dict[str, Any] = {"QASID_DATABASE_URL": world.url, "QASID_SECRET_KEY": KEY}
    for word in ("open", "close", "auto"):
        for kind, name, has in (("channel", "noor/other", "noor/main"), ("assistant", "nobody", "noor")):
            refused = await asyncio.to_thread(runner.invoke, cli.main, ("breaker", word, kind, name), env=environ)
            assert (refused.exit_code, refused.output) == (
                2,
                f"qasid: The configuration has no {kind} {name}. It has: {has}.\n",
            )
    assert await world.rows("SELECT count(*) FROM breakers") == [(0,)]
    await world.act("INSERT INTO breakers VALUES ('channel:gone/main', 'open', now())")
    assert "held no longer" in await qasid(world, "auto", "channel:gone/main")
