"""The command `qasid`. Each command imports what it needs when it runs, and fails with one line, never a traceback.

Groups of commands lie in app/commands. Exit codes: 0 done; 2 something a person wrote is wrong; 1 any other error of ours.
"""

import asyncio
import importlib
import os
import resource
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from app.commands import breaker, dead, resume, spool, users
from app.errors import ConfigurationError, DatabaseUnavailable, QasidError
from app.settings import Settings, load

# Connections that one web process holds at once: half-sent requests of a few hundred clients leave room for the others.
BACKPRESSURE = 4096


class Commands(click.Group):
    """Turns the tree of errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            code, line = 2, str(error)
        except QasidError as error:
            code, line = 1, str(error)
        click.echo(f"qasid: {line}", err=True)
        ctx.exit(code)
        return None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="qasid")
def main() -> None:
    """Qasid carries messages between WhatsApp and AI assistants. Settings: QASID_* (see .env.example)."""


@main.command()
def migrate() -> None:
    """Bring the database's schema up to date."""
    from app import place
    from app.migrate import migrate as run

    done = 0
    for name in run(place.database_url(load())):
        click.echo(f"applied {name}")
        done += 1
    if not done:
        click.echo("The schema is up to date.")


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def apply(file: Path) -> None:
    """Bring a configuration file into the database."""
    from app import place
    from app.apply import apply as run
    from app.vault import Vault

    settings = load()
    vault = Vault.from_settings(settings)
    applied = asyncio.run(run(place.database_url(settings), file, vault, os.environ))
    for warning in applied.warnings:
        click.echo(f"warning: {warning}", err=True)
    for change in applied.changes:
        click.echo(change)
    if not applied.changes:
        click.echo("Nothing to change.")


_with_parent = click.option("--with-parent", is_flag=True, help="End when the process that started this one ends.")


@main.command()
@_with_parent
def web(with_parent: bool) -> None:
    """Take webhooks; serve operators' pages."""
    from app import place
    from app.migrate import require
    from app.process import end_with_parent, require_free_port
    from app.spool import require as require_spool
    from app.vault import Vault

    if with_parent:
        end_with_parent()  # outlives the exec below
    settings = load()
    # Better said here, once, than by each server process: one that begins anew later takes what it finds.
    keys = place.secret_keys(settings)
    if settings.spool_dir is not None:
        require_spool(settings.spool_dir, Vault(keys))
    with suppress(DatabaseUnavailable):  # web begins without it, and says so
        require(place.database_url(settings))
    require_free_port(settings.host, settings.port, setting="QASID_PORT")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a file; the usual limit is 1024
    environ = dict(os.environ)
    if settings.web_workers > 1:
        shared = settings.state_dir.resolve() / "metrics" / f"web-{settings.port}"
        shutil.rmtree(shared, ignore_errors=True)
        shared.mkdir(parents=True)
        environ["PROMETHEUS_MULTIPROC_DIR"] = str(shared)
    sys.stdout.flush()
    os.execve(sys.executable, granian(settings), environ)  # noqa: S606  our own words, no shell wanted


def granian(settings: Settings) -> list[str]:
    """The command line of the web server: it becomes this process."""
    options = {
        "interface": "asgi",
        "host": settings.host,
        "port": settings.port,
        "http": "1",  # HTTP/2's header lists are unbounded by default
        "loop": "uvloop",
        "workers": settings.web_workers,
        "workers-kill-timeout": 15,  # seconds to stop in; without it one stuck worker holds up a stop for ever
        "backlog": 4096,
        "backpressure": BACKPRESSURE,
        "http1-header-read-timeout": 5000,  # ms
        "log-level": "info",
    }
    return [
        *(sys.executable, "-m", "granian", "--factory", "--no-ws", "--no-access-log", "--respawn-failed-workers"),
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
        "app.served:create_app",
    ]


@main.command()
@_with_parent
def worker(with_parent: bool) -> None:
    """Answer messages and deliver the answers."""
    from app.process import end_with_parent

    if with_parent:
        end_with_parent()
    # By name: the package `app` does not know the package `workers`, which imports it.
    importlib.import_module("workers.main").run()


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@_with_parent
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sandbox(with_parent: bool, arguments: tuple[str, ...]) -> None:
    """Run the simulated WhatsApp and assistant."""
    from app.process import end_with_parent
    from app.sandbox.__main__ import main as run

    if with_parent:
        end_with_parent()
    raise SystemExit(run(arguments))


@main.command()
@_with_parent
@click.option("--once", is_flag=True, help="End after the conversation; exit code 1 if anything of it went wrong.")
def demo(with_parent: bool, once: bool) -> None:
    """Start everything on this machine and play a conversation."""
    from app.demo.main import run
    from app.process import end_with_parent

    if with_parent:
        end_with_parent()
    raise SystemExit(run(load(), once=once))


for command in (users.user, dead.dead, dead.replay, resume.resume, spool.spool, breaker.breaker):
    main.add_command(command)


if __name__ == "__main__":
    main()
