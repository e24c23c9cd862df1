"""The errors that Qasid's rooms raise for each other, drawn as one tree. More special ones hang under these where they belong:
an open breaker's in app/breaker.py and app/policies.py, others beside whoever alone raises them.

QasidError
├── ConfigurationError     something a person wrote is wrong: where, which key, why
├── DatabaseUnavailable    PostgreSQL did not answer in time; what was asked of it may or may not have happened
│   ├── Overloaded         more waits for it here than we let wait: 503, the provider sends it again
│   └── LaneLost           the lane is another worker's by now: nothing has happened
├── SpoolError             the spool did not take a webhook: 503, the provider sends it again
│   ├── SpoolFull          at its bound of bytes or age, or the disk is full
│   └── SpoolFailed        the disk refused, or did not answer in time
├── Unreadable             bytes from a provider that make no sense; they go to quarantine, never to a 5xx
├── Unknown                an endpoint, tenant or channel that does not exist
├── SendError              what became of a request to a provider
│   ├── Refused            the provider answered, and did not take it
│   ├── NeverLeft          nothing of it reached the provider: sending again is safe
│   │   └── HeldBack       by ourselves: it says nothing of the provider
│   │       └── Inside     a URL that came in data leads to an address that is not public
│   └── InDoubt            it may have arrived: sending again may double it
├── MediaError             what a person attached cannot be had
│   ├── MediaBusy          worth another try within the deadline
│   └── MediaRefused       another try would end the same way
│       └── MediaForbidden it is to be fetched from where we may not ask: an operator is told
├── AssistantError         no usable answer
│   ├── AssistantBusy      worth another try within the deadline
│   └── AssistantRefused   another try would end the same way
│       └── Withdrawn      nor is what it has said so far an answer
└── TranslationError       no usable translation: the original stands
    ├── TranslatorBusy     worth another try within the deadline
    └── TranslatorRefused  another try would end the same way
"""

from collections.abc import Mapping
from typing import Literal

Scope = Literal["chunk", "channel", "tenant"]


class QasidError(Exception):
    """The root: catch it at a process's edge, nowhere else."""


class ConfigurationError(QasidError):
    """Something a person wrote is wrong. The message says where, which key, why, and what would be right."""


class DatabaseUnavailable(QasidError):
    """PostgreSQL did not answer in time; what was asked of it may or may not have happened."""


class Overloaded(DatabaseUnavailable):
    """A queue of our own is full: of what was asked last nothing has happened, and it says nothing of the database."""


class LaneLost(DatabaseUnavailable):
    """The lane is another worker's by now: of what was asked last nothing has happened, and the database is well."""


class SpoolError(QasidError):
    """The spool did not take a webhook. It may lie there all the same; replaying it then does no harm."""


class SpoolFull(SpoolError):
    """At its bound of bytes or age, or the disk is full. What it holds stays."""


class SpoolFailed(SpoolError):
    """The disk refused, or did not answer in time."""


class Unreadable(QasidError):
    """Bytes from a provider that make no sense. The message says what was expected; it never quotes the bytes."""


class Unknown(QasidError):
    """A name that was asked for does not exist."""


class SendError(QasidError):
    """What became of a request to a provider, as far as we can know it."""


class Refused(SendError):
    """The provider answered, and did not take it.

    `code` is the provider's own error code (Graph's `error.code`), never the HTTP status, which says too little.
    `then` says what may be done with this chunk: `again` after `after` seconds, `hold` (a person must mend the channel;
    try again at growing intervals), or `dead` (the same request would never be taken).
    `scope` says whom else these `after` seconds bind (0: nobody): `chunk`, only this recipient, whose lane is serial;
    `channel`, all that is sent from this number; `tenant`, from any of its numbers. A chunk that is `dead` can bind
    its channel too: the provider refused it and asked to be left alone.
    """

    def __init__(
        self,
        message: str,
        *,
        code: int,
        then: Literal["again", "hold", "dead"],
        after: float = 0.0,
        scope: Scope = "chunk",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.then = then
        self.after = after
        self.scope = scope


class NeverLeft(SendError):
    """Nothing of the request reached the provider: sending again is safe."""


class HeldBack(NeverLeft):
    """We did not let it go: it may no longer leave, or is no request that anybody could send."""


class Inside(HeldBack):
    """A URL that came in data leads to an address that is not public. The message names no URL."""


class InDoubt(SendError):
    """The request may have arrived: sending again may double it.

    `after`: seconds for which the provider asked to be left alone all the same (a 503 with `Retry-After`). They bind
    the whole channel; 0: nobody. `headers`: of an answer whose body could not be read.
    """

    def __init__(self, message: str, *, after: float = 0.0, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.after = after
        self.headers = headers or {}


class MediaError(QasidError):
    """What a person attached cannot be had. The message says why, and quotes neither URL nor content."""


class MediaBusy(MediaError):
    """It may well be had at another try: cut, slow, refused for now, its URL expired."""


class MediaRefused(MediaError):
    """Another try would end the same way: gone, too large, not of the kind that it was said to be."""


class MediaForbidden(MediaRefused):
    """It is to be fetched from where we may not ask: another host, an address inside, a redirect."""


class AssistantError(QasidError):
    """The assistant gave no usable answer."""


class AssistantBusy(AssistantError):
    """It may well answer at another try: overloaded, unreachable, cut in mid-stream, empty.

    `retry_after` is in seconds, as the provider asked, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AssistantRefused(AssistantError):
    """Another try would end the same way: a wrong key, a wrong model, a refusal."""


class Withdrawn(AssistantRefused):
    """Nor is what was said so far an answer: no half of it is sent."""


class TranslationError(QasidError):
    """The translator gave no usable translation. The message never quotes a text."""


class TranslatorBusy(TranslationError):
    """It may well translate at another try: overloaded, unreachable, too slow.

    `retry_after` is in seconds, as the engine asked, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TranslatorRefused(TranslationError):
    """Another try would end the same way: a wrong key, a language that it does not know, no translator at all."""
