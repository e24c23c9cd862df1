"""The table `operators`: people who may log in. Needs `qasid_app` for the installation. Sees no clear password."""

from datetime import datetime
from uuid import UUID

from msgspec import Struct
from psycopg.rows import class_row

from app.db import Connection


class Operator(Struct, frozen=True, kw_only=True):
    """One row. `password` is an Argon2id hash; `session` the number that a valid session carries."""

    id: UUID
    name: str
    password: str
    session: int
    created_at: datetime


BY_NAME = "SELECT id, name, password, session, created_at FROM operators WHERE name = %s"


async def by_name(conn: Connection, name: str) -> Operator | None:
    """The operator of that name, if there is one."""
    async with conn.cursor(row_factory=class_row(Operator)) as cursor:
        return await (await cursor.execute(BY_NAME, (name,))).fetchone()


BY_ID = "SELECT id, name, password, session, created_at FROM operators WHERE id = %s"


async def by_id(conn: Connection, id: UUID) -> Operator | None:
    """The operator of that id, if there still is one."""
    async with conn.cursor(row_factory=class_row(Operator)) as cursor:
        return await (await cursor.execute(BY_ID, (id,))).fetchone()


EVERY = "SELECT id, name, password, session, created_at FROM operators ORDER BY name"


async def every(conn: Connection) -> list[Operator]:
    """All operators, by name."""
    async with conn.cursor(row_factory=class_row(Operator)) as cursor:
        return await (await cursor.execute(EVERY)).fetchall()


ADD = "INSERT INTO operators (name, password) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING RETURNING id"


async def add(conn: Connection, name: str, password: str) -> bool:
    """Add an operator by name and hash. False: the name is taken, nothing changed."""
    return await (await conn.execute(ADD, (name, password))).fetchone() is not None


SET_PASSWORD = "UPDATE operators SET password = %s, session = session + 1 WHERE name = %s"  # noqa: S105  a statement


async def set_password(conn: Connection, name: str, password: str) -> bool:
    """Store another hash, which ends the operator's sessions. False: there is no such operator."""
    return (await conn.execute(SET_PASSWORD, (password, name))).rowcount == 1


REMOVE = "DELETE FROM operators WHERE name = %s"


async def remove(conn: Connection, name: str) -> bool:
    """Delete an operator, which ends their sessions. False: there is none of that name."""
    return (await conn.execute(REMOVE, (name,))).rowcount == 1
