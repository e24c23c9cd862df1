"""The tables `configuration`, `keys`, `endpoints`, `tenants`, `channels`: `qasid apply` writes, every process reads.

Secrets pass through here sealed. `everything` and `version` are the courier's; the rest is for `qasid_app`.
"""

from collections.abc import Sequence
from uuid import UUID

import msgspec
from msgspec import Struct
from psycopg.rows import class_row

from app.db import Connection

DIGEST_KEY = "digest"


class Endpoint(Struct, frozen=True, kw_only=True):
    """One row; `secrets` and `verify_token` are sealed."""

    id: UUID
    slug: str
    kind: str
    secrets: list[str]
    verify_token: str | None


class Tenant(Struct, frozen=True, kw_only=True):
    """One row; `settings` is JSON as a text, the secrets in it sealed."""

    id: UUID
    slug: str
    name: str
    enabled: bool
    in_doubt: str
    settings: str


class Owner(Struct, frozen=True, kw_only=True):
    """Of a tenant: who it is, and whom it has that a breaker leads to."""

    id: UUID
    slug: str
    has_assistant: bool
    has_fallback: bool
    has_translator: bool
    has_transcriber: bool


class Channel(Struct, frozen=True, kw_only=True):
    """One row; `token` is sealed."""

    tenant_id: UUID
    id: UUID
    slug: str
    endpoint_id: UUID
    address: str
    base_url: str
    token: str
    enabled: bool
    session_gap_hours: float
    answer_within_hours: float
    late: str


class Everything(Struct, frozen=True, kw_only=True):
    """The whole configuration at one version; `digest_key` is sealed, None before the first apply."""

    version: int
    digest_key: str | None
    endpoints: list[Endpoint]
    tenants: list[Tenant]
    channels: list[Channel]


# One statement sees one snapshot, so the version is the version of what stands beside it.
EVERYTHING = """
SELECT json_build_object(
  'version', (SELECT version FROM configuration),
  'digest_key', (SELECT sealed FROM keys WHERE name = 'digest'),
  'endpoints', (SELECT coalesce(json_agg(t), '[]')
                FROM (SELECT id, slug, kind, secrets, verify_token FROM endpoints) t),
  'tenants', (SELECT coalesce(json_agg(t), '[]')
              FROM (SELECT id, slug, name, enabled, in_doubt, settings::text FROM tenants) t),
  'channels', (SELECT coalesce(json_agg(t), '[]')
               FROM (SELECT tenant_id, id, slug, endpoint_id, address, base_url, token, enabled, session_gap_hours,
                            answer_within_hours, late FROM channels) t))::text
"""


async def everything(conn: Connection) -> Everything:
    """The whole configuration, in one round trip."""
    row = await (await conn.execute(EVERYTHING)).fetchone()
    assert row is not None
    return msgspec.json.decode(row[0], type=Everything)


VERSION = "SELECT version FROM configuration"


async def version(conn: Connection) -> int:
    """The version that the configuration has now."""
    row = await (await conn.execute(VERSION)).fetchone()
    assert row is not None
    return int(row[0])


# The tenant that the transaction acts for from here on, or, when it is '', the installation: never both.
ACT_FOR = """
SELECT set_config('app.tenant', %(tenant_id)s, true),
       set_config('app.installation', CASE %(tenant_id)s WHEN '' THEN 'on' ELSE '' END, true)
"""


async def act_for(conn: Connection, tenant_id: UUID | None) -> None:
    """Act for this tenant for the rest of the transaction; None: for the installation."""
    await conn.execute(ACT_FOR, {"tenant_id": "" if tenant_id is None else str(tenant_id)})


LOCK = "SELECT version FROM configuration FOR UPDATE"


async def lock(conn: Connection) -> int:
    """Wait until no other apply is at work, and return the version. Held to the end of the transaction."""
    row = await (await conn.execute(LOCK)).fetchone()
    assert row is not None
    return int(row[0])


RAISE_VERSION = "UPDATE configuration SET version = version + 1"


async def raise_version(conn: Connection) -> None:
    """Let every process read the configuration anew."""
    await conn.execute(RAISE_VERSION)


KEY = "SELECT sealed FROM keys WHERE name = %s"


async def key(conn: Connection, name: str) -> str | None:
    """A key that Qasid made for itself, sealed."""
    row = await (await conn.execute(KEY, (name,))).fetchone()
    return None if row is None else str(row[0])


ADD_KEY = "INSERT INTO keys (name, sealed) VALUES (%s, %s)"


async def add_key(conn: Connection, name: str, sealed: str) -> None:
    """Keep a key. There is none of that name."""
    await conn.execute(ADD_KEY, (name, sealed))


SEAL_KEY = "UPDATE keys SET sealed = %s WHERE name = %s"


async def seal_key(conn: Connection, name: str, sealed: str) -> None:
    """The same key, sealed anew."""
    await conn.execute(SEAL_KEY, (sealed, name))


NEW_IDS = "SELECT uuidv7() FROM generate_series(1, %s)"


async def new_ids(conn: Connection, n: int) -> list[UUID]:
    """Ids for rows that are to come: a secret is sealed for its row's id."""
    return [row[0] for row in await (await conn.execute(NEW_IDS, (n,))).fetchall()]


ENDPOINTS = "SELECT id, slug, kind, secrets, verify_token FROM endpoints ORDER BY slug"


async def endpoints(conn: Connection) -> list[Endpoint]:
    """All endpoints."""
    async with conn.cursor(row_factory=class_row(Endpoint)) as cursor:
        return await (await cursor.execute(ENDPOINTS)).fetchall()


TENANTS = "SELECT id, slug, name, enabled, in_doubt, settings::text FROM tenants WHERE slug = ANY(%s)"


async def tenants(conn: Connection, slugs: Sequence[str]) -> list[Tenant]:
    """Those of these tenants that there are."""
    async with conn.cursor(row_factory=class_row(Tenant)) as cursor:
        return await (await cursor.execute(TENANTS, (list(slugs),))).fetchall()


OWNERS = """
SELECT id, slug, coalesce(jsonb_typeof(settings -> 'assistant') = 'object', false) AS has_assistant,
       coalesce(jsonb_typeof(settings -> 'assistant' -> 'fallback') = 'object', false) AS has_fallback,
       coalesce(settings -> 'translation' ->> 'provider' = 'libretranslate', false) AS has_translator,
       coalesce(jsonb_typeof(settings -> 'transcription') = 'object', false) AS has_transcriber
FROM tenants ORDER BY slug
"""


async def owners(conn: Connection) -> list[Owner]:
    """Every tenant, by slug."""
    async with conn.cursor(row_factory=class_row(Owner)) as cursor:
        return await (await cursor.execute(OWNERS)).fetchall()


CHANNELS = """
SELECT tenant_id, id, slug, endpoint_id, address, base_url, token, enabled, session_gap_hours, answer_within_hours, late
FROM channels WHERE tenant_id = %s
"""


async def channels(conn: Connection, tenant_id: UUID) -> list[Channel]:
    """The channels of the tenant that the transaction acts for."""
    async with conn.cursor(row_factory=class_row(Channel)) as cursor:
        return await (await cursor.execute(CHANNELS, (tenant_id,))).fetchall()


SAVE_ENDPOINT = """
INSERT INTO endpoints (id, slug, kind, secrets, verify_token)
VALUES (%(id)s, %(slug)s, %(kind)s, %(secrets)s, %(verify_token)s)
ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, secrets = excluded.secrets, verify_token = excluded.verify_token
"""


async def save_endpoint(conn: Connection, row: Endpoint) -> None:
    """Write the row, new or not."""
    await conn.execute(SAVE_ENDPOINT, msgspec.structs.asdict(row))


SAVE_TENANT = """
INSERT INTO tenants (id, slug, name, enabled, in_doubt, settings)
VALUES (%(id)s, %(slug)s, %(name)s, %(enabled)s, %(in_doubt)s, %(settings)s::jsonb)
ON CONFLICT (id) DO UPDATE SET name = excluded.name, enabled = excluded.enabled, in_doubt = excluded.in_doubt,
  settings = excluded.settings
"""


async def save_tenant(conn: Connection, row: Tenant) -> None:
    """Write the row, new or not."""
    await conn.execute(SAVE_TENANT, msgspec.structs.asdict(row))


# An address that moves leaves its place first: another channel of the same file may be about to take it, and the
# constraint on addresses looks at each row as it is written.
VACATE = "UPDATE channels SET address = id::text WHERE tenant_id = %s AND id = %s"


async def vacate(conn: Connection, row: Channel) -> None:
    """Give up the channel's address, until `save_channel` in the same transaction sets another."""
    await conn.execute(VACATE, (row.tenant_id, row.id))


SAVE_CHANNEL = """
INSERT INTO channels (tenant_id, id, slug, endpoint_id, address, base_url, token, enabled, session_gap_hours,
                      answer_within_hours, late)
VALUES (%(tenant_id)s, %(id)s, %(slug)s, %(endpoint_id)s, %(address)s, %(base_url)s, %(token)s, %(enabled)s,
        %(session_gap_hours)s, %(answer_within_hours)s, %(late)s)
ON CONFLICT (tenant_id, id) DO UPDATE SET endpoint_id = excluded.endpoint_id, address = excluded.address,
  base_url = excluded.base_url, token = excluded.token, enabled = excluded.enabled,
  session_gap_hours = excluded.session_gap_hours, answer_within_hours = excluded.answer_within_hours,
  late = excluded.late
"""


async def save_channel(conn: Connection, row: Channel) -> None:
    """Write the row, new or not. UniqueViolation: the address is another tenant's channel on this endpoint."""
    await conn.execute(SAVE_CHANNEL, msgspec.structs.asdict(row))


# Two seconds from now: by then every process has read the new configuration (it looks once a second), so that what is
# tried again is not tried with the old token. A lane that is worked on at this instant too: it may just have been refused.
WAKE_LANES = """
WITH waiting AS MATERIALIZED (
  SELECT conversation_id FROM lanes
  WHERE tenant_id = %(tenant_id)s AND done_seq < head_seq AND (owner IS NOT NULL OR run_at > qasid_now())
  ORDER BY conversation_id FOR NO KEY UPDATE)
UPDATE lanes l SET run_at = least(l.run_at, qasid_now() + interval '2 seconds') FROM waiting w
WHERE l.tenant_id = %(tenant_id)s AND l.conversation_id = w.conversation_id
"""
# A statement of its own: its snapshot is newer than the lanes' locks.
RELEASE_CHUNKS = """
UPDATE chunks c SET due_at = qasid_now() + interval '2 seconds' FROM lanes l
WHERE l.tenant_id = %(tenant_id)s AND l.done_seq < l.head_seq AND l.run_at <= qasid_now() + interval '2 seconds'
  AND c.tenant_id = l.tenant_id AND c.conversation_id = l.conversation_id AND c.seq > l.done_seq
  AND c.state = 'ready' AND c.due_at > qasid_now() + interval '2 seconds'
"""
END_HOLDS = """
WITH held AS MATERIALIZED (
  SELECT channel_id FROM holds WHERE tenant_id = %(tenant_id)s ORDER BY channel_id FOR NO KEY UPDATE)
UPDATE holds w SET until = least(w.until, qasid_now() + interval '2 seconds') FROM held
WHERE w.tenant_id = %(tenant_id)s AND w.channel_id = held.channel_id
"""


async def wake(conn: Connection, tenant_id: UUID) -> None:
    """Let what waits in this tenant's lanes be tried as soon as every process has the new configuration."""
    await conn.execute(WAKE_LANES, {"tenant_id": tenant_id})
    await conn.execute(RELEASE_CHUNKS, {"tenant_id": tenant_id})
    await conn.execute(END_HOLDS, {"tenant_id": tenant_id})
