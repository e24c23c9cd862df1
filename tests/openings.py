"""Opened lanes as `workers` get them, without a database: each with what a test says of it, and something harmless besides."""

from typing import Any
from uuid import uuid4

from app.messages import Identity
from app.store.turns import Asked, Opening
from tests.ground import NOW


def asked(**said: Any) -> Asked:
    """A message that is asked; a text, unless it says otherwise."""
    fields: dict[str, Any] = {
        "id": uuid4(),
        "kind": "text",
        "body": "",
        "sent_at": NOW,
        "correlation": "c",
        "ack_ms": 1.0,
        "waited": 0.0,
        "blank": not said.get("body"),
        "replayed": False,
        "revoked": False,
    }
    return Asked(**{**fields, **said})


def opening(*asked: Asked, **said: Any) -> Opening:
    """A lane with these messages to answer, of which nothing was said before."""
    fields: dict[str, Any] = {
        "version": 0,
        "done_seq": 0,
        "kind": "answer",
        "correlation": "c",
        "paused": False,
        "replied": 0,
        "chunks": [],
        "turn": None,
        "asked": list(asked),
        "said": [],
        "memo": {},
        "to": [Identity("wa_id", "15550002222")],
        "now": NOW,
    }
    return Opening(**{**fields, **said})
