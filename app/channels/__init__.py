"""The room of WhatsApp transports: what a provider must be able to do, and which ones there are.

A provider knows wire formats and codes; it knows no table, no tenant's business and no retry policy.
"""

from collections.abc import Sequence
from typing import Protocol

import httpx
from msgspec import Struct

from app.directory import Channel
from app.errors import Unknown
from app.messages import Identity, Item, Key


class Accepted(Struct, frozen=True):
    """The provider took a text: the id that it gave it."""

    provider_id: str


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
    ) -> Accepted:
        """Hand one text of at most 4,000 UTF-16 units to the provider; `refused`: how often it has said "not now".

        Raises:
            Refused: it answered and did not take it; `then` says what may be done.
            NeverLeft: nothing reached it.
            InDoubt: it may have arrived.
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
