"""The pictures and documents that people sent, for the turns of this worker: which of a turn are fetched, and how many at once.

What a turn makes of them, workers/questions.py knows. Voice messages are workers/hearing.py's.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from msgspec import Struct

from app import media
from app.assistants.lines import LARGEST
from app.channels import Attachment, Media
from app.directory import Channel, Tenant
from app.errors import MediaBusy, MediaRefused
from app.store.turns import Asked
from workers.fetching import SHARE, Fetching, kept_out
from workers.room import Held, NoPlace, Patience, Room

# Of one turn, the newest so many files are fetched: pictures as large as assistants take them, texts of so many bytes.
MOST_FILES = 5
MOST_OF_A_PICTURE = LARGEST
MOST_OF_A_TEXT = 256 * 1024
# So many of them a worker fetches at once, of one tenant at most so many.
AT_ONCE, AT_ONCE_OF_A_TENANT = 32, 8
# The bytes of pictures, from before they are fetched until their assistant has answered: of all, and of one tenant.
MOST_BYTES, MOST_BYTES_OF_A_TENANT = 128 * 1024 * 1024, 32 * 1024 * 1024


class File(Struct, frozen=True, kw_only=True):
    """A file of a message: what the message says of it, and what was fetched, if it was."""

    attachment: Attachment
    fetched: Media | None = None


class Files:
    """`of` a turn's messages."""

    def __init__(self, fetching: Fetching, *, room: Room | None = None) -> None:
        """`room`: bytes, for the pictures of all turns that are asked."""
        self._fetching = fetching
        self._room = room or Room(MOST_BYTES, MOST_BYTES_OF_A_TENANT)
        self._places = Room(AT_ONCE, AT_ONCE_OF_A_TENANT)

    @asynccontextmanager
    async def of(
        self, tenant: Tenant, channel: Channel, asked: list[Asked], *, pictures: bool, live: bool, deadline: float
    ) -> AsyncIterator[dict[int, File]]:
        """The files of these messages by place, within half of what is left until `deadline` (monotonic), from when they have
        places to be fetched in.

        `pictures`: somebody sees them. Leaving the block lets go of them. `live`: see `Places.question`.

        Raises:
            NoPlace: others' were fetched, or held, for as long as the answer has, and for `PATIENCE`: all together, whatever
                they were waited for. Never in vain: whatever waited in vain counts as not read.
        """
        kinds = {"document", "image"} if pictures else {"document"}
        wanted = {
            n: file
            for n, message in enumerate(asked)
            if message.kind in kinds and not message.revoked
            if (file := self._fetching.attachment(channel, message)) is not None
        }
        with self._room.held(tenant.id, live=live) as held:
            fetched = await self._fetch(tenant, channel, asked, wanted, held, pictures, deadline)
            yield {n: File(attachment=file, fetched=fetched.get(n)) for n, file in wanted.items()}
            if held.size:
                held.served()

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
        """The pictures and texts among these, by place. Pictures wait for room, texts do not: they are few bytes."""
        most = {n: _most(asked[n], file, sees) for n, file in wanted.items()}
        useful = [n for n in wanted if most[n] > 0][-MOST_FILES:]
        pictures = [n for n in useful if _pictured(asked[n], wanted[n])]
        texts = [n for n in useful if n not in pictures]
        seconds = deadline - time.monotonic()
        patience = Patience.of(seconds)
        found: dict[int, Media] = {}
        turned_away: list[NoPlace] = []

        async def one(n: int, place: Held, until: float) -> None:
            try:
                with suppress(MediaRefused):
                    found[n] = await self._fetching.fetch(
                        tenant, channel, asked[n], wanted[n], most=most[n], deadline=until
                    )
            except MediaBusy:
                return
            place.served()

        async def some(files: list[int], room: int = 0) -> None:
            with self._places.held(tenant.id, live=held.live) as place:
                try:
                    if room:
                        await held.take(room, patience=patience)
                    await place.take(len(files), patience=patience)
                except NoPlace as error:
                    if error.in_vain:
                        kept_out(tenant, asked[files[0]])
                    else:
                        turned_away.append(error)
                    return
                if room:
                    held.begun()
                place.begun()
                until = time.monotonic() + seconds * SHARE
                async with asyncio.TaskGroup() as group:
                    for n in files:
                        group.create_task(one(n, place, until), name="file")

        async with asyncio.TaskGroup() as group:
            if pictures:
                group.create_task(some(pictures, room=sum(most[n] for n in pictures)), name="pictures")
            if texts:
                group.create_task(some(texts), name="files")
        if turned_away:
            raise turned_away[0]
        held.keep(sum(len(found[n].data) for n in pictures if n in found))
        return found


def _most(message: Asked, file: Attachment, pictures: bool) -> int:
    """How many bytes a file may have to be of use; 0: it is of none."""
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
