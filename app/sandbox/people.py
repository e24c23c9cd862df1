"""What people send: inbound messages and the webhook around them, in the shapes of WIRE.md 1.1.

Pure building of bytes; posting is the courier's.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from app.sandbox.numbers import Number, new_wamid, now, plain
from app.sandbox.webhooks import envelope

Kind = Literal[
    "text", "image", "audio", "video", "document", "sticker", "location",
    "reaction", "unsupported", "interactive", "list_reply", "button",
    "edit", "revoke", "system", "contacts", "echo",
]  # fmt: skip
Json = dict[str, object]

# The files that there are without anybody's doing, by the kind of message that brings one.
FILES = {
    "image": "7700000000000001",
    "audio": "7800000000000001",
    "video": "7900000000000001",
    "document": "8000000000000001",
    "sticker": "8100000000000001",
}


class Spoken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"sender": "from"}):
    """One thing that a person does in WhatsApp.

    `text` is the body, a caption, an emoji, a button's title, an edit's new text. `target` is the message that a
    reaction, edit or revoke is about, or the new number of a `system` message. `reply_to` quotes a message. Without
    `sender` the person is known by `user_id` (BSUID) alone. `extra` is laid over the message as it is, for shapes
    that have no field here. `file` is the id of a file of the sandbox's (PUT /control/files), `media_type` and `filename`
    what the message says of it. `id` and `timestamp` (unix seconds) are made unless given.
    """

    phone_number_id: str
    sender: str | None = None
    kind: Kind = "text"
    text: str = ""
    name: str | None = None
    username: str | None = None
    user_id: str | None = None
    parent_user_id: str | None = None
    id: str | None = None
    timestamp: int | None = None
    reply_to: str | None = None
    target: str | None = None
    latitude: float = 21.4225
    longitude: float = 39.8262
    file: str | None = None
    media_type: str | None = None
    filename: str | None = None
    extra: dict[str, object] = {}


def webhook(
    number: Number, spoken: Sequence[Spoken], digest: Callable[[str], str | None]
) -> tuple[bytes, tuple[str, ...]]:
    """One webhook's bytes with these messages to `number`, and their ids in order. Raises ValueError.

    `digest`: the SHA-256 of the file of an id, in base64; None: there is no such file.
    """
    ids: list[str] = []
    parts: list[tuple[Number, str, dict[str, object]]] = []
    messages: list[Json] = []
    contacts: dict[object, Json] = {}
    for each in spoken:
        built = message(each, number, digest)
        ids.append(str(built["id"]))
        if each.kind == "echo":
            parts.append((number, "smb_message_echoes", {"message_echoes": [built]}))
            continue
        messages.append(built)
        if each.kind != "system":  # Meta sends no contacts with it
            contacts[each.sender or each.user_id] = _contact(each)
    if messages:
        value: dict[str, object] = {"contacts": list(contacts.values())} if contacts else {}
        parts.insert(0, (number, "messages", value | {"messages": messages}))
    return envelope(parts), tuple(ids)


def message(spoken: Spoken, number: Number, digest: Callable[[str], str | None]) -> Json:
    """The item of `value.messages`. Raises ValueError if what its kind needs is missing."""
    if not spoken.sender and not spoken.user_id:
        raise ValueError("a message needs `from` or `user_id`")
    if spoken.kind in {"reaction", "edit", "revoke", "system"} and not spoken.target:
        raise ValueError(f"a message of kind {spoken.kind} needs `target`")
    stamp = spoken.timestamp if spoken.timestamp is not None else int(now())
    built: Json = {"id": spoken.id or new_wamid(), "timestamp": str(stamp)}
    if spoken.kind == "echo":
        built |= {"from": number.display_phone_number, "to": plain(spoken.sender or "")}
    elif spoken.sender:
        built["from"] = plain(spoken.sender)
    if spoken.user_id and spoken.kind != "echo":
        built["from_user_id"] = spoken.user_id
    if spoken.parent_user_id:
        built["from_parent_user_id"] = spoken.parent_user_id
    if spoken.reply_to:
        built["context"] = {"from": number.display_phone_number, "id": spoken.reply_to}
    body = _BODIES[spoken.kind](spoken)
    file = body.get(spoken.kind)
    if spoken.kind in FILES and isinstance(file, dict) and (sha256 := digest(file["id"])) is not None:
        file["sha256"] = sha256
    return built | body | spoken.extra


def _contact(spoken: Spoken) -> Json:
    contact: Json = {}
    profile = {"name": spoken.name, "username": spoken.username}
    if any(profile.values()):
        contact["profile"] = {key: value for key, value in profile.items() if value}
    if spoken.sender:
        contact["wa_id"] = plain(spoken.sender)
    if spoken.user_id:
        contact["user_id"] = spoken.user_id
    if spoken.parent_user_id:
        contact["parent_user_id"] = spoken.parent_user_id
    return contact


def _text(spoken: Spoken) -> Json:
    return {"type": "text", "text": {"body": spoken.text}}


def _file(spoken: Spoken, media_type: str) -> Json:
    return {"id": spoken.file or FILES[spoken.kind], "mime_type": spoken.media_type or media_type}


def _image(spoken: Spoken) -> Json:
    caption = {"caption": spoken.text} if spoken.text else {}
    return {"type": "image", "image": _file(spoken, "image/jpeg") | caption}


def _audio(spoken: Spoken) -> Json:
    return {"type": "audio", "audio": _file(spoken, "audio/ogg; codecs=opus") | {"voice": True}}


def _video(spoken: Spoken) -> Json:
    caption = {"caption": spoken.text} if spoken.text else {}
    return {"type": "video", "video": _file(spoken, "video/mp4") | caption}


def _document(spoken: Spoken) -> Json:
    caption = {"caption": spoken.text} if spoken.text else {}
    named = {"filename": spoken.filename or "letter.pdf"}
    return {"type": "document", "document": _file(spoken, "application/pdf") | named | caption}


def _sticker(spoken: Spoken) -> Json:
    return {"type": "sticker", "sticker": _file(spoken, "image/webp") | {"animated": False}}


def _location(spoken: Spoken) -> Json:
    place: Json = {"latitude": spoken.latitude, "longitude": spoken.longitude}
    return {"type": "location", "location": place | ({"name": spoken.text} if spoken.text else {})}


def _reaction(spoken: Spoken) -> Json:
    # An empty text takes the reaction back: then the emoji's key is absent.
    emoji = {"emoji": spoken.text} if spoken.text else {}
    return {"type": "reaction", "reaction": {"message_id": spoken.target} | emoji}


def _unsupported(spoken: Spoken) -> Json:
    error = {"code": 131051, "title": "Message type unknown", "message": "Message type unknown"}
    details = {"error_data": {"details": "Message type is currently not supported."}}
    return {"type": "unsupported", "errors": [error | details], "unsupported": {"type": spoken.text or "poll"}}


def _interactive(spoken: Spoken) -> Json:
    reply = {"id": spoken.text.casefold() or "yes", "title": spoken.text or "Yes"}
    return {"type": "interactive", "interactive": {"type": "button_reply", "button_reply": reply}}


def _list_reply(spoken: Spoken) -> Json:
    reply = {"id": spoken.text.casefold() or "row-1", "title": spoken.text or "First", "description": "A row"}
    return {"type": "interactive", "interactive": {"type": "list_reply", "list_reply": reply}}


def _button(spoken: Spoken) -> Json:
    return {"type": "button", "button": {"payload": spoken.text or "Yes", "text": spoken.text or "Yes"}}


def _edit(spoken: Spoken) -> Json:
    return {"type": "edit", "edit": {"original_message_id": spoken.target, "message": _text(spoken)}}


def _revoke(spoken: Spoken) -> Json:
    return {"type": "revoke", "revoke": {"original_message_id": spoken.target}}


def _system(spoken: Spoken) -> Json:
    body = f"User changed from {spoken.sender} to {spoken.target}"
    return {"type": "system", "system": {"type": "user_changed_number", "body": body, "wa_id": spoken.target}}


def _contacts(spoken: Spoken) -> Json:
    name = {"formatted_name": spoken.text or "Amal Haddad", "first_name": (spoken.text or "Amal").split()[0]}
    phone = {"phone": "+1 555 000 3333", "wa_id": "15550003333", "type": "CELL"}
    return {"type": "contacts", "contacts": [{"name": name, "phones": [phone]}]}


_BODIES: dict[str, Callable[[Spoken], Json]] = {
    "text": _text,
    "image": _image,
    "audio": _audio,
    "video": _video,
    "document": _document,
    "sticker": _sticker,
    "location": _location,
    "reaction": _reaction,
    "unsupported": _unsupported,
    "interactive": _interactive,
    "list_reply": _list_reply,
    "button": _button,
    "edit": _edit,
    "revoke": _revoke,
    "system": _system,
    "contacts": _contacts,
    "echo": _text,
}
