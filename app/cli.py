"""The command `qasid`. Each command imports what it needs when it runs, and fails with one line, never a traceback.

Exit codes: 0 done; 2 something a person wrote is wrong; 1 any other error of ours.
"""

import asyncio
import importlib
import os
import resource
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from app.errors import ConfigurationError, DatabaseUnavailable, QasidError
from app.settings import Settings, load

if TYPE_CHECKING:
    from app.db import Connection

T = TypeVar("T")

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
    from app.migrate import require
    from app.vault import Vault

    settings = load()
    vault = Vault.from_settings(settings)
    url = place.database_url(settings)
    require(url)
    applied = asyncio.run(run(url, file, vault, os.environ))
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

    if with_parent:
        end_with_parent()  # outlives the exec below
    settings = load()
    place.secret_keys(settings)  # better said here, once, than by each server process
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


@main.group()
def user() -> None:
    """Operators who may log in."""


_generate = click.option("--generate", is_flag=True, help="Make a password and print it, this once.")
_from_stdin = click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")


@user.command("add")
@click.argument("name")
@_generate
@_from_stdin
def user_add(name: str, generate: bool, password_stdin: bool) -> None:
    """Add the operator NAME."""
    from app import passwords
    from app.store import operators

    if not 1 <= len(name) <= 100 or not name.isprintable() or name != name.strip():
        raise ConfigurationError("An operator's name has 1 to 100 printable characters, no space around them.")
    password = _password(generate, password_stdin)
    hashed = passwords.hashed(password)
    if not asyncio.run(_installation(lambda conn: operators.add(conn, name, hashed))):
        raise ConfigurationError(f"There is an operator {name!r} already: `qasid user password` changes the password.")
    click.echo(f"{name} may log in." + (f" Password: {password}" if generate else ""))


@user.command("password")
@click.argument("name")
@_generate
@_from_stdin
def user_password(name: str, generate: bool, password_stdin: bool) -> None:
    """Change the password of NAME and end their sessions."""
    from app import passwords
    from app.store import operators

    password = _password(generate, password_stdin)
    hashed = passwords.hashed(password)
    if not asyncio.run(_installation(lambda conn: operators.set_password(conn, name, hashed))):
        raise ConfigurationError(f"There is no operator {name!r}.")
    click.echo(f"{name} has a new password." + (f" Password: {password}" if generate else ""))


@user.command("list")
def user_list() -> None:
    """List the operators."""
    from app.store import operators

    for operator in asyncio.run(_installation(operators.every)):
        click.echo(f"{operator.created_at:%Y-%m-%d}  {operator.name}")


@user.command("remove")
@click.argument("name")
def user_remove(name: str) -> None:
    """Remove NAME and end their sessions."""
    from app.store import operators

    if not asyncio.run(_installation(lambda conn: operators.remove(conn, name))):
        raise ConfigurationError(f"There is no operator {name!r}.")
    click.echo(f"{name} may no longer log in.")


def _password(generate: bool, from_stdin: bool) -> str:
    from app import passwords

    if generate and from_stdin:
        raise ConfigurationError("Take --generate or --password-stdin, not both.")
    if generate:
        return passwords.generated()
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise ConfigurationError("There is no terminal to ask for the password: take --password-stdin or --generate.")
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))


async def _installation(work: "Callable[[Connection], Awaitable[T]]") -> T:
    """Do `work` in one transaction as qasid_app, for the installation."""
    import psycopg

    from app import db, place
    from app.migrate import require

    url = place.database_url(load())
    require(url)
    await db.wait_for(url, timeout=3.0)
    try:
        async with db.pool(url, "qasid_app", name="cli", max_size=1) as pool, db.acting(pool) as conn:
            return await work(conn)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege) as error:
        raise ConfigurationError("The database has no schema of Qasid yet: run `qasid migrate`.") from error
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"PostgreSQL does not answer: {error}".rstrip()) from error


if __name__ == "__main__":
    main()
