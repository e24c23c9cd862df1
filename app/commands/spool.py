"""`qasid spool`: what lies in the spool's folder, and bringing it in where no web process does."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from app.errors import ConfigurationError, DatabaseUnavailable
from app.settings import Settings, load

if TYPE_CHECKING:
    from app.spool import Report, Spool, State

SET_ASIDE = "damaged file, which waits for a person", "damaged files, which wait for a person"
REFUSED = (
    "file, which the disk refuses: it stays; see to the disk",
    "files, which the disk refuses: they stay; see to the disk",
)


@click.group(invoke_without_command=True)
@click.pass_context
def spool(context: click.Context) -> None:
    """Show what lies in the spool.

    Webhooks that the database could not take, in the folder QASID_SPOOL_DIR. Web processes bring them in by themselves
    as soon as it can be asked again. Exit codes: 0 shown, whatever lies there; 2 there is no such folder, or a setting is
    wrong.
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

    What a living process writes to is left to it. It may be interrupted: what was taken twice is stored once. Exit codes:
    0 all of it was brought in, but for what is left to a living process; 1 something was set aside, not taken, missing,
    refused by the disk or sealed under another key, or the database is away; 2 there is no such folder, or a setting is
    wrong.
    """
    from app import log

    settings = load()
    log.configure(settings, process="cli")
    report = asyncio.run(_replay(settings))
    click.echo(
        f"{_counted(report.taken, 'webhook', 'webhooks')} brought in, {_counted(report.segments, 'file', 'files')} done with."
    )
    for line in _left(report):
        click.echo(line)
    if report.stopped:
        raise DatabaseUnavailable("PostgreSQL went away meanwhile. What was not taken stays in the spool.")
    if report.failed or report.corrupt or report.missing or report.refused or report.foreign:
        raise SystemExit(1)


def _left(report: "Report") -> Iterator[str]:
    """A line for each thing that a person has to know."""
    for count, one, many in (
        (
            report.failed,
            "webhook was not taken and stays: the log says why",
            "webhooks were not taken and stay: the log says why",
        ),
        (
            report.living,
            "file belongs to a process that lives, which brings it in itself",
            "files belong to a process that lives, which brings them in itself",
        ),
        (
            report.corrupt,
            "damaged place was set aside in a file `….corrupt`, for a person",
            "damaged places were set aside in files `….corrupt`, for a person",
        ),
        (
            report.missing,
            "webhook is missing from its file: it is lost unless a backup has it",
            "webhooks are missing from their files: they are lost unless a backup has them",
        ),
        (
            report.refused,
            "file is not done with, since the disk refuses it: it stays, and the log says why",
            "files are not done with, since the disk refuses them: they stay, and the log says why",
        ),
        (
            report.foreign,
            "webhook is sealed under a key that is not in QASID_SECRET_KEY: put it back",
            "webhooks are sealed under keys that are not in QASID_SECRET_KEY: put them back",
        ),
    ):
        if count:
            yield f"{_counted(count, one, many)}."


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _spool(settings: Settings) -> "Spool":
    from app.spool import Spool
    from app.vault import Vault

    if settings.spool_dir is None:
        raise ConfigurationError("There is no spool: QASID_SPOOL_DIR names no folder.")
    try:
        settings.spool_dir.stat()
    except FileNotFoundError:  # whoever looks makes nothing
        raise ConfigurationError(
            f"QASID_SPOOL_DIR: there is no folder {settings.spool_dir}. `qasid web` makes it when it starts."
        ) from None
    except OSError:
        pass  # the spool says it, with what to do
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

    spool = _spool(settings)
    url = place.database_url(settings)
    await asyncio.to_thread(require, url)
    await db.wait_for(url, timeout=3.0)
    async with spool, by_hand.a_door(url, settings) as (_, ingest, directory):
        return await spool.replay(lambda record: backlog.take(record, directory, ingest))


def _shown(settings: Settings, state: "State") -> list[str]:
    rows = [
        ("folder", str(settings.spool_dir)),
        ("webhooks", f"{state.records:,} in {_counted(state.segments, 'file', 'files')}"),
        ("bytes", f"{state.bytes:,} of {settings.spool_max_bytes:,}"),
        ("oldest", "-" if state.oldest is None else f"{state.oldest:,.0f} s, of {settings.spool_max_seconds:,.0f} s"),
        ("set aside", _counted(state.corrupt, *SET_ASIDE) if state.corrupt else "nothing"),
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
            f"{state.apart:,} that cannot be replayed now, and do not count for the age of the oldest",
        )


def _unreadable(state: "State") -> Iterator[tuple[str, str]]:
    if state.unreadable:
        yield "unreadable", _counted(state.unreadable, *REFUSED)
    if state.missing_keys:
        keys = ", ".join(state.missing_keys)
        yield (
            "no key for",
            f"{keys}: not in QASID_SECRET_KEY; what is sealed under it stays. Put it back, behind the first",
        )
