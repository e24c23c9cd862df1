"""The translation memory over a real PostgreSQL, and the steps that make a turn's translations."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from app import db, http
from app.assistants import Answer, Citation
from app.assistants.intents import Intents
from app.assistants.parts import LONGEST, MOST_CITATIONS, Tokens
from app.configuration import Assistant, Limits, Texts, Translation
from app.directory import Tenant
from app.errors import DatabaseUnavailable, TranslatorBusy, TranslatorRefused
from app.sandbox.assistant_calls import Pace
from app.sandbox.faults import Chance, Fault
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from app.sandbox.translator_calls import Speed
from app.store import translations as store
from app.text.chunks import utf16_units
from app.text.citations import Source
from app.translation import Recognised, Translated, translator
from app.translation.gate import Gate
from app.translation.libretranslate import LibreTranslate
from app.translation.memory import Memory, Wanted
from app.vault import Secret
from tests.conftest import Database
from tests.ground import Ground, ground
from workers import citations, formatting
from workers.asking import bounded
from workers.breakers import Breakers
from workers.citations import Round
from workers.places import Places
from workers.translations import Finished, Translations

pytestmark = pytest.mark.anyio

HADITH = "إِنَّمَا الأَعْمَالُ بِالنِّيَّاتِ"


class Kept(dict[str, Any]):
    """`app.assistants.Notes` of a turn, as its next claim finds them."""

    async def keep(self, name: str, value: Any, *, lasting: bool = False) -> None:
        self[name] = msgspec.json.decode(msgspec.json.encode(value))


class Bench:
    """Workers that share a database, and a LibreTranslate."""

    def __init__(self, at: Ground, sandbox: Sandbox, client: httpx.AsyncClient, stack: AsyncExitStack) -> None:
        self.at, self.sandbox, self.client = at, sandbox, client
        self._stack = stack
        self.gate = Gate()

    async def memory(self, pool: db.Pool | None = None) -> Memory:
        """That of one more worker."""
        if pool is None:
            pool = db.pool(self.at.url, "qasid_courier", name="worker", max_size=4)
            await pool.open()
            self._stack.push_async_callback(pool.close)
        memory = Memory(pool, self.client, patience=5.0)
        self._stack.push_async_callback(memory.aclose)
        return memory

    def wanted(self, text: str = HADITH, **changed: Any) -> Wanted:
        fields = {
            "tenant_id": self.at.tenant,
            "translator": LibreTranslate(self.sandbox.translator_url, None),
            "text": text,
            "source": "ar",
            "target": "en",
            "seconds": 5.0,
            "place": self.gate.of(self.at.tenant, 32),
        }
        return Wanted(**{**fields, **changed})

    async def worker(self) -> Translations:
        return Translations(await self.memory(), self.client, self.breakers(), Places())

    def breakers(self) -> Breakers:
        """Of a worker that ends with the test: the metrics of this process are other tests', too."""
        made = Breakers()
        self._stack.callback(made.forget)
        return made

    def tenant(self, id: UUID | None = None, assistant: Assistant | None = None, **settings: Any) -> Tenant:
        fields = {"provider": "libretranslate", "base_url": self.sandbox.translator_url}
        return Tenant(
            id=id or self.at.tenant,
            slug="noor",
            name="Noor",
            enabled=True,
            in_doubt="resend",
            assistant=assistant,
            texts=Texts(),
            limits=Limits(),
            intents=Intents(()),
            translation=Translation(**{**fields, **settings}),
        )

    def takes(self, seconds: float) -> None:
        self.sandbox.translator.speed = Speed(seconds=seconds)

    @property
    def calls(self) -> list[str]:
        return [call.text for call in self.sandbox.translator.calls if call.kind == "translate"]

    async def under_way(self, count: int) -> None:
        async with asyncio.timeout(5):
            while self.sandbox.translator.under_way < count:
                await asyncio.sleep(0.005)

    async def rows(self) -> list[tuple[UUID, str]]:
        found = await self.at.all("SELECT tenant_id, body FROM translations ORDER BY body, tenant_id")
        return [(row["tenant_id"], row["body"]) for row in found]


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[Bench]:
    async with (
        ground(database.url, database.superuser_url) as at,
        running(port=0) as sandbox,
        http.client(total=60.0) as client,
        AsyncExitStack() as stack,
    ):
        yield Bench(at, sandbox, client, stack)


def later(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def alerts(kind: str) -> float:
    return REGISTRY.get_sample_value("qasid_alerts_total", {"kind": kind}) or 0.0


def flushes(name: str) -> float:
    return REGISTRY.get_sample_value("qasid_flush_rows_count", {"batch": name}) or 0.0


# --- the memory ---


async def test_what_one_worker_translated_another_remembers(bench: Bench) -> None:
    """One call for all workers; byte for byte the same text."""
    first, second = await bench.memory(), await bench.memory()
    made = await first.translate(bench.wanted(), deadline=later())
    assert made.text == f"[en] {HADITH}"
    assert (await second.translate(bench.wanted(), deadline=later())).text == made.text
    await second.translate(bench.wanted(HADITH + " "), deadline=later())
    assert bench.calls == [HADITH, HADITH + " "]


@pytest.mark.parametrize("changed", [{"source": "ur"}, {"target": "ur"}, {"engine": "another"}])
async def test_other_languages_and_engines_have_memories_of_their_own(bench: Bench, changed: dict[str, str]) -> None:
    """A translation answers for what it was made of, by whom, and into what, and nothing else."""
    memory = await bench.memory()
    await memory.translate(bench.wanted(), deadline=later())
    other: Any = changed
    if "engine" in changed:
        by = LibreTranslate(bench.sandbox.translator_url, None)
        by.engine = changed["engine"]
        other = {"translator": by}
    await memory.translate(bench.wanted(**other), deadline=later())
    assert len(bench.calls) == 2


async def test_a_tenant_never_gets_anothers_translation(bench: Bench) -> None:
    """Neither what lies in the table, nor what is under way in the same process at the same moment."""
    memory = await bench.memory()
    bench.takes(0.2)
    both = [bench.wanted(), bench.wanted(tenant_id=bench.at.twin)]
    await asyncio.gather(*(memory.translate(each, deadline=later()) for each in both))
    assert bench.calls == [HADITH, HADITH]
    assert sorted(tenant for tenant, _ in await bench.rows()) == sorted([bench.at.tenant, bench.at.twin])
    await bench.at.act("UPDATE translations SET body = 'of the twin' WHERE tenant_id = %s", bench.at.twin)
    assert (await (await bench.memory()).translate(bench.wanted(), deadline=later())).text == f"[en] {HADITH}"
    pool = db.pool(bench.at.url, "qasid_app", name="app", max_size=1)
    await pool.open()
    try:
        for tenant, seen in ((bench.at.tenant, 1), (uuid4(), 0), (None, 0)):
            async with db.acting(pool, tenant=tenant) as conn:
                assert (await (await conn.execute("SELECT count(*) FROM translations")).fetchone()) == (seen,)
    finally:
        await pool.close()


async def test_a_text_is_translated_once_at_a_time(bench: Bench) -> None:
    """Fifty turns that cite the same at once share one call."""
    memory = await bench.memory()
    bench.takes(0.2)
    said = await asyncio.gather(*(memory.translate(bench.wanted(), deadline=later()) for _ in range(50)))
    assert {each.text for each in said} == {f"[en] {HADITH}"}
    assert bench.calls == [HADITH]


async def test_a_call_that_is_shared_is_paid_for_once(bench: Bench) -> None:
    """Its tokens are counted for the turn that asked; those that joined have the text."""
    memory = await bench.memory()

    class Costly(LibreTranslate):
        async def translate(self, *args: Any, **more: Any) -> Translated:
            made = await super().translate(*args, **more)
            return Translated(text=made.text, input_tokens=30, output_tokens=4)

    wanted = bench.wanted(translator=Costly(bench.sandbox.translator_url, None))
    bench.takes(0.2)
    said = await asyncio.gather(*(memory.translate(wanted, deadline=later()) for _ in range(5)))
    assert sorted((each.input_tokens, each.output_tokens) for each in said) == [(0, 0)] * 4 + [(30, 4)]
    assert len({each.text for each in said}) == 1 and bench.calls == [HADITH]


async def test_who_leaves_does_not_take_the_call_with_him(bench: Bench) -> None:
    """The first is cancelled in the midst of it; the second gets what it began, and so does the memory."""
    memory = await bench.memory()
    bench.takes(0.3)
    first = asyncio.create_task(memory.translate(bench.wanted(), deadline=later()))
    await bench.under_way(1)
    second = asyncio.create_task(memory.translate(bench.wanted(), deadline=later()))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).text == f"[en] {HADITH}"
    assert first.cancelled() or first.cancelling()
    assert bench.calls == [HADITH] and len(await bench.rows()) == 1


async def test_nobody_waits_for_another_s_shorter_deadline(bench: Bench) -> None:
    """What began with too little time fails for whoever began it; who joined begins anew."""
    memory = await bench.memory()
    bench.sandbox.faults.queue("translator", [Fault(kind="no_answer", seconds=30)])
    hasty = asyncio.create_task(memory.translate(bench.wanted(seconds=0.3), deadline=later()))
    await bench.under_way(1)
    patient = asyncio.create_task(memory.translate(bench.wanted(), deadline=later()))
    with pytest.raises(TranslatorBusy):
        await hasty
    assert (await patient).text == f"[en] {HADITH}"


async def test_texts_of_one_moment_are_one_statement_to_look_up_and_one_to_keep(bench: Bench) -> None:
    """24 citations cost the database two statements."""
    memory = await bench.memory()
    recalls, keeps = flushes("recall"), flushes("translations")
    bench.takes(0.2)
    await asyncio.gather(*(memory.translate(bench.wanted(f"نص {n}"), deadline=later()) for n in range(24)))
    assert flushes("recall") - recalls == 1
    assert flushes("translations") - keeps <= 24  # one for all that come at one instant
    recalls, keeps = flushes("recall"), flushes("translations")
    again = await bench.memory()
    await asyncio.gather(*(again.translate(bench.wanted(f"نص {n}"), deadline=later()) for n in range(24)))
    assert (flushes("recall") - recalls, flushes("translations") - keeps) == (1, 0)
    assert len(bench.calls) == 24


async def test_two_workers_that_remember_the_same_do_not_lock_each_other_out(bench: Bench) -> None:
    """Both keep the same rows, in other orders, again and again: whoever comes first is kept."""
    keys = [store.key(bench.at.tenant, f"text {n}", "ar", "en", "e") for n in range(50)]

    async def keep(body: str, order: Iterable[store.Key]) -> None:
        async with await bench.at.another() as conn:
            await store.keep(conn, [store.Kept(key, body) for key in order])

    await asyncio.gather(*(keep(str(n), keys if n % 2 else reversed(keys)) for n in range(20)))
    assert len(await store.recall(bench.at.conn, keys)) == len(await bench.rows()) == 50


async def test_no_more_than_the_tenant_allows_is_asked_at_once(bench: Bench) -> None:
    """`at_once` holds over all of a tenant's turns in a worker; another tenant has places of its own."""
    memory = await bench.memory()
    bench.takes(0.05)
    own = [bench.wanted(f"a {n}", place=bench.gate.of(bench.at.tenant, 3)) for n in range(12)]
    twins = bench.gate.of(bench.at.twin, 2)
    others = [bench.wanted(f"b {n}", place=twins, tenant_id=bench.at.twin) for n in range(6)]
    await asyncio.gather(*(memory.translate(each, deadline=later()) for each in own + others))
    assert bench.sandbox.translator.most_under_way == 5


async def test_a_failure_is_not_remembered(bench: Bench) -> None:
    """The next answer that cites it asks again."""
    memory = await bench.memory()
    bench.sandbox.faults.queue("translator", ["http_403"])
    with pytest.raises(TranslatorRefused):
        await memory.translate(bench.wanted(), deadline=later())
    assert await bench.rows() == []
    assert (await memory.translate(bench.wanted(), deadline=later())).text == f"[en] {HADITH}"


async def test_without_its_table_nothing_is_asked(bench: Bench) -> None:
    """Nobody knows what is remembered: the turn is left for later, and no call is spent on it."""
    memory = await bench.memory()
    await bench.at.act("ALTER TABLE translations RENAME TO gone")
    with pytest.raises(DatabaseUnavailable):
        await memory.translate(bench.wanted(), deadline=later())
    assert bench.calls == []


async def test_what_cannot_be_kept_is_told_all_the_same(bench: Bench) -> None:
    """The grant is gone between look-up and keeping: the turn has its translation."""
    memory = await bench.memory()
    await bench.at.act("REVOKE INSERT ON translations FROM qasid_courier")
    assert (await memory.translate(bench.wanted(), deadline=later())).text == f"[en] {HADITH}"


async def test_what_the_database_did_not_take_is_not_paid_for_again(bench: Bench) -> None:
    """It is at hand in this worker; when the database takes it, it is written beside whatever is asked for."""
    memory = await bench.memory()
    await bench.at.act("REVOKE INSERT ON translations FROM qasid_courier")
    for _ in range(2):
        for text in (HADITH, "نص"):
            assert (await memory.translate(bench.wanted(text), deadline=later())).text == f"[en] {text}"
    assert sorted(bench.calls) == sorted([HADITH, "نص"])
    await bench.at.act("ALTER TABLE translations RENAME TO gone")  # what is at hand needs no look-up
    assert (await memory.translate(bench.wanted(), deadline=later(-1))).text == f"[en] {HADITH}"
    await bench.at.act("ALTER TABLE gone RENAME TO translations")
    await bench.at.act("GRANT INSERT ON translations TO qasid_courier")
    async with asyncio.timeout(5):
        while len(await bench.rows()) < 2:
            await memory.translate(bench.wanted(), deadline=later())
            await asyncio.sleep(0.005)
    keeps = flushes("translations")
    await memory.translate(bench.wanted(), deadline=later())
    assert len(bench.calls) == 2 and flushes("translations") == keeps
    assert (await (await bench.memory()).translate(bench.wanted(), deadline=later())).text == f"[en] {HADITH}"
    assert len(bench.calls) == 2


async def test_a_text_that_no_database_takes_is_refused(bench: Bench) -> None:
    """A lone surrogate is no text that anybody could be asked about."""
    with pytest.raises(TranslatorRefused):
        await (await bench.memory()).translate(bench.wanted("a\ud800"), deadline=later())


# --- the step ---


def answer(*citations: str, text: str = "As the sources say [1].") -> Answer:
    cited = tuple(Citation(text=each, title=f"Book {n}") for n, each in enumerate(citations, 1))
    return Answer(text=text, model="m", input_tokens=1, output_tokens=1, stopped="end_turn", citations=cited)


async def test_all_citations_are_translated_at_once(bench: Bench) -> None:
    """24 of a third of a second each take a third of a second, each distinct text once."""
    worker, notes = await bench.worker(), Kept()
    bench.takes(0.3)
    texts = [f"نص {n}" for n in range(24)]
    began = time.monotonic()
    finished = await worker.finish(
        bench.tenant(), "?", answer(*texts, *texts), notes, correlation="c", deadline=later()
    )
    assert time.monotonic() - began < 1.2
    assert sorted(bench.calls) == sorted(texts)
    assert [source.translation for source in finished.sources] == [f"[en] {text}" for text in texts] * 2
    assert [source.text for source in finished.sources] == texts * 2
    assert (finished.sources[0].title, finished.text) == ("Book 1", "As the sources say [1].")


@pytest.mark.parametrize("kind", ["http_403", "empty", "essay", "http_400"])
async def test_what_fails_stands_in_the_original(bench: Bench, kind: str) -> None:
    """The others are translated all the same, and the person is told of the one that is not."""
    bench.sandbox.faults.queue("translator", [kind], only="نص 2")
    finished = await (await bench.worker()).finish(
        bench.tenant(), "?", answer("نص 1", "نص 2", "نص 3"), Kept(), correlation="c", deadline=later()
    )
    assert [source.untranslated for source in finished.sources] == [False, True, False]
    assert finished.sources[1] == Source(text="نص 2", title="Book 2", untranslated=True)
    assert finished.sources[2].translation == "[en] نص 3"


@pytest.mark.parametrize(("own", "turns"), [(0.4, 30.0), (30.0, 0.4)])
async def test_what_comes_too_late_stands_in_the_original(bench: Bench, own: float, turns: float) -> None:
    """Whichever deadline is earlier, the turn's or the translation's own; what was there in time is kept."""
    bench.sandbox.faults.chances(
        "translator", [Chance(fault=Fault(kind="no_answer", seconds=30), chance=1.0)], only="نص 2"
    )
    began = time.monotonic()
    finished = await (await bench.worker()).finish(
        bench.tenant(deadline_seconds=own), "?", answer("نص 1", "نص 2"), Kept(), correlation="c", deadline=later(turns)
    )
    assert 0.3 < time.monotonic() - began < 1.5
    assert [source.untranslated for source in finished.sources] == [False, True]


async def test_after_the_deadline_what_is_remembered_is_there(bench: Bench) -> None:
    """The assistant took all of the time: nobody is asked, and a remembered translation costs none."""
    worker = await bench.worker()
    await worker.finish(bench.tenant(), "?", answer("نص 1"), Kept(), correlation="c", deadline=later())
    finished = await worker.finish(
        bench.tenant(), "?", answer("نص 1", "نص 2"), Kept(), correlation="c", deadline=later(-1)
    )
    assert [source.translation for source in finished.sources] == ["[en] نص 1", None]
    assert bench.calls == ["نص 1"]


async def test_a_database_that_hangs_takes_no_translation_from_who_has_it_in_time(bench: Bench) -> None:
    """It was made in a moment: nobody waits beyond their time for it to be remembered, and it is when that can be done."""
    worker = await bench.worker()
    async with bench.at.owner.transaction():
        await bench.at.act("LOCK TABLE translations IN SHARE MODE")
        for _ in range(2):
            finished = await worker.finish(
                bench.tenant(deadline_seconds=1.0), "?", answer("نص 1"), Kept(), correlation="c", deadline=later()
            )
            assert finished.sources[0].translation == "[en] نص 1"
    async with asyncio.timeout(5):
        while not await bench.rows():
            await asyncio.sleep(0.005)
    assert bench.calls == ["نص 1"]


async def test_what_is_no_text_in_the_source_language_is_left_alone(bench: Bench) -> None:
    """A quotation without one letter of its script, or whose reader reads the source's language, wants no translation."""
    worker = await bench.worker()
    finished = await worker.finish(
        bench.tenant(), "?", answer("In English.", "34", "نص"), Kept(), correlation="c", deadline=later()
    )
    assert [(s.translation, s.untranslated) for s in finished.sources] == [
        (None, False),
        (None, False),
        ("[en] نص", False),
    ]
    finished = await worker.finish(
        bench.tenant(target="ar"), "?", answer("نص"), Kept(), correlation="c", deadline=later()
    )
    assert finished.sources == (Source(text="نص", title="Book 1"),)
    assert bench.calls == ["نص"]


async def test_without_a_translation_table_sources_are_as_they_are(bench: Bench) -> None:
    """`provider = "none"`, or no table: no note, since nobody expects a translation. Where somebody should: a note."""
    worker, cited = await bench.worker(), answer("نص")
    for tenant in (bench.tenant(provider="none"), msgspec.structs.replace(bench.tenant(), translation=None)):
        finished = await worker.finish(tenant, "?", cited, Kept(), correlation="c", deadline=later())
        assert finished == Finished(text=cited.text, sources=(Source(text="نص", title="Book 1"),))
    finished = await worker.finish(
        bench.tenant(provider="assistant"), "?", cited, Kept(), correlation="c", deadline=later()
    )
    assert finished.sources == (Source(text="نص", title="Book 1", untranslated=True),)
    assert bench.calls == []


async def test_after_a_crash_in_the_midst_no_finished_translation_is_made_again(bench: Bench) -> None:
    """Two of three are done when the worker dies; another makes the third, and no more."""
    bench.sandbox.faults.queue("translator", [Fault(kind="no_answer", seconds=30)], only="نص 3")
    notes, cited = Kept(), answer("نص 1", "نص 2", "نص 3")
    dying = asyncio.create_task(
        (await bench.worker()).finish(bench.tenant(), "?", cited, notes, correlation="c", deadline=later())
    )
    async with asyncio.timeout(5):
        while len(await bench.rows()) < 2:
            await asyncio.sleep(0.005)
    dying.cancel()
    await asyncio.wait({dying})
    assert notes == {}
    finished = await (await bench.worker()).finish(bench.tenant(), "?", cited, notes, correlation="c", deadline=later())
    assert [source.translation for source in finished.sources] == ["[en] نص 1", "[en] نص 2", "[en] نص 3"]
    assert sorted(bench.calls) == ["نص 1", "نص 2", "نص 3", "نص 3"]


async def test_after_a_crash_behind_the_step_nothing_of_it_is_done_again(bench: Bench) -> None:
    """The memo says it all, what failed too: not even the memory is asked."""
    bench.sandbox.faults.queue("translator", ["http_403"], only="نص 2")
    notes, cited = Kept(), answer("نص 1", "نص 2")
    first = await (await bench.worker()).finish(bench.tenant(), "?", cited, notes, correlation="c", deadline=later())
    calls, recalls = bench.calls, flushes("recall")
    assert (
        await (await bench.worker()).finish(bench.tenant(), "?", cited, notes, correlation="c", deadline=later())
        == first
    )
    assert (bench.calls, flushes("recall")) == (calls, recalls)


async def test_a_database_that_is_away_leaves_the_turn_for_later(bench: Bench) -> None:
    """One error, that the lane knows: no group of twenty."""
    worker = await bench.worker()
    await bench.at.act("ALTER TABLE translations RENAME TO gone")
    with pytest.raises(DatabaseUnavailable):
        await worker.finish(bench.tenant(), "?", answer("نص 1", "نص 2"), Kept(), correlation="c", deadline=later())
    assert bench.calls == []


async def test_the_tenants_assistant_translates_under_its_breaker(bench: Bench) -> None:
    """Its tokens are counted, once: what is remembered costs none."""
    assistant = Assistant(provider="anthropic", base_url=bench.sandbox.assistant_url, api_key=Secret("k"), model="m")
    tenant = bench.tenant(assistant=assistant, provider="assistant")
    bench.sandbox.assistant.pace = Pace(first_token=0.2)
    breakers = bench.breakers()
    worker = Translations(await bench.memory(), bench.client, breakers, Places())
    began = time.monotonic()
    first = await worker.finish(tenant, "?", answer("نص 1", "نص 2"), Kept(), correlation="c", deadline=later())
    assert time.monotonic() - began < 1.0 and len(breakers) == 1
    assert [source.translation for source in first.sources] == ["[translated] نص 1", "[translated] نص 2"]
    assert first.input_tokens > 0 and first.output_tokens > 0
    again = await worker.finish(tenant, "?", answer("نص 1", "نص 2"), Kept(), correlation="c", deadline=later())
    assert again.sources == first.sources and (again.input_tokens, again.output_tokens) == (0, 0)
    assert bench.sandbox.assistant.count == 2


async def test_what_was_paid_for_and_is_no_translation_counts_too(bench: Bench) -> None:
    """One that the assistant's own limit cut, three calls long: the original stands, and the turn costs what they cost."""
    assistant = Assistant(provider="anthropic", base_url=bench.sandbox.assistant_url, api_key=Secret("k"), model="m")
    tenant = bench.tenant(assistant=assistant, provider="assistant")
    bench.sandbox.faults.queue("assistant", ["max_tokens"] * 3)
    said = answer("إنما الأعمال بالنيات " * 20)
    finished = await (await bench.worker()).finish(tenant, "?", said, Kept(), correlation="c", deadline=later())
    assert finished.sources[0].untranslated
    calls = bench.sandbox.assistant.calls
    assert len(calls) == 3
    assert finished.input_tokens == sum(call.input_tokens for call in calls)
    assert finished.output_tokens == sum(call.output_tokens for call in calls)


@pytest.mark.parametrize("fault", ["http_500", "no_answer"])
async def test_while_an_engine_is_away_originals_stand_at_once(bench: Bench, fault: str) -> None:
    """After three calls without a translation nobody waits for one, in no turn; what is remembered is there."""
    worker, quoting = await bench.worker(), bench.tenant(deadline_seconds=0.5)
    known = (await worker.finish(quoting, "?", answer(HADITH), Kept(), correlation="c", deadline=later())).sources
    always = Chance(chance=1.0, fault=Fault(kind=fault))  # type: ignore[arg-type]
    bench.sandbox.faults.chances("translator", [always])
    before = alerts("translator_away")
    await asyncio.gather(
        *(worker.finish(quoting, "?", answer(f"نص {n}"), Kept(), correlation="c", deadline=later()) for n in range(3))
    )
    asked, began = bench.sandbox.translator.count, time.monotonic()
    patient = bench.tenant(deadline_seconds=30.0, answers=("ur",))
    for turn in range(3):
        finished = await worker.finish(
            patient, URDU, answer(HADITH, f"نص آخر {turn}", text="Here."), Kept(), correlation="c", deadline=later(60)
        )
        assert finished.text == "Here." and finished.untranslated
        assert finished.sources[0] == known[0] and finished.sources[1].untranslated
    assert time.monotonic() - began < 1.0
    assert bench.sandbox.translator.count - asked <= 1  # the one that asks whether it is back
    assert alerts("translator_away") == before + 1


async def test_an_assistant_that_is_away_keeps_no_answer_waiting_for_its_translations(bench: Bench) -> None:
    """Its fallback wrote this answer, say: the translations are not waited for until the first may be asked again."""
    assistant = Assistant(provider="anthropic", base_url=bench.sandbox.assistant_url, api_key=Secret("k"), model="m")
    breakers = bench.breakers()
    breakers.heard({"assistant:noor": "open"})
    worker = Translations(await bench.memory(), bench.client, breakers, Places())
    began = time.monotonic()
    finished = await worker.finish(
        bench.tenant(assistant=assistant, provider="assistant", answers=("ur",)),
        URDU,
        answer(HADITH, text="Here."),
        Kept(),
        correlation="c",
        deadline=later(60),
    )
    assert time.monotonic() - began < 0.5
    assert finished.text == "Here." and finished.sources[0].untranslated
    assert bench.sandbox.assistant.count == 0


HOSTILE = {
    "too many": [Citation(text=f"نص {n}") for n in range(5_000)],
    "too long": [Citation(text=HADITH * 7_000, title="Long"), Citation(text="نص")],
    "empty": [Citation(text=text, title="T") for text in ("", " ", "\n", "\0", "\u200b")],
    "halves of characters": [Citation(text="نص \ud800\udfff\ud83d")],
    "turned": [Citation(text=f"{HADITH}\u202e\u2067\u2069\u2069\u202a", title="\u202eT")] * 3,
    "nothing but marks": [Citation(text="\u2068" * 90_000), Citation(text="نص")],
}


@pytest.mark.parametrize("citations", HOSTILE.values(), ids=HOSTILE)
async def test_whatever_is_cited_the_work_is_bounded_and_the_answer_goes_out(
    bench: Bench, citations: list[Citation]
) -> None:
    """As many calls as citations may be kept, no text larger than thrice an answer's, each piece one that WhatsApp takes."""
    answered = msgspec.structs.replace(answer(), citations=tuple(citations))
    kept = bounded(bench.tenant(), answered)
    began = time.process_time()
    finished = await (await bench.worker()).finish(
        bench.tenant(), "?", kept, Kept(), correlation="c", deadline=later(30)
    )
    whole = await formatting.sourced(await formatting.whatsapp(finished.text), finished.sources, Texts())
    pieces = await formatting.pieces(whole)
    assert time.process_time() - began < 5.0
    assert len(bench.calls) <= MOST_CITATIONS
    assert len(whole) < 3 * LONGEST + 100 * MOST_CITATIONS
    assert pieces[0].startswith(answered.text)
    assert all(0 < utf16_units(piece.encode().decode()) <= 4_000 for piece in pieces)


async def test_translations_are_together_no_longer_than_an_answer(bench: Bench) -> None:
    """An engine that makes five times as much of each: what no longer fits stands in the original, with the note."""

    class Wordy:
        engine, in_vain = "wordy", Tokens()

        async def translate(self, client: Any, text: str, **_: Any) -> Translated:
            return Translated(text=text * 5)

        async def recognise(self, client: Any, text: str, among: Any, **_: Any) -> Recognised:
            return Recognised(language=None)

    tenant = bench.tenant()
    assert tenant.translation
    turn = Round(
        tenant=tenant,
        settings=tenant.translation,
        translator=Wordy(),
        place=bench.gate.of(tenant.id, 32),
        target="en",
        deadline=time.monotonic() + 10,
        correlation="c",
    )
    quoted = [Citation(text=f"{n} " + "ن" * 900) for n in range(100)]
    notes = Kept()
    for _ in range(2):  # the second time from the memo
        fates = (await citations.translated(await bench.memory(), turn, quoted, notes)).fates
        assert LONGEST - 5_000 < sum(len(fate.translation or "") for fate in fates) <= LONGEST
        assert all((fate.translation is None) == fate.untranslated for fate in fates)


async def test_a_language_that_the_engine_does_not_know_is_refused_and_nobody_is_away(bench: Bench) -> None:
    """Each original stands, with the note; an answer, however often, so what it does know is translated as ever."""
    worker = await bench.worker()
    for _ in range(5):
        finished = await worker.finish(
            bench.tenant(source="xx"), "?", answer(HADITH), Kept(), correlation="c", deadline=later()
        )
        assert finished.sources == (Source(text=HADITH, title="Book 1", untranslated=True),)
    known = await worker.finish(bench.tenant(), "?", answer(HADITH), Kept(), correlation="c", deadline=later())
    assert known.sources[0].translation == f"[en] {HADITH}"


# --- the whole answer ---

URDU, ENGLISH = "آپ کہاں ہیں؟", "Where are you?"


@asynccontextmanager
async def every_engine(bench: Bench) -> AsyncIterator[list[Callable[..., Tenant]]]:
    assistant = Assistant(provider="anthropic", base_url=bench.sandbox.assistant_url, api_key=Secret("k"), model="m")
    yield [
        lambda **more: bench.tenant(**more),
        lambda **more: bench.tenant(assistant=assistant, provider="assistant", **more),
    ]


async def test_who_writes_in_a_language_of_the_tenants_is_answered_in_it(bench: Bench) -> None:
    """The whole answer, and the citations' translations too; quotations and links letter for letter."""
    text = f"It is said: “{HADITH}” [1]. See https://sunnah.com/bukhari:1 and `code [1]`."
    async with every_engine(bench) as tenants:
        for tenant, mark in zip(tenants, ("[ur]", "[translated]"), strict=True):
            finished = await (await bench.worker()).finish(
                tenant(answers=("ur",)), URDU, answer(HADITH, text=text), Kept(), correlation="c", deadline=later()
            )
            assert finished.text == f"{mark} {text}"
            assert finished.sources[0].translation == f"{mark} {HADITH}"


@pytest.mark.parametrize(
    ("words", "text"),
    [(ENGLISH, "Here."), (URDU, "ہم یہاں ہیں۔"), ("٣٤", "Here."), ("Где вы?", "Here."), ("", "Here.")],
)
async def test_an_answer_that_needs_no_translation_stands(bench: Bench, words: str, text: str) -> None:
    """In a language that the tenant does not name, in none that the engine knows, or answered in the same."""
    async with every_engine(bench) as tenants:
        for tenant in tenants:
            finished = await (await bench.worker()).finish(
                tenant(answers=("ur",)), words, answer(text=text), Kept(), correlation="c", deadline=later()
            )
            assert finished.text == text and not finished.untranslated
    assert bench.calls == []


@pytest.mark.parametrize(
    ("faults", "told"),
    [(["http_403"] * 2, 1), (["ok", "http_403"], 1), (["ok", "ok"], 0)],
    ids=["nobody to ask", "not of the answer", "asked"],
)
async def test_who_is_not_answered_in_their_language_for_want_of_an_engine_is_told_of(
    bench: Bench, faults: list[str], told: int
) -> None:
    """The answer goes out as it is, with a note; an operator is alerted, once, with the turn's correlation in every line."""
    for fault, only in zip(faults, (URDU, "Here."), strict=True):
        bench.sandbox.faults.queue("translator", [Fault(kind=fault)], only=only)  # type: ignore[arg-type]
    before = alerts("untranslated")
    with capture_logs() as lines:
        finished = await (await bench.worker()).finish(
            bench.tenant(answers=("ur",)), URDU, answer(text="Here."), Kept(), correlation="c-1", deadline=later()
        )
    assert finished.text == ("Here." if told else "[ur] Here.") and finished.untranslated == bool(told)
    assert alerts("untranslated") - before == told
    assert [line["event"] for line in lines if line.get("alert")] == ["an answer stands untranslated"] * told
    assert {line["correlation"] for line in lines} == ({"c-1"} if told else set())


async def test_every_line_about_a_turns_citations_has_its_correlation(bench: Bench) -> None:
    """One id from the webhook to the last part of the answer."""
    bench.sandbox.faults.queue("translator", ["http_403"])
    with capture_logs() as lines:
        await (await bench.worker()).finish(
            bench.tenant(), "?", answer("نص 1"), Kept(), correlation="c-2", deadline=later()
        )
    assert [(line["event"], line["correlation"]) for line in lines] == [
        ("a citation stands untranslated", "c-2"),
        ("citations stand untranslated", "c-2"),
    ]


async def test_what_one_step_has_paid_for_is_kept_though_another_could_not_be(bench: Bench) -> None:
    """The database takes the quotations' memo no more, and is back when the answer has been translated: that is not lost."""

    class Refusing(Kept):
        async def keep(self, name: str, value: Any, *, lasting: bool = False) -> None:
            if name == "citations" or (name == "language/words" and "language/answer" not in self):
                raise DatabaseUnavailable("gone")
            await super().keep(name, value, lasting=lasting)

    bench.sandbox.faults.queue("translator", [Fault(kind="slow", seconds=0.3)] * 2, only="Here.")
    notes = Refusing()
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await (await bench.worker()).finish(
                bench.tenant(answers=("ur",)),
                URDU,
                answer("نص", text="Here."),
                notes,
                correlation="c",
                deadline=later(),
            )
    assert notes.keys() == {"language/words", "language/answer", "answer_translated"}


async def test_whatever_is_asked_of_a_tenants_translator_is_no_more_at_once_than_the_tenant_allows(
    bench: Bench,
) -> None:
    """Languages, answers and quotations of all its turns go through one gate, within their time; others have their own."""
    worker = await bench.worker()
    bench.takes(0.01)
    two = [bench.tenant(answers=("ur",), at_once=1), bench.tenant(bench.at.twin, answers=("ur",), at_once=2)]
    said = await asyncio.gather(
        *(
            worker.finish(each, URDU, answer(f"نص {n}", text=f"Here {n}."), Kept(), correlation="c", deadline=later(30))
            for each in two
            for n in range(10)
        )
    )
    assert bench.sandbox.translator.most_under_way == 3
    assert [each.text for each in said] == [f"[ur] Here {n}." for n in range(10)] * 2
    assert all(each.sources[0].translation for each in said)


async def test_who_waits_for_a_place_with_the_translator_waits_no_longer_than_its_time(bench: Bench) -> None:
    """Another's call has the only place: the answer stands at its deadline, and nobody is asked any more for it."""
    worker, tenant = await bench.worker(), bench.tenant(answers=("ur",), at_once=1)
    bench.takes(1.5)
    other = asyncio.create_task(
        worker.finish(bench.tenant(at_once=1), "?", answer(HADITH), Kept(), correlation="c", deadline=later())
    )
    await bench.under_way(1)
    began = time.monotonic()
    finished = await worker.finish(
        tenant, URDU, answer("نص", text="Here."), Kept(), correlation="c", deadline=later(0.3)
    )
    assert time.monotonic() - began < 1.0
    assert finished.text == "Here." and finished.sources[0].untranslated
    assert (await other).sources[0].translation == f"[en] {HADITH}"
    assert bench.sandbox.translator.count == 1


async def test_a_translation_that_loses_a_source_is_not_used(bench: Bench) -> None:
    """Half of what must not change is gone: the answer stands as it was."""
    bench.sandbox.faults.queue("translator", ["ok", "ok", "empty"])
    text = f"It is said: “{HADITH}” [1]."
    finished = await (await bench.worker()).finish(
        bench.tenant(answers=("ur",)), URDU, answer(text=text), Kept(), correlation="c", deadline=later()
    )
    assert finished.text == text and finished.untranslated


@pytest.mark.parametrize(
    ("answers", "words", "text", "noted"),
    [
        (("ur",), URDU, "Here.", True),
        (("ur",), URDU, f"As is said: “{HADITH}” [1].", True),  # its letters are the quotation's
        (("ur",), URDU, "ہم یہاں ہیں۔", False),
        (("ur",), ENGLISH, "Here.", False),
        (("fr", "ur"), URDU, "Here.", True),
        (("fr",), "Où êtes-vous ?", "Nous sommes ici.", False),
        (("ur",), "", "Here.", False),
    ],
)
async def test_where_nobody_could_be_asked_for_the_language_the_note_stands_only_where_letters_leave_no_doubt(
    bench: Bench, answers: tuple[str, ...], words: str, text: str, noted: bool
) -> None:
    """The words may be in a language of the tenant's, and the answer cannot be: else its person may read theirs already."""
    notes = Kept()
    for deadline in (-1.0, 5.0):  # the second time from the memos: nobody is asked, and it is the same
        finished = await (await bench.worker()).finish(
            bench.tenant(answers=answers),
            words,
            answer(HADITH, text=text),
            notes,
            correlation="c",
            deadline=later(deadline),
        )
        assert (finished.text, finished.untranslated) == (text, noted)


async def test_an_answer_is_kept_with_its_turn_and_not_in_the_memory(bench: Bench) -> None:
    """It is a person's: no row outlives them. After a crash nothing of it is asked again."""
    notes = Kept()
    for _ in range(2):
        finished = await (await bench.worker()).finish(
            bench.tenant(answers=("ur",)), URDU, answer(text="Here we are."), notes, correlation="c", deadline=later()
        )
        assert finished.text == "[ur] Here we are." and not finished.untranslated
    assert await bench.rows() == []
    assert bench.sandbox.translator.count == 3  # two languages, one answer


def test_nothing_is_translated_by_default() -> None:
    """A tenant that says nothing of it pays for nothing."""
    assert translator(Translation(), None).engine == "nobody" and Translation().answers == ()
