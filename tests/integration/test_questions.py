"""What a turn makes of each kind of message, and what it does where a file cannot be had. Against the sandbox."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from prometheus_client import REGISTRY

from app import http
from app.assistants import Image, Line
from app.assistants.intents import Intents
from app.configuration import Assistant, Limits, Texts, Transcription
from app.directory import Channel, Tenant
from app.errors import DatabaseUnavailable
from app.messages import ANSWERED
from app.sandbox.faults import Fault
from app.sandbox.files import SAID, File
from app.sandbox.numbers import Number
from app.sandbox.people import Spoken, message
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from app.store.turns import Asked, Opening
from app.vault import Secret
from tests.asking import Kept as Noted
from tests.openings import asked, opening
from workers import files as module
from workers import hearing as hearing_module
from workers import room as room_module
from workers.breakers import Breakers
from workers.fetching import Fetching
from workers.files import Files
from workers.hearing import Hearing
from workers.questions import MOST_CHARACTERS, Questions, Reading, apology, newest
from workers.room import Room as PictureRoom

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

NUMBER = "1000200030004000"


class Kept:
    """What a worker commits, as far as questions commit anything."""

    def __init__(self) -> None:
        self.transcripts: list[tuple[UUID, str]] = []
        self.away = False

    async def transcript(self, tenant: UUID, message: UUID, words: str) -> None:
        if self.away:
            raise DatabaseUnavailable("away")
        self.transcripts.append((message, words))


class Room:
    """`notes`: those of all its turns."""

    def __init__(self, sandbox: Sandbox, client: httpx.AsyncClient, outside: httpx.AsyncClient) -> None:
        self.sandbox = sandbox
        self.number = Number(phone_number_id=NUMBER, webhook_url="http://127.0.0.1:9/", app_secret="s")
        sandbox.register(self.number)
        directory: Any = SimpleNamespace(current=SimpleNamespace(endpoint_of=lambda _: SimpleNamespace(kind="cloud")))
        self.kept = Kept()
        self.notes = Noted()
        commits: Any = self.kept
        self.breakers = Breakers()
        self.fetching = Fetching(directory, client, outside)
        self.hearing = Hearing(commits, self.fetching, client, self.breakers)
        self.questions = Questions(Files(self.fetching), self.hearing)
        self.tenant = Tenant(
            id=UUID(int=1),
            slug="noor",
            name="Noor",
            enabled=True,
            in_doubt="resend",
            assistant=Assistant(provider="anthropic", base_url="http://x", api_key=Secret("k"), model="m"),
            texts=Texts(),
            limits=Limits(),
            intents=Intents(()),
            transcription=Transcription(base_url=sandbox.transcription_url, model="whisper-1", api_key=Secret("k")),
        )
        self.channel = Channel(
            tenant_id=UUID(int=1),
            id=UUID(int=2),
            slug="main",
            endpoint_id=UUID(int=3),
            address=NUMBER,
            base_url=sandbox.graph_url,
            token=Secret("t"),
            enabled=True,
            session_gap_hours=3,
            answer_within_hours=24,
            late="store",
        )

    def asked(self, kind: str, body: str = "", **more: Any) -> Asked:
        """A message of this kind as ingest stores it; `spoken` and `edited` are what the person did in WhatsApp."""
        spoken = {"phone_number_id": NUMBER, "sender": "15550002222", **more.pop("spoken", {})}
        if kind in ("image", "audio", "video", "document", "sticker"):
            said = Spoken(kind=kind, text=body, **spoken)  # type: ignore[arg-type]
            raw = msgspec.json.encode(message(said, self.number, self.sandbox.files.digest))
            more.setdefault("raw", msgspec.Raw(raw))
        return asked(kind=kind, body=body, **more)

    def bounded(self, most: int, most_of_a_tenant: int) -> None:
        """From here on there is room for so many of the largest pictures."""
        size = module.MOST_OF_A_PICTURE
        pictures = PictureRoom(most * size, most_of_a_tenant * size)
        self.questions = Questions(Files(self.fetching, room=pictures), self.hearing)

    async def read(self, *asked: Asked, timeout: float = 10.0) -> Reading:
        async with self.reading(opening(*asked), timeout) as reading:
            return reading

    @asynccontextmanager
    async def reading(self, found: Opening, timeout: float = 10.0, *, live: bool = True) -> AsyncIterator[Reading]:
        """Its voice messages are heard first, as in a turn."""
        tenant, channel = self.tenant, self.channel
        deadline = time.monotonic() + timeout
        await self.questions.hear(tenant, channel, found, self.notes, live=live, deadline=deadline)
        async with self.questions.read(tenant, channel, found, live=live, deadline=deadline) as reading:
            yield reading

    async def words(self, *asked: Asked, **more: Any) -> list[str]:
        return [line.text for line in (await self.read(*asked, **more)).lines]

    def assistant(self, **changed: Any) -> None:
        assert self.tenant.assistant
        changes = {"assistant": msgspec.structs.replace(self.tenant.assistant, **changed)}
        self.tenant = msgspec.structs.replace(self.tenant, **changes)

    def file(self, media_type: str, data: bytes, id: str = "9") -> str:
        self.sandbox.files.by_id[id] = File(media_type=media_type, data=data)
        return id


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with (
        running() as sandbox,
        http.client(total=10.0, max_response=hearing_module.MOST_BYTES + 1) as client,
        http.client(total=10.0, public=True) as outside,
    ):
        yield Room(sandbox, client, outside)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


def alerts(kind: str) -> float:
    return REGISTRY.get_sample_value("qasid_alerts_total", {"kind": kind}) or 0.0


# --- words ---


async def test_words_are_asked_as_they_stand(room: Room) -> None:
    """A text, a pressed button, a row of a list: in the turn's order. What is revoked or blank is not asked."""
    asked = [
        room.asked("text", "  one "),
        room.asked("interactive", "Yes"),
        room.asked("text", " \n"),
        room.asked("text", "taken back", revoked=True),
        room.asked("button", "Tapped"),
    ]
    assert await room.read(*asked) == Reading(lines=tuple(Line("user", text) for text in ("  one ", "Yes", "Tapped")))
    assert room.sandbox.files.fetched == []


async def test_places_and_cards_are_asked_in_words(room: Room) -> None:
    """What ingest made of them, and that it is one."""
    place = "Kaaba\nMakkah\n21.422500, 39.826200\nhttps://www.google.com/maps?q=21.422500,39.826200"
    assert await room.words(room.asked("location", place), room.asked("contacts", "Amal\n+1 555")) == [
        f"[Location]\n{place}",
        "[Contact card]\nAmal\n+1 555",
    ]


async def test_every_kind_that_is_answered_is_made_something_of(room: Room) -> None:
    """Beside a text: none is passed over without a word, whatever its kind."""
    for kind in sorted(ANSWERED - {"text"}):
        reading = await room.read(room.asked("text", "and this?"), room.asked(kind, "words"))
        assert len(reading.lines) == 2, kind


# --- pictures ---


async def test_a_picture_goes_to_an_assistant_that_sees_with_its_caption(room: Room) -> None:
    """Its bytes, and its type by its content; without a caption a word stands in its place."""
    pixel = Image(media_type="image/jpeg", data=room.sandbox.files.by_id["7700000000000001"].data)
    reading = await room.read(room.asked("image", "what is this?"), room.asked("image"))
    assert reading.lines == (
        Line("user", "what is this?", (pixel,)),
        Line("user", "[A picture, without words.]", (pixel,)),
    )
    assert reading.unread == ()
    unseen = "[A picture, which cannot be seen here.]"
    assert reading.blind == (Line("user", f"{unseen}\nwhat is this?"), Line("user", unseen))


@pytest.mark.parametrize("blind", [{"images": False}, {"provider": "ansari"}])
async def test_an_assistant_that_does_not_see_is_shown_none(room: Room, blind: dict[str, Any]) -> None:
    """Nor is anything fetched. A caption without its picture is no question by itself."""
    room.assistant(**blind)
    assert await room.read(room.asked("image", "what is this?")) == Reading(lines=(), unread=("image",))
    assert await room.words(room.asked("text", "look"), room.asked("image", "this")) == [
        "look",
        "[A picture, which cannot be read here.]\nthis",
    ]
    assert room.sandbox.files.fetched == []


@pytest.mark.parametrize("fault", ["gone", "wrong_type", "too_big", "inside", "elsewhere", "redirect"])
async def test_a_picture_that_cannot_be_had_is_told_so(room: Room, fault: str) -> None:
    """The turn goes on without it, whether it may be asked for again or not; where it was to be fetched from inside, an
    operator is told.
    """
    before = alerts("media_forbidden")
    room.sandbox.faults.queue("media", [Fault(kind=fault)] * 5)  # type: ignore[arg-type]
    assert await room.read(room.asked("image")) == Reading(lines=(), unread=("image",))
    assert alerts("media_forbidden") - before == (fault in ("inside", "elsewhere", "redirect"))


async def test_a_slow_file_leaves_time_for_the_answer(room: Room) -> None:
    """At most half of what is left; words beside it are asked all the same."""
    room.sandbox.faults.queue("media", [Fault(kind="no_answer")] * 5)
    began = time.monotonic()
    words = await room.words(room.asked("text", "look"), room.asked("image"), timeout=1.0)
    assert time.monotonic() - began < 0.8
    assert words == ["look", "[A picture, which cannot be read here.]"]


async def test_of_many_pictures_the_newest_are_seen(room: Room) -> None:
    """So many of one turn, and no more are fetched."""
    reading = await room.read(*(room.asked("image", str(n)) for n in range(module.MOST_FILES + 2)))
    assert [bool(line.images) for line in reading.lines] == [False] * 2 + [True] * module.MOST_FILES
    assert room.sandbox.files.count("download") == module.MOST_FILES


async def test_an_edited_caption_keeps_its_picture(room: Room) -> None:
    """What the edit brings, or else what the message brought."""
    new: Any = {"type": "edit", "edit": {"original_message_id": "wamid.A", "message": {"type": "image"}}}
    new["edit"]["message"]["image"] = {"id": room.file("image/png", b"\x89PNG\r\n\x1a\n")}
    for edited, media_type in ((new, "image/png"), ({"type": "edit"}, "image/jpeg")):
        asked = room.asked("image", "better", edited=msgspec.Raw(msgspec.json.encode(edited)))
        [line] = (await room.read(asked)).lines
        assert line.text == "better" and [image.media_type for image in line.images] == [media_type]


async def test_no_picture_is_refused_for_its_neighbours(room: Room) -> None:
    """Each may be as large as an assistant takes it, however small the others are; a larger one is not read."""
    jpeg = b"\xff\xd8\xff"
    sizes = [10, 10, module.MOST_OF_A_PICTURE, 10, module.MOST_OF_A_PICTURE + 1]
    files = [room.file("image/jpeg", jpeg.ljust(size), str(n)) for n, size in enumerate(sizes)]
    reading = await room.read(*(room.asked("image", spoken={"file": file}) for file in files))
    assert [len(line.images) for line in reading.lines] == [1, 1, 1, 1, 0]


class Reader:
    """A turn whose assistant does not answer until it is told to."""

    def __init__(self, room: Room, *asked: Asked) -> None:
        self.reading: Reading | None = None
        self._answered = asyncio.Event()
        self._task = asyncio.create_task(self._read(room, opening(*asked)))

    async def _read(self, room: Room, found: Opening) -> None:
        async with room.reading(found, 20.0) as self.reading:
            await self._answered.wait()

    async def end(self) -> None:
        self._answered.set()
        await self._task


async def test_pictures_in_hand_are_bounded(room: Room) -> None:
    """Twenty turns at once, room for six: no more are fetched, and the others go on as soon as one has let go."""
    jpeg = room.file("image/jpeg", b"\xff\xd8\xff".ljust(module.MOST_OF_A_PICTURE))
    room.bounded(6, 6)
    readers = [Reader(room, room.asked("image", spoken={"file": jpeg})) for _ in range(20)]

    def seen() -> int:
        return sum(reader.reading is not None for reader in readers)

    async def as_many_as(most: int) -> None:
        await until(lambda: seen() == most)

    for most in (6, 12, 18, 20):
        await as_many_as(most)
        await asyncio.sleep(0.1)
        assert seen() == room.sandbox.files.count("download") == most
        for reader in readers[most - 6 : most]:
            await reader.end()
    assert all(reader.reading and reader.reading.lines[0].images for reader in readers)


async def test_one_tenants_pictures_keep_nobody_else_waiting(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its own share is with an assistant that hangs, others have theirs; its own texts and voice messages are read."""
    jpeg = room.file("image/jpeg", b"\xff\xd8\xff".ljust(module.MOST_OF_A_PICTURE))
    text = {"file": room.file("text/plain", b"words", "8"), "media_type": "text/plain"}
    room.bounded(4, 2)
    hanging = [Reader(room, room.asked("image", spoken={"file": jpeg})) for _ in range(3)]
    await until(lambda: sum(reader.reading is not None for reader in hanging) == 2)
    began = time.monotonic()
    assert await room.words(room.asked("audio")) == ["Where is the clinic?"]
    assert "words" in (await room.words(room.asked("document", spoken=text)))[0]
    mine, room.tenant = room.tenant, msgspec.structs.replace(room.tenant, id=UUID(int=9))
    assert (await room.read(room.asked("image", spoken={"file": jpeg}))).lines[0].images
    assert time.monotonic() - began < 2
    room.tenant = mine
    monkeypatch.setattr(room_module, "PATIENCE", 0.0)
    mixed = await room.words(room.asked("audio"), room.asked("image", spoken={"file": jpeg}), timeout=1.0)
    assert mixed == ["Where is the clinic?", "[A picture, which cannot be read here.]"]
    for reader in hanging:
        await reader.end()


# --- voice ---


async def test_a_voice_message_is_asked_in_its_words_which_are_kept_first(room: Room) -> None:
    """Committed as the message's own; the opening has them from then on, so that memory keeps what the database does."""
    voice = room.asked("audio")
    found = opening(voice)
    async with room.reading(found) as reading:
        assert reading.lines == (Line("user", "Where is the clinic?"),)
        assert room.kept.transcripts == [(voice.id, "Where is the clinic?")]
    assert [(each.body, each.blank) for each in found.asked] == [("Where is the clinic?", False)]


async def test_what_was_written_down_is_not_written_down_again(room: Room) -> None:
    """After a crash the message brings its words."""
    assert await room.words(room.asked("audio", "Where is it?", blank=False)) == ["Where is it?"]
    assert room.sandbox.transcriptions.calls == [] and room.sandbox.files.fetched == []


async def test_several_voice_messages_are_written_down_at_once(room: Room) -> None:
    """Side by side, each in its place."""
    room.sandbox.faults.queue("transcription", [Fault(kind="slow", seconds=0.5)] * 3)
    voices = [
        room.asked("audio", spoken={"file": room.file("audio/ogg", b"OggS\0" + SAID + str(n).encode(), str(n))})
        for n in range(3)
    ]
    began = time.monotonic()
    assert await room.words(*voices) == ["0", "1", "2"]
    assert time.monotonic() - began < 1.4


async def test_all_voice_messages_of_a_turn_are_heard(room: Room) -> None:
    """However many were sent while an answer was made: each in its place, each kept. Pictures are more, and wanted less."""
    count = module.MOST_FILES + 3
    voices = [
        room.asked("audio", spoken={"file": room.file("audio/ogg", b"OggS\0" + SAID + str(n).encode(), str(n))})
        for n in range(count)
    ]
    assert await room.words(*voices) == [str(n) for n in range(count)]
    assert sorted(room.kept.transcripts) == sorted((voice.id, str(n)) for n, voice in enumerate(voices))


@pytest.mark.parametrize("fault", ["http_401", "empty", "no_answer"])
async def test_a_voice_message_without_words_is_told_so(room: Room, fault: str) -> None:
    """The service refuses, hears nothing, or does not answer: an operator is told of all but silence, which alone is kept."""
    before = alerts("transcription_failed")
    room.sandbox.faults.queue("transcription", [Fault(kind=fault)] * 3)  # type: ignore[arg-type]
    assert await room.read(room.asked("audio"), timeout=1.5) == Reading(lines=(), unread=("audio",))
    assert room.kept.transcripts == [] and len(room.notes) == (fault == "empty")
    assert alerts("transcription_failed") - before == (fault != "empty")


@pytest.mark.parametrize("fault", ["http_500", "no_answer"])
async def test_while_nobody_can_write_down_voice_messages_nobody_waits(room: Room, fault: str) -> None:
    """Three calls that failed or had no answer, then the person is told so at once; an operator is told once that it is away."""
    before = alerts("transcriber_away")
    room.sandbox.faults.queue("transcription", [Fault(kind=fault)] * 9)  # type: ignore[arg-type]
    await asyncio.gather(*(room.read(room.asked("audio"), timeout=1.0) for _ in range(3)))
    asked = len(room.sandbox.transcriptions.calls)
    began = time.monotonic()
    assert await room.read(room.asked("audio"), timeout=20.0) == Reading(lines=(), unread=("audio",))
    assert time.monotonic() - began < 0.5
    assert len(room.sandbox.transcriptions.calls) == asked == 3
    assert alerts("transcriber_away") == before + 1


async def test_without_a_service_nothing_is_fetched(room: Room) -> None:
    """A voice message of a tenant that has none."""
    room.tenant = msgspec.structs.replace(room.tenant, transcription=None)
    assert await room.read(room.asked("audio")) == Reading(lines=(), unread=("audio",))
    assert room.sandbox.files.fetched == []


async def test_words_that_nobody_kept_are_not_asked(room: Room) -> None:
    """The lane is left as it is, as for any step that may not have been committed."""
    room.kept.away = True
    with pytest.raises(DatabaseUnavailable):
        await room.read(room.asked("audio"))


# --- documents ---


@pytest.mark.parametrize(
    ("media_type", "data", "expected"),
    [
        ("text/plain", "سلام".encode(), '[Document "a file" (text/plain):]\nسلام'),
        ("text/csv", b"a,b\n1,2", '[Document "a file" (text/csv):]\na,b\n1,2'),
        ("application/pdf", b"%PDF-1.4", '[Document "a file" (application/pdf): its content cannot be read here.]'),
        ("text/plain", b"\0\1", '[Document "a file" (text/plain): its content cannot be read here.]'),
        ("application/zip", b"PK\3\4", '[Document "a file" (application/zip): its content cannot be read here.]'),
    ],
)
async def test_a_document_is_told_by_name_and_kind_and_a_text_by_its_words(
    room: Room, media_type: str, data: bytes, expected: str
) -> None:
    """With its caption before it."""
    spoken = {"file": room.file(media_type, data), "media_type": media_type, "filename": " a \n file"}
    assert await room.words(room.asked("document", "read this", spoken=spoken)) == [f"read this\n\n{expected}"]


async def test_what_a_file_is_called_is_shown_at_no_length_and_in_one_line(room: Room) -> None:
    """Its name and its type are whatever its sender says."""
    spoken = {"filename": "a\n" * 5_000, "media_type": "x/\n" + "y" * 5_000}
    [words] = await room.words(room.asked("document", "read this", spoken=spoken))
    assert words.count("\n") == 2 and len(words) < 400


async def test_a_long_text_is_cut_and_says_so(room: Room) -> None:
    """Nobody's context is filled by one file; a larger one still is not fetched."""
    spoken = {"file": room.file("text/plain", b"x" * 200_000), "media_type": "text/plain"}
    [words] = await room.words(room.asked("document", "letter.pdf", spoken=spoken))
    assert f"its first {MOST_CHARACTERS} characters follow" in words and len(words) < MOST_CHARACTERS + 200
    spoken = {"file": room.file("text/plain", b"x" * (module.MOST_OF_A_TEXT + 1)), "media_type": "text/plain"}
    [words] = await room.words(room.asked("document", spoken=spoken))
    assert "cannot be read here" in words


async def test_a_picture_that_is_sent_as_a_file_is_a_picture(room: Room) -> None:
    """Under its name, where nothing else was said."""
    spoken = {"file": "7700000000000001", "media_type": "image/jpeg", "filename": "scan.jpg"}
    [line] = (await room.read(room.asked("document", "", spoken=spoken))).lines
    assert line.text == "scan.jpg" and [image.media_type for image in line.images] == ["image/jpeg"]


# --- the rest ---


async def test_what_nobody_can_read_has_the_tenants_own_sentence(room: Room) -> None:
    """By its kind where the tenant has one for it; for several kinds the general one."""
    for kind in ("video", "sticker", "unsupported"):
        reading = await room.read(room.asked(kind))
        assert (reading.lines, reading.unread) == ((), (kind,))
    own = Texts(unsupported="text only", audio="no voice", image="no pictures")
    assert apology(own, ("audio",)) == apology(own, ("audio", "audio")) == "no voice"
    assert apology(own, ("video",)) == apology(own, ("audio", "image")) == apology(own, ()) == "text only"


async def test_a_message_whose_json_is_gone_is_one_without_a_file(room: Room) -> None:
    """Erased, or of another build."""
    for raw in (b"", b"null", b"{}", b'{"image": 7}', b"[1"):
        asked = room.asked("image", raw=msgspec.Raw(raw))
        assert await room.read(asked) == Reading(lines=(), unread=("image",))
    assert "cannot be read here" in (await room.words(room.asked("document", "a.pdf", raw=msgspec.Raw(b"null"))))[0]


def test_the_newest_message_is_the_one_that_is_read() -> None:
    """Of those that stand; nobody's where no id is known."""
    room: Any = SimpleNamespace(number=None)
    one, two, three = (Room.asked(room, "text", "x", provider_id=id) for id in ("a", "b", "c"))
    assert newest(opening(one, two, msgspec.structs.replace(three, revoked=True))) == "b"
    assert newest(opening(msgspec.structs.replace(one, revoked=True))) == newest(opening()) == ""
