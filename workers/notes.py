"""What an assistant notes of a turn: the memo's steps of its own (`steps`), loaded with the opening, committed one by one."""

from typing import Any

import msgspec

from app.assistants import keeps
from app.directory import Tenant
from app.store.lanes import Claim
from app.store.steps import ANY_VERSION, Memo
from app.store.turns import Opening, Turn
from workers.commits import Commits

# Under whose name the fallback's notes stand; the first one's under none.
FALLBACK = "fallback"


def noted(tenant: Tenant) -> str | None:
    """What notes begin with of the tenant's assistant that keeps conversations itself, where it has one."""
    first = tenant.assistant
    asked = (("", first), (FALLBACK, first.fallback)) if first else ()
    return next((f"{_under(of)}{begun}" for of, each in asked if each and (begun := keeps(each))), None)


class TurnNotes:
    """`app.assistants.Notes` of one turn at the version that it was opened at, and of those that last beyond it.

    `under`: whose they are, where several assistants are asked: what one noted says nothing to another.
    """

    def __init__(self, commits: Commits, claim: Claim, turn: Turn, opening: Opening, under: str = "") -> None:
        self._commits = commits
        self._claim = claim
        self._turn = turn
        self._version = opening.version
        self._kept = dict(opening.memo)
        self._under = _under(under)

    def __getitem__(self, name: str) -> Any:
        """See the Protocol."""
        return self._kept[self._under + name]

    async def keep(self, name: str, value: Any, *, lasting: bool = False) -> None:
        """See the Protocol."""
        step = self._under + name
        version = ANY_VERSION if lasting else self._version
        memo = Memo(self._claim, self._turn.id, step, version, msgspec.json.encode(value).decode())
        await self._commits.memo(memo)
        self._kept[step] = value


def _under(whose: str) -> str:
    return f"{whose}/" if whose else ""
