"""Rows that the store's functions can be tried on, without a configuration file: one tenant, and its twin.

The twin has the same ids under another tenant. It is never acted upon, so whatever changes it was too wide a statement.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from msgspec import Struct
from psycopg.rows import dict_row

from app import db
from app.db import Connection
from app.messages import Identity, Key, Message, Status
from app.store import doors, inbox, lanes, settlements, statuses, turns
from app.store.inbox import Outcome, Placed
from app.store.lanes import Claim
from app.store.statuses import Effect, Reported

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class Ground(Struct, frozen=True):
    """`conn` is the courier's, `owner` may do everything; both in autocommit."""

    url: str
    superuser_url: str
    conn: Connection
    owner: psycopg.AsyncConnection[dict[str, Any]]
    tenant: UUID
    twin: UUID
    endpoint: UUID
    channel: UUID
    numbers: Any

    async def all(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Rows, read by the owner."""
        return await (await self.owner.execute(query.encode(), values)).fetchall()

    async def act(self, statement: str, *values: object) -> None:
        """A statement of the owner's."""
        await self.owner.execute(statement.encode(), values)

    async def pass_time(self, seconds: float) -> None:
        """Put the database's clock so far ahead of the true one."""
        body = f"SELECT now() + interval '{seconds} seconds'"
        await self.act(
            f"CREATE OR REPLACE FUNCTION qasid_now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS $${body}$$"
        )

    async def another(self) -> Connection:
        """One more connection of the courier's; the caller closes it."""
        options = db.options("qasid_courier", timeout=10.0)
        return await psycopg.AsyncConnection.connect(self.url, autocommit=True, **options)

    # --- rows ---

    async def lane(self, *, channel: UUID | None = None) -> UUID:
        """A person, their conversation and its empty lane, for the tenant and the twin alike."""
        conversation, contact = uuid4(), uuid4()
        for tenant in (self.tenant, self.twin):
            values = (tenant, contact, f"1555{next(self.numbers):07}", conversation, channel or self.channel)
            await self.act("INSERT INTO contacts (tenant_id, id) VALUES (%s, %s)", *values[:2])
            await self.act(
                "INSERT INTO identities (tenant_id, kind, value, contact_id) VALUES (%s, 'wa_id', %s, %s)",
                *(tenant, values[2], contact),
            )
            await self.act(
                "INSERT INTO conversations (tenant_id, id, channel_id, contact_id) VALUES (%s, %s, %s, %s)",
                *(tenant, conversation, values[4], contact),
            )
            await self.act(
                "INSERT INTO lanes (tenant_id, conversation_id, channel_id) VALUES (%s, %s, %s)",
                *(tenant, conversation, values[4]),
            )
        return conversation

    async def channel_beside(self) -> UUID:
        """One more channel on the same endpoint, for the tenant and the twin alike."""
        channel = uuid4()
        for tenant in (self.tenant, self.twin):
            await self.act(
                "INSERT INTO channels (tenant_id, id, slug, endpoint_id, address, base_url, token) "
                "VALUES (%s, %s, %s, %s, %s, '', '')",
                *(tenant, channel, channel, self.endpoint, f"beside {tenant}"),
            )
        return channel

    async def row(self, conversation: UUID) -> dict[str, Any]:
        """The lane as it stands, with `due`: whether it may be claimed now."""
        [row] = await self.all(
            "SELECT *, owner IS NULL AND run_at <= qasid_now() IS TRUE AS due, extract(epoch FROM run_at - qasid_now()) AS runs_in "
            "FROM lanes WHERE tenant_id = %s AND conversation_id = %s",
            *(self.tenant, conversation),
        )
        return row

    async def twins(self) -> list[dict[str, Any]]:
        """Everything of the twin's that moves."""
        found = []
        for table in (
            "lanes",
            "messages",
            "outbox",
            "seen",
            "turns",
            "chunks",
            "attempts",
            "statuses",
            "usage",
            "steps",
        ):
            found += await self.all(
                f"SELECT x::text AS {table} FROM {table} x WHERE tenant_id = %s ORDER BY 1", self.twin
            )
        return found

    # --- what happens ---

    def placed(self, conversation: UUID, body: str = "question", **more: Any) -> Placed:
        """A message to this conversation; `id` is the provider's, a new one unless given."""
        provider_id = str(more.pop("id", f"wamid.{next(self.numbers)}"))
        about = more.pop("about", None)
        return Placed(
            tenant_id=self.tenant,
            channel_id=more.pop("channel", self.channel),
            conversation_id=conversation,
            digest=sha256(provider_id.encode()).digest()[:16],
            refers_to=sha256(about.encode()).digest()[:16] if about else None,
            message=Message(
                **{
                    "address": "1001",
                    "provider_id": provider_id,
                    "direction": "in",
                    "kind": "text",
                    "sent_at": NOW,
                    "identities": (Identity("wa_id", "15550000000"),),
                    "name": "",
                    "body": body,
                    "raw": b"{}",
                    **more,
                }
            ),
            correlation="c",
            ack_ms=1.0,
        )

    async def ingest(self, *placed: Placed, conn: Connection | None = None) -> list[Outcome]:
        """Store them."""
        return await inbox.ingest(conn or self.conn, placed)

    async def worker(self, lease: float = 60.0) -> UUID:
        """A worker that is alive for so many seconds."""
        worker = uuid4()
        await lanes.register(self.conn, worker, lease)
        return worker

    async def claim(self, worker: UUID, most: int = 100, full: Sequence[UUID] = ()) -> list[Claim]:
        """See `lanes.claim`."""
        return await lanes.claim(self.conn, worker, most, full)

    async def release(self, worker: UUID, claim: Claim, done_seq: int | None = None, **more: Any) -> bool:
        """Give one lane back; whether it is due again at once."""
        [due_in] = await lanes.release(self.conn, worker, [lanes.Release(claim=claim, done_seq=done_seq, **more)])
        return due_in == 0

    async def door(self, *, beat: float = 3600.0) -> None:
        """Statuses can come in, for so many seconds."""
        await doors.beat(self.conn, "here", beat, [], everything=False)

    async def open(
        self, claim: Claim, order_wait: float = 10.0, *, silence: float = 30.0, brake: int = 0
    ) -> turns.Opening:
        """See `turns.open_lanes`."""
        [text] = await turns.open_lanes(self.conn, [turns.Open(claim, 20, brake)], order_wait, silence)
        return turns.opening(text)

    async def settle(
        self, worker: UUID, claim: Claim, turn: turns.Turn, *bodies: str, **more: Any
    ) -> tuple[str, list[UUID]]:
        """Settle a turn with chunks of these bodies; the fence's word and the chunks' ids."""
        pieces = [(uuid4(), body) for body in bodies]
        settlement: dict[str, Any] = {"version": None, "outcome": "answered", "send": False, "correlation": "c"} | more
        [settled] = await settlements.settle(
            self.conn,
            worker,
            [settlements.Settlement(claim=claim, turn=turn, body=" ".join(bodies), pieces=pieces, **settlement)],
        )
        return settled.fence, [id for id, _ in pieces]

    def status(self, chunk: UUID, status: str, *, attempt: int = 1, **more: Any) -> Reported:
        """What the provider says of an attempt; `channel`, `tenant`, `code` and `at` unless as usual."""
        provider_id = more.get("provider_id", f"wamid.of.{chunk}:{attempt}")
        said = f"{provider_id} {status} {more.get('at', NOW)} {attempt}"
        return Reported(
            more.get("tenant", self.tenant),
            more.get("channel", self.channel),
            sha256(said.encode()).digest()[:16],
            Status(
                address="1001",
                provider_id=provider_id,
                status=status,  # type: ignore[arg-type]
                at=more.get("at", NOW),
                key=Key(chunk, attempt),
                code=more.get("code"),
                reason="",
                raw=b"{}",
            ),
        )

    async def told(self, *reported: Reported) -> list[Effect]:
        """Apply statuses in one batch."""
        return await statuses.apply(self.conn, reported)


@asynccontextmanager
async def ground(url: str, superuser_url: str) -> AsyncIterator[Ground]:
    """Laid, and the twin looked at when it is left."""
    tenant, twin, endpoint, channel = uuid4(), uuid4(), uuid4(), uuid4()
    options = db.options("qasid_courier", timeout=10.0)
    async with (
        await psycopg.AsyncConnection.connect(superuser_url, autocommit=True, row_factory=dict_row) as owner,
        await psycopg.AsyncConnection.connect(url, autocommit=True, **options) as conn,
    ):
        ground = Ground(url, superuser_url, conn, owner, tenant, twin, endpoint, channel, count(1))
        await ground.act("INSERT INTO endpoints (id, slug, kind, secrets) VALUES (%s, 'meta', 'cloud', '{}')", endpoint)
        for id, address in ((tenant, "1001"), (twin, "1002")):
            await ground.act("INSERT INTO tenants (id, slug, name) VALUES (%s, %s, 'T')", id, address)
            await ground.act(
                "INSERT INTO channels (tenant_id, id, slug, endpoint_id, address, base_url, token) "
                "VALUES (%s, %s, 'main', %s, %s, '', '')",
                *(id, channel, endpoint, address),
            )
        yield ground
        lanes_of_twin = await ground.all(
            "SELECT head_seq, done_seq, run_at, owner, token, version, attempts FROM lanes WHERE tenant_id = %s", twin
        )
        assert {tuple(row.values()) for row in lanes_of_twin} <= {(0, 0, None, None, 0, 0, 0)}, lanes_of_twin
        assert all(set(row) == {"lanes"} for row in await ground.twins())


@pytest.fixture
async def here(database: Any) -> AsyncIterator[Ground]:
    """A ground of the test's own. `here = shared.here` brings it into a file."""
    async with ground(database.url, database.superuser_url) as here:
        yield here
