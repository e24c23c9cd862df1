"""Gathers dead letters of all kinds over all tenants, each read as the app acts for its tenant. Changes nothing."""

from collections.abc import Collection, Sequence
from typing import Literal, get_args
from uuid import UUID

from msgspec import Struct

from app import db
from app.db import Pool
from app.errors import Unknown
from app.store import dead, quarantine
from app.store.dead import Letter
from app.store.quarantine import Held

Kind = Literal["chunk", "turn", "quarantine"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class DeadLetter(Struct, frozen=True, kw_only=True):
    """One of them, and whose it is: a tenant's slug, empty where no tenant has the address that an item came for."""

    tenant: str
    row: Letter | Held
    text: str = ""
    """What people wrote, or would read; only where it was asked for."""

    @property
    def id(self) -> UUID:
        """What it is called by."""
        return self.row.id

    @property
    def kind(self) -> Kind:
        """Which kind it is of."""
        return self.row.kind if isinstance(self.row, Letter) else "quarantine"

    @property
    def place(self) -> tuple[str, str, int, int, float]:
        """To sort by before a replay, so that what was lost of one conversation goes out in its order.

        Quarantine comes first: it holds what people said.
        """
        if isinstance(self.row, Held):
            return "", "", 0, 0, -self.row.age
        return str(self.row.tenant_id), str(self.row.conversation_id), self.row.seq, self.row.no, 0.0


async def every(
    pool: Pool,
    *,
    tenant: str | None = None,
    kinds: Collection[Kind] = KINDS,
    within: float | None = None,
    most: int | None = None,
    text: bool = False,
) -> list[DeadLetter]:
    """What nobody has replayed, the latest first; of quarantine, what is for a channel of `tenant`, where one is named.

    `pool` is of the role qasid_app. `within`: seconds since it died. `most`: None for no bound. `text`: with words and
    addresses of people.

    Raises:
        Unknown: there is no such tenant.
    """
    async with db.acting(pool) as conn:
        known = await dead.tenants(conn, tenant)
    if tenant is not None and not known:
        raise Unknown(f"There is no tenant {tenant!r}.")
    found: list[DeadLetter] = []
    owners: dict[tuple[UUID, str], str] = {}
    for tenant_id, slug in known:
        async with db.acting(pool, tenant=tenant_id) as conn:
            letters = await dead.listed(conn, tenant_id, kinds=list(kinds), within=within, most=most, text=text)
            owners |= dict.fromkeys(await dead.places(conn, tenant_id), slug)
        found += [DeadLetter(tenant=slug, row=letter, text=letter.text) for letter in letters]
    if "quarantine" in kinds:
        async with db.acting(pool) as conn:
            for held in await quarantine.listed(
                conn, places=None if tenant is None else list(owners), within=within, most=most
            ):
                raw = (await quarantine.raw(conn, held.id)).decode(errors="replace") if text else ""
                found.append(DeadLetter(tenant=_owner(owners, held), row=held, text=raw))
    found.sort(key=lambda letter: letter.row.age)
    return found[:most]


async def find(pool: Pool, ids: Sequence[UUID]) -> list[DeadLetter]:
    """The chunks, turns and quarantined items of these ids, dead or not; those that there are. `pool` as for `every`."""
    async with db.acting(pool) as conn:
        known = await dead.tenants(conn)
        helds = await quarantine.found(conn, ids)
    found: list[DeadLetter] = []
    owners: dict[tuple[UUID, str], str] = {}
    for tenant_id, slug in known:
        async with db.acting(pool, tenant=tenant_id) as conn:
            found += [DeadLetter(tenant=slug, row=letter) for letter in await dead.found(conn, tenant_id, ids)]
            owners |= dict.fromkeys(await dead.places(conn, tenant_id), slug)
    return found + [DeadLetter(tenant=_owner(owners, held), row=held) for held in helds]


def _owner(owners: dict[tuple[UUID, str], str], held: Held) -> str:
    return owners.get((held.endpoint_id, held.address), "") if held.address is not None else ""
