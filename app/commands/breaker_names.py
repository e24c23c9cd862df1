"""The breakers that a person can hold, by the names that they say: which kinds there are, and whom the configuration has.

It reads the configuration and changes nothing.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from app.errors import ConfigurationError

if TYPE_CHECKING:
    from app.db import Connection
    from app.store.configuration import Owner

KINDS = "`database`, `channel TENANT/CHANNEL`, `assistant TENANT`, `translator TENANT` or `transcriber TENANT`"
NAMED = 10  # names that a refusal lists at most


def _assistants(owners: "Sequence[Owner]") -> list[str]:
    fallbacks = [f"{owner.slug}/fallback" for owner in owners if owner.has_fallback]
    return [owner.slug for owner in owners if owner.has_assistant] + fallbacks


# Of whose breakers a tenant has one or none: the names that the configuration has.
OF_TENANTS: "dict[str, Callable[[Sequence[Owner]], list[str]]]" = {
    "assistant": _assistants,
    "translator": lambda owners: [owner.slug for owner in owners if owner.has_translator],
    "transcriber": lambda owners: [owner.slug for owner in owners if owner.has_transcriber],
}


def name_of(words: tuple[str, ...]) -> str:
    """The name of a breaker, as the table has it, from `channel noor/main` or `channel:noor/main`."""
    name = ":".join(words)
    kind, _, rest = name.partition(":")
    if name == "database" or (kind in ("channel", *OF_TENANTS) and rest and ":" not in rest):
        return name
    raise ConfigurationError(f"There is no breaker {' '.join(words)!r} to hold. It must be {KINDS}.")


def kind_of(name: str) -> str:
    return name.partition(":")[0]


def spoken(name: str) -> str:
    """A breaker's name as a person says it, and as the commands take it: `channel noor/main`."""
    return name.replace(":", " ", 1)


async def require(conn: "Connection", name: str) -> None:
    """Raises ConfigurationError: the configuration has no such thing."""
    from app.store import configuration

    kind, _, path = name.partition(":")
    if kind == "database":
        return
    tenant, _, channel = path.partition("/")
    owners = await configuration.owners(conn)
    owner = next((owner for owner in owners if owner.slug == tenant), None)
    if kind in OF_TENANTS:
        known = OF_TENANTS[kind](owners)
        if path not in known:
            raise _unknown(name, known)
        return
    if owner is None:
        raise ConfigurationError(f"The configuration has no tenant {tenant!r}. {_listed([o.slug for o in owners])}")
    await configuration.act_for(conn, owner.id)
    channels = sorted(channel.slug for channel in await configuration.channels(conn, owner.id))
    await configuration.act_for(conn, None)
    if channel not in channels:
        raise _unknown(name, [f"{tenant}/{slug}" for slug in channels])


def _unknown(name: str, alike: list[str]) -> ConfigurationError:
    return ConfigurationError(f"The configuration has no {spoken(name)}. {_listed(alike)}")


def _listed(names: list[str]) -> str:
    if not names:
        return "It has none at all."
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"It has: {', '.join(names[:NAMED])}{more}."
