"""What the simulated LibreTranslate was asked, and how fast it is. It says nothing itself."""

from collections import deque

import msgspec

KEPT = 10_000


class Speed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that each call takes."""

    seconds: float = 0.0


class TranslatorCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call: `kind` is translate or detect, `outcome` the fault's name."""

    t: float
    kind: str
    text: str
    source: str
    target: str
    api_key: str | None
    outcome: str


class Translator:
    """The last 10,000 calls, and the count of all; how many are under way, and were at most."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.speed = Speed()
        self.count = 0
        self.calls: deque[TranslatorCall] = deque(maxlen=KEPT)
        self.under_way = 0
        self.most_under_way = 0

    def record(self, call: TranslatorCall) -> None:
        self.count += 1
        self.calls.append(call)
        self.most_under_way = max(self.most_under_way, self.under_way)
