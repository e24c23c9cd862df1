"""How the demo looks on a terminal: steps, conversation, table. Knows no process; decides nothing."""

import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from app.demo.stages import Measured, table, translates

RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
# A line of another direction is isolated (Unicode TR9), or it would rearrange the time and the name before it.
ISOLATE, END_ISOLATE = "\u2068", "\u2069"
LINES = 3  # of a long text that are shown
NAME = 16  # columns of "  Noor → Clara"
INDENT = 11 + NAME


class Terminal:
    """Writes to standard output; colour on a terminal alone, and not where NO_COLOR is set."""

    def __init__(self) -> None:
        self.colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.width = max(60, min(110, shutil.get_terminal_size((100, 24)).columns))

    def line(self, text: str = "", *, end: str = "\n") -> None:
        """One line, at once."""
        click.echo(text + end, nl=False, color=self.colour)

    def dim(self, text: str) -> str:
        """What matters less."""
        return click.style(text, dim=True) if self.colour else text

    def bold(self, text: str, colour: str | None = None) -> str:
        """What matters more."""
        return click.style(text, bold=True, fg=colour) if self.colour else text

    @contextmanager
    def step(self, what: str, since: float | None = None) -> Iterator[None]:
        """Say what is under way, then how long it took; reckoned from `since` (monotonic) where it began earlier."""
        began = since or time.monotonic()
        self.line(f"  {what:<48} ", end="")
        try:
            yield
        except BaseException:
            self.line("✗")
            raise
        self.line(self.dim(f"{time.monotonic() - began:.1f} s"))

    def title(self, text: str) -> None:
        """The title of a scene."""
        self.line()
        self.line(self.bold(text))

    def said(self, seconds: float, name: str, text: str) -> None:
        """A person's message, `seconds` into the conversation."""
        self._event(seconds, self.bold(f"{name:<{NAME}}", "cyan"), text.splitlines())

    def got(self, seconds: float, name: str, text: str, chunk: int, chunks: int, *, whole: bool = False) -> None:
        """A text that came to a person: its beginning, or the `whole` of it."""
        lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, self.width - INDENT)]
        shown, rest = lines if whole else lines[:LINES], ""
        if len(lines) > len(shown):
            left = len(text) - sum(len(line) for line in shown)
            rest = f"… {left:,} more characters"
        if chunks > 1:
            rest += f"{', ' if rest else ''}chunk {chunk} of {chunks}"
        self._event(seconds, self.bold(f"{f'  Noor → {name}':<{NAME}}", "green"), shown, rest)

    def measured(self, name: str, turn: Measured, messages: int) -> None:
        """The stages of one turn."""
        stages = turn.stages
        parts = [f"ack {_ms(turn.ack_ms)}"]
        if stages is not None:
            parts += [f"queue {_ms(stages.queue_ms)}", f"AI {_ms(stages.ai_ms) if stages.ai_ms else '–'}"]
            if translates(stages):
                parts += [f"translation {_ms(stages.translate_ms)}"]
            parts += [f"send {_ms(stages.send_ms)}"]
        several = f" ({messages} messages, one turn)" if messages > 1 else ""
        who = f"{'':11}{name}{several}: "
        self.line(self.dim(f"{who}{' · '.join(parts)} · first text after {_ms(turn.first_ms)}"))

    def summary(self, measured: Sequence[Measured]) -> None:
        """The table of all stages."""
        self.title("Stages")
        self.line(self.dim(f"  {'':<12}{'p50':>10}{'max':>10}"))
        for name, middle, most, meaning in table(measured):
            self.line(f"  {name:<12}{_ms(middle):>10}{_ms(most):>10}   {self.dim(meaning)}")

    def _event(self, seconds: float, name: str, lines: Sequence[str], rest: str = "") -> None:
        minutes, left = divmod(max(0.0, seconds), 60)
        head = f"{self.dim(f'{int(minutes):02d}:{left:06.3f}')}  {name}"
        for line in lines or [""]:
            self.line(head + isolated(line))
            head = " " * INDENT
        if rest:
            self.line(head + self.dim(rest))


def isolated(line: str) -> str:
    """The line, so that its direction stays its own."""
    return f"{ISOLATE}{line}{END_ISOLATE}" if RIGHT_TO_LEFT.search(line) else line


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.1f} ms" if milliseconds < 9.95 else f"{milliseconds:,.0f} ms"
