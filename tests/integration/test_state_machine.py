"""Production's workers on the store, under faults in any order, against a small model (tests/model.py): FAULTS.md, section 6.

300 examples of up to 30 steps, the same at every run; a step is up to a dozen of what FAULTS.md counts as one. More of both,
others at each run, and the planted bugs that are found late:
`STATE_MACHINE_EXAMPLES=5000 uv run pytest tests/integration/test_state_machine.py`.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, MutableMapping
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, ClassVar, cast, get_args
from uuid import UUID, uuid4

import psycopg
import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import dict_row

from app import db
from app.assistants.intents import Intents
from app.configuration import Assistant, Limits, Texts
from app.directory import Channel, Directory, Endpoint, Tenant
from app.errors import NeverLeft
from app.settings import Settings
from app.store import chunks, doors, inbox, lanes, settlements, statuses, turns
from app.vault import Secret, SecretBytes
from tests import simulation
from tests.ground import Ground, ground
from tests.model import Model, Said
from tests.simulation import CLOCK, CLOCKED, Call, Fault, Outcome, Process, World
from workers.budget import Budget
from workers.deliver import Delivery

# A worker that is killed at the end of an example leaves tasks that had not begun; what they would await is never awaited.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited:RuntimeWarning")

EXAMPLES = int(os.environ.get("STATE_MACHINE_EXAMPLES", "300"))
THOROUGH = EXAMPLES > 300
# So that few statements are spent on waiting: two beats and a bit to a lease, and no wait is shorter than one.
SETTINGS = Settings(
    lease_seconds=9.0,
    send_timeout_seconds=1.0,
    order_wait_seconds=4.0,
    in_doubt_seconds=6.0,
    in_doubt_max_seconds=30.0,
    pair_seconds=0.06,
    worker_lanes=8,
)
DOOR_LEASE = 6.0
# The clock moves by no more than the time between two beats, else a worker would be late for no reason.
TICK = (SETTINGS.lease_seconds - SETTINGS.send_timeout_seconds) / 2
# Ticks after which all is over, whatever went wrong: 30 s of silence, 25 s of a channel held, waits of the gate.
PATIENCE = 60

SHIFTED = """
CREATE OR REPLACE FUNCTION qasid_now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT current_setting('test.now')::timestamptz $$
"""
# What becomes of an example's rows slows down those after it, so now and then they go; the twin's are looked at before.
EVERY = 20
TWIN = """
SELECT EXISTS (SELECT FROM lanes WHERE tenant_id = %(twin)s AND (head_seq, done_seq, token, version, attempts) <> (0, 0, 0, 0, 0))
  OR EXISTS (SELECT FROM lanes WHERE tenant_id = %(twin)s AND (run_at IS NOT NULL OR owner IS NOT NULL))
  OR EXISTS (SELECT FROM messages WHERE tenant_id = %(twin)s) OR EXISTS (SELECT FROM outbox WHERE tenant_id = %(twin)s)
  OR EXISTS (SELECT FROM seen WHERE tenant_id = %(twin)s) OR EXISTS (SELECT FROM turns WHERE tenant_id = %(twin)s)
  OR EXISTS (SELECT FROM chunks WHERE tenant_id = %(twin)s) OR EXISTS (SELECT FROM attempts WHERE tenant_id = %(twin)s)
  OR EXISTS (SELECT FROM statuses WHERE tenant_id = %(twin)s) OR EXISTS (SELECT FROM holds WHERE tenant_id = %(twin)s) AS touched
"""
EMPTY = "TRUNCATE endpoints, contacts, messages, outbox, seen, steps, usage, workers, doors CASCADE"
FORGET = """
DELETE FROM workers; DELETE FROM doors; UPDATE lanes SET owner = NULL, run_at = NULL WHERE owner IS NOT NULL OR run_at IS NOT NULL
"""
LAY = """
WITH twins AS MATERIALIZED (SELECT unnest(%(tenants)s::uuid[]) AS tenant_id),
endpoint AS (INSERT INTO endpoints (id, slug, kind, secrets) VALUES (%(channel)s, %(channel)s::text, 'cloud', '{}')),
channel AS (
  INSERT INTO channels (tenant_id, id, slug, endpoint_id, address, base_url, token)
  SELECT tenant_id, %(channel)s, %(channel)s::text, %(channel)s, tenant_id::text, '', '' FROM twins),
lane AS MATERIALIZED (SELECT tenant_id, id FROM twins, unnest(%(lanes)s::uuid[]) AS id),
contact AS (INSERT INTO contacts (tenant_id, id) SELECT tenant_id, id FROM lane),
identity AS (INSERT INTO identities (tenant_id, kind, value, contact_id) SELECT tenant_id, 'wa_id', id::text, id FROM lane),
conversation AS (
  INSERT INTO conversations (tenant_id, id, channel_id, contact_id) SELECT tenant_id, id, %(channel)s, id FROM lane)
INSERT INTO lanes (tenant_id, conversation_id, channel_id) SELECT tenant_id, id, %(channel)s FROM lane
"""
LEFT = """
SELECT FROM lanes
WHERE tenant_id = %(tenant)s AND conversation_id = ANY(%(lanes)s) AND (done_seq < head_seq OR owner IS NOT NULL)
"""

some = st.integers(0, 7)
STATUSES = ["sent", "delivered", "read", "failed"]
# What becomes of the next POSTs, and what is told of each that was taken.
ends = st.lists(
    st.tuples(
        st.sampled_from([*get_args(Outcome), "taken", "cut", "cut"]), st.sampled_from([None, "delivered", "sent"])
    ),
    max_size=4,
)
End = tuple[Outcome, str | None]
FAULTED = "settle intend record release claim memo open beat abandon disown bury".split()


class Couriers(RuleBasedStateMachine):
    """Two lanes, up to three workers, one number; what is said, sent, answered and told comes in any order."""

    here: ClassVar[Ground]
    owner: ClassVar[psycopg.Connection[Any]]
    conn: ClassVar[psycopg.Connection[Any]]
    epoch: ClassVar[datetime]
    failed: ClassVar[list[str]] = []
    examples: ClassVar[Iterator[int]] = count(1)
    lane_ids: ClassVar[Iterator[int]] = count(1)  # in order, so that an example goes the same way each time

    @initialize(policy=st.sampled_from(["resend", "park"]), workers=st.integers(1, 2))
    def lay(self, policy: str, workers: int) -> None:
        self.owner.execute(FORGET)
        if next(self.examples) % EVERY == 0:
            [(touched,)] = self.owner.execute(TWIN, {"twin": self.here.twin}).fetchall()
            assert not touched, "the twin is not touched"
            self.owner.execute(EMPTY)
        self.failed.clear()
        self.channel, names = uuid4(), [UUID(int=next(self.lane_ids)) for _ in range(2)]
        tenants = [self.here.tenant, self.here.twin]
        self.owner.execute(LAY, {"tenants": tenants, "channel": self.channel, "lanes": names})
        self.model = Model(
            settings=SETTINGS,
            policy=policy,
            lanes=names,
            read=self._read,
            said={name: [] for name in names},
            held=dict.fromkeys(names),
            tokens=dict.fromkeys(names, 0),
            versions=dict.fromkeys(names, 0),
        )
        self.world = World(self.conn, self.model, self._directory(policy), SETTINGS, self.epoch)
        self.numbers = count(1)
        self.doors = ["a"]
        self._door("a", everything=True)
        for _ in range(workers):
            self.world.begin()

    def _directory(self, policy: str) -> Directory:
        tenant, channel = self.here.tenant, self.channel
        return Directory(
            version=1,
            digest_key=SecretBytes(b""),
            endpoints=[Endpoint(id=channel, slug="meta", kind="cloud", secrets=(), verify_token=None)],
            tenants=[
                Tenant(
                    id=tenant,
                    slug="t",
                    name="T",
                    enabled=True,
                    in_doubt=policy,  # type: ignore[arg-type]
                    assistant=Assistant(
                        provider="anthropic",
                        base_url="http://assistant",
                        api_key=Secret("key"),
                        model="m",
                        deadline_seconds=3600.0,
                        history_messages=0,
                    ),
                    texts=Texts(),
                    limits=Limits(replies_per_conversation_per_minute=0),
                    intents=Intents(),
                )
            ],
            channels=[
                Channel(
                    tenant_id=tenant,
                    id=channel,
                    slug="main",
                    endpoint_id=channel,
                    address="1001",
                    base_url="http://provider",
                    token=Secret("token"),
                    enabled=True,
                    session_gap_hours=24.0,
                    answer_within_hours=24.0,
                    late="answer",
                )
            ],
        )

    def _read(self, query: str, **values: object) -> list[dict[str, Any]]:
        cursor = self.conn.cursor(row_factory=dict_row)
        return cursor.execute(query.encode(), {"tenant": self.here.tenant, **values}).fetchall()

    # --- people ---

    def _place(self, lane: UUID, body: str, **more: Any) -> str:
        placed = self.here.placed(lane, body, channel=self.channel, **more)
        [outcome] = _now(inbox.ingest(self.world.wire, [placed]))
        assert outcome.verdict in ("stored", "duplicate"), outcome
        if outcome.woke:
            self._ring()
        return str(outcome.verdict)

    def _ring(self) -> None:
        for process in self.world.processes:
            if process.runs:
                process.lanes.ring()
        self.world.settle()

    @rule(which=some, long=st.booleans(), then=ends)
    def ingest(self, which: int, long: bool, then: list[End]) -> None:
        """A message; the model knows it before anybody can work on it."""
        lane = self.model.lanes[which % 2]
        said = Said(id=f"wamid.{uuid4()}", body=f"{'long' if long else 'm'}{next(self.numbers)}")
        self.model.said[lane].append(said)
        assert self._place(lane, said.body, id=said.id) == "stored"
        if which % 4 == 3:
            assert self._place(lane, said.body, id=said.id) == "duplicate"
        self._go_on(then)

    def _said(self, which: int) -> tuple[UUID, Said]:
        return [(lane, said) for lane, all in self.model.said.items() for said in all][which % self._spoken()]

    def _spoken(self) -> int:
        return sum(map(len, self.model.said.values()))

    @precondition(lambda self: self._spoken())
    @rule(which=some, revoked=st.booleans())
    def edit_or_revoke(self, which: int, revoked: bool) -> None:
        lane, said = self._said(which)
        self.model.versions[lane] += 1
        if revoked:
            said.revoked = True
            self._place(lane, "", kind="revoke", about=said.id)
        else:
            said.body += "e"
            self._place(lane, said.body, kind="edit", about=said.id)

    @precondition(lambda self: self._spoken())
    @rule(which=some, seconds=st.sampled_from([None, 1.0, 4.0]))
    def pause(self, which: int, seconds: float | None) -> None:
        lane = self.model.lanes[which % 2]
        until = None if seconds is None else self.model.now + seconds
        self.model.paused[lane] = -1.0 if until is None else until
        at = None if until is None else self.epoch + timedelta(seconds=until)
        assert _now(lanes.pause(self.world.wire, (self.here.tenant, lane), at)) is not None

    # --- the assistant and the provider ---

    def _calls(self, *, assistant: bool) -> list[Call]:
        return [
            c for p in self.world.processes if p.runs for c in p.calls if c.for_assistant is assistant and not c.written
        ]

    @precondition(lambda self: self._calls(assistant=True))
    @rule(which=some)
    def ai_done(self, which: int) -> None:
        calls = self._calls(assistant=True)
        self.world.answer(calls[which % len(calls)])

    @precondition(lambda self: self._calls(assistant=False))
    @rule(which=some, outcome=st.sampled_from(get_args(Outcome)))
    def send(self, which: int, outcome: Outcome) -> None:
        calls = self._calls(assistant=False)
        self.world.send(calls[which % len(calls)], outcome)

    def _go_on(self, ends: list[End]) -> None:
        """All assistants that are waited for answer, and POSTs end so, one after the other; nothing where it is empty."""
        for outcome, status in ends:
            while calls := self._calls(assistant=True):
                self.world.answer(calls[0])
            calls = self._calls(assistant=False)
            if calls and self.world.send(calls[0], outcome) and status and self.model.listening():
                self._tell(*self._taken()[-1], status)

    def _taken(self) -> list[tuple[UUID, int]]:
        taken = [(a.taken, key) for key, a in self.model.attempts.items() if a.taken is not None]
        return [key for _, key in sorted(taken, key=lambda each: each[0])]

    @precondition(lambda self: self.model.listening() and self._taken())
    @rule(which=some, status=st.sampled_from(STATUSES))
    def echo(self, which: int, status: str) -> None:
        taken = self._taken()
        self._tell(*taken[-1 - which % len(taken)], status)

    def _tell(self, chunk: UUID, n: int, status: str) -> None:
        reported = self.here.status(chunk, status, attempt=n, channel=self.channel, endpoint=self.channel)
        self.model.told(chunk, n, status)
        [effect] = _now(statuses.apply(self.world.wire, [reported]))
        assert effect.known
        if effect.woke:
            self._ring()

    # --- doors ---

    def _door(self, place: str, *, everything: bool = False, missed: UUID | None = None) -> None:
        if everything or self.model.doors.get(place, -1.0) <= self.model.now:
            self.model.deaf_until = self.model.now
        named = [] if missed is None else [(self.here.tenant, missed)]
        _now(doors.beat(self.world.wire, place, DOOR_LEASE, named, everything=everything))
        self.model.doors[place] = self.model.now + DOOR_LEASE

    @precondition(lambda self: self._taken())
    @rule(which=some, place=st.sampled_from("ab"), what=st.sampled_from(["dies", "closes", "opens", "misses"]))
    def door(self, which: int, place: str, what: str) -> None:
        """`misses`: a status came and could not be taken."""
        here = place in self.doors
        if what == "opens":
            self._door(place, everything=not here)
            self.doors = sorted({*self.doors, place})
        elif what == "misses" and here:
            chunk, _ = self._taken()[-1 - which % len(self._taken())]
            self.model.missed[chunk] = self.model.now
            self._door(place, missed=chunk)
        elif what == "dies" and here:
            self.doors.remove(place)
        elif what == "closes" and here:
            self.doors.remove(place)
            _now(doors.close(self.world.wire, place))
            del self.model.doors[place]
        self.model.time_passes()

    # --- time ---

    @rule(seconds=st.sampled_from([0.5, 2.0, 4.0, 4.0, 8.0]), then=ends)
    def advance_clock(self, seconds: float, then: list[End]) -> None:
        while seconds > 0:
            self._tick(min(TICK, seconds))
            seconds -= TICK
        self._go_on(then)

    def _tick(self, seconds: float) -> None:
        self.model.time_passes()
        self.world.pass_time(seconds)
        for place in self.doors:
            self._door(place)
        self.model.time_passes()

    # --- workers ---

    def _living(self, *, stopped: bool = False) -> list[Process]:
        return [p for p in self.world.processes if not p.dead and p.stopped is stopped]

    @precondition(lambda self: len(self._living()) < 2)
    @rule()
    def begin(self) -> None:
        self.world.begin()

    @precondition(lambda self: self._living())
    @rule(which=some, how=st.sampled_from(["killed", "stopped", "drained"]))
    def crash(self, which: int, how: str) -> None:
        living = self._living()
        process = living[which % len(living)]
        {"killed": process.kill, "stopped": process.stop, "drained": process.drain}[how]()
        self.world.settle()

    @precondition(lambda self: self._living(stopped=True))
    @rule(which=some, outcome=st.sampled_from([None, "taken", "cut", "hung", "lost"]))
    def resume_stale_worker(self, which: int, outcome: Outcome | None) -> None:
        """`outcome`: of a POST that it goes on with first of all; whether it may was asked before it was stopped, or is now."""
        stopped = self._living(stopped=True)
        process = stopped[which % len(stopped)]
        process.cont()
        for call in process.calls:
            if outcome is not None and not (call.written or call.for_assistant):
                self.world.send(call, outcome, late=call.checked and which % 2 == 0)
                break
        self.world.settle()

    @rule(statement=st.sampled_from(FAULTED), fault=st.sampled_from(get_args(Fault)))
    def arm(self, statement: str, fault: Fault) -> None:
        """The next statement of this name goes wrong so."""
        self.world.armed[statement] = fault

    @rule(which=some, statement=st.sampled_from(["settle", "intend", "record", "memo"]), then=ends)
    def overtake(self, which: int, statement: str, then: list[End]) -> None:
        """A worker is stopped in the midst of an answer, and goes on once another may have taken its lane over."""
        while len(self._living()) < 2:
            self.world.begin()
        self.world.armed = {statement: "stopped before"}
        self.ingest(which, False, then or [("taken", None)])
        self.advance_clock(3 * TICK, then)
        if self._living(stopped=True):
            self.resume_stale_worker(which, None)

    @precondition(lambda self: self.world.delayed)
    @rule(which=some)
    def arrive(self, which: int) -> None:
        self.world.arrive(self.world.delayed[which % len(self.world.delayed)])

    # --- what must hold ---

    @invariant()
    def holds(self) -> None:
        if self.model.moved:
            self.model.look()
        self.model.violations += self.failed
        assert not self.model.violations, self.model.violations

    def teardown(self) -> None:
        """The faults are over: whoever is left finishes everything."""
        if not hasattr(self, "world"):
            return
        try:
            if sys.exc_info()[0] is None:  # else the example has ended before
                self._finish()
                self.model.look_back()
                self.model.violations += self.failed
                assert not self.model.violations, self.model.violations
        finally:
            self.world.end()

    def _finish(self) -> None:
        while self.world.delayed:
            self.world.arrive(self.world.delayed[0])
        self.world.armed.clear()
        for process in self.world.processes:
            process.cont()
        self._door("a", everything="a" not in self.doors)
        self.doors = ["a"]
        for place in [place for place in self.model.doors if place != "a"]:
            _now(doors.close(self.world.wire, place))
            del self.model.doors[place]
        self._ring()
        for _ in range(PATIENCE):
            if not self._living():  # the last one may have ended only now, as it was told to
                self.world.begin()
            while calls := self._calls(assistant=True):
                self.world.answer(calls[0])
            while calls := self._calls(assistant=False):
                self.world.send(calls[0], "taken")
            if not self._read(LEFT, lanes=self.model.lanes):
                return
            self._tick(TICK)
        self.model.expect(False, "nothing is stuck")


def _now(work: Any) -> Any:
    """The result of a store function on a connection that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waited")


def _told(logger: Any, name: str, event: MutableMapping[str, Any]) -> str:
    """A worker that meets an error it did not expect says so, and lives on."""
    if event["event"] == "lane failed":
        Couriers.failed.append(repr(event["error"]))
    return ""


@pytest.fixture
def machine(database: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Runs the machine, so many examples of it, on one database."""
    for module in CLOCKED:
        monkeypatch.setattr(f"{module}.time", CLOCK)
    monkeypatch.setitem(cast(dict[str, Any], Budget.__init__.__kwdefaults__), "clock", CLOCK.monotonic)
    before = structlog.get_config()
    structlog.configure(
        processors=[_told],
        wrapper_class=structlog.make_filtering_bound_logger("error"),
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    # The tables are empty when the statements are planned, once for all examples.
    courier = db.options("qasid_courier", timeout=10.0, extra="-c enable_seqscan=off")
    with (
        asyncio.Runner() as runner,
        psycopg.connect(database.superuser_url, autocommit=True) as owner,
        psycopg.connect(database.url, autocommit=True, **courier) as conn,
    ):
        owner.execute(SHIFTED)
        laid = ground(database.url, database.superuser_url)
        here = runner.run(laid.__aenter__())

        def run(examples: int, *, shrink: bool = True) -> None:
            fields = {"here": here, "owner": owner, "conn": conn, "epoch": datetime.now(UTC)}
            run_state_machine_as_test(
                type("Couriers", (Couriers,), fields),
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=50 if THOROUGH else 30,
                    derandomize=not (THOROUGH and shrink),
                    database=None,
                    deadline=None,
                    report_multiple_bugs=False,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
                ),
            )

        yield run
        runner.run(laid.__aexit__(None, None, None))
    structlog.configure(**before)


@pytest.mark.timeout(420 + EXAMPLES)  # a failure is made small for up to five minutes
def test_nothing_lost_nothing_twice_whatever_happens_in_whatever_order(machine: Callable[..., None]) -> None:
    """The invariants hold after every step, and once the faults are over all that was asked is answered."""
    machine(EXAMPLES)


def _reworded(module: Any, name: str, old: str, new: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A statement of the store with a mistake in it."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        statement = getattr(module, name)
        assert old in statement
        monkeypatch.setattr(module, name, statement.replace(old, new))

    return plant


def _replaced(owner: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


OWNED = "l.owner IS DISTINCT FROM %(worker)s OR l.token <> i.token"


def _token_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    _reworded(chunks, "INTENT", OWNED, "false")(monkeypatch)
    _reworded(settlements, "SETTLE", OWNED, "false")(monkeypatch)


def _lease_from_a_clock_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever claims, beats or buries looks at a clock of its own."""
    for name, alive in (("CLAIM", ">"), ("BEAT", ">"), ("BURY_WORKERS", "<=")):
        lasts = f"alive_until {alive} qasid_now()"
        _reworded(lanes, name, lasts, f"{lasts} - interval '1 minute'")(monkeypatch)


PLANTED = {
    "token not checked": _token_not_checked,
    "lease from a clock that is behind": _lease_from_a_clock_that_is_behind,
    "resend on a read timeout": _replaced(simulation, "InDoubt", NeverLeft),
    "resend without silence": _replaced(Delivery, "_silence", lambda self, chunk: 0.0),
    "resend while nobody listens": _reworded(
        turns,
        "OPEN",
        "(SELECT CASE WHEN bool_and(alive_until > qasid_now()) THEN min(beaten_at) END FROM doors)",
        "qasid_now()",
    ),
    "paused not checked": _reworded(settlements, "SETTLE", "l.paused_until > qasid_now()", "false"),
    "Retry-After ignored": _reworded(chunks, "INTENT", "w.until > qasid_now()", "false"),
    "version not checked": _reworded(settlements, "SETTLE", "l.version <> coalesce(i.version, l.version)", "false"),
    "lane forgotten at its release": _reworded(
        lanes,
        "RELEASE",
        "WHEN l.head_seq > greatest(l.done_seq, h.done_seq) THEN least(l.run_at, qasid_now()) END",
        "END",
    ),
}


# Found within the same examples, but not in the first seconds.
LATE = (
    "lease not minded at the last check",
    "resend while nobody listens",
    "paused not checked",
    "Retry-After ignored",
)
late = pytest.mark.skipif(not THOROUGH, reason="found late: with STATE_MACHINE_EXAMPLES=5000")


@pytest.mark.timeout(420)
@pytest.mark.parametrize("bug", [pytest.param(bug, marks=late if bug in LATE else ()) for bug in PLANTED])
def test_each_planted_bug_is_found(bug: str, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a thousand examples, the same at every run, without any clock but the tests' own."""
    PLANTED[bug](monkeypatch)
    with pytest.raises(AssertionError, match=r"^\['at "):
        machine(1_000, shrink=False)
