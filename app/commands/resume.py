"""`qasid resume`: ends the time for which a conversation is left to people. It begins none: an intent that hands over does."""

import asyncio
from typing import TYPE_CHECKING
from uuid import UUID

import click

from app.commands.database import with_pool
from app.errors import ConfigurationError
from app.settings import load

if TYPE_CHECKING:
    from app.db import Pool


@click.command()
@click.argument("conversations", nargs=-1, required=True, type=click.UUID, metavar="CONVERSATION…")
def resume(conversations: tuple[UUID, ...]) -> None:
    """Have a conversation answered again that was handed over to people.

    CONVERSATION is the id that the alert `handed_over` names; several may be given. From then on what its person writes is
    answered, within a second. What they wrote meanwhile was left to you, and stays so; the assistant sees it in later
    questions. Exit codes: 0 each of them is answered now, also where it was not left to people; 2 one is no
    conversation (the others are answered); 1 the database is away.
    """
    from app import log

    log.configure(load(), process="cli")

    async def run(pool: "Pool", _url: str) -> list[UUID]:
        return [each for each in dict.fromkeys(conversations) if not await _resumed(pool, each)]

    if unknown := asyncio.run(with_pool(run)):
        raise ConfigurationError(f"There is no conversation {', '.join(map(str, unknown))}.")


async def _resumed(pool: "Pool", conversation: UUID) -> bool:
    """Whether there is such a conversation; then nothing is left to people in it any more."""
    import structlog

    from app import db
    from app.store import dead, lanes

    async with db.acting(pool) as conn:
        tenants = await dead.tenants(conn)
    for tenant_id, slug in tenants:
        async with db.acting(pool, tenant=tenant_id) as conn:
            was_paused = await lanes.pause(conn, (tenant_id, conversation), None)
        if was_paused is None:
            continue
        if was_paused:
            structlog.get_logger(__name__).info("conversation resumed", tenant=slug, conversation=conversation)
        click.echo(f"{conversation} of {slug} {'is answered again' if was_paused else 'was not left to people'}.")
        return True
    return False
