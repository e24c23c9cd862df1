"""Meta's two send limits, as far as they are known: per pair of number and recipient, and per number.

Both are off unless switched on. Figures and their sources: WIRE.md section 2. It counts; the Graph face refuses.
"""

import msgspec

PAIR_SECONDS = 6.0
PAIR_BURST = 45


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`pair`: one message in 6 s, bursts borrowed from the future, all waits divided by `scale`.

    `throughput`: messages per second and number, in and out together; 0 is off. It is never scaled.
    """

    pair: bool = False
    scale: float = 1.0
    throughput: int = 0


class Meter:
    """Remembers what each pair and each number has used. Times are `numbers.now()` seconds."""

    def __init__(self) -> None:
        self.limits = Limits()
        self.clear()

    def clear(self) -> None:
        self._pairs: dict[tuple[str, str], tuple[float, int, float]] = {}
        self._buckets: dict[str, tuple[float, float]] = {}

    def refuses(self, phone_number_id: str, recipient: str, now: float) -> int | None:
        """Graph's error code if this send is one too many, else None, and then it counts."""
        if self.limits.throughput and not self._take(phone_number_id, now):
            return 130429
        if self.limits.pair and not self._pair(phone_number_id, recipient, now):
            return 131056
        return None

    def inbound(self, phone_number_id: str, now: float) -> None:
        """A person's message uses the number's throughput too, and is never refused."""
        if self.limits.throughput:
            self._take(phone_number_id, now)

    def _take(self, phone_number_id: str, now: float) -> bool:
        rate = float(self.limits.throughput)
        level, since = self._buckets.get(phone_number_id, (rate, now))
        level = min(rate, level + (now - since) * rate)
        self._buckets[phone_number_id] = (level - 1 if level >= 1 else level, now)
        return level >= 1

    def _pair(self, phone_number_id: str, recipient: str, now: float) -> bool:
        """A burst lives in one window of 6 s; what it borrowed is paid back in silence, 6 s for each message."""
        step = PAIR_SECONDS / self.limits.scale
        pair = (phone_number_id, recipient)
        began, count, free_at = self._pairs.get(pair, (0.0, 0, 0.0))
        if now >= free_at:
            self._pairs[pair] = (now, 1, now + step)
            return True
        if now < began + step and count < PAIR_BURST:
            self._pairs[pair] = (began, count + 1, free_at + step)
            return True
        return False
