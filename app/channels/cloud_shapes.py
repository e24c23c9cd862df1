"""The Cloud API's webhook as Structs: only what we read of it, as loosely as its fixtures turned out to need.

Shapes alone: no meaning, no decoding. Source: the webhook examples of facebook/openapi (v23.0) and Meta's status
reference; docs/wire-cloud.md gathers them.
"""

from msgspec import Raw, Struct, field

# --- the envelope, loose: a single malformed item must not take its neighbours along ---------------------------------


class Profile(Struct):
    name: str = ""


class Contact(Struct):
    wa_id: str | None = None
    user_id: str | None = None
    profile: Profile | None = None


class Metadata(Struct):
    phone_number_id: str


class Value(Struct):
    metadata: Metadata
    contacts: list[Contact] = []
    messages: list[Raw] = []
    message_echoes: list[Raw] = []
    statuses: list[Raw] = []
    errors: list[Raw] = []


class Change(Struct):
    value: Value


class Entry(Struct):
    changes: list[Change]


class Envelope(Struct):
    entry: list[Entry]


class LooseChange(Struct):
    value: Raw


class LooseEntry(Struct):
    changes: list[Raw]


class LooseEnvelope(Struct):
    entry: list[Raw]


# --- one message ----------------------------------------------------------------------------------------------------


class Text(Struct):
    body: str


class Media(Struct):
    caption: str | None = None
    filename: str | None = None


class Location(Struct):
    latitude: float
    longitude: float
    name: str | None = None
    address: str | None = None


class Choice(Struct):
    title: str = ""


class Interactive(Struct):
    button_reply: Choice | None = None
    list_reply: Choice | None = None


class Button(Struct):
    text: str = ""


class Reaction(Struct):
    message_id: str
    emoji: str | None = None


class Original(Struct):
    original_message_id: str


class Name(Struct):
    formatted_name: str = ""


class Phone(Struct):
    phone: str | None = None
    wa_id: str | None = None


class Email(Struct):
    email: str | None = None


class Organisation(Struct):
    company: str | None = None


class Card(Struct):
    """What is not a name is read by itself: a card is not worth less for a number that makes no sense."""

    name: Name | None = None
    phones: Raw = Raw(b"null")
    emails: Raw = Raw(b"null")
    org: Raw = Raw(b"null")


class System(Struct):
    body: str = ""


class Message(Struct):
    id: str
    timestamp: str | int
    type: str
    sender: str | None = field(name="from", default=None)
    sender_user_id: str | None = field(name="from_user_id", default=None)
    recipient: str | None = field(name="to", default=None)
    recipient_user_id: str | None = field(name="to_user_id", default=None)
    text: Text | None = None
    image: Media | None = None
    video: Media | None = None
    document: Media | None = None
    location: Location | None = None
    interactive: Interactive | None = None
    button: Button | None = None
    reaction: Reaction | None = None
    contacts: list[Card] | None = None
    edit: "Edit | None" = None
    revoke: Original | None = None
    system: System | None = None


class Edited(Struct):
    """The new content of an edited message: a message without id and time."""

    text: Text | None = None
    image: Media | None = None
    video: Media | None = None
    document: Media | None = None


class Edit(Original):
    message: Edited | None = None


# --- the file that came with a message, read apart: what cannot be read of it costs the message nothing ----------------


class Attached(Struct):
    id: str | int
    mime_type: str | None = None
    sha256: str | None = None
    filename: str | None = None
    caption: str | None = None


class Carrying(Struct):
    image: Attached | None = None
    audio: Attached | None = None
    video: Attached | None = None
    document: Attached | None = None
    sticker: Attached | None = None


class NewContent(Struct):
    message: Carrying | None = None


class Carrier(Carrying):
    edit: NewContent | None = None


class Where(Struct):
    """`GET /{media id}`: where the file lies for the next five minutes."""

    url: str
    mime_type: str | None = None
    sha256: str | None = None
    file_size: int | str | None = None  # a number in all that is seen, a string in Meta's own example


# --- statuses ---------------------------------------------------------------------------------------------------------


class Error(Struct):
    code: int = 0
    title: str = ""


class Status(Struct):
    id: str
    status: str
    timestamp: str | int
    biz_opaque_callback_data: str | None = None
    errors: list[Error] = []
