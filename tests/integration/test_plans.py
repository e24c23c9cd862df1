"""How PostgreSQL would go about our statements on a brand-new installation: plans are made once, and tables grow."""

import importlib
import itertools
import re

import psycopg
import pytest

from app import db
from tests.conftest import Database

# What grows with each message. What people configure does not, nor do workers and doors.
GROWING = "messages|outbox|seen|lanes|turns|steps|chunks|attempts|usage|conversations|contacts|identities|translations"
# Whose statements stand between a webhook and its answer. What a person asks for now and then may read a tenant's rows.
MODULES = (
    *("inbox", "people", "lanes", "turns", "steps", "settlements", "histories", "chunks", "statuses", "doors"),
    *("spending", "translations", "overdue"),
)


def statements() -> list[tuple[str, str]]:
    """Each statement of the courier's, by the name of its constant."""
    found = []
    for module in MODULES:
        for name, value in vars(importlib.import_module(f"app.store.{module}")).items():
            if (
                name.isupper()
                and isinstance(value, str)
                and re.match(r"\s*(WITH|SELECT|UPDATE|INSERT|DELETE)\b", value)
            ):
                found.append((f"{module}.{name}", value))
    return found


def numbered(statement: str) -> str:
    """The statement with `$1` for its first parameter, as the server gets it."""
    places: dict[str, int] = {}

    def place(found: re.Match[str]) -> str:
        key = found[1] or f"at {found.start()}"
        return f"${places.setdefault(key, len(places) + 1)}"

    return re.sub(r"%(?:\((\w+)\))?[bts]", place, statement).replace("%%", "%")


def plan(conn: psycopg.Connection, statement: str) -> list[str]:
    cursor = psycopg.ClientCursor(conn).execute(f"EXPLAIN (GENERIC_PLAN) {numbered(statement)}".encode())
    return [line.strip() for (line,) in cursor.fetchall()]


@pytest.mark.parametrize(("name", "statement"), statements(), ids=[name for name, _ in statements()])
def test_what_grows_is_found_by_more_than_its_tenant(name: str, statement: str, database: Database) -> None:
    """No plan reads a table through, nor all of one tenant's or one endpoint's rows: both look cheap while there are none."""
    options = db.options("qasid_courier", timeout=5.0)
    with psycopg.connect(database.url, autocommit=True, **options) as conn:
        lines = plan(conn, statement)
    through = [line for line in lines if re.search(rf"Seq Scan on ({GROWING})\b", line)]
    assert not through, f"{name} reads a table through"
    for before, line in itertools.pairwise(lines):
        if re.search(r"^Index Cond: \(tenant_id = \S+\)$", line):
            assert not re.search(rf"\b(on|using) ({GROWING})", before), f"{name} reads all of a tenant: {before}"
