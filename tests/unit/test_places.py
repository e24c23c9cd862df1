"""A tenant's places with its assistants: how many there are, whose they are, and what is done aside."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from uuid import UUID

import msgspec
import pytest

from app import tasks
from app.assistants.intents import Intents
from app.configuration import Assistant, Limits, Texts
from app.directory import Tenant
from app.vault import Secret
from workers import room
from workers.places import NoPlace, Places

pytestmark = pytest.mark.anyio


def tenant(most: int | None) -> Tenant:
    return Tenant(
        id=UUID(int=1),
        slug="noor",
        name="Noor",
        enabled=True,
        in_doubt="resend",
        assistant=Assistant(provider="anthropic", base_url="", model="", api_key=Secret("k"), deadline_seconds=1),
        texts=Texts(),
        limits=Limits(assistant_calls_at_once=most),
        intents=Intents(()),
    )


class Crowd:
    """What lasts until it is told to end; `inside` holds who is in, by what they are."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.inside: list[str] = []
        self.came: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._end: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(0))

    async def come(self, name: str, count: int, of: Tenant) -> None:
        self.tasks += [asyncio.create_task(self._one(name, of)) for _ in range(count)]
        await settled()

    async def end(self, name: str) -> None:
        self._end[name].release()
        await settled()

    async def _one(self, name: str, of: Tenant) -> None:
        aside = name == "translation"
        async with (
            self.places.aside(of) if aside else self.places.question(of, live=name != "behind", wait=60) as place
        ):
            if place is not None:
                place.asked()
            self.inside.append(name)
            self.came.append(name)
            try:
                await self._end[name].acquire()
            finally:
                self.inside.remove(name)
            if place is not None:
                place.answered()


async def settled() -> None:
    """Everybody has gone as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    crowd = Crowd(Places())
    yield crowd
    await tasks.end(*crowd.tasks)


@pytest.mark.parametrize(("most", "aside"), [(1, 1), (2, 1), (5, 2)])
async def test_a_question_does_not_wait_behind_all_translations_of_another(crowd: Crowd, most: int, aside: int) -> None:
    """Twenty-four are to be made: half of the places are theirs, and one question waits for one of them at most."""
    await crowd.come("translation", 24, tenant(most))
    assert crowd.inside == ["translation"] * aside
    await crowd.come("question", 1, tenant(most))
    if most == 1:
        await crowd.end("translation")
    assert crowd.inside.count("question") == 1


async def test_another_number_takes_nobodys_bound_away(crowd: Crowd) -> None:
    """A turn under way goes by the number of before, those that come by the new one, and each number holds for its own."""
    for _ in range(3):
        await crowd.come("question", 2, tenant(2))
        await crowd.come("question", 2, tenant(1))
    assert len(crowd.inside) == 3


async def test_the_live_go_first_and_the_others_are_not_forgotten(crowd: Crowd) -> None:
    """Of four places that become free, three are the live ones', and one is for who has waited long."""
    await crowd.come("live", 1, tenant(1))
    await crowd.come("behind", 3, tenant(1))
    await crowd.come("live", 6, tenant(1))
    while crowd.inside:
        await crowd.end(crowd.inside[0])
    assert crowd.came == ["live", "live", "live", "live", "behind", "live", "live", "live", "behind", "behind"]


@pytest.mark.parametrize("answered", [True, False])
async def test_who_gets_none_in_time_says_so_and_stands_in_nobodys_way(
    crowd: Crowd, answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place goes to the next one. Where nobody was answered meanwhile, they waited in vain."""

    async def wait() -> None:
        async with crowd.places.question(tenant(1), live=True, wait=0.05):
            raise AssertionError

    monkeypatch.setattr(room, "PATIENCE", 0.05)
    await crowd.come("question", 2, tenant(1))
    first, second = crowd.tasks
    waiting = asyncio.create_task(wait())
    await settled()
    if answered:
        await crowd.end("question")
    else:
        await tasks.end(first)
    with pytest.raises(NoPlace, match="no place within") as none:
        await waiting
    assert none.value.in_vain is not answered
    await crowd.come("question", 1, tenant(1))
    await crowd.end("question")
    assert second.done()
    assert crowd.came == ["question"] * 3


async def test_who_leaves_in_the_round_in_which_the_place_is_free_gets_nothing_and_breaks_nothing(crowd: Crowd) -> None:
    """Its time is over just as the one who has the place is answered: that one is not to hear of it, and the next goes in."""
    await crowd.come("first", 1, tenant(1))
    await crowd.come("question", 3, tenant(1))
    first, leaves, *stay = crowd.tasks
    crowd._end["first"].release()
    leaves.cancel()
    await settled()
    assert first.done() and first.exception() is None
    assert leaves.cancelled()
    assert crowd.came == ["first", "question"] and not any(task.done() for task in stay)


async def test_all_may_be_ended_at_once(crowd: Crowd) -> None:
    """A worker that stops cancels who has the place and who waits for it, and each hears that and nothing else."""
    await crowd.come("question", 4, tenant(1))
    await crowd.come("behind", 2, tenant(1))
    for task in crowd.tasks:
        task.cancel()
    await settled()
    assert all(task.cancelled() for task in crowd.tasks)
    await crowd.come("later", 1, tenant(1))
    assert crowd.inside == ["later"]


@pytest.mark.parametrize("name", ["behind", "live"])
async def test_who_left_counts_for_nobody(crowd: Crowd, name: str) -> None:
    """Those who waited too long take no turn of those behind them, on either side."""
    await crowd.come("first", 1, tenant(1))
    await crowd.come(name, 50, tenant(1))
    await tasks.end(*crowd.tasks[1:])
    await crowd.come("behind", 2, tenant(1))
    await crowd.come("live", 8, tenant(1))
    while crowd.inside:
        await crowd.end(crowd.inside[0])
    assert [n for n, came in enumerate(crowd.came) if came == "behind"] == [4, 8]


async def test_who_leaves_in_the_moment_of_being_let_in_leaves_the_place(crowd: Crowd) -> None:
    """Its worker stops just then, say."""
    await crowd.come("question", 1, tenant(1))
    await crowd.come("question", 2, tenant(1))
    first, leaves, stays = crowd.tasks
    first.cancel()
    await asyncio.sleep(0)  # it hands its place on
    leaves.cancel()
    await settled()
    assert leaves.cancelled() and not stays.done()
    assert crowd.came == ["question", "question"]


async def test_the_wait_for_a_place_is_told_of(crowd: Crowd) -> None:
    """In seconds; none where there is room, or no limit, or nobody to be asked."""
    unbound = msgspec.structs.replace(tenant(1), assistant=None)
    for of in (tenant(None), tenant(1), unbound):
        async with crowd.places.question(of, live=True, wait=1) as place:
            assert place.waited < 0.5
    await crowd.come("question", 1, tenant(1))
    asyncio.get_running_loop().call_later(0.1, crowd._end["question"].release)
    async with crowd.places.question(tenant(1), live=True, wait=10) as place:
        assert 0.09 < place.waited < 5
