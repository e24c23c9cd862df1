"""Shows what befell whom when: strips of a character a second for the terminal, panels of curves as a drawing.

It judges nothing.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from tests.bench.troubles import RATE, Seen, Trouble

if TYPE_CHECKING:  # matplotlib takes half a second
    from matplotlib.axes import Axes

_BARS = " ▁▂▃▄▅▆▇█"
_STATES = {"closed": "·", "slow": "s", "open": "█", "half_open": "?"}
# From the palette of Okabe and Ito, whose colours the colour-blind can tell apart.
STORED, SPOOLED, REFUSED, ANSWERED = "#009E73", "#56B4E9", "#D55E00", "#000000"


class Curves(Struct, frozen=True, kw_only=True):
    """What happened in each second since the first webhook: to webhooks of messages, and answers that went out.

    `states`: what the breaker was for the longer part of each.
    """

    seconds: int
    stored: list[int]
    spooled: list[int]
    refused: list[int]
    answered: list[int]
    states: list[str]


def curves(seen: Seen) -> Curves:
    """Count what was seen, second by second."""
    last = max(*seen.answered, *(ack.at for ack in seen.acks))
    seconds = int(last - seen.first) + 1

    def count(times: Iterable[float]) -> list[int]:
        counts = [0] * seconds
        for at in times:
            if 0 <= at - seen.first < seconds:
                counts[int(at - seen.first)] += 1
        return counts

    taken = count(ack.at for ack in seen.acks if ack.status == 200 and ack.new)
    spooled = count(seen.spooled)
    return Curves(
        seconds=seconds,
        stored=[t - s for t, s in zip(taken, spooled, strict=True)],
        spooled=spooled,
        refused=count(ack.at for ack in seen.acks if ack.status != 200 and ack.new),
        answered=count(seen.answered),
        states=_states(seen, seconds),
    )


def _states(seen: Seen, seconds: int) -> list[str]:
    states, state, changes = [], "closed", list(seen.changes)
    for second in range(seconds):
        while changes and changes[0].at < seen.first + second + 0.5:
            state = changes.pop(0).state
        states.append(state)
    return states


def strips(seen: Seen, trouble: Trouble) -> str:
    """A character a second; a full block is what comes in a second when all is well."""
    found = curves(seen)
    began, ended = seen.began - seen.first, seen.ended - seen.first
    during = "".join("▀" if began - 0.5 < second < ended else " " for second in range(found.seconds))
    ruler = "".join(f"{second:<10}" for second in range(0, found.seconds, 10))[: found.seconds]
    rows = [
        ("seconds", ruler),
        (trouble.name, during),
        ("stored, 200", _bars(found.stored)),
        ("spooled, 200", _bars(found.spooled)),
        ("refused, 503", _bars(found.refused)),
        ("answered", _bars(found.answered)),
        ("breaker", "".join(_STATES[state] for state in found.states)),
    ]
    if not seen.spool:
        del rows[3]
    title = f"{trouble.name} ({trouble.what}), {'with' if seen.spool else 'without'} a spool"
    return "\n".join(["", title, *(f"  {name:<13} {strip.rstrip()}" for name, strip in rows)])


def _bars(counts: Sequence[int]) -> str:
    """By eighths of RATE; one alone shows too."""
    return "".join(_BARS[min(8, max(int(n > 0), round(8 * n / RATE)))] for n in counts)


def draw(seen: Sequence[Seen], file: Path) -> None:
    """One panel each: a row for a trouble, without the spool on the left, with it on the right. The suffix says how."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = list(dict.fromkeys(one.trouble for one in seen))
    columns = sorted({one.spool for one in seen})
    figure, panels = pyplot.subplots(
        len(rows),
        len(columns),
        figsize=(6.5 * len(columns), 1.0 + 1.7 * len(rows)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel in panels.flat:
        panel.set_axis_off()
    for one in seen:
        panel = panels[rows.index(one.trouble)][columns.index(one.spool)]
        panel.set_axis_on()
        panel.set_title(f"{one.trouble}, {'with' if one.spool else 'without'} a spool", loc="left", fontsize=9, pad=10)
        _panel(panel, one)
    for panel in panels[-1]:
        panel.set_xlabel("seconds")
    for row in panels:
        row[0].set_ylabel("a second")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _panel(panel: "Axes", one: Seen) -> None:
    found = curves(one)
    edges = range(found.seconds + 1)
    floor = [0] * found.seconds
    for counts, colour, label in (
        (found.stored, STORED, "webhooks stored (200)"),
        (found.spooled, SPOOLED, "webhooks spooled (200)"),
        (found.refused, REFUSED, "webhooks refused (503)"),
    ):
        top = [low + n for low, n in zip(floor, counts, strict=True)]
        panel.stairs(top, edges, baseline=floor, fill=True, color=colour, label=label, linewidth=0)
        floor = top
    panel.stairs(found.answered, edges, color=ANSWERED, label="answers sent", linewidth=1.0, baseline=None)
    panel.axvspan(
        one.began - one.first, one.ended - one.first, color="#CC79A7", alpha=0.25, label="the trouble", lw=0, zorder=0
    )
    panel.fill_between(
        edges,
        1.0,
        1.06,
        where=[*(state == "open" for state in found.states), False],
        step="post",
        transform=panel.get_xaxis_transform(),
        color="#444444",
        clip_on=False,
        label="breaker open",
        linewidth=0,
    )
    panel.set_ylim(0, 4 * RATE)
    panel.set_xlim(left=0)
    panel.spines[["top", "right"]].set_visible(False)
