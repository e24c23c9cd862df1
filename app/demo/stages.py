"""How long each stage of a turn took: read from the worker's log (the event `turn`), summed up in a table."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct


class Stages(Struct, frozen=True, kw_only=True):
    """The worker's line about one turn, times in milliseconds. `send_ms` is the first text's POST."""

    event: str = ""
    correlation: str = ""
    outcome: str = ""
    messages: int = 0
    queue_ms: float = 0.0
    db_ms: float = 0.0
    ai_ms: float = 0.0
    translate_ms: float = 0.0
    send_ms: float = 0.0


_line = msgspec.json.Decoder(Stages)


def translates(stages: Stages) -> bool:
    """Whether there was something to translate: to find out that there is nothing takes no time."""
    return stages.translate_ms >= 1.0


def turns(log: Path) -> dict[str, Stages]:
    """The turns in the worker's log, by the correlation of their first message."""
    found = {}
    for line in log.read_bytes().splitlines():
        try:
            stages = _line.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # half a line, or what a library wrote
        if stages.event == "turn":
            found[stages.correlation] = stages
    return found


class Measured(Struct, frozen=True, kw_only=True):
    """One turn: `ack_ms` and `first_ms` (its first message sent → its first text there) by the sandbox's clock."""

    ack_ms: float
    first_ms: float
    stages: Stages | None


def table(measured: Sequence[Measured]) -> list[tuple[str, float, float, str]]:
    """Stage, median and longest in milliseconds, what it means."""
    told = [(each, each.stages) for each in measured if each.stages is not None]
    rows: list[tuple[str, list[float], str]] = [
        ("ack", [each.ack_ms for each in measured], "webhook sent → 200; the message is committed"),
        (
            "queue",
            [stages.queue_ms for _, stages in told],
            "committed → a worker has it, and is done with the turn before",
        ),
        ("AI", [stages.ai_ms for _, stages in told if stages.ai_ms], "the simulated assistant, where one was asked"),
        (
            "translation",
            [stages.translate_ms for _, stages in told if translates(stages)],
            "the simulated translator, where an answer rests on sources",
        ),
        ("database", [stages.db_ms for _, stages in told], "the worker's commits of the turn"),
        ("send", [stages.send_ms for _, stages in told], "the POST of the first text"),
        ("answer", [each.first_ms for each in measured], "webhook sent → first text there"),
        (
            "without AI",
            [each.first_ms - stages.ai_ms - stages.translate_ms for each, stages in told],
            "the same, the time of the AI and the translator taken away",
        ),
    ]
    return [(name, statistics.median(times), max(times), meaning) for name, times, meaning in rows if times]
