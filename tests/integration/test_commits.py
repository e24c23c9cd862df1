"""What becomes of a worker's rare statements, those that go alone: which failures leave the lane as it is. Over PostgreSQL."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from app import db
from app.errors import DatabaseUnavailable
from tests.ground import Ground, ground
from workers.commits import Commits

pytestmark = pytest.mark.anyio

REFUSAL = """
CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$
"""


@pytest.fixture
async def here(database: Any) -> AsyncIterator[Ground]:
    async with ground(database.url, database.superuser_url) as here:
        yield here


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
