"""A chunk's states (docs/chunks.md), moved by nothing but the store's functions: each arrow, and none that is not drawn.

Fence the intent, never the fact: what happened is always recorded, and never takes back what is known better.
"""

from typing import Any
from uuid import UUID, uuid4

import pytest

from app.store import chunks, doors, lanes
from app.store.chunks import Fact, Intent
from app.store.lanes import Claim
from app.store.turns import Opening
from tests import ground as shared
from tests.ground import Ground

pytestmark = pytest.mark.anyio

here = shared.here


class Answer:
    """A settled turn: its lane, claim and chunks."""

    def __init__(self, here: Ground, worker: UUID, claim: Claim, ids: list[UUID]) -> None:
        self.here, self.worker, self.claim, self.ids = here, worker, claim, ids

    @property
    def id(self) -> UUID:
        return self.ids[0]

    async def intend(self, n: int = 1, *, chunk: int = 0) -> str:
        [permission] = await chunks.intend(self.here.conn, self.worker, [Intent(self.claim, self.ids[chunk], n)])
        return permission.fence

    async def fact(self, attempt: str, chunk: str, *, n: int = 1, **more: Any) -> str:
        """What became of attempt `n`; the chunk's state afterwards."""
        fact = Fact(claim=self.claim, chunk_id=self.id, n=n, attempt=attempt, chunk=chunk, **more)  # type: ignore[arg-type]
        [state] = await chunks.record(self.here.conn, [fact])
        assert state == await self.state()
        return state

    async def told(self, *names: str, n: int = 1, **more: Any) -> list[str]:
        """Statuses of attempt `n`, in one batch; the chunk's state afterwards, and each that moved its attempt."""
        effects = await self.here.told(*(self.here.status(self.id, name, attempt=n, **more) for name in names))
        return [await self.state(), *(name for name, e in zip(names, effects, strict=True) if e.moved)]

    async def abandon(self) -> list[str]:
        return await chunks.abandon(self.here.conn, self.worker, self.claim, 1, "told so")

    async def row(self, chunk: int = 0) -> dict[str, Any]:
        [row] = await self.here.all("SELECT * FROM chunks WHERE id = %s", self.ids[chunk])
        return row

    async def state(self, chunk: int = 0) -> str:
        return str((await self.row(chunk))["state"])

    async def attempts(self) -> list[str]:
        rows = await self.here.all("SELECT state FROM attempts WHERE chunk_id = %s ORDER BY n", self.id)
        return [row["state"] for row in rows]

    async def again(self) -> Opening:
        """The worker is dead; another has buried it, claimed the lane and opened it."""
        await lanes.leave(self.here.conn, self.worker)
        await lanes.bury(self.here.conn)
        self.worker = await self.here.worker()
        claims = await self.here.claim(self.worker)
        [self.claim] = [claim for claim in claims if claim.conversation_id == self.claim.conversation_id]
        return await self.here.open(self.claim)


async def answer(here: Ground, *bodies: str, send: bool = False, channel: UUID | None = None) -> Answer:
    """A question claimed, opened and settled with these chunks; with `send` the first one's intent is committed too."""
    lane = await here.lane(channel=channel)
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    [claim] = [claim for claim in await here.claim(worker) if claim.conversation_id == lane]
    turn = (await here.open(claim)).turn
    assert turn
    fence, ids = await here.settle(worker, claim, turn, *(bodies or ("one", "two")), send=send)
    assert fence == ("sending" if send else "ok")
    return Answer(here, worker, claim, ids)


async def in_state(here: Ground, state: str, *, channel: UUID | None = None) -> Answer:
    """A chunk brought to a state in the usual way, by attempt 1."""
    it = await answer(here, send=state not in ("ready", "cancelled"), channel=channel)
    if state in ("in_doubt", "parked"):
        await it.fact("in_doubt", "in_doubt")
    elif state in ("accepted", "sent", "delivered", "read", "played"):
        await it.fact("accepted", "accepted", provider_id="wamid.1")
        if state != "accepted":
            await it.told(state)
    elif state == "failed":
        await it.fact("refused", "failed", code=131026)
    if state in ("parked", "cancelled"):
        await it.abandon()
    assert await it.state() == state
    return it


STATES = [
    "ready",
    "sending",
    "in_doubt",
    "accepted",
    "sent",
    "delivered",
    "read",
    "played",
    "failed",
    "parked",
    "cancelled",
]

# For each event what it makes of each state that it changes; all else stays. A chunk without an attempt (ready,
# cancelled) has nothing that a fact or status could be about.
ARROWS: dict[str, dict[str, str]] = {
    "intend 1": {"ready": "sending"},
    "intend 2": {"in_doubt": "sending"},
    "fact accepted": {"sending": "accepted", "in_doubt": "accepted", "parked": "accepted"},
    "fact refused": {"sending": "ready", "in_doubt": "ready"},
    "fact dead": {"sending": "failed", "in_doubt": "failed"},
    "fact never left": {"sending": "ready", "in_doubt": "ready"},
    "fact in doubt": {"sending": "in_doubt"},
    "status sent": dict.fromkeys(["sending", "in_doubt", "accepted", "parked"], "sent"),
    "status delivered": dict.fromkeys(["sending", "in_doubt", "accepted", "sent", "parked"], "delivered"),
    "status read": dict.fromkeys(["sending", "in_doubt", "accepted", "sent", "delivered", "parked"], "read"),
    "status played": dict.fromkeys(
        ["sending", "in_doubt", "accepted", "sent", "delivered", "read", "parked"], "played"
    ),
    "status failed": dict.fromkeys(["sending", "in_doubt", "accepted", "sent"], "failed"),
    "abandon": {"ready": "cancelled", "in_doubt": "parked"},
}
FACTS: dict[str, tuple[str, str]] = {
    "accepted": ("accepted", "accepted"),
    "refused": ("refused", "ready"),
    "dead": ("refused", "failed"),
    "never left": ("never_left", "ready"),
    "in doubt": ("in_doubt", "in_doubt"),
}


@pytest.mark.parametrize("event", ARROWS)
async def test_each_event_moves_a_chunk_as_drawn_and_no_further(here: Ground, event: str) -> None:
    """Every state × this event: the arrow of the diagram, or no move at all."""
    name, _, what = event.partition(" ")
    for state in STATES:
        if name in ("fact", "status") and state in ("ready", "cancelled"):
            continue
        it = await in_state(here, state)
        if name == "intend":
            assert (await it.intend(int(what)) == "ok") == (state in ARROWS[event])
        elif name == "fact":
            await it.fact(*FACTS[what])
        elif name == "status":
            await it.told(what)
        else:
            await it.abandon()
        assert await it.state() == ARROWS[event].get(state, state), (state, event)


async def test_statuses_before_the_answer_of_the_post_stand(here: Ground) -> None:
    """They may overtake it. The late acceptance adds the provider's id and takes nothing back; nor does a late doubt."""
    it = await in_state(here, "sending")
    assert await it.told("sent", "delivered", provider_id="wamid.early") == ["delivered", "sent", "delivered"]
    assert await it.fact("accepted", "accepted", provider_id="wamid.early") == "delivered"
    [row] = await here.all("SELECT state, provider_id FROM attempts WHERE chunk_id = %s", it.id)
    assert (row["state"], row["provider_id"]) == ("delivered", "wamid.early")
    it = await in_state(here, "sending")
    await it.told("sent")
    assert await it.fact("in_doubt", "in_doubt") == "sent"
    assert await it.attempts() == ["sent"]


async def test_a_batch_of_statuses_moves_once_to_the_furthest(here: Ground) -> None:
    """In whatever order and however often they come in it; `failed` beside `delivered` is no failure."""
    for batch, end in (
        (["read", "sent", "delivered", "sent", "read"], "read"),
        (["failed", "delivered"], "delivered"),
        (["delivered", "failed"], "delivered"),
        (["sent", "failed"], "failed"),
    ):
        it = await in_state(here, "accepted")
        assert (await it.told(*batch))[0] == end, batch
        [kept] = await here.all("SELECT count(*) AS n FROM statuses WHERE chunk_id = %s", it.id)
        assert kept["n"] == len(set(batch))


async def test_a_status_that_comes_again_or_late_moves_nothing(here: Ground) -> None:
    """Redelivered webhooks and reordered ones are kept as history, and no more."""
    it = await in_state(here, "accepted")
    assert await it.told("read") == ["read", "read"]
    assert await it.told("read") == ["read"]
    assert await it.told("delivered") == ["read"]
    assert await it.told("failed") == ["read"]
    rows = await here.all("SELECT status, applied FROM statuses ORDER BY stored_at, status")
    assert {row["status"]: row["applied"] for row in rows} == {"read": True, "delivered": False, "failed": False}


async def test_a_status_for_another_channel_or_tenant_is_not_believed(here: Ground) -> None:
    """Who speaks for one channel cannot say what became of another's messages, even with the right key."""
    it = await in_state(here, "sending")
    other = uuid4()
    await here.act(
        "INSERT INTO channels (tenant_id, id, slug, endpoint_id, address, base_url, token) "
        "SELECT tenant_id, %s, 'second', endpoint_id, '1003', '', '' FROM channels WHERE tenant_id = %s",
        *(other, here.tenant),
    )
    [effect] = await here.told(here.status(it.id, "failed", channel=other))
    assert (effect.known, effect.moved, effect.woke) == (False, False, None)
    [effect] = await here.told(here.status(it.id, "failed", attempt=9))
    assert not effect.known
    [effect] = await here.told(here.status(uuid4(), "delivered"))
    assert not effect.known
    assert await it.state() == "sending" and await it.attempts() == ["sending"]


async def test_a_refusal_speaks_only_for_the_attempt_that_is_open(here: Ground) -> None:
    """A late one of attempt 1 does not touch attempt 2, but is recorded; a late acceptance counts."""
    for fact, end in (
        (("refused", "failed"), "sending"),
        (("in_doubt", "in_doubt"), "sending"),
        (("accepted", "accepted"), "accepted"),
    ):
        it = await in_state(here, "in_doubt")
        assert await it.intend(2) == "ok"
        assert await it.fact(*fact, n=1) == end
        assert (await it.attempts())[1] == "sending"
    assert await it.fact("refused", "ready", n=2) == "accepted"
    assert await it.attempts() == ["accepted", "refused"]


async def test_the_chunk_is_as_far_as_its_best_attempt(here: Ground) -> None:
    """Sent again after silence, then the first one's statuses come after all: delivered is delivered."""
    it = await in_state(here, "in_doubt")
    await it.intend(2)
    await it.fact("accepted", "accepted", n=2)
    assert (await it.told("read", n=1))[0] == "read"
    assert (await it.told("failed", n=2))[0] == "read"
    assert await it.attempts() == ["read", "failed"]


async def test_an_older_attempt_that_was_delivered_after_all_is_what_the_person_has(here: Ground) -> None:
    """Whichever comes first: the newer attempt's failure, or the older one's delivery."""
    for later in ("failed", "delivered"):
        it = await in_state(here, "in_doubt")
        await it.intend(2)
        if later == "delivered":
            assert await it.fact("refused", "failed", n=2, code=131026) == "failed"
        await it.told("delivered")
        if later == "failed":
            await it.fact("refused", "failed", n=2, code=131026)
        assert await it.state() == "delivered"


async def test_what_may_have_arrived_by_an_earlier_attempt_is_parked_not_cancelled(here: Ground) -> None:
    """Its last attempt was refused, the one before it was not: who replays it must know. If it had arrived, so it is told."""
    it = await in_state(here, "in_doubt")
    await it.intend(2)
    assert await it.fact("refused", "ready", n=2) == "ready"
    assert sorted(await it.abandon()) == ["cancelled", "parked"]
    assert await it.state() == "parked"
    assert await it.fact("accepted", "accepted") == "accepted"


async def test_a_failed_status_of_an_older_attempt_ends_nothing(here: Ground) -> None:
    """The attempt that is open now decides."""
    it = await in_state(here, "in_doubt")
    await it.intend(2)
    assert (await it.told("failed", n=1))[0] == "sending"
    assert await it.fact("accepted", "accepted", n=2) == "accepted"


async def test_a_send_under_an_older_token_is_in_doubt_never_ready(here: Ground) -> None:
    """Whoever began it is gone and may have sent it; its own worker, still there, is not taken for gone."""
    it = await in_state(here, "sending")
    await here.open(it.claim)
    assert await it.state() == "sending"
    dead = it.claim
    opening = await it.again()
    assert [chunk.state for chunk in opening.chunks] == ["in_doubt", "ready"]
    assert opening.chunks[0].doubt_for < 1
    assert (await it.state(), await it.attempts()) == ("in_doubt", ["in_doubt"])
    it.claim = dead  # its fact, come late
    assert await it.fact("accepted", "accepted", provider_id="wamid.1") == "accepted"
    assert await it.attempts() == ["accepted"]


async def test_a_fact_speaks_for_the_attempt_of_its_own_claim_alone(here: Ground) -> None:
    """An intent that was never committed has a number that the next claim uses: saying that it never left says nothing of that."""
    it = await answer(here)
    disclaimed = it.claim
    await it.again()
    assert await it.intend(1) == "ok"
    own, it.claim = it.claim, disclaimed
    assert await it.fact("never_left", "ready") == "sending"
    assert await it.attempts() == ["sending"]
    it.claim = own
    assert await it.fact("never_left", "ready") == "ready"


async def test_only_one_attempt_is_ever_open(here: Ground) -> None:
    """An intent follows the last attempt by one, from ready or in doubt; what a status has told makes it moot."""
    it = await answer(here)
    assert await it.intend(2) == "moot"
    assert await it.intend(1) == "ok"
    assert await it.intend(1) == await it.intend(2) == "moot"
    await it.fact("refused", "ready")
    assert await it.intend(1) == "moot"
    assert await it.intend(2) == "ok"
    await it.fact("in_doubt", "in_doubt", n=2)
    await it.told("sent", n=2)
    assert await it.intend(3) == "moot"
    assert await it.attempts() == ["refused", "sent"]


async def test_what_is_to_be_tried_again_waits_as_long_as_told(here: Ground) -> None:
    """`due_in` is kept by the database's clock and cleared by the next intent."""
    it = await in_state(here, "sending")
    await it.fact("refused", "ready", code=131056, reason="later", due_in=64.0)
    chunk = (await here.open(it.claim)).chunks[0]
    assert 62 < chunk.due_in <= 64 and chunk.attempt == 1
    row = await it.row()
    assert (row["code"], row["reason"]) == (131056, "later")
    await here.pass_time(65)
    assert (await here.open(it.claim)).chunks[0].due_in == 0
    await it.intend(2)
    assert (await it.row())["due_at"] is None


async def test_the_gate_opens_by_a_status_or_by_time(here: Ground) -> None:
    """Accepted and sent keep it shut for the bounded wait; delivered, read and failed open it at once."""
    for state, shut in (("accepted", True), ("sent", True), ("delivered", False), ("read", False), ("failed", False)):
        it = await in_state(here, state)
        opens_in = (await here.open(it.claim, order_wait=10.0)).chunks[0].opens_in
        assert (8 < opens_in <= 10) if shut else opens_in == 0
    it = await in_state(here, "accepted")
    await here.pass_time(11)
    assert (await here.open(it.claim, order_wait=10.0)).chunks[0].opens_in == 0


async def test_the_gate_looks_at_what_the_person_may_have_got(here: Ground) -> None:
    """Behind a part that was cancelled the one before it still keeps the next answer back."""
    it = await answer(here, "one", "two", send=True)
    await it.fact("accepted", "accepted")
    await it.abandon()
    await lanes.release(here.conn, it.worker, [lanes.Release(claim=it.claim, done_seq=1)])
    await here.ingest(here.placed(it.claim.conversation_id))
    [it.claim] = await here.claim(it.worker)
    [before] = (await here.open(it.claim)).chunks
    assert before.id == it.id and before.opens_in > 5


async def test_the_gate_spans_turns(here: Ground) -> None:
    """The next turn is shown the last chunk of the one before, with what is left of its wait."""
    it = await in_state(here, "accepted")
    await lanes.release(here.conn, it.worker, [lanes.Release(claim=it.claim, done_seq=1)])
    await here.ingest(here.placed(it.claim.conversation_id, "next"))
    [it.claim] = await here.claim(it.worker)
    await here.act("UPDATE chunks SET state = 'accepted', accepted_at = now() WHERE id = %s", it.ids[1])
    opening = await here.open(it.claim)
    assert opening.turn and opening.turn.first_seq == 2
    [before] = opening.chunks
    assert (before.id, before.seq, before.state) == (it.ids[1], 1, "accepted") and before.opens_in > 8


async def test_a_status_that_opens_a_gate_or_ends_a_doubt_wakes_the_lane(here: Ground) -> None:
    """Only if the lane has something left to do, and it is told as woken only where nobody has it."""
    it = await in_state(here, "accepted")
    [effect] = await here.told(here.status(it.id, "delivered"))
    assert effect.woke is None  # its worker sees it at the release
    assert (await here.row(it.claim.conversation_id))["run_at"] is not None
    for state, status, wakes in (
        ("accepted", "sent", False),
        ("accepted", "delivered", True),
        ("accepted", "failed", True),
        ("in_doubt", "sent", True),
    ):
        it = await in_state(here, state)
        await lanes.release(here.conn, it.worker, [lanes.Release(claim=it.claim, done_seq=None, again_in=60.0)])
        [effect] = await here.told(here.status(it.id, status))
        assert effect.woke == (it.claim.conversation_id if wakes else None), (state, status)
        assert (await here.row(it.claim.conversation_id))["due"] == wakes
    it = await in_state(here, "accepted")
    await lanes.release(here.conn, it.worker, [lanes.Release(claim=it.claim, done_seq=1)])
    [effect] = await here.told(here.status(it.id, "delivered"))
    assert effect.woke is None and (await here.row(it.claim.conversation_id))["run_at"] is None


async def test_silence_means_something_only_while_statuses_flow(here: Ground) -> None:
    """Of what the provider took last, half of the wait ago or longer, nine in ten must have been heard of."""
    it = await in_state(here, "in_doubt")
    assert (await here.open(it.claim)).chunks[0].flowing, "nobody else waits"
    neighbour = await in_state(here, "accepted")
    assert not (await here.open(it.claim)).chunks[0].flowing, "its status may still come"
    await here.pass_time(16)
    assert not (await here.open(it.claim)).chunks[0].flowing
    await neighbour.told("sent")
    for _ in range(8):
        await (await in_state(here, "accepted")).told("sent")
    await in_state(here, "accepted")
    await here.pass_time(60)
    assert (await here.open(it.claim)).chunks[0].flowing, "one of ten may be lost for good"
    await in_state(here, "accepted")
    await here.pass_time(80)
    assert not (await here.open(it.claim)).chunks[0].flowing


async def test_what_flowed_before_the_silence_says_nothing_of_it(here: Ground) -> None:
    """Something sent since it began must have been heard of; unless nobody else waits, or it lasts five times as long."""
    for _ in range(9):
        await (await in_state(here, "accepted")).told("sent")
    await here.pass_time(1)
    it, other = await in_state(here, "in_doubt"), await in_state(here, "in_doubt")
    await here.pass_time(60)
    assert not (await here.open(it.claim)).chunks[0].flowing, "all that was heard of is older"
    await doors.beat(here.conn, "here", 3600, [], everything=True)
    await here.pass_time(61)
    await (await in_state(here, "accepted")).told("sent")
    assert (await here.open(it.claim)).chunks[0].flowing, "one that was sent since"
    await here.pass_time(62)
    await doors.beat(here.conn, "here", 3600, [], everything=True)
    assert not (await here.open(it.claim)).chunks[0].flowing, "the silence has begun anew"
    assert await other.fact("never_left", "ready") == "ready"
    assert (await here.open(it.claim)).chunks[0].flowing, "nobody else waits any more"
    await in_state(here, "in_doubt")
    assert not (await here.open(it.claim)).chunks[0].flowing, "somebody else waits again"
    await here.pass_time(62 + 5 * 30 + 1)
    assert (await here.open(it.claim)).chunks[0].flowing, "five times as long"


async def quiet(here: Ground, it: Answer, at: float) -> float:
    """How long it has been quiet about it, so many seconds from now, with a door that has just beaten."""
    await here.pass_time(at)
    await here.door()
    return (await here.open(it.claim)).chunks[0].quiet_for


async def test_silence_counts_from_the_last_disturbance_of_the_endpoint(here: Ground) -> None:
    """Statuses may have been missed before it; the time in doubt goes on all the same."""
    await here.door()
    it = await in_state(here, "in_doubt")
    assert 19 < await quiet(here, it, 20) < 22
    await doors.beat(here.conn, "here", 3600, [], everything=True)
    assert 4 < await quiet(here, it, 25) < 7
    assert 24 < (await here.open(it.claim)).chunks[0].doubt_for < 27


async def test_silence_is_known_of_up_to_the_last_beat(here: Ground) -> None:
    """What came since then the door may have refused, or died with."""
    await here.door()
    it = await in_state(here, "in_doubt")
    await quiet(here, it, 10)
    await here.pass_time(30)
    assert 9 < (await here.open(it.claim)).chunks[0].quiet_for < 12


async def test_a_status_that_came_and_could_not_be_taken_lets_only_its_own_doubt_begin_anew(here: Ground) -> None:
    """It comes again; what others wait for is none the later for it, and not for ever: the time in doubt goes on."""
    await here.door()
    it, other, settled = (
        await in_state(here, "in_doubt"),
        await in_state(here, "in_doubt"),
        await in_state(here, "sent"),
    )
    await here.pass_time(20)
    missed = [(here.tenant, answer.id) for answer in (it, settled)]
    await doors.beat(here.conn, "here", 3600, missed, everything=False)
    chunk = (await here.open(it.claim)).chunks[0]
    assert chunk.quiet_for < 1 and 19 < chunk.doubt_for < 22
    assert (await here.open(other.claim)).chunks[0].quiet_for > 19
    assert await settled.state() == "sent"


async def test_silence_counts_only_while_every_door_is_open(here: Ground) -> None:
    """With no web process, or one missing, nobody could have heard; one that comes back lets silence begin anew."""
    it = await in_state(here, "in_doubt")
    await here.pass_time(10)
    assert (await here.open(it.claim)).chunks[0].quiet_for == 0, "no door at all"
    assert await quiet(here, it, 11) < 1, "one that opens has missed what came before"
    await doors.beat(here.conn, "there", 3, [], everything=False)
    assert await quiet(here, it, 15) == 0, "one of two is missing"
    await doors.beat(here.conn, "there", 3, [], everything=False)
    assert await quiet(here, it, 16) < 2
    await doors.close(here.conn, "there")
    assert await quiet(here, it, 17) < 2, "what it refused while it was stopping comes again"
    assert 18 < await quiet(here, it, 36) < 22, "it said farewell: nobody waits for it"


async def test_a_door_that_is_gone_for_good_is_buried(here: Ground) -> None:
    """Its provider has tried another by then; what it missed may have come just now."""
    await here.door()
    await doors.beat(here.conn, "there", 3, [], everything=False)
    it = await in_state(here, "in_doubt")
    await here.pass_time(62)
    await doors.bury(here.conn, 60)
    assert await quiet(here, it, 62) == 0
    await here.pass_time(64)
    await doors.bury(here.conn, 60)
    assert await quiet(here, it, 64) < 1
    assert 5 < await quiet(here, it, 70) < 8


async def test_statuses_that_were_held_up_let_silence_wait_for_the_rest(here: Ground) -> None:
    """They stood still until now: others that stood still with them may come a moment later; one of many is no sign."""
    late, it = await in_state(here, "accepted"), await in_state(here, "in_doubt")
    await here.pass_time(40)
    assert not (await here.open(it.claim)).chunks[0].flowing, "unheard"
    await late.told("sent")
    assert not (await here.open(it.claim)).chunks[0].flowing, "heard just now, and late"
    await here.pass_time(69)
    assert not (await here.open(it.claim)).chunks[0].flowing
    await here.pass_time(71)
    assert (await here.open(it.claim)).chunks[0].flowing, "what stood still with it has had its time"
    late = await in_state(here, "accepted")
    for _ in range(9):
        await (await in_state(here, "accepted")).told("sent")
    await here.pass_time(90)
    await late.told("sent")
    assert (await here.open(it.claim)).chunks[0].flowing, "the others were in time"


async def test_a_refusal_that_comes_late_ends_the_doubt(here: Ground) -> None:
    """Whoever sent it was taken for dead, and then heard that it was not taken: nothing is in doubt any more."""
    it = await in_state(here, "in_doubt")
    assert await it.fact("never_left", "ready") == "ready"
    it = await in_state(here, "in_doubt")
    assert await it.fact("refused", "failed", code=131026) == "failed"


async def test_a_fact_speaks_only_for_an_intent_of_its_own_claim(here: Ground) -> None:
    """An intent without an answer may have failed; its number is another's then, who may be sending."""
    it = await in_state(here, "ready")
    stale = it.claim
    await lanes.release(here.conn, it.worker, [lanes.Release(claim=it.claim, done_seq=None, again_in=0.0)])
    [it.claim] = [c for c in await here.claim(it.worker) if c.lane == stale.lane]
    assert await it.intend(1) == "ok"
    unsent = Fact(claim=stale, chunk_id=it.id, n=1, attempt="never_left", chunk="ready")
    assert await chunks.record(here.conn, [unsent]) == ["sending"]
    assert await it.attempts() == ["sending"]


async def test_a_wait_of_the_number_binds_every_lane_of_it(here: Ground) -> None:
    """Whoever heard it: no intent for this channel is let through before, of another channel at once."""
    other = await here.channel_beside()
    it, neighbour = await in_state(here, "sending"), await in_state(here, "ready")
    elsewhere = await in_state(here, "ready", channel=other)
    await it.fact("refused", "ready", due_in=5.0, holds="channel")
    assert await neighbour.intend(1) == "held"
    assert await elsewhere.intend(1) == "ok"
    await here.pass_time(6)
    assert await neighbour.intend(1) == "ok"


async def test_a_wait_of_the_account_binds_every_number_of_the_tenant(here: Ground) -> None:
    """Only the tenant's own: its twin has the same ids."""
    other = await here.channel_beside()
    it, elsewhere = await in_state(here, "sending"), await in_state(here, "ready", channel=other)
    await it.fact("refused", "ready", due_in=5.0, holds="tenant")
    assert await elsewhere.intend(1) == "held"
    assert {row["tenant_id"] for row in await here.all("SELECT tenant_id FROM holds")} == {here.tenant}


async def test_a_shorter_wait_does_not_end_a_longer_one(here: Ground) -> None:
    """Each worker hears its own number of seconds."""
    it, neighbour = await in_state(here, "sending"), await in_state(here, "sending")
    await it.fact("refused", "ready", due_in=9.0, holds="channel")
    await neighbour.fact("refused", "ready", due_in=1.0, holds="channel")
    await here.pass_time(5)
    assert await neighbour.intend(2) == "held"


async def test_abandoning_ends_what_was_not_sent_and_no_more(here: Ground) -> None:
    """In doubt is parked, ready cancelled; what the provider has stays as it is."""
    it = await answer(here, "one", "two", "three", send=True)
    await it.fact("in_doubt", "in_doubt")
    assert sorted(await it.abandon()) == ["cancelled", "cancelled", "parked"]
    it = await answer(here, "one", "two", send=True)
    await it.fact("accepted", "accepted")
    assert await it.abandon() == ["cancelled"]
    assert [await it.state(n) for n in (0, 1)] == ["accepted", "cancelled"]


async def test_a_batch_of_facts_and_intents_is_each_ones_own(here: Ground) -> None:
    """One statement for several chunks gives each its own verdict, in order."""
    one, two, three = [await in_state(here, "sending") for _ in range(3)]
    await two.told("delivered")
    facts = [
        Fact(claim=one.claim, chunk_id=one.id, n=1, attempt="accepted", chunk="accepted"),
        Fact(claim=two.claim, chunk_id=two.id, n=1, attempt="in_doubt", chunk="in_doubt"),
        Fact(claim=three.claim, chunk_id=three.id, n=1, attempt="refused", chunk="ready"),
    ]
    assert await chunks.record(here.conn, facts) == ["accepted", "delivered", "ready"]
    assert [await it.attempts() for it in (one, two, three)] == [["accepted"], ["delivered"], ["refused"]]


async def test_what_is_in_doubt_is_given_up_only_while_it_is(here: Ground) -> None:
    """A status that comes just before the silence is judged saves the rest of the answer."""
    lane = await here.lane()
    await here.ingest(here.placed(lane))
    worker = await here.worker()
    [claim] = await here.claim(worker)
    turn = (await here.open(claim)).turn
    assert turn
    fence, [first, second] = await here.settle(worker, claim, turn, "one", "two", send=True)
    assert fence == "sending"
    await chunks.record(here.conn, [Fact(claim=claim, chunk_id=first, n=1, attempt="in_doubt", chunk="in_doubt")])
    await here.told(here.status(first, "sent"))
    assert await chunks.abandon(here.conn, worker, claim, turn.last_seq, "silence", first) == []
    states = {
        row["id"]: row["state"]
        for row in await here.all("SELECT id, state FROM chunks WHERE tenant_id = %s", here.tenant)
    }
    assert states == {first: "sent", second: "ready"}
