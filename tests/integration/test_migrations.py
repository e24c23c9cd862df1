"""The schema: two starts at once, edited and unknown files, and who may see which row."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

import workers.main
from app import db, embedded
from app.errors import ConfigurationError, DatabaseUnavailable
from app.migrate import available, migrate, require
from app.settings import Settings
from tests.conftest import Database


@pytest.fixture
def empty(cluster: embedded.Cluster, database: Database) -> str:
    """A database without any schema."""
    with psycopg.connect(database.superuser_url, autocommit=True) as conn:
        conn.execute("DROP SCHEMA public CASCADE")
        conn.execute("CREATE SCHEMA public AUTHORIZATION qasid")
    return database.url


def test_two_starts_at_once_apply_each_migration_once(empty: str) -> None:
    """Whoever comes second waits, then finds nothing to do."""
    with ThreadPoolExecutor(4) as pool:
        done = [name for names in pool.map(lambda _: list(migrate(empty)), range(4)) for name in names]
    assert sorted(done) == [m.name for m in available()]


def test_an_edited_migration_is_refused_and_a_newer_schema_too(empty: str, tmp_path: Path) -> None:
    """What was applied is history; the message says which file."""
    (tmp_path / "0001_one.sql").write_text("CREATE TABLE one ()")
    assert list(migrate(empty, tmp_path)) == ["0001_one"]
    (tmp_path / "0001_one.sql").write_text("CREATE TABLE one (n int)")
    with pytest.raises(ConfigurationError, match="0001_one was edited"):
        list(migrate(empty, tmp_path))
    (tmp_path / "0001_one.sql").rename(tmp_path / "0002_other.sql")
    with pytest.raises(ConfigurationError, match="0001_one, which this build does not know"):
        list(migrate(empty, tmp_path))


# --- a build that is newer than the schema, and an older one ---

LACKS = f"The schema lacks {available()[-1].name}: run `qasid migrate`."
KEY = "22" * 32
ENDPOINT = '[endpoints.meta]\nkind = "cloud"\nsecrets = ["env:META"]\nverify_token = "env:META"\n'


@pytest.fixture
def older(empty: str, tmp_path: Path) -> str:
    """A database that lacks the last migration."""
    (tmp_path / "older").mkdir()
    for migration in available()[:-1]:
        (tmp_path / "older" / f"{migration.name}.sql").write_text(migration.sql)
    list(migrate(empty, tmp_path / "older"))
    return empty


def qasid(url: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """The command, as a process of its own."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("QASID_")}
    ours = {"QASID_DATABASE_URL": url, "QASID_SECRET_KEY": KEY, "QASID_WORKER_METRICS_PORT": "0", "META": "x"}
    command = [sys.executable, "-m", "app.cli", *words]
    return subprocess.run(command, env=others | ours, capture_output=True, text=True, timeout=30, check=False)


def test_whoever_begins_on_an_older_schema_says_to_migrate(older: str, tmp_path: Path) -> None:
    """Worker, web and every command: one line that names what is missing, code 2."""
    (tmp_path / "qasid.toml").write_text(ENDPOINT)
    for words in (("worker",), ("web",), ("apply", str(tmp_path / "qasid.toml")), ("user", "list"), ("dead",)):
        ended = qasid(older, *words)
        assert (ended.returncode, ended.stderr) == (2, f"qasid: {LACKS}\n"), words
    list(migrate(older))
    require(older)


def test_whoever_begins_on_an_empty_database_says_so_alike(empty: str, tmp_path: Path) -> None:
    """The same words from each."""
    (tmp_path / "qasid.toml").write_text(ENDPOINT)
    for words in (("worker",), ("apply", str(tmp_path / "qasid.toml")), ("user", "list")):
        ended = qasid(empty, *words)
        assert (ended.returncode, ended.stderr) == (2, "qasid: The database is empty: run `qasid migrate`.\n"), words


def test_a_schema_that_a_newer_build_made_is_worked_with(database: Database) -> None:
    """As in a rolling upgrade: what it has beyond this build's stands in nobody's way. An edited one does."""
    with psycopg.connect(database.url, autocommit=True) as conn:
        conn.execute("INSERT INTO migrations (name, checksum) VALUES ('9999_next', 'x')")
        require(database.url)
        assert qasid(database.url, "user", "list").returncode == 0
        conn.execute("UPDATE migrations SET checksum = 'x' WHERE name = '0001_roles'")
    with pytest.raises(ConfigurationError, match="0001_roles was edited"):
        require(database.url)


def test_whoever_may_not_read_what_was_applied_is_told(database: Database) -> None:
    """The role of the URL owns the schema, or nothing can be known of it."""
    with psycopg.connect(database.superuser_url, autocommit=True) as conn:
        conn.execute("ALTER TABLE migrations OWNER TO postgres")
    with pytest.raises(ConfigurationError, match="does not own the schema"):
        require(database.url)


@contextmanager
def closed(database: Database) -> Iterator[None]:
    """Nobody may connect to it."""
    name = database.url.rpartition("/")[2]
    with psycopg.connect(database.superuser_url.rpartition("/")[0] + "/postgres", autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        try:
            yield
        finally:
            conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())


@pytest.mark.anyio
async def test_a_worker_that_waited_for_the_database_looks_at_its_schema(older: str, database: Database) -> None:
    """It was away when the worker began: what is found then is an older schema all the same."""
    settings = Settings(database_url=older, secret_key=KEY, worker_metrics_port=0)
    async with asyncio.timeout(30):
        with capture_logs() as lines, closed(database):
            working = asyncio.create_task(workers.main.work(settings))
            while not any(line["event"] == "waiting for the database" for line in lines):
                await asyncio.sleep(0.01)
        with pytest.raises(ConfigurationError, match="run `qasid migrate`"):
            await working


def test_a_migration_that_fails_leaves_nothing_behind(empty: str, tmp_path: Path) -> None:
    """Each file is a transaction of its own: those before it stand, nothing of it does."""
    (tmp_path / "0001_good.sql").write_text("CREATE TABLE good ()")
    (tmp_path / "0002_bad.sql").write_text("CREATE TABLE half (); SELECT 1/0")
    with pytest.raises(ConfigurationError, match="0002_bad failed, nothing of it remains"):
        list(migrate(empty, tmp_path))
    with psycopg.connect(empty) as conn:
        assert conn.execute("SELECT to_regclass('good') IS NOT NULL, to_regclass('half') IS NULL").fetchone() == (
            True,
            True,
        )
        assert conn.execute("SELECT name FROM migrations").fetchall() == [("0001_good",)]


def test_rows_of_before_are_carried_over(empty: str, tmp_path: Path, database: Database) -> None:
    """0009 fills what is new from the rows that are there, though forced policies hide them from the owner."""
    for migration in available():
        if migration.name < "0009":
            (tmp_path / f"{migration.name}.sql").write_text(migration.sql)
    list(migrate(empty, tmp_path))
    tenant, endpoint, channel, chunk = (uuid4() for _ in range(4))
    with psycopg.connect(database.superuser_url, autocommit=True) as conn:
        conn.execute("INSERT INTO endpoints (id, slug, kind, secrets) VALUES (%s, 'meta', 'cloud', '{}')", (endpoint,))
        conn.execute("INSERT INTO tenants (id, slug, name) VALUES (%s, 'noor', 'Noor')", (tenant,))
        conn.execute(
            "INSERT INTO channels (tenant_id, id, slug, endpoint_id, address, base_url, token) "
            "VALUES (%s, %s, 'm', %s, '1', '', '')",
            (tenant, channel, endpoint),
        )
        for table, columns in {
            "contacts": "id",
            "conversations": "id, contact_id, channel_id",
            "lanes": "conversation_id, channel_id",
            "chunks": "id, conversation_id, channel_id, seq, no, body",
            "attempts": "chunk_id, n, token",
        }.items():
            values = {"channel_id": channel, "seq": 1, "no": 1, "n": 1, "token": 1, "body": "x"}
            row = [tenant, *(values.get(column, chunk) for column in columns.split(", "))]
            marks = ", ".join(["%s"] * len(row))
            conn.execute(f"INSERT INTO {table} (tenant_id, {columns}) VALUES ({marks})".encode(), row)
        assert "0009_exactly_once" in list(migrate(empty))
        assert conn.execute("SELECT endpoint_id FROM attempts").fetchall() == [(endpoint,)]
        assert conn.execute("SELECT endpoint_id FROM disturbances").fetchall() == [(endpoint,)]


def test_a_database_that_is_not_there_is_said_in_words() -> None:
    """No traceback of the driver's: what was asked, and what it said."""
    with pytest.raises(DatabaseUnavailable, match="PostgreSQL does not answer"):
        list(migrate("postgresql://qasid@127.0.0.1:1/qasid"))


def test_every_table_has_row_level_security_forced_and_a_policy(database: Database) -> None:
    """A table that a later migration forgets would be open to every tenant: this test names it."""
    with psycopg.connect(database.url) as conn:
        bare = conn.execute(
            """
            SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND c.relname <> 'migrations'
              AND NOT (c.relrowsecurity AND c.relforcerowsecurity
                       AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid))
            """
        ).fetchall()
    assert bare == []


def test_no_role_may_pass_row_level_security_by(database: Database) -> None:
    """Neither of our roles, nor the one that owns the tables, is a superuser or has BYPASSRLS."""
    with psycopg.connect(database.url) as conn:
        roles = conn.execute(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE 'qasid%' AND (rolsuper OR rolbypassrls)"
        ).fetchall()
    assert roles == []


@pytest.mark.anyio
async def test_the_app_sees_a_tenants_rows_only_when_it_acts_for_that_tenant(database: Database) -> None:
    """No tenant set, another tenant, the installation, outside a transaction: no rows, for every table of a tenant's."""
    tenant = uuid4()
    async with await psycopg.AsyncConnection.connect(database.superuser_url, autocommit=True) as owner:
        await owner.execute("SET session_replication_role = replica")  # rows without the rows that they hang on
        await owner.execute("INSERT INTO tenants (id, slug, name) VALUES (%s, 'noor', 'Noor')", (tenant,))
        tables = [
            name
            for (name,) in await (
                await owner.execute(
                    "SELECT table_name FROM information_schema.columns WHERE column_name = 'tenant_id' "
                    "AND table_schema = 'public' AND table_name <> 'seen'"
                )
            ).fetchall()
        ]
        await owner.execute("INSERT INTO contacts (tenant_id, name) VALUES (%s, 'Ana')", (tenant,))
        await owner.execute(
            "INSERT INTO messages (tenant_id, id, conversation_id, channel_id, direction, kind, sent_at, correlation) "
            "VALUES (%s, uuidv7(), uuidv7(), uuidv7(), 'in', 'text', now(), 'c')",
            (tenant,),
        )
    assert len(tables) > 10
    pool = db.pool(database.url, "qasid_app", name="test", max_size=2)
    await pool.open()

    async def seen(conn: db.Connection) -> int:
        rows = 0
        for table in tables:
            rows += (await (await conn.execute(f"SELECT count(*) FROM {table}".encode())).fetchone() or (0,))[0]
        return rows

    try:
        async with db.acting(pool, tenant=tenant) as conn:
            assert await seen(conn) == 2
        async with db.acting(pool, tenant=uuid4()) as conn:
            assert await seen(conn) == 0
        async with db.acting(pool) as conn:
            assert await seen(conn) == 0
        async with pool.connection() as conn:
            assert await seen(conn) == 0

        async def alternate(n: int) -> int:
            async with db.acting(pool, tenant=tenant if n % 2 else uuid4()) as conn:
                return await seen(conn)

        # Connections are used again and again, for one tenant after the other.
        assert await asyncio.gather(*(alternate(n) for n in range(20))) == [0, 2] * 10
    finally:
        await pool.close()
