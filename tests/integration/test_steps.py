"""The steps from a voice message to a translated, cited answer: a crash between any two of them repeats none that is done."""

from collections import Counter

import pytest

from app.apply import apply
from app.crashpoints import NAMES
from app.sandbox.faults import Fault
from app.sandbox.files import SAID, File
from app.vault import Vault
from tests import world as shared
from tests.world import ENVIRON, KEY, OTHER, PERSON, World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

world = shared.world

# An assistant answers it in English, with three citations in Arabic; its person reads Urdu.
QUESTION = "cite#3 آپ کہاں ہیں؟"
# Behind `answer.asked` nothing is committed yet: that call alone may be made again.
POINTS = [name for name in NAMES if name.startswith(("question.", "answer.")) and name != "answer.asked"]
TABLES = """
[tenants.noor.translation]
provider = "libretranslate"
base_url = "{url}/libretranslate"
{more}
[tenants.noor.transcription]
base_url = "{url}/openai/v1"
api_key = "env:AI_KEY"
model = "whisper-1"
"""


async def with_translator(world: World, more: str = "") -> None:
    """The tenant has its sources translated, and voice messages written down."""
    path = world.folder / "more.toml"
    path.write_text('[tenants.noor]\nname = "Noor"\n' + TABLES.format(url=world.sandbox.url, more=more))
    await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)


def translated(world: World, kind: str = "translate") -> Counter[str]:
    """How often the translator was asked about each text."""
    return Counter(call.text for call in world.sandbox.translator.calls if call.kind == kind)


async def say_aloud(world: World, words: str) -> None:
    """A voice message that says this."""
    world.sandbox.files.by_id["9"] = File(media_type="audio/ogg", data=b"OggS\0" + SAID + words.encode())
    await world.say(kind="audio", file="9")


# --- what people read ---


async def test_a_cited_answer_comes_with_its_sources_translated(world: World) -> None:
    """Marks in the text, below it each source once: title, the quotation as it stands, its translation."""
    await with_translator(world)
    await world.worker()
    await world.say("cite#2")
    [text] = await world.got(1)
    head, title, first, second = text.split("\n\n")
    assert head == "Here is what the sources say: point 1 [1]; point 2 [2]."
    assert title == "*Sources*"
    assert first.splitlines()[0].startswith("[1] ") and "Sahih al-Bukhari 1" in first
    assert "إِنَّمَا الأَعْمَالُ بِالنِّيَّاتِ" in first.splitlines()[1]
    assert first.splitlines()[2].startswith("Translation: ") and second.splitlines()[2].startswith("Translation: ")
    assert sorted(translated(world).values()) == [1, 1]


async def test_whoever_writes_in_a_language_of_the_tenants_reads_all_of_it_in_that(world: World) -> None:
    """The answer itself and what stands below its quotations."""
    await with_translator(world, 'answers = ["ur"]')
    await world.worker()
    await world.say(QUESTION)
    [text] = await world.got(1)
    assert text.startswith("[ur] Here is what the sources say: point 1 [1]")
    assert text.count("[ur] ") == 4


async def test_without_a_translator_sources_stand_as_they_are(world: World) -> None:
    """Nothing is said of a translation that nobody wants."""
    await world.worker()
    await world.say("cite#1")
    [text] = await world.got(1)
    assert "*Sources*" in text and "Translation" not in text and "not translated" not in text
    assert world.sandbox.translator.count == 0


async def test_an_answer_does_not_fail_for_a_translation(world: World) -> None:
    """Whoever cannot be translated for reads the original, and is told so."""
    await with_translator(world)
    world.sandbox.faults.queue("translator", [Fault(kind="http_403")])
    await world.worker()
    await world.say("cite#1")
    [text] = await world.got(1)
    assert text.endswith("(not translated)")


async def test_sources_that_were_translated_for_one_person_are_not_for_the_next(world: World) -> None:
    """The memory is the tenant's: the second answer asks the assistant alone."""
    await with_translator(world)
    await world.worker()
    await world.say("cite#2")
    first = await world.got(1)
    await world.say("cite#2", sender=OTHER)
    assert await world.got(1, sender=OTHER) == first
    assert sorted(translated(world).values()) == [1, 1]


async def test_what_a_translation_cost_counts_with_its_turn(world: World) -> None:
    """An assistant that translates is paid like one that answers."""
    path = world.folder / "more.toml"
    path.write_text('[tenants.noor]\nname = "Noor"\n[tenants.noor.translation]\nprovider = "assistant"\n')
    await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)
    await world.worker()
    await world.say("cite#1")
    [text] = await world.got(1)
    assert "Translation: " in text and "[translated] " in text
    [(tokens,)] = await world.rows("SELECT input_tokens + output_tokens FROM usage")
    calls = world.sandbox.assistant.calls
    assert len(calls) == 2
    assert tokens == sum(call.input_tokens + call.output_tokens for call in calls)


# --- crashes ---


@pytest.mark.parametrize("point", POINTS)
async def test_a_crash_between_two_steps_repeats_nothing_that_is_done(
    world: World, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind a step, the next worker goes on from there: each finished call was made once, and one answer comes."""
    await with_translator(world, 'answers = ["ur"]\nat_once = 1')
    monkeypatch.setenv("CRASHPOINT", f"{point}:1")
    child = await world.process()
    monkeypatch.delenv("CRASHPOINT")
    await say_aloud(world, QUESTION)
    assert await child.wait() == -9
    steps = {step for (step,) in await world.rows("SELECT step FROM steps")}
    remembered = {text.removeprefix("[ur] ") for (text,) in await world.rows("SELECT body FROM translations")}
    await world.process()
    [text] = await world.got(1, timeout=20)
    assert text.startswith("[ur] Here is what the sources say: point 1 [1]") and text.count("[ur] ") == 4
    assert len(world.sandbox.transcriptions.calls) == 1
    if point != "question.heard":
        assert "answer" in steps
    assert len(world.asked) == 1
    asked, recognised = translated(world), translated(world, "detect")
    assert all(asked[quotation] == 1 for quotation in remembered)
    if "answer_translated" in steps:
        assert sum(count for quotation, count in asked.items() if "point 1" in quotation) == 1
    if "citations" in steps:
        assert sum(count for quotation, count in asked.items() if "point 1" not in quotation) == 3
    if "language/words" in steps:
        assert recognised[QUESTION] == 1
    if point == "answer.finished":
        assert steps >= {"answer", "citations", "answer_translated", "language/words", "language/answer"}
        assert set(asked.values()) == set(recognised.values()) == {1}
    assert len(world.lines(PERSON)) == 1


async def test_a_translation_that_failed_is_not_tried_again_behind_its_memo(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands untranslated stands so for every worker: a finished step, too."""
    await with_translator(world)
    world.sandbox.faults.queue("translator", [Fault(kind="http_403")])
    monkeypatch.setenv("CRASHPOINT", "answer.cited:1")
    child = await world.process()
    monkeypatch.delenv("CRASHPOINT")
    await world.say("cite#1")
    assert await child.wait() == -9
    await world.process()
    [text] = await world.got(1, timeout=20)
    assert text.endswith("(not translated)")
    assert world.sandbox.translator.count == 1
