"""What every process knows of endpoints, tenants and channels: one snapshot in memory, replaced when its version rises.

Look-ups never touch the database. Nothing here writes, and no `repr` shows a secret.
"""

import asyncio
from collections.abc import Collection
from types import TracebackType
from typing import Self, cast
from uuid import UUID

import msgspec
import psycopg
import structlog
from msgspec import Struct

from app import db, tasks
from app.assistants.intents import Intents
from app.configuration import (
    Answering,
    Assistant,
    EndpointKind,
    InDoubt,
    Late,
    Limits,
    Texts,
    Transcription,
    Translation,
)
from app.db import Connection, Pool
from app.errors import ConfigurationError, DatabaseUnavailable, QasidError, Unknown
from app.store import configuration as store
from app.vault import (
    DIGEST_FIELD,
    INSTALLATION,
    Secret,
    SecretBytes,
    Vault,
    each_secret,
    owner_of,
    token_field,
)

log = structlog.get_logger(__name__)


class Endpoint(Struct, frozen=True, kw_only=True):
    """A webhook URL. Each of `secrets` verifies."""

    id: UUID
    slug: str
    kind: EndpointKind
    secrets: tuple[SecretBytes, ...]
    verify_token: Secret | None


class Channel(Struct, frozen=True, kw_only=True):
    """One WhatsApp address. `enabled` is its own: its tenant may be disabled besides."""

    tenant_id: UUID
    id: UUID
    slug: str
    endpoint_id: UUID
    address: str
    base_url: str
    token: Secret
    enabled: bool
    session_gap_hours: float
    answer_within_hours: float
    late: Late


class Tenant(Struct, frozen=True, kw_only=True):
    """An organisation. `intents`: ready to look up."""

    id: UUID
    slug: str
    name: str
    enabled: bool
    in_doubt: InDoubt
    assistant: Assistant | None
    texts: Texts
    limits: Limits
    intents: Intents
    translation: Translation | None = None
    transcription: Transcription | None = None


class Directory:
    """One version of the configuration. Names that come from outside may lead to None, ids of our own rows may not."""

    def __init__(
        self,
        *,
        version: int,
        digest_key: SecretBytes,
        endpoints: list[Endpoint],
        tenants: list[Tenant],
        channels: list[Channel],
    ) -> None:
        """`digest_key` is empty only where there is no endpoint: the first apply makes both."""
        self.version = version
        self.digest_key = digest_key
        self._endpoints = {e.slug: e for e in endpoints}
        self._by_id = {e.id: e for e in endpoints}
        self._tenants = {t.id: t for t in tenants}
        self._channels = {(c.tenant_id, c.id): c for c in channels}
        self._placed = {(c.endpoint_id, c.address): c for c in channels}
        self._by_address: dict[str, tuple[Channel, ...]] = {}
        for channel in channels:
            self._by_address[channel.address] = (*self._by_address.get(channel.address, ()), channel)

    @property
    def tenants(self) -> Collection[Tenant]:
        """Every tenant, disabled ones too."""
        return self._tenants.values()

    def endpoint(self, slug: str) -> Endpoint | None:
        """The endpoint of a URL, if there is one."""
        return self._endpoints.get(slug)

    def endpoint_by_id(self, endpoint_id: UUID) -> Endpoint | None:
        """The endpoint of a row that may be gone."""
        return self._by_id.get(endpoint_id)

    def endpoint_of(self, channel: Channel) -> Endpoint:
        """The endpoint that a channel is reached through."""
        return self._by_id[channel.endpoint_id]

    def channel_at(self, endpoint_id: UUID, address: str) -> Channel | None:
        """The channel that this endpoint may speak for under this address, if there is one."""
        return self._placed.get((endpoint_id, address))

    def channels_elsewhere(self, address: str) -> tuple[Channel, ...]:
        """The channels with this address, whatever their endpoint: what to ask when `channel_at` knew none."""
        return self._by_address.get(address, ())

    def channel(self, tenant_id: UUID, channel_id: UUID) -> Channel:
        """A tenant's channel. Raises Unknown: it was made after this version."""
        try:
            return self._channels[tenant_id, channel_id]
        except KeyError:
            raise Unknown(f"no channel {channel_id} of tenant {tenant_id} in version {self.version}") from None

    def tenant(self, tenant_id: UUID) -> Tenant:
        """A tenant. Raises Unknown: it was made after this version."""
        try:
            return self._tenants[tenant_id]
        except KeyError:
            raise Unknown(f"no tenant {tenant_id} in version {self.version}") from None


def answering(settings: str) -> Answering:
    """What a tenant's row keeps in `settings`, its secrets still sealed.

    Raises:
        ConfigurationError: a newer build wrote it.
    """
    try:
        return msgspec.json.decode(settings, type=Answering, dec_hook=lambda kind, text: kind(text))
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"A tenant's settings are not of this build's form: {error}. A newer build wrote them: upgrade this process."
        ) from None


async def read(conn: Connection, vault: Vault) -> Directory:
    """The configuration as the database has it, in one statement.

    Raises:
        ConfigurationError: a secret does not open, or the digest key is missing.
    """
    rows = await store.everything(conn)
    if rows.digest_key is None and rows.endpoints:
        raise ConfigurationError("The table keys has no row `digest`, which the first `qasid apply` makes.")
    digest_key = rows.digest_key and vault.open(rows.digest_key, owner=INSTALLATION, field=DIGEST_FIELD)
    return Directory(
        version=rows.version,
        digest_key=SecretBytes.fromhex(digest_key or ""),
        endpoints=[_endpoint(row, vault) for row in rows.endpoints],
        tenants=[_tenant(row, vault) for row in rows.tenants],
        channels=[_channel(row, vault) for row in rows.channels],
    )


def _endpoint(row: store.Endpoint, vault: Vault) -> Endpoint:
    owner = owner_of("endpoint", row.id)
    return Endpoint(
        id=row.id,
        slug=row.slug,
        kind=cast(EndpointKind, row.kind),
        secrets=tuple(SecretBytes(vault.open(s, owner=owner, field="secrets").encode()) for s in row.secrets),
        verify_token=vault.open(row.verify_token, owner=owner, field="verify_token") if row.verify_token else None,
    )


def _tenant(row: store.Tenant, vault: Vault) -> Tenant:
    owner = owner_of("tenant", row.id)
    settings = each_secret(answering(row.settings), lambda field, sealed: vault.open(sealed, owner=owner, field=field))
    return Tenant(
        id=row.id,
        slug=row.slug,
        name=row.name,
        enabled=row.enabled,
        in_doubt=cast(InDoubt, row.in_doubt),
        assistant=settings.assistant,
        texts=settings.texts or Texts(),
        limits=settings.limits or Limits(),
        intents=Intents(settings.intents or ()),
        translation=settings.translation,
        transcription=settings.transcription,
    )


def _channel(row: store.Channel, vault: Vault) -> Channel:
    token = vault.open(row.token, owner=owner_of("tenant", row.tenant_id), field=token_field(row.id))
    return Channel(**{**msgspec.structs.asdict(row), "token": token})


class Watch:
    """Keeps `current` no more than a second behind the database, and through an outage as it was.

    An async context manager: entering reads the first Directory.
    """

    def __init__(self, pool: Pool, vault: Vault, *, interval: float = 1.0) -> None:
        """`pool` is of the role qasid_courier and open; `interval` is in seconds."""
        self._pool = pool
        self._vault = vault
        self._interval = interval
        self._one_at_a_time = asyncio.Lock()  # or an older answer could replace a newer one
        self._blind = False
        self._forced_at = float("-inf")
        self._forced: asyncio.Task[bool] | None = None
        self._current: Directory | None = None

    @property
    def current(self) -> Directory:
        """The snapshot of this moment. Take it once per piece of work: the next one may be another."""
        assert self._current is not None, "a Watch is entered before it is read"
        return self._current

    async def __aenter__(self) -> Self:
        """Raises DatabaseUnavailable, or ConfigurationError as `read` does: there is no last one to go on with yet."""
        try:
            async with db.connection(self._pool, reads=True) as conn:
                self._current = await read(conn, self._vault)
        except psycopg.OperationalError as error:
            raise DatabaseUnavailable("the configuration could not be read") from error
        self._polling = asyncio.create_task(self._poll())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await tasks.end(self._polling, *([self._forced] if self._forced else []))

    async def refresh(self, *, patience: float = 1.5) -> bool:
        """Look now, for a name that `current` does not know; who asks meanwhile shares the look; one a second at most.

        True: `current` was compared with the database just now. False: it could not be within `patience` seconds, so
        nobody knows whether the name exists.
        """
        if self._forced is None or self._forced.done():
            self._forced = asyncio.create_task(self._force())
        look = self._forced
        done, _ = await asyncio.wait({look}, timeout=patience)
        return bool(done) and not look.cancelled() and look.result()

    async def _force(self) -> bool:
        now = asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, self._forced_at + self._interval - now()))
        self._forced_at = now()
        return await self._look()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self._look()

    async def _look(self) -> bool:
        try:
            async with self._one_at_a_time, db.connection(self._pool, reads=True) as conn:
                if await store.version(conn) != self.current.version:
                    self._current = await read(conn, self._vault)
        except (psycopg.Error, QasidError, msgspec.DecodeError, OSError) as error:
            if not self._blind:
                log.error("configuration cannot be read, the last one holds", error=error, version=self.current.version)
            self._blind = True
            return False
        if self._blind:
            log.info("configuration can be read again", version=self.current.version)
        self._blind = False
        return True
