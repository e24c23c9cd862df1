"""Pictures and documents of many turns at once: who has room for them, from when their time counts, and who is given back."""

import asyncio
import time
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from app import tasks
from app.channels import Attachment, Media
from app.directory import Channel
from app.errors import MediaBusy
from app.store.turns import Asked
from tests.unit.test_hearing import CHANNEL, settled, tenant, voice
from workers import files as module
from workers import room as room_module
from workers.files import AT_ONCE_OF_A_TENANT, MOST_OF_A_PICTURE, File, Files
from workers.room import NoPlace, Room

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


class Rig:
    """Turns that have a picture until they are told that they are answered. `fetched`: may be, from then on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: Room | None = None) -> None:
        self.ahead = 0.0
        self.fails = False
        self.fetched = asyncio.Event()
        self.given: list[float] = []
        self.clock = SimpleNamespace(monotonic=lambda: time.monotonic() + self.ahead)
        monkeypatch.setattr(module, "time", self.clock)
        fetching: Any = self
        self.files = Files(fetching, room=room)

    def attachment(self, channel: Channel, message: Asked) -> Attachment:
        return Attachment(id="1", media_type="text/plain")

    async def fetch(self, *about: Any, most: int, deadline: float) -> Media:
        self.given.append(deadline - self.clock.monotonic())
        await self.fetched.wait()
        if self.fails:
            raise MediaBusy("hangs")
        return Media(media_type="image/jpeg", data=b"\xff\xd8\xff")

    async def read(
        self, kind: str, stack: AsyncExitStack, *, of: int = 1, live: bool = True, timeout: float = 60.0
    ) -> dict[int, File]:
        """Until the stack is left, which has it answered."""
        asked = [msgspec.structs.replace(voice("1"), kind=kind)]
        read = self.files.of(
            tenant(of), CHANNEL, asked, pictures=True, live=live, deadline=self.clock.monotonic() + timeout
        )
        return await stack.enter_async_context(read)


async def test_the_time_of_a_file_begins_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it has waited for that; a tenant has a share of the places, and others theirs meanwhile."""
    rig = Rig(monkeypatch)
    async with AsyncExitStack() as stack:
        reads = [asyncio.create_task(rig.read("document", stack)) for _ in range(3 * AT_ONCE_OF_A_TENANT)]
        await settled()
        assert len(rig.given) == AT_ONCE_OF_A_TENANT
        other = asyncio.create_task(rig.read("document", stack, of=2))
        await settled()
        assert len(rig.given) == AT_ONCE_OF_A_TENANT + 1
        rig.ahead = 1000.0
        rig.fetched.set()
        found = await asyncio.gather(*reads, other)
        assert all(each[0].fetched is not None for each in found)
        assert all(29 < seconds <= 30 for seconds in rig.given)


@pytest.mark.parametrize("answered", [True, False])
async def test_who_has_no_room_in_time_is_given_back_unless_nobody_was_answered(
    answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its tenant; where nobody was, the assistant hangs, and the picture counts as not seen."""
    monkeypatch.setattr(room_module, "PATIENCE", 0.3)
    rig = Rig(monkeypatch, Room(2 * MOST_OF_A_PICTURE, MOST_OF_A_PICTURE))
    rig.fetched.set()

    async def waits() -> dict[int, File]:
        async with AsyncExitStack() as stack:
            return await rig.read("image", stack, live=False, timeout=0.1)

    async with AsyncExitStack() as last:
        async with AsyncExitStack() as stack:
            monkeypatch.setattr(rig, "fetch", _large)
            await rig.read("image", stack)
            waiting = asyncio.create_task(waits())
            live = asyncio.create_task(rig.read("image", last))
            await settled()
            if answered:
                await stack.aclose()
                await live
            await asyncio.wait({waiting})
        if answered:
            error = waiting.exception()
            assert isinstance(error, NoPlace) and not error.in_vain
        else:
            assert waiting.result()[0].fetched is None
        await tasks.end(live)


async def _large(*about: Any, most: int, deadline: float) -> Media:
    return Media(media_type="image/jpeg", data=bytes(most))


async def test_documents_whose_provider_hangs_count_as_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody of the tenant had theirs while they waited: they are not given back for ever."""
    monkeypatch.setattr(room_module, "PATIENCE", 0.05)
    rig = Rig(monkeypatch)
    async with AsyncExitStack() as stack:
        reads = [asyncio.create_task(rig.read("document", stack)) for _ in range(AT_ONCE_OF_A_TENANT)]
        await settled()
        assert (await rig.read("document", stack, timeout=0.05))[0].fetched is None
        rig.fails = True
        rig.fetched.set()
        assert all(each[0].fetched is None for each in await asyncio.gather(*reads))


async def test_both_waits_of_a_picture_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """For room and for a place: they end together, so nobody holds a place with the assistant for twice as long."""
    monkeypatch.setattr(room_module, "PATIENCE", 1.0)
    monkeypatch.setattr(module, "AT_ONCE", 0)
    room = Room(MOST_OF_A_PICTURE)
    rig = Rig(monkeypatch, room)
    with room.held(tenant(2).id, live=True) as others:
        await others.take(MOST_OF_A_PICTURE)
        asyncio.get_running_loop().call_later(0.7, others.keep, 0)
        began = time.monotonic()
        with pytest.raises(NoPlace) as none:
            async with AsyncExitStack() as stack:
                await rig.read("image", stack, timeout=0.1)
    assert not none.value.in_vain and 0.9 < time.monotonic() - began < 1.5
