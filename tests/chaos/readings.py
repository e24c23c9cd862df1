"""What the rules read: transcripts, tokens, turns' members, what was heard, who was hit. Pure, of evidence alone."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from msgspec import Struct

from app.sandbox.ledger import Delivery, Line
from tests.chaos import runs
from tests.chaos.evidence import Asked, Evidence, Message
from tests.chaos.workload import Planned

# From the beginning of a statement that writes a fact until others see what it says.
COMMIT_SECONDS = 0.25
MARK = re.compile(r"([A-Za-z0-9-]+)#(\d+)/(\d+)")


class Violation(Struct, frozen=True, kw_only=True):
    """What was broken. `tokens` and `chunks` name whose history tells more."""

    invariant: int
    what: str
    tokens: tuple[str, ...] = ()
    chunks: tuple[str, ...] = ()
    at: float | None = None


class Part(Struct, frozen=True, kw_only=True, gc=False):
    """Part `i` of `n` of the answer to `token`, as it stands in a transcript; `text` with its blanks made one."""

    token: str
    i: int
    n: int
    text: str
    chunk: str


def chunk_of(send: Line) -> str:
    return (send.key or "").rpartition(":")[0] or f"no key {send.seq}"


def attempt_of(send: Line) -> int:
    n = (send.key or "").rpartition(":")[2]
    return int(n) if n.isdecimal() else 0


def tokens_in(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(token for token, _, _ in MARK.findall(text)))


def items_of(delivery: Delivery) -> tuple[str, ...]:
    return delivery.ids[:3] if delivery.kind == "inbound" else ()


def acknowledged(evidence: Evidence) -> dict[str, float]:
    """When the first status of a provider id was answered 200."""
    heard: dict[str, float] = {}
    for d in evidence.deliveries:
        if d.kind == "statuses" and d.status == 200:
            for id in d.ids:
                heard[id] = min(heard.get(id, float("inf")), d.t + d.ack_ms / 1000)
    return heard


def first_heard(evidence: Evidence) -> dict[str, float]:
    """When the first status of a provider id was in the database for all to see.

    A 200 means that it is, but for the 200 of the web that has a spool: it may lie there, and is heard at its replay. Of
    that the row of its attempt tells; never, if no row does.
    """
    applied = {f"{attempt.chunk}:{attempt.n}": attempt.heard for attempt in evidence.attempts}
    rows = {send.provider_id: applied.get(send.key or "") for send in evidence.sends}
    heard: dict[str, float] = {}
    for d in evidence.deliveries:
        if d.kind != "statuses" or d.status != 200:
            continue
        answered = d.t + d.ack_ms / 1000
        may_be_spooled = evidence.spooling is not None and evidence.webs.get(d.url) == evidence.spooling
        for id in d.ids:
            row = rows.get(id) or float("inf")
            at = row + COMMIT_SECONDS if may_be_spooled and row > answered else answered
            heard[id] = min(heard.get(id, float("inf")), at)
    return heard


def worker_hit(
    evidence: Evidence, at: float, *, before: float = 0.0, after: float | None = None, unheard: bool = False
) -> bool:
    """Whether a worker, the database or the way there was hit between the send and the end of its fact's patience.

    A commit whose reply was lost has happened: it excuses nobody who only had to know of it. With `unheard` it counts.
    """
    until = at + (runs.SEND_TIMEOUT + runs.SILENCE if after is None else after)
    webs = set(evidence.webs.values())
    harmless = {"latency"} if unheard else {"latency", "lost_commit"}
    return any(
        f.overlaps(at - before, until) for f in evidence.faults if f.target not in webs and f.kind not in harmless
    )


def transcripts(evidence: Evidence) -> dict[tuple[str, str], list[Part]]:
    """What each recipient read from each number, each chunk at its first coming, cut at the marks."""
    said: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    for send in evidence.sends:
        if send.accepted and send.text.strip() != runs.FAILURE and (chunk_of(send), send.recipient) not in seen:
            seen.add((chunk_of(send), send.recipient))
            said[send.phone_number_id, send.recipient].append((chunk_of(send), send.text))
    return {address: list(cut_at_marks(texts)) for address, texts in said.items()}


def cut_at_marks(texts: Sequence[tuple[str, str]]) -> Iterator[Part]:
    """The parts of what stands in these chunks, each with its text."""
    head: tuple[str, int, int, str] | None = None
    words: list[str] = []
    for chunk, text in texts:
        at = 0
        for mark in MARK.finditer(text):
            words += text[at : mark.start()].split()
            if head or words:
                yield _part(head, words, chunk)
            head, words, at = (mark[1], int(mark[2]), int(mark[3]), chunk), [mark[0]], mark.end()
        words += text[at:].split()
    if head or words:
        yield _part(head, words, texts[-1][0])


def _part(head: tuple[str, int, int, str] | None, words: list[str], chunk: str) -> Part:
    if head is None:
        return Part(token="words before any mark", i=0, n=0, text=" ".join(words), chunk=chunk)
    return Part(token=head[0], i=head[1], n=head[2], text=" ".join(words), chunk=head[3])


def membership(evidence: Evidence) -> dict[str, list[str]]:
    """The tokens of each turn's messages."""
    tokens: dict[tuple[str, str], list[Planned]] = defaultdict(list)
    for item in evidence.planned:
        tokens[item.tenant, item.id].append(item)
    entries: dict[tuple[str, int], Message] = {
        (m.conversation, m.seq): m for m in evidence.messages if m.seq is not None
    }
    members: dict[str, list[str]] = {}
    for turn in evidence.turns:
        found = (entries.get((turn.conversation, seq)) for seq in range(turn.first_seq, turn.last_seq + 1))
        members[turn.id] = [item.token for m in found if m for item in tokens[m.tenant, m.provider_id]]
    return members


def addresses(evidence: Evidence) -> dict[str, tuple[str, str]]:
    """The number and the person of each conversation."""
    numbers = {item.tenant: item.number for item in evidence.planned}
    return {lane.conversation: (numbers.get(lane.tenant, ""), lane.person) for lane in evidence.lanes}


def calls_about(evidence: Evidence) -> dict[tuple[str, ...], list[Asked]]:
    """The assistant's calls by the tokens that they were about, sorted."""
    found: dict[tuple[str, ...], list[Asked]] = defaultdict(list)
    for asked in evidence.asked:
        found[tuple(sorted(asked.tokens))].append(asked)
    return found


def may_be_short(evidence: Evidence) -> set[str]:
    """Tokens of which people may have read only the beginning: a chunk of their turn is parked."""
    members = membership(evidence)
    parked = {chunk.turn for chunk in evidence.chunks if chunk.state == "parked"}
    return {token for turn in parked if turn for token in members.get(turn, ())}


def gave_up(evidence: Evidence, address: tuple[str, str]) -> bool:
    people = addresses(evidence)
    return any(c.state in ("parked", "cancelled") and people.get(c.conversation) == address for c in evidence.chunks)
