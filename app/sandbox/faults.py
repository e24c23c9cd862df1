"""What goes wrong, and when: a queue of next outcomes, or chances drawn from a seed.

A draw depends on the seed and on what is attempted, never on the order of arrival: the same run goes wrong in the
same places however its processes race. It breaks nothing itself; the faces do what it says.
"""

from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from statistics import NormalDist
from typing import Literal, get_args

import msgspec

SendKind = Literal[
    "ok",
    "slow",  # accepted, answered after `seconds`
    "no_answer",  # accepted, the connection held for `seconds` (60) and reset
    "rst_before_accept",
    "rst_after_accept",
    "fin_before_accept",
    "fin_after_accept",
    "half_headers",  # accepted, the answer breaks off inside its headers
    "garbage",  # accepted, what comes back is no HTTP
    "stalled_body",  # accepted, headers and half a body, then nothing for `seconds` (60)
    "dripped_body",  # accepted, a byte each `seconds` (0.2)
    "without_id",  # accepted, 200, but no id in it
    "close_idle",  # accepted and answered; then the kept-alive connection is closed without a word
    "silent",  # accepted and answered; no status ever comes
    "status_failed",  # accepted and answered; the only status is `failed` with `code`
    "http_500_json",
    "http_500_html",
    "http_500_after_accept",
    "http_429",  # with Retry-After: `seconds` (1)
    "graph_error",  # `code`, by `status` or by the code's usual one
]
AssistantKind = Literal[
    "ok",
    "slow",  # the first token after `seconds`
    "no_answer",
    "rst",  # before the headers
    "http_429",
    "http_529",
    "http_500",
    "http_401",
    "redirect",  # 307, to a place of its own
    "html",  # 200, and a page in place of the answer
    "error_event",  # overloaded, said after the 200, half the text and `seconds` (0)
    "cut",  # half the text and `seconds` (0), then the connection is reset
    "truncated",  # half the text and `seconds` (0), then the stream ends cleanly without its end mark
    "nonsense",  # half the text, then an event that is no JSON; the rest follows
    "repeat",  # the whole stream a second time behind its end
    "empty",  # a finished answer without content
    "blank",  # a finished answer of white space
    "stall",  # half the text, then nothing for `seconds` (60)
    "max_tokens",  # half the text, finished with that reason
    "pause_turn",  # half the text, finished with that reason; chat completions have none and say all
    "refusal",
]
AnsariKind = Literal[
    "ok",
    "slow",  # the first words after `seconds`
    "silence",  # all words but the citations, then nothing for `seconds` (4), then those
    "rst",  # before anything is stored
    "queued",  # a reset; the person's turn and its answer are stored after `seconds` (0.3) all the same
    "killed",  # the turn is stored, then a reset; no answer ever
    "late",  # the turn is stored, then a reset; the answer is stored after `seconds` (0.3)
    "no_answer",  # the turn is stored, then nothing for `seconds` (60)
    "http_400",
    "http_401",
    "http_404",
    "http_422",
    "http_429",  # with Retry-After: `seconds` (1)
    "http_500",  # nothing is stored
    "http_529",  # likewise; with Retry-After: `seconds` (1)
    "redirect",  # 307, to a place of its own
    "http_502",  # the turn is stored; the answer after `seconds` (0.3)
    "http_524",  # likewise: Cloudflare's, which waits 100 s for an answer and no longer
    "html",  # a 200 with a page, of whatever stands before the backend; nothing is stored
    "cut",  # half the text, then a reset; no answer is stored
    "truncated",  # half the text, then a clean end; no answer is stored
    "cut_late",  # as cut, but the answer is stored after `seconds` (0.3)
    "truncated_late",  # as truncated, likewise
    "cut_after",  # all of the text, and the answer stored; then a reset in place of the stream's end
    "empty",  # a stream without a word; the answer is stored
    "blank",  # a stream of white space; the answer is stored
    "nonsense",  # half the text, bytes that are no UTF-8, the rest; the answer is stored
    "repeat",  # the whole stream a second time; the answer is stored once
    "apology",  # half the text, a clean end; what is stored is the backend's apology
    "apology_only",  # likewise, without a word in the stream
    "stall",  # half the text, then nothing for `seconds` (60)
]
ThreadsKind = Literal[
    "ok",
    "slow",
    "no_answer",
    "rst",
    "http_400",
    "http_401",
    "http_404",
    "http_422",
    "http_429",
    "http_500",
    "html",
    "garbage",
]
TranslatorKind = Literal[
    "ok",
    "slow",  # answered after `seconds` (4) more
    "no_answer",
    "rst",
    "http_400",
    "http_403",
    "http_429",  # with Retry-After: `seconds` (1)
    "http_500",
    "empty",  # a translation of nothing
    "garbage",  # 200, and a web page
    "half",  # 200, and half of the body
    "essay",  # far more than was asked for
]
MediaKind = Literal[
    "ok",
    "slow",  # each of the two answers after `seconds` (2)
    "no_answer",  # where it lies is never said
    "gone",  # Graph knows no such id
    "http_500",
    "expired",  # the URL is: 404
    "inside",  # the URL leads to the cloud's own metadata address
    "elsewhere",  # the URL leads to a host that is nobody's
    "redirect",  # the download is a 302 to the metadata address
    "wrong_type",  # what comes is HTML
    "wrong_bytes",  # other bytes of the right type
    "too_big",  # no length said, and no end
    "stalled",  # half the bytes, then nothing for `seconds` (60)
    "cut",  # half the bytes, then FIN
]
TranscriptionKind = Literal["ok", "slow", "no_answer", "rst", "http_429", "http_500", "http_401", "empty", "nonsense"]
Face = Literal["send", "read", "assistant", "ansari", "threads", "translator", "media", "transcription"]
_KINDS: dict[str, frozenset[str]] = {
    "send": frozenset(get_args(SendKind)),
    "read": frozenset(get_args(SendKind)),
    "assistant": frozenset(get_args(AssistantKind)),
    "ansari": frozenset(get_args(AnsariKind)),
    "threads": frozenset(get_args(ThreadsKind)),
    "translator": frozenset(get_args(TranslatorKind)),
    "media": frozenset(get_args(MediaKind)),
    "transcription": frozenset(get_args(TranscriptionKind)),
}
_NORMAL = NormalDist()


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One outcome. `seconds` is a figure or a range [low, high]; `code` and `status` are Graph's and HTTP's."""

    kind: SendKind | AssistantKind | AnsariKind | ThreadsKind | TranslatorKind | MediaKind | TranscriptionKind
    seconds: float | tuple[float, float] | None = None
    code: int | None = None
    status: int | None = None

    def wait(self, default: float) -> float:
        """The figure in seconds. A range was settled by the draw."""
        return self.seconds if isinstance(self.seconds, int | float) else default


class Chance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fault and its probability, 0..1. What the chances of a face leave over is `ok`."""

    fault: Fault
    chance: float


class StatusFaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens to the statuses of a message: probabilities 0..1, each drawn once per message.

    `drop` is FAULTS.md's ℓ: no status at all. `triple`: each comes three times. `reorder`: they come in reverse.
    `delay` seconds are added to all.
    """

    drop: float = 0.0
    triple: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0


OK = Fault(kind="ok")


class Faults:
    """Decides each attempt's outcome. Single-threaded; every draw is a pure function of (seed, labels)."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.statuses = StatusFaults()
        self._next: dict[str, list[tuple[str | None, deque[Fault]]]] = {}
        self._chances: dict[str, list[tuple[str | None, tuple[Chance, ...]]]] = {}

    def clear(self) -> None:
        self.statuses = StatusFaults()
        self._next.clear()
        self._chances.clear()

    def queue(self, face: Face, faults: Sequence[Fault | str], *, only: str | None = None) -> None:
        """The next attempts at `face` end so, in this order; then the chances rule again.

        `only` narrows it: on `send` and `read` to a recipient or a phone_number_id, on `assistant` and `ansari` to
        calls whose last user turn contains it, on `threads` to a person or a path (`users/exists`), on `translator` to
        texts that contain it, on `media` to an id, on `transcription` to a model. Raises ValueError for a kind that the
        face does not have.
        """
        wanted = deque(_as_fault(face, fault) for fault in faults)
        self._next.setdefault(face, []).append((only, wanted))

    def chances(self, face: Face, chances: Sequence[Chance], *, only: str | None = None) -> None:
        """Probabilities for `face`, replacing those given before with the same `only`. Raises ValueError."""
        if sum(chance.chance for chance in chances) > 1 + 1e-9 or any(chance.chance < 0 for chance in chances):
            raise ValueError("chances are probabilities that sum to at most 1")
        for chance in chances:
            _as_fault(face, chance.fault)
        kept = [(name, rest) for name, rest in self._chances.get(face, []) if name != only]
        # The narrower rule is looked at first.
        self._chances[face] = [*kept, (only, tuple(chances))] if only is None else [(only, tuple(chances)), *kept]

    def draw(self, face: Face, matches: Callable[[str], bool], *labels: str) -> Fault:
        """The outcome of one attempt, named by `labels`."""
        queues = self._next.get(face)
        if queues:
            for only, waiting in queues:
                if waiting and (only is None or matches(only)):
                    return self._settle(waiting.popleft(), face, labels)
            self._next[face] = [queue for queue in queues if queue[1]]
        for only, chances in self._chances.get(face, ()):
            if only is None or matches(only):
                point = self.unit(face, *labels)
                for chance in chances:
                    point -= chance.chance
                    if point < 0:
                        return self._settle(chance.fault, face, labels)
                return OK
        return OK

    def unit(self, *labels: str) -> float:
        """A number in [0, 1) that depends on the seed and the labels alone."""
        digest = blake2b("\x1f".join((str(self.seed), *labels)).encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / (1 << 53)

    def normal(self, *labels: str) -> float:
        """A standard normal draw; likewise."""
        return _NORMAL.inv_cdf(min(max(self.unit(*labels), 1e-12), 1 - 1e-12))

    def _settle(self, fault: Fault, face: str, labels: tuple[str, ...]) -> Fault:
        if not isinstance(fault.seconds, tuple):
            return fault
        low, high = fault.seconds
        return msgspec.structs.replace(fault, seconds=low + (high - low) * self.unit("seconds", face, *labels))


def _as_fault(face: str, fault: Fault | str) -> Fault:
    known = _KINDS[face]
    kind = fault if isinstance(fault, str) else fault.kind
    if kind not in known:
        raise ValueError(f"the face {face} has no fault {kind!r}; it has {', '.join(sorted(known))}")
    return msgspec.convert({"kind": fault}, Fault) if isinstance(fault, str) else fault
