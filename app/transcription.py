"""Writes down what was said aloud, by OpenAI's `POST /audio/transcriptions`, which many others speak too.

It knows one sound and one answer; whose words they are, and what becomes of them, is the turn's affair.
Format: OpenAI's API reference, "Create transcription"; docs/wire-assistants.md has what we use of it.
"""

import re
import time
from uuid import uuid4

import httpx
import msgspec
from msgspec import Struct

from app import http
from app.assistants import Asking
from app.channels import Media
from app.configuration import Transcription
from app.errors import AssistantBusy, AssistantRefused, InDoubt, NeverLeft
from app.media import ENDINGS
from app.retrying import passes, retry_after, tried, watched

TRIES = 3
# A voice message of an hour has some 60,000 characters; nobody asks a question of that length.
LONGEST = 20_000

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class _Written(Struct):
    text: str


_written = msgspec.json.Decoder(_Written)


async def transcribe(
    client: httpx.AsyncClient,
    settings: Transcription,
    sound: Media,
    *,
    deadline: float,
    asking: Asking | None = None,
) -> str:
    """What is said in it, before `deadline` (by the monotonic clock) and within the settings' own; "" where nothing is.

    Asking twice doubles nothing but the cost, so what may pass is tried again. `asking`: under whose watch each request is
    made.

    Raises:
        AssistantBusy: no words within the deadline.
        AssistantRefused: another try would end the same way.
    """
    until = min(deadline, time.monotonic() + settings.deadline_seconds)

    async def once() -> str:
        async with watched(asking):
            return await _once(client, settings, sound, max(0.0, until - http.EARLY - time.monotonic()))

    return await tried(once, busy=AssistantBusy, deadline=until, tries=TRIES, what="words")


async def _once(client: httpx.AsyncClient, settings: Transcription, sound: Media, timeout: float) -> str:
    boundary = uuid4().hex
    headers = {"content-type": f"multipart/form-data; boundary={boundary}", "accept": "application/json"}
    if settings.api_key is not None:
        headers["authorization"] = f"Bearer {settings.api_key}"
    try:
        answer = await http.post(
            client,
            f"{settings.base_url}/audio/transcriptions",
            headers=headers,
            content=_form(boundary, settings.model, sound),
            timeout=timeout,
        )
    except (NeverLeft, InDoubt) as error:
        raise AssistantBusy(str(error)) from error
    if passes(answer.status):
        raise AssistantBusy(f"HTTP {answer.status}", retry_after=retry_after(answer.headers))
    if answer.status != 200:
        raise AssistantRefused(f"HTTP {answer.status}")
    try:
        words = _written.decode(answer.body).text
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise AssistantBusy("an answer without words") from None
    return _CONTROL.sub(" ", words).strip()[:LONGEST]


def _form(boundary: str, model: str, sound: Media) -> bytes:
    """The fields as multipart/form-data (RFC 7578). The file's name is ours: nothing of it is the sender's."""
    fields = {"model": model, "response_format": "json"}
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    name = f"voice.{ENDINGS.get(sound.media_type, 'ogg')}"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: {sound.media_type}\r\n\r\n"
    )
    return b"".join((*parts, head.encode(), sound.data, f"\r\n--{boundary}--\r\n".encode()))
