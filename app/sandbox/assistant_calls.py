"""What the simulated assistant was asked, and how fast it talks. It says nothing itself."""

from collections import defaultdict, deque

import msgspec

from app.sandbox.ledger import Tally

KEPT = 10_000


class Pace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds to the first token, seconds between deltas (0: all in one write), characters in a delta."""

    first_token: float = 0.0
    between: float = 0.0
    characters: int = 80


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call: `user` is the last user turn's texts, `body` the request as sent, `outcome` the fault's name.

    `question`: what the answer answers, asked before where only the rest of one is wanted. `said` characters of that answer
    are in this call's, behind those `before` that it was shown; no more is there, whatever breaks off on the way.
    """

    t: float
    user: tuple[str, ...]
    question: tuple[str, ...]
    before: int = 0
    said: int = 0
    stream: bool
    outcome: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    body: msgspec.Raw


class Assistant:
    """The last 10,000 calls, and the count of all."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.clear()

    def clear(self) -> None:
        self.pace = Pace()
        self.count = 0
        self.calls: deque[Call] = deque(maxlen=KEPT)
        self._seen: dict[tuple[str, ...], int] = defaultdict(int)
        self._cached: set[str] = set()
        self.paused: set[str] = set()
        """What it said before it paused: who wants it to go on sends that back."""

    def occurrence(self, user: tuple[str, ...]) -> int:
        """How often this very turn was asked, this time included."""
        self._seen[user] += 1
        return self._seen[user]

    def knows(self, prefix: str) -> bool:
        """Whether a prompt with this beginning came before; from now on it has."""
        known = prefix in self._cached
        self._cached.add(prefix)
        return known

    def record(self, call: Call) -> None:
        self.count += 1
        self.calls.append(call)
        self._tally.add("assistant")

    async def wait(self, count: int, timeout: float = 10.0) -> bool:
        """True as soon as `count` calls have come; False after `timeout` seconds."""
        return await self._tally.reach("assistant", count, timeout)
