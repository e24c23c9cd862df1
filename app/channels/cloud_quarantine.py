"""Puts what was cut out of a webhook of the Cloud API back into one, as small as it can be, so that it is read again.

Pure. What stood beside it is gone: of a person known by two addresses, the one that the item itself does not name.
"""

import msgspec

from app.errors import Unreadable

# The list of a change's value that an item of each kind stands in.
_LISTS = {"message": "messages", "echo": "message_echoes", "status": "statuses", "error": "errors"}


def enveloped(raw: bytes, part: str | None, address: str | None) -> bytes:
    """The body of a webhook with this item alone; `part` and `address` as its `Stray` had them.

    Raises:
        Unreadable: an older build kept it, without saying where it stood.
    """
    if part == "body":
        return raw
    if part == "entry":
        return b'{"entry":[%b]}' % raw
    if part == "change":
        return b'{"entry":[{"changes":[%b]}]}' % raw
    if part is None or address is None:
        raise Unreadable("where it stood in its webhook was not kept")
    if part in _LISTS:
        part, raw = _LISTS[part], b"[%b]" % raw
    elif part not in _LISTS.values():
        raise Unreadable("it stood in a part of a webhook that this build does not know")
    words = (msgspec.json.encode(address), part.encode(), raw)
    return b'{"entry":[{"changes":[{"value":{"metadata":{"phone_number_id":%b},"%b":%b}}]}]}' % words
