"""`qasid user`: operators who may log in."""

import asyncio
import sys

import click

from app.commands.database import installation
from app.errors import ConfigurationError


@click.group()
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
    if not asyncio.run(installation(lambda conn: operators.add(conn, name, hashed))):
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
    if not asyncio.run(installation(lambda conn: operators.set_password(conn, name, hashed))):
        raise ConfigurationError(f"There is no operator {name!r}.")
    click.echo(f"{name} has a new password." + (f" Password: {password}" if generate else ""))


@user.command("list")
def user_list() -> None:
    """List the operators."""
    from app.store import operators

    for operator in asyncio.run(installation(operators.every)):
        click.echo(f"{operator.created_at:%Y-%m-%d}  {operator.name}")


@user.command("remove")
@click.argument("name")
def user_remove(name: str) -> None:
    """Remove NAME and end their sessions."""
    from app.store import operators

    if not asyncio.run(installation(lambda conn: operators.remove(conn, name))):
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
