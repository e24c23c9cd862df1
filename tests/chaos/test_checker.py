"""Each rule of the checker finds what breaks it: a check that cannot fail proves nothing."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.sandbox.ledger import Delivery, Line
from app.sandbox.scripts import parts
from tests.chaos import answers, checker, degraded, doubles, evidence, manners, recipients, runs
from tests.chaos.database import Outage
from tests.chaos.evidence import (
    Asked,
    Attempt,
    Broken,
    Change,
    Chunk,
    Evidence,
    Fault,
    Kept,
    Lane,
    Logged,
    Memory,
    Message,
    Stale,
    Turn,
)
from tests.chaos.fleet import SPOOL_BYTES
from tests.chaos.member import Life
from tests.chaos.proxied import Probe
from tests.chaos.readings import Violation
from tests.chaos.report import histories, table
from tests.chaos.workload import Planned, Shape, canary, items, webhooks

BEGAN = 1_000_000.0
URL = "http://127.0.0.1:1/webhooks/chaos"
CANARY = canary(7, "t00")
ONE, TWO = f"{CANARY}-0-1", f"{CANARY}-0-2"
NUMBER, PERSON = "106540000000000", "15550000000"
swap = msgspec.structs.replace


def planned(token: str, **other: Any) -> Planned:
    fields = {"at": 0.0, "tenant": "t00", "number": NUMBER, "person": PERSON, "id": f"wamid.{token}", "kind": "text"}
    return Planned(**{**fields, "token": token, "parts": 2, **other})


def delivery(*ids: str, **other: Any) -> Delivery:
    fields = {"t": BEGAN, "kind": "inbound", "url": URL, "tries": 1, "status": 200, "ack_ms": 10.0}
    return Delivery(**{**fields, "ids": ids, **other})


def send(seq: int, chunk: str, n: int, text: str, **other: Any) -> Line:
    fields = {
        "phone_number_id": NUMBER,
        "recipient": PERSON,
        "provider_id": f"p{seq}",
        "preview_url": False,
        "context": None,
        "accepted": True,
        "outcome": "ok",
        "attempt": n - 1,
        "responded": True,
        "silent": False,
    }
    return Line(**{**fields, "seq": seq, "t": BEGAN + seq, "key": f"{chunk}:{n}", "text": text, **other})


def chunk(id: str, no: int, **other: Any) -> Chunk:
    fields = {"tenant": "t00", "conversation": "c", "turn": "turn", "seq": 2, "state": "read", "reason": None}
    return Chunk(**{**fields, "id": id, "no": no, **other})


def attempt(id: str, n: int = 1, **other: Any) -> Attempt:
    fields = {"tenant": "t00", "conversation": "c", "token": 3, "state": "read", "code": None, "reason": None}
    return Attempt(**{**fields, "chunk": id, "n": n, "began": BEGAN + n, "ended": BEGAN + n, "heard": None, **other})


def well() -> Evidence:
    """Two messages of one person, one turn, answered with four parts in three chunks: all as it should be."""
    said = [*parts(ONE, 2), *parts(TWO, 2)]
    texts = [said[0], f"{said[1]}\n", said[2], said[3]]
    ids = ["a", "b", "c", "d"]
    return Evidence(
        run="A",
        policy="resend",
        seed=7,
        planned=[planned(ONE), planned(TWO)],
        deliveries=[
            delivery(ONE, TWO),
            delivery(ONE, t=BEGAN + 1),
            delivery("p0", "p1", "p2", "p3", kind="statuses", t=BEGAN + 9),
            *(delivery(f"p{n}", kind="statuses", t=BEGAN + n + 0.5) for n in range(3)),
        ],
        sends=[send(seq, id, 1, text) for seq, (id, text) in enumerate(zip(ids, texts, strict=True))],
        asked=[Asked(t=BEGAN, tokens=(ONE, TWO), outcome="ok", input_tokens=10, output_tokens=20, canaries=(CANARY,))],
        messages=[
            Message(
                tenant="t00",
                provider_id=f"wamid.{token}",
                direction="in",
                kind="text",
                conversation="c",
                stored=BEGAN,
                seq=seq,
            )
            for seq, token in enumerate((ONE, TWO), 1)
        ],
        turns=[
            Turn(
                tenant="t00",
                id="turn",
                conversation="c",
                began=BEGAN,
                first_seq=1,
                last_seq=2,
                outcome="answered",
                messages=2,
                chunks=4,
                input_tokens=10,
                output_tokens=20,
            )
        ],
        chunks=[chunk(id, no) for no, id in enumerate(ids, 1)],
        attempts=[attempt(id, began=BEGAN + at) for at, id in enumerate(ids)],
        lanes=[
            Lane(
                tenant="t00",
                conversation="c",
                person=PERSON,
                head_seq=2,
                done_seq=2,
                owner=None,
                run_in=None,
                token=3,
                attempts=0,
            )
        ],
        webs={URL: "web1"},
        drained_in=1.0,
        **lost_and_found(),
    )


def lost_and_found() -> dict[str, Any]:
    """For five seconds the database was frozen: the breaker opened after a second, and closed three after its end."""
    return {
        "outages": [Outage(kind="freeze", began=BEGAN + 30, ended=BEGAN + 35)],
        "lives": [Life(name="web1", began=BEGAN, ended=BEGAN + 60)],
        "breakers": [
            Change(process="web1", at=BEGAN + 31, state="open"),
            Change(process="web1", at=BEGAN + 38, state="closed"),
        ],
        "probes": [Probe(at=BEGAN + n, of="web1") for n in range(60)],
        "spool": [Kept(at=BEGAN, bytes=0), Kept(at=BEGAN + 32, bytes=5_000), Kept(at=BEGAN + 39, bytes=0)],
    }


def changed(evidence: Evidence, field: str, at: int, /, **to: Any) -> Evidence:
    """With one element of a list changed."""
    rows = list(getattr(evidence, field))
    rows[at] = swap(rows[at], **to)
    return swap(evidence, **{field: rows})


def with_(evidence: Evidence, field: str, *more: object) -> Evidence:
    return swap(evidence, **{field: [*getattr(evidence, field), *more]})


def without(evidence: Evidence, field: str, at: int) -> Evidence:
    rows = list(getattr(evidence, field))
    del rows[at]
    return swap(evidence, **{field: rows})


def found(evidence: Evidence, rule: Callable[[Evidence], Any]) -> list[Violation]:
    return list(rule(evidence))


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    """A run without a fault holds every invariant, and the report has nothing to tell."""
    verdicts = checker.check(well())
    assert [violation for _, _, found in verdicts for violation in found] == []
    assert list(histories(well(), verdicts)) == []
    assert table(well(), verdicts).count("held") == len(checker.CHECKS)


Breaking = tuple[str, Callable[[Evidence], Any], Callable[[Evidence], Evidence]]
ECHO = planned("echo-1", kind="echo", parts=0)
BROKEN: Sequence[Breaking] = (
    ("lost after 200", checker.stored_once, lambda e: without(e, "messages", 0)),
    ("stored twice", checker.stored_once, lambda e: with_(e, "messages", e.messages[0])),
    ("stored for another tenant", checker.stored_once, lambda e: changed(e, "messages", 0, tenant="t01")),
    ("never answered 200", checker.stored_once, lambda e: with_(e, "planned", planned("other-1"))),
    (
        "unknown kind not kept",
        checker.stored_once,
        lambda e: swap(
            e, planned=[*e.planned, planned("u-1", kind="unknown")], deliveries=[*e.deliveries, delivery("u-1")]
        ),
    ),
    ("a part is missing", recipients.answered_wholly, lambda e: without(e, "sends", 3)),
    (
        "parts in wrong order",
        recipients.answered_wholly,
        lambda e: swap(e, sends=[e.sends[1], e.sends[0], *e.sends[2:]]),
    ),
    ("torn apart by another", recipients.answered_wholly, lambda e: swap(e, sends=[e.sends[i] for i in (0, 2, 1, 3)])),
    (
        "other words",
        recipients.answered_wholly,
        lambda e: changed(e, "sends", 1, text=e.sends[1].text.replace(" ", " x ", 1)),
    ),
    ("for somebody else", recipients.answered_wholly, lambda e: changed(e, "sends", 0, recipient="15550000009")),
    ("answered anew", recipients.answered_wholly, lambda e: with_(e, "sends", send(9, "x", 1, e.sends[3].text))),
    ("nobody asked", recipients.answered_wholly, lambda e: with_(e, "sends", send(9, "x", 1, "stray-1#1/1 words"))),
    (
        "failure text for nothing",
        recipients.answered_wholly,
        lambda e: with_(e, "sends", send(9, "x", 1, runs.FAILURE)),
    ),
    ("failed without a reason", recipients.answered_wholly, lambda e: changed(e, "turns", 0, outcome="failed")),
    ("turn parked", recipients.answered_wholly, lambda e: changed(e, "turns", 0, outcome="parked")),
    ("chunk sent twice", doubles.sent_once, lambda e: with_(e, "sends", send(9, "d", 2, e.sends[3].text))),
    ("part in two chunks", doubles.sent_once, lambda e: with_(e, "sends", send(9, "x", 1, e.sends[3].text))),
    ("parked with resend", doubles.sent_once, lambda e: changed(e, "chunks", 3, state="parked")),
    ("chunk failed", doubles.sent_once, lambda e: changed(e, "chunks", 3, state="failed")),
    ("a part before its turn", doubles.in_turn, lambda e: changed(e, "deliveries", 4, t=BEGAN + 2.1)),
    ("a part at once", doubles.in_turn, lambda e: changed(e, "sends", 1, t=BEGAN + 0.02)),
    (
        "sent again blind",
        doubles.nothing_blind,
        lambda e: swap(
            e,
            stopped=(BEGAN, BEGAN + 60),
            sends=[send(0, "x", 1, "x", t=BEGAN, outcome="no_answer"), send(1, "x", 2, "x", t=BEGAN + 10)],
        ),
    ),
    ("never at rest", checker.nothing_stuck, lambda e: swap(e, drained_in=None)),
    ("lane behind", checker.nothing_stuck, lambda e: changed(e, "lanes", 0, done_seq=1)),
    ("lane forgotten", checker.every_lane_waits_for_something, lambda e: changed(e, "lanes", 0, done_seq=1)),
    ("chunk in doubt", checker.nothing_stuck, lambda e: changed(e, "chunks", 0, state="in_doubt")),
    (
        "billed twice",
        checker.billed_once,
        lambda e: with_(e, "turns", swap(e.turns[0], id="t2", first_seq=3, last_seq=3)),
    ),
    ("billed for too many", checker.billed_once, lambda e: changed(e, "turns", 0, messages=3)),
    ("other tokens billed", checker.billed_once, lambda e: changed(e, "turns", 0, output_tokens=40)),
    ("not billed", checker.billed_once, lambda e: without(e, "turns", 0)),
    ("foreign words", checker.tenants_apart, lambda e: changed(e, "sends", 0, text=f"{canary(7, 't01')}-0-9#1/1 x")),
    ("foreign prompt", checker.tenants_apart, lambda e: changed(e, "asked", 0, canaries=(CANARY, canary(7, "t01")))),
    (
        "words in a log",
        checker.tenants_apart,
        lambda e: swap(e, logged=[Logged(process="web1", why="canary", text=CANARY)]),
    ),
    (
        "Retry-After ignored",
        manners.waits_as_told,
        lambda e: changed(e, "sends", 0, accepted=False, outcome="http_429", retry_after=3),
    ),
    (
        "a storm of retries",
        manners.retries_bounded,
        lambda e: swap(
            e,
            sends=[
                send(
                    i,
                    f"s{i // 2}",
                    1 + i % 2,
                    "x",
                    t=BEGAN + i / 10,
                    accepted=bool(i % 2),
                    outcome="ok" if i % 2 else "131056",
                )
                for i in range(120)
            ],
        ),
    ),
    ("status went back", checker.statuses_converge, lambda e: changed(e, "attempts", 0, state="delivered")),
    ("chunk went back", checker.statuses_converge, lambda e: changed(e, "chunks", 0, state="sent")),
    (
        "echo answered",
        checker.no_reply_to_ourselves,
        lambda e: swap(e, planned=[*e.planned, ECHO], sends=[*e.sends, send(9, "x", 1, "echo-1#1/1 words")]),
    ),
    (
        "assistant asked about an echo",
        checker.no_reply_to_ourselves,
        lambda e: changed(swap(e, planned=[*e.planned, ECHO]), "asked", 0, tokens=("echo-1",)),
    ),
    ("echo in the lane", checker.no_reply_to_ourselves, lambda e: changed(e, "messages", 0, direction="echo")),
    ("stale owner", checker.owners_only, lambda e: changed(e, "attempts", 3, token=2)),
    (
        "stale, as the witness saw it",
        checker.owners_only,
        lambda e: with_(e, "stale", Stale(chunk="a", n=1, token=2, lane_token=3, owned=True, at=BEGAN)),
    ),
    ("token from nowhere", checker.owners_only, lambda e: changed(e, "attempts", 3, token=4)),
    ("POST without intent", checker.owners_only, lambda e: without(e, "attempts", 1)),
    (
        "attempts out of order",
        checker.owners_only,
        lambda e: with_(e, "attempts", attempt("d", 2, began=BEGAN - 5), attempt("d", 3, began=BEGAN - 6)),
    ),
    ("webhook refused", manners.webhooks_answered, lambda e: changed(e, "deliveries", 0, status=404)),
    ("webhook broke", manners.webhooks_answered, lambda e: changed(e, "deliveries", 0, status=500)),
    ("webhook slow", manners.webhooks_answered, lambda e: changed(e, "deliveries", 0, ack_ms=2100.0)),
    (
        "webhook silent",
        manners.webhooks_answered,
        lambda e: changed(e, "deliveries", 0, status=None, error="TimeoutError", ack_ms=10_000.0),
    ),
    (
        "slow without faults",
        manners.webhooks_answered,
        lambda e: swap(e, run="E", deliveries=[delivery(ONE, ack_ms=60.0), delivery(TWO, ack_ms=70.0)]),
    ),
    ("unheard end", checker.tidy, lambda e: swap(e, logged=[Logged(process="w", why="never retrieved", text="x")])),
    (
        "memory grows",
        checker.tidy,
        lambda e: swap(
            e,
            run="E",
            memory=[Memory(name="w", when="tenth", bytes=100), Memory(name="w", when="drained", bytes=121)],
        ),
    ),
    ("breaker too late", degraded.breakers_open, lambda e: changed(e, "breakers", 0, at=BEGAN + 32.5)),
    ("breaker never open", degraded.breakers_open, lambda e: swap(e, breakers=[])),
    ("breaker open for nothing", degraded.breakers_open, lambda e: swap(e, run="E", outages=[])),
    ("breaker closed too late", degraded.breakers_close, lambda e: changed(e, "breakers", 1, at=BEGAN + 45.5)),
    ("breaker never closed", degraded.breakers_close, lambda e: without(e, "breakers", 1)),
    (
        "breaker open though all is well",
        degraded.breakers_close,
        lambda e: changed(swap(e, outages=[]), "breakers", 1, at=BEGAN + 42),
    ),
    (
        "probed all the time",
        degraded.probes_paced,
        lambda e: swap(e, probes=[Probe(at=BEGAN + n / 2, of="web1") for n in range(120)]),
    ),
    ("never probed", degraded.probes_paced, lambda e: swap(e, probes=[Probe(at=BEGAN + 1, of="web2")])),
    ("left in the spool", degraded.spool_emptied, lambda e: with_(e, "spool", Kept(at=BEGAN + 40, bytes=1))),
    ("spool beyond its bound", degraded.spool_bounded, lambda e: changed(e, "spool", 1, bytes=SPOOL_BYTES + 1)),
    (
        "asked again",
        answers.asked_once,
        lambda e: with_(e, "asked", swap(e.asked[0], t=BEGAN + 20)),
    ),
    ("memory unknown", checker.tidy, lambda e: swap(e, run="E")),
    ("slow stop", checker.processes_behaved, lambda e: swap(e, broken=[Broken(what="x", target="web1")])),
)


@pytest.mark.parametrize(("name", "rule", "breaks"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_each_rule_finds_what_breaks_it(
    name: str, rule: Callable[[Evidence], Any], breaks: Callable[[Evidence], Evidence]
) -> None:
    """And only then; what it found can be told."""
    assert not found(well(), rule), name
    broken = breaks(well())
    violations = found(broken, rule)
    assert violations
    assert all(violation.what in "\n".join(histories(broken, [(1, "x", violations)])) for violation in violations)


def test_every_rule_is_shown_to_fail() -> None:
    """No rule is in the table that the cases above do not break."""
    assert {rule for _, rule, _ in BROKEN} == {rule for _, _, rule in checker.CHECKS}


# --- what is excused, and what is not ------------------------------------------------------------------------------


def doubled(run: str = "B", policy: str = "resend", **first: Any) -> Evidence:
    """The last chunk came twice; the first time its answer was lost and no status of it came."""
    e = swap(well(), run=run, policy=policy)
    lost = {"responded": False, "outcome": "no_answer", "silent": True, **first}
    e = changed(e, "sends", 3, **lost)
    e = changed(e, "deliveries", 2, ids=("p0", "p1", "p2", "p9"))
    e = with_(e, "attempts", attempt("d", 2, began=BEGAN + 9))
    return with_(e, "sends", send(9, "d", 2, e.sends[3].text))


def test_a_duplicate_is_excused_only_where_nobody_could_have_known() -> None:
    """Accepted, answer lost, no status: so it may be in B and C with `resend`, and in no other run."""
    assert not found(doubled(), doubles.sent_once)
    assert not found(doubled("C", silent=False), doubles.sent_once)
    assert found(doubled("A"), doubles.sent_once)
    assert found(doubled("P"), doubles.sent_once)
    assert found(doubled(policy="park"), doubles.sent_once)
    assert found(doubled(silent=False), doubles.sent_once)
    assert found(doubled(responded=True, outcome="ok"), doubles.sent_once)
    assert not found(doubled(responded=True, outcome="http_500_after_accept"), doubles.sent_once)  # it says nothing
    heard = changed(doubled(), "deliveries", 2, ids=("p3",), t=BEGAN + 5)
    assert found(heard, doubles.sent_once)


def test_an_answer_that_arrived_excuses_if_its_worker_was_hit() -> None:
    """SIGKILL between the response and the commit of the fact; a fault of a web process excuses nothing."""
    arrived = doubled(responded=True, outcome="ok")
    hit = Fault(kind="SIGKILL", target="worker1", began=BEGAN + 3.5, ended=BEGAN + 3.6)
    assert not found(swap(arrived, faults=[hit]), doubles.sent_once)
    assert found(swap(arrived, faults=[swap(hit, target="web1")]), doubles.sent_once)
    assert found(swap(arrived, faults=[swap(hit, began=BEGAN + 60, ended=BEGAN + 61)]), doubles.sent_once)


def test_parked_is_only_what_is_in_doubt_in_earnest() -> None:
    """With `park`: the answer was lost, or the worker hit, and no status came. Then the rest of the turn may be missing."""
    e = swap(well(), run="B", policy="park")
    e = changed(e, "deliveries", 2, ids=("p0", "p1", "p2"))
    e = changed(changed(e, "chunks", 3, state="parked"), "attempts", 3, state="in_doubt")
    lost = changed(e, "sends", 3, responded=False, outcome="no_answer", silent=True)
    assert not found(lost, doubles.sent_once)
    assert not found(without(lost, "sends", 3), recipients.answered_wholly)
    half = changed(without(lost, "sends", 3), "sends", 2, text=lost.sends[2].text[:2000].rpartition(" ")[0])
    assert not found(half, recipients.answered_wholly)  # a chunk may end within a part
    assert found(changed(half, "sends", 2, text=half.sends[2].text + " more"), recipients.answered_wholly)
    assert found(without(half, "sends", 0), recipients.answered_wholly)  # a hole is no end
    assert found(e, doubles.sent_once)  # its answer had arrived
    assert found(changed(lost, "deliveries", 2, ids=("p3",)), doubles.sent_once)  # it had a status
    assert found(without(lost, "sends", 3), doubles.sent_once)  # nothing of it reached the provider
    hit = Fault(kind="SIGKILL", target="worker1", began=BEGAN + 3, ended=BEGAN + 3.1)
    assert not found(swap(without(lost, "sends", 3), faults=[hit]), doubles.sent_once)
    unheard = swap(hit, kind="lost_commit")  # of the intent: so the worker never posted
    assert not found(swap(without(lost, "sends", 3), faults=[unheard]), doubles.sent_once)


def test_the_failure_text_stands_for_an_answer_only_if_the_assistant_failed_at_every_try() -> None:
    """Four calls that failed, then the text once."""
    e = changed(well(), "turns", 0, outcome="failed")
    e = swap(e, sends=[send(0, "a", 1, runs.FAILURE)], asked=[swap(e.asked[0], outcome="cut")] * 4)
    assert not found(e, recipients.answered_wholly)
    assert found(without(e, "asked", 0), recipients.answered_wholly)
    assert found(without(e, "sends", 0), recipients.answered_wholly)
    assert found(with_(e, "sends", send(1, "b", 1, runs.FAILURE)), recipients.answered_wholly)


def test_a_429_binds_once_it_could_be_known() -> None:
    """A second for what was under way; until its end; not if a fault hit the worker or the database just then."""
    e = changed(well(), "sends", 0, accepted=False, outcome="http_429", retry_after=3)
    e = changed(e, "attempts", 0, ended=BEGAN + 0.1)
    early = [send(i, "a", 2 + i, "x", t=BEGAN + after) for i, after in enumerate((0.9, 3.1), 1)]
    assert not found(swap(e, sends=[e.sends[0], *early]), manners.waits_as_told)
    assert found(swap(e, sends=[e.sends[0], send(1, "b", 1, "x", t=BEGAN + 2.9)]), manners.waits_as_told)
    freeze = Fault(kind="freeze", target="database", began=BEGAN - 2, ended=BEGAN + 1)
    assert not found(swap(e, faults=[freeze]), manners.waits_as_told)
    known = swap(e.attempts[0], ended=BEGAN + 1.5)
    for began, word in ((1.6, False), (1.9, True)):  # permitted before the fact could be seen, or after
        permitted = swap(e, attempts=[known, attempt("b", 1, began=BEGAN + began)])
        late = swap(permitted, sends=[e.sends[0], send(1, "b", 1, "x", t=BEGAN + 2.9)])
        assert bool(found(late, manners.waits_as_told)) is word
    for harmless in ("latency", "lost_commit"):  # it is committed all the same
        assert found(swap(e, faults=[swap(freeze, kind=harmless)]), manners.waits_as_told)


def test_a_web_process_that_is_down_is_not_slow() -> None:
    """Slowness is measured of live processes; of another one than the killed it counts."""
    e = changed(well(), "deliveries", 0, status=None, error="ServerDisconnectedError", ack_ms=2500.0)
    kill = Fault(kind="SIGKILL", target="web1", began=BEGAN + 1, ended=BEGAN + 1.2)
    assert not found(swap(e, faults=[kill]), manners.webhooks_answered)
    assert found(swap(e, faults=[swap(kill, target="web2")]), manners.webhooks_answered)
    assert not found(changed(e, "deliveries", 0, ack_ms=3.0), manners.webhooks_answered)


def test_who_is_disturbed_himself_need_not_notice_a_loss() -> None:
    """Started or ended just then, stopped, or its clock put wrong; another's misfortune excuses nobody."""
    e = swap(well(), breakers=[])
    assert found(e, degraded.breakers_open)
    for life in ((BEGAN + 26, BEGAN + 60), (BEGAN, BEGAN + 31)):
        assert not found(swap(e, lives=[Life(name="web1", began=life[0], ended=life[1])]), degraded.breakers_open)
    stopped = Fault(kind="pause", target="web1", began=BEGAN + 25, ended=BEGAN + 31)
    assert not found(swap(e, faults=[stopped]), degraded.breakers_open)
    assert found(swap(e, faults=[swap(stopped, target="web2")]), degraded.breakers_open)
    assert found(swap(e, faults=[swap(stopped, target="postgres")]), degraded.breakers_open)


def test_only_a_whole_loss_of_some_length_must_be_noticed() -> None:
    """A server that answers while a table is locked is none, nor a restart of two seconds; that all closes again is asked."""
    e = swap(well(), breakers=[])
    assert found(changed(e, "outages", 0, kind="read_only"), degraded.breakers_open)
    for kind in ("locked", "held", "disk_full"):
        assert not found(changed(e, "outages", 0, kind=kind), degraded.breakers_open)
        assert found(changed(without(well(), "breakers", 1), "outages", 0, kind=kind), degraded.breakers_close)
    assert not found(changed(e, "outages", 0, ended=BEGAN + 32.4), degraded.breakers_open)


def test_a_breaker_may_be_open_as_long_as_one_outage_follows_the_other() -> None:
    """Nine seconds between two outages are too short to be judged, eleven are not. Half open is not closed."""
    e = changed(well(), "breakers", 1, at=BEGAN + 55)
    for began, word in ((44, False), (46, True)):
        more = with_(e, "outages", Outage(kind="freeze", began=BEGAN + began, ended=BEGAN + 52))
        assert bool(found(more, degraded.breakers_close)) is word
    half = with_(e, "breakers", Change(process="web1", at=BEGAN + 36, state="half_open"))
    assert found(swap(half, breakers=sorted(half.breakers, key=lambda change: change.at)), degraded.breakers_close)


def test_a_broken_connection_may_be_asked_over_again() -> None:
    """So eleven questions in ten seconds are no haste; and each process has a pace of its own."""
    again = [Probe(at=BEGAN + n + 0.01, of="web1") for n in (10, 30)]
    assert not found(with_(well(), "probes", *again), degraded.probes_paced)
    others = [Probe(at=BEGAN + n + 0.5, of="web2") for n in range(60)]
    assert not found(with_(well(), "probes", *others), degraded.probes_paced)


def test_a_status_in_the_spool_is_heard_when_it_is_replayed() -> None:
    """Answered 200 by the web that has one: what its attempt's row says. By the other it is there with its 200."""
    e = changed(doubled("C", silent=False), "deliveries", 2, ids=("p3",), t=BEGAN + 5)
    e = swap(e, spooling="web1")
    spooled = changed(e, "attempts", 3, heard=BEGAN + 20)
    assert not found(spooled, doubles.sent_once)  # the second left at 9, the first was heard of at 20
    assert found(changed(e, "attempts", 3, heard=BEGAN + 6), doubles.sent_once)
    assert found(changed(e, "attempts", 3, heard=BEGAN + 5), doubles.sent_once)
    assert found(swap(spooled, spooling=None), doubles.sent_once)
    assert found(swap(spooled, spooling="web2"), doubles.sent_once)


def test_a_status_that_is_lost_in_the_spool_is_missed_in_the_end() -> None:
    """It was answered 200: no row that tells of it is no excuse."""
    assert found(changed(well(), "attempts", 0, state="accepted", heard=None), checker.statuses_converge)


def test_breakers_are_read_from_logs(tmp_path: Path) -> None:
    """Of the database alone; a line that a kill has cut short is passed over."""
    (tmp_path / "web1.log").write_text(
        '{"timestamp":"2026-11-22T10:00:00.500+00:00","event":"breaker changed","breaker":"database","state":"open"}\n'
        '{"timestamp":"2026-11-22T10:00:01.500+00:00","event":"breaker changed","breaker":"wa_main","state":"open"}\n'
        '{"timestamp":"2026-11-22T10:00:02.500+00:00","event":"breaker changed","brea\n'
        '{"timestamp":"2026-11-22T10:00:04.000+00:00","event":"breaker changed","breaker":"database","state":"closed"}\n'
    )
    (tmp_path / "worker1.log").write_text("")
    began = datetime(2026, 11, 22, 10, tzinfo=UTC).timestamp()
    assert evidence.breakers(tmp_path) == [
        Change(process="web1", at=began + 0.5, state="open"),
        Change(process="web1", at=began + 4, state="closed"),
    ]


# --- the workload ----------------------------------------------------------------------------------------------------


def test_a_plan_is_a_function_of_its_seed_and_has_the_shape_that_was_asked_for() -> None:
    """Each item three times, at most ten to a webhook, some at once to both webs; the busiest as busy as told."""
    shape = Shape(inbound=600, conversations=120, busiest=20, seconds=30)
    plan = items(3, shape)
    hooks = webhooks(3, plan)
    assert (plan, hooks) == (items(3, shape), webhooks(3, items(3, shape)))
    assert plan != items(4, shape)
    copies: dict[str, int] = {}
    talk: dict[tuple[str, str], int] = {}
    for hook in hooks:
        assert len(hook.items) <= 10
        for item in hook.items:
            copies[item.token] = copies.get(item.token, 0) + 1
    for item in plan:
        if item.kind == "text":
            talk[item.tenant, item.person] = talk.get((item.tenant, item.person), 0) + 1
    assert set(copies.values()) == {3} and len(copies) == len(plan)
    assert sum(talk.values()) == 600 and max(talk.values()) == 20 and len(talk) == 120
    assert {item.kind for item in plan} == {"text", "unknown", "echo"}
    at_once = {(hook.at, hook.items): set[int]() for hook in hooks}
    for hook in hooks:
        at_once[hook.at, hook.items].add(hook.to)
    assert {0, 1} in at_once.values()
    shared = [item.id for item in plan]
    assert len(shared) > len(set(shared))
