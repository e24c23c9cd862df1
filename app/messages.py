"""What a webhook holds once it is read, whoever the provider is: messages, statuses, and what could not be read."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from msgspec import Struct

# Kinds of messages that a person expects an answer to; of the others a person expects none.
ANSWERED = frozenset("text image audio video document sticker location contacts interactive button unsupported".split())
UNANSWERED = frozenset("reaction system edit revoke".split())
KINDS = ANSWERED | UNANSWERED

Direction = Literal["in", "echo"]
Said = Literal["sent", "delivered", "read", "played", "failed"]


class Identity(Struct, frozen=True):
    """One address of a person: `wa_id` (digits), `bsuid` (Meta's business-scoped user id) or `lid`."""

    kind: Literal["wa_id", "bsuid", "lid"]
    value: str


class Message(Struct, frozen=True, kw_only=True):
    """One message of a person, or an echo of what the business wrote from its own phone."""

    address: str
    provider_id: str
    direction: Direction
    kind: str
    sent_at: datetime
    identities: tuple[Identity, ...]
    name: str
    body: str
    raw: bytes
    refers_to: str | None = None
    """Provider id of the message that an edit, revoke or reaction is about."""

    @property
    def answered(self) -> bool:
        """Whether a person expects an answer to it: it gets an outbox entry."""
        return self.direction == "in" and self.kind in ANSWERED

    @property
    def changes_history(self) -> bool:
        """Whether it changes what an answer rests on without being answered itself: it raises the lane's version."""
        return self.direction == "echo" or self.kind in ("edit", "revoke")


class Key(Struct, frozen=True):
    """Our own mark on a send, which comes back in its statuses: which chunk, which attempt."""

    chunk_id: UUID
    attempt: int

    def __str__(self) -> str:
        return f"{self.chunk_id}:{self.attempt}"

    @classmethod
    def parse(cls, text: str | None) -> "Key | None":
        """The key that `text` is, or None if it is not one of ours."""
        if text is None or len(text) > 48:
            return None
        chunk, colon, attempt = text.partition(":")
        if not colon or not (attempt.isascii() and attempt.isdigit()) or len(attempt) > 9:
            return None
        try:
            return cls(UUID(chunk), int(attempt))
        except ValueError:
            return None


class Status(Struct, frozen=True, kw_only=True):
    """What the provider says became of one of our messages."""

    address: str
    provider_id: str
    status: Said
    at: datetime
    key: Key | None
    code: int | None
    reason: str
    raw: bytes


class Stray(Struct, frozen=True, kw_only=True):
    """An authentic item that could not be read or placed. It goes to quarantine as it came."""

    reason: str
    raw: bytes
    address: str | None = None
    """The address that it named, if it could be read that far."""
    part: str | None = None
    """What `raw` is: a `message`, `echo`, `status` or `error`, or the level of the webhook at which it was cut out."""


Item = Message | Status | Stray
