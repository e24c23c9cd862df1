"""The invariants of FAULTS.md section 4, each a pure function of the evidence; 2 is in recipients.py, 3 in
doubles.py, 7 and 11 in manners.py, 12 and those of the spool in degraded.py, 14 in answers.py.

A violation names the items it is about, so that the report can tell their whole history. Nothing here prints.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from tests.chaos import degraded, runs
from tests.chaos.answers import Overtaken, answer_to, asked_once, endings
from tests.chaos.doubles import in_turn, nothing_blind, sent_once
from tests.chaos.evidence import Asked, Evidence, Turn
from tests.chaos.manners import retries_bounded, waits_as_told, webhooks_answered
from tests.chaos.readings import (
    COMMIT_SECONDS,
    Violation,
    acknowledged,
    calls_about,
    chunk_of,
    membership,
    tokens_in,
)
from tests.chaos.recipients import answered_wholly
from tests.chaos.workload import canary

_WAMID = re.compile(r'"(wamid\.[^"]+)"')


def stored_once(evidence: Evidence) -> Iterator[Violation]:
    """1: every inbound ever answered 200 exists once, and every injected id is eventually answered 200."""
    answered = {id for d in evidence.deliveries if d.kind == "inbound" and d.status == 200 for id in d.ids}
    stored = Counter((m.tenant, m.provider_id) for m in evidence.messages)
    kept = Counter(id for raw in evidence.quarantined for id in set(_WAMID.findall(raw)))
    for item in evidence.planned:
        if item.token not in answered:
            yield Violation(invariant=1, what="an injected id was never answered 200", tokens=(item.token,))
        elif item.kind == "unknown":
            if kept[item.id] != 1:
                what = f"an item of unknown kind was answered 200 and is quarantined {kept[item.id]} times"
                yield Violation(invariant=1, what=what, tokens=(item.token,))
        elif (count := stored[item.tenant, item.id]) != 1:
            yield Violation(invariant=1, what=f"answered 200, and stored {count} times", tokens=(item.token,))


# --- 4: nothing stuck ------------------------------------------------------------------------------------------------


def nothing_stuck(evidence: Evidence) -> Iterator[Violation]:
    """4: 120 s after the faults every chunk is terminal or parked, every lane done, without a person's doing."""
    if evidence.drained_in is None:
        yield Violation(invariant=4, what=f"not at rest {runs.DRAIN_SECONDS:g} s after the faults stopped")
    members = membership(evidence)
    of_lane: dict[str, list[str]] = defaultdict(list)
    for turn in evidence.turns:
        of_lane[turn.conversation] += members[turn.id]
    for lane in evidence.lanes:
        if lane.done_seq != lane.head_seq:
            what = (
                f"a lane stands at {lane.done_seq} of {lane.head_seq}, owner {lane.owner}, due in {lane.run_in} s, "
                f"attempts {lane.attempts}"
            )
            yield Violation(invariant=4, what=what, tokens=tuple(of_lane[lane.conversation][-3:]))
    for chunk in evidence.chunks:
        if chunk.state in ("ready", "sending", "in_doubt"):
            yield Violation(invariant=4, what=f"a chunk is left {chunk.state}", chunks=(chunk.id,))


def every_lane_waits_for_something(evidence: Evidence) -> Iterator[Violation]:
    """4: at any moment a lane with something to do has an owner, or a time at which it is due."""
    for lane in evidence.lanes:
        if lane.done_seq < lane.head_seq and lane.owner is None and lane.run_in is None:
            what = f"a lane stands at {lane.done_seq} of {lane.head_seq}, nobody has it, and it is never due"
            yield Violation(invariant=4, what=what)


# --- 5: usage --------------------------------------------------------------------------------------------------------


def billed_once(evidence: Evidence) -> Iterator[Violation]:
    """5: usage per tenant = distinct answered inbound; the tokens billed are those of calls that make one answer, and of one
    more for each change of what was asked, if that was remembered as well: what an echo made useless was paid for, too.
    """
    texts = Counter(item.tenant for item in evidence.planned if item.kind == "text")
    billed: Counter[str] = Counter()
    calls = calls_about(evidence)
    members = membership(evidence)
    said, overtaken = answer_to(evidence), Overtaken(evidence)
    remembered: dict[str, set[int]] = defaultdict(set)
    for memo in evidence.memos:
        remembered[memo.turn].add(memo.version)
    for turn in evidence.turns:
        billed[turn.tenant] += turn.messages
        if turn.outcome != "answered":
            continue
        tokens = tuple(sorted(members[turn.id]))
        if turn.messages != len(tokens):
            what = f"a turn of {len(tokens)} messages is billed as {turn.messages}"
            yield Violation(invariant=5, what=what, tokens=tokens)
        about = calls.get(tokens, [])
        one = {(a.input_tokens, a.output_tokens) for a in endings(about, said(about)) if a.kind != "failed"}
        bills = set(one)
        for _ in range(min(len(remembered[turn.id]) - 1, _changes(overtaken, turn, about))):
            bills |= {(x + more_x, y + more_y) for x, y in bills for more_x, more_y in one}
        if (turn.input_tokens, turn.output_tokens) not in bills:
            what = f"billed {turn.input_tokens} and {turn.output_tokens} tokens; the assistant's calls were {bills}"
            what += f", answers remembered {len(remembered[turn.id])}, changes {_changes(overtaken, turn, about)}"
            yield Violation(invariant=5, what=what, tokens=tokens)
    for tenant in texts.keys() | billed.keys():
        if texts[tenant] != billed[tenant]:
            what = f"tenant {tenant} is billed {billed[tenant]} messages of {texts[tenant]}"
            yield Violation(invariant=5, what=what)


def _changes(overtaken: Overtaken, turn: Turn, about: Sequence[Asked]) -> int:
    """How often what was asked may have changed behind the back of who asked: from when it was read, before the first call."""
    return overtaken.changes(turn, turn.began - COMMIT_SECONDS, about[-1].t) if about else 0


# --- 6: tenants apart ------------------------------------------------------------------------------------------------


def tenants_apart(evidence: Evidence) -> Iterator[Violation]:
    """6: a tenant's canary never appears in another's transcript or prompt, nor any tenant's in a log."""
    owners = {item.number: item.tenant for item in evidence.planned}
    any_canary = re.compile(rf"q{evidence.seed}ct\d\dz")
    for send in evidence.sends:
        own = canary(evidence.seed, owners.get(send.phone_number_id, "nobody"))
        for found in set(any_canary.findall(send.text)) - {own}:
            what = f"{found} in a text sent from number {send.phone_number_id}"
            yield Violation(invariant=6, what=what, tokens=tokens_in(send.text), chunks=(chunk_of(send),))
    for asked in evidence.asked:
        if len(asked.canaries) > 1:
            what = f"one prompt holds {', '.join(asked.canaries)}"
            yield Violation(invariant=6, what=what, tokens=asked.tokens)
    for line in evidence.logged:
        if line.why == "canary":
            yield Violation(invariant=6, what=f"words of a message in the log of {line.process}: {line.text[:200]}")


# --- 8, 9, 10 --------------------------------------------------------------------------------------------------------


def statuses_converge(evidence: Evidence) -> Iterator[Violation]:
    """8: a status never regresses: what was accepted and had its ladder ends as `read`, in whatever order it came."""
    heard = acknowledged(evidence)
    states = {f"{attempt.chunk}:{attempt.n}": attempt.state for attempt in evidence.attempts}
    best: dict[str, bool] = defaultdict(bool)
    for send in evidence.sends:
        if not send.accepted or send.silent or send.provider_id not in heard or send.key not in states:
            continue
        best[chunk_of(send)] = True
        if states[send.key] != "read":
            what = f"an attempt whose statuses came, `read` among them, stands at {states[send.key]}"
            yield Violation(invariant=8, what=what, tokens=tokens_in(send.text), chunks=(chunk_of(send),))
    for chunk in evidence.chunks:
        if best[chunk.id] and chunk.state != "read":
            what = f"an attempt of it was read, and the chunk stands at {chunk.state}"
            yield Violation(invariant=8, what=what, chunks=(chunk.id,))


def no_reply_to_ourselves(evidence: Evidence) -> Iterator[Violation]:
    """9: nobody answers what the business wrote itself, nor what cannot be read: neither words nor an entry."""
    mute = {item.token: item for item in evidence.planned if item.kind != "text"}
    for send in evidence.sends:
        for token in tokens_in(send.text):
            if token in mute:
                what = f"a reply to an item of kind {mute[token].kind}"
                yield Violation(invariant=9, what=what, tokens=(token,), chunks=(chunk_of(send),))
    for asked in evidence.asked:
        for token in asked.tokens:
            if token in mute:
                what = f"the assistant was asked to answer an item of kind {mute[token].kind}"
                yield Violation(invariant=9, what=what, tokens=(token,))
    for message in evidence.messages:
        if message.direction == "echo" and message.seq is not None:
            what = f"an echo has entry {message.seq} in its lane"
            yield Violation(invariant=9, what=what, tokens=(message.provider_id.removeprefix("wamid.HBgL"),))


def owners_only(evidence: Evidence) -> Iterator[Violation]:
    """10: no intent of a stale owner: along each lane the tokens of its intents never fall.

    None lies above the lane's own, one attempt of a chunk follows the other, and the witness in the database saw none
    that was taken under another token than its lane had at that instant.
    """
    for stale in evidence.stale:
        has = f"has token {stale.lane_token}" if stale.owned else "is nobody's"
        what = f"the intent of attempt {stale.n} was taken under token {stale.token} while its lane {has}"
        yield Violation(invariant=10, what=what, chunks=(stale.chunk,), at=stale.at)
    tokens = {lane.conversation: lane.token for lane in evidence.lanes}
    attempts = defaultdict(list)
    for attempt in evidence.attempts:
        attempts[attempt.conversation].append(attempt)
        if attempt.token > tokens[attempt.conversation]:
            what = f"attempt {attempt.n} has token {attempt.token}, its lane {tokens[attempt.conversation]}"
            yield Violation(invariant=10, what=what, chunks=(attempt.chunk,))
    for line in attempts.values():
        line.sort(key=lambda attempt: (attempt.began, attempt.token))
        for before, after in pairwise(line):
            if after.token < before.token:
                what = f"an intent was taken under token {after.token} after one under {before.token}"
                yield Violation(invariant=10, what=what, chunks=(after.chunk, before.chunk), at=after.began)
            if before.chunk == after.chunk and after.n <= before.n:
                what = f"attempt {after.n} was begun after attempt {before.n}"
                yield Violation(invariant=10, what=what, chunks=(after.chunk,), at=after.began)
    known = {f"{attempt.chunk}:{attempt.n}" for attempt in evidence.attempts}
    for send in evidence.sends:
        if send.key not in known:
            what = f"a POST without an intent: {send.key}"
            yield Violation(invariant=10, what=what, tokens=tokens_in(send.text), at=send.t)


# --- 13 ----------------------------------------------------------------------------------------------------------


def tidy(evidence: Evidence) -> Iterator[Violation]:
    """13: in E RSS after the drain ≤ 1.2 × RSS after the first tenth of the load; no task's end goes unheard, ever."""
    for line in evidence.logged:
        if line.why == "never retrieved":
            yield Violation(invariant=13, what=f"{line.process}: {line.text[:200]}")
    if evidence.run != "E":
        return
    early = {memory.name: memory.bytes for memory in evidence.memory if memory.when == "tenth"}
    late = {memory.name: memory.bytes for memory in evidence.memory if memory.when == "drained"}
    if not early or early.keys() != late.keys():
        yield Violation(invariant=13, what=f"memory was measured of {sorted(early)} and of {sorted(late)}")
    for name in early.keys() & late.keys():
        if late[name] > 1.2 * early[name]:
            what = f"{name} grew from {early[name] / 2**20:.0f} to {late[name] / 2**20:.0f} MiB"
            yield Violation(invariant=13, what=what)


def processes_behaved(evidence: Evidence) -> Iterator[Violation]:
    """0: what fleet and monkey saw: a stop of over 30 s, an end that nobody ordered, a crash point never reached."""
    for broken in evidence.broken:
        yield Violation(invariant=0, what=f"{broken.target}: {broken.what}")


Check = Callable[[Evidence], Iterable[Violation]]
CHECKS: tuple[tuple[int, str, Check], ...] = (
    (1, "every item answered 200 exists once; every one was", stored_once),
    (2, "each question answered once, word for word, in order", answered_wholly),
    (3, "each chunk once; parked only what is in doubt", sent_once),
    (3, "each part after the one before it", in_turn),
    (3, "nothing sent again while no status flows", nothing_blind),
    (4, "nothing stuck", nothing_stuck),
    (4, "no lane forgotten", every_lane_waits_for_something),
    (4, "nothing left in the spool", degraded.spool_emptied),
    (5, "each answer billed once", billed_once),
    (6, "tenants apart", tenants_apart),
    (7, "Retry-After kept", waits_as_told),
    (7, "retries bounded", retries_bounded),
    (8, "statuses only forward, all converged", statuses_converge),
    (9, "no reply to echoes or the unreadable", no_reply_to_ourselves),
    (10, "no intent of a stale owner", owners_only),
    (11, "webhooks answered 200 or 503, in time", webhooks_answered),
    (12, "breakers open 2 s after a loss", degraded.breakers_open),
    (12, "breakers close 10 s after it", degraded.breakers_close),
    (12, "one probe a second", degraded.probes_paced),
    (13, "no growth, no unheard end of a task", tidy),
    (13, "spool within its bound", degraded.spool_bounded),
    (14, "no finished call of the assistant repeated", asked_once),
    (0, "processes start, stop and crash as ordered", processes_behaved),
)


def check(evidence: Evidence) -> list[tuple[int, str, list[Violation]]]:
    """Every invariant with its violations, in the order of the table."""
    return [(number, name, list(rule(evidence))) for number, name, rule in CHECKS]
