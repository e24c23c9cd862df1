"""Whose notes of an earlier turn an assistant goes on from; what is at hand of them while the database takes nothing."""

from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from app.configuration import Assistant, AssistantSettings
from app.errors import DatabaseUnavailable, LaneLost
from app.store.steps import Memo
from app.unkept import Unkept
from app.vault import Secret
from workers.notes import AskedAt, TurnNotes, last, noted

KEY = Secret("k")
FIRST, SECOND = (
    AssistantSettings(provider="ansari", base_url=f"https://{name}.example", api_key=KEY) for name in ("a", "b")
)
CLAUDE = AssistantSettings(provider="anthropic", base_url=FIRST.base_url, api_key=KEY)


def asked_for(first: AssistantSettings, fallback: AssistantSettings | None) -> tuple[str, ...]:
    assistant = Assistant(provider=first.provider, base_url=first.base_url, api_key=KEY, fallback=fallback)
    return noted(cast(Any, SimpleNamespace(assistant=assistant)))


def test_those_of_each_that_keeps_conversations_are_asked_for() -> None:
    """Of the first, of the fallback, of both or of neither."""
    a, b = "ansari https://a.example ", "ansari https://b.example "
    assert asked_for(FIRST, None) == (a,)
    assert asked_for(FIRST, SECOND) == (a, f"fallback/{b}")
    assert asked_for(CLAUDE, SECOND) == (f"fallback/{b}",)
    assert asked_for(CLAUDE, CLAUDE) == noted(cast(Any, SimpleNamespace(assistant=None))) == ()


def test_each_backend_goes_on_from_its_own() -> None:
    """Whoever has none begins anew: another's thread would not be found there. One that keeps nothing has none."""
    mine, theirs = (f"{under}ansari {each.base_url} " for under, each in (("", FIRST), ("fallback/", SECOND)))
    both: Any = SimpleNamespace(last={mine: "mine", theirs: "theirs"})
    assert [last(both, each) for each in (FIRST, SECOND, CLAUDE)] == ["mine", "theirs", None]
    one: Any = SimpleNamespace(last={mine: "mine"})
    assert [last(one, each) for each in (FIRST, SECOND)] == ["mine", None]


def test_a_backend_that_is_first_and_fallback_goes_on_wherever_it_noted() -> None:
    """Its threads are its own, under whichever name it was asked."""
    begins = f"ansari {FIRST.base_url} "
    under_both: Any = SimpleNamespace(last={f"fallback/{begins}": "as fallback", begins: "as first"})
    assert last(under_both, FIRST) == "as first"
    assert last(cast(Any, SimpleNamespace(last={f"fallback/{begins}": "as fallback"})), FIRST) == "as fallback"


class Database:
    """`Commits` as notes know it: it takes steps, or fails as it is told to."""

    def __init__(self) -> None:
        self.error: DatabaseUnavailable | None = DatabaseUnavailable("memo")
        self.steps: list[str] = []

    async def memo(self, memo: Memo) -> None:
        if self.error is not None:
            raise self.error
        self.steps.append(memo.step)


def opened(database: Database, unkept: Unkept[AskedAt], **memo: Any) -> TurnNotes:
    """The notes of one claim, which found these steps."""
    turn, opening = SimpleNamespace(id=UUID(int=1)), SimpleNamespace(version=3, memo=memo)
    return TurnNotes(cast(Any, database), cast(Any, None), cast(Any, turn), cast(Any, opening), unkept)


STEPS = [f"step/{n}" for n in range(20)]


async def hold(database: Database, unkept: Unkept[AskedAt]) -> None:
    """A claim that finishes all of them while the database is away."""
    notes = opened(database, unkept)
    for step in STEPS:
        with pytest.raises(DatabaseUnavailable):
            await notes.keep(step, step.upper())


@pytest.mark.anyio
async def test_what_is_at_hand_is_committed_in_the_order_in_which_it_was_finished() -> None:
    """A later step rests on those before it: whoever dies in the midst of it leaves none without them."""
    database, unkept = Database(), Unkept[AskedAt]()
    await hold(database, unkept)
    database.error = None
    kept = await opened(database, unkept, **{"step/1": "heard before"}).caught_up()
    assert database.steps == [step for step in STEPS if step != "step/1"]
    assert kept == {step: step.upper() for step in STEPS} | {"step/1": "heard before"}
    assert unkept.bytes == 0


@pytest.mark.anyio
@pytest.mark.parametrize("lasting", [True, False])
async def test_whoever_has_lost_the_lane_has_nothing_of_the_turn_at_hand(lasting: bool) -> None:
    """Neither what was finished last nor what the database did not take before: the heir's steps are the turn's."""
    database, unkept = Database(), Unkept[AskedAt]()
    await hold(database, unkept)
    database.error = LaneLost("memo")
    with pytest.raises(LaneLost):
        await opened(database, unkept).keep("answer", "late", lasting=lasting)
    assert unkept.all() == []
