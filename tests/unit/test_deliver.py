"""When delivery gives up: what the seams around it are asked to do."""

import asyncio
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest

from app.errors import DatabaseUnavailable
from app.settings import Settings
from app.store.chunks import Fact, Permission
from app.store.lanes import Claim
from app.store.turns import Chunk
from tests.simulation import CLOCK, Loop
from workers import deliver
from workers.breakers import Breakers
from workers.deliver import MOST_DOUBTS, Delivery, Lane

pytestmark = pytest.mark.anyio
Result = TypeVar("Result")


class Asked:
    """Stands for `workers.commits.Commits`: notes what it is asked, and lets everything through."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def abandon(self, *_: Any) -> list[str]:
        self.calls.append("abandon")
        return ["parked"]

    async def intend(self, *_: Any) -> Permission:
        self.calls.append("intend")
        return Permission("lost")


class Watch:
    """Stands for `workers.stopwatch.Stopwatch`."""

    async def db(self, work: Awaitable[Result]) -> Result:
        return await work


class Tenant:
    """Stands for `app.directory.Tenant`, with the policy `resend`."""

    in_doubt = "resend"
    slug = "noor"


def doubted(attempt: int) -> Chunk:
    """A chunk in doubt about which silence has said enough."""
    return Chunk(
        id=uuid4(),
        seq=1,
        no=1,
        body="text",
        state="in_doubt",
        attempt=attempt,
        due_in=0.0,
        opens_in=0.0,
        refusals=0,
        holds=0,
        again=False,
        doubts=attempt,
        doubt_for=60.0,
        quiet_for=60.0,
        flowing=True,
    )


@pytest.mark.parametrize(
    ("attempt", "asked"), [(1, ["intend"]), (MOST_DOUBTS - 1, ["intend"]), (MOST_DOUBTS, ["abandon"])]
)
async def test_a_text_is_sent_again_after_silence_but_not_for_ever(attempt: int, asked: list[str]) -> None:
    """Under `resend` too, a provider that never says anything ends with a parked chunk and an alert."""
    commits: Any = Asked()
    nobody: Any = None
    delivery = Delivery(commits, nobody, nobody, nobody, Settings(), Breakers())
    claim = Claim(tenant_id=uuid4(), conversation_id=uuid4(), channel_id=uuid4(), token=1, attempts=1)
    channel = SimpleNamespace(
        tenant_id=uuid4(), id=uuid4(), slug="main", endpoint_id=uuid4(), base_url="", address="", token=""
    )
    seams: Any = {"tenant": Tenant(), "channel": channel, "to": None, "watch": Watch()}
    await delivery.entry(Lane(claim=claim, manual=False, correlation="c", **seams), None, [doubted(attempt)])
    assert commits.calls == asked


class Lost:
    """Stands for `workers.commits.Commits` while the database is away, until `back` (seconds)."""

    def __init__(self, now: list[float], back: float) -> None:
        self.now, self.back = now, back
        self.told: dict[UUID, list[float]] = {}

    async def record(self, fact: Fact) -> str:
        self.told.setdefault(fact.chunk_id, []).append(self.now[0])
        if self.now[0] < self.back:
            raise DatabaseUnavailable("its breaker is open")
        return "moot"


def test_what_cannot_be_recorded_is_told_again_at_growing_pauses_and_soon_after_the_database_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once, a few times in the first second, then once a second; no two sends in step; and none is left out."""
    monkeypatch.setattr(deliver, "time", CLOCK)
    now = [1000.0]
    back = now[0] + 30.0
    loop = Loop(lambda: now[0])
    nobody: Any = None
    commits: Any = Lost(now, back)
    delivery = Delivery(commits, nobody, nobody, nobody, Settings(), Breakers())
    claim = Claim(tenant_id=uuid4(), conversation_id=uuid4(), channel_id=uuid4(), token=1, attempts=1)
    lane: Any = SimpleNamespace(claim=claim)
    for _ in range(2):
        loop.call_soon(delivery.disclaim, lane, uuid4(), 1)
    while now[0] < back + deliver.AGAIN_AT_MOST * 1.25 + 0.01:
        while loop.turn():
            pass
        now[0] += 0.01
    one, other = commits.told.values()
    for told in (one, other):
        assert told[0] == 1000.0 and told[3] < 1001.0
        assert len([at for at in told if at < back]) <= 4 + 30
        assert [at for at in told if at >= back] == told[-1:]
    assert one[1:] != other[1:]
    for task in asyncio.all_tasks(loop):
        task.cancel()
    while loop.turn():
        pass
    loop.close()
