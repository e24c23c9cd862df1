"""`just bench NAME`: runs one bench, prints its table, and exits 1 when a bound is missed."""

import signal
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from app.errors import QasidError
from tests.bench.figures import BenchFailed, Report


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Measure Qasid: real processes on this machine, an embedded PostgreSQL that keeps what it commits, loopback only.

    Each bench has a fresh database, ends by itself and leaves nothing running. Exit code: 0 all bounds are kept; 1 one
    is missed, or a message was lost, doubled or left unanswered.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an orderly end: children, database


def _common(command: Any) -> Any:
    for option in (
        click.option("--no-bounds", is_flag=True, help="Print the figures only; a missed bound is no failure."),
        click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write them there too."),
    ):
        command = option(command)
    return command


def _finish(report: Report, file: Path | None, no_bounds: bool) -> None:
    click.echo(report.table())
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    if report.missed and not no_bounds:
        click.echo(f"missed: {', '.join(figure.name for figure in report.missed)}", err=True)
        sys.exit(1)


@main.command()
@click.option("--seconds", type=click.IntRange(1, 60), default=4, show_default=True, help="Length of each measurement.")
@_common
def ingest(seconds: int, file: Path | None, no_bounds: bool) -> None:
    """Webhooks stored per second, beside pgbench.

    Durable webhooks/s over 64 keep-alive connections, divided by `pgbench -M prepared -c 8 -j 2` commits/s of the same
    rows, one message per commit: median of three interleaved rounds. Then how long a webhook waits for its 200 at half
    of the top rate, CPU and statements per webhook. Every 200 is looked up in the database. About a minute.
    """
    from tests.bench import ingest as bench

    _finish(bench.measure(seconds), file, no_bounds)


@main.command()
@click.option("--idle", type=click.IntRange(2, 5000), default=300, show_default=True, help="Messages sent one by one.")
@click.option("--messages", type=click.IntRange(100, 100_000), default=3000, show_default=True, help="In the rush.")
@click.option("--conversations", type=click.IntRange(10, 10_000), default=500, show_default=True, help="Of the rush.")
@click.option("--in-flight", type=click.IntRange(1, 1000), default=128, show_default=True, help="At once.")
@_common
def answer(idle: int, messages: int, conversations: int, in_flight: int, file: Path | None, no_bounds: bool) -> None:
    """The whole way of a message: overhead when idle, answers per second in a rush.

    The sandbox's AI answers at once, and its statuses climb the whole ladder. Idle: messages one by one; from the
    webhook's start to the arrival of our send, with an assistant and by intents alone. Rush: many conversations, each
    with one message under way at most; answers/s to the last status, CPU and statements per message. Every message must
    be answered exactly once. About three minutes.
    """
    from tests.bench import answer as bench

    _finish(bench.measure(idle, messages, conversations, in_flight), file, no_bounds)


@main.command()
@click.option(
    "--conversations", type=click.IntRange(1, 2000), default=2000, show_default=True, help="They ask at once."
)
@click.option("--ai-seconds", type=click.FloatRange(0, 30), default=3.0, show_default=True, help="What the AI takes.")
@_common
def waiting(conversations: int, ai_seconds: float, file: Path | None, no_bounds: bool) -> None:
    """Many conversations that wait for a slow AI in one worker.

    All ask at once: how long until the last is answered, the worker's memory at its peak, and how late its event loop
    was. Every message must be answered exactly once. Half a minute.
    """
    from tests.bench import waiting as bench

    _finish(bench.measure(conversations, ai_seconds), file, no_bounds)


@main.command()
@click.option(
    "--citations", type=click.IntRange(1, 200), default=24, show_default=True, help="Distinct, of one answer."
)
@click.option(
    "--seconds", type=click.FloatRange(0, 30), default=1.0, show_default=True, help="What a translation takes."
)
@_common
def translate(citations: int, seconds: float, file: Path | None, no_bounds: bool) -> None:
    """What translating an answer's citations adds to it.

    From the assistant's whole answer to the text that is cut into chunks, memos and memory committed to a durable
    database: all at once, by LibreTranslate and by the assistant; beside it, one after the other, all of them; again
    with a warm memory, in a worker that has translated none of them. A minute.
    """
    from tests.bench import translate as bench

    _finish(bench.measure(citations, seconds), file, no_bounds)


@main.command()
@click.option("--only", "names", multiple=True, metavar="NAME", help="Only this trouble; may be given again.")
@click.option("--spool/--plain", "spool", default=None, help="Only with a spool, or only without; else both.")
@click.option(
    "--drawing",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(".qasid/bench/outage.png"),
    show_default=True,
    help="Draw it there; the suffix says how.",
)
@_common
def outage(names: tuple[str, ...], spool: bool | None, drawing: Path, file: Path | None, no_bounds: bool) -> None:
    """What each trouble of the database does, a second at a time.

    100 webhooks/s for a minute, ten seconds of calm, then trouble; each without a spool and with one. Printed: strips of
    a character a second, and what must be kept; drawn: a panel each. First, unless --only is given: the CPU that the
    breaker costs per webhook, by five rounds with it and without, in turns. Half an hour. A single trouble takes 80 s each
    way; --only plays both, unless --spool or --plain is given.

    stopped, frozen, unreachable, connections, read_only, disk_full, locked, held, far, unheard, cut.
    """
    from tests.bench import outage as bench

    spools = (False, True) if spool is None else (spool,)
    _finish(bench.measure(names, spools, drawing, with_cost=not names), file, no_bounds)


if __name__ == "__main__":
    try:
        main()
    except (BenchFailed, QasidError) as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(1)
