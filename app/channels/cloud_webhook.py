"""Reads the Cloud API's webhook bodies: every entry × change × (messages, echoes, statuses, errors) is an item.

Pure: bytes in, items out. What cannot be read becomes a `Stray`; its neighbours go on. `cloud_shapes.py` has the shapes.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import cast, get_args

import msgspec
from msgspec import Raw

from app.channels import Attachment
from app.channels import cloud_shapes as wire
from app.errors import Unreadable
from app.messages import KINDS, Direction, Identity, Item, Key, Message, Said, Status, Stray

# Meta signs no time, so an item from the future is a forgery or a broken clock; neither is answered by guess.
FUTURE = timedelta(minutes=5)
# Meta puts at most 1,000 updates into a webhook. A body of twice as many is kept whole, as one item: taken apart, it
# could not be stored before the deadline, however often it came.
MOST_ITEMS = 2_000
# Of a message with contact cards, so many are put into words, of each so many lines: the rest stays in `raw`.
MOST_CARDS = 20
MOST_LINES = 8
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Unreadable)

_envelope = msgspec.json.Decoder(wire.Envelope)
_loose_envelope = msgspec.json.Decoder(wire.LooseEnvelope)
_loose_entry = msgspec.json.Decoder(wire.LooseEntry)
_loose_change = msgspec.json.Decoder(wire.LooseChange)
_loose_value = msgspec.json.Decoder(dict[str, Raw])
_metadata = msgspec.json.Decoder(wire.Metadata)
_contact = msgspec.json.Decoder(wire.Contact)
_list = msgspec.json.Decoder(list[Raw] | None)
_message = msgspec.json.Decoder(wire.Message)
_status = msgspec.json.Decoder(wire.Status)
_phones = msgspec.json.Decoder(list[wire.Phone] | None)
_emails = msgspec.json.Decoder(list[wire.Email] | None)
_org = msgspec.json.Decoder(wire.Organisation | None)
_carrier = msgspec.json.Decoder(wire.Carrier)

_DIGITS = re.compile(r"[0-9]{1,12}")
_STATUSES = frozenset(get_args(Said))
# An escaped backslash, a pair, or half a pair, which JSON allows and no text can hold.
_ESCAPE = re.compile(
    rb"\\(?:\\|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2}))"
)


def items(body: bytes) -> list[Item]:
    """Every item of an authentic body, in order; one `Stray` for each part that cannot be read. Never raises."""
    try:
        envelope = _envelope.decode(body)
        groups = [[_of(change.value) for change in entry.changes] for entry in envelope.entry]
        # A part without a single item says something that we do not know: keep it, drop nothing without a trace.
        whole = bool(groups) and all(groups) and all(all(group) for group in groups)
    except UNREADABLE:
        whole = False
    if whole:
        found = [item for group in groups for part in group for item in part]
    else:
        found = list(islice(_loosely(body), MOST_ITEMS + 1))
    return found if len(found) <= MOST_ITEMS else [Stray(reason=f"more than {MOST_ITEMS} items", raw=body, part="body")]


def _loosely(body: bytes) -> Iterator[Item]:
    """The same, level by level: what makes no sense is set aside as small as it can be cut out."""
    try:
        envelope = _loose_envelope.decode(body)
    except UNREADABLE as error:
        mended = _ESCAPE.sub(lambda half: rb"\ufffd" if half[1] else half[0], body)
        if mended != body:  # half an emoji in one person's name must not hold up all the others
            for item in items(mended):
                whole = isinstance(item, Stray) and item.raw == mended
                yield msgspec.structs.replace(item, raw=body) if whole else item
        else:
            yield _stray("body", body, error)
        return
    if not envelope.entry:
        yield Stray(reason="no item in the body", raw=body, part="body")
    for entry_raw in envelope.entry:
        try:
            entry = _loose_entry.decode(entry_raw)
        except UNREADABLE as error:
            yield _stray("entry", bytes(entry_raw), error)
            continue
        if not entry.changes:
            yield Stray(reason="entry without a change", raw=bytes(entry_raw), part="entry")
        for change_raw in entry.changes:
            try:
                change = _loose_change.decode(change_raw)
                value, unread = _sifted(change.value)
                found = [*_of(value), *unread]
            except UNREADABLE as error:
                yield _stray("change", bytes(change_raw), error)
                continue
            yield from found or [Stray(reason="change without an item", raw=bytes(change_raw), part="change")]


def _sifted(raw: Raw) -> tuple[wire.Value, list[Item]]:
    """What of a value can be read, and what cannot. A contact that cannot is let go: it adds no more than a name."""
    parts = _loose_value.decode(raw)
    metadata = _metadata.decode(parts.get("metadata", b"null"))
    lists: dict[str, list[Raw]] = {}
    unread: list[Item] = []
    for name in ("messages", "message_echoes", "statuses", "errors"):
        try:
            lists[name] = _list.decode(parts.get(name, b"null")) or []
        except UNREADABLE as error:
            unread.append(_stray(name, bytes(parts[name]), error, metadata.phone_number_id))
    contacts = []
    with suppress(*UNREADABLE):
        for contact in _list.decode(parts.get("contacts", b"null")) or []:
            with suppress(*UNREADABLE):
                contacts.append(_contact.decode(contact))
    return wire.Value(metadata=metadata, contacts=contacts, **lists), unread


def _of(value: wire.Value) -> list[Item]:
    address = value.metadata.phone_number_id
    if max(map(len, (value.messages, value.message_echoes, value.statuses, value.errors))) > MOST_ITEMS:
        raise Unreadable(f"more than {MOST_ITEMS} items")
    return [
        *(_read("message", raw, address, lambda raw: _to_message(raw, value, "in")) for raw in value.messages),
        *(_read("echo", raw, address, lambda raw: _to_message(raw, value, "echo")) for raw in value.message_echoes),
        *(_read("status", raw, address, lambda raw: _to_status(raw, value)) for raw in value.statuses),
        *(
            Stray(reason="the provider reports an error", raw=bytes(raw), address=address, part="error")
            for raw in value.errors
        ),
    ]


def _read(what: str, raw: Raw, address: str, read: Callable[[bytes], Item]) -> Item:
    try:
        bytes(raw).decode()  # msgspec skips what nobody asks for without a look; PostgreSQL would refuse it
        return read(bytes(raw))
    except UNREADABLE as error:
        return _stray(what, bytes(raw), error, address)


def _stray(part: str, raw: bytes, error: Exception, address: str | None = None) -> Stray:
    # msgspec names the place and the type that it expected, and quotes nothing; the other two may quote bytes.
    said = str(error) if isinstance(error, msgspec.ValidationError | Unreadable) else type(error).__name__
    return Stray(reason=f"{part}: {said}"[:300], raw=raw, address=address, part=part)


def _to_message(raw: bytes, value: wire.Value, direction: Direction) -> Message:
    m = _message.decode(raw)
    if m.type not in KINDS:
        raise Unreadable("unknown type")
    if not m.id:
        raise Unreadable("empty id")
    identities, name = _person(m, value, direction)
    refers_to, body = _content(m)
    return Message(
        address=value.metadata.phone_number_id,
        provider_id=m.id,
        direction=direction,
        kind=m.type,
        sent_at=_time(m.timestamp),
        identities=identities,
        name=name,
        body=body.replace("\0", "\N{REPLACEMENT CHARACTER}"),  # PostgreSQL's text knows no U+0000; `raw` keeps it
        raw=raw,
        refers_to=refers_to,
    )


def _person(m: wire.Message, value: wire.Value, direction: Direction) -> tuple[tuple[Identity, ...], str]:
    """Who is at the other end: the phone number where there is one, the business-scoped id besides or alone."""
    echo = direction == "echo"
    wa_id, bsuid = (m.recipient, m.recipient_user_id) if echo else (m.sender, m.sender_user_id)
    name = ""
    for contact in value.contacts:
        if (wa_id and contact.wa_id == wa_id) or (bsuid and contact.user_id == bsuid):
            wa_id, bsuid = wa_id or contact.wa_id, bsuid or contact.user_id
            name = contact.profile.name if contact.profile else ""
            break
    found = [Identity("wa_id", wa_id)] if wa_id else []
    found += [Identity("bsuid", bsuid)] if bsuid else []
    if not found:
        raise Unreadable("nobody wrote it: neither a number nor a user id")
    if any(len(identity.value) > 256 or "\0" in identity.value for identity in found):
        raise Unreadable("an address of over 256 characters, or with U+0000")
    return tuple(found), name[:200].replace("\0", "")


def _content(m: wire.Message) -> tuple[str | None, str]:
    """What it refers to (a provider id), and what a person would read."""
    if m.type == "text":
        if m.text is None:
            raise Unreadable("a text without text")
        return None, m.text.body
    if m.type == "location":
        if m.location is None:
            raise Unreadable("a location without a place")
        return None, _place(m.location)
    if m.type == "reaction":
        if m.reaction is None:
            raise Unreadable("a reaction to nothing")
        return m.reaction.message_id, m.reaction.emoji or ""
    if m.type == "edit":
        if m.edit is None:
            raise Unreadable("an edit of nothing")
        return m.edit.original_message_id, _edited(m.edit.message)
    if m.type == "revoke":
        if m.revoke is None:
            raise Unreadable("a revocation of nothing")
        return m.revoke.original_message_id, ""
    if m.type == "interactive":
        chosen = m.interactive and (m.interactive.button_reply or m.interactive.list_reply)
        return None, chosen.title if chosen else ""
    if m.type == "button":
        return None, m.button.text if m.button else ""
    if m.type == "contacts":
        return None, "\n\n".join(filter(None, map(_card, (m.contacts or [])[:MOST_CARDS])))
    if m.type == "system":
        return None, m.system.body if m.system else ""
    return None, _written(m)


def _place(at: wire.Location) -> str:
    """In words that a person and an assistant understand alike; the link is ours, never the sender's."""
    where = f"{at.latitude:.6f},{at.longitude:.6f}"
    spot = f"{at.latitude:.6f}, {at.longitude:.6f}"
    words = (at.name, at.address, spot, f"https://www.google.com/maps?q={where}")
    return "\n".join(part for part in words if part)


def _card(card: wire.Card) -> str:
    """A contact card: the name, whom they work for, their numbers and addresses, a line each."""
    words = [card.name.formatted_name if card.name else ""]
    with suppress(*UNREADABLE):
        org = _org.decode(card.org)
        words.append((org and org.company) or "")
    with suppress(*UNREADABLE):
        words += [phone.phone or phone.wa_id or "" for phone in _phones.decode(card.phones) or []]
    with suppress(*UNREADABLE):
        words += [email.email or "" for email in _emails.decode(card.emails) or []]
    return "\n".join(filter(None, words[:MOST_LINES]))


def attachment(raw: bytes) -> Attachment | None:
    """The file that came with a message, or with what it was edited into; None where there is none. Never raises."""
    try:
        carrier = _carrier.decode(raw)
    except UNREADABLE:
        return None
    for carrying in (carrier, carrier.edit.message if carrier.edit else None):
        if carrying is not None and (file := _file(carrying)) is not None:
            return Attachment(
                id=str(file.id),
                media_type=file.mime_type or "",
                sha256=file.sha256 or "",
                filename=file.filename or "",
                caption=file.caption or "",
            )
    return None


def _file(carrying: wire.Carrying) -> wire.Attached | None:
    return carrying.image or carrying.audio or carrying.video or carrying.document or carrying.sticker


def _written(m: "wire.Message | wire.Edited") -> str:
    """The words in a text, or beside a picture, a film or a document."""
    if m.text:
        return m.text.body
    media = m.image or m.video or m.document
    return (media.caption or media.filename or "") if media else ""


def _edited(new: wire.Edited | None) -> str:
    """The new words; none where a caption was removed, and only there: what cannot be read takes no words away."""
    if new is None or not (new.image or new.video or new.document or _written(new)):
        raise Unreadable("an edit into what cannot be read")
    return _written(new)


def _to_status(raw: bytes, value: wire.Value) -> Status:
    s = _status.decode(raw)
    if s.status not in _STATUSES:
        raise Unreadable("unknown status")
    if not s.id or "\0" in s.id:
        raise Unreadable("a status of nothing")
    error = s.errors[0] if s.errors else None
    return Status(
        address=value.metadata.phone_number_id,
        provider_id=s.id,
        status=cast(Said, s.status),
        at=_time(s.timestamp),
        key=Key.parse(s.biz_opaque_callback_data),
        code=error.code if error and abs(error.code) < 2**31 else None,
        reason=error.title[:200].replace("\0", "") if error else "",
        raw=raw,
    )


def _time(stamp: str | int) -> datetime:
    """Unix seconds, as a string in all that Meta documents, as a number in some fixtures."""
    if isinstance(stamp, str):
        if not _DIGITS.fullmatch(stamp):
            raise Unreadable("a timestamp that is no number of seconds")
        stamp = int(stamp)
    if not 0 < stamp < 2**33:
        raise Unreadable("a timestamp out of range")
    at = datetime.fromtimestamp(stamp, UTC)
    if at > datetime.now(UTC) + FUTURE:
        raise Unreadable("a timestamp in the future")
    return at
