"""`just bench translate`: what translating an answer's citations adds to it, all at once and one by one, cold and warm."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from uuid import UUID, uuid4

import uvloop
from psycopg.conninfo import make_conninfo

from app import db, http
from app.assistants import Answer, Citation
from app.assistants.intents import Intents
from app.configuration import Assistant, Limits, Texts, Translation
from app.directory import Tenant
from app.sandbox.assistant_calls import Pace
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from app.sandbox.translator_calls import Speed
from app.text.citations import with_sources
from app.text.whatsapp import from_markdown
from app.translation.memory import Memory
from app.unkept import Unkept
from app.vault import Secret
from tests.bench.figures import BenchFailed, Report, machine
from tests.bench.installation import Installation, say
from tests.ground import Ground, ground
from workers.breakers import Breakers
from workers.commits import Commits
from workers.notes import TurnNotes
from workers.places import Places
from workers.translations import Finished, Translations

# What the bounds were set for.
CITATIONS, SECONDS = 24, 1.0
ROUNDS = 20

_VERSE = "إِنَّ مَعَ الْعُسْرِ يُسْرًا"


def measure(citations: int, seconds: float) -> Report:
    """The steps of a turn between the assistant's answer and its chunks, over a durable PostgreSQL."""
    with Installation() as at, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = Report(bench="translate", machine=machine(at.postgres_version))
        try:
            runner.run(_measure(at, report, citations, seconds))
        except TimeoutError:
            raise BenchFailed("the bench did not end in its time") from None
        return report


class _Worker:
    """What a worker translates with; each is a process as far as memory goes."""

    def __init__(self, at: Ground, pool: db.Pool, memory: Memory, translations: Translations) -> None:
        self._at, self._pool, self.memory, self._translations = at, pool, memory, translations

    async def finish(self, tenant: Tenant, answer: Answer) -> tuple[Finished, float]:
        """A turn of its own, opened and with its answer at hand; its translations, rendered, and the seconds that took."""
        await self._at.ingest(self._at.placed(await self._at.lane()))
        worker = await self._at.worker()
        [claim] = await self._at.claim(worker)
        opening = await self._at.open(claim)
        assert opening.turn is not None
        commits = Commits(self._pool, worker, order_wait=10.0, silence=30.0, patience=10.0)
        notes = TurnNotes(commits, claim, opening.turn, opening, Unkept())
        formatted = from_markdown(answer.text)
        began = time.monotonic()
        finished = await self._translations.finish(tenant, "?", answer, notes, correlation="", deadline=began + 60.0)
        with_sources(formatted, finished.sources, heading="S", translation="T", untranslated="U")
        return finished, time.monotonic() - began


async def _measure(installation: Installation, report: Report, citations: int, seconds: float) -> None:
    superuser = make_conninfo(installation.cluster.superuser_url, dbname=installation.admin.info.dbname)
    async with (
        asyncio.timeout(120 + 4 * citations * seconds),
        ground(installation.url, superuser) as at,
        running() as sandbox,
        http.client(total=600.0) as client,
        AsyncExitStack() as stack,
    ):
        pool = db.pool(installation.url, "qasid_courier", name="bench", min_size=2, max_size=10)
        await pool.open(wait=True)
        stack.push_async_callback(pool.close)
        sandbox.translator.speed = Speed(seconds=seconds)
        sandbox.assistant.pace = Pace(first_token=seconds)

        @asynccontextmanager
        async def worker() -> AsyncIterator[_Worker]:
            memory = Memory(pool, client, patience=10.0)
            yield _Worker(at, pool, memory, Translations(memory, client, Breakers(), Places()))
            await memory.aclose()

        bounded = citations <= CITATIONS and seconds <= SECONDS
        report.add("distinct citations", citations, digits=0)
        report.add("the translator takes", seconds, "s each")
        libretranslate = _tenant(at.tenant, sandbox, "libretranslate")
        answer = _answer(citations)
        async with worker() as one:
            say("one after the other …")
            alone, took = await one.finish(_tenant(at.tenant, sandbox, "libretranslate", at_once=1), _answer(citations))
            _check(alone)
            report.add("one after the other, all of them", took, "s", digits=2)
            for name, tenant in (
                ("LibreTranslate", libretranslate),
                ("the assistant", _tenant(at.tenant, sandbox, "assistant")),
            ):
                say(f"all at once, by {name} …")
                cold, took = await one.finish(tenant, answer)
                _check(cold)
                report.add(
                    f"all at once, by {name}", took, "s", digits=3, at_most=1.5 if bounded else None, aim="≤ 1.5"
                )
        say("again, with a warm memory …")
        calls = sandbox.translator.count + sandbox.assistant.count
        warm: list[float] = []
        for _ in range(ROUNDS):
            async with worker() as another:  # which has made none of them
                again, took = await another.finish(libretranslate, answer)
                _check(again)
                warm.append(took * 1000)
        report.add("warm memory, median", median(warm), "ms", digits=1, at_most=20.0)
        report.add(f"warm memory, longest of {ROUNDS}", max(warm), "ms", digits=1)
        asked = sandbox.translator.count + sandbox.assistant.count - calls
        report.add("calls with a warm memory", asked, digits=0, at_most=0)


def _answer(citations: int) -> Answer:
    """Texts that no answer before had."""
    run = uuid4().hex
    cited = tuple(Citation(text=f"{_VERSE} {n} {run}", title=f"Source {n}") for n in range(citations))
    text = " ".join(f"Point {n} [{n}]." for n in range(1, citations + 1))
    return Answer(text=text, model="m", input_tokens=1, output_tokens=1, stopped="end_turn", citations=cited)


def _tenant(id: UUID, sandbox: Sandbox, provider: str, *, at_once: int = 32) -> Tenant:
    key = Secret("k")
    return Tenant(
        id=id,
        slug="bench",
        name="Bench",
        enabled=True,
        in_doubt="resend",
        assistant=Assistant(provider="anthropic", base_url=sandbox.assistant_url, api_key=key, model="m"),
        texts=Texts(),
        limits=Limits(),
        intents=Intents(()),
        translation=Translation(
            provider=provider,  # type: ignore[arg-type]
            base_url=sandbox.translator_url,
            deadline_seconds=60.0,
            at_once=at_once,
        ),
    )


def _check(finished: Finished) -> None:
    if any(source.untranslated or source.translation is None for source in finished.sources):
        raise BenchFailed("a citation was not translated")
