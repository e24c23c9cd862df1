"""The statements that docs/operations.md gives to operators: each runs as it stands there, and finds what it says."""

import re
from pathlib import Path

import psycopg
import pytest

from app.store import lanes
from tests.conftest import Database
from tests.ground import ground

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
# What stands behind `-c "SET ROLE qasid_courier"`.
STATEMENTS: list[str] = re.findall(r'-c "SET ROLE qasid_courier" -c "(.*?)"\n', PAGE, re.DOTALL)


def statement(words: str) -> str:
    """The one with these words."""
    [found] = [each for each in STATEMENTS if words in each]
    return found


def test_every_statement_runs(database: Database) -> None:
    """On a database without a row."""
    assert len(STATEMENTS) >= 4
    with psycopg.connect(database.url, autocommit=True) as conn:
        conn.execute("SET ROLE qasid_courier")
        for each in STATEMENTS:
            conn.execute(each.encode())


async def test_whose_conversation_is_handed_over_is_found(database: Database) -> None:
    """By their number, and no other's; once it is resumed nobody is listed any more."""
    async with ground(database.url, database.superuser_url) as at:
        lane, _ = await at.lane(), await at.lane()
        await at.act(
            "UPDATE lanes SET paused_until = now() + interval '1 day', paused_after = 1 "
            "WHERE tenant_id = %s AND conversation_id = %s",
            *(at.tenant, lane),
        )
        [number] = await at.all(
            "SELECT value FROM identities i JOIN conversations c USING (tenant_id, contact_id) WHERE tenant_id = %s AND c.id = %s",
            *(at.tenant, lane),
        )
        listed = statement("p.name, i.kind").encode()
        [row] = await (await at.conn.execute(listed)).fetchall()
        assert (lane, "wa_id", number["value"]) == (row[2], row[4], row[5])
        assert await lanes.pause(at.conn, (at.tenant, row[2]), None)
        assert await (await at.conn.execute(listed)).fetchall() == []
        assert (await at.row(lane))["paused_after"] is None
