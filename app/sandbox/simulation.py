"""The parts of a sandbox, wired together; what a test holds in its hand. It opens no port: that is server.py."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import msgspec

from app.sandbox import people
from app.sandbox.ansari_threads import Threads
from app.sandbox.assistant_calls import Assistant
from app.sandbox.faults import Faults
from app.sandbox.files import Files
from app.sandbox.ledger import Delivery, Ledger
from app.sandbox.limits import Meter
from app.sandbox.numbers import Number, check_loopback, now
from app.sandbox.statuses import Statuses
from app.sandbox.transcriptions import TranscriptionFace
from app.sandbox.translator_calls import Translator
from app.sandbox.webhooks import Courier, Shipment, shipment


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a person's messages: their provider ids, and each first POST (`copies` of them)."""

    ids: tuple[str, ...]
    deliveries: tuple[Delivery, ...]

    @property
    def status(self) -> int | None:
        return self.deliveries[0].status

    @property
    def ack_ms(self) -> float:
        return self.deliveries[0].ack_ms


class Occurrences:
    """How often each thing was seen."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, int] = defaultdict(int)

    def add(self, key: Hashable) -> int:
        self._counts[key] += 1
        return self._counts[key]

    def clear(self) -> None:
        self._counts.clear()


class Sandbox:
    """A simulated provider and assistant. Made inside a running loop; `url` is set once the port is open."""

    def __init__(self, *, seed: int = 0) -> None:
        self.url = ""
        self.numbers: dict[str, Number] = {}
        self.ledger = Ledger()
        self.faults = Faults(seed)
        self.meter = Meter()
        self.occurrences = Occurrences()
        self.assistant = Assistant(self.ledger.tally)
        self.threads = Threads()
        self.translator = Translator()
        self.files = Files()
        self.transcriptions = TranscriptionFace(self.faults, self.ledger.tally)
        self.courier = Courier(self.ledger)
        self.statuses = Statuses(self.courier, self.faults)

    @property
    def graph_url(self) -> str:
        """A channel's `base_url`."""
        return f"{self.url}/graph/v23.0"

    @property
    def assistant_url(self) -> str:
        """An Anthropic assistant's `base_url`."""
        return f"{self.url}/anthropic"

    @property
    def ansari_url(self) -> str:
        """An Ansari backend's `base_url`."""
        return f"{self.url}/ansari"

    @property
    def translator_url(self) -> str:
        """LibreTranslate's `base_url`."""
        return f"{self.url}/libretranslate"

    @property
    def transcription_url(self) -> str:
        """The `base_url` of those who write down voice messages."""
        return f"{self.url}/openai/v1"

    @property
    def chat_url(self) -> str:
        """The `base_url` of an assistant that is asked by chat completions."""
        return f"{self.url}/openai/v1"

    def register(self, number: Number) -> None:
        """Play this number from now on, in place of what had its id. Raises NotLoopback."""
        for url in (number.webhook_url, *number.status_urls):
            check_loopback(url)
        self.numbers[number.phone_number_id] = number

    async def say(self, *spoken: people.Spoken, copies: int = 1, url: str | None = None) -> Said:
        """People's messages to one number, in one webhook, posted `copies` times at once.

        `url` sends them to another process of the same endpoint. Raises KeyError for a number not registered,
        ValueError for messages that cannot be built, NotLoopback.
        """
        addresses = {each.phone_number_id for each in spoken}
        if len(addresses) != 1:
            raise ValueError("one webhook is for one number")
        number = self.numbers[addresses.pop()]
        body, ids = people.webhook(number, spoken, self.files.digest)
        for each in ids:
            self.ledger.said(number.phone_number_id, each)
            self.meter.inbound(number.phone_number_id, now())
        if url is not None:
            check_loopback(url)
        parcel = shipment(number, body, kind="inbound", ids=ids, url=url)
        return Said(ids=ids, deliveries=tuple(await self.courier.post_all([parcel] * copies)))

    async def post(self, parcel: Shipment) -> Delivery:
        """Post any bytes as a signed webhook; the ids in it become known, if it can be read. Raises NotLoopback."""
        for url in (parcel.url, *parcel.others):
            check_loopback(url)
        for address, message_id in _inbound_ids(parcel.body):
            self.ledger.said(address, message_id)
        return await self.courier.post(parcel)

    async def reset(self) -> None:
        """Forget traffic, faults and limits; keep the numbers."""
        self.statuses.clear()
        await self.courier.forget()
        self.ledger.clear()
        self.faults.clear()
        self.meter = Meter()
        self.occurrences.clear()
        self.assistant.clear()
        self.threads.clear()
        self.translator.clear()
        self.files.clear()
        self.transcriptions.calls.clear()

    async def close(self) -> None:
        self.statuses.clear()
        self.threads.clear()
        await self.courier.close()


class _Message(msgspec.Struct, frozen=True):
    id: str = ""


class _Metadata(msgspec.Struct, frozen=True):
    phone_number_id: str


class _Value(msgspec.Struct, frozen=True):
    metadata: _Metadata | None = None
    messages: list[_Message] = []


class _Change(msgspec.Struct, frozen=True):
    value: _Value


class _Entry(msgspec.Struct, frozen=True):
    changes: list[_Change]


class _Envelope(msgspec.Struct, frozen=True):
    entry: list[_Entry]


def _inbound_ids(body: bytes) -> Sequence[tuple[str, str]]:
    try:
        read = msgspec.json.decode(body, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()  # a broken webhook is a thing to test with
    return [
        (change.value.metadata.phone_number_id, message.id)
        for entry in read.entry
        for change in entry.changes
        if change.value.metadata is not None
        for message in change.value.messages
    ]
