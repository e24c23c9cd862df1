"""Who waits for a place with the assistant while others have it: what that says of the assistant."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import msgspec
import pytest

from app import tasks
from app.store.lanes import Claim
from app.store.turns import Opening, Turn
from tests.openings import opening
from tests.unit.test_hearing import CHANNEL, settled, voice
from tests.unit.test_places import tenant
from workers import room
from workers.answering import Answering, Due, Reply
from workers.places import NoPlace, Places
from workers.questions import Reading
from workers.spending import Spent
from workers.stopwatch import Stopwatch

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


class Rig:
    """An assistant with one place. `fetched`: the files of a turn are there from then on; the assistant never answers."""

    def __init__(self) -> None:
        self.asked = 0
        self.fetched = asyncio.Event()
        rig: Any = self
        self._answering = Answering(rig, rig, Places(), rig, rig)

    async def hear(self, *about: Any, **more: Any) -> None:
        """Nobody has said anything aloud."""

    @asynccontextmanager
    async def read(self, tenant: Any, channel: Any, opening: Opening, **more: Any) -> AsyncIterator[Reading]:
        if opening.asked[0].kind == "image":
            await self.fetched.wait()
        yield Reading(lines=(("user", "words"),))  # type: ignore[arg-type]

    async def ask(self, *about: Any) -> Any:
        self.asked += 1
        await asyncio.Event().wait()

    def answer(self, kind: str) -> asyncio.Task[Reply]:
        asked = msgspec.structs.replace(voice("1"), kind=kind)
        return asyncio.create_task(self._answering.answer(due(asked), nothing))


async def nothing() -> None:
    """No fixed reply."""


def due(asked: Any) -> Due:
    one, of = UUID(int=1), tenant(1)
    assert of.assistant is not None
    return Due(
        claim=Claim(tenant_id=one, conversation_id=one, channel_id=one, token=1, attempts=1),
        tenant=msgspec.structs.replace(of, assistant=msgspec.structs.replace(of.assistant, images=True)),
        channel=CHANNEL,
        opening=opening(asked),
        turn=Turn(id=one, first_seq=1, last_seq=1, settled=False),
        watch=Stopwatch(),
        deadline=asyncio.get_running_loop().time() + 1,
        spent=Spent(),
    )


@pytest.mark.parametrize("asked", [True, False])
async def test_who_waits_behind_files_is_given_back_and_not_told_of_an_assistant_that_nobody_asked(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture has the place and waits for its file; only once it is asked does it tell that the assistant is away."""
    monkeypatch.setattr(room, "PATIENCE", 0.1)
    rig = Rig()
    picture = rig.answer("image")
    await settled()
    if asked:
        rig.fetched.set()
        await settled()
    text = rig.answer("text")
    await asyncio.wait({text})
    assert rig.asked == asked
    if asked:
        assert text.result().outcome == "failed"
    else:
        error = text.exception()
        assert isinstance(error, NoPlace) and not error.in_vain
    await tasks.end(picture)
