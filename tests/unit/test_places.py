"""A tenant's places with its assistants: how many there are, whose they are, and what is done aside."""

import asyncio
from uuid import UUID

import pytest

from app.assistants.intents import Intents
from app.configuration import Limits, Texts
from app.directory import Tenant
from workers.places import Places

pytestmark = pytest.mark.anyio


def tenant(most: int | None) -> Tenant:
    return Tenant(
        id=UUID(int=1),
        slug="noor",
        name="Noor",
        enabled=True,
        in_doubt="resend",
        assistant=None,
        texts=Texts(),
        limits=Limits(assistant_calls_at_once=most),
        intents=Intents(()),
    )


class Crowd:
    """Calls that last until they are told to end; `inside` counts them by what they are."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.inside: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._end = {name: asyncio.Semaphore(0) for name in ("question", "translation")}

    async def calls(self, name: str, count: int, of: Tenant) -> None:
        self.tasks += [asyncio.create_task(self._call(name, of)) for _ in range(count)]
        await asyncio.sleep(0.01)

    async def ends(self, name: str) -> None:
        self._end[name].release()
        await asyncio.sleep(0.01)

    async def _call(self, name: str, of: Tenant) -> None:
        async with self.places.of(of, aside=name == "translation"):
            self.inside.append(name)
            await self._end[name].acquire()
            self.inside.remove(name)


@pytest.mark.parametrize(("most", "aside"), [(1, 1), (2, 1), (5, 2)])
async def test_a_question_does_not_wait_behind_all_translations_of_another(most: int, aside: int) -> None:
    """Twenty-four are to be made: half of the places are theirs, and one question waits for one of them at most."""
    crowd = Crowd(Places())
    await crowd.calls("translation", 24, tenant(most))
    assert crowd.inside == ["translation"] * aside
    await crowd.calls("question", 1, tenant(most))
    if most == 1:
        await crowd.ends("translation")
    assert crowd.inside.count("question") == 1
    for task in crowd.tasks:
        task.cancel()


async def test_another_number_takes_nobodys_bound_away() -> None:
    """A turn under way goes by the number of before, those that come by the new one, and each number holds for its own."""
    places = Places()
    crowd = Crowd(places)
    for _ in range(3):
        await crowd.calls("question", 2, tenant(2))
        await crowd.calls("question", 2, tenant(1))
    assert len(crowd.inside) == 3
    for task in crowd.tasks:
        task.cancel()
