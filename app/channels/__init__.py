"""The room of WhatsApp transports: what a provider must be able to do, and which ones there are.

A provider knows wire formats and codes; it knows no table, no tenant's business and no retry policy.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import httpx
from msgspec import Struct

from app.directory import Channel
from app.errors import Unknown
from app.messages import Identity, Item, Key

# What Meta allows to one person: a message in so many seconds (its page on throughput, "pair rate limits").
PAIR_SECONDS = 6.0
# How long "is typing" is shown, unless the answer comes before (Meta's page "Typing indicators"; WhatsApp itself: about 20).
TYPING_SECONDS = 25.0
# A webhook's body above this (bytes) is verified and read in a thread: the largest keeps a core busy for long.
LARGE = 64 * 1024


class Accepted(Struct, frozen=True):
    """The provider took a text: the id that it gave it."""

    provider_id: str


class Attachment(Struct, frozen=True, kw_only=True):
    """What a message says of the file that came with it. All of it is the sender's or the provider's word, unproven."""

    id: str
    media_type: str = ""
    sha256: str = ""
    filename: str = ""
    caption: str = ""


class Media(Struct, frozen=True, kw_only=True):
    """A file that was fetched: its type by its content (`app.media`), never another family than it was declared to be."""

    media_type: str
    data: bytes


class Provider(Protocol):
    """A WhatsApp transport. `tests/conformance/test_channels.py` holds what every one must do."""

    signature_header: bytes
    """Name of the header that authenticates a webhook, in lower case."""

    body_limit: int
    """Bytes; a larger webhook is refused unread."""

    def authentic(self, signatures: Sequence[bytes], body: bytes, secrets: Sequence[bytes]) -> bool:
        """Whether one of the live secrets signed exactly these bytes. `signatures`: each value of the header."""
        ...

    def decode(self, body: bytes) -> list[Item]:
        """Every item of an authentic body, in order. Never raises: what cannot be read becomes a `Stray`."""
        ...

    async def send_text(
        self,
        client: httpx.AsyncClient,
        channel: Channel,
        to: Identity,
        text: str,
        key: Key,
        timeout: float,
        *,
        refused: int = 0,
        pair_seconds: float = PAIR_SECONDS,
        may_leave: Callable[[], bool] | None = None,
    ) -> Accepted:
        """Hand one text of at most 4,000 UTF-16 units to the provider; `refused`: how often it has said "not now".

        `pair_seconds` between two messages to one person are what its own limit allows; waits for it follow from that.
        `may_leave` is asked at the last moment, with nothing awaited between it and the write: no, and it never left.

        Raises:
            Refused: it answered and did not take it; `then` says what may be done, `scope` whom its wait binds.
            NeverLeft: nothing reached it.
            InDoubt: it may have arrived; `after` is how long it wants nothing from this channel all the same.
        """
        ...

    async def read(
        self, client: httpx.AsyncClient, channel: Channel, message_id: str, *, typing: bool, timeout: float
    ) -> None:
        """Tell the person that their message was read and, with `typing`, that an answer is being written.

        Both may be repeated; `TYPING_SECONDS` says how long the second is shown. Raises SendError as `send_text` does.
        """
        ...

    def attachment(self, raw: bytes) -> Attachment | None:
        """The file that came with a message, of its raw JSON; None where there is none or it cannot be read. Never raises."""
        ...

    async def media(
        self,
        client: httpx.AsyncClient,
        outside: httpx.AsyncClient,
        channel: Channel,
        attachment: Attachment,
        *,
        hosts: Sequence[str],
        most: int,
        deadline: float,
    ) -> Media:
        """Fetch a file of at most `most` bytes, before `deadline` (by the monotonic clock).

        `client` is for the channel's own `base_url`; every other URL is asked for through `outside`, which connects to
        public addresses alone (`http.client(public=True)`), and only if its host is among `hosts` (`*.` before one: any
        below it).

        Raises:
            MediaBusy: not within the deadline, or not just now.
            MediaRefused: gone, too large, or not of the kind that it was declared to be.
            MediaForbidden: it is to be fetched from where we may not ask.
        """
        ...


def provider(kind: str) -> Provider:
    """The transport of an endpoint's kind.

    Raises:
        Unknown: there is none yet; `qasid apply` warns of that.
    """
    from app.channels import cloud

    if kind != "cloud":
        raise Unknown(f"no transport of the kind {kind!r} is built yet")
    return cloud.CloudAPI()
