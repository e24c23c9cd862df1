"""Run P: a kill at each named place between two commits, so many times, while people write. It checks nothing itself.

Each member has a list of places of its own and goes through it: killed at one, it comes back with the next one armed, so
webs and workers crash beside each other and a crash costs one start. The spool's two places want an outage of the database,
which is short: killed as soon as something lies in the spool, the web comes back to replay just that.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from app.crashpoints import NAMES, TENANTS
from tests.chaos.fleet import SPOOLING, Fleet
from tests.chaos.member import Member
from tests.chaos.monkey import POSTGRES, Event

# Some outages may fall into it.
REACHED_SECONDS = 30.0
# So many passes at most before the kill: it falls on another message each time. All but the last come often.
MOST_PASSES = 8
IN_WEB = tuple(name for name in NAMES if name.startswith(("ingest.", "statuses.")))
SYNCED, REPLAYED = "spool.synced", "spool.replayed"
SPOOLED_SECONDS = 15.0  # from the beginning of an outage until something lies in the spool
DRAINING = "worker.draining"
ATTENTION_SECONDS = 60.0
NOTICED_WITHIN = 0.2  # seconds after a crash


class Crashes:
    """`run` it once, beside traffic that lasts until it returns. `times`: how often each place is passed by a kill."""

    def __init__(self, fleet: Fleet, seed: int, *, times: int) -> None:
        self._fleet = fleet
        self._random = random.Random(f"{seed} crash points")
        in_worker = [name for name in NAMES if name not in (*IN_WEB, *TENANTS, SYNCED, REPLAYED)]
        self._plan = {
            **self._dealt(fleet.webs, IN_WEB, times),
            **self._dealt(fleet.workers, in_worker, times),
        }
        for _ in range(times):
            plan = self._plan[SPOOLING]
            at = self._random.choice([n for n in range(len(plan) + 1) if n == len(plan) or plan[n] != REPLAYED])
            plan[at:at] = [SYNCED, REPLAYED]
        self._outages: list[Event] = []
        self._crashed: list[tuple[str, str, float]] = []
        self._back: dict[int, float] = {}  # by the index above: when it was at work again
        self.violations: list[str] = []

    @property
    def events(self) -> list[Event]:
        """Each crash so far, until its victim was at work again, or until now; and each outage that is over."""
        now = time.time()
        crashed = [
            Event(kind=f"crash {name}", target=target, began=began, ended=self._back.get(n, now))
            for n, (name, target, began) in enumerate(self._crashed)
        ]
        return [*crashed, *self._outages]

    async def run(self) -> None:
        """Return when every place has been reached or given up, and all members are at work, nothing armed.

        A place that was not reached is a line of `violations`. Raises RigFailed when a member does not come back.
        """
        async with asyncio.TaskGroup() as beside:
            for member in self._fleet.members:
                beside.create_task(self._through(member, self._plan[member.name], beside))
        await self._fleet.ready(ATTENTION_SECONDS)

    def _dealt(self, members: Sequence[Member], names: Sequence[str], times: int) -> dict[str, list[str]]:
        """Each name so many times, shuffled, one after the other to each of the members."""
        cards = [name for name in names for _ in range(times)]
        self._random.shuffle(cards)
        return {member.name: cards[n :: len(members)] for n, member in enumerate(members)}

    async def _through(self, member: Member, names: Sequence[str], beside: asyncio.TaskGroup) -> None:
        armed = False
        for n, name in enumerate(names):
            if not armed:
                await member.arm(self._point(name))
            if n + 1 < len(names):
                member.arm_next(self._point(names[n + 1]))  # at once: this life may be short
            if armed := await self._crash(member, name):
                self._crashed.append((name, member.name, time.time() - NOTICED_WITHIN))
                beside.create_task(self._note_return(member, len(self._crashed) - 1))
        if names and not armed:
            await member.roll()

    async def _crash(self, member: Member, name: str) -> bool:
        """Whether it was reached. If not, the member still lives, with the point armed."""
        if name == DRAINING:
            await member.ready()
            await asyncio.sleep(self._random.uniform(0.5, 1.0))  # something should be at work
            member.terminate()
        if name == SYNCED or (name == REPLAYED and not self._fleet.spooled()):
            await member.ready()
            async with self._outage():
                reached = await (member.died(SPOOLED_SECONDS) if name == SYNCED else self._spooled())
        if name != SYNCED:
            reached = await member.died(REACHED_SECONDS)
        if not reached:
            self.violations.append(f"crash point never reached: {name} in {member.name}, {REACHED_SECONDS:g} s")
        return reached

    @asynccontextmanager
    async def _outage(self) -> AsyncIterator[None]:
        """The database takes no writes, and breaks with everybody who is there, at the beginning and at the end."""
        began = time.time()
        async with self._fleet.database.degraded("read_only"):
            yield
        self._outages.append(Event(kind="read_only", target=POSTGRES, began=began, ended=time.time()))

    async def _spooled(self) -> bool:
        """Whether something lies in the spool, now or soon."""
        deadline = time.monotonic() + SPOOLED_SECONDS
        while not self._fleet.spooled() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return self._fleet.spooled() > 0

    async def _note_return(self, member: Member, n: int) -> None:
        await member.ready()
        self._back[n] = time.time()

    def _point(self, name: str) -> str:
        return f"{name}:{1 if name in (DRAINING, SYNCED, REPLAYED) else self._random.randint(1, MOST_PASSES)}"
