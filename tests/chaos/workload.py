"""Who writes what, when, and how often it is delivered: a plan, drawn from a seed. It posts nothing.

Figures: FAULTS.md section 2. Every item has a token that nobody else's has, so a text tells what it answers.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct, field

from app.sandbox import people
from app.sandbox.numbers import Number
from app.sandbox.webhooks import envelope

TENANTS = 20
COPIES = 3
DELAY = 5.0
WINDOW = 2.0
MOST_IN_A_WEBHOOK = 10
AT_ONCE_TO_BOTH = 0.2
UNKNOWN = 0.01
ECHOES = 0.01
SAME_ID = 0.005
# A mean of 2.5 parts: 10,000 messages make about 25,000 chunks.
PARTS = {1: 0.34, 2: 0.26, 3: 0.16, 4: 0.12, 5: 0.07, 6: 0.05}

Kind = Literal["text", "unknown", "echo"]


class Shape(Struct, frozen=True, kw_only=True):
    """How much: `busiest` messages in the busiest conversation, the others by Zipf; over `seconds`.

    `parts`: what share of the questions is answered in so many.
    """

    inbound: int
    conversations: int
    busiest: int
    seconds: float
    parts: dict[int, float] = field(default_factory=PARTS.copy)


class Planned(Struct, frozen=True, kw_only=True, gc=False):
    """One item: `at` seconds after the beginning. `parts` is what the assistant answers, 0 where nobody may."""

    at: float
    tenant: str
    number: str
    person: str
    id: str
    token: str
    parts: int
    kind: Kind

    @property
    def text(self) -> str:
        return f"Please, tok#{self.token}/{max(1, self.parts)}"


class Webhook(Struct, frozen=True, kw_only=True, gc=False):
    """Items that go out in one POST, `at` seconds after the beginning, to the web process number `to`."""

    at: float
    to: int
    items: tuple[Planned, ...]


def tenant(number: int) -> str:
    """A tenant's slug, from 0."""
    return f"t{number:02d}"


def address(number: int) -> str:
    """Its one channel's phone_number_id."""
    return f"10654000000{number:04d}"


def canary(seed: int, slug: str) -> str:
    """What stands in each text to and from a tenant, and nowhere else."""
    return f"q{seed}c{slug}z"


def items(seed: int, shape: Shape, *, wave: int = 0) -> list[Planned]:
    """The plan of one run (or of one `wave` of it), in the order of `at`."""
    draw = random.Random(f"items {seed} {wave}")
    planned = [
        _item(draw, seed, wave, serial, conversation, shape, "text")
        for serial, conversation in enumerate(_conversations(draw, shape))
    ]
    extra: list[tuple[Kind, float]] = [("unknown", UNKNOWN), ("echo", ECHOES)]
    kinds = [kind for kind, share in extra for _ in range(round(shape.inbound * share))]
    for serial, kind in enumerate(kinds, len(planned)):
        planned.append(_item(draw, seed, wave, serial, draw.randrange(shape.conversations), shape, kind))
    _share_ids(draw, planned, round(shape.inbound * SAME_ID))
    return sorted(planned, key=lambda item: item.at)


def webhooks(seed: int, planned: Sequence[Planned], *, wave: int = 0) -> list[Webhook]:
    """Every item `COPIES` times, later ones after up to `DELAY` seconds, shuffled in windows of `WINDOW` seconds."""
    draw = random.Random(f"webhooks {seed} {wave}")
    out: list[Webhook] = []
    again: list[tuple[float, Planned]] = []
    for hook in _grouped(draw, [(item.at, item) for item in planned]):
        copies = COPIES - 1
        out.append(hook)
        if draw.random() < AT_ONCE_TO_BOTH:
            out.append(Webhook(at=hook.at, to=1 - hook.to, items=hook.items))
            copies -= 1
        again += [(hook.at + draw.uniform(0, DELAY), item) for item in hook.items for _ in range(copies)]
    out += _grouped(draw, again)
    return sorted(out, key=lambda hook: hook.at)


def body(hook: Webhook, numbers: dict[str, Number], epoch: float) -> bytes:
    """The webhook's bytes. `epoch` is the beginning in unix seconds: an item's own time never changes."""
    parts: list[tuple[Number, str, dict[str, object]]] = []
    messages: dict[str, list[people.Json]] = defaultdict(list)
    contacts: dict[str, dict[str, people.Json]] = defaultdict(dict)
    for item in hook.items:
        number = numbers[item.number]
        spoken = people.Spoken(
            phone_number_id=item.number,
            sender=item.person,
            kind="echo" if item.kind == "echo" else "text",
            text=item.text,
            id=item.id,
            timestamp=int(epoch + item.at),
            extra={"type": "poll_creation"} if item.kind == "unknown" else {},
        )
        built = people.message(spoken, number, lambda _: None)
        if item.kind == "echo":
            parts.append((number, "smb_message_echoes", {"message_echoes": [built]}))
            continue
        messages[item.number].append(built)
        contacts[item.number][item.person] = {"profile": {"name": f"P {item.person}"}, "wa_id": item.person}
    for name, said in messages.items():
        value: dict[str, object] = {"contacts": list(contacts[name].values()), "messages": said}
        parts.insert(0, (numbers[name], "messages", value))
    return envelope(parts)


def _conversations(draw: random.Random, shape: Shape) -> list[int]:
    """The conversation of each message: the k-th has about busiest ÷ k^s of them, each at least one."""
    low, high = 0.0, 4.0
    for _ in range(50):
        middle = (low + high) / 2
        if sum(_share(shape.busiest, k, middle) for k in range(1, shape.conversations + 1)) > shape.inbound:
            low = middle
        else:
            high = middle
    who = [k for k in range(shape.conversations) for _ in range(round(_share(shape.busiest, k + 1, high)))]
    draw.shuffle(who)
    while len(who) < shape.inbound:
        who.append(draw.randrange(1, shape.conversations))
    return who[: shape.inbound]


def _share(busiest: int, k: int, s: float) -> float:
    return float(max(1.0, busiest / k**s))


def _item(
    draw: random.Random, seed: int, wave: int, serial: int, conversation: int, shape: Shape, kind: Kind
) -> Planned:
    slug = tenant(conversation % TENANTS)
    token = f"{canary(seed, slug)}-{wave}-{serial}"
    return Planned(
        at=draw.uniform(0, shape.seconds),
        tenant=slug,
        number=address(conversation % TENANTS),
        person=f"1555{conversation // 2:07d}",  # everybody writes to two tenants
        id=f"wamid.HBgL{token}",
        token=token,
        parts=draw.choices(list(shape.parts), list(shape.parts.values()))[0] if kind == "text" else 0,
        kind=kind,
    )


def _share_ids(draw: random.Random, planned: list[Planned], count: int) -> None:
    """The same provider id on two tenants."""
    for _ in range(count):
        one, other = draw.sample(range(len(planned)), 2)
        if planned[one].tenant != planned[other].tenant:
            fields = {name: getattr(planned[other], name) for name in Planned.__struct_fields__}
            planned[other] = Planned(**fields | {"id": planned[one].id})


def _grouped(draw: random.Random, wanted: list[tuple[float, Planned]]) -> Iterator[Webhook]:
    windows: dict[int, list[Planned]] = defaultdict(list)
    for at, item in wanted:
        windows[int(at / WINDOW)].append(item)
    for window, members in sorted(windows.items()):
        draw.shuffle(members)
        while members:
            size = draw.randint(1, MOST_IN_A_WEBHOOK)
            together, members = members[:size], members[size:]
            at = (window + draw.random()) * WINDOW
            yield Webhook(at=at, to=draw.randrange(2), items=tuple(together))
