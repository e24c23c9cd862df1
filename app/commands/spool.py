"""`qasid spool`: what lies in the spool's folder, and bringing it in where no web process does."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from app.errors import ConfigurationError, DatabaseUnavailable
from app.settings import Settings, load

if TYPE_CHECKING:
    from app.spool import Report, Spool, State


@click.group(invoke_without_command=True)
@click.pass_context
def spool(context: click.Context) -> None:
    """Show what lies in the spool.

    Webhooks that the database could not take, in the folder QASID_SPOOL_DIR. Web processes bring them in by themselves
    as soon as it can be asked again.
    """
    if context.invoked_subcommand is None:
        from app import log

        settings = load()
        log.configure(settings, process="cli")
        for line in _shown(settings, asyncio.run(_look(settings))):
            click.echo(line)


@spool.command()
def replay() -> None:
    """Bring them in now, where no web process runs that does.

    What a living process writes to is left to it. It may be interrupted: what was taken twice is stored once.
    """
    from app import log

    settings = load()
    log.configure(settings, process="cli")
    report = asyncio.run(_replay(settings))
    click.echo(f"{report.taken:,} webhooks brought in, {report.segments} files done with.")
    for count, words in (
        (report.failed, "webhooks were not taken and stay: the log says why"),
        (report.living, "files belong to a process that lives, which brings them in itself"),
        (report.corrupt, "damaged places were set aside in files `….corrupt`, for a person"),
        (report.missing, "webhooks are missing from their files: they are lost unless a backup has them"),
        (report.refused, "files are not done with, since the disk refuses them: they stay, and the log says why"),
        (report.foreign, "webhooks are sealed under a key that is not in QASID_SECRET_KEY: put it back"),
    ):
        if count:
            click.echo(f"{count:,} {words}.")
    if report.stopped:
        raise DatabaseUnavailable("PostgreSQL went away meanwhile. What was not taken stays in the spool.")


def _spool(settings: Settings) -> "Spool":
    from app.spool import Spool
    from app.vault import Vault

    if settings.spool_dir is None:
        raise ConfigurationError("There is no spool: QASID_SPOOL_DIR names no folder.")
    return Spool(
        settings.spool_dir,
        Vault.from_settings(settings),
        max_bytes=settings.spool_max_bytes,
        max_age=settings.spool_max_seconds,
        keeps=False,
    )


async def _look(settings: Settings) -> "State":
    async with _spool(settings) as spool:
        return await spool.look(probe=True)


async def _replay(settings: Settings) -> "Report":
    from app import backlog, db, place
    from app import replay as by_hand
    from app.migrate import require

    url = place.database_url(settings)
    await asyncio.to_thread(require, url)
    await db.wait_for(url, timeout=3.0)
    async with _spool(settings) as spool, by_hand.a_door(url, settings) as (_, ingest, directory):
        return await spool.replay(lambda record: backlog.take(record, directory, ingest))


def _shown(settings: Settings, state: "State") -> list[str]:
    rows = [
        ("folder", str(settings.spool_dir)),
        ("webhooks", f"{state.records:,} in {state.segments:,} files"),
        ("bytes", f"{state.bytes:,} of {settings.spool_max_bytes:,}"),
        ("oldest", "-" if state.oldest is None else f"{state.oldest:,.0f} s, of {settings.spool_max_seconds:,.0f} s"),
        ("set aside", f"{state.corrupt:,} damaged files, which wait for a person" if state.corrupt else "nothing"),
        *_apart(state),
        *_unreadable(state),
        ("takes more", f"no: {state.refuses}" if state.refuses else "yes"),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _apart(state: "State") -> Iterator[tuple[str, str]]:
    if state.apart:
        yield (
            "apart",
            f"{state.apart:,} files, which cannot be replayed now: they do not count for the age of the oldest",
        )


def _unreadable(state: "State") -> Iterator[tuple[str, str]]:
    if state.unreadable:
        yield "unreadable", f"{state.unreadable:,} files, which the disk refuses: they stay; see to the disk"
    if state.missing_keys:
        keys = ", ".join(state.missing_keys)
        yield (
            "no key for",
            f"{keys}: not in QASID_SECRET_KEY; what is sealed under it stays. Put it back, behind the first",
        )
