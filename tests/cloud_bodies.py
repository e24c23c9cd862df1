"""Webhook bodies of the Cloud API, built from the shapes of docs/wire-cloud.md. Imports nothing of the app."""

import hashlib
import hmac
import itertools
import json
from typing import Any

Json = dict[str, Any]

PERSON = "15550002222"
AT = "1780000000"
_ids = itertools.count(1)


def fresh(prefix: str = "wamid.") -> str:
    """A provider id that no other item of this run has."""
    return f"{prefix}{next(_ids):08d}"


def encode(body: Any) -> bytes:
    """As Meta writes it: all but ASCII escaped."""
    return json.dumps(body, separators=(",", ":")).encode()


def signature(body: bytes, secret: str) -> str:
    """What Meta puts into X-Hub-Signature-256."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def message(kind: str = "text", /, **more: Any) -> Json:
    """An inbound message; `more` replaces keys, and takes one away where it is None."""
    content = {kind: CONTENTS[kind]} if kind in CONTENTS else {}
    whole = {"from": PERSON, "id": fresh(), "timestamp": AT, "type": kind, **content, **more}
    return {key: value for key, value in whole.items() if value is not None}


def text(body: str = "hi", /, **more: Any) -> Json:
    return message(text={"body": body}, **more)


def status(of: str = "wamid.OUT", said: str = "delivered", /, **more: Any) -> Json:
    whole = {"id": of, "status": said, "timestamp": AT, "recipient_id": PERSON, **more}
    return {key: value for key, value in whole.items() if value is not None}


def echo(**more: Any) -> Json:
    """What the business wrote from its own phone."""
    return {"from": "15550001111", "to": PERSON, "id": fresh(), "timestamp": AT, "type": "text", **more}


def value(address: str = "1001", /, **lists: Any) -> Json:
    """A change's value: `messages`, `statuses`, `errors`, `message_echoes`, `contacts` as given."""
    metadata = {"display_phone_number": "15550001111", "phone_number_id": address}
    return {"messaging_product": "whatsapp", "metadata": metadata, **lists}


def envelope(*values: Any, field: str = "messages") -> Json:
    """One entry with a change for each value."""
    changes = [{"field": field, "value": each} for each in values]
    return {"object": "whatsapp_business_account", "entry": [{"id": "7001", "changes": changes}]}


def webhook(*messages: Json, address: str = "1001", **lists: Any) -> bytes:
    """The bytes of a webhook with these messages."""
    if messages:
        lists["messages"] = list(messages)
    return encode(envelope(value(address, **lists)))


# What stands under the key that a message's type names.
CONTENTS: dict[str, Any] = {
    "text": {"body": "hi"},
    "image": {"id": "77", "mime_type": "image/jpeg", "sha256": "YQ==", "caption": "a caption"},
    "audio": {"id": "78", "mime_type": "audio/ogg; codecs=opus", "sha256": "YQ==", "voice": True},
    "video": {"id": "79", "mime_type": "video/mp4", "caption": "a film"},
    "document": {"id": "80", "mime_type": "application/pdf", "filename": "letter.pdf"},
    "sticker": {"id": "81", "mime_type": "image/webp", "animated": False},
    "location": {"latitude": 21.4225, "longitude": 39.8262, "name": "Kaaba", "address": "Makkah"},
    "contacts": [{"name": {"formatted_name": "Ana Bey"}, "phones": [{"phone": "+1 5"}]}, {"name": {"first_name": "x"}}],
    "interactive": {"type": "button_reply", "button_reply": {"id": "yes", "title": "Yes"}},
    "button": {"payload": "p", "text": "Tapped"},
    "reaction": {"message_id": "wamid.OUT", "emoji": "👍"},
    "edit": {"original_message_id": "wamid.A", "message": {"type": "text", "text": {"body": "better"}}},
    "revoke": {"original_message_id": "wamid.A"},
    "unsupported": {"type": "poll"},
    "system": {"type": "user_changed_number", "body": "a new number", "wa_id": "15550003333"},
}
