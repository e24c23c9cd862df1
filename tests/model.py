"""The small model: what the workers may do, reckoned from what was said, sent and told, never with the store's own words.

It is asked at each statement and each POST. A violation is kept until `violations` is read, since workers survive errors.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any
from uuid import UUID

from msgspec import Struct, field

from app.settings import Settings
from tests.simulation import RETRY_AFTER, TAKEN, Outcome
from workers.lane import DOOR_GONE

# Microseconds of the server's timestamps against our floats.
NEAR = 0.001
STILL = frozenset({"register", "beat", "leave", "memo", "bury doors"})
IDLE = frozenset({"claim", "bury", "disown"})
HEARD = {"sent": 3, "delivered": 4, "read": 5, "played": 6}
NOT_TAKEN = frozenset({"never_left", "refused", "held"})
Rows = list[dict[str, Any]]


class Said(Struct):
    """A message that is to be answered, as it stands."""

    id: str
    body: str
    revoked: bool = False


class Piece(Struct):
    """A chunk: where it stands in its lane."""

    lane: UUID
    place: tuple[int, int]


class Attempt(Struct):
    """An intent that was committed, and what came of it. `told`: the fact recorded; `heard`: the furthest status, 0 failed."""

    token: int
    begun: float
    written: float | None = None
    taken: float | None = None
    late: bool = False
    told: str | None = None
    heard: int | None = None


class Silence(Struct):
    """What was known when a lane was opened."""

    at: float
    quiet_since: float
    hearing: bool
    flowing: bool


class Model(Struct):
    """`read` asks the database for rows; `lanes`, `policy`: of this example. `held`: by whom, under which token."""

    settings: Settings
    policy: str
    lanes: list[UUID]
    read: Callable[..., Rows]
    said: dict[UUID, list[Said]]
    held: dict[UUID, tuple[UUID, int] | None]
    tokens: dict[UUID, int]
    versions: dict[UUID, int]
    now: float = 0.0
    violations: list[str] = field(default_factory=list)
    paused: dict[UUID, float] = field(default_factory=dict)
    leases: dict[UUID, float] = field(default_factory=dict)
    doors: dict[str, float] = field(default_factory=dict)
    deaf_until: float = 0.0
    missed: dict[UUID, float] = field(default_factory=dict)
    held_until: float = 0.0
    told_to_wait: dict[UUID, float] = field(default_factory=dict)
    pieces: dict[UUID, Piece] = field(default_factory=dict)
    attempts: dict[tuple[UUID, int], Attempt] = field(default_factory=dict)
    silences: dict[tuple[UUID | None, UUID], Silence] = field(default_factory=dict)
    moved: bool = True
    states: dict[UUID, str] = field(default_factory=dict)

    def expect(self, holds: bool, rule: str) -> None:
        """Note the rule, unless it holds."""
        if not holds:
            self.violations.append(f"at {self.now:g} s: {rule}")

    # --- statements ---

    def after(
        self, kind: str, worker: UUID | None, parameters: Mapping[str, Any], rows: list[Any], touched: int
    ) -> None:
        if kind not in STILL and (touched or kind not in IDLE):
            self.moved = True
        match kind:
            case "register" | "beat" | "leave":
                self._leased(kind, parameters, bool(rows))
            case "claim":
                for claim in rows:
                    lane = claim.conversation_id
                    self.expect(self.held[lane] is None, "only a lane that nobody has is claimed")
                    self.expect(self._alive(parameters["worker"]), "only a worker whose lease lasts claims")
                    self.tokens[lane] += 1
                    self.expect(claim.token == self.tokens[lane], "each claim has a token of its own")
                    self.held[lane] = parameters["worker"], claim.token
            case "release":
                for lane, token in zip(parameters["conversation_id"], parameters["token"], strict=True):
                    if self.held[lane] == (parameters["worker"], token):
                        self.held[lane] = None
            case "disown":
                for lane, by in self.held.items():
                    if by and by[0] == parameters["worker"] and lane not in parameters["conversation_id"]:
                        self.held[lane] = None
            case "bury" if touched:
                for lane, row in self._lanes().items():
                    if (by := self.held[lane]) and row["owner"] is None:
                        self.expect(not self._alive(by[0]), "no lane is taken from a worker whose lease lasts")
                        self.held[lane] = None
            case "bury doors":
                for place in [p for p, until in self.doors.items() if until < self.now - DOOR_GONE - NEAR]:
                    del self.doors[place]
                    self.deaf_until = self.now
            case "open":
                for lane_id in parameters["conversation_id"]:
                    self.silences[worker, lane_id] = self._silence()
            case "settle":
                self._settled(parameters, [fence for fence, _, _ in rows])
            case "intend":
                for i, (fence, _) in enumerate(rows):
                    if fence == "ok":
                        lane_id, token = parameters["conversation_id"][i], parameters["token"][i]
                        chunk = parameters["chunk_id"][i]
                        self._fenced(parameters["worker"], lane_id, token)
                        self._intended(worker, lane_id, token, chunk, parameters["n"][i])
            case "record":
                for i in range(len(rows)):
                    self._recorded({name: of[i] for name, of in parameters.items()})

    def _lanes(self) -> dict[UUID, dict[str, Any]]:
        return {row["conversation_id"]: row for row in self.read(LANES, lanes=self.lanes)}

    def _alive(self, worker: UUID) -> bool:
        return self.leases.get(worker, -1.0) > self.now

    def _leased(self, kind: str, parameters: Mapping[str, Any], known: bool) -> None:
        worker = parameters["worker"]
        if kind == "leave":
            self.leases.pop(worker, None)
            return
        if kind == "beat":
            self.expect(known == self._alive(worker), "a beat prolongs a lease that lasts, and revives none")
        if kind == "register" or known:
            self.leases[worker] = self.now + parameters["lease"]

    def _fenced(self, worker: UUID, lane: UUID, token: int) -> None:
        self.expect(self.held[lane] == (worker, token), "only the owner commits, under the present token")

    # --- the answer ---

    def _settled(self, parameters: Mapping[str, Any], fences: list[str]) -> None:
        for ord, fence in enumerate(fences, 1):
            i = ord - 1
            if fence not in ("ok", "sending"):
                continue
            lane, token, last = parameters["conversation_id"][i], parameters["token"][i], parameters["last_seq"][i]
            self._fenced(parameters["worker"], lane, token)
            standing = [s.body for s in self.said[lane][last - parameters["members"][i] : last] if not s.revoked]
            if parameters["version"][i] is not None:
                self.expect(parameters["version"][i] == self.versions[lane], "an answer rests on what stands")
                outcome, body = parameters["outcome"][i], parameters["body"][i]
                self.expect((outcome == "revoked") == (not standing), "what is taken back is not answered")
                if outcome == "answered":
                    self.expect(body.split("\n")[0] == " ".join(["re", *standing]), f"{body[:40]!r} answers {standing}")
            for of, id, no in zip(parameters["piece_of"], parameters["piece_id"], parameters["piece_no"], strict=True):
                if of == ord:
                    self.pieces[id] = Piece(lane, (last, no))
                    if no == 1 and fence == "sending":
                        self._intended(None, lane, token, id, 1)

    # --- intent, POST, fact ---

    def _intended(self, worker: UUID | None, lane: UUID, token: int, chunk: UUID, n: int) -> None:
        self.expect(self.paused.get(lane, -1.0) <= self.now, "a paused lane commits no intent")
        self.expect(self.held_until <= self.now + NEAR, "a number that must wait commits no intent")
        self.expect((chunk, n) not in self.attempts, "each attempt has a number of its own")
        if n > 1 and (last := self.attempts.get((chunk, n - 1))) and last.told not in NOT_TAKEN:
            self.expect(self.policy == "resend", "with park nothing in doubt is sent again")
            self.expect(last.told != "accepted" and last.heard is None, "what is known of is not sent again")
            heard = [self.attempts[chunk, m].heard for m in range(1, n) if (chunk, m) in self.attempts]
            self.expect(not any(heard), "what has arrived is not sent again")
            silence = self.silences[worker, lane]
            since = last.begun if last.written is None else last.written
            missed = self.missed.get(chunk, -1.0)
            missed = missed if missed <= silence.at else -1.0
            quiet = silence.at - max(since, missed, silence.quiet_since) >= self.settings.in_doubt_seconds - NEAR
            enough = (quiet and silence.hearing and silence.flowing) or (
                silence.at - since >= self.settings.in_doubt_max_seconds - NEAR
            )
            self.expect(enough, f"nothing is sent again before silence has said enough: {silence} since {since:g}")
        self.attempts[chunk, n] = Attempt(token, self.now)

    def posted(self, worker: UUID, chunk: UUID, n: int, outcome: Outcome, *, late: bool) -> None:
        """The provider reads a request. `late`: its process was stopped between the last check and this."""
        attempt = self.attempts.get((chunk, n))
        if attempt is None:
            return self.expect(False, "the intent is committed before the POST")
        self.expect(attempt.written is None, "an attempt is one POST")
        attempt.written, attempt.late = self.now, late
        if not late:
            self.expect(attempt.told is None, "an attempt whose fact is known is not sent")
            ends = self.leases.get(worker, -1.0)
            self.expect(ends >= self.now + self.settings.send_timeout_seconds - NEAR, "a send ends within the lease")
            self.expect(
                self.told_to_wait.get(worker, 0.0) <= self.now + NEAR, "who was just told to wait sends nothing"
            )
            self._gate(chunk)
        if outcome in ("throttled", "503"):
            self.told_to_wait[worker] = self.now + RETRY_AFTER
        if outcome in TAKEN:
            attempt.taken = self.now
            if self.policy == "park" and not late:
                before = [m for (id, m), a in self.attempts.items() if id == chunk and m != n and a.taken is not None]
                self.expect(not before, "with park nothing is taken twice")
        return None

    def _gate(self, chunk: UUID) -> None:
        piece = self.pieces[chunk]
        rows = self.read(STATES, lane=piece.lane)
        before = [
            r for r in rows if (r["seq"], r["no"]) < piece.place and r["state"] not in ("failed", "parked", "cancelled")
        ]
        if not before:
            return
        tries = [a for (of, _), a in self.attempts.items() if of == before[-1]["id"]]
        heard = any(a.heard is not None and a.heard != HEARD["sent"] for a in tries)
        wait = self.settings.order_wait_seconds - NEAR
        waited = any(a.taken is not None and self.now - a.taken >= wait for a in tries)
        self.expect(heard or waited, f"part k + 1 waits for part k, which is {before[-1]['state']}")

    def _recorded(self, of: dict[str, Any]) -> None:
        attempt = self.attempts.get((of["chunk_id"], of["n"]))
        if of["holds"] is not None:
            self.held_until = max(self.held_until, self.now + of["due_in"])
        if attempt is None or attempt.token != of["token"]:
            return
        if of["attempt"] in NOT_TAKEN:
            self.expect(attempt.taken is None, f"what the provider took is not recorded as {of['attempt']}")
        if of["attempt"] == "accepted":
            self.expect(attempt.taken is not None, "what is recorded as accepted was taken")
        attempt.told = of["attempt"] if attempt.told in (None, "in_doubt") else attempt.told

    # --- statuses and doors ---

    def listening(self) -> bool:
        """Whether statuses can come in, as far as the database can know."""
        return bool(self.doors) and all(until > self.now for until in self.doors.values())

    def time_passes(self) -> None:
        if not self.listening():
            self.deaf_until = self.now

    def told(self, chunk: UUID, n: int, status: str) -> None:
        """A status is applied."""
        attempt = self.attempts[chunk, n]
        attempt.heard = max(attempt.heard or 0, HEARD.get(status, 0))

    def _silence(self) -> Silence:
        newest = sorted(
            (
                (a.begun, a.heard is not None)
                for a in self.attempts.values()
                if a.begun < self.now - self.settings.in_doubt_seconds / 2
                and (a.told == "accepted" or a.heard is not None)
            ),
            reverse=True,
        )[:20]
        unheard = sum(not heard for _, heard in newest)
        return Silence(self.now, self.deaf_until, self.listening(), 10 * unheard <= len(newest))

    # --- after each step ---

    def look(self) -> None:
        """The invariants that rows show."""
        self.moved = False
        [row] = self.read(LOOK, lanes=self.lanes)
        for lane in row["lanes"]:
            self.expect(
                lane["done_seq"] == lane["head_seq"] or lane["owner"] is not None or lane["run_at"] is not None,
                "what is left to do has an owner or a time",
            )
            id, by = UUID(lane["conversation_id"]), lane["owner"] and (UUID(lane["owner"]), lane["token"])
            self.expect(by == self.held[id], f"the model knows who has the lane: {self.held[id]}, not {by}")
            self.expect(lane["version"] == self.versions[id], "each change raises the version")
            self.expect(
                lane["done_seq"] <= lane["head_seq"] == len(self.said[UUID(lane["conversation_id"])]), "each is entered"
            )
        for entry in row["outbox"]:
            n = len(self.said[UUID(entry["conversation_id"])])
            self.expect((entry["n"], entry["last"], entry["messages"]) == (n, n, n), "the outbox is gapless, each once")
        for chunk in row["chunks"]:
            id, state = UUID(chunk["id"]), chunk["state"]
            before = self.states.get(id, state)
            self.states[id] = state
            self.expect(state == before or state in ONWARD.get(before, ANY), f"a chunk goes on, not {before} → {state}")
        self.expect(not row["open"], "at most one attempt of a chunk is open")

    def look_back(self) -> None:
        """What must be true once everything is over."""
        self.look()
        for row in self._lanes().values():
            self.expect((row["done_seq"], row["owner"]) == (row["head_seq"], None), "everything is worked off")
        for lane in self.lanes:
            turns = self.read(TURNS, lane=lane)
            answered = [seq for turn in turns for seq in range(turn["first_seq"], turn["last_seq"] + 1)]
            self.expect(answered == list(range(1, len(self.said[lane]) + 1)), "each message is of exactly one turn")
            self.expect(all(turn["settled"] == 1 for turn in turns), "each turn is settled once")
            first: dict[UUID, float] = {}
            for (id, _), attempt in self.attempts.items():
                if attempt.taken is not None and not attempt.late and self.pieces[id].lane == lane:
                    first[id] = min(attempt.taken, first.get(id, attempt.taken))
            order = sorted(first, key=lambda chunk: self.pieces[chunk].place)
            self.expect(all(first[a] <= first[b] for a, b in pairwise(order)), "chunks come in order")
        ended = set(self.states.values()) <= ENDED
        self.expect(ended, f"each chunk has ended: {self.states.values()}")


ENDED = {"accepted", "sent", "delivered", "read", "played", "failed", "parked", "cancelled"}
ANY = ENDED | {"ready", "sending", "in_doubt"}
ONWARD: dict[str, set[str]] = {
    "accepted": {"sent", "delivered", "read", "played", "failed"},
    "sent": {"delivered", "read", "played", "failed"},
    "delivered": {"read", "played"},
    "read": {"played"},
    "played": set(),
    "failed": {"delivered", "read", "played"},  # an earlier attempt has come after all
    "cancelled": set(),
    "parked": {"accepted", "sent", "delivered", "read", "played", "failed"},
}
LOOK = """
WITH mine AS MATERIALIZED (SELECT * FROM chunks WHERE tenant_id = %(tenant)s AND conversation_id = ANY(%(lanes)s))
SELECT
  (SELECT json_agg(l) FROM (SELECT conversation_id, owner, token, version, run_at, head_seq, done_seq FROM lanes
                            WHERE tenant_id = %(tenant)s AND conversation_id = ANY(%(lanes)s)) l) AS lanes,
  (SELECT coalesce(json_agg(o), '[]') FROM (
     SELECT conversation_id, count(*) AS n, max(seq) AS last, count(DISTINCT message_id) AS messages FROM outbox
     WHERE tenant_id = %(tenant)s AND conversation_id = ANY(%(lanes)s) GROUP BY 1) o) AS outbox,
  (SELECT coalesce(json_agg(json_build_object('id', id, 'state', state)), '[]') FROM mine) AS chunks,
  EXISTS (SELECT FROM attempts a JOIN mine c ON (a.tenant_id, a.chunk_id) = (c.tenant_id, c.id)
          WHERE a.state = 'sending' GROUP BY c.id HAVING count(*) > 1) AS open
"""
STATES = """
SELECT id, seq, no, state FROM chunks WHERE tenant_id = %(tenant)s AND conversation_id = %(lane)s ORDER BY seq, no
"""
LANES = """
SELECT conversation_id, owner, head_seq, done_seq FROM lanes WHERE tenant_id = %(tenant)s AND conversation_id = ANY(%(lanes)s)
"""
TURNS = """
SELECT t.first_seq, t.last_seq, (SELECT count(*) FROM usage u WHERE (u.tenant_id, u.turn_id) = (t.tenant_id, t.id)) AS settled
FROM turns t WHERE tenant_id = %(tenant)s AND conversation_id = %(lane)s ORDER BY first_seq
"""
