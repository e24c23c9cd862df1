"""What a run found, in words: the table of invariants and figures, and the whole history of each violation."""

from collections import Counter
from collections.abc import Iterator, Sequence

from tests.bench.figures import percentiles
from tests.chaos import degraded
from tests.chaos.evidence import Evidence
from tests.chaos.readings import Violation, acknowledged, chunk_of, membership, tokens_in

Verdicts = Sequence[tuple[int, str, list[Violation]]]

# Of each invariant so many violations are told whole: the first ones explain the others.
TOLD = 5
_AROUND = 8.0  # seconds


def table(evidence: Evidence, verdicts: Verdicts) -> str:
    """Each invariant with its count of violations, then the run's figures."""
    rows = [(str(number) if number else "", name, str(len(found) or "held")) for number, name, found in verdicts]
    width = max(len(name) for _, name, _ in rows)
    lines = [f"{number:>2}  {name:<{width}}  {count:>6}" for number, name, count in rows]
    return "\n".join([f"run {evidence.run}, {evidence.policy}, seed {evidence.seed}", *lines, "", *_figures(evidence)])


def _figures(evidence: Evidence) -> Iterator[str]:
    kinds = Counter(item.kind for item in evidence.planned)
    inbound = [d for d in evidence.deliveries if d.kind == "inbound"]
    answered = [d.ack_ms for d in evidence.deliveries if d.status is not None]
    p50, p99, most = percentiles(answered)
    codes = Counter(str(d.status or d.error) for d in evidence.deliveries)
    accepted = [send for send in evidence.sends if send.accepted]
    chunks = Counter(chunk.state for chunk in evidence.chunks)
    lost = sum(not send.responded or "500" in send.outcome for send in accepted)
    drained = "never" if evidence.drained_in is None else f"in {evidence.drained_in:.1f} s"
    yield f"items         {', '.join(f'{count} {kind}' for kind, count in kinds.items())}; {len(inbound)} POSTs"
    yield f"webhooks      p50 {p50:.1f}, p99 {p99:.1f}, max {most:.0f} ms; {_counted(codes)}"
    yield f"assistant     {len(evidence.asked)} calls: {_counted(Counter(asked.outcome for asked in evidence.asked))}"
    yield f"turns         {_counted(Counter(str(turn.outcome) for turn in evidence.turns))}"
    yield f"chunks        {len(evidence.chunks)}: {_counted(chunks)}"
    yield f"sends         {len(evidence.sends)}, {len(accepted)} accepted, of {lost} the answer was lost"
    yield f"              {_counted(Counter(send.outcome for send in evidence.sends))}"
    yield f"received twice {len(accepted) - len({chunk_of(send) for send in accepted})}"
    yield f"faults        {_counted(Counter(fault.kind for fault in evidence.faults)) or 'none'}"
    yield f"outages       {_counted(Counter(outage.kind for outage in evidence.outages)) or 'none'}"
    yield from _breakers(evidence)
    yield f"spool         at most {max((kept.bytes for kept in evidence.spool), default=0):,} bytes"
    yield f"error lines   {_counted(Counter(line.process for line in evidence.logged if line.why == 'error')) or 'none'}"
    yield f"at rest       {drained} after the last fault and message"
    for memory in evidence.memory:
        yield f"memory        {memory.name}, {memory.when}: {memory.bytes / 2**20:.0f} MiB"


def _breakers(evidence: Evidence) -> Iterator[str]:
    known = [after for _, _, after in degraded.openings(evidence) if after is not None]
    after_well = [ended - began for _, began, ended in degraded.closings(evidence)]
    opened = sum(change.state == "open" for change in evidence.breakers)
    yield (
        f"breakers      opened {opened} times, at most {max(known, default=0):.2f} s after {len(known)} losses; open for at most "
        f"{max(after_well, default=0):.2f} s while all was well; {len(evidence.probes)} probes"
    )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def histories(evidence: Evidence, verdicts: Verdicts) -> Iterator[str]:
    """Every violation in one line; the first of each invariant with all that is known of its message."""
    teller = _Teller(evidence)
    for number, name, found in verdicts:
        for at, violation in enumerate(found):
            yield f"\nVIOLATION of {number or 'the rig’s own rules'} ({name}): {violation.what}"
            if at < TOLD:
                yield from teller.tell(violation)
            elif violation.tokens or violation.chunks:
                yield f"  {', '.join((*violation.tokens[:3], *violation.chunks[:2]))}"


class _Teller:
    """Looks everything up once, since there may be many to tell of."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._members = membership(evidence)
        self._began = min((d.t for d in evidence.deliveries), default=0.0)
        self._heard = acknowledged(evidence)

    def tell(self, violation: Violation) -> Iterator[str]:
        """The timeline of the items, turns and chunks that a violation names."""
        e, tokens, chunks = self._evidence, set(violation.tokens[:4]), set(violation.chunks[:4])
        turns = {turn.id for turn in e.turns if tokens.intersection(self._members[turn.id])}
        turns |= {chunk.turn for chunk in e.chunks if chunk.id in chunks and chunk.turn}
        chunks |= {chunk.id for chunk in e.chunks if chunk.turn in turns}
        tokens = tokens or {token for turn in turns for token in self._members[turn]}
        lines = [*self._items(tokens), *self._turns(turns), *self._chunks(chunks), *self._sends(tokens, chunks)]
        times = [t for t, _ in lines if t] + ([violation.at] if violation.at else [])
        for fault in e.faults:
            if any(fault.overlaps(t - _AROUND, t + _AROUND) for t in times[-40:]):
                lines.append((fault.began, f"fault {fault.kind} of {fault.target}, {fault.ended - fault.began:.1f} s"))
        for t, line in sorted(lines, key=lambda line: line[0])[:120]:
            yield f"  {t - self._began:9.3f}  {line}" if t else f"             {line}"

    def _items(self, tokens: set[str]) -> Iterator[tuple[float, str]]:
        ids = set()
        for item in self._evidence.planned:
            if item.token in tokens:
                ids.add((item.tenant, item.id))
                yield (
                    0.0,
                    f"{item.kind} {item.token}, {item.parts} parts, from {item.person} to {item.tenant} {item.number}",
                )
        for d in self._evidence.deliveries:
            if d.kind == "inbound" and tokens.intersection(d.ids):
                yield d.t, f"inbound to {d.url[7:22]}, try {d.tries}: {d.status or d.error} after {d.ack_ms:.0f} ms"
        for asked in self._evidence.asked:
            if tokens.intersection(asked.tokens):
                yield asked.t, f"assistant asked about {', '.join(asked.tokens)}: {asked.outcome}"
        for m in self._evidence.messages:
            if (m.tenant, m.provider_id) in ids:
                yield m.stored, f"stored as entry {m.seq} of {m.conversation}"

    def _turns(self, turns: set[str]) -> Iterator[tuple[float, str]]:
        for turn in self._evidence.turns:
            if turn.id in turns:
                said = ", ".join(self._members[turn.id])
                yield 0.0, f"turn {turn.id}, entries {turn.first_seq}–{turn.last_seq} ({said}): {turn.outcome}"

    def _chunks(self, chunks: set[str]) -> Iterator[tuple[float, str]]:
        for chunk in self._evidence.chunks:
            if chunk.id in chunks:
                why = f" ({chunk.reason})" if chunk.reason else ""
                yield 0.0, f"chunk {chunk.id}, no. {chunk.no} of entry {chunk.seq}: {chunk.state}{why}"
        for a in self._evidence.attempts:
            if a.chunk in chunks:
                yield (
                    a.began,
                    f"intent {a.chunk[-6:]}:{a.n} under token {a.token}; in the end {a.state} {a.reason or ''}",
                )
                if a.ended:
                    yield a.ended, f"fact of {a.chunk[-6:]}:{a.n}"
                if a.heard:
                    yield a.heard, f"first status of {a.chunk[-6:]}:{a.n} applied"

    def _sends(self, tokens: set[str], chunks: set[str]) -> Iterator[tuple[float, str]]:
        for send in self._evidence.sends:
            if chunk_of(send) in chunks or tokens.intersection(tokens_in(send.text)):
                taken = "accepted" if send.accepted else "not accepted"
                answer = "answered" if send.responded else "not answered"
                silent = ", never to have a status" if send.silent else ""
                name = (send.key or "no key")[-8:]
                marks = ", ".join(tokens_in(send.text))
                yield send.t, f"POST {name} ({marks}): {send.outcome}, {taken}, {answer}{silent}"
                if (heard := self._heard.get(send.provider_id)) is not None:
                    yield heard, f"status of {name} acknowledged"
