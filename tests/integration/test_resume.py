"""`qasid resume`: a conversation that people had is answered again."""

from uuid import uuid4

import psycopg
import pytest

from tests.conftest import Database
from tests.integration import test_cli
from tests.integration.test_cli import qasid

dead = test_cli.dead

HAND_OVER = """
UPDATE lanes SET paused_until = now() + interval '1 hour', paused_after = 1, head_seq = 2, run_at = now() + interval '1 day'
"""


@pytest.fixture
def handed_over(dead: dict[str, str], database: Database) -> dict[str, str]:
    """The conversation of each tenant, by the tenant's slug: people have it, and something waits in it."""
    with psycopg.connect(database.superuser_url, autocommit=True) as conn:
        conn.execute(HAND_OVER)
        found = conn.execute("SELECT t.slug, l.conversation_id FROM lanes l JOIN tenants t ON t.id = l.tenant_id")
        return {slug: str(conversation) for slug, conversation in found}


def lanes(database: Database) -> dict[str, tuple[bool, bool]]:
    """Of each tenant's lane: whether it is paused, and whether it is due."""
    with psycopg.connect(database.superuser_url) as conn:
        found = conn.execute(
            "SELECT t.slug, l.paused_until IS NOT NULL OR l.paused_after IS NOT NULL, l.run_at <= now() "
            "FROM lanes l JOIN tenants t ON t.id = l.tenant_id"
        )
        return {slug: (paused, due) for slug, paused, due in found}


def test_a_conversation_that_is_resumed_is_answered_again(
    handed_over: dict[str, str], dead: dict[str, str], database: Database
) -> None:
    """Its pause is over, and what waits in it is due; nobody else's. Said once more, there is nothing to end."""
    done = qasid("resume", handed_over["noor"], **dead)
    said = f"{handed_over['noor']} of noor is answered again.\n"
    assert (done.exit_code, said in done.output) == (0, True), done.output
    assert lanes(database) == {"noor": (False, True), "amal": (True, False)}
    again = qasid("resume", handed_over["noor"], handed_over["amal"], **dead)
    assert again.exit_code == 0
    assert f"{handed_over['noor']} of noor was not left to people." in again.output
    assert f"{handed_over['amal']} of amal is answered again." in again.output
    assert lanes(database)["amal"] == (False, True)


def test_what_is_no_conversation_is_said_and_holds_up_no_other(
    handed_over: dict[str, str], dead: dict[str, str], database: Database
) -> None:
    """Code 2, after the others were resumed; what is no id at all changes nothing."""
    stranger = str(uuid4())
    refused = qasid("resume", stranger, handed_over["noor"], **dead)
    assert (refused.exit_code, f"qasid: There is no conversation {stranger}.\n" in refused.output) == (2, True)
    assert lanes(database) == {"noor": (False, True), "amal": (True, False)}
    assert qasid("resume", "…3f6f2b7a90c1", handed_over["amal"], **dead).exit_code == 2
    assert qasid("resume", **dead).exit_code == 2
    assert lanes(database)["amal"] == (True, False)
