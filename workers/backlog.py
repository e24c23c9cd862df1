"""What of a worker's places goes to the backlog while live people wait too. What the places are it does not know."""

# So much of them goes to those who have waited for long, the rest to those who are live (docs/decisions/0026).
BACKLOG = 0.25


class Share:
    """Counts it out, also where places become free one by one."""

    def __init__(self) -> None:
        self._owed = 0.0  # of a place

    def of(self, places: int) -> int:
        """How many of these the backlog has."""
        self._owed += places * BACKLOG
        share = int(self._owed)
        self._owed -= share
        return share
