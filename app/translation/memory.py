"""The translation memory: asks it first, then the translator, each text once at a time, and remembers what came.

It lies in PostgreSQL, per tenant, for all workers. What is under way is shared within a process, and so is what PostgreSQL
did not take, until it does. It decides no deadline.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import httpx
import psycopg
import structlog
from msgspec import Struct

from app import db, metrics, tasks
from app.batches import Batches
from app.crashpoints import crashpoint
from app.db import Pool
from app.errors import DatabaseUnavailable, TranslationError, TranslatorBusy, TranslatorRefused
from app.store import translations
from app.store.translations import Kept, Key
from app.translation import Translated, Translator
from app.translation.gate import Place
from app.unkept import Unkept

log = structlog.get_logger(__name__)


class Wanted(Struct, frozen=True, kw_only=True):
    """A text that a tenant wants translated. `seconds`: for the translator. `place`: where its call is made."""

    tenant_id: UUID
    translator: Translator
    text: str
    source: str
    target: str
    seconds: float
    place: Place


class Memory:
    """One for a process. What it is asked for at one instant is one statement, and so is what it has to remember."""

    def __init__(
        self, pool: Pool, client: httpx.AsyncClient, *, patience: float, late: Callable[[], None] = lambda: None
    ) -> None:
        """`patience`, `late`: of one statement, as in `Batches`."""

        async def recall(keys: Sequence[Key]) -> list[str | None]:
            async with db.connection(pool, reads=True) as conn:
                return await translations.recall(conn, keys)

        async def keep(rows: Sequence[Kept]) -> list[None]:
            async with db.connection(pool) as conn:
                return await translations.keep(conn, rows)

        self._client = client
        self._recall = Batches("recall", recall, patience=patience, late=late)
        self._keep = Batches("translations", keep, patience=patience, late=late, weigh=lambda row: len(row.body))
        self._flights: dict[Key, asyncio.Task[Translated]] = {}
        self._unkept: Unkept[Key] = Unkept()
        self._writing: set[Key] = set()
        self._writers: set[asyncio.Task[None]] = set()

    async def translate(self, wanted: Wanted, *, deadline: float) -> Translated:
        """The translation, remembered or made. Who leaves leaves the call alone: what comes of it is remembered.

        Its tokens are told to the one whose call it is: who joined it is given the text.

        After `deadline` (monotonic) nothing is asked of a translator any more.

        Raises:
            TranslationError: it could not be made.
            DatabaseUnavailable: nobody knows whether it is remembered; no translator was asked.
        """
        try:
            key = translations.key(
                wanted.tenant_id, wanted.text, wanted.source, wanted.target, wanted.translator.engine
            )
        except UnicodeEncodeError:
            raise TranslatorRefused("a text with lone surrogates") from None
        while True:
            flight = self._flights.get(key)
            ours = flight is None
            if flight is None:
                flight = self._begin(key, wanted, deadline)
            await asyncio.wait({flight})  # which, unlike awaiting it, does not cancel it with us
            if flight.cancelled():
                raise TranslatorBusy("the worker is stopping")
            try:
                translated = flight.result()
            except TranslatorBusy:
                if ours:  # else it was another's deadline that it ran into: ours may be later
                    raise
            else:
                return translated if ours else Translated(text=translated.text)

    async def aclose(self) -> None:
        """End what is under way."""
        await tasks.end(*self._flights.values(), *self._writers)

    def _begin(self, key: Key, wanted: Wanted, deadline: float) -> asyncio.Task[Translated]:
        flight = asyncio.create_task(self._fly(key, wanted, deadline), name="translate")
        self._flights[key] = flight

        def landed(_: asyncio.Task[Translated]) -> None:
            del self._flights[key]
            if not flight.cancelled():
                flight.exception()  # whoever began it may have left; then nobody else retrieves this

        flight.add_done_callback(landed)
        return flight

    async def _fly(self, key: Key, wanted: Wanted, deadline: float) -> Translated:
        if left := [key for key, _ in self._unkept.all() if key not in self._writing]:
            self._write(left)
        unkept = self._unkept.get(key)
        remembered = await self._recall.submit(key) if unkept is None else unkept.decode()
        if remembered is not None:
            metrics.translation("remembered")
            return Translated(text=remembered)
        try:
            translated = await self._made(wanted, deadline)
        except TranslationError:
            metrics.translation("failed")
            raise
        metrics.translation("made")
        self._unkept.hold(key, translated.text.encode())
        # A database that hangs makes no translation late: it is waited for for half of the time that is left.
        await asyncio.wait({self._write([key])}, timeout=max(0.0, (deadline - time.monotonic()) / 2))
        return translated

    def _write(self, keys: Sequence[Key]) -> asyncio.Task[None]:
        """What is at hand of these is written one after the other, beside all else, until the database does not take one."""
        self._writing.update(keys)
        writer = asyncio.create_task(self._written(keys), name="translations")
        self._writers.add(writer)

        def ended(_: asyncio.Task[None]) -> None:
            self._writers.discard(writer)
            self._writing.difference_update(keys)

        writer.add_done_callback(ended)
        return writer

    async def _written(self, keys: Sequence[Key]) -> None:
        for key in keys:
            if (body := self._unkept.get(key)) is None:
                continue
            try:
                await self._keep.submit(Kept(key, body.decode()))
                crashpoint("answer.translated")
            except DatabaseUnavailable as error:  # the turn has it all the same
                log.warning("a translation is not remembered yet", error=error)
                return
            except psycopg.Error as error:  # nor will it ever be
                log.warning("a translation is not remembered", error=error)
            self._unkept.drop(key)

    async def _made(self, wanted: Wanted, deadline: float) -> Translated:
        until = time.monotonic() + wanted.seconds
        try:
            async with asyncio.timeout(wanted.seconds), wanted.place(deadline):
                return await wanted.translator.translate(
                    self._client, wanted.text, source=wanted.source, target=wanted.target, deadline=until
                )
        except TimeoutError:
            raise TranslatorBusy(f"no translation within {wanted.seconds:g} s") from None
