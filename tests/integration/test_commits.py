"""What becomes of a worker's rare statements, those that go alone: which failures leave the lane as it is. Over PostgreSQL."""

from collections.abc import Awaitable, Callable
from uuid import uuid4

import psycopg
import pytest

from app import db
from app.errors import DatabaseUnavailable
from app.store.lanes import Claim
from app.store.overdue import Overdue
from tests import ground as shared
from tests.ground import Ground
from workers.commits import Commits

pytestmark = pytest.mark.anyio

REFUSAL = """
CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$
"""

here = shared.here


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("57014", DatabaseUnavailable),
        ("0A000", DatabaseUnavailable),
        ("XX000", DatabaseUnavailable),
        ("22000", psycopg.DataError),
    ],
    ids=["canceled", "a plan of before a migration", "internal", "data"],
)
async def test_words_that_could_not_be_kept_are_the_lanes_fault_only_if_they_are_refused(
    here: Ground, code: str, expected: type[Exception]
) -> None:
    """Whatever else the server says, nobody knows whether they are kept: the lane is left, and parked for none of it."""
    lane = await here.lane()
    await here.ingest(here.placed(lane, "", kind="audio"))
    await here.act(REFUSAL.format(code=code))
    await here.act("CREATE TRIGGER refuses BEFORE UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION refuses()")
    [message] = await here.all("SELECT id FROM messages")
    async with db.pool(here.url, "qasid_courier", name="test", max_size=1) as pool:
        commits = Commits(pool, uuid4(), order_wait=1.0, silence=1.0, patience=5.0)
        with pytest.raises(expected):
            await commits.transcript(here.tenant, message["id"], "words")


ALONE: dict[str, Callable[[Commits, Claim], Awaitable[object]]] = {
    "abandon": lambda commits, claim: commits.abandon(claim, 1, "why"),
    "overtake": lambda commits, claim: commits.overtake(
        Overdue(
            claim=claim,
            turn_id=uuid4(),
            seq=1,
            outcomes=["answered"],
            words=[],
            aside=True,
            notices=False,
            correlation="c",
        )
    ),
    "tried": lambda commits, claim: commits.tried(claim),
    "stands": lambda commits, claim: commits.stands(claim, 0),
    "wake_channel": lambda commits, claim: commits.wake_channel(claim.tenant_id, claim.channel_id),
    "wake": lambda commits, claim: commits.wake(claim.lane),
    "transcript": lambda commits, claim: commits.transcript(claim.tenant_id, uuid4(), "words"),
    "park_head": lambda commits, claim: commits.park_head(claim, "why"),
}


@pytest.mark.parametrize("name", ALONE)
async def test_a_statement_that_goes_alone_fails_as_a_batched_one_does(here: Ground, name: str) -> None:
    """Where nobody knows what was committed it raises DatabaseUnavailable, which names the statement: no psycopg.Error gets out."""
    await here.ingest(here.placed(await here.lane(), "hello"))
    async with db.pool(here.url, "qasid_courier", name="test", max_size=1) as pool:
        commits = Commits(pool, await here.worker(), order_wait=1.0, silence=1.0, patience=5.0)
        [claim] = await here.claim(commits.worker)
        await here.act("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM qasid_courier")
        with pytest.raises(DatabaseUnavailable, match=f"^{name}: InsufficientPrivilege$"):
            await ALONE[name](commits, claim)


@pytest.mark.parametrize("name", ALONE)
async def test_a_connection_that_breaks_is_no_fault_of_the_lanes(
    here: Ground, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the socket says counts as what the server says."""
    await here.ingest(here.placed(await here.lane(), "hello"))
    async with db.pool(here.url, "qasid_courier", name="test", max_size=1) as pool:
        commits = Commits(pool, await here.worker(), order_wait=1.0, silence=1.0, patience=5.0)
        [claim] = await here.claim(commits.worker)
        async with pool.connection() as conn:

            async def broken(*_: object, **__: object) -> None:
                raise ConnectionResetError

            monkeypatch.setattr(type(conn), "execute", broken)
        with pytest.raises(DatabaseUnavailable, match=f"^{name}: ConnectionResetError$"):
            await ALONE[name](commits, claim)
        monkeypatch.undo()
