"""Typing is shown while an answer is made, and never in its way. Against the sandbox, through the real transport."""

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import pytest
from prometheus_client import REGISTRY

from app import http
from app.directory import Channel
from app.errors import DatabaseUnavailable
from app.sandbox.faults import Fault
from app.sandbox.ledger import Read
from app.sandbox.numbers import Number
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from app.vault import Secret
from workers import typing as typing_module
from workers.typing import Typing

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

NUMBER, MESSAGE = "1000200030004000", "wamid.A"
TENANT: Any = SimpleNamespace(id=UUID(int=1), slug="noor")
LIFE = 0.1


class Room:
    def __init__(self, sandbox: Sandbox, client: httpx.AsyncClient) -> None:
        self.sandbox = sandbox
        self.free = True
        self.at = 1000.0
        self.standing: bool | Exception = True
        self.looks = 0
        directory: Any = SimpleNamespace(current=SimpleNamespace(endpoint_of=lambda _: SimpleNamespace(kind="cloud")))
        self.typing = Typing(client, directory, lambda *_: self.free, life=LIFE, clock=lambda: self.at)
        self.channel = self.number(NUMBER)

    def number(self, address: str) -> Channel:
        self.sandbox.register(
            Number(phone_number_id=address, webhook_url="http://127.0.0.1:9/", app_secret="s", any_message_id=True)
        )
        return Channel(
            tenant_id=UUID(int=1),
            id=UUID(int=int(address)),
            slug=f"c{address}",
            endpoint_id=UUID(int=3),
            address=address,
            base_url=self.sandbox.graph_url,
            token=Secret("t"),
            enabled=True,
            session_gap_hours=3,
            answer_within_hours=24,
            late="store",
        )

    @property
    def reads(self) -> list[Read]:
        return self.sandbox.ledger.reads

    async def until(self, count: int) -> None:
        assert await self.sandbox.ledger.tally.reach(("read", NUMBER), count, 5.0)

    def shown(self, message: str = MESSAGE) -> Any:
        return self.typing.shown(TENANT, self.channel, message, self.stands)

    async def stands(self) -> bool:
        self.looks += 1
        if isinstance(self.standing, Exception):
            raise self.standing
        return self.standing

    def fails(self, kind: str, times: int = 1, **more: Any) -> None:
        self.sandbox.faults.queue("read", [Fault(kind=kind, **more)] * times)  # type: ignore[arg-type]


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with running() as sandbox, http.client(total=5.0) as client:
        room = Room(sandbox, client)
        async with room.typing:
            yield room


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("qasid_typing_total", {"result": result}) or 0.0


async def settled() -> None:
    """Whatever is under way has had its time: longer than a renewal."""
    await asyncio.sleep(3 * (LIFE + typing_module.LAPSED))


async def test_typing_is_shown_at_once_and_renewed_until_the_block_is_left(room: Room) -> None:
    """With the newest message's id, each time after it has lapsed; then no more."""
    with room.shown():
        await room.until(3)
    assert {(read.message_id, read.typing) for read in room.reads} == {(MESSAGE, True)}
    times = [read.t for read in room.reads]
    assert all(later - earlier >= LIFE for earlier, later in pairwise(times))
    said = len(room.reads)
    await settled()
    assert len(room.reads) == said


async def test_who_was_shown_it_is_known(room: Room) -> None:
    """Whoever was told needs no receipt behind the answer; whoever was refused, or was never let through, does."""
    with room.shown() as shown:
        assert not shown.told
        await room.until(1)
        await asyncio.sleep(0.1)
    assert shown.told
    room.fails("graph_error", code=131009)
    with room.shown() as shown:
        await asyncio.sleep(0.2)
    assert not shown.told
    room.free = False
    with room.shown() as shown:
        await asyncio.sleep(0.1)
    assert not shown.told


@pytest.mark.parametrize("standing", [False, DatabaseUnavailable("away")])
async def test_typing_ends_where_what_it_is_shown_for_stands_no_more(room: Room, standing: bool | Exception) -> None:
    """Looked at before each renewal, and never before the first; where nobody knows, it is not shown."""
    with room.shown():
        await room.until(1)
        assert room.looks == 0
        await room.until(2)
        assert room.looks == 1
        room.standing = standing
        await settled()
        assert (len(room.reads), room.looks) == (2, 2)


@pytest.mark.parametrize("end", [RuntimeError, asyncio.CancelledError])
async def test_whatever_ends_the_block_ends_typing(room: Room, end: type[BaseException]) -> None:
    """An error of the assistant's, a lane that was lost."""
    with pytest.raises(end), room.shown():
        await room.until(1)
        raise end
    await settled()
    assert len(room.reads) == 1


async def test_a_block_that_is_left_at_once_shows_nothing(room: Room) -> None:
    """What came after the answer would stay for as long as it lives."""
    with room.shown():
        pass
    await settled()
    assert room.reads == []


@pytest.mark.parametrize("kind", ["no_answer", "http_500_json", "graph_error", "rst_before_accept", "garbage"])
async def test_its_failures_reach_nobody(room: Room, kind: str) -> None:
    """The block goes on, ends when it will, and waits for no request that hangs. They are counted."""
    before = counted("failed")
    room.fails(kind, code=130429)
    began = time.monotonic()
    with room.shown():
        await asyncio.sleep(0.2)
    assert time.monotonic() - began < 0.5
    assert counted("failed") - before == (0 if kind == "no_answer" else 1)


async def test_after_a_failure_the_number_is_left_alone_for_a_while(room: Room) -> None:
    """By every conversation of it, and no other number's."""
    room.fails("graph_error", code=130429)
    with room.shown():
        await asyncio.sleep(0.1)
    room.typing.read(TENANT, room.channel, MESSAGE)
    with room.shown():
        await asyncio.sleep(0.1)
    assert room.reads == []
    room.typing.read(TENANT, room.number("1000200030004001"), MESSAGE)
    await asyncio.sleep(0.1)
    assert [read.phone_number_id for read in room.reads] == ["1000200030004001"]
    room.at += typing_module.QUIET + 1.0
    with room.shown():
        await room.until(1)


async def test_a_message_that_the_provider_does_not_know_silences_nobody(room: Room) -> None:
    """131009 is about that one message."""
    room.fails("graph_error", code=131009)
    with room.shown():
        await asyncio.sleep(0.1)
    with room.shown("wamid.B"):
        await room.until(1)
    assert [read.message_id for read in room.reads] == ["wamid.B"]


async def test_a_number_that_must_wait_hears_nothing(room: Room) -> None:
    """While it is held or its breaker is open; once it is free again, a turn that still runs is told of."""
    room.free = False
    with room.shown():
        await asyncio.sleep(0.2)
        assert room.reads == []
        room.free = True
        await room.until(1)


async def test_a_number_has_a_pace_of_its_own(room: Room) -> None:
    """However many conversations end at once, it hears no more than it can bear; another number is none the worse."""
    for n in range(200):
        room.typing.read(TENANT, room.channel, f"wamid.{n}")
    room.typing.read(TENANT, room.number("1000200030004001"), MESSAGE)
    await settled()
    assert len(room.reads) == typing_module.BURST + 1
    room.at += 1.0
    await settled()
    assert len(room.reads) == typing_module.BURST + 1 + typing_module.PACE


async def test_a_receipt_waits_for_its_number_and_is_told_once(room: Room) -> None:
    """More of them than the number takes at once: all are told as it can bear them, and none of them twice."""
    for n in range(100):
        room.typing.read(TENANT, room.channel, f"wamid.{n}")
    for count in (40, 60, 80, 100):
        await room.until(count)
        room.at += 1.0
    await settled()
    assert sorted(read.message_id for read in room.reads) == sorted(f"wamid.{n}" for n in range(100))


async def test_a_receipt_waits_no_longer_than_its_patience(room: Room) -> None:
    """A number that is held for hours hears nothing of what was said meanwhile; what waits is bounded."""
    before = counted("dropped")
    room.free = False
    for n in range(int(typing_module.MOST_WAITING) + 5):
        room.typing.read(TENANT, room.channel, f"wamid.{n}")
    assert counted("dropped") - before == 5
    await asyncio.sleep(0.1)
    room.at += typing_module.PATIENCE
    await settled()
    assert counted("dropped") - before == typing_module.MOST_WAITING + 5
    room.free = True
    room.typing.read(TENANT, room.channel, MESSAGE)
    await room.until(1)


async def test_no_more_than_so_many_are_under_way(room: Room) -> None:
    """A provider that does not answer holds up a bounded number of requests, and nobody else."""
    room.fails("no_answer", times=1000)
    for n in range(10):
        channel = room.number(f"200{n}")
        for _ in range(20):
            room.typing.read(TENANT, channel, MESSAGE)
    await asyncio.sleep(0.3)
    assert len(room.reads) == typing_module.AT_ONCE


async def test_a_receipt_alone_shows_no_typing(room: Room) -> None:
    """For what is answered at once."""
    room.typing.read(TENANT, room.channel, MESSAGE)
    await room.until(1)
    await settled()
    assert [read.typing for read in room.reads] == [False]


async def test_without_an_id_nothing_is_shown(room: Room) -> None:
    """Of messages that were stored by an older build, or came from another's database."""
    with room.shown(""):
        await settled()
    room.typing.read(TENANT, room.channel, "")
    await settled()
    assert room.reads == []


async def test_leaving_ends_what_is_under_way(room: Room) -> None:
    """A worker that stops waits for no receipt."""
    room.fails("no_answer", times=10)
    with room.shown():
        await asyncio.sleep(0.1)
        began = time.monotonic()
        async with room.typing:
            pass
        assert time.monotonic() - began < 0.5
