"""Meta's WhatsApp Cloud API: whose signature a webhook bears, handing a text over, read receipts and typing.

`cloud_webhook.py` reads the bodies, `cloud_media.py` fetches files, `cloud_codes.py` says what error codes mean,
`cloud_waits.py` how long Meta's own header asks to be left alone. Formats: docs/wire-cloud.md.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import httpx
import msgspec
from msgspec import Meta, Struct

from app import http
from app.channels import PAIR_SECONDS, Accepted, Attachment, Media, cloud_media, cloud_webhook
from app.channels.cloud_codes import refusal
from app.directory import Channel
from app.errors import InDoubt
from app.messages import Identity, Item, Key
from app.retrying import retry_after


class _SentId(Struct):
    id: str


class _Sent(Struct):
    messages: list[_SentId]


class _GraphError(Struct):
    code: Annotated[int, Meta(ge=-(2**31), lt=2**31)]  # what the table's column holds
    message: str = ""


class _Failure(Struct):
    error: _GraphError


_sent = msgspec.json.Decoder(_Sent)
_failure = msgspec.json.Decoder(_Failure)
_encode = msgspec.json.Encoder().encode

# Nobody says what an id looks like; what we store and log is bounded all the same.
_WAMID = re.compile(r"[\x21-\x7e]{1,512}")


class CloudAPI:
    """`app.channels.Provider` for endpoints of kind `cloud`."""

    signature_header = b"x-hub-signature-256"
    body_limit = 4 * 1024 * 1024  # Meta sends at most 3 MB

    def authentic(self, signatures: Sequence[bytes], body: bytes, secrets: Sequence[bytes]) -> bool:
        """HMAC-SHA256 of the raw bytes under the app secret, `sha256=` and lower-case hex, exactly one header."""
        if len(signatures) != 1:
            return False
        fits = False
        for secret in secrets:
            expected = b"sha256=" + hmac.digest(secret, body, hashlib.sha256).hex().encode()
            fits |= hmac.compare_digest(expected, signatures[0])
        return fits

    def decode(self, body: bytes) -> list[Item]:
        """See `cloud_webhook.items`."""
        return cloud_webhook.items(body)

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
        """`POST /{phone_number_id}/messages`. Previews are off: they fetch URLs that the assistant chose.

        An answer without a Graph error is in doubt, a 429 too: Meta's API refuses by `error.code`, so a bare 429 comes
        from something between us and it, which need not know what became of a request it has passed on. What such
        an answer can say for certain is how long to keep away, and that is minded.
        """
        recipient = {"to": f"+{to.value}"} if to.kind == "wa_id" else {"recipient": to.value}
        body = {
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            **recipient,
            "type": "text",
            "text": {"body": text, "preview_url": False},
            "biz_opaque_callback_data": str(key),
        }
        answer = await _post(
            client, channel, body, timeout, refused=refused, pair_seconds=pair_seconds, may_leave=may_leave
        )
        try:
            wamid = _sent.decode(answer.body).messages[0].id
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
            raise InDoubt(f"HTTP {answer.status} without a message id") from None
        if not _WAMID.fullmatch(wamid):
            raise InDoubt(f"HTTP {answer.status} with a message id that is none")
        return Accepted(wamid)

    async def read(
        self, client: httpx.AsyncClient, channel: Channel, message_id: str, *, typing: bool, timeout: float
    ) -> None:
        """`POST /{phone_number_id}/messages` with `status: read`. Any 2xx will do: nothing hangs on it."""
        body: dict[str, object] = {"messaging_product": "whatsapp", "status": "read", "message_id": message_id}
        if typing:
            body["typing_indicator"] = {"type": "text"}
        await _post(client, channel, body, timeout)

    def attachment(self, raw: bytes) -> Attachment | None:
        """See `cloud_webhook.attachment`."""
        return cloud_webhook.attachment(raw)

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
        """See `cloud_media.fetch`."""
        return await cloud_media.fetch(client, outside, channel, attachment, hosts=hosts, most=most, deadline=deadline)


async def _post(
    client: httpx.AsyncClient,
    channel: Channel,
    body: Mapping[str, object],
    timeout: float,
    *,
    refused: int = 0,
    pair_seconds: float = PAIR_SECONDS,
    may_leave: Callable[[], bool] | None = None,
) -> http.Answer:
    """The answer, where it is a 2xx; else what it says. See `app.channels.Provider.send_text` for what it raises."""
    try:
        answer = await http.post(
            client,
            f"{channel.base_url}/{channel.address}/messages",
            headers={"authorization": f"Bearer {channel.token}", "content-type": "application/json"},
            content=_encode(body),
            timeout=timeout,
            may_leave=may_leave,
        )
    except InDoubt as broken:  # its headers may have come before it broke off
        raise InDoubt(str(broken), after=retry_after(httpx.Headers(broken.headers)) or 0.0) from None
    if answer.status >= 500:
        raise InDoubt(f"HTTP {answer.status}", after=retry_after(answer.headers) or 0.0)
    if answer.status < 300:
        return answer
    try:
        error = _failure.decode(answer.body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InDoubt(f"HTTP {answer.status} without a Graph error", after=retry_after(answer.headers) or 0.0) from None
    raise refusal(
        error.code,
        error.message,
        refused + 1,
        status=answer.status,
        headers=answer.headers,
        pair_seconds=pair_seconds,
    )
