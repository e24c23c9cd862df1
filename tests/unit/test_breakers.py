"""Which breakers a worker has: whose failures touch whom, who comes again when, and what is remembered."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Literal
from uuid import UUID, uuid4

import msgspec
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from app.assistants.intents import Intents
from app.configuration import Assistant, Limits, Texts, Transcription, Translation
from app.directory import Channel, Directory, Tenant
from app.errors import AssistantBusy, HeldBack, InDoubt, Refused, TranslatorBusy, TranslatorRefused
from app.policies import AssistantSkipped, TranscriberOpen, TranslatorOpen
from app.vault import Secret, SecretBytes
from workers.breakers import STEP, Breakers, Outdated

pytestmark = pytest.mark.anyio

LOST = InDoubt("no answer")


class Place:
    """The breakers of one worker, on a clock of the test's, and two tenants with a channel each."""

    def __init__(self) -> None:
        self.at = 1000.0
        self.woken: list[tuple[UUID, UUID]] = []
        self.breakers = Breakers(clock=lambda: self.at, draw=lambda: 0.0)
        self.breakers.reopened = lambda tenant, channel: self.woken.append((tenant, channel))
        self.noor, self.other = tenant("nurse"), tenant("other")
        self.main, self.beside = channel(self.noor, "main"), channel(self.other, "main")

    def send(self, error: Exception | None = None, *, beside: bool = False) -> bool:
        """One send; False: turned away."""
        owner, over = (self.other, self.beside) if beside else (self.noor, self.main)
        with self.breakers.channel(owner, over) as call:
            if call is None:
                return False
            call.ended(error)
            return True

    def lose(self) -> None:
        """Ten sends lost: it opens."""
        assert [self.send(LOST) for _ in range(11)] == [True] * 10 + [False]

    def again(self) -> float:
        return self.breakers.comes_again(self.noor, self.main)

    def follow(self, *tenants: Tenant, channels: list[Channel], version: int) -> None:
        directory = Directory(
            version=version, digest_key=SecretBytes(b""), endpoints=[], tenants=list(tenants), channels=channels
        )
        watch: Any = SimpleNamespace(current=directory)
        self.breakers.directory = watch


def tenant(slug: str, **more: Any) -> Tenant:
    assistant = Assistant(
        provider="anthropic", base_url="https://ai.example", api_key=Secret("sk"), model="m", deadline_seconds=5.0
    )
    fields = {
        "id": uuid4(),
        "slug": slug,
        "name": slug,
        "enabled": True,
        "in_doubt": "resend",
        "assistant": assistant,
        "texts": Texts(),
        "limits": Limits(),
        "intents": Intents(),
        "translation": Translation(provider="libretranslate", base_url="https://translate.example"),
        "transcription": Transcription(base_url="https://ears.example", model="w"),
    }
    return Tenant(**{**fields, **more})


def channel(owner: Tenant, slug: str) -> Channel:
    return Channel(
        tenant_id=owner.id,
        id=uuid4(),
        slug=slug,
        endpoint_id=uuid4(),
        address="1",
        base_url="https://graph.example",
        token=Secret("t"),
        enabled=True,
        session_gap_hours=3,
        answer_within_hours=24,
        late="store",
    )


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.follow(channels=[], version=100)
    place.breakers.heard({})
    assert len(place.breakers) == 0


def series(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


# --- channels ---


async def test_a_channel_that_fails_is_not_asked_and_no_other_is_touched(place: Place) -> None:
    """Half of ten calls; the channel beside goes on."""
    place.lose()
    assert not place.send()
    assert place.send(beside=True)


@pytest.mark.parametrize("error", [Refused("no", code=190, then="hold"), HeldBack("the lease ends")])
async def test_what_is_no_failure_of_the_provider_opens_nothing(place: Place, error: Exception) -> None:
    """A refusal is an answer; what we held back ourselves says nothing of anybody."""
    assert all(place.send(error) for _ in range(30))


async def test_a_place_that_was_not_used_counts_nowhere(place: Place) -> None:
    """Its intent was not let through: neither a success that hides failures, nor the end of a probe."""
    for _ in range(30):
        with place.breakers.channel(place.noor, place.main):
            pass
    place.lose()
    place.at += 1.0
    with place.breakers.channel(place.noor, place.main) as probe:
        assert probe is not None and not place.send()
    assert place.send(LOST)  # the next is the probe
    assert not place.send()


async def test_a_place_stands_only_as_long_as_its_breaker_lets_through(place: Place) -> None:
    """The last look before the first byte: it opened meanwhile, by others' failures or by hand; a probe's own stands."""
    with place.breakers.channel(place.noor, place.main) as call:
        assert call is not None and call.stands
        place.lose()
        assert not call.stands
    place.at += 1.0
    with place.breakers.channel(place.noor, place.main) as probe:
        assert probe is not None and probe.stands
        place.breakers.heard({"channel:nurse/main": "open"})
        assert not probe.stands


async def test_those_turned_away_come_again_one_by_one_from_when_it_may_be_asked(place: Place) -> None:
    """Each may be the probe; those for whom there is no room before the longest pause's end come then."""
    place.lose()
    waits = [place.again() for _ in range(300)]
    assert waits[:3] == [1.0, 1.0 + STEP, 1.0 + 2 * STEP]
    assert waits[-1] == 45.0 and max(waits) == 45.0
    assert len(set(waits)) == 177  # one each quarter of a second, from the first to the forty-fifth
    place.at += 46.0
    assert place.send(None)
    assert place.again() == 0.0


async def test_while_one_asks_the_others_look_again_soon(place: Place) -> None:
    """Nobody knows how long the probe takes: waiting out the longest that it may would be for nothing."""
    place.lose()
    place.at += 1.0
    with place.breakers.channel(place.noor, place.main):
        assert place.again() == STEP
        assert place.again() == 2 * STEP


async def test_held_open_by_hand_nobody_looks_more_often_than_at_the_longest_pause(place: Place) -> None:
    """The word's end wakes them; until then they cost next to nothing."""
    place.breakers.heard({"channel:nurse/main": "open"})
    assert not place.send()
    assert [place.again() for _ in range(3)] == [45.0] * 3
    place.breakers.heard({})
    assert place.woken == [(place.noor.id, place.main.id)] and place.send()


async def test_whoever_waits_is_woken_when_it_closes(place: Place) -> None:
    """Once, by whatever closes it; not by a probe that fails."""
    place.lose()
    place.at += 1.0
    assert place.send(LOST)
    assert place.woken == []
    place.at += 2.0
    assert place.send()
    assert place.woken == [(place.noor.id, place.main.id)]


async def test_no_lane_waits_longer_than_the_longest_pause_and_a_quarter(place: Place) -> None:
    """However long the channel was away: the next probe is never later than that."""
    breakers = Breakers(clock=lambda: place.at, draw=lambda: 0.999)
    place.breakers = breakers
    place.lose()
    for _ in range(20):
        wait = max(place.again() for _ in range(200))
        assert wait <= 45.0 * 1.25
        place.at += 46.0
        place.send(LOST)


# --- assistants ---


async def asked(place: Place, tenant: Tenant, error: Exception | None = None) -> None:
    async with place.breakers.assistant(tenant):
        if error is not None:
            raise error


async def fail(place: Place, tenant: Tenant) -> None:
    for _ in range(10):
        with pytest.raises(AssistantBusy):
            await asked(place, tenant, AssistantBusy("HTTP 529"))


async def test_one_tenants_assistant_never_closes_anothers(place: Place) -> None:
    """The same address, model and key; a deadline or a prompt of one may still be what fails."""
    await fail(place, place.noor)
    async with asyncio.timeout(1):
        await asked(place, place.other)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asked(place, place.noor)


async def test_who_waits_for_an_assistant_goes_on_when_it_answers(place: Place) -> None:
    """One asks; its first words let the others in, before its end."""
    await fail(place, place.noor)
    place.at += 1.0
    async with asyncio.timeout(5), place.breakers.assistant(place.noor) as probe:
        waiting = asyncio.create_task(asked(place, place.noor))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        probe.began()
        await waiting


async def test_a_fallback_has_a_breaker_of_its_own(place: Place) -> None:
    """What the first one's failures open does not keep anybody from the fallback; and who does not wait is told so at once."""
    first = place.noor.assistant
    assert first
    place.noor = msgspec.structs.replace(place.noor, assistant=msgspec.structs.replace(first, fallback=first))
    await fail(place, place.noor)
    with pytest.raises(AssistantSkipped):
        async with place.breakers.assistant_now(place.noor):
            raise AssertionError
    async with asyncio.timeout(1), place.breakers.assistant(place.noor, fallback=True):
        pass
    place.breakers.heard({"assistant:nurse": "closed", "assistant:nurse/fallback": "open"})
    async with asyncio.timeout(1), place.breakers.assistant_now(place.noor):
        pass
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.03), place.breakers.assistant(place.noor, fallback=True):
            raise AssertionError
    place.follow(tenant("other"), msgspec.structs.replace(place.noor, assistant=first), channels=[], version=1)
    place.breakers.heard({})
    assert len(place.breakers) == 1


async def test_who_does_not_wait_for_a_breaker_waits_for_no_place_either(place: Place) -> None:
    """Calls to an assistant that is away hold the places for as long as they take: what could be skipped is, at once."""
    await fail(place, place.noor)

    @asynccontextmanager
    async def full() -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    with pytest.raises(AssistantSkipped):
        async with asyncio.timeout(1), place.breakers.assistant_now(place.noor, place=full):
            raise AssertionError


async def test_a_breaker_that_opens_while_one_waits_for_a_place_skips_them(place: Place) -> None:
    """Whoever held the places may be who opened it: nobody is let through on what they saw before."""

    @asynccontextmanager
    async def room() -> AsyncIterator[None]:
        await fail(place, place.noor)
        yield

    with pytest.raises(AssistantSkipped):
        async with asyncio.timeout(1), place.breakers.assistant_now(place.noor, place=room):
            raise AssertionError


async def test_first_words_count_for_a_probe_alone(place: Place) -> None:
    """Streams that begin and are cut are failures while it is closed."""
    for _ in range(10):
        with pytest.raises(AssistantBusy):
            async with place.breakers.assistant(place.noor) as call:
                call.began()
                raise AssistantBusy("the stream was cut")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asked(place, place.noor)


# --- those who help an assistant ---

HELPERS: Any = pytest.mark.parametrize(
    ("kind", "busy", "refusal"),
    [
        ("translator", TranslatorBusy("HTTP 503"), TranslatorOpen),
        ("transcriber", AssistantBusy("HTTP 503"), TranscriberOpen),
    ],
)
Helper = Literal["translator", "transcriber"]


async def helped(place: Place, kind: Helper, error: Exception | None = None, *, beside: bool = False) -> None:
    async with place.breakers.now(place.other if beside else place.noor, kind):
        if error is not None:
            raise error


@HELPERS
async def test_a_helper_that_fails_thrice_in_a_row_is_not_asked_and_nobody_waits_for_it(
    place: Place, kind: Helper, busy: Exception, refusal: type[Exception]
) -> None:
    """Not even for a moment: another try would end the same way. After its pause one asks; the tenant beside goes on."""
    for _ in range(3):
        with pytest.raises(type(busy)):
            await helped(place, kind, busy)
    with pytest.raises(refusal):
        await helped(place, kind)
    await helped(place, kind, beside=True)
    place.at += 1.0
    await helped(place, kind)
    await helped(place, kind)


@HELPERS
async def test_a_helper_that_answers_others_meanwhile_is_slow_and_not_away(
    place: Place, kind: Helper, busy: Exception, refusal: type[Exception]
) -> None:
    """Of many at once the last miss their deadline together: the next answer's shall be asked for all the same."""
    late = [place.breakers.now(place.noor, kind) for _ in range(9)]
    for each in late:
        await each.__aenter__()
    await helped(place, kind)
    for each in late:
        with pytest.raises(type(busy)):
            await each.gen.athrow(busy)
    await helped(place, kind)


async def test_an_engine_that_refuses_is_there(place: Place) -> None:
    """A wrong key, a language that it does not have: nobody waits for that."""
    for _ in range(20):
        with pytest.raises(TranslatorRefused):
            await helped(place, "translator", TranslatorRefused("HTTP 403"))
    await helped(place, "translator")


async def test_a_helpers_alert_and_series_are_of_its_kind(place: Place) -> None:
    """`translator_away`; opened and forgotten like the others, also when the assistant translates from now on."""

    def told() -> float:
        return series("qasid_alerts_total", kind="translator_away") or 0.0

    before = told()
    place.breakers.heard({"translator:nurse": "open", "transcriber:nurse": "closed"})
    with pytest.raises(TranslatorOpen):
        await helped(place, "translator")
    await helped(place, "transcriber")
    assert series("qasid_breaker_state", dependency="translator:nurse", state="open") == 1
    assert series("qasid_breaker_forced", dependency="transcriber:nurse") == 1
    assert told() == before + 1
    by_assistant = msgspec.structs.replace(place.noor, translation=Translation())
    place.follow(by_assistant, channels=[], version=1)
    place.breakers.heard({})
    assert len(place.breakers) == 1
    assert series("qasid_breaker_state", dependency="translator:nurse", state="open") is None


# --- the configuration, words, metrics ---


async def test_what_leads_elsewhere_now_is_asked_afresh(place: Place) -> None:
    """A new token, address or key: the old one's failures say nothing of it."""
    place.lose()
    place.main = msgspec.structs.replace(place.main, token=Secret("new"))
    assert place.send()
    await fail(place, place.noor)
    assert place.noor.assistant
    mended = msgspec.structs.replace(place.noor.assistant, api_key=Secret("new"))
    async with asyncio.timeout(1):
        await asked(place, msgspec.structs.replace(place.noor, assistant=mended))
    assert len(place.breakers) == 2


async def test_turns_with_settings_of_before_move_nobodys_breaker(place: Place) -> None:
    """Under way while the key was mended: whatever they meet, it neither opens the new one's nor makes a third."""
    old, main = place.noor, place.main
    assert old.assistant
    new = msgspec.structs.replace(old, assistant=msgspec.structs.replace(old.assistant, api_key=Secret("new")))
    place.follow(new, channels=[msgspec.structs.replace(main, token=Secret("new"))], version=1)
    place.breakers.heard({})
    await fail(place, new)
    await asked(place, old)
    with pytest.raises(AssistantSkipped):
        async with place.breakers.assistant_now(new):
            raise AssertionError
    place.noor = new
    place.main = msgspec.structs.replace(main, token=Secret("new"))
    place.lose()
    place.main = main
    assert place.send(LOST)
    place.main = msgspec.structs.replace(main, token=Secret("new"))
    assert not place.send()
    assert len(place.breakers) == 2


async def test_who_waits_hears_that_the_settings_have_changed(place: Place) -> None:
    """Five hundred turns before an open breaker, and the key is mended: none of them asks with the old one."""
    old = place.noor
    assert old.assistant
    place.follow(old, channels=[], version=1)
    await fail(place, old)
    waiting = [asyncio.create_task(asked(place, old)) for _ in range(500)]
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in waiting)
    new = msgspec.structs.replace(old, assistant=msgspec.structs.replace(old.assistant, api_key=Secret("new")))
    place.follow(new, channels=[], version=2)
    place.breakers.heard({})
    async with asyncio.timeout(5):
        heard = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(each, Outdated) and each.tenant == new for each in heard)
    await asked(place, new)
    assert len(place.breakers) == 1


async def test_what_leaves_the_configuration_is_forgotten(place: Place) -> None:
    """Its breaker, and its series; what stays, stays as it was."""
    place.lose()
    place.send(beside=True)
    await asked(place, place.other)
    assert series("qasid_breaker_state", dependency="channel:nurse/main", state="open") == 1
    place.follow(place.other, channels=[place.beside], version=1)
    place.breakers.heard({})
    assert len(place.breakers) == 2
    assert series("qasid_breaker_state", dependency="channel:nurse/main", state="open") is None
    off = msgspec.structs.replace(place.other, enabled=False)
    place.follow(off, channels=[place.beside], version=2)
    place.breakers.heard({})
    assert len(place.breakers) == 0


async def test_a_word_holds_for_breakers_that_are_made_later(place: Place) -> None:
    """A worker that starts, and a channel that is first used, hear what was said before; each hears its own."""
    place.breakers.heard({"channel:nurse/main": "open", "assistant:other": "open"})
    assert not place.send() and place.send(beside=True)
    place.breakers.heard({"channel:nurse/main": "closed"})
    assert all(place.send(LOST) for _ in range(30))
    place.breakers.heard({})
    assert not place.send()


async def test_only_what_is_not_closed_has_series_of_its_own(place: Place) -> None:
    """As many tenants as there are, a page of metrics has those that somebody should look at; the rest is counted together."""

    def opened() -> float:
        return series("qasid_breaker_opened_total", dependency="channel") or 0.0

    before = opened()
    assert place.send()
    assert all(
        series("qasid_breaker_state", dependency="channel:nurse/main", state=state) is None
        for state in ("closed", "slow", "open", "half_open")
    )
    for _ in range(20):
        place.send(LOST)
    assert series("qasid_breaker_state", dependency="channel:nurse/main", state="open") == 1
    assert opened() == before + 1
    place.breakers.heard({"channel:nurse/main": "closed"})
    assert series("qasid_breaker_state", dependency="channel:nurse/main", state="closed") == 1
    assert series("qasid_breaker_forced", dependency="channel:nurse/main") == 1
    place.breakers.heard({})
    place.at += 1.0
    assert place.send()
    assert series("qasid_breaker_state", dependency="channel:nurse/main", state="closed") is None
    assert series("qasid_breaker_forced", dependency="channel:nurse/main") is None


async def test_the_log_tells_when_it_opens_and_how_long_it_was_open(place: Place) -> None:
    """One alert, one line when it is back; what its probes hear in between is for those who debug."""
    with capture_logs() as lines:
        place.lose()
        for pause in (1.0, 2.0, 4.0):
            place.at += pause
            place.send(LOST)
        place.at += 8.0
        place.send()
    told = [(line["event"], line["log_level"]) for line in lines if line["log_level"] != "debug"]
    assert told == [
        ("breaker changed", "warning"),
        ("a provider is away", "error"),
        ("breaker changed", "info"),
        ("a provider is back", "warning"),
    ]
    assert lines[1]["alert"] == "channel_away" and lines[1]["breaker"] == "channel:nurse/main"
    assert lines[-1]["seconds"] == 15.0
