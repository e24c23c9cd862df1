"""The line at the end of an outage: how long it was, and whom it met."""

from structlog.testing import capture_logs

from app.breaker import Breaker
from app.outages import Outages
from app.policies import DATABASE


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Room:
    """A database's breaker, who listens to it, and what they say."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.stale = 7
        self.breaker = Breaker("database", DATABASE, clock=self.clock)
        self.outages = Outages(self.breaker, lambda: self.stale, self.clock)

    def lose(self) -> None:
        self.breaker.probed(False, 1.0)
        assert self.breaker.state == "open"

    def mend(self) -> list[dict[str, object]]:
        """What is said when it closes."""
        with capture_logs() as said:
            for _ in range(3):
                self.breaker.probed(True, 0.001)
        assert self.breaker.state == "closed"
        return [dict(line) for line in said if line["event"] != "breaker changed"]


def test_an_outage_is_told_of_once_with_all_that_it_met() -> None:
    """Also what was turned away in the deadline before it was known."""
    room = Room()
    room.outages.refused()
    room.clock.now += 1.0
    room.lose()
    room.outages.spooled()
    room.outages.spooled()
    room.stale += 3
    room.clock.now += 41.0
    [line] = room.mend()
    assert line["event"] == "the database is back"
    assert (line["seconds"], line["refused"], line["spooled"], line["stale"]) == (41.0, 1, 2, 3)


def test_what_came_long_before_belongs_to_no_outage() -> None:
    """One that was late yesterday is not today's; nor is what an outage before this one met."""
    room = Room()
    room.outages.refused()
    room.clock.now += 3600.0
    room.lose()
    room.outages.refused()
    [line] = room.mend()
    assert line["refused"] == 1
    room.clock.now += 60.0
    room.lose()
    [line] = room.mend()
    assert (line["refused"], line["spooled"], line["stale"]) == (0, 0, 0)


def test_a_slow_database_is_told_of_in_other_words() -> None:
    """No alert: writes go on; and when it opens in the midst of that, it is one outage."""
    room = Room()
    with capture_logs() as said:
        for _ in range(12):
            with room.breaker.watching():
                room.clock.now += 0.6
    assert room.breaker.state == "slow"
    assert [line["event"] for line in said] == ["breaker changed"]
    room.stale += 2
    with capture_logs() as said:
        room.clock.now += 30.0
        assert room.breaker.allows_reads
    [line] = [line for line in said if line["event"] != "breaker changed"]
    assert (line["event"], line["stale"]) == ("the database was slow", 2)
    assert line["log_level"] == "warning"
