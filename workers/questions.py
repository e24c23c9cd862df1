"""What a turn makes of each kind of message: lines for the assistant, and what of them could not be read.

Files are fetched by id, checked and bounded; a voice message is written down once, and its words are kept as the message's
own. It answers nobody and decides no outcome. docs/kinds.md has the table.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import msgspec
import structlog
from msgspec import Struct

from app import media, metrics
from app.assistants import Image, Line
from app.assistants.lines import LARGEST
from app.at_once import AtOnce
from app.channels import Attachment, Media, provider
from app.configuration import Fallback, Texts
from app.crashpoints import crashpoint
from app.directory import Channel, Tenant, Watch
from app.errors import AssistantError, DatabaseUnavailable, MediaBusy, MediaError, MediaForbidden
from app.store.turns import Asked, Opening
from app.transcription import transcribe
from workers.breakers import Breakers
from workers.commits import Commits
from workers.room import Held, Room

log = structlog.get_logger(__name__)

# Kinds whose words are a question by themselves, just as they stand.
WORDED = frozenset({"text", "interactive", "button"})
# Kinds whose words, or caption, a person has said or written.
IN_OWN_WORDS = frozenset({*WORDED, "audio", "image", "video"})
# Kinds that are put into words when they come in (app/channels).
PUT_INTO_WORDS = {"location": "[Location]", "contacts": "[Contact card]"}
# What stands for a picture's words, or for itself.
WORDLESS = "[A picture, without words.]"
UNSEEN = "[A picture, which cannot be seen here.]"
# Of one turn, the newest so many files are fetched: pictures as large as assistants take them, texts and voice messages of
# so many bytes, of these all together.
MOST_FILES = 5
MOST_OF_A_PICTURE = LARGEST
MOST_OF_A_TEXT = 256 * 1024
MOST_BYTES = 12 * 1024 * 1024
# Of a text file so many characters are passed on: some 15,000 tokens.
MOST_CHARACTERS = 50_000
# A file's name is its sender's: shown, but not at any length.
MOST_OF_A_NAME = 120
# So many turns of a worker fetch files at once, of one tenant at most so many; one with pictures and others counts twice.
AT_ONCE, AT_ONCE_OF_A_TENANT = 16, 8
# Files take at most this share of the time that is left for the answer.
SHARE = 0.5


class Reading(Struct, frozen=True, kw_only=True):
    """What is asked. `lines`: empty where nothing of it can be read; what could not be read beside it is said in brackets.

    `unread`: the kinds of those messages, in order.
    """

    lines: tuple[Line, ...]
    unread: tuple[str, ...] = ()

    @property
    def blind(self) -> tuple[Line, ...]:
        """The same for an assistant that does not see, a fallback perhaps."""
        return tuple(
            Line(line.role, UNSEEN if line.text == WORDLESS else f"{UNSEEN}\n{line.text}") if line.images else line
            for line in self.lines
        )


class _Read(Struct, frozen=True, kw_only=True):
    """One message: its line, and whether that is more than a word about what could not be read."""

    line: Line | None
    readable: bool


def sees(assistant: Fallback | None) -> bool:
    """Whether an assistant is shown pictures."""
    return assistant is not None and assistant.images and assistant.provider != "ansari"


def apology(texts: Texts, unread: Sequence[str]) -> str:
    """The tenant's sentence about messages of these kinds, none of which could be read."""
    own = {"image": texts.image, "audio": texts.audio, "video": texts.video}
    sentences = {own.get(kind) or texts.unsupported for kind in unread}
    return sentences.pop() if len(sentences) == 1 else texts.unsupported


def spoken(opening: Opening) -> str:
    """What the person says in words of their own: what tells their language. Numbers and names of files do not."""
    own = [message.body for message in opening.asked if message.kind in IN_OWN_WORDS and not message.revoked]
    return "\n\n".join(body for body in own if body.strip())


def newest(opening: Opening) -> str:
    """The provider's id of the newest message that is asked: the one that is read, and answered; "" where nobody knows it."""
    return next((message.provider_id for message in reversed(opening.asked) if not message.revoked), "")


class Questions:
    """`read` a turn's messages."""

    def __init__(
        self,
        commits: Commits,
        directory: Watch,
        client: httpx.AsyncClient,
        outside: httpx.AsyncClient,
        breakers: Breakers,
        *,
        hosts: Sequence[str] = (),
        room: Room | None = None,
    ) -> None:
        """`client` is for what the operator configured, `outside` for URLs that came in data: `Provider.media`.

        `room`: for the pictures of all turns that are asked.
        """
        self._commits = commits
        self._directory = directory
        self._client = client
        self._outside = outside
        self._breakers = breakers
        self._hosts = tuple(hosts)
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._gates = AtOnce()
        self._room = room or Room()

    @asynccontextmanager
    async def read(
        self, tenant: Tenant, channel: Channel, opening: Opening, *, deadline: float
    ) -> AsyncIterator[Reading]:
        """What stands of `opening.asked`, for the tenant's assistant; `deadline` (monotonic) is that of its answer.

        In `opening.asked` a voice message has its words from then on, as in every later opening. Leaving the block lets
        go of the pictures.

        Raises:
            DatabaseUnavailable: nobody knows whether the words of a voice message are kept.
        """
        asked = opening.asked
        standing = [n for n, message in enumerate(asked) if not message.revoked]
        wanted = {n: file for n in standing if (file := self._wanted(tenant, channel, asked[n])) is not None}
        with self._room.held(tenant.id) as held:
            fetched = await self._fetch(tenant, channel, asked, wanted, held, deadline)
            reads = [(asked[n].kind, self._line(asked[n], wanted.get(n), fetched.get(n))) for n in standing]
            lines = tuple(read.line for _, read in reads if read.line is not None)
            unread = tuple(kind for kind, read in reads if not read.readable and kind not in WORDED)
            for kind in unread:
                metrics.file("unread")
                log.info("not read", kind=kind, tenant=tenant.slug, correlation=opening.correlation)
            yield Reading(lines=lines if any(read.readable for _, read in reads) else (), unread=unread)

    # --- words ---

    def _line(self, message: Asked, file: Attachment | None, fetched: Media | None) -> _Read:
        words = message.body.strip()
        if message.kind in WORDED:
            return _Read(line=Line("user", message.body) if words else None, readable=bool(words))
        if message.kind in PUT_INTO_WORDS:
            line = Line("user", f"{PUT_INTO_WORDS[message.kind]}\n{message.body}") if words else None
            return _Read(line=line, readable=bool(words))
        if message.kind == "audio":
            if words:
                return _Read(line=Line("user", words), readable=True)
        elif message.kind == "document":
            return _Read(line=_document(file, message.body, fetched), readable=True)
        elif fetched is not None:
            return _Read(line=_picture(words, fetched), readable=True)
        about = f"[{_named(message.kind)}, which cannot be read here.]"
        return _Read(line=Line("user", f"{about}\n{words}" if words else about), readable=False)

    # --- files ---

    def _wanted(self, tenant: Tenant, channel: Channel, message: Asked) -> Attachment | None:
        """The file of a message that somebody could make something of."""
        seen = message.kind == "image" and sees(tenant.assistant)
        heard = message.kind == "audio" and not message.body and tenant.transcription is not None
        if not (seen or heard or message.kind == "document"):
            return None
        transport = provider(self._directory.current.endpoint_of(channel).kind)
        return transport.attachment(bytes(message.edited)) or transport.attachment(bytes(message.raw))

    async def _fetch(
        self,
        tenant: Tenant,
        channel: Channel,
        asked: list[Asked],
        wanted: dict[int, Attachment],
        held: Held,
        deadline: float,
    ) -> dict[int, Media]:
        """The pictures and texts among these, by place; the words of voice messages go into `asked`.

        Pictures wait for room. Texts and voice messages do not: they are few bytes once they are words.
        """
        most = {n: _most(asked[n], file, tenant) for n, file in wanted.items()}
        useful = [n for n in wanted if most[n] > 0][-MOST_FILES:]
        pictures = [n for n in useful if _pictured(asked[n], wanted[n])]
        others = [n for n in useful if n not in pictures]
        now = time.monotonic()
        until = now + (deadline - now) * SHARE
        found: dict[int, Media] = {}
        lost: list[DatabaseUnavailable] = []

        async def one(n: int, most: int) -> None:
            if (file := await self._one(tenant, channel, asked[n], wanted[n], most, until)) is None:
                return
            if asked[n].kind != "audio":
                found[n] = file
                return
            try:
                asked[n] = await self._heard(tenant, asked[n], file, until)
            except DatabaseUnavailable as error:
                lost.append(error)

        async def some(files: list[int], share: int, room: int = 0) -> None:
            async with AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout_at(_on_loop(until)):
                        if room:
                            await held.take(room)
                        await stack.enter_async_context(self._gates.of(tenant.id, AT_ONCE_OF_A_TENANT))
                        await stack.enter_async_context(self._gate)
                except TimeoutError:
                    metrics.file("busy")
                    log.warning(
                        "files had to wait too long", tenant=tenant.slug, correlation=asked[files[0]].correlation
                    )
                    return
                async with asyncio.TaskGroup() as group:
                    for n in files:
                        group.create_task(one(n, min(most[n], share)), name="file")

        async with asyncio.TaskGroup() as group:
            if pictures:
                group.create_task(
                    some(pictures, MOST_OF_A_PICTURE, room=sum(most[n] for n in pictures)), name="pictures"
                )
            if others:
                group.create_task(some(others, MOST_BYTES // len(others)), name="files")
        held.keep(sum(len(found[n].data) for n in pictures if n in found))
        if lost:
            raise lost[0]
        return found

    async def _one(
        self, tenant: Tenant, channel: Channel, message: Asked, file: Attachment, most: int, until: float
    ) -> Media | None:
        transport = provider(self._directory.current.endpoint_of(channel).kind)
        try:
            found = await transport.media(
                self._client, self._outside, channel, file, hosts=self._hosts, most=most, deadline=until
            )
        except MediaForbidden as error:
            metrics.file("forbidden")
            metrics.alert("media_forbidden")
            log.error(
                "a file lies where we may not ask",
                alert="media_forbidden",
                kind=message.kind,
                tenant=tenant.slug,
                channel=channel.slug,
                reason=str(error),
                correlation=message.correlation,
            )
            return None
        except MediaError as error:
            metrics.file("busy" if isinstance(error, MediaBusy) else "refused")
            log.warning(
                "file not fetched",
                kind=message.kind,
                tenant=tenant.slug,
                channel=channel.slug,
                reason=str(error),
                correlation=message.correlation,
            )
            return None
        metrics.file("read")
        return found

    async def _heard(self, tenant: Tenant, message: Asked, sound: Media, until: float) -> Asked:
        """The message with its words, committed before anything rests on them."""
        settings = tenant.transcription
        assert settings is not None
        if sound.media_type not in media.SOUNDS:
            return message
        try:
            words = await transcribe(
                self._client,
                settings,
                sound,
                deadline=until,
                asking=lambda: self._breakers.now(tenant, "transcriber"),
            )
        except AssistantError as error:
            metrics.alert("transcription_failed")
            log.error(
                "voice message not written down",
                alert="transcription_failed",
                tenant=tenant.slug,
                error=error,
                correlation=message.correlation,
            )
            return message
        if not words:
            return message
        metrics.file("transcribed")
        # Under no deadline of ours: words that are paid for are kept.
        await self._commits.transcript(tenant.id, message.id, words)
        crashpoint("question.heard")
        return msgspec.structs.replace(message, body=words, blank=False)


def _most(message: Asked, file: Attachment, tenant: Tenant) -> int:
    """How many bytes a file may have to be of use; 0: it is of none."""
    if message.kind == "audio":
        return MOST_BYTES
    if _pictured(message, file):
        return MOST_OF_A_PICTURE if sees(tenant.assistant) else 0
    if message.kind == "document" and media.may_be_text(media.essence(file.media_type)):
        return MOST_OF_A_TEXT
    return 0


def _pictured(message: Asked, file: Attachment) -> bool:
    """Whether it is a picture, as far as its sender says."""
    return message.kind == "image" or (
        message.kind == "document" and media.essence(file.media_type).startswith("image/")
    )


def _picture(words: str, file: Media) -> Line:
    if file.media_type not in media.IMAGES:
        return Line("user", words or UNSEEN)
    return Line("user", words or WORDLESS, (Image(media_type=file.media_type, data=file.data),))


def _document(file: Attachment | None, body: str, fetched: Media | None) -> Line:
    """A picture that was sent as a file is a picture, a short text is passed on whole; of all else the name and the kind."""
    name = " ".join(file.filename.split())[:MOST_OF_A_NAME] if file is not None else ""
    words = "" if file is not None and body == file.filename else body.strip()
    if fetched is not None and fetched.media_type in media.IMAGES:
        return _picture(words or name, fetched)
    kind = media.essence(file.media_type) if file is not None else ""
    called = " ".join(part for part in ("Document", name and f'"{name}"', kind and f"({kind})") if part)
    text = media.text_of(fetched.data) if fetched is not None and fetched.media_type == media.TEXT else None
    if text is None:
        about = f"[{called}: its content cannot be read here.]"
    elif len(text) > MOST_CHARACTERS:
        about = f"[{called}: its first {MOST_CHARACTERS} characters follow.]\n{text[:MOST_CHARACTERS]}"
    else:
        about = f"[{called}:]\n{text}"
    return Line("user", f"{words}\n\n{about}" if words else about)


def _named(kind: str) -> str:
    names = {"image": "A picture", "audio": "A voice message", "video": "A film", "sticker": "A sticker"}
    return names.get(kind, "Something")


def _on_loop(monotonic: float) -> float:
    """A moment of the monotonic clock, by the event loop's."""
    return asyncio.get_running_loop().time() + monotonic - time.monotonic()
