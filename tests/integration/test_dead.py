"""Dead letters: which there are, what a replay enters, that it is entered once, and that quarantine comes in by the door."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from app import db, dead, log
from app.dead import DeadLetter
from app.errors import Unknown
from app.replay import Replayed, Replays, refusal
from app.settings import Settings
from app.store import chunks, settlements, turns
from app.store.chunks import Fact, Intent
from app.store.dead import Entered, Letter, Sent, answer, send
from app.store.lanes import Claim, Release, release
from tests import cloud_bodies as cloud
from tests import ground as shared
from tests import receiving
from tests.conftest import Database
from tests.ground import Ground
from tests.receiving import KEY, THIRD, Receiver

pytestmark = pytest.mark.anyio

here = shared.here
web = receiving.web


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[db.Pool]:
    """The app's, as the command has it."""
    async with db.pool(database.url, "qasid_app", name="test", max_size=4) as pool:
        yield pool


class Lost:
    """A conversation whose answer of several parts was lost, and the worker that has the lane."""

    def __init__(self, here: Ground, worker: UUID, claim: Claim, turn: turns.Turn, ids: list[UUID]) -> None:
        self.here, self.worker, self.claim, self.turn, self.ids = here, worker, claim, turn, ids

    @property
    def lane(self) -> UUID:
        return self.claim.conversation_id

    async def attempt(self, part: int, attempt: Any, chunk: Any, n: int = 1, **more: Any) -> None:
        await chunks.intend(self.here.conn, self.worker, [Intent(self.claim, self.ids[part], n)])
        fact = Fact(claim=self.claim, chunk_id=self.ids[part], n=n, attempt=attempt, chunk=chunk, **more)
        await chunks.record(self.here.conn, [fact])

    async def give_back(self) -> None:
        """The rest of the answer is cancelled, and the entry done."""
        await chunks.abandon(self.here.conn, self.worker, self.claim, self.turn.last_seq, "lost")
        await release(self.here.conn, self.worker, [Release(claim=self.claim, done_seq=self.turn.last_seq)])

    async def chunks(self, seq: int) -> list[tuple[int, str, str, UUID | None]]:
        rows = await self.here.all(
            "SELECT no, state, body, replays FROM chunks WHERE (tenant_id, conversation_id, seq) = (%s, %s, %s) ORDER BY no",
            *(self.here.tenant, self.lane, seq),
        )
        return [(row["no"], row["state"], row["body"], row["replays"]) for row in rows]

    async def outbox(self) -> list[tuple[int, str, UUID, UUID | None]]:
        rows = await self.here.all(
            "SELECT seq, kind, message_id, replays FROM outbox WHERE (tenant_id, conversation_id) = (%s, %s) ORDER BY seq",
            *(self.here.tenant, self.lane),
        )
        return [(row["seq"], row["kind"], row["message_id"], row["replays"]) for row in rows]


async def settled(here: Ground, *parts: str, questions: int = 1, outcome: str = "answered") -> Lost:
    """So many questions, answered with these parts, of which none is sent yet."""
    lane = await here.lane()
    await here.ingest(*(here.placed(lane, f"question {n}") for n in range(questions)))
    worker = await here.worker()
    [claim] = [claim for claim in await here.claim(worker) if claim.conversation_id == lane]
    turn = (await here.open(claim)).turn
    assert turn
    _, ids = await here.settle(worker, claim, turn, *parts, outcome=outcome, correlation="corr")
    return Lost(here, worker, claim, turn, ids)


async def failed(here: Ground, *parts: str, code: int = 131026) -> Lost:
    """The first part arrived, the second was refused for good."""
    it = await settled(here, *(parts or ("one", "two", "three")))
    await it.attempt(0, "accepted", "accepted", provider_id="wamid.1")
    await it.attempt(1, "refused", "failed", code=code, reason="Message undeliverable")
    await it.give_back()
    return it


async def letter(pool: db.Pool, id: UUID) -> Letter:
    [found] = await dead.find(pool, [id])
    assert isinstance(found.row, Letter)
    return found.row


async def sent(pool: db.Pool, id: UUID, *, again: bool = False) -> Sent | None:
    row = await letter(pool, id)
    async with db.acting(pool, tenant=row.tenant_id) as conn:
        return await send(conn, row, again=again)


async def answered(pool: db.Pool, id: UUID, *, again: bool = False) -> Entered | None:
    row = await letter(pool, id)
    async with db.acting(pool, tenant=row.tenant_id) as conn:
        return await answer(conn, row, again=again)


def ids(letters: list[DeadLetter]) -> list[UUID]:
    return [letter.id for letter in letters]


# --- chunks ---


async def test_a_replayed_chunk_goes_out_with_the_rest_of_its_answer(here: Ground, pool: db.Pool) -> None:
    """One entry at the lane's end, its chunks ready, each naming the old; the old stay, and the lane is due."""
    it = await failed(here)
    assert (await here.row(it.lane))["due"] is False
    replay = await sent(pool, it.ids[1])
    assert replay
    assert replay.seq == 2
    assert await it.chunks(2) == [(1, "ready", "two", it.ids[1]), (2, "ready", "three", it.ids[2])]
    assert [state for _, state, _, _ in await it.chunks(1)] == ["accepted", "failed", "cancelled"]
    assert [(seq, kind, replays) for seq, kind, _, replays in await it.outbox()] == [
        (1, "answer", None),
        (2, "send", None),
    ]
    lane = await here.row(it.lane)
    assert (lane["head_seq"], lane["done_seq"], lane["due"]) == (2, 1, True)
    [message] = await here.all("SELECT * FROM messages WHERE id = %s", (await it.outbox())[1][2])
    assert (message["direction"], message["body"], message["correlation"]) == ("out", "two\n\nthree", "c")
    assert message["turn_id"] == it.turn.id


async def test_a_worker_sends_a_replay_even_while_the_lane_is_paused(here: Ground, pool: db.Pool) -> None:
    """It is a person's text: what is opened next is that entry, and its intent passes the pause."""
    it = await failed(here)
    replay = await sent(pool, it.ids[1])
    assert replay
    await here.act(
        "UPDATE lanes SET paused_until = 'infinity' WHERE conversation_id = %s AND tenant_id = %s", it.lane, here.tenant
    )
    [claim] = await here.claim(it.worker)
    opening = await here.open(claim)
    assert (opening.kind, opening.turn) == ("send", None)
    assert [chunk.id for chunk in opening.chunks if chunk.seq == 2] == replay.chunks
    intent = Intent(claim, replay.chunks[0], 1, manual=True)
    [permission] = await chunks.intend(here.conn, it.worker, [intent])
    assert permission.fence == "ok"


async def test_a_lane_that_waits_is_due_at_once(here: Ground, pool: db.Pool) -> None:
    """What it waited for was another entry's business; a lane that a worker has keeps it and is due at release."""
    it = await failed(here)
    await here.ingest(here.placed(it.lane))
    await here.act(
        "UPDATE lanes SET run_at = 'infinity' WHERE conversation_id = %s AND tenant_id = %s", it.lane, here.tenant
    )
    assert await sent(pool, it.ids[1])
    assert (await here.row(it.lane))["due"] is True
    held = await failed(here)
    await here.ingest(here.placed(held.lane))
    claims = await here.claim(held.worker)
    assert await sent(pool, held.ids[1])
    row = await here.row(held.lane)
    assert (row["owner"], row["head_seq"]) == (held.worker, 3)
    [claim] = [claim for claim in claims if claim.conversation_id == held.lane]
    assert await release(here.conn, held.worker, [Release(claim=claim, done_seq=2)]) == [0.0]


async def test_a_chunk_is_replayed_once_unless_again(here: Ground, pool: db.Pool) -> None:
    """The second of two finds the first, one after the other or both at once; what was refused enters nothing."""
    it = await failed(here)
    async with await psycopg.AsyncConnection.connect(here.superuser_url) as holder:
        await holder.execute("SELECT FROM lanes FOR NO KEY UPDATE")  # until all of them have begun
        replays = [asyncio.create_task(sent(pool, it.ids[1])) for _ in range(3)]
        waiting = (
            "SELECT FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0 AND datname = current_database()"
        )
        async with asyncio.timeout(10):
            while len(await here.all(waiting)) < len(replays):
                await asyncio.sleep(0.01)
        await holder.rollback()
    twice = await asyncio.gather(*replays)
    [first] = [replay for replay in twice if replay]
    assert (await letter(pool, it.ids[1])).replayed_as == f"chunk {first.chunks[0]}"
    assert await sent(pool, it.ids[1]) is None
    assert (await here.row(it.lane))["head_seq"] == 2
    second = await sent(pool, it.ids[1], again=True)
    assert second
    assert second.seq == 3
    assert len(second.chunks) == 2


@pytest.mark.parametrize("state", ["ready", "sending", "in_doubt", "accepted", "delivered", "cancelled"])
async def test_what_is_not_dead_is_not_replayed(here: Ground, pool: db.Pool, state: str) -> None:
    """A parked chunk that a status has told of since, above all."""
    it = await failed(here)
    await here.act("UPDATE chunks SET state = %s WHERE id = %s", state, it.ids[1])
    assert await sent(pool, it.ids[1], again=True) is None
    assert (await here.row(it.lane))["head_seq"] == 1
    [found] = await dead.find(pool, [it.ids[1]])
    assert refusal(found, again=True) == f"a chunk that is {state}: no dead letter"


async def test_a_part_that_may_have_arrived_is_a_decision_of_its_own(here: Ground, pool: db.Pool) -> None:
    """The replay of an earlier part stops before it; its own takes the rest. What was parked unsent goes along."""
    it = await settled(here, "one", "two", "three", "four")
    await it.attempt(0, "accepted", "accepted")
    await it.attempt(2, "in_doubt", "in_doubt")
    await it.give_back()
    await here.told(here.status(it.ids[0], "failed", code=131026))
    await here.act("UPDATE chunks SET state = 'parked' WHERE id = %s", it.ids[1])  # never tried
    assert [state for _, state, _, _ in await it.chunks(1)] == ["failed", "parked", "parked", "cancelled"]
    assert [(await letter(pool, id)).doubtful for id in it.ids[:3]] == [False, False, True]
    assert await sent(pool, it.ids[0])
    assert await sent(pool, it.ids[2])
    assert [body for _, _, body, _ in await it.chunks(2)] == ["one", "two"]
    assert [body for _, _, body, _ in await it.chunks(3)] == ["three", "four"]
    assert await sent(pool, it.ids[1]) is None  # went along


async def test_a_replay_that_dies_is_a_dead_letter_of_its_own(here: Ground, pool: db.Pool) -> None:
    """And can be replayed in its turn, under the same correlation and turn."""
    it = await failed(here)
    first = await sent(pool, it.ids[1])
    assert first
    await here.act("UPDATE chunks SET state = 'failed' WHERE id = %s", first.chunks[0])
    await here.act("UPDATE chunks SET state = 'cancelled' WHERE id = %s", first.chunks[1])
    assert ids(await dead.every(pool)) == [], "its entry is not at its end yet"
    await here.act("UPDATE lanes SET done_seq = head_seq WHERE tenant_id = %s", here.tenant)
    assert ids(await dead.every(pool)) == [first.chunks[0]]
    assert await sent(pool, first.chunks[0])
    assert await it.chunks(3) == [(1, "ready", "two", first.chunks[0]), (2, "ready", "three", first.chunks[1])]
    rows = await here.all(
        "SELECT DISTINCT correlation, turn_id FROM messages WHERE direction = 'out' AND turn_id IS NOT NULL"
    )
    assert {row["turn_id"] for row in rows} == {it.turn.id}


async def test_of_people_who_became_one_the_elder_conversation_takes_the_replay(here: Ground, pool: db.Pool) -> None:
    """As it takes whatever comes for the younger."""
    it, elder = await failed(here), await here.lane()
    for tenant in (here.tenant, here.twin):
        await here.act(
            "UPDATE conversations SET merged_into = %s WHERE (tenant_id, id) = (%s, %s)", elder, tenant, it.lane
        )
    assert await sent(pool, it.ids[1])
    assert ((await here.row(it.lane))["head_seq"], (await here.row(elder))["head_seq"]) == (1, 1)
    [row] = await here.all("SELECT conversation_id FROM chunks WHERE replays = %s", it.ids[1])
    assert row["conversation_id"] == elder


# --- turns ---


@pytest.mark.parametrize("outcome", ["failed", "parked"])
async def test_a_replayed_turn_is_asked_anew(here: Ground, pool: db.Pool, outcome: str) -> None:
    """Its messages are entered at the end of the lane, in their order, naming the turn; a worker finds them as a question."""
    it = await settled(here, "Sorry.", questions=3, outcome=outcome)
    await it.attempt(0, "accepted", "accepted")
    await it.give_back()
    assert await answered(pool, it.turn.id) == Entered(4, 6)
    entries = await it.outbox()
    assert [(kind, message, replays) for _, kind, message, replays in entries[3:]] == [
        ("answer", message, it.turn.id) for _, _, message, _ in entries[:3]
    ]
    [claim] = await here.claim(it.worker)
    opening = await here.open(claim)
    assert opening.turn
    assert (opening.turn.first_seq, opening.turn.last_seq, opening.turn.settled) == (4, 6, False)
    assert [asked.body for asked in opening.asked] == ["question 0", "question 1", "question 2"]
    assert await answered(pool, it.turn.id) is None
    assert (await letter(pool, it.turn.id)).replayed_as == "entry 6"
    assert await answered(pool, it.turn.id, again=True) == Entered(7, 9)


@pytest.mark.parametrize("outcome", ["answered", "late", "left"])
async def test_a_turn_that_ended_otherwise_is_no_dead_letter(here: Ground, pool: db.Pool, outcome: str) -> None:
    """Nor is one that has not ended."""
    it = await settled(here, "Hello.", outcome=outcome)
    assert await answered(pool, it.turn.id, again=True) is None
    [found] = await dead.find(pool, [it.turn.id])
    assert refusal(found, again=True) == f"a turn that is {outcome}: no dead letter"
    await it.give_back()
    await here.ingest(here.placed(it.lane))
    [claim] = await here.claim(it.worker)
    turn = (await here.open(claim)).turn
    assert turn
    assert (await letter(pool, turn.id)).state == "open"
    assert await answered(pool, turn.id) is None


async def test_a_replay_that_would_reach_nobody_is_refused(here: Ground, pool: db.Pool) -> None:
    """Too late, left to a person, stopped by its own, disabled: the letter stays on the list, and the words say what would help."""
    it = await settled(here, "Sorry.", outcome="failed")
    await it.give_back()

    async def why(id: UUID) -> str:
        [found] = await dead.find(pool, [id])
        return refusal(found, again=False) or ""

    await here.act("UPDATE messages SET sent_at = now() - interval '25 hours'")
    assert "older than the channel's answer_within_hours (24)" in await why(it.turn.id)
    await here.act("UPDATE channels SET late = 'answer'")
    assert await why(it.turn.id) == ""
    lost = await failed(here)
    await here.act("UPDATE lanes SET paused_until = 'infinity' WHERE tenant_id = %s", here.tenant)
    assert "left to a person" in await why(it.turn.id)
    assert await why(lost.ids[1]) == ""
    await here.act("UPDATE lanes SET paused_until = NULL, stopped_at = now() WHERE tenant_id = %s", here.tenant)
    assert await why(it.turn.id) == "", "no word takes the stop back, so it does not count"
    await here.act(
        """UPDATE tenants SET settings = '{"intents": [{"then": "stop"}, {"then": "start"}]}' WHERE id = %s""",
        here.tenant,
    )
    assert "wants no answers" in await why(it.turn.id)
    assert await why(lost.ids[1]) == ""
    await here.act("UPDATE lanes SET stopped_at = NULL WHERE tenant_id = %s", here.tenant)
    for change in ("UPDATE tenants SET enabled = {}", "UPDATE channels SET enabled = {}"):
        await here.act(change.format("false"))
        assert ["disabled" in await why(id) for id in (it.turn.id, lost.ids[1])] == [True, True]
        await here.act(change.format("true"))


# --- the list ---


async def test_the_list_has_what_wants_a_person_and_nothing_else(here: Ground, pool: db.Pool) -> None:
    """Neither what was replayed nor the apology of a turn that is listed itself; filters narrow it."""
    chunk = await failed(here)
    parked = await settled(here, "maybe")
    await parked.attempt(0, "in_doubt", "in_doubt")
    await parked.give_back()
    turn = await settled(here, "Sorry.", outcome="failed")
    await turn.attempt(0, "refused", "failed", code=131047)
    await turn.give_back()
    await settled(here, "fine")
    assert set(ids(await dead.every(pool))) == {chunk.ids[1], parked.ids[0], turn.turn.id}
    assert ids(await dead.every(pool, kinds=["turn"])) == [turn.turn.id]
    assert len(await dead.every(pool, most=2)) == 2
    assert len(await dead.every(pool, tenant="1001")) == 3
    assert await dead.every(pool, tenant="1002") == []
    with pytest.raises(Unknown, match="nobody"):
        await dead.every(pool, tenant="nobody")
    assert await sent(pool, chunk.ids[1])
    assert await answered(pool, turn.turn.id)
    assert ids(await dead.every(pool)) == [parked.ids[0]]
    await here.pass_time(3600)
    assert [round(letter.row.age / 60) for letter in await dead.every(pool)] == [60]
    assert await dead.every(pool, within=3000) == []


async def test_what_was_parked_untried_is_as_old_as_its_parking(here: Ground, pool: db.Pool) -> None:
    """However long it had waited: whoever asks for what died within the hour sees it."""
    it = await settled(here, "one", "two")
    await here.pass_time(5 * 3600)
    seq = await settlements.park_head(here.conn, it.worker, it.claim, "it fails at every try")
    await release(here.conn, it.worker, [Release(claim=it.claim, done_seq=seq)])
    assert ids(await dead.every(pool, within=60)) == [it.ids[0]]


async def test_words_and_numbers_are_read_only_where_they_are_asked_for(here: Ground, pool: db.Pool) -> None:
    """They do not even leave the database."""
    it = await failed(here)
    [row] = await here.all(
        "SELECT value FROM identities JOIN conversations USING (tenant_id, contact_id) WHERE id = %s AND tenant_id = %s",
        *(it.lane, here.tenant),
    )
    for text in (False, True):
        [found] = await dead.every(pool, text=text)
        assert isinstance(found.row, Letter)
        assert (found.text, found.row.whom) == (("two", row["value"]) if text else ("", ""))


async def test_the_app_makes_up_nothing_that_a_person_said(here: Ground, pool: db.Pool) -> None:
    """It may write messages since replays do, but outbound ones alone, and its own tenant's."""
    lane = await here.lane()
    values = "(%s, uuidv7(), %s, %s, %s, 'text', now(), 'c')"
    insert = "INSERT INTO messages (tenant_id, id, conversation_id, channel_id, direction, kind, sent_at, correlation) VALUES "
    for tenant, direction in ((here.tenant, "in"), (here.tenant, "echo"), (here.twin, "out")):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            async with db.acting(pool, tenant=here.tenant) as conn:
                await conn.execute((insert + values).encode(), (tenant, lane, here.channel, direction))


# --- quarantine ---


async def replayed(pool: db.Pool, url: str, *, again: list[UUID] | None = None) -> list[Replayed]:
    """Replay all of quarantine, the eldest first, or these rows again."""
    letters = await dead.every(pool, kinds=["quarantine"]) if again is None else await dead.find(pool, again)
    letters.sort(key=lambda letter: letter.place)
    async with Replays(pool, url, Settings(database_url=url, secret_key=KEY)) as replays:
        return [await replays.replay(letter, again=again is not None) for letter in letters]


async def test_what_came_before_its_channel_is_taken_as_if_it_came_now(
    web: Receiver, database: Database, tmp_path: Path, pool: db.Pool
) -> None:
    """Stored once, its lane due, whether the provider repeats it or the replay is repeated."""
    body = cloud.webhook(
        cloud.text("سلام"), statuses=[cloud.status()], message_echoes=[cloud.echo(text={"body": "e"})], address="3001"
    )
    assert (await web.post(body)).status_code == 200
    assert web.counts() == (0, 0, 3)
    [stays, *_] = await replayed(pool, database.url)
    assert (stays.done, stays.words) == (False, "stays: no channel of this endpoint has this address")
    assert web.execute("SELECT DISTINCT verdict, count FROM quarantine") == [("quarantined", 1)]
    await receiving.configure(database.url, tmp_path, receiving.CONFIGURATION + THIRD)
    assert len(await dead.every(pool, tenant="noor")) == 3
    assert await dead.every(pool, tenant="amal") == []
    assert [one.done for one in await replayed(pool, database.url)] == [True] * 3
    assert web.unaccounted(body) == []
    assert web.counts() == (2, 1, 3)
    assert web.execute("SELECT head_seq, run_at <= qasid_now() FROM lanes") == [(1, True)]
    assert web.execute("SELECT DISTINCT verdict FROM quarantine WHERE replayed_at IS NOT NULL") == [("stored",)]
    of_row = "SELECT count(*) FROM messages m JOIN quarantine q ON m.correlation = replace(q.id::text, '-', '')"
    assert web.one(of_row) == 2
    assert await dead.every(pool) == []
    rows = [id for [id] in web.execute("SELECT id FROM quarantine WHERE part = 'message'")]
    [once_more] = await replayed(pool, database.url, again=rows)
    assert once_more.words.startswith("a duplicate of what is stored")
    assert (await web.post(body)).status_code == 200
    assert web.counts() == (2, 1, 3)


async def test_a_message_that_is_too_old_to_be_answered_is_said_to_be(
    web: Receiver, database: Database, tmp_path: Path, pool: db.Pool
) -> None:
    """Its own time counts. It is stored all the same."""
    assert (await web.post(cloud.webhook(cloud.text(), address="3001"))).status_code == 200
    await receiving.configure(database.url, tmp_path, receiving.CONFIGURATION + THIRD)
    [one] = await replayed(pool, database.url)
    assert one.done
    assert one.words == "stored; not answered, since it is older than the channel's answer_within_hours (24)"


async def test_what_cannot_be_read_still_stays_and_says_why(web: Receiver, database: Database, pool: db.Pool) -> None:
    """Nothing is counted as come again, and no row goes."""
    lists = {"messages": [{"type": "hologram"}], "errors": [{"code": 1}]}
    assert (await web.post(cloud.encode(cloud.envelope(cloud.value(**lists))))).status_code == 200
    assert (await web.post(b"{")).status_code == 200
    web.execute(
        "INSERT INTO quarantine (endpoint_id, digest, reason, raw) SELECT id, '', 'old', '{}' FROM endpoints LIMIT 1"
    )
    said = await replayed(pool, database.url)
    assert not any(one.done for one in said)
    assert {one.words for one in said} >= {
        "stays: the provider reports an error",
        "stays: where it stood in its webhook was not kept",
    }
    assert len(said) == 4
    assert web.execute("SELECT DISTINCT count, verdict FROM quarantine") == [(1, "quarantined")]
    assert web.counts() == (0, 0, 4)


async def test_what_the_database_refuses_stays(
    web: Receiver, database: Database, tmp_path: Path, pool: db.Pool
) -> None:
    """A message or a status: the verdict is the row's, not what the attempt hoped for."""
    body = cloud.webhook(cloud.text(), statuses=[cloud.status()], address="3001")
    assert (await web.post(body)).status_code == 200
    await receiving.configure(database.url, tmp_path, receiving.CONFIGURATION + THIRD)
    web.execute("ALTER TABLE messages ADD CHECK (kind <> 'text')")
    web.execute("ALTER TABLE statuses ADD CHECK (status <> 'delivered')")
    assert [one.words for one in await replayed(pool, database.url)] == ["stays: the database refuses it"] * 2
    assert len(await dead.every(pool)) == 2


async def test_what_comes_again_is_dead_again(web: Receiver, database: Database, tmp_path: Path, pool: db.Pool) -> None:
    """A row that was replayed, and whose item cannot be placed once more, is listed once more."""
    body = cloud.webhook(cloud.text(), address="3001")
    assert (await web.post(body)).status_code == 200
    web.execute("UPDATE quarantine SET verdict = 'stored', replayed_at = now()")
    assert await dead.every(pool) == []
    assert (await web.post(body)).status_code == 200
    assert len(await dead.every(pool)) == 1


async def test_a_replay_is_logged_without_what_people_wrote(here: Ground, pool: db.Pool) -> None:
    """One line, with known keys alone."""
    import io

    it = await failed(here)
    turn = await settled(here, "Sorry.", outcome="failed")
    await turn.give_back()
    printed = io.StringIO()
    log.configure(Settings(), process="cli", stream=printed)
    async with Replays(pool, here.url, Settings()) as replays:
        for one in await dead.every(pool):
            assert (await replays.replay(one)).done
        [unknown] = await dead.find(pool, [it.ids[1], uuid4()])
        assert (await replays.replay(unknown)).words.startswith("stays: already replayed as chunk")
    lines = printed.getvalue()
    assert "dropped" not in lines
    assert "two" not in lines
    assert '"event":"chunk replayed"' in lines
    assert '"event":"turn replayed"' in lines
    assert f'"chunk":"{it.ids[1]}"' in lines
    assert '"tenant":"1001"' in lines
