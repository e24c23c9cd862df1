"""What a worker remembers of a conversation is what the database would bring; and what stands in while it takes no reads."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from datetime import timedelta
from itertools import count
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from app import db
from app.breaker import Breaker
from app.directory import Directory
from app.errors import DatabaseUnavailable
from app.policies import DATABASE
from app.store import dead, histories, lanes, turns
from app.store.lanes import Claim, Release
from app.store.settlements import Settlement
from app.store.turns import Open, Opening
from tests import ground as laid
from tests import world as shared
from tests.conftest import Database
from tests.ground import NOW, Ground, ground
from tests.world import World
from workers.commits import Commits
from workers.opening import Opened, Openings
from workers.sessions import HARD, SOFT, Sessions
from workers.warming import warm

world = shared.world


class Counted(Commits):
    """Counts what it opens, by how much history it was asked for; `down`: opening with a history fails."""

    def __init__(self, pool: db.Pool) -> None:
        super().__init__(pool, uuid4(), order_wait=10.0, silence=30.0, patience=10.0)
        self.asked: list[int] = []
        self.down = False

    async def open(self, wanted: Open) -> Opening:
        self.asked.append(wanted.history)
        if self.down and wanted.history:
            raise DatabaseUnavailable("no reads")
        return await super().open(wanted)


class Worker:
    """One worker's memory before the real store, on a clock of the test's; the turn goes as the test says."""

    def __init__(self, here: Ground, pool: db.Pool, most_bytes: int = 1 << 20) -> None:
        self.here = here
        self.most_bytes = most_bytes
        self.commits = Counted(pool)
        self.clock = 1000.0
        self.sessions = Sessions(most_bytes, lambda: self.clock)
        self.openings = Openings(self.commits, self.sessions)

    async def restart(self, history: int = 5) -> None:
        """Nothing is remembered, and the lately active are read ahead, as at the start of a worker process."""
        self.sessions = Sessions(self.most_bytes, lambda: self.clock)
        self.openings = Openings(self.commits, self.sessions)
        assistant = SimpleNamespace(history_messages=history)
        tenants = [SimpleNamespace(id=self.here.tenant, enabled=True, assistant=assistant)]
        await warm(self.commits.pool, cast(Directory, SimpleNamespace(tenants=tenants)), self.sessions)

    async def begin(self) -> None:
        await lanes.register(self.here.conn, self.commits.worker, 3600.0)

    async def claim(self, lane: UUID) -> Claim | None:
        await self.here.act("UPDATE lanes SET run_at = NULL WHERE conversation_id <> %s", lane)
        await self.here.act("UPDATE lanes SET attempts = 0")
        return next(iter(await lanes.claim(self.here.conn, self.commits.worker, 10)), None)

    async def release(self, claim: Claim, done_seq: int | None) -> None:
        again_in = 0.0 if done_seq is None else None
        await lanes.release(
            self.here.conn, self.commits.worker, [Release(claim=claim, done_seq=done_seq, again_in=again_in)]
        )

    async def settle(self, claim: Claim, found: Opened, body: str, outcome: Any = "answered") -> str:
        """Settle what was opened, as `workers/settle.py` does, and give nothing back yet."""
        turn = found.opening.turn
        assert turn
        settled = await self.commits.settle(
            Settlement(
                claim=claim,
                version=found.opening.version,
                turn=turn,
                outcome=outcome,
                body=body,
                pieces=[(uuid4(), body)] if body else [],
                send=False,
                correlation="c",
            )
        )
        if settled.fence == "ok":
            self.openings.settled(claim, found, turn, settled, body)
        return settled.fence

    async def turn(self, lane: UUID, body: str, history: int = 5, outcome: Any = "answered") -> Opened:
        """A whole turn."""
        claim = await self.claim(lane)
        assert claim
        found = await self.openings.open(Open(claim, history))
        assert found.opening.turn and await self.settle(claim, found, body, outcome) == "ok"
        await self.release(claim, found.opening.turn.last_seq)
        return found


here = laid.here


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[db.Pool]:
    async with db.pool(database.url, "qasid_courier", name="test", max_size=2) as pool:
        yield pool


@pytest.fixture
async def worker(here: Ground, pool: db.Pool) -> Worker:
    worker = Worker(here, pool)
    await worker.begin()
    return worker


def served(result: str) -> float:
    return REGISTRY.get_sample_value("qasid_sessions_total", {"result": result}) or 0.0


class Slow(Breaker):
    """Open for reads only, for the next ten seconds of a clock that stands still."""

    def __init__(self) -> None:
        self.at = 1000.0
        super().__init__("database", DATABASE, clock=lambda: self.at)
        with ExitStack() as calls:
            for _ in range(100):
                calls.enter_context(self.watching())
            self.at += 0.6
        assert self.state == "slow"


# --- what stands ---

small = st.integers(0, 7)
word = st.sampled_from(["", "w", "سلام", "two words"])
spoken = st.tuples(st.just("say"), st.sampled_from(["text", "text", "image", "location", "reaction", "system"]), word)
change = st.tuples(st.sampled_from(["edit", "revoke", "echo", "early edit"]), small, word)
replay = st.tuples(st.sampled_from(["answer again", "answer twice", "send again", "send again"]), small, st.just(""))
step = st.one_of(spoken, change)
turn = st.tuples(
    st.just("turn"),
    st.tuples(
        st.sampled_from([0, 0, 0, 1]),  # which worker
        st.sampled_from(["answered"] * 6 + ["failed", "failed", "left", "parked unread", "cut"]),
        st.one_of(st.just([]), st.lists(spoken, max_size=2), st.lists(step, max_size=3)),  # meanwhile
        st.booleans(),  # its chunks are sent under a claim of their own
        st.sampled_from([3] * 9 + [5]),  # the configured history
    ),
    st.sampled_from(["", "asked first", "asked first", "restarted, asked"]),
)
plays = st.lists(
    st.sampled_from([spoken, step, replay, replay, replay, *[turn] * 12]).flatmap(lambda each: each),
    min_size=8,
    max_size=20,
)


class Play:
    """One conversation, two workers; each history from memory is compared with what the database brings at that instant."""

    def __init__(self, here: Ground, pool: db.Pool, workers: list[Worker], found: Counter[str]) -> None:
        self.here, self.pool, self.workers, self.found = here, pool, workers, found
        self.numbers = count(1)
        self.said: list[str] = []
        self.restarted: set[Worker] = set()

    async def go(self, steps: list[Any]) -> None:
        self.lane = await self.here.lane()
        for what, how, words in [("say", "text", "first"), *steps]:
            await self.step(what, how, words)

    async def step(self, what: str, how: Any, words: str) -> None:
        if what == "turn":
            if words.startswith("restarted"):
                await self.workers[how[0]].restart(history=3)
                self.restarted.add(self.workers[how[0]])
            if words:
                await self.step("say", "text", words)
            await self.turn(*how)
        elif what in ("answer again", "answer twice", "send again"):
            for _ in range(2 if what == "answer twice" else 1):
                await self.replay(what, how)
        else:
            id = f"{self.lane}.{next(self.numbers)}"
            body = words and f"{words} {id}"
            sent_at = NOW + timedelta(seconds=len(self.said) % 3)  # not the order in which they come
            placed = {"id": id, "sent_at": sent_at}
            if what == "say":
                placed["kind"] = how
                self.said.append(id)
            elif what == "echo":
                placed["direction"] = "echo"
                self.said.append(id)
            elif what == "early edit":  # it comes before what it changes
                placed |= {"kind": "edit", "about": f"{self.lane}.{next(self.numbers) + 1}"}
            else:
                placed |= {"kind": what, "about": (self.said or [id])[how % max(1, len(self.said))]}
            [outcome] = await self.here.ingest(self.here.placed(self.lane, body, **placed))
            assert outcome.verdict == "stored"

    async def turn(self, which: int, outcome: Any, meanwhile: list[Any], apart: bool, history: int) -> None:
        worker = self.workers[which]
        if (claim := await worker.claim(self.lane)) is None:
            return
        for early in meanwhile[2:]:  # between the claim and the opening
            await self.step(*early)
        found = await self.open(worker, claim, history)
        turn, opening = found.opening.turn, found.opening
        if turn is None:
            await worker.release(claim, opening.done_seq + 1 if opening.kind == "send" else None)
            return
        if turn.settled:
            await worker.release(claim, turn.last_seq)
            return
        for late in meanwhile[:2]:
            await self.step(*late)
        if outcome == "cut":
            await worker.release(claim, None)
            return
        if outcome == "parked unread":
            await worker.release(claim, await worker.commits.park_head(claim, "why"))
            return
        fence = await worker.settle(claim, found, "" if outcome == "left" else f"re {next(self.numbers)}", outcome)
        if fence == "changed":
            found = await self.open(worker, claim, history)
            fence = await worker.settle(claim, found, "once more", outcome)
        assert fence == "ok"
        if apart:
            await worker.release(claim, None)
            claim = await worker.claim(self.lane)
            assert claim
            await self.open(worker, claim, history)
        await self.here.act(
            "UPDATE chunks SET state = 'failed' WHERE conversation_id = %s AND state = 'ready'", self.lane
        )
        await worker.release(claim, turn.last_seq)

    async def open(self, worker: Worker, claim: Claim, history: int) -> Opened:
        before = len(worker.commits.asked), served("stale")
        found = await worker.openings.open(Open(claim, history))
        turn, done = found.opening.turn, found.opening.done_seq
        if turn and not turn.settled and all(chunk.seq <= done for chunk in found.opening.chunks):
            source = "read" if history in worker.commits.asked[before[0] :] else "remembered"
            self.found["ahead" if source == "remembered" and worker in self.restarted else source] += 1
            self.restarted.discard(worker)
            assert found.stale_s is None and served("stale") == before[1]
            assert found.opening.said == (await worker.commits.open(Open(claim, history))).said
        return found

    async def replay(self, what: str, which: int) -> None:
        if what == "send again":
            query = (
                "SELECT id FROM chunks WHERE (tenant_id, conversation_id) = (%s, %s) AND state = 'failed' ORDER BY seq"
            )
        else:
            query = (
                "SELECT id FROM turns JOIN usage u ON u.turn_id = id WHERE (turns.tenant_id, conversation_id) = (%s, %s)"
                " AND outcome IN ('failed', 'parked') ORDER BY first_seq"
            )
        if rows := await self.here.all(query, self.here.tenant, self.lane):
            id = rows[which % len(rows)]["id"]
            letter: Any = SimpleNamespace(tenant_id=self.here.tenant, id=id, conversation_id=self.lane)
            async with db.acting(self.pool, tenant=self.here.tenant) as conn:
                again = await (dead.send if what == "send again" else dead.answer)(conn, letter, again=True)
            self.found[what.split()[0]] += again is not None


def test_what_is_remembered_is_what_would_be_read(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happened between two turns, and whoever worked on them: equal, message by message."""
    monkeypatch.setattr(turns, "MOST_MEMBERS", 2)
    found: Counter[str] = Counter()
    with asyncio.Runner() as runner:

        async def lay(stack: AsyncExitStack) -> tuple[Ground, db.Pool, db.Pool]:
            here = await stack.enter_async_context(ground(database.url, database.superuser_url))
            courier = await stack.enter_async_context(db.pool(database.url, "qasid_courier", name="c", max_size=2))
            return (
                here,
                courier,
                await stack.enter_async_context(db.pool(database.url, "qasid_app", name="a", max_size=1)),
            )

        stack = AsyncExitStack()
        here, courier, app = runner.run(lay(stack))
        workers = [Worker(here, courier) for _ in range(2)]
        for worker in workers:
            runner.run(worker.begin())

        @settings(max_examples=40, deadline=None, database=None, derandomize=True)
        @given(plays)
        def play(steps: list[Any]) -> None:
            runner.run(Play(here, app, workers, found).go(steps))

        try:
            play()
        finally:
            runner.run(stack.aclose())
    assert all(found[what] > 10 for what in ("read", "ahead", "remembered", "answer", "send")), found


@pytest.mark.anyio
async def test_a_warm_worker_reads_no_history(here: Ground, worker: Worker) -> None:
    """Not even where a claim of its own sends the chunks; after the soft age it reads along, once."""
    lane = await here.lane()
    for n in range(3):
        await here.ingest(here.placed(lane, f"q{n}"))
        found = await worker.turn(lane, f"a{n}")
    assert worker.commits.asked == [5, 0, 0]
    assert [(line.mine, line.body) for line in found.opening.said] == [
        *((False, "q0"), (True, "a0")),
        *((False, "q1"), (True, "a1")),
    ]
    worker.clock += SOFT + 1
    for n in range(3, 5):
        await here.ingest(here.placed(lane, f"q{n}"))
        await worker.turn(lane, f"a{n}")
    assert worker.commits.asked == [5, 0, 0, 5, 0]


@pytest.mark.anyio
async def test_a_worker_that_starts_reads_ahead_what_was_lately_active(here: Ground, worker: Worker) -> None:
    """Its first turns read no history; of a lane at which something waits, and of one long silent, they do."""
    lively, busy, silent = [await here.lane() for _ in range(3)]
    for lane in (silent, busy, lively):
        await here.ingest(here.placed(lane, "before"))
        await worker.turn(lane, "a")
    old = UUID(int=(int((time.time() - 1000) * 1000) << 80) | 0x7000 << 64 | 0x8000 << 48)
    await here.act(
        "UPDATE messages SET id = overlay(%s::text PLACING right(id::text, 12) FROM 25)::uuid WHERE conversation_id = %s",
        *(str(old), silent),
    )
    await here.ingest(here.placed(busy, "waits"))
    await worker.restart()
    worker.commits.asked.clear()
    for lane in (lively, busy, silent):
        await here.ingest(here.placed(lane, "now"))
        await worker.turn(lane, "b")
    assert worker.commits.asked == [0, 5, 5]
    assert len(await here.twins()) == len(await here.all("SELECT FROM lanes WHERE tenant_id = %s", here.twin))


@pytest.mark.anyio
async def test_reading_ahead_stops_where_there_is_no_room_and_forgets_nothing(here: Ground, pool: db.Pool) -> None:
    """The newest conversations have the room; what a turn left is never replaced."""
    first = Worker(here, pool)
    await first.begin()
    made = [await here.lane() for _ in range(6)]
    for lane in made:
        await here.ingest(here.placed(lane, "q"))
        await first.turn(lane, "a")
    await first.restart()
    size = first.sessions.bytes
    assert [first.sessions.last((here.tenant, lane)) is not None for lane in made] == [True] * 6
    second = Worker(here, pool, most_bytes=size // 2)
    await second.restart()
    assert [second.sessions.last((here.tenant, lane)) is not None for lane in made] == [False] * 3 + [True] * 3
    assert second.sessions.bytes <= size // 2


@pytest.mark.anyio
async def test_nothing_is_read_ahead_while_the_breaker_takes_no_reads(here: Ground, worker: Worker) -> None:
    """A database that is slow already is not asked for what nobody waits for."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    await worker.turn(lane, "a")
    worker.commits.pool.breaker = Slow()
    try:
        await worker.restart()
        assert worker.sessions.bytes == 0
    finally:
        worker.commits.pool.breaker = None


@pytest.mark.anyio
async def test_what_was_lately_active_is_found_by_the_primary_key(here: Ground, worker: Worker) -> None:
    """However many messages there are of days before: the plan looks at a range of ids, tenant by tenant."""
    values = {"tenant_id": [here.tenant], "since": 900.0, "each": 500, "most": 100}
    plan = "\n".join(
        row[0] for row in await (await here.conn.execute("EXPLAIN " + histories.RECENT, values)).fetchall()
    )
    assert "messages_pkey" in plan
    condition = next(line for line in plan.splitlines() if "Index Cond" in line)
    assert "tenant_id" in condition and "id >" in condition
    lane = await here.lane()
    wanted = {"tenant_id": [here.tenant], "conversation_id": [lane], "history": [5]}
    plan = "\n".join(row[0] for row in await (await here.conn.execute("EXPLAIN " + histories.READ, wanted)).fetchall())
    assert "Index Scan Backward using messages_history" in plan and "Seq Scan" not in plan


@pytest.mark.anyio
async def test_chunks_are_sent_without_a_look_at_the_history(here: Ground, worker: Worker) -> None:
    """The lane is claimed again for what is left of an answer: neither the history before it nor that behind it is read."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    claim = await worker.claim(lane)
    assert claim
    await worker.settle(claim, await worker.openings.open(Open(claim, 5)), "answer")
    await worker.release(claim, None)
    claim = await worker.claim(lane)
    assert claim and (await worker.openings.open(Open(claim, 5))).opening.chunks
    assert worker.commits.asked == [5, 0]


@pytest.mark.anyio
async def test_another_workers_turn_and_another_history_are_read(here: Ground, pool: db.Pool, worker: Worker) -> None:
    """What was remembered before another worker's turn, or with another `history_messages`, is not served."""
    lane = await here.lane()
    other = Worker(here, pool)
    await other.begin()
    for at, body in ((worker, "a"), (other, "b"), (worker, "c")):
        await here.ingest(here.placed(lane))
        found = await at.turn(lane, body)
    assert [line.body for line in found.opening.said if line.mine] == ["a", "b"]
    await here.ingest(here.placed(lane))
    await worker.turn(lane, "d", history=2)
    assert (worker.commits.asked, other.commits.asked) == ([5, 5, 2], [5])


@pytest.mark.anyio
async def test_an_echo_between_claim_and_opening_is_read(here: Ground, worker: Worker) -> None:
    """What was claimed at the pair in memory and has moved since costs a second opening, with the history."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    await worker.turn(lane, "a")
    await here.ingest(here.placed(lane))
    claim = await worker.claim(lane)
    assert claim
    await here.ingest(here.placed(lane, "by hand", direction="echo"))
    found = await worker.openings.open(Open(claim, 5))
    assert [line.body for line in found.opening.said] == ["question", "a", "by hand"]
    assert worker.commits.asked == [5, 0, 5]


async def replayed(here: Ground, worker: Worker, *, times: int = 1, again: bool = False) -> UUID:
    """A lane whose one question could not be answered, and is entered anew."""
    lane = await here.lane()
    await here.ingest(here.placed(lane, "q"))
    found = await worker.turn(lane, "sorry", outcome="failed")
    assert found.opening.turn
    letter: Any = SimpleNamespace(tenant_id=here.tenant, id=found.opening.turn.id, conversation_id=lane)
    for _ in range(times):
        assert await dead.answer(here.conn, letter, again=again)
    return lane


@pytest.mark.anyio
async def test_a_question_that_waits_once_more_is_not_remembered_as_said(
    here: Ground, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replayed twice, it is asked in two turns; between them it waits, so that the history is without it."""
    monkeypatch.setattr(turns, "MOST_MEMBERS", 1)
    lane = await replayed(here, worker, times=2, again=True)
    for said in (["sorry"], ["sorry", "a"]):
        found = await worker.turn(lane, "a")
        assert [message.body for message in found.opening.asked] == ["q"]
        assert [line.body for line in found.opening.said] == said


@pytest.mark.anyio
async def test_a_question_that_is_replayed_leaves_the_history_at_once(here: Ground, worker: Worker) -> None:
    """Entered anew it waits again: what was remembered with it does not stand any more."""
    lane = await replayed(here, worker)
    assert [line.body for line in (await worker.turn(lane, "a")).opening.said] == ["sorry"]


# --- what stands in ---


@pytest.mark.anyio
async def test_while_no_reads_are_taken_the_last_that_is_remembered_stands_in(
    here: Ground, pool: db.Pool, worker: Worker
) -> None:
    """With its age told; what was made of it is not remembered, and after the hard age it is not shown."""
    lane = await here.lane()
    await here.ingest(here.placed(lane, "q"))
    await worker.turn(lane, "a")
    await here.ingest(here.placed(lane, "by hand", direction="echo"), here.placed(lane, "q2"))
    pool.breaker = Slow()
    before = served("stale")
    worker.clock += 100
    found = await worker.turn(lane, "a2")
    assert (found.stale_s, [line.body for line in found.opening.said]) == (100.0, ["q", "a"])
    assert served("stale") == before + 1
    assert worker.commits.asked == [5, 0]
    await here.ingest(here.placed(lane, "q3"))
    worker.clock += HARD - 100
    assert (await worker.turn(lane, "a3")).stale_s == HARD, "what was made of a stale one is not remembered"
    await here.ingest(here.placed(lane, "q4"))
    worker.clock += 1
    found = await worker.turn(lane, "a4")
    assert found.stale_s is None and [line.body for line in found.opening.said] == ["by hand", "q2", "a2", "q3", "a3"]
    assert worker.commits.asked == [5, 0, 0, 5], (
        "an opening is a write: where nothing is remembered it brings the history"
    )


@pytest.mark.anyio
async def test_what_stands_at_the_pair_is_served_beyond_the_soft_age_while_no_reads_are_taken(
    here: Ground, pool: db.Pool, worker: Worker
) -> None:
    """It is marked all the same: nobody has looked for so long."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    await worker.turn(lane, "a")
    pool.breaker = Slow()
    worker.clock += SOFT + 1
    for n in range(2):
        await here.ingest(here.placed(lane))
        assert (await worker.turn(lane, f"a{n}")).stale_s == SOFT + 1
    assert worker.commits.asked == [5, 0, 0]


@pytest.mark.anyio
@pytest.mark.parametrize("slow", [False, True])
async def test_a_read_that_fails_is_made_up_for_only_while_no_reads_are_taken(
    here: Ground, pool: db.Pool, worker: Worker, slow: bool
) -> None:
    """A single failure gives the lane back, and the next claim reads anew: a stale answer would be worse than a second."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    await worker.turn(lane, "a")
    await here.ingest(here.placed(lane, "by hand", direction="echo"), here.placed(lane))
    claim = await worker.claim(lane)
    assert claim
    worker.commits.down = True
    breaker = Slow()
    if not slow:
        breaker.at += 20.0  # nobody asked meanwhile: it is closed again
    opening = worker.commits.open

    async def fails(wanted: Open) -> Opening:
        pool.breaker = breaker
        return await opening(wanted)

    worker.commits.open = fails  # type: ignore[method-assign]  # the breaker changes under the read
    if slow:
        assert [line.body for line in (await worker.openings.open(Open(claim, 5))).opening.said] == ["question", "a"]
        assert worker.commits.asked == [5, 5, 0]
    else:
        with pytest.raises(DatabaseUnavailable):
            await worker.openings.open(Open(claim, 5))
        assert worker.commits.asked == [5, 5]


@pytest.mark.anyio
async def test_what_is_asked_is_not_shown_as_said_before(here: Ground, pool: db.Pool, worker: Worker) -> None:
    """A replayed question stands in a stale history already: it is shown once."""
    lane = await replayed(here, worker)
    pool.breaker = Slow()
    found = await worker.turn(lane, "a")
    assert [message.body for message in found.opening.asked] == ["q"]
    assert [line.body for line in found.opening.said] == ["sorry"]


# --- the whole worker ---


@pytest.mark.anyio
@pytest.mark.timeout(60)
async def test_the_assistant_is_shown_what_is_remembered(world: World) -> None:
    """A conversation of three turns: the first is read, and each call has all that was said; revoked words are in none."""
    before = served("hit"), served("miss")
    await world.worker()
    said = await world.say("one")
    await world.got(1)
    await world.say("two")
    await world.got(2)
    assert (served("hit"), served("miss")) == (before[0] + 1, before[1] + 1)
    assert world.shown() == ["one", "You said: one", "two"]
    await world.say("", kind="revoke", target=said.ids[0])
    with capture_logs() as logs:
        await world.say("three")
        await world.got(3)
    assert "stale_s" not in next(line for line in logs if line["event"] == "turn")
    assert world.shown() == ["two", "You said: two", "three"]
    assert (served("hit"), served("miss")) == (before[0] + 1, before[1] + 2)


@pytest.mark.anyio
@pytest.mark.timeout(60)
async def test_a_stale_answer_is_told_with_its_age(world: World) -> None:
    """The log line of the turn says how old the conversation was that the assistant was shown."""
    held = await world.parts()
    await world.say("one")
    held.ring()
    await world.got(1)
    await world.act("UPDATE lanes SET version = version + 1")
    cast(Any, held)._commits.pool.breaker = Slow()
    with capture_logs() as logs:
        await world.say("two")
        held.ring()
        await world.got(2)
    assert 0.0 <= next(line for line in logs if line["event"] == "turn")["stale_s"] < 30.0
    assert world.shown() == ["one", "You said: one", "two"]
