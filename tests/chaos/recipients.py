"""Invariant 2: what the recipients read. Each question answered once, word for word, in order."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise

from app.sandbox.scripts import parts
from tests.chaos import runs
from tests.chaos.answers import WHOLE, Overtaken, answer_to, endings, endless
from tests.chaos.evidence import Asked, Evidence, Turn
from tests.chaos.readings import (
    Part,
    Violation,
    addresses,
    calls_about,
    chunk_of,
    cut_at_marks,
    gave_up,
    may_be_short,
    membership,
    transcripts,
)
from tests.chaos.workload import Planned


def answered_wholly(evidence: Evidence) -> Iterator[Violation]:
    """2: each answerable inbound has exactly one reply set; the recipient's transcript equals the AI's expected text.

    Blanks count as one. What came twice as the same chunk is invariant 3's, and is read once here. A turn may answer
    several messages, each token's parts in a row. With a parked chunk the rest of its turn may be missing.

    A beginning of the answer, as long as the assistant's cut calls made it and with the text that says so behind it, stands
    for the whole only if the calls allow that; so does the failure text, and then nothing else is read.
    """
    texts = {item.token: item for item in evidence.planned if item.kind == "text"}
    excused = may_be_short(evidence)
    got: dict[str, list[Part]] = defaultdict(list)
    for address, transcript in transcripts(evidence).items():
        for first, second in pairwise([None, *transcript]):
            assert second is not None
            if second.token not in texts or (texts[second.token].number, texts[second.token].person) != address:
                what = f"a text that nobody here asked for: {second.token}#{second.i}/{second.n}"
                yield Violation(invariant=2, what=what, tokens=(second.token,), chunks=(second.chunk,))
                continue
            goes_on = first is not None and first.token == second.token and first.i + 1 == second.i
            if not goes_on and second.i != 1 and second.token not in excused:
                what = f"part {second.i} does not follow part {second.i - 1}"
                yield Violation(invariant=2, what=what, tokens=(second.token,), chunks=(second.chunk,))
            got[second.token].append(second)
    for tokens, allowed in _read_together(evidence, texts):
        found = {token: [part.text for part in got[token]] for token in tokens}
        if not any(_is_read(found, said, excused) for said in allowed):
            yield from _other_than([texts[token] for token in tokens], got, excused)
    yield from _failure_texts(evidence)


# What may be read of the answers to several messages: the texts of the parts, by token; none where nothing is.
_Read = Mapping[str, Sequence[str]]


def _read_together(evidence: Evidence, texts: Mapping[str, Planned]) -> Iterator[tuple[Sequence[str], Iterator[_Read]]]:
    """The tokens that were answered together, and each thing that may be read then, the usual one first."""
    alone = set(texts)
    calls, members, said = calls_about(evidence), membership(evidence), answer_to(evidence)
    overtaken = Overtaken(evidence)
    for turn in evidence.turns:
        tokens = [token for token in members[turn.id] if token in texts]
        alone -= set(tokens)
        about = calls.get(tuple(sorted(members[turn.id])), [])
        yield tokens, _allowed(turn, [texts[token] for token in tokens], about, said(about), overtaken)
    yield from (([token], iter([_whole([texts[token]])])) for token in alone)


def _allowed(
    turn: Turn, items: Sequence[Planned], about: Sequence[Asked], said: Callable[[], str], overtaken: Overtaken
) -> Iterator[_Read]:
    if turn.outcome in ("failed", "parked"):  # whether it may be so, is _failure_texts'
        yield {}
        return
    yield _whole(items)
    if turn.outcome == "answered" and _none_stands(turn, about, said, overtaken):
        for ending in endings(about, said):
            if ending.kind == "partial":
                read: dict[str, list[str]] = defaultdict(list)
                for part in cut_at_marks([("", f"{ending.text}\n\n{runs.PARTIAL}")]):
                    read[part.token].append(part.text)
                yield read


def _whole(items: Sequence[Planned]) -> _Read:
    return {item.token: [" ".join(part.split()) for part in parts(item.token, item.parts)] for item in items}


def _none_stands(turn: Turn, about: Sequence[Asked], said: Callable[[], str], overtaken: Overtaken) -> bool:
    """Whether no whole answer of the assistant's must have been remembered; one without an end is none."""
    whole = [call for call in about if call.outcome in WHOLE]
    return all(endless(said, call) or overtaken.lost(turn, call) for call in whole)


def _is_read(found: _Read, said: _Read, excused: Collection[str]) -> bool:
    return all(
        texts == said.get(token, []) or (token in excused and " ".join(said.get(token, [])).startswith(" ".join(texts)))
        for token, texts in found.items()
    )


def _other_than(
    items: Sequence[Planned], got: Mapping[str, Sequence[Part]], excused: Collection[str]
) -> Iterator[Violation]:
    """What is wrong with what was read, as far as it is not the whole answer; else with all of it."""
    wrong = [item for item in items if not _is_read({item.token: _texts(got[item.token])}, _whole([item]), excused)]
    for item in wrong or items:
        expected, found = _whole([item])[item.token], _texts(got[item.token])
        if item not in wrong:
            what = "the recipient read an answer of a turn that failed"
        elif any(runs.PARTIAL in text for text in found):
            what = "the recipient was told of a cut answer, and by the assistant's calls that is not how it ended"
        elif Counter(found) == Counter(expected) or set(found) < set(expected):
            numbers = [part.i for part in got[item.token]]
            what = f"expected parts 1 to {item.parts}, once and in order; the recipient got {numbers or 'none'}"
        else:
            what = "the recipient got other words than the assistant said"
        yield Violation(invariant=2, what=what, tokens=(item.token,))


def _texts(got: Sequence[Part]) -> list[str]:
    return [part.text for part in got]


def _failure_texts(evidence: Evidence) -> Iterator[Violation]:
    """The failure text comes once for each turn whose assistant failed at every try, without words, and for no other."""
    calls, said, overtaken = calls_about(evidence), answer_to(evidence), Overtaken(evidence)
    people = addresses(evidence)
    wanted: Counter[tuple[str, str]] = Counter()
    members = membership(evidence)
    for turn in evidence.turns:
        if turn.outcome not in ("failed", "parked"):
            continue
        tokens = tuple(sorted(members[turn.id]))
        about = calls.get(tokens, [])
        may = any(ending.kind == "failed" for ending in endings(about, said(about)))
        if turn.outcome == "parked" or not may or not _none_stands(turn, about, said(about), overtaken):
            told = ", ".join(call.outcome for call in about) or "nothing"
            yield Violation(
                invariant=2, what=f"a turn ended {turn.outcome} though the assistant said: {told}", tokens=tokens
            )
        wanted[people[turn.conversation]] += 1
    seen: set[tuple[str, str]] = set()
    got: Counter[tuple[str, str]] = Counter()
    for send in evidence.sends:
        if (
            send.accepted
            and send.text.strip() == runs.FAILURE
            and (chunk := chunk_of(send), send.recipient) not in seen
        ):
            seen.add((chunk, send.recipient))
            got[send.phone_number_id, send.recipient] += 1
    for address in wanted.keys() | got.keys():
        if wanted[address] != got[address] and not gave_up(evidence, address):
            what = f"{got[address]} failure texts to one recipient, {wanted[address]} turns failed"
            yield Violation(invariant=2, what=what)
