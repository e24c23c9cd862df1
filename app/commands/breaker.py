"""`qasid breaker`: shows the breakers, and says what a person wants of them.

The person's word is a row in the database; nobody is told directly.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, TypeVar

import click

from app.commands.breaker_names import kind_of, name_of, require, spoken
from app.commands.columns import aligned
from app.commands.database import installation
from app.commands.shown import shown
from app.errors import DatabaseUnavailable, QasidError
from app.settings import Settings, load

if TYPE_CHECKING:
    from app.breaker import Forced
    from app.db import Connection
    from app.store.breakers import Held

T = TypeVar("T")

PATIENCE = 2.0  # seconds that the database may take to answer who only looks

OPENED = {
    "database": """\
- web answers webhooks 503, or takes them into the spool where QASID_SPOOL_DIR is set;
- workers claim no conversations, so nobody is answered;
- commands (`qasid apply`, `replay`, `spool replay`) and operators' pages still ask it;
- a web process that starts meanwhile knows no endpoint yet: it spools nothing, and answers 503.
""",
    "channel": """\
- workers send nothing from this number; what people write is stored and answered, and the answers wait;
- what gets older than `answer_within_hours` meanwhile is left unsent where `late` is `store`.
""",
    "assistant": """\
- the tenant's fallback is asked instead; where there is none, who writes waits for `deadline_seconds`, then reads \
`texts.failure`;
- intents are answered as ever.
""",
    "translator": """\
- what was translated before is remembered; all else stands in the original at once, with `texts.untranslated`;
- answers come in the language that they were written in.
""",
    "transcriber": """\
- who sends a voice message reads the sentence for it (`texts.audio`) at once;
- everything else is answered as ever.
""",
}
CLOSED = {
    "database": "where it hangs, each webhook waits for its whole deadline, then goes to the spool, or is answered 503.",
    "channel": "where it hangs, each send waits for its whole timeout, and may end in doubt.",
    "assistant": "where it hangs, each person waits for `deadline_seconds`.",
    "translator": "where it hangs, each answer waits for the translation's `deadline_seconds`.",
    "transcriber": "where it hangs, each voice message waits for the transcription's `deadline_seconds`.",
}
AWAY = """\
Nothing was changed, and nothing has to be: while the database cannot be reached, the breaker of each process opens by \
itself within 2 seconds (unless it is held closed), and closes by itself once the database has answered three times. \
What a person says is kept in the database, so it can be said only while that takes writes. {0}"""


@click.group(invoke_without_command=True)
@click.pass_context
def breaker(ctx: click.Context) -> None:
    """Show the breakers, or hold one open or closed.

    A process whose database fails stops asking it (its breaker is OPEN), goes on with what needs no database, and asks
    again when it answers. That needs nobody. Without a further word this lists what people hold, and the state in the
    processes on this machine: it asks web at QASID_HOST and QASID_PORT, and one worker at QASID_WORKER_METRICS_PORT.
    Workers have breakers for channels, assistants, translators and transcribers besides, of which those are shown that
    are not closed, or held, once the worker has used them. OPENED is how often it opened by itself since the process
    began; of web, of all its server processes together. Exit codes: 0 shown, or done; 1 no process answers, or the
    database does not; 2 there is no such breaker, or a setting is wrong.

    \b
    closed     all is well
    slow       most calls take over half a second: histories come from memory where they are there
    open       it is not asked
    half_open  one call has been let through to try
    """  # noqa: D301  click wants the character, not the escape
    if ctx.invoked_subcommand is None:
        _list()


_dependency = click.argument("dependency", nargs=-1, required=True, metavar="DEPENDENCY")


@breaker.command("open")
@_dependency
def breaker_open(dependency: tuple[str, ...]) -> None:
    """Have no process ask DEPENDENCY any more: held open.

    Nothing is lost, and what needs it waits. DEPENDENCY is `database`, `channel TENANT/CHANNEL`, `assistant TENANT`,
    `translator TENANT` or `transcriber TENANT`, for the time in which you repair it and want it left alone. With the
    database this stops the service: web answers webhooks 503 (Meta sends them again, for days) or takes them into the
    spool, and workers claim nothing; commands (`qasid apply`, `replay`, `spool replay`) and operators' pages still ask
    it. Do not restart web meanwhile: it would know no endpoint, and spool nothing. From a channel nothing is sent.
    While an assistant is held open its fallback (`assistant TENANT/fallback` is that one's name) is asked; where there
    is none, people wait for `deadline_seconds`, then read `texts.failure`. For a translator or a transcriber nobody
    waits: the original stands, and a voice message gets its sentence. (A tenant whose assistant translates has no
    translator to hold.) Undo it with `qasid breaker auto DEPENDENCY`: it never ends by itself.
    """
    name = name_of(dependency)
    _force(name, "open")
    click.echo(f"The breaker of the {spoken(name)} is held OPEN. Within 2 seconds, every process stops asking it:")
    click.echo(OPENED[kind_of(name)], nl=False)
    click.echo(f"It stays so, over restarts too, until you undo it: {_undo(name)}")


@breaker.command("close")
@_dependency
def breaker_close(dependency: tuple[str, ...]) -> None:
    """Have every process ask DEPENDENCY, however it answers: held closed.

    DEPENDENCY is `database`, `channel TENANT/CHANNEL`, `assistant TENANT`, `translator TENANT` or `transcriber TENANT`:
    for a breaker that stays open although you know that what it leads to is well. This mends nothing: while the
    database hangs, each webhook now waits for its whole deadline before it goes to the spool, or is answered 503. Undo
    it with `qasid breaker auto DEPENDENCY`: it never ends by itself.
    """
    name = name_of(dependency)
    _force(name, "closed")
    click.echo(
        f"The breaker of the {spoken(name)} is held CLOSED. Within 2 seconds, every process asks it as if nothing were "
        f"amiss,\nhowever it answers: {CLOSED[kind_of(name)]}"
    )
    click.echo(f"It stays so, over restarts too, until you undo it: {_undo(name)}")


@breaker.command("auto")
@_dependency
def breaker_auto(dependency: tuple[str, ...]) -> None:
    """Let each process decide again: undoes `open` and `close`.

    DEPENDENCY is `database`, `channel TENANT/CHANNEL`, `assistant TENANT`, `translator TENANT` or `transcriber TENANT`.
    """
    from app.store import breakers

    name = name_of(dependency)

    async def let_go(conn: "Connection") -> bool:
        # Of what has left the configuration a word may still be there.
        if await breakers.let_go(conn, name):
            return True
        await require(conn, name)
        return False

    if _done(let_go):
        click.echo(
            f"The breaker of the {spoken(name)} is held no longer: within 2 seconds each process decides by itself."
        )
    else:
        click.echo(f"Nobody held the breaker of the {spoken(name)}: each process decides by itself.")


def _force(name: str, forced: "Forced") -> None:
    from app.store import breakers

    async def force(conn: "Connection") -> None:
        await require(conn, name)
        await breakers.force(conn, name, forced)

    _done(force)


def _undo(name: str) -> str:
    return f"qasid breaker auto {spoken(name)}"


def _done(work: "Callable[[Connection], Awaitable[T]]") -> T:
    """Do it in the database; where that is not to be had, say what a person has to do: nothing."""
    import psycopg

    try:
        return asyncio.run(installation(work))
    except DatabaseUnavailable as error:
        raise DatabaseUnavailable(AWAY.format(_line(error))) from error
    except psycopg.errors.ReadOnlySqlTransaction as error:
        raise DatabaseUnavailable(AWAY.format("PostgreSQL takes no writes: it is read-only.")) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _list() -> None:
    """What processes show, then what people hold: the first is worth seeing most when the database is away."""
    from app.store import breakers

    settings = load()
    answered = _processes(settings)
    try:
        for held in asyncio.run(installation(breakers.every, patience=PATIENCE)):
            click.echo(_told(held))
    except DatabaseUnavailable as error:
        raise DatabaseUnavailable(
            f"What people hold cannot be read. While the database cannot be reached, each process's breaker opens by "
            f"itself, whatever was said before, unless it is held closed. {_line(error)}"
        ) from error
    if not answered:
        raise QasidError("No process on this machine shows a breaker.")


def _processes(settings: Settings) -> bool:
    """Print what the processes on this machine show, and who shows nothing; whether one showed anything."""
    rows: list[tuple[str, ...]] = []
    silent = []
    for process, port in (("web", settings.port), ("worker", settings.worker_metrics_port)):
        found = shown(settings, port)
        if isinstance(found, str):
            silent.append(f"{process}: {found}")
        else:
            rows += [
                (
                    process,
                    spoken(s.dependency),
                    s.state,
                    "a person" if s.held else "",
                    "-" if s.opened is None else str(s.opened),
                )
                for s in found
            ]
    if rows:
        for line in aligned(("PROCESS", "DEPENDENCY", "STATE", "HELD BY", "OPENED"), rows):
            click.echo(line)
    for line in silent:
        click.echo(line)
    return bool(rows)


def _told(held: "Held") -> str:
    state: Literal["OPEN", "CLOSED"] = "OPEN" if held.forced == "open" else "CLOSED"
    return (
        f"{spoken(held.dependency)} is held {state} by a person since {held.at:%Y-%m-%d %H:%M:%S %Z}. "
        f"Undo: {_undo(held.dependency)}"
    )
