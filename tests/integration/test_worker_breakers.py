"""A worker whose channel, assistant or database is away or held by hand: nothing lost, nothing doubled, no long waits."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner
from prometheus_client import REGISTRY

from app import cli
from app.apply import apply
from app.commands.shown import Seen, shown
from app.sandbox.people import Spoken
from app.vault import Vault
from tests import world as shared
from tests.world import ENVIRON, FAILURE, KEY, NUMBER, OTHER, UNSUPPORTED, World, alerts

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

world = shared.world

HELLO = "Hello! How can we help?"
HELPERS = """
[tenants.noor.transcription]
base_url = "{url}/openai/v1"
api_key = "env:AI_KEY"
model = "whisper-1"
[tenants.noor.translation]
provider = "libretranslate"
base_url = "{url}/libretranslate"
"""
# A person's word is known to every process within so many seconds: two, and what asking for it takes here.
HEARD = 2.5
PEOPLE = [f"1555002{n:04}" for n in range(12)]


async def qasid(world: World, *words: str) -> str:
    """`qasid breaker …`, as a person runs it where no process shows its breakers: to list none is an error."""
    ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith("QASID_")}
    environ = {
        "QASID_DATABASE_URL": world.url,
        "QASID_SECRET_KEY": KEY,
        "QASID_PORT": "9",
        "QASID_WORKER_METRICS_PORT": "0",
    }
    runner = CliRunner()
    result = await asyncio.to_thread(runner.invoke, cli.main, ("breaker", *words), env={**ours, **environ})
    assert result.exit_code == (0 if words else 1), result.output
    return result.output


async def until(true: Callable[[], bool], *, within: float) -> None:
    async with asyncio.timeout(within):
        while not true():
            await asyncio.sleep(0.02)


class Apart:
    """A worker process of its own that shows its breakers."""

    def __init__(self, world: World) -> None:
        self.world, self.port = world, free_port()

    async def start(self) -> None:
        await self.world.process(worker_metrics_port=self.port)

    async def hears(self, name: str) -> None:
        """Return once it holds the breaker of this name, which it does within two seconds."""
        async with asyncio.timeout(HEARD):
            while not any(each.dependency == name and each.held for each in await self._shown()):
                await asyncio.sleep(0.02)

    async def _shown(self) -> list[Seen]:
        found = await asyncio.to_thread(shown, self.world.settings(), self.port)
        return [] if isinstance(found, str) else found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Away:
    """The provider's address while nobody listens there, and once somebody does."""

    def __init__(self, world: World) -> None:
        self.world, self.port = world, free_port()

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
    await until(lambda: alerts("channel_away") > before, within=10)
    opened = time.monotonic()
    [(at,)] = await world.rows("SELECT now()")
    await world.until("SELECT count(*) = 2 FROM attempts WHERE begun_at > %s + interval '0.5 seconds'", at)
    assert time.monotonic() - opened > 0.7 * (1.0 + 2.0)  # two pauses, each cut by a quarter at most
    [(tries,)] = await world.rows("SELECT count(*) FROM attempts")
    assert 10 <= tries <= len(PEOPLE) + 2
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
    await (apart := Apart(world)).start()
    await world.say("hi")
    await world.got(1)
    said = await qasid(world, "open", "channel", "noor/main")
    assert "qasid breaker auto channel noor/main" in said
    assert "channel noor/main is held OPEN by a person" in await qasid(world)
    await apart.hears("channel:noor/main")
    turned_away = "owner IS NULL AND run_at > now() + interval '20 seconds'"
    await world.say("tok#held/3")
    await world.until(
        f"SELECT count(*) = 1 FROM lanes WHERE {turned_away} AND (SELECT count(*) = 4 FROM chunks)", timeout=20
    )
    await world.say("hello")
    assert await world.rows(f"SELECT {turned_away}, attempts FROM lanes") == [(True, 0)]
    assert len(world.lines()) == 1
    assert await world.rows("SELECT count(*) FROM attempts") == [(1,)]
    await qasid(world, "auto", "channel", "noor/main")
    texts = await world.got(5, timeout=20)
    assert [text.split()[0] for text in texts] == ["Hello!", "held#1/3", "held#2/3", "held#3/3", "Hello!"]
    assert await world.rows("SELECT count(*), max(attempt) FROM chunks") == [(5, 1)]


async def test_the_database_held_open_by_hand_stops_the_doors_and_the_worker_and_loses_nothing(world: World) -> None:
    """Webhooks are answered 503, a worker process claims nothing that is due. `auto`: both go on, and what came is answered."""
    await (apart := Apart(world)).start()
    await world.say("hi")
    await world.got(1)
    await qasid(world, "open", "database")
    await apart.hears("database")
    async with asyncio.timeout(HEARD):
        while (ready := await world.gate.apps[0].get("/readyz")).status_code == 200:
            await asyncio.sleep(0.02)
    assert (ready.status_code, "qasid breaker auto database" in ready.text) == (503, True)
    refused = asyncio.create_task(world.sandbox.say(Spoken(phone_number_id=NUMBER, sender=OTHER, text="hello")))
    await world.act("UPDATE lanes SET done_seq = 0, run_at = now()")  # as good as new, for whoever claims it
    [before] = await world.rows("SELECT token, owner FROM lanes")
    await asyncio.sleep(1.5)  # it looks for what is due once a second, and nothing tells of a look that was not made
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

    def held() -> bool:
        return REGISTRY.get_sample_value("qasid_breaker_forced", {"dependency": "assistant:noor"}) == 1

    await world.apply(deadline=2)
    await world.worker()
    await world.say("who are you?")
    await world.got(1)
    await qasid(world, "open", "assistant", "noor")
    await until(held, within=HEARD)
    began = time.monotonic()
    await asyncio.gather(world.say("question"), world.say("hi", sender=OTHER))
    assert await world.got(1, sender=OTHER) == [HELLO]
    assert (await world.got(2))[1] == FAILURE
    assert 1.9 < time.monotonic() - began < 5.0
    assert len(world.asked) == 1
    await qasid(world, "auto", "assistant", "noor")
    await until(lambda: not held(), within=HEARD)
    await world.say("and now?")
    assert (await world.got(3))[2] == "You said: and now?"


async def test_a_transcriber_held_open_by_hand_is_not_asked_and_people_are_told_at_once(world: World) -> None:
    """So is a translator, by its own name; what a tenant does not have is refused with those that have one."""

    def held() -> bool:
        return REGISTRY.get_sample_value("qasid_breaker_forced", {"dependency": "transcriber:noor"}) == 1

    path = world.folder / "helped.toml"
    path.write_text((world.folder / "qasid.toml").read_text() + HELPERS.format(url=world.sandbox.url))
    await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)
    await world.worker()
    await world.say("", kind="audio")
    await world.got(1)
    assert "texts.audio" in await qasid(world, "open", "transcriber", "noor")
    assert "texts.untranslated" in await qasid(world, "open", "translator", "noor")
    assert "translator noor is held OPEN by a person" in await qasid(world)
    await until(held, within=HEARD)
    began = time.monotonic()
    await world.say("", kind="audio")
    assert (await world.got(2))[1] == UNSUPPORTED
    assert time.monotonic() - began < 3.0
    assert len(world.sandbox.transcriptions.calls) == 1
    await qasid(world, "auto", "transcriber", "noor")
    await until(lambda: not held(), within=HEARD)
    await world.say("", kind="audio")
    assert (await world.got(3))[2] == "You said: Where is the clinic?"


async def test_a_word_for_a_name_that_is_none_is_refused_with_those_that_are(world: World) -> None:
    """Whatever the word: with what the configuration has, and nothing is kept of it."""
    runner = CliRunner()
    environ: dict[str, Any] = {"QASID_DATABASE_URL": world.url, "QASID_SECRET_KEY": KEY}
    for word in ("open", "close", "auto"):
        for kind, name, has in (
            ("channel", "noor/other", "It has: noor/main."),
            ("assistant", "nobody", "It has: noor."),
            ("translator", "noor", "It has none at all."),
            ("transcriber", "noor", "It has none at all."),
        ):
            refused = await asyncio.to_thread(runner.invoke, cli.main, ("breaker", word, kind, name), env=environ)
            assert (refused.exit_code, refused.output) == (
                2,
                f"qasid: The configuration has no {kind} {name}. {has}\n",
            )
    assert await world.rows("SELECT count(*) FROM breakers") == [(0,)]
    await world.act("INSERT INTO breakers VALUES ('channel:gone/main', 'open', now())")
    assert "held no longer" in await qasid(world, "auto", "channel:gone/main")
