"""Sessions in memory: bounded in bytes, by age and by lane; what a settlement makes of them without asking anybody."""

import tracemalloc
from datetime import timedelta
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from app.store.histories import Said
from app.store.lanes import LaneId
from app.store.settlements import Settled
from app.store.turns import Asked, Opening, Turn
from tests.ground import NOW
from tests.openings import asked, opening
from workers.sessions import HARD, OVERHEAD, Session, Sessions, after, read

TURN = Turn(id=UUID(int=1), first_seq=1, last_seq=2, settled=False)


def line(id: int, body: str = "w", **more: Any) -> Said:
    return Said(**{"id": UUID(int=id), "mine": False, "body": body, "at": NOW, "revoked": False, **more})


def question(id: int, body: str = "q", **more: Any) -> Asked:
    return asked(id=UUID(int=id), body=body, **{"blank": False, **more})


def opened(said: list[Said], *asked: Asked, version: int = 3, done_seq: int = 0) -> Opening:
    return opening(*asked, said=said, version=version, done_seq=done_seq, turn=TURN)


def lane(n: int, tenant: int = 0) -> LaneId:
    return UUID(int=tenant), UUID(int=n)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_was_read_comes_back_as_it_was() -> None:
    """Words, times to the microsecond, marks."""
    said = [line(1, "سلام 👋"), line(2, at=NOW + timedelta(microseconds=1), mine=True), line(3, "", revoked=True)]
    session = read(opened(said), 20, 5.0)
    assert session.said == said
    assert (session.version, session.done_seq, session.history, session.read_at) == (3, 0, 20, 5.0)


def test_a_session_stands_at_its_own_pair_alone() -> None:
    """Another version, another place in the lane or another number of messages: not this."""
    session = read(opened([line(1)], version=3, done_seq=7), 20, 0.0)
    assert session.stands_at(3, 7, 20)
    assert not (session.stands_at(4, 7, 20) or session.stands_at(3, 8, 20) or session.stands_at(3, 7, 19))
    assert session.reaches(3, 7, 20) and session.reaches(3, 5, 20)
    assert not (session.reaches(3, 8, 20) or session.reaches(4, 5, 20) or session.reaches(3, 7, 19))


def test_what_was_asked_and_answered_takes_its_place_by_the_order_of_storing() -> None:
    """What came while the last answer was written stands before that answer, as it will when it is read."""
    before = opened([line(1, "q1"), line(4, "a1", mine=True)], question(3, "q2"), question(2, "q3"))
    session = after(before, 20, 5.0, TURN, Settled("sending", UUID(int=5), NOW), "a2")
    assert session and [said.body for said in session.said] == ["q1", "q3", "q2", "a1", "a2"]
    assert [said.mine for said in session.said] == [False, False, False, True, True]
    assert (session.version, session.done_seq, session.history, session.read_at) == (3, 2, 20, 5.0)


def test_a_revoked_message_takes_a_place_and_a_blank_one_none() -> None:
    """As in what an opening brings, which takes the last so many before it looks at what became of them."""
    before = opened(
        [line(1), line(2)], question(3, revoked=True), question(4, "", blank=True), question(5, "edited", blank=True)
    )
    session = after(before, 2, 0.0, TURN, Settled("ok"), "")
    assert session and [(said.id.int, said.body, said.revoked) for said in session.said] == [
        (2, "w", False),
        (3, "", True),
    ]


def test_what_was_replayed_is_not_remembered() -> None:
    """It may wait once more behind this turn."""
    assert after(opened([], question(1, replayed=True)), 20, 0.0, TURN, Settled("ok"), "") is None


def test_too_old_is_forgotten() -> None:
    """At the hard age it is there, after it not; and one that nobody asks for goes when another is kept."""
    clock = Clock()
    sessions = Sessions(1 << 20, clock)
    for n in (1, 2):
        sessions.keep(lane(n), read(opened([line(n)]), 20, clock.now))
    clock.now += HARD
    assert sessions.last(lane(1))
    clock.now += 1
    assert sessions.last(lane(1)) is None
    sessions.keep(lane(3), young := read(opened([line(3)]), 20, clock.now))
    assert sessions.bytes == young.size


def test_a_tenant_never_gets_anothers() -> None:
    """The same conversation id under another tenant is another lane."""
    sessions = Sessions(1 << 20, Clock())
    sessions.keep(lane(1, tenant=1), read(opened([line(1)]), 20, 1000.0))
    assert sessions.last(lane(1, tenant=2)) is None
    assert sessions.last(lane(1, tenant=1))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 400)), max_size=60), st.integers(0, 4000))
def test_its_bytes_are_counted_exactly_and_bounded(steps: list[tuple[bool, int, int]], most: int) -> None:
    """Whatever is kept, asked for and kept again: the sum of what is there, at most the bound, the latest used among them."""
    sessions = Sessions(most, Clock())
    used: dict[LaneId, Session] = {}
    for asks, n, length in steps:
        if asks:
            found = sessions.last(lane(n))
            assert found is used.get(lane(n))
            if found:
                used[lane(n)] = used.pop(lane(n))
        else:
            session = read(opened([line(n, "س" * length)]), 20, 1000.0)
            used.pop(lane(n), None)
            if session.size <= most:
                used[lane(n)] = session
            while sum(each.size for each in used.values()) > most:
                del used[next(iter(used))]
            sessions.keep(lane(n), session)
        assert sessions.bytes == sum(each.size for each in used.values()) <= most


def test_what_is_counted_is_no_less_than_what_it_takes() -> None:
    """A thousand short sessions, by Python's own count of memory."""
    rows = [opened([line(1, "short")]) for _ in range(1000)]
    sessions = Sessions(1 << 30, Clock())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for n, row in enumerate(rows):
            sessions.keep((UUID(int=n), UUID(int=n + 1000)), read(row, 20, 1000.0 + n / 10_000))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert sessions.bytes >= 1000 * OVERHEAD
    assert 0.7 * sessions.bytes < taken <= sessions.bytes
