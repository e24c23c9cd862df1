"""Fetches a file of the Cloud API by its id: ask where it lies, look hard at that, download, check what came.

The URL lives five minutes and comes in data: the operator's own `base_url` may lead anywhere, any other URL only to a host
that is on the list, over https, at a public address. Formats: docs/wire-cloud.md; why: docs/security.md.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx
import msgspec

from app import http, media
from app.channels import Attachment, Media
from app.channels import cloud_shapes as wire
from app.directory import Channel
from app.errors import Inside, MediaBusy, MediaForbidden, MediaRefused, SendError
from app.retrying import passes

# Where it lies is asked anew so often in all, since a URL expires, and a download is cut.
TRIES = 3
PAUSE = 0.25
# An answer that says where a file lies is a few hundred bytes.
LARGEST_ANSWER = 64 * 1024

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.=-]{0,255}")
_HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")
_URL = re.compile(r"[!-\[\]-~]{1,4096}")  # ASCII without spaces, and without the backslash that parsers disagree about
_where = msgspec.json.Decoder(wire.Where)


async def fetch(
    client: httpx.AsyncClient,
    outside: httpx.AsyncClient,
    channel: Channel,
    attachment: Attachment,
    *,
    hosts: Sequence[str],
    most: int,
    deadline: float,
) -> Media:
    """See `app.channels.Provider.media`."""
    if not _ID.fullmatch(attachment.id):  # it becomes part of a path
        raise MediaRefused("an id that is none")
    for left in reversed(range(TRIES)):
        try:
            return await _once(client, outside, channel, attachment, hosts, most, deadline)
        except MediaBusy:
            if not left or time.monotonic() + PAUSE >= deadline:
                raise
        await asyncio.sleep(PAUSE)
    raise AssertionError("the last try returns or raises")


async def _once(
    client: httpx.AsyncClient,
    outside: httpx.AsyncClient,
    channel: Channel,
    attachment: Attachment,
    hosts: Sequence[str],
    most: int,
    deadline: float,
) -> Media:
    bearer = {"authorization": f"Bearer {channel.token}"}
    said = await _get(
        client, f"{channel.base_url}/{attachment.id}", bearer, LARGEST_ANSWER, deadline, "asked where it lies"
    )
    try:
        where = _where.decode(said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MediaBusy("an answer that does not say where it lies") from None
    if isinstance(where.file_size, int) and where.file_size > most:  # else it is counted while it comes
        raise MediaRefused(f"{where.file_size} bytes, more than {most}")
    ours = _same_origin(where.url, channel.base_url)
    if not ours:
        _allowed(where.url, hosts)
    data = await _get(client if ours else outside, where.url, bearer, most, deadline, "download")
    for digest in (attachment.sha256, where.sha256 or ""):
        if (expected := _sha256(digest)) is not None and not hmac.compare_digest(
            expected, hashlib.sha256(data).digest()
        ):
            raise MediaBusy("its bytes are not those of its SHA-256")
    found = media.type_of(data, attachment.media_type or where.mime_type or "")
    if found is None:
        raise MediaRefused("its content is not of the kind that it was declared to be")
    return Media(media_type=found, data=data)


async def _get(
    client: httpx.AsyncClient, url: str, headers: dict[str, str], most: int, deadline: float, what: str
) -> bytes:
    """The body of a 200, counted while it comes."""
    try:
        async with http.stream(client, "GET", url, headers=headers, timeout=deadline - time.monotonic()) as answer:
            if 300 <= answer.status < 400:
                raise MediaForbidden(f"{what}: HTTP {answer.status}, and redirects are not followed")
            if answer.status != 200:
                raise _refused(answer.status, what)
            body = bytearray()
            async for piece in answer:
                body += piece
                if len(body) > most:
                    raise MediaRefused(f"{what}: more than {most} bytes")
            return bytes(body)
    except Inside as error:
        raise MediaForbidden(f"{what}: {error}") from None
    except SendError as error:  # a GET changes nothing: whatever became of it, it may be asked again
        raise MediaBusy(f"{what}: {error}") from None


def _refused(status: int, what: str) -> MediaBusy | MediaRefused:
    # A URL that has expired is 404 (403 at some edges): where it lies is asked anew, and that says whether it is gone.
    passing = passes(status) or (what == "download" and status in (401, 403, 404, 410))
    return (MediaBusy if passing else MediaRefused)(f"{what}: HTTP {status}")


def _allowed(url: str, hosts: Sequence[str]) -> None:
    """Raise MediaForbidden unless the URL is plain https to a host on the list. Where that leads is the client's affair."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise MediaForbidden("a URL that cannot be read") from None
    if not _URL.fullmatch(url):
        raise MediaForbidden("a URL with characters that it cannot have")
    if parts.scheme != "https" or port not in (None, 443):
        raise MediaForbidden("a URL that is not https at its usual port")
    if "@" in parts.netloc:
        raise MediaForbidden("a URL with a user in it")
    if not _HOST.fullmatch(host) or not any(_fits(host, allowed) for allowed in hosts):
        raise MediaForbidden("a URL to a host that is not on the list QASID_MEDIA_HOSTS")


def _fits(host: str, allowed: str) -> bool:
    if allowed.startswith("*."):
        return host.endswith(allowed[1:]) and len(host) >= len(allowed)
    return host == allowed


def _same_origin(url: str, base_url: str) -> bool:
    """Whether a URL leads where the operator's own does: scheme, host and port. Anything odd in it does not."""
    try:
        one, other = urlsplit(url), urlsplit(base_url)
        if not _URL.fullmatch(url) or "@" in one.netloc:
            return False
        return (one.scheme, one.hostname, one.port) == (other.scheme, other.hostname, other.port)
    except ValueError:
        return False


def _sha256(text: str) -> bytes | None:
    """The digest that a text says: hex in Graph's answers, base64 in webhooks. None where it is neither."""
    try:
        if len(text) == 64:
            return bytes.fromhex(text)
        digest = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return digest if len(digest) == 32 else None
