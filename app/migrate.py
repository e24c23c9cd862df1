"""Brings the schema up to date from `migrations/*.sql`, forward only. The only code that may change the schema.

Why a runner of our own: docs/decisions/0002-migrations.md.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psycopg
from msgspec import Struct

import migrations
from app.errors import ConfigurationError, DatabaseUnavailable

# Advisory lock of the one that migrates: "qasid" in ASCII. Polled, since a blocking wait holds a snapshot that
# CREATE INDEX CONCURRENTLY in the other process would wait for.
LOCK = 0x7161736964
LOCK_PATIENCE = 60.0

TABLE = """
CREATE TABLE IF NOT EXISTS migrations (
  name text PRIMARY KEY,
  checksum text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
)"""

# As the owner of the schema, who alone may read what was applied.
PRESENT = "SELECT to_regclass('public.migrations') IS NOT NULL"
APPLIED = "SELECT name, checksum FROM migrations"


class Migration(Struct, frozen=True, kw_only=True):
    """One file: its name, its text, and the SHA-256 of that text in hex."""

    name: str
    sql: str
    checksum: str


def available(folder: Path | None = None) -> list[Migration]:
    """The migrations that this build has, in order."""
    where = folder or Path(migrations.__file__).parent
    return [
        Migration(name=file.stem, sql=text, checksum=hashlib.sha256(text.encode()).hexdigest())
        for file in sorted(where.glob("[0-9]*.sql"))
        for text in [file.read_text()]
    ]


def migrate(url: str, folder: Path | None = None) -> Iterator[str]:
    """Apply what is missing, each file in a transaction of its own, and yield the name of each once it is committed.

    Two starts at once are safe: the second waits, then finds nothing to do.

    Raises:
        ConfigurationError: an applied file was edited since, the server is too old, or a file failed.
        DatabaseUnavailable: no connection, or another migration held the lock for a minute.
    """
    try:
        conn = psycopg.connect(url, autocommit=True, connect_timeout=10, application_name="qasid migrate")
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"PostgreSQL does not answer: {error}".rstrip()) from error
    with conn:
        if conn.info.server_version < 180000:
            raise ConfigurationError(
                f"PostgreSQL {conn.info.server_version // 10000} is too old: Qasid needs 18 (uuidv7, RETURNING old)."
            )
        _lock(conn)
        conn.execute(TABLE)
        applied: dict[str, str] = dict(conn.execute(APPLIED).fetchall())
        files = available(folder)
        check(files, applied)
        for migration in files:
            if migration.name in applied:
                continue
            try:
                with conn.transaction():
                    conn.execute(migration.sql.encode())
                    conn.execute(
                        "INSERT INTO migrations (name, checksum) VALUES (%s, %s)", (migration.name, migration.checksum)
                    )
            except psycopg.Error as error:
                raise ConfigurationError(
                    f"Migration {migration.name} failed, nothing of it remains: {error}"
                ) from error
            yield migration.name


def misfit(files: Sequence[Migration], applied: Mapping[str, str] | None) -> str:
    """Why a build with these files cannot work with a schema of these migrations (None: there is none); "" if it can.

    A newer build may have applied more: this one is about to be replaced then, and works until it is.
    """
    if applied is None:
        return "The database is empty: run `qasid migrate`."
    if missing := [file.name for file in files if file.name not in applied]:
        return f"The schema lacks {', '.join(missing)}: run `qasid migrate`."
    return _edited(files, applied)


def require(url: str) -> None:
    """Return if this build can work with the schema.

    Raises:
        ConfigurationError: it cannot, or nobody but the schema's owner may know.
        DatabaseUnavailable: PostgreSQL is away, which is another matter and may pass.
    """
    try:
        with psycopg.connect(
            url, autocommit=True, connect_timeout=3, application_name="qasid", options="-c statement_timeout=3000"
        ) as conn:
            there = conn.execute(PRESENT).fetchone() == (True,)
            applied: dict[str, str] | None = dict(conn.execute(APPLIED).fetchall()) if there else None
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError("The role in QASID_DATABASE_URL does not own the schema of Qasid.") from error
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"PostgreSQL does not answer: {error}".rstrip()) from error
    if why := misfit(available(), applied):
        raise ConfigurationError(why)


def check(files: Sequence[Migration], applied: Mapping[str, str]) -> None:
    """Refuse to migrate a schema that these files did not make.

    Raises:
        ConfigurationError: an applied file was edited, or was applied by a newer build that this one does not know.
    """
    known = {file.name for file in files}
    if newer := [name for name in applied if name not in known]:
        raise ConfigurationError(
            f"The schema has migration {', '.join(newer)}, which this build does not know: it is newer."
        )
    if edited := _edited(files, applied):
        raise ConfigurationError(edited)


def _edited(files: Sequence[Migration], applied: Mapping[str, str]) -> str:
    edited = [file.name for file in files if applied.get(file.name, file.checksum) != file.checksum]
    if not edited:
        return ""
    return f"Migration {', '.join(edited)} was edited after it was applied. Restore the file; put the change into a new one."


def _lock(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE
    while conn.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,)).fetchone() != (True,):
        if time.monotonic() > deadline:
            raise DatabaseUnavailable(f"Another migration has held the lock for {LOCK_PATIENCE:g} s. Is it stuck?")
        time.sleep(0.1)
