"""`qasid apply`: brings a configuration file into the database, all of it or nothing, and tells what changed.

A table that the file names becomes what the file says, its absent keys their defaults, its lists whole; what the file
does not name stays as it is, unless the tenant's `without` takes it back. No tenant and no channel is deleted:
`enabled = false` stops it.
"""

import asyncio
import difflib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast
from uuid import UUID

import msgspec
import psycopg
from msgspec import Struct

from app import configuration, db
from app.assistants.intents import Intents
from app.configuration import Answering, Channel, Configuration, Endpoint, Tenant
from app.db import Connection
from app.differences import differences
from app.directory import answering
from app.errors import ConfigurationError, DatabaseUnavailable
from app.migrate import require
from app.store import configuration as store
from app.tables import Mistakes
from app.vault import DIGEST_FIELD, INSTALLATION, Secret, Vault, each_secret, owner_of, secrets_in, token_field

ANEW = "secrets sealed anew, under the first key"


class Applied(Struct, frozen=True, kw_only=True):
    """What an apply did: a line per change, none of them with a secret in it, and what to know besides."""

    changes: tuple[str, ...]
    warnings: tuple[str, ...]


async def apply(url: str, path: Path, vault: Vault, environ: Mapping[str, str]) -> Applied:
    """Apply the file at `path` to the database at `url`, in one transaction. Of two at once the second waits.

    Raises:
        ConfigurationError: the file is wrong in itself or beside what the database has, or the schema is not this build's.
        DatabaseUnavailable: PostgreSQL did not answer in time. Apply again: it is idempotent.
    """
    wanted = configuration.load(path, environ)
    await asyncio.to_thread(require, url)
    pool = db.pool(url, "qasid_app", name="apply", max_size=1)
    plan = _Plan(wanted, vault)
    try:
        async with pool, db.acting(pool) as conn:
            await store.lock(conn)
            await plan.draw(conn)
            if plan.changes:
                await plan.carry_out(conn)
    except psycopg.errors.UniqueViolation:
        raise ConfigurationError(f"{path}: {plan.taken()}") from None
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"the configuration was not applied: {error}".rstrip()) from error
    return Applied(changes=tuple(plan.changes), warnings=(*wanted.warnings, *plan.warnings))


class _Plan:
    """First everything is read and compared, then everything is written in one go: locks on lanes are short."""

    def __init__(self, wanted: Configuration, vault: Vault) -> None:
        self.changes: list[str] = []
        self.warnings: list[str] = []
        self._wanted = wanted
        self._vault = vault
        self._mistakes = Mistakes()
        self._endpoint_ids: dict[str, UUID] = {}
        self._digest_key: str | None = None  # sealed, where it is to be written
        self._has_digest_key = False
        self._endpoints: list[store.Endpoint] = []
        self._tenants: list[store.Tenant] = []
        self._channels: list[tuple[store.Channel, str]] = []  # with its place in the file
        self._moving: list[store.Channel] = []
        self._new_places: list[str] = []
        self._waking: set[UUID] = set()

    async def draw(self, conn: Connection) -> None:
        """Find out what is to be written. Raises ConfigurationError before anything is."""
        self._seal_digest_key(await store.key(conn, store.DIGEST_KEY))
        rows = {row.slug: row for row in await store.endpoints(conn)}
        self._endpoint_ids = {slug: row.id for slug, row in rows.items()}
        new = [slug for slug in self._wanted.endpoints if slug not in rows]
        self._endpoint_ids |= dict(zip(new, await store.new_ids(conn, len(new)), strict=True))
        for slug, endpoint in self._wanted.endpoints.items():
            self._compare_endpoint(slug, endpoint, rows.get(slug))
        tenants = {row.slug: row for row in await store.tenants(conn, list(self._wanted.tenants))}
        for slug, tenant in self._wanted.tenants.items():
            row = tenants.get(slug)
            tenant_id = row.id if row is not None else (await store.new_ids(conn, 1))[0]
            self._compare_tenant(slug, tenant, row, tenant_id)
            await store.act_for(conn, tenant_id)
            await self._compare_channels(conn, slug, tenant, tenant_id)
            await store.act_for(conn, None)
        self._mistakes.stop(self._wanted.path)

    async def carry_out(self, conn: Connection) -> None:
        """Write what `draw` found, in one round trip; lanes before all else, as everywhere."""
        async with conn.pipeline():
            for tenant_id in sorted(self._waking):
                await store.act_for(conn, tenant_id)
                await store.wake(conn, tenant_id)
            await store.act_for(conn, None)
            if self._digest_key is not None:
                write = store.seal_key if self._has_digest_key else store.add_key
                await write(conn, store.DIGEST_KEY, self._digest_key)
            for endpoint in self._endpoints:
                await store.save_endpoint(conn, endpoint)
            for tenant in self._tenants:
                await store.save_tenant(conn, tenant)
            for channel in self._moving:
                await store.act_for(conn, channel.tenant_id)
                await store.vacate(conn, channel)
            for channel, _ in self._channels:
                await store.act_for(conn, channel.tenant_id)
                await store.save_channel(conn, channel)
            await store.act_for(conn, None)
            await store.raise_version(conn)

    def taken(self) -> str:
        """The sentence for an address that another tenant has. Which one it is the database does not say: it may be
        a tenant that is not ours to see.
        """
        places = self._new_places
        which = places[0] if len(places) == 1 else f"one of {', '.join(places)}"
        return f"{which}: is the address of another channel on that endpoint already."

    def _seal_digest_key(self, sealed: str | None) -> None:
        """Made once, never replaced: under another key, redelivered messages would look new."""
        if sealed is None:
            plain: str = secrets.token_hex(32)
            self.changes.append("+ key digest")
        elif self._vault.is_current(sealed):
            return
        else:
            plain = self._vault.open(sealed, owner=INSTALLATION, field=DIGEST_FIELD)
            self._has_digest_key = True
            self.changes.append(f"~ key digest: {ANEW}")
        self._digest_key = self._vault.seal(plain, owner=INSTALLATION, field=DIGEST_FIELD)

    def _compare_endpoint(self, slug: str, wanted: Endpoint, row: store.Endpoint | None) -> None:
        place = f"endpoints.{slug}"
        owner = owner_of("endpoint", self._endpoint_ids[slug])
        if row is None:
            lines = [f"+ endpoint {slug}"]
        else:
            before = Endpoint(
                kind=cast(configuration.EndpointKind, row.kind),
                secrets=tuple(self._opened(s, owner, "secrets") for s in row.secrets),
                verify_token=self._opened(row.verify_token, owner, "verify_token") if row.verify_token else None,
            )
            sealed = [*row.secrets, *([row.verify_token] if row.verify_token else [])]
            lines = differences(place, before, wanted) or self._renewed(place, sealed)
        if lines:
            self.changes += lines
            self._endpoints.append(
                store.Endpoint(
                    id=self._endpoint_ids[slug],
                    slug=slug,
                    kind=wanted.kind,
                    secrets=[self._vault.seal(s, owner=owner, field="secrets") for s in wanted.secrets],
                    verify_token=wanted.verify_token
                    and self._vault.seal(wanted.verify_token, owner=owner, field="verify_token"),
                )
            )

    def _compare_tenant(self, slug: str, wanted: Tenant, row: store.Tenant | None, tenant_id: UUID) -> None:
        place, owner = f"tenants.{slug}", owner_of("tenant", tenant_id)
        stored = answering(row.settings) if row is not None else Answering()
        opened = each_secret(stored, lambda field, sealed: self._opened(sealed, owner, field))
        stays = [f for f in Answering.__struct_fields__ if getattr(wanted, f) is None and f not in wanted.without]
        after = msgspec.structs.replace(wanted, **{f: getattr(opened, f) for f in stays}, without=(), channels={})
        if kept := [f for f in stays if getattr(opened, f)]:
            self.warnings.append(
                f"{place}: the database has {', '.join(kept)} of an earlier file, which this one does not name: left in "
                f"force. To take back: without = {msgspec.json.encode(kept).decode()}."
            )
        if row is None:
            lines = [f"+ tenant {slug}"]
        else:
            before = Tenant(
                name=row.name,
                enabled=row.enabled,
                in_doubt=cast(configuration.InDoubt, row.in_doubt),
                **{f: getattr(opened, f) for f in Answering.__struct_fields__},
            )
            lines = differences(place, before, after) or self._renewed(place, secrets_in(stored))
            if before.enabled != after.enabled or before.assistant != after.assistant:
                self._waking.add(tenant_id)
            if _can_start(before) and not _can_start(after):
                self.warnings.append(
                    f'{place}.intents: none of them has then = "start" any more, so no stop of before counts: whoever had '
                    "stopped is answered again."
                )
        if after.assistant is None:
            self.warnings.append(f"{place}: has no assistant: what no intent answers is answered with texts.failure.")
            if after.transcription is not None:
                self.warnings.append(f"{place}.transcription: does nothing without an assistant.")
        if lines:
            self.changes += lines
            settings = Answering(**{f: getattr(after, f) for f in Answering.__struct_fields__})
            settings = each_secret(settings, lambda field, plain: self._vault.seal(plain, owner=owner, field=field))
            self._tenants.append(
                store.Tenant(
                    id=tenant_id,
                    slug=slug,
                    name=after.name,
                    enabled=after.enabled,
                    in_doubt=after.in_doubt,
                    settings=msgspec.json.encode(settings, enc_hook=str).decode(),
                )
            )

    async def _compare_channels(self, conn: Connection, slug: str, tenant: Tenant, tenant_id: UUID) -> None:
        rows = {row.slug: row for row in await store.channels(conn, tenant_id)}
        slugs = {endpoint_id: name for name, endpoint_id in self._endpoint_ids.items()}
        owner = owner_of("tenant", tenant_id)
        for name, wanted in tenant.channels.items():
            place = f"tenants.{slug}.channels.{name}"
            if (endpoint_id := self._endpoint_ids.get(wanted.endpoint)) is None:
                self._mistakes.add(f"{place}.endpoint", _no_endpoint(wanted.endpoint, list(self._endpoint_ids)))
                continue
            row = rows.get(name)
            channel_id = row.id if row is not None else (await store.new_ids(conn, 1))[0]
            field = token_field(channel_id)
            if row is None:
                lines = [f"+ channel {slug}.{name}"]
                self._new_places.append(f"{place}.address")
            else:
                kept = {f: getattr(row, f) for f in Channel.__struct_fields__ if f not in ("endpoint", "token")}
                token = self._opened(row.token, owner, field)
                lines = differences(place, Channel(endpoint=slugs[row.endpoint_id], token=token, **kept), wanted)
                if lines:
                    self._waking.add(tenant_id)
                lines = lines or self._renewed(place, [row.token])
                if (row.endpoint_id, row.address) != (endpoint_id, wanted.address):
                    self._moving.append(row)
                    self._new_places.append(f"{place}.address")
            if lines:
                self.changes += lines
                kept = {f: getattr(wanted, f) for f in Channel.__struct_fields__ if f not in ("endpoint", "token")}
                sealed = self._vault.seal(wanted.token, owner=owner, field=field)
                new = store.Channel(
                    tenant_id=tenant_id, id=channel_id, slug=name, endpoint_id=endpoint_id, token=sealed, **kept
                )
                self._channels.append((new, place))

    def _opened(self, sealed: str, owner: str, field: str) -> Secret:
        """The stored secret, to compare with. One that opens no more is an empty one: the file's takes its place."""
        try:
            return self._vault.open(sealed, owner=owner, field=field)
        except ConfigurationError:
            return Secret("")

    def _renewed(self, place: str, sealed: Sequence[str]) -> list[str]:
        return [] if all(self._vault.is_current(each) for each in sealed) else [f"~ {place}: {ANEW}"]


def _can_start(tenant: Tenant) -> bool:
    return Intents(tenant.intents or ()).can_start


def _no_endpoint(name: str, known: list[str]) -> str:
    if not known:
        return f"there is no endpoint {name}, nor any other."
    if near := difflib.get_close_matches(name, known, n=1):
        return f"there is no endpoint {name}; did you mean {near[0]}?"
    return f"there is no endpoint {name}; there are {', '.join(sorted(known)[:20])}."
