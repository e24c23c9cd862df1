"""Ansari's backend behind a worker: what it notes of a turn outlives it."""

import asyncio

import pytest

from app.apply import apply
from app.sandbox.assistant_calls import Pace
from app.sandbox.faults import Fault
from app.sandbox.numbers import Number
from app.sandbox.people import Spoken
from app.sandbox.server import running
from app.text.citations import FSI, PDI
from app.vault import Vault
from tests import world as shared
from tests.tenants import configure
from tests.world import ENVIRON, FAILURE, KEY, NUMBER, PERSON, World, alerts

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

world = shared.world


async def ask_ansari(world: World, *, deadline: float = 10) -> None:
    """The tenant's assistant is the backend from now on."""
    await world.apply(deadline=deadline)
    text = (world.folder / "qasid.toml").read_text()
    path = world.folder / "ansari.toml"
    path.write_text(text.replace('"anthropic"', '"ansari"').replace('/anthropic"', '/ansari"'))
    await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)


async def test_a_session_goes_on_in_its_thread(world: World) -> None:
    """Two turns: one account, one thread, each question in it once, and what was noted is the length before it."""
    await ask_ansari(world)
    await world.worker()
    await world.say("one")
    await world.got(1)
    await world.say("two")
    assert await world.got(2) == ["You said: one", "You said: two"]
    (thread,) = world.sandbox.threads.threads.values()
    assert [row.content for row in thread.rows] == ["one", "You said: one", "two", "You said: two"]
    noted = await world.rows("SELECT result FROM steps WHERE step LIKE 'ansari %%' ORDER BY at")
    assert [result for (result,) in noted] == [{"thread": thread.id, "length": n} for n in (0, 2)]
    assert await world.rows("SELECT DISTINCT outcome, model FROM usage") == [("answered", "claude-sonnet-4-5")]


async def test_killed_in_mid_stream_the_next_worker_takes_the_answer_from_the_thread(world: World) -> None:
    """The person's turn is in the thread when the worker dies: nobody asks again, and what the backend ends with is sent."""
    await ask_ansari(world)
    world.sandbox.faults.queue("ansari", ["stall"])
    child = await world.process()
    await world.say("question")
    async with asyncio.timeout(10):
        while not world.sandbox.threads.said(PERSON):
            await asyncio.sleep(0.01)
    child.kill()
    await child.wait()
    (thread,) = world.sandbox.threads.threads.values()
    await world.worker()
    world.sandbox.threads.later(0.5, lambda: world.sandbox.threads.add(thread, "assistant", "finished meanwhile"))
    assert await world.got(1) == ["finished meanwhile"]
    assert world.asked == [("question",)]
    assert world.sandbox.threads.said(PERSON) == ["question"]


async def test_what_the_backend_quotes_is_read_letter_for_letter(world: World) -> None:
    """Its list of citations is no Markdown: blanks, stars and escapes arrive as they stand; what it says above is formatted."""
    listed = (
        "[1] Bukhari 12- باب \\* كذا &amp; كذا:\n Arabic: إِنَّمَا  الأَعْمَالُ\n   بِالنِّيَّاتِ   \n * وإنما…\n\n"
        " English: *Actions* <b>are</b>\n\n"
        "[2] T:\n Text: 1. x\n2. y\n\n\n\n# z"
    )
    await ask_ansari(world)
    world.sandbox.faults.queue("ansari", ["killed"])
    await world.worker()
    await world.say("question")
    async with asyncio.timeout(10):
        while not world.sandbox.threads.said(PERSON):
            await asyncio.sleep(0.01)
    (thread,) = world.sandbox.threads.threads.values()
    world.sandbox.threads.add(thread, "assistant", f"So it is **said** [1] .\n\n\n\n**Citations**:\n{listed}\n\n")
    assert await world.got(1) == [f"So it is *said* [1] .\n\n*Citations*:\n{FSI}{listed}{PDI}"]


async def test_the_days_tokens_bind_where_the_backend_counts_none(world: World) -> None:
    """By estimate: what was asked and answered has cost something, and the next one is not asked for it."""
    await ask_ansari(world)
    await configure(world, "[tenants.noor.limits]\ntokens_per_day = 5\n")
    await world.worker()
    await world.say("question")
    await world.got(1)
    assert await world.rows("SELECT input_tokens, output_tokens FROM usage") == [(3, 6)]
    await world.say("and now?")
    assert (await world.got(2))[1].startswith("Sorry, I cannot answer any more")
    assert world.sandbox.threads.said(PERSON) == ["question"]


async def test_what_the_fallback_answered_belongs_to_no_thread(world: World) -> None:
    """A new session whose first turn the fallback answers: the backend's first turn in it begins a thread all the same."""
    await ask_ansari(world)
    path, url = world.folder / "ansari.toml", world.sandbox.url
    path.write_text(
        f'{path.read_text()}\n[tenants.noor.assistant.fallback]\nprovider = "anthropic"\nbase_url = "{url}/anthropic"\n'
        'model = "second"\napi_key = "env:AI_KEY"\n'
    )
    await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)
    await world.worker()
    await world.say("of yesterday")
    await world.got(1)
    await world.act("UPDATE messages SET sent_at = sent_at - interval '1 day'")
    await world.act("UPDATE turns SET session_at = session_at - interval '1 day'")
    world.sandbox.faults.queue("threads", [Fault(kind="http_401")])
    await world.say("of today")
    await world.got(2)
    await world.say("more")
    await world.got(3)
    assert [models for (models,) in await world.rows("SELECT model FROM usage ORDER BY turn_id")][1] == "second"
    first, second = world.sandbox.threads.threads.values()
    assert [row.content for row in first.rows][::2] == ["of yesterday"]
    assert [row.content for row in second.rows][::2] == ["more"]


async def test_a_fallback_that_is_an_ansari_too_goes_on_in_its_own_thread(world: World) -> None:
    """The session changes from one backend to the other and back: each has one thread, with what it was asked itself."""
    await ask_ansari(world)
    path = world.folder / "ansari.toml"
    async with running(port=0) as other:
        path.write_text(
            f'{path.read_text()}\n[tenants.noor.assistant.fallback]\nprovider = "ansari"\nbase_url = "{other.ansari_url}"\n'
            'api_key = "env:AI_KEY"\n'
        )
        await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)
        await world.worker()
        for n, (words, fails) in enumerate([("one", 0), ("two", 1), ("three", 1), ("four", 0), ("five", 1)], 1):
            world.sandbox.faults.queue("threads", [Fault(kind="http_401")] * fails)
            await world.say(words)
            await world.got(n)
        threads = [
            [[row.content for row in each.rows][::2] for each in backend.threads.threads.values()]
            for backend in (world.sandbox, other)
        ]
    assert threads == [[["one", "four"]], [["two", "three", "five"]]]


async def test_a_turn_that_the_backend_never_answers_ends_with_the_failure_text(world: World) -> None:
    """At the deadline, with an alert, asked once; the next turn begins a thread, since nothing in this one was answered."""
    await ask_ansari(world, deadline=1)
    world.sandbox.faults.queue("ansari", ["killed"])
    failed = alerts("assistant_failed")
    await world.worker()
    await world.say("question")
    assert await world.got(1) == [FAILURE]
    assert alerts("assistant_failed") == failed + 1
    await world.say("again")
    assert (await world.got(2))[1] == "You said: again"
    assert world.sandbox.threads.said(PERSON) == ["question", "again"]
    assert len(world.sandbox.threads.threads) == 2


@pytest.mark.parametrize("fresh", [True, False], ids=["first", "second"])
async def test_what_staff_write_meanwhile_asks_nothing_twice(world: World, fresh: bool) -> None:
    """By phone, while the answer is made: the turn starts again, and finds its answer in the thread where it asked."""
    await ask_ansari(world)
    await world.worker()
    if not fresh:
        await world.say("before")
        await world.got(1)
    world.sandbox.assistant.pace = Pace(first_token=0.6)
    await world.say("question")
    async with asyncio.timeout(10):
        while "question" not in world.sandbox.threads.said(PERSON):
            await asyncio.sleep(0.01)
    await world.say("I am looking into it", kind="echo")
    answers = await world.got(1 if fresh else 2)
    assert answers[-1] == "You said: question"
    asked = ["question"] if fresh else ["before", "question"]
    assert world.sandbox.threads.said(PERSON) == asked == [words for (words,) in world.asked]
    assert len(world.sandbox.threads.threads) == 1
    [(version,)] = await world.rows("SELECT version FROM lanes")
    assert version > 0


@pytest.mark.parametrize("slug", ["amal", "noor"], ids=["tenant", "channel"])
async def test_nobody_goes_on_in_the_thread_of_another_conversation(world: World, slug: str) -> None:
    """One person writes by turns to two tenants, or to two channels of one, that have the same backend: a thread for each."""
    number = "1000200030009999"
    known = world.sandbox.numbers[NUMBER]
    world.sandbox.register(
        Number(
            phone_number_id=number,
            webhook_url=world.gate.webhooks(1),
            app_secret=known.app_secret,
            token=known.token,
            ladder=known.ladder,
        )
    )
    await ask_ansari(world)
    path, url = world.folder / "second.toml", world.sandbox.url
    assistant = f'[tenants.amal.assistant]\nprovider = "ansari"\nbase_url = "{url}/ansari"\napi_key = "env:AI_KEY"\n'
    path.write_text(
        f'[tenants.{slug}]\nname = "{slug.capitalize()}"\n{assistant if slug == "amal" else ""}'
        f'[tenants.{slug}.channels.second]\nendpoint = "meta"\naddress = "{number}"\nbase_url = "{url}/graph/v23.0"\n'
        'token = "env:TOKEN"\n'
    )
    await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)
    await world.open_door()  # one that knows both from its start
    await world.worker()
    for n, (to, text) in enumerate([(NUMBER, "my secret"), (number, "one"), (NUMBER, "more"), (number, "two")], 1):
        await world.sandbox.say(Spoken(phone_number_id=to, sender=PERSON, text=text))
        await world.got(n)
    threads = [[row.content for row in each.rows][::2] for each in world.sandbox.threads.threads.values()]
    assert threads == [["my secret", "more"], ["one", "two"]]


async def test_other_words_are_another_question(world: World) -> None:
    """A message of the turn that is edited while its answer is made is asked as it stands then."""
    await ask_ansari(world)
    await world.worker()
    world.sandbox.assistant.pace = Pace(first_token=0.6)
    said = await world.say("question")
    async with asyncio.timeout(10):
        while not world.sandbox.threads.said(PERSON):
            await asyncio.sleep(0.01)
    await world.say("other question", kind="edit", target=said.ids[0])
    assert await world.got(1) == ["You said: other question"]
