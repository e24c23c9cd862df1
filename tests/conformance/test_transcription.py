"""Who writes down voice messages: words within a deadline, or one of two errors. Against the sandbox's own such face."""

import time
import traceback
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from app import http
from app.channels import Media
from app.configuration import Transcription
from app.errors import AssistantBusy, AssistantRefused, QasidError
from app.sandbox.faults import Fault
from app.sandbox.files import SAID
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from app.transcription import LONGEST, transcribe
from app.vault import Secret

pytestmark = pytest.mark.anyio

KEY = "sk-not-to-be-seen"
WORDS = "أين العيادة؟ Where is it? 👋"


class Room:
    def __init__(self, sandbox: Sandbox, client: httpx.AsyncClient) -> None:
        self.sandbox, self.client = sandbox, client
        self.settings = Transcription(
            base_url=sandbox.transcription_url, model="whisper-1", api_key=Secret(KEY), deadline_seconds=3.0
        )

    def fails(self, *kinds: str, **more: Any) -> None:
        self.sandbox.faults.queue("transcription", [Fault(kind=kind, **more) for kind in kinds])  # type: ignore[arg-type]

    async def hear(self, data: bytes = b"OggS\0" + SAID + WORDS.encode(), *, timeout: float = 3.0) -> str:
        sound = Media(media_type="audio/ogg", data=data)
        return await transcribe(self.client, self.settings, sound, deadline=time.monotonic() + timeout)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with running() as sandbox, http.client(total=10.0) as client:
        yield Room(sandbox, client)


async def test_the_words_of_a_sound_come_back_as_they_are(room: Room) -> None:
    """In any script; the sound goes as a file with an ending that says what it is, and the model's name."""
    assert await room.hear() == WORDS
    [call] = room.sandbox.transcriptions.calls
    assert (call.model, call.filename, call.media_type) == ("whisper-1", "voice.ogg", "audio/ogg")
    assert call.size == len(b"OggS\0" + SAID + WORDS.encode())


async def test_any_bytes_go_whole(room: Room) -> None:
    """Line ends, dashes and what looks like a form's own boundary."""
    data = b"OggS\0\r\n--" + bytes(range(256)) * 2000 + b"\r\n--x--\r\n" + SAID + b"end"
    assert await room.hear(data) == "end"
    assert room.sandbox.transcriptions.calls[-1].size == len(data)


@pytest.mark.parametrize("kind", ["http_500", "http_429", "rst", "nonsense"])
async def test_what_may_pass_is_tried_again(room: Room, kind: str) -> None:
    """Asking twice costs twice, and no more."""
    room.fails(kind, seconds=1.0)
    assert await room.hear() == WORDS
    assert len(room.sandbox.transcriptions.calls) == 2


async def test_a_wrong_key_is_not_tried_again(room: Room) -> None:
    """Nor a model that there is not."""
    room.fails("http_401")
    with pytest.raises(AssistantRefused):
        await room.hear()
    assert len(room.sandbox.transcriptions.calls) == 1


@pytest.mark.parametrize("whose", ["settings", "turn"])
async def test_nobody_waits_beyond_the_deadline(room: Room, whose: str) -> None:
    """The sooner of its own and the turn's."""
    room.fails("no_answer", "no_answer", seconds=30.0)
    if whose == "settings":
        room.settings = msgspec.structs.replace(room.settings, deadline_seconds=0.3)
    began = time.monotonic()
    with pytest.raises(AssistantBusy):
        await room.hear(timeout=0.3 if whose == "turn" else 30.0)
    assert time.monotonic() - began < 1.5


async def test_a_wait_beyond_the_deadline_is_not_begun(room: Room) -> None:
    """Asked to come back after the deadline, it says so at once, and what it was told."""
    room.fails("http_429", seconds=60.0)
    began = time.monotonic()
    with pytest.raises(AssistantBusy, match="HTTP 429") as error:
        await room.hear()
    assert error.value.retry_after == 60.0
    assert time.monotonic() - began < 1.0 and len(room.sandbox.transcriptions.calls) == 1


async def test_silence_is_no_words(room: Room) -> None:
    """A sound in which nobody says anything."""
    room.fails("empty")
    assert await room.hear() == ""


async def test_words_are_bounded_and_without_what_no_text_may_hold(room: Room) -> None:
    """Zero bytes, which no column takes, and words without end."""
    assert await room.hear(SAID + b"a\0b\x1b[2J") == "a b [2J"
    assert len(await room.hear(SAID + b"word " * LONGEST)) <= LONGEST


async def test_no_key_is_needed_where_none_is_given_and_none_is_shown(room: Room) -> None:
    """A service of one's own may ask for none: then none is sent. Errors show neither key nor words."""
    room.settings = msgspec.structs.replace(room.settings, api_key=None)
    with pytest.raises(AssistantRefused):  # this one asks
        await room.hear()
    room.settings = msgspec.structs.replace(room.settings, api_key=Secret(KEY))
    room.fails("http_401")
    with pytest.raises(QasidError) as error:
        await room.hear()
    shown = "".join(traceback.format_exception(error.value))
    assert KEY not in shown and WORDS not in shown
