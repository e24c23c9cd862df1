"""Voice messages, for the turns of this worker: each is fetched, written down, and its words are kept as the message's own.
That one has none is kept as a step of its turn.

However many a turn has, a few at a time. What a turn makes of the words, workers/questions.py knows.
"""

import asyncio
import time
from hashlib import sha256

import httpx
import msgspec
import structlog
from msgspec import Struct

from app import media, metrics
from app.alerts import alert
from app.assistants import Notes
from app.channels import Attachment
from app.crashpoints import crashpoint
from app.directory import Channel, Tenant
from app.errors import AssistantBusy, AssistantError, DatabaseUnavailable, MediaBusy, MediaRefused
from app.store.turns import Asked, Opening
from app.transcription import transcribe
from workers.breakers import Breakers
from workers.commits import Commits
from workers.fetching import SHARE, Fetching, kept_out
from workers.room import Held, NoPlace, Patience, Room

log = structlog.get_logger(__name__)

# So many voice messages a worker hears at once, of one tenant at most so many, and of one turn.
AT_ONCE, AT_ONCE_OF_A_TENANT, AT_ONCE_OF_A_TURN = 64, 16, 3
# Bytes of those that a turn hears at once, all together; each has its even part.
MOST_BYTES = 12 * 1024 * 1024
# Bytes of what may come and has come of them, until it is written down: of one tenant, for four as large as may be and many
# that are not; and of all.
MOST_IN_HAND_OF_A_TENANT = 4 * MOST_BYTES + 8 * 1024 * 1024
MOST_IN_HAND = 4 * MOST_IN_HAND_OF_A_TENANT
# After so many in a row that nobody could bring, or write down, those behind them in the turn are not tried.
MOST_MISSED = 3


class _Heard(Struct, kw_only=True):
    """How far a turn's have come."""

    missed: int = 0
    """In a row."""
    turned_away: NoPlace | None = None
    unkept: DatabaseUnavailable | None = None

    @property
    def over(self) -> bool:
        """Whether no more of them are tried."""
        return self.missed >= MOST_MISSED or self.turned_away is not None or self.unkept is not None


class Hearing:
    """`hear` a turn's messages."""

    def __init__(self, commits: Commits, fetching: Fetching, client: httpx.AsyncClient, breakers: Breakers) -> None:
        """`client`: for those who write down what was said."""
        self._commits = commits
        self._fetching = fetching
        self._client = client
        self._breakers = breakers
        self._places = Room(AT_ONCE, AT_ONCE_OF_A_TENANT)
        self._bytes = Room(MOST_IN_HAND, MOST_IN_HAND_OF_A_TENANT)

    async def hear(
        self, tenant: Tenant, channel: Channel, opening: Opening, notes: Notes, *, live: bool, deadline: float
    ) -> None:
        """In `opening.asked` a voice message has its words from then on, as in every later opening; or `opening.memo` has that
        there are none in it. Where nobody brings them it has none for now.

        Each has half of what is left until `deadline` (monotonic), from when it has its place. `notes`: of this turn. `live`:
        see `Places.question`.

        Raises:
            DatabaseUnavailable: nobody knows whether what was heard of one is kept.
            NoPlace: others were heard for as long as the answer has, and for `PATIENCE`. Never in vain: whatever waited in
                vain is not heard. What was heard before is kept.
        """
        if tenant.transcription is None:
            return
        wanted = {
            n: file
            for n, message in enumerate(opening.asked)
            if message.kind == "audio" and not message.body and not message.revoked
            if (file := self._fetching.attachment(channel, message)) is not None and _wordless(file) not in opening.memo
        }
        heard, left, seconds = _Heard(), iter(wanted.items()), deadline - time.monotonic()
        at_once = min(len(wanted), AT_ONCE_OF_A_TURN)

        async def some() -> None:
            for n, file in left:
                words = await self._one(
                    tenant,
                    channel,
                    opening.asked[n],
                    file,
                    heard,
                    live=live,
                    seconds=seconds,
                    most=MOST_BYTES // at_once,
                )
                try:
                    if words is not None:
                        await self._keep(tenant, opening, n, file, words, notes)
                except DatabaseUnavailable as error:
                    heard.unkept = error
                if heard.over:
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(some(), name="voice messages")
        if heard.unkept is not None:
            raise heard.unkept
        if heard.turned_away is not None and not heard.turned_away.in_vain:
            raise heard.turned_away

    async def _one(
        self,
        tenant: Tenant,
        channel: Channel,
        message: Asked,
        file: Attachment,
        heard: _Heard,
        *,
        live: bool,
        seconds: float,
        most: int,
    ) -> str | None:
        """Its words, "" where there are none in it; None: nobody has brought it, or heard it."""
        patience = Patience.of(seconds)
        # Places before bytes, everywhere: so none who holds bytes waits for one who waits for them.
        with self._places.held(tenant.id, live=live) as place, self._bytes.held(tenant.id, live=live) as room:
            try:
                await place.take(patience=patience)
                await room.take(most, patience=patience)
                for held in (place, room):
                    held.begun()
                until = time.monotonic() + seconds * SHARE
                words = await self._words(tenant, channel, message, file, room, most, until)
            except NoPlace as error:
                heard.turned_away = error
                if error.in_vain:
                    kept_out(tenant, message)
                return None
            except (MediaBusy, AssistantBusy):
                heard.missed += 1
                return None
            except AssistantError:
                heard.missed += 1
                words = None
            except MediaRefused:
                words = None
            else:
                heard.missed = 0
            for held in (place, room):
                held.served()
        return words

    async def _keep(self, tenant: Tenant, opening: Opening, n: int, file: Attachment, words: str, notes: Notes) -> None:
        """Commit what was heard before anything rests on it. Under no deadline of ours: it is paid for."""
        if words:
            message = opening.asked[n]
            await self._commits.transcript(tenant.id, message.id, words)
            opening.asked[n] = msgspec.structs.replace(message, body=words, blank=False)
        else:
            await notes.keep(_wordless(file), True, lasting=True)
            opening.memo[_wordless(file)] = True
        crashpoint("question.heard")

    async def _words(
        self, tenant: Tenant, channel: Channel, message: Asked, file: Attachment, room: Held, most: int, until: float
    ) -> str:
        """Fetched, then written down: of the bytes that it might have had, the others are free as soon as it is there.

        Raises:
            MediaError, AssistantError: it was told of.
        """
        settings = tenant.transcription
        assert settings is not None
        sound = await self._fetching.fetch(tenant, channel, message, file, most=most, deadline=until)
        room.keep(len(sound.data))
        if sound.media_type not in media.SOUNDS:
            return ""
        try:
            words = await transcribe(
                self._client,
                settings,
                sound,
                deadline=until,
                asking=lambda: self._breakers.now(tenant, "transcriber"),
            )
        except AssistantError as error:
            alert(
                log.error,
                "transcription_failed",
                "voice message not written down",
                tenant=tenant.slug,
                error=error,
                correlation=message.correlation,
            )
            raise
        if words:
            metrics.file("transcribed")
        return words


def _wordless(file: Attachment) -> str:
    """The step of a file that was heard, or looked at, and has no words: as long as it is this one, nobody hears any."""
    return f"wordless {sha256(file.id.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
