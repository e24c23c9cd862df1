"""The files that people sent, for the turns of this worker: fetched by id, checked, bounded; a voice message is written down.

Its words are kept as the message's own. What a turn makes of a picture or a text, workers/questions.py knows.
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
from app.assistants.lines import LARGEST
from app.at_once import AtOnce
from app.channels import Attachment, Media, provider
from app.crashpoints import crashpoint
from app.directory import Channel, Tenant, Watch
from app.errors import AssistantError, DatabaseUnavailable, MediaBusy, MediaError, MediaForbidden
from app.store.turns import Asked
from app.transcription import transcribe
from workers.breakers import Breakers
from workers.commits import Commits
from workers.room import Held, Room

log = structlog.get_logger(__name__)

# Of one turn, the newest so many files are fetched: pictures as large as assistants take them, texts and voice messages of
# so many bytes, of these all together.
MOST_FILES = 5
MOST_OF_A_PICTURE = LARGEST
MOST_OF_A_TEXT = 256 * 1024
MOST_BYTES = 12 * 1024 * 1024
# So many turns of a worker fetch files at once, of one tenant at most so many; one with pictures and others counts twice.
AT_ONCE, AT_ONCE_OF_A_TENANT = 16, 8
# Files take at most this share of the time that is left for the answer.
SHARE = 0.5


class File(Struct, frozen=True, kw_only=True):
    """A file of a message: what the message says of it, and what was fetched, if it was."""

    attachment: Attachment
    fetched: Media | None = None


class Files:
    """`of` a turn's messages."""

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
    async def of(
        self, tenant: Tenant, channel: Channel, asked: list[Asked], *, pictures: bool, deadline: float
    ) -> AsyncIterator[dict[int, File]]:
        """The files of these messages by place, within half of what is left until `deadline` (monotonic).

        `pictures`: somebody sees them. Leaving the block lets go of them. In `asked` a voice message has its words from then
        on, as in every later opening.

        Raises:
            DatabaseUnavailable: nobody knows whether the words of a voice message are kept.
        """
        wanted: dict[int, Attachment] = {}
        for n, message in enumerate(asked):
            if not message.revoked and (file := self._wanted(tenant, channel, message, pictures)) is not None:
                wanted[n] = file
        with self._room.held(tenant.id) as held:
            fetched = await self._fetch(tenant, channel, asked, wanted, held, pictures, deadline)
            yield {n: File(attachment=file, fetched=fetched.get(n)) for n, file in wanted.items()}

    def _wanted(self, tenant: Tenant, channel: Channel, message: Asked, pictures: bool) -> Attachment | None:
        """The file of a message that somebody could make something of."""
        seen = message.kind == "image" and pictures
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
        sees: bool,
        deadline: float,
    ) -> dict[int, Media]:
        """The pictures and texts among these, by place; the words of voice messages go into `asked`.

        Pictures wait for room. Texts and voice messages do not: they are few bytes once they are words.
        """
        most = {n: _most(asked[n], file, sees) for n, file in wanted.items()}
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


def _most(message: Asked, file: Attachment, pictures: bool) -> int:
    """How many bytes a file may have to be of use; 0: it is of none."""
    if message.kind == "audio":
        return MOST_BYTES
    if _pictured(message, file):
        return MOST_OF_A_PICTURE if pictures else 0
    if message.kind == "document" and media.may_be_text(media.essence(file.media_type)):
        return MOST_OF_A_TEXT
    return 0


def _pictured(message: Asked, file: Attachment) -> bool:
    """Whether it is a picture, as far as its sender says."""
    return message.kind == "image" or (
        message.kind == "document" and media.essence(file.media_type).startswith("image/")
    )


def _on_loop(monotonic: float) -> float:
    """A moment of the monotonic clock, by the event loop's."""
    return asyncio.get_running_loop().time() + monotonic - time.monotonic()
