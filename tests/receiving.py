"""A web process that takes webhooks, on a database with two tenants, and the books: where each item must be found."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from msgspec import Struct
from prometheus_client import REGISTRY

from app import settings
from app.apply import apply
from app.asgi import create_app
from app.vault import Vault
from tests import cloud_bodies as cloud

KEY = "22" * 32
ENVIRON = {
    "META": "meta-secret",
    "META_OLD": "old-secret",
    "OTHER": "other-secret",
    "VERIFY": "verify me & more",
    "TOKEN": "EAAG-token",
}
ENDPOINT = """
[endpoints.{slug}]
kind = "cloud"
secrets = [{secrets}]
verify_token = "env:VERIFY"
"""
CHANNEL = """
[tenants.{tenant}.channels.{slug}]
endpoint = "{endpoint}"
address = "{address}"
base_url = "http://127.0.0.1:9"
token = "env:TOKEN"
"""
META = ENDPOINT.format(slug="meta", secrets='"env:META", "env:META_OLD"')
OTHER = ENDPOINT.format(slug="other", secrets='"env:OTHER"')

# noor has 1001 and 1002 on the endpoint meta; amal has 2001 on the endpoint other.
CONFIGURATION = (
    META
    + OTHER
    + '[tenants.noor]\nname = "Noor"\n'
    + CHANNEL.format(tenant="noor", slug="main", endpoint="meta", address="1001")
    + CHANNEL.format(tenant="noor", slug="second", endpoint="meta", address="1002")
    + '[tenants.amal]\nname = "Amal"\n'
    + CHANNEL.format(tenant="amal", slug="main", endpoint="other", address="2001")
)

# A channel more, for items that nobody could place before it was there.
THIRD = CHANNEL.format(tenant="noor", slug="third", endpoint="meta", address="3001")


async def configure(url: str, folder: Path, text: str = CONFIGURATION) -> None:
    """Apply this text."""
    path = folder / "qasid.toml"
    path.write_text(text)
    await apply(url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)


def alerts(kind: str) -> float:
    """How often somebody was called for this."""
    return REGISTRY.get_sample_value("qasid_alerts_total", {"kind": kind}) or 0.0


class Receiver(Struct):
    """Asks a web process over HTTP, and the database what came of it (as superuser: of all tenants)."""

    http: httpx.AsyncClient
    url: str

    async def post(
        self, body: bytes, *, endpoint: str = "meta", secret: str | None = None, signature: str | None = None
    ) -> httpx.Response:
        """Post a webhook, signed as its endpoint's would be."""
        if signature is None:
            signature = cloud.signature(body, secret or ENVIRON[endpoint.upper()])
        return await self.http.post(
            f"/webhooks/{endpoint}",
            content=body,
            headers={"content-type": "application/json", "x-hub-signature-256": signature},
        )

    def execute(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What the database says."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            cursor = conn.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *values: object) -> Any:
        """The only value of the only row."""
        [[value]] = self.execute(query, *values)
        return value

    def counts(self) -> tuple[int, int, int]:
        """Rows of messages, statuses, quarantine."""
        [found] = self.execute(
            "SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM statuses), (SELECT count(*) FROM quarantine)"
        )
        return found[0], found[1], found[2]

    def unaccounted(self, body: bytes, endpoint: str = "meta") -> list[str]:
        """The items of a body, as `cloud_bodies.encode` wrote it, that are in none of the three tables."""
        of = "JOIN channels c ON (c.tenant_id, c.id) = (t.tenant_id, t.channel_id) JOIN endpoints e ON e.id = c.endpoint_id"
        messages = {
            tuple(row)
            for row in self.execute(f"SELECT c.address, t.provider_id FROM messages t {of} WHERE e.slug = %s", endpoint)
        }
        statuses = {
            tuple(row)
            for row in self.execute(
                f"SELECT c.address, t.provider_id, t.status, extract(epoch FROM t.at)::bigint "
                f"FROM statuses t {of} WHERE e.slug = %s",
                endpoint,
            )
        }
        kept = {
            bytes(digest)
            for [digest] in self.execute(
                "SELECT digest FROM quarantine q JOIN endpoints e ON e.id = q.endpoint_id WHERE e.slug = %s", endpoint
            )
        }
        missing = []
        for kind, address, item in items_of(json.loads(body)):
            raw = cloud.encode(item)
            if hashlib.sha256(raw).digest() in kept:
                continue
            if kind in ("messages", "message_echoes") and (address, item["id"]) in messages:
                continue
            if kind == "statuses" and (address, item["id"], item["status"], int(item["timestamp"])) in statuses:
                continue
            missing.append(raw.decode())
        return missing


def items_of(body: Any) -> Iterable[tuple[str, str, Any]]:
    """The list, the address and the item itself, for each item of a webhook."""
    for entry in body["entry"]:
        for change in entry["changes"]:
            value = change["value"]
            for kind in ("messages", "message_echoes", "statuses", "errors"):
                for item in value.get(kind) or []:
                    yield kind, value["metadata"]["phone_number_id"], item


@asynccontextmanager
async def process(url: str, superuser_url: str, *, ready: bool = True, **more: Any) -> AsyncIterator[Receiver]:
    """A web process (in this one) on the database at `url`; once it is ready, unless that is not waited for."""
    app = create_app(settings.Settings(database_url=url, secret_key=KEY, **more))
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://qasid.test") as http,  # type: ignore[arg-type]
    ):
        if ready:
            await until_ready(http)
        yield Receiver(http, superuser_url)


async def until_ready(http: httpx.AsyncClient) -> None:
    """Return once /readyz is 200, at the latest in half a minute."""
    async with asyncio.timeout(30):
        while (await http.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.02)


@pytest.fixture
async def web(database: Any, tmp_path: Path) -> AsyncIterator[Receiver]:
    """A web process on a configured database. `web = receiving.web` brings it into a file."""
    await configure(database.url, tmp_path)
    async with process(database.url, database.superuser_url) as receiver:
        yield receiver
