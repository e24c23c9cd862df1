"""Whose voice messages are heard, when, and how many at a time. What is fetched and written down, and when, a test says."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from msgspec import Struct

from app import tasks
from app.assistants.intents import Intents
from app.channels import Attachment, Media
from app.configuration import Assistant, Limits, Texts, Transcription
from app.directory import Channel, Tenant
from app.errors import MediaBusy, MediaRefused
from app.store.turns import Asked, Opening
from app.vault import Secret
from tests.asking import Kept
from tests.openings import asked, opening
from workers import hearing as module
from workers import room
from workers.breakers import Breakers
from workers.hearing import AT_ONCE, AT_ONCE_OF_A_TENANT, AT_ONCE_OF_A_TURN, MOST_MISSED, Hearing
from workers.room import NoPlace

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

SOUND = b"OggS\0"


class Gate:
    """Whoever comes waits here, until they are let through by name; once it is open, nobody does."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.came: list[str] = []
        self._open = asyncio.Event()
        self._through: dict[str, asyncio.Event] = {}

    async def wait(self, name: str) -> None:
        self.came.append(name)
        self.inside.append(name)
        passed = self._through.setdefault(name, asyncio.Event())
        both = [asyncio.create_task(each.wait()) for each in (self._open, passed)]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.inside.remove(name)
            await tasks.end(*both)

    async def let(self, name: str) -> None:
        self._through[name].set()
        await settled()

    def open(self) -> None:
        self._open.set()


async def settled() -> None:
    """Everybody has gone as far as they can."""
    for _ in range(200):
        await asyncio.sleep(0)


class Fetches(Struct):
    """In place of `Fetching`: a message's id at the provider is its file, and what is said in it."""

    gate: Gate
    clock: SimpleNamespace
    fails: dict[str, Exception] = {}
    given: dict[str, tuple[int, float]] = {}
    """How many bytes, and how many seconds, each may take."""

    def attachment(self, channel: Channel, message: Asked) -> Attachment:
        return Attachment(id=message.provider_id)

    async def fetch(
        self, tenant: Tenant, channel: Channel, message: Asked, file: Attachment, *, most: int, deadline: float
    ) -> Media:
        self.given[file.id] = most, deadline - self.clock.monotonic()
        await self.gate.wait(file.id)
        if file.id in self.fails:
            raise self.fails[file.id]
        return Media(media_type="audio/ogg", data=SOUND + file.id.encode())


class Rig:
    """`hear` turns; `fetching` and `writing` hold those who are at it."""

    def __init__(self) -> None:
        self.fetching, self.writing = Gate(), Gate()
        self.fetching.open()
        self.ahead = 0.0
        self.clock = SimpleNamespace(monotonic=lambda: time.monotonic() + self.ahead)
        self.fetches = Fetches(self.fetching, self.clock, {}, {})
        self.kept: Counter[str] = Counter()
        self.notes = Kept()
        self.tasks: list[asyncio.Task[Any]] = []
        fetches: Any = self.fetches
        commits: Any = SimpleNamespace(transcript=self._keep)
        self.client = httpx.AsyncClient(transport=httpx.MockTransport(self._write))
        self.hearing = Hearing(commits, fetches, self.client, Breakers())

    async def _keep(self, tenant: UUID, message: UUID, words: str) -> None:
        self.kept[words] += 1

    async def _write(self, request: httpx.Request) -> httpx.Response:
        words = request.content.partition(SOUND)[2].partition(b"\r\n")[0].decode()
        await self.writing.wait(words)
        return httpx.Response(200, json={"text": "" if words.startswith("silence") else words})

    def hear(self, *said: str, of: int = 1, live: bool = True, timeout: float = 60.0) -> asyncio.Task[list[str]]:
        """A turn of voice messages; its result is their words."""
        return self.turn(opening(*map(voice, said)), of=of, live=live, timeout=timeout)

    def turn(self, found: Opening, *, of: int = 1, live: bool = True, timeout: float = 60.0) -> asyncio.Task[list[str]]:
        """The same of a turn that may have been heard before."""

        async def turn() -> list[str]:
            deadline = self.clock.monotonic() + timeout
            await self.hearing.hear(tenant(of), CHANNEL, found, self.notes, live=live, deadline=deadline)
            return [message.body for message in found.asked]

        self.tasks.append(task := asyncio.create_task(turn()))
        return task


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    rig = Rig()
    monkeypatch.setattr(module, "time", rig.clock)
    yield rig
    await tasks.end(*rig.tasks)
    await rig.client.aclose()


def tenant(id: int) -> Tenant:
    return Tenant(
        id=UUID(int=id),
        slug=f"tenant-{id}",
        name="Noor",
        enabled=True,
        in_doubt="resend",
        assistant=Assistant(provider="anthropic", base_url="", model="", api_key=Secret("k")),
        texts=Texts(),
        limits=Limits(),
        intents=Intents(()),
        transcription=Transcription(base_url="http://writer", model="m"),
    )


CHANNEL: Any = SimpleNamespace(slug="main")


def voice(words: str) -> Asked:
    return asked(kind="audio", provider_id=words, raw=msgspec.Raw(b"{}"))


def named(name: str, count: int) -> list[str]:
    return [f"{name}{n}" for n in range(count)]


async def test_the_time_of_a_voice_message_begins_with_its_place(rig: Rig) -> None:
    """However long it has waited for that: nobody reads that they cannot be heard because others were."""
    first = [rig.hear(words) for words in named("first", AT_ONCE_OF_A_TENANT)]
    await settled()
    later = [rig.hear(words) for words in named("later", 3 * AT_ONCE_OF_A_TENANT)]
    await settled()
    assert len(rig.writing.inside) == AT_ONCE_OF_A_TENANT
    rig.ahead = 1000.0
    rig.writing.open()
    heard = await asyncio.gather(*first, *later)
    assert heard == [[words] for words in named("first", len(first)) + named("later", len(later))]
    assert all(29 < seconds <= 30 for _, seconds in rig.fetches.given.values())


async def test_the_live_ones_are_heard_first_and_the_others_are_not_forgotten(rig: Rig) -> None:
    """Of four places that become free, three are the live ones', and one is for who has waited long."""
    for words in named("first", AT_ONCE_OF_A_TENANT):
        rig.hear(words)
    await settled()
    for words in named("behind", 20):
        rig.hear(words, live=False)
    await settled()
    for words in named("live", 6):
        rig.hear(words)
    await settled()
    for n in range(8):
        await rig.writing.let(f"first{n}")
    expected = ["live0", "live1", "live2", "behind0", "live3", "live4", "live5", "behind1"]
    assert rig.writing.came[AT_ONCE_OF_A_TENANT:] == expected


@pytest.mark.parametrize("where", ["fetching", "writing"])
async def test_tenants_whose_files_hang_keep_no_other_waiting(rig: Rig, where: str) -> None:
    """Neither those whose provider hangs nor those whose writer does: each has a quarter of the places, and of the bytes."""
    hangs = rig.fetching = rig.fetches.gate = Gate()
    if where == "writing":
        hangs, rig.fetches.gate = rig.writing, Gate()
        rig.fetches.gate.open()
    for of in (2, 3, 4):
        for words in named(f"hangs-{of}-", 40):
            rig.hear(words, of=of)
    await settled()
    assert 0 < len(hangs.inside) <= AT_ONCE - AT_ONCE_OF_A_TENANT
    mine = rig.hear("mine")
    await settled()
    for gate in (rig.fetches.gate, rig.writing):
        if "mine" in gate.inside:
            await gate.let("mine")
    assert await mine == ["mine"]


async def test_what_is_written_down_keeps_no_room_for_what_might_have_been_fetched(rig: Rig) -> None:
    """Room for as much as one may be is taken before it is fetched; behind that it has what it is, and the next is fetched."""
    rig.fetching = rig.fetches.gate = Gate()
    turns = [rig.hear(words) for words in named("n", AT_ONCE_OF_A_TENANT)]
    await settled()
    few = module.MOST_IN_HAND_OF_A_TENANT // module.MOST_BYTES
    assert few < AT_ONCE_OF_A_TENANT and rig.fetching.inside == named("n", few)
    await rig.fetching.let("n0")
    assert rig.writing.inside == ["n0"] and rig.fetching.came[-1] == f"n{few}"
    rig.fetching.open()
    rig.writing.open()
    assert await asyncio.gather(*turns) == [[words] for words in named("n", len(turns))]


async def test_who_is_not_reached_in_time_is_given_back_and_not_answered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others of the tenant were heard meanwhile: its turn comes when the lane is claimed anew. What is heard by then is kept."""
    monkeypatch.setattr(room, "PATIENCE", 0.5)
    for words in named("first", AT_ONCE_OF_A_TENANT - 1):
        rig.hear(words)
    await settled()
    turn = rig.hear("one", "two", "three", live=False, timeout=0.5)
    await settled()
    rig.hear("live")
    await settled()
    await rig.writing.let("one")
    await asyncio.wait({turn})
    error = turn.exception()
    assert isinstance(error, NoPlace) and not error.in_vain
    assert rig.kept == {"one": 1}


async def test_who_waits_in_vain_is_told_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody of the tenant was heard in all that time: whoever writes it down hangs, and the turn goes on without the words."""
    monkeypatch.setattr(room, "PATIENCE", 0.05)
    for words in named("first", AT_ONCE_OF_A_TENANT):
        rig.hear(words)
    await settled()
    assert await rig.hear(*named("n", 20), timeout=0.05) == [""] * 20
    assert rig.kept == {} and len(rig.writing.came) == AT_ONCE_OF_A_TENANT


async def test_who_is_kept_out_by_other_tenants_does_not_wait_in_vain(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All places are with four that hang: the fifth is given back, since its own writer may well be there."""
    monkeypatch.setattr(room, "PATIENCE", 0.05)
    for of in (2, 3, 4, 5):
        for words in named(f"hangs-{of}-", AT_ONCE_OF_A_TENANT):
            rig.hear(words, of=of)
    await settled()
    with pytest.raises(NoPlace) as none:
        await rig.hear("mine", timeout=0.05)
    assert not none.value.in_vain


async def test_who_waits_for_those_who_wait_for_bytes_does_not_wait_in_vain(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tenant's places are held by turns that others' bytes keep from being fetched: nobody of it has begun."""
    rig.fetching = rig.fetches.gate = Gate()
    for of, count in ((2, 4), (3, 4), (4, 4), (5, 4), (6, 2)):
        for words in named(f"hangs-{of}-", count):
            rig.hear(words, of=of)
    await settled()
    for words in named("first", AT_ONCE_OF_A_TENANT):
        rig.hear(words)
    await settled()
    assert not any(words.startswith("first") for words in rig.fetching.came)
    monkeypatch.setattr(room, "PATIENCE", 0.05)
    with pytest.raises(NoPlace) as none:
        await rig.hear("mine", timeout=0.05)
    assert not none.value.in_vain


async def test_a_turn_of_a_hundred_is_heard_a_few_at_a_time(rig: Rig) -> None:
    """All of it, each in its place, kept once: of those that are fetched at a time each has its part of the bytes."""
    said = named("n", 100)
    turn = rig.hear(*said)
    most = 0
    while not turn.done():
        await settled()
        most = max(most, len(rig.writing.inside))
        for words in list(rig.writing.inside):
            await rig.writing.let(words)
    assert await turn == said and most == AT_ONCE_OF_A_TURN
    assert rig.kept == dict.fromkeys(said, 1)
    assert {size for size, _ in rig.fetches.given.values()} == {module.MOST_BYTES // AT_ONCE_OF_A_TURN}
    rig.writing.open()
    assert await rig.hear("alone") == ["alone"] and rig.fetches.given["alone"][0] == module.MOST_BYTES


async def test_where_several_in_a_row_cannot_be_had_the_rest_is_not_waited_for(rig: Rig) -> None:
    """Each would take its whole time. One among others that are heard ends nothing, nor do any number that are gone."""
    rig.writing.open()
    said = named("n", 100)
    rig.fetches.fails |= {words: MediaBusy("hangs") for words in said}
    assert await rig.hear(*said) == [""] * 100
    assert len(rig.fetching.came) < MOST_MISSED + AT_ONCE_OF_A_TURN
    rig.fetches.fails = {words: MediaBusy("hangs") for words in said[::10]}
    rig.fetches.fails |= {words: MediaRefused("gone") for words in said[1:9]}
    assert await rig.hear(*said) == ["" if words in rig.fetches.fails else words for words in said]


async def test_what_has_no_words_is_heard_once(rig: Rig) -> None:
    """By this claim and by every other of its turn; another file is heard. What could not be had is no silence."""
    rig.writing.open()
    rig.fetches.fails = {"silence, cut": MediaBusy("cut"), "gone": MediaRefused("gone")}
    said = ["silence, cut", "gone", "silence", "words"]
    found = opening(*map(voice, said))
    for _ in range(2):
        assert await rig.turn(found) == ["", "", "", "words"]
    again = msgspec.structs.replace(found, asked=[*map(voice, [*said, "silence, too"])], memo=dict(rig.notes))
    rig.fetches.fails = {}
    assert await rig.turn(again) == ["", "gone", "", "words", ""]
    assert Counter(rig.writing.came) == {
        "silence": 1,
        "silence, cut": 1,
        "gone": 1,
        "silence, too": 1,
        "words": 2,
    }


async def test_all_may_be_ended_at_once(rig: Rig) -> None:
    """A worker that stops cancels who is heard and who waits for it; all places are free behind them."""
    for n in range(AT_ONCE):
        rig.hear(*named(f"n{n}-", 5))
    await settled()
    await tasks.end(*rig.tasks)
    rig.writing.open()
    assert await asyncio.gather(*(rig.hear(words) for words in named("later", 40))) == [
        [words] for words in named("later", 40)
    ]
