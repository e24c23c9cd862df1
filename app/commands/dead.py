"""`qasid dead` and `qasid replay`: shows dead letters, and asks app/replay.py to bring them in again.

What people wrote, and their numbers, are shown with `--text` alone.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from app.commands.columns import aligned
from app.commands.database import with_pool
from app.errors import ConfigurationError, QasidError, Unknown
from app.settings import load

if TYPE_CHECKING:
    from app.db import Pool
    from app.dead import DeadLetter, Kind

# Not printable by themselves, and a part of words and emoji.
JOINERS = "\u200c\u200d"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Of a turn nothing says why but the log.
WHY_TURN = {
    "failed": "no usable answer: see the log for this turn",
    "parked": "failed at every try: see *lane failed* in the log",
}


class Since(click.ParamType[float]):
    """A span before now (`90m`, `12h`, `3d`) or a moment (`2026-11-22`, `2026-11-22T12:00+03:00`; UTC unless it says)."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds before now."""
        if span := re.fullmatch(r"([0-9]{1,6})([smhd])", str(value)):
            return float(span[1]) * SECONDS[span[2]]
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is neither a span like 90m, 12h or 3d nor a date.", param, ctx)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (datetime.now(UTC) - moment).total_seconds())


_tenant = click.option("--tenant", metavar="SLUG", help="Of this tenant alone.")
_kind = click.option("--kind", type=click.Choice(["chunk", "turn", "quarantine"]), help="Of this kind alone.")
_since = click.option("--since", type=Since(), metavar="WHEN", help="Not older than 90m, 12h, 3d, or this date.")


@click.command()
@_tenant
@_kind
@_since
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The latest so many.")
@click.option("--text", is_flag=True, help="Show what people wrote or would have read, and their numbers.")
def dead(tenant: str | None, kind: "Kind | None", since: float | None, limit: int, text: bool) -> None:
    """List what failed, was parked, or is in quarantine."""

    async def gather(pool: "Pool", _url: str) -> "list[DeadLetter]":
        return await _every(pool, tenant, kind, since, most=limit + 1, text=text)

    letters = asyncio.run(with_pool(gather))
    if not letters:
        click.echo("No dead letters.")
        return
    for line in table(letters[:limit]):
        click.echo(line)
    if len(letters) > limit:
        click.echo(f"There are more: --limit {2 * limit} shows them.")


@click.command()
@click.argument("ids", nargs=-1, type=click.UUID, metavar="[ID…]")
@click.option(
    "--all", "everything", is_flag=True, help="All that were not replayed yet, narrowed by the options below."
)
@_tenant
@_kind
@_since
@click.option("--again", is_flag=True, help="Even what was replayed before.")
def replay(
    ids: tuple[UUID, ...],
    everything: bool,
    tenant: str | None,
    kind: "Kind | None",
    since: float | None,
    again: bool,
) -> None:
    """Bring dead letters in again.

    By the IDs that `qasid dead` shows, or --all of them. A chunk is sent with what is left of its answer, a turn is
    answered anew, and what lies in quarantine is taken as if it came now. What was parked may have arrived: then the
    person gets it twice.
    """
    if bool(ids) == everything:
        raise ConfigurationError("Name the IDs of dead letters, as `qasid dead` shows them, or take --all.")
    if ids and (tenant or kind or since is not None):
        raise ConfigurationError("--tenant, --kind and --since go with --all.")
    if again and everything:
        raise ConfigurationError("--again goes with IDs: --all is what was not replayed yet.")
    from app import log

    log.configure(load(), process="cli")

    async def run(pool: "Pool", url: str) -> int:
        from app.dead import find
        from app.replay import Replays

        if ids:
            letters = await find(pool, list(dict.fromkeys(ids)))
            _refuse(ids, letters, again)
        else:
            letters = await _every(pool, tenant, kind, since)
        letters.sort(key=lambda letter: letter.place)
        click.echo(counted(letters))
        stayed = 0
        async with Replays(pool, url, load()) as replays:
            for n, letter in enumerate(letters, 1):
                replayed = await replays.replay(letter, again=again)
                stayed += not replayed.done
                click.echo(f"{n:>{len(str(len(letters)))}}/{len(letters)}  {letter.kind} {letter.id}  {replayed.words}")
        return stayed

    if stayed := asyncio.run(with_pool(run)):
        raise QasidError(f"{stayed} of them stayed as they were.")


async def _every(
    pool: "Pool", tenant: str | None, kind: "Kind | None", since: float | None, **more: Any
) -> "list[DeadLetter]":
    from app.dead import KINDS, every

    try:
        return await every(pool, tenant=tenant, kinds=KINDS if kind is None else [kind], within=since, **more)
    except Unknown as error:
        raise ConfigurationError(str(error)) from error


def _refuse(ids: Sequence[UUID], letters: "Sequence[DeadLetter]", again: bool) -> None:
    """Before anything is done: each ID must be one that can be replayed."""
    from app.replay import refusal

    known = {letter.id for letter in letters}
    wrong = [f"{id}: there is no chunk, turn or quarantined item of this id" for id in ids if id not in known]
    wrong += [f"{letter.id}: {why}" for letter in letters if (why := refusal(letter, again=again)) is not None]
    if wrong:
        hint = " (--again replays it once more)" if any("already" in why for why in wrong) else ""
        raise ConfigurationError(f"Nothing was replayed. {'; '.join(wrong)}{hint}.")


def counted(letters: "Sequence[DeadLetter]") -> str:
    """How many of which kind."""
    kinds = Counter(letter.kind for letter in letters)
    words: dict[Kind, str] = {"chunk": "chunks", "turn": "turns", "quarantine": "items in quarantine"}
    parts = [
        f"{kinds[kind]} {word if kinds[kind] != 1 else word.replace('s', '', 1)}"
        for kind, word in words.items()
        if kinds[kind]
    ]
    return f"To replay: {', '.join(parts)}." if parts else "No dead letters."


def table(letters: "Sequence[DeadLetter]") -> list[str]:
    """Lines for a terminal: aligned, and below each letter its text where it has one."""
    from app.store.dead import Letter

    head = ("AGE", "TENANT", "CONVERSATION", "WHAT", "WHY", "ID")
    heading, *told = aligned(head, [_row(letter) for letter in letters])
    lines = [heading]
    for letter, line in zip(letters, told, strict=True):
        lines.append(line)
        if letter.text:
            whom = letter.row.whom if isinstance(letter.row, Letter) else letter.row.address or "?"
            lines += [
                "",
                f"    {printable(whom)}:",
                *(f"    {printable(line)}" for line in letter.text.splitlines()),
                "",
            ]
    return lines


def _row(letter: "DeadLetter") -> tuple[str, ...]:
    from app.redaction import clean
    from app.store.dead import Letter

    row = letter.row
    if isinstance(row, Letter):
        conversation, what = f"…{str(row.conversation_id)[-12:]}", f"{row.kind} {row.state}"
        why = (
            f"{'' if row.code is None else row.code} {row.reason or ''}".strip()
            if row.kind == "chunk"
            else WHY_TURN[row.state]
        )
        if row.doubtful:
            why += " (may have arrived)"
    else:
        conversation, what, why = "", f"quarantine {row.part or ''}".strip(), row.reason
    # Slugs, codes and the provider's words: a number in them, or what a terminal would obey, is taken out.
    return age(row.age), letter.tenant or "?", conversation, what, clean(why, 90), str(letter.id)


def age(seconds: float) -> str:
    """In the largest unit that it fills."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def printable(text: str) -> str:
    """One line, without what a terminal would obey: what people wrote may try."""
    return "".join(c if c.isprintable() or c in JOINERS else f"\\u{ord(c):04x}" for c in text)
