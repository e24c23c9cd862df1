"""What an assistant notes of a turn: the memo's steps of its own (`steps`), loaded with the opening, committed one by one."""

from typing import Any
from uuid import UUID

import msgspec

from app.assistants import keeps
from app.configuration import AssistantSettings
from app.directory import Tenant
from app.errors import DatabaseUnavailable, LaneLost
from app.store.lanes import Claim
from app.store.steps import ANY_VERSION, Memo
from app.store.turns import Opening, Turn
from app.unkept import Unkept
from workers.commits import Commits

# A turn, and the version at which it is asked.
AskedAt = tuple[UUID, int]

# Under whose name the fallback's notes stand; the first one's under none.
FALLBACK = "fallback"


def noted(tenant: Tenant) -> tuple[str, ...]:
    """What notes begin with of each of the tenant's assistants that keeps conversations itself."""
    first = tenant.assistant
    asked = (("", first), (FALLBACK, first.fallback)) if first else ()
    return tuple(f"{_under(of)}{begun}" for of, each in asked if each and (begun := keeps(each)))


def last(opening: Opening, settings: AssistantSettings) -> Any:
    """What the assistant with these settings noted of the turn of this session that it answered last; None: of none.

    By whose notes they are, not by whom they stand under: the first one and the fallback may be one backend.
    """
    if (begun := keeps(settings)) is None:
        return None
    found = (opening.last.get(f"{_under(of)}{begun}") for of in ("", FALLBACK))
    return next((note for note in found if note is not None), None)


class TurnNotes:
    """`app.assistants.Notes` of one turn at the version that it was opened at, and of those that last beyond it.

    `unkept`: of each turn the steps that this worker has finished and the database did not take, an object in JSON.
    `under`: whose they are, where several assistants are asked: what one noted says nothing to another.
    """

    def __init__(
        self, commits: Commits, claim: Claim, turn: Turn, opening: Opening, unkept: Unkept[AskedAt], under: str = ""
    ) -> None:
        self._commits = commits
        self._claim = claim
        self._turn = turn
        self._version = opening.version
        self._kept = dict(opening.memo)
        self._unkept = unkept
        self._under = _under(under)

    def __getitem__(self, name: str) -> Any:
        """See the Protocol."""
        return self._kept[self._under + name]

    async def keep(self, name: str, value: Any, *, lasting: bool = False) -> None:
        """See the Protocol. What the database did not take is at hand for the next claim; not what lasts: whoever finds that
        takes a call for made, and it was not.

        Raises:
            LaneLost: the turn is another worker's, and nothing of it is at hand here any more.
        """
        step = self._under + name
        version = ANY_VERSION if lasting else self._version
        memo = Memo(self._claim, self._turn.id, step, version, msgspec.json.encode(value).decode())
        asked = self._turn.id, self._version
        try:
            await self._commits.memo(memo)
        except LaneLost:
            self._unkept.drop(asked)
            raise
        except DatabaseUnavailable:
            if not lasting:
                self._unkept.hold(asked, msgspec.json.encode({**at_hand(self._unkept, asked), step: value}))
            raise
        self._kept[step] = value

    async def caught_up(self) -> dict[str, Any]:
        """The turn's steps, once those are committed that earlier claims here have finished and the database did not take: in
        the order in which they were finished, since each may rest on those before it. For notes that stand under no name.

        Raises:
            DatabaseUnavailable: nobody knows whether they are kept.
        """
        asked = self._turn.id, self._version
        for step, value in at_hand(self._unkept, asked).items():
            if step not in self._kept:
                await self.keep(step, value)
        self._unkept.drop(asked)
        return dict(self._kept)


def at_hand(unkept: Unkept[AskedAt], asked: AskedAt) -> dict[str, Any]:
    """The steps of a turn that this worker alone has."""
    steps = unkept.get(asked)
    return {} if steps is None else msgspec.json.decode(steps, type=dict[str, Any])


def _under(whose: str) -> str:
    return f"{whose}/" if whose else ""
