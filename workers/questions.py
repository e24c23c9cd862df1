"""What a turn makes of each kind of message: lines for the assistant, and what of them could not be read.

The files that came with them workers/files.py has, the words of voice messages workers/hearing.py. It answers nobody and decides
no outcome. docs/kinds.md has the table.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

import structlog
from msgspec import Struct

from app import media, metrics
from app.assistants import Image, Line, Notes
from app.channels import Attachment, Media
from app.configuration import AssistantSettings, Texts
from app.directory import Channel, Tenant
from app.store.turns import Asked, Opening
from workers.files import File, Files
from workers.hearing import Hearing

log = structlog.get_logger(__name__)

# Kinds whose words are a question by themselves, just as they stand.
WORDED = frozenset({"text", "interactive", "button"})
# Kinds that are nothing but words, once a voice message was written down.
SAID = frozenset({*WORDED, "audio"})
# Kinds whose words, or caption, a person has said or written.
IN_OWN_WORDS = frozenset({*SAID, "image", "video"})
# Kinds that are put into words when they come in (app/channels).
PUT_INTO_WORDS = {"location": "[Location]", "contacts": "[Contact card]"}
# What stands for a picture's words, or for itself.
WORDLESS = "[A picture, without words.]"
UNSEEN = "[A picture, which cannot be seen here.]"
# Of a text file so many characters are passed on: some 15,000 tokens.
MOST_CHARACTERS = 50_000
# A file's name and type are its sender's: shown, but not at any length.
MOST_OF_A_NAME = 120


class Reading(Struct, frozen=True, kw_only=True):
    """What is asked. `lines`: empty where nothing of it can be read; what could not be read beside it is said in brackets.

    `unread`: the kinds of those messages, in order.
    """

    lines: tuple[Line, ...]
    unread: tuple[str, ...] = ()

    @property
    def blind(self) -> tuple[Line, ...]:
        """The same for an assistant that does not see, a fallback perhaps."""
        return tuple(
            Line(line.role, UNSEEN if line.text == WORDLESS else f"{UNSEEN}\n{line.text}") if line.images else line
            for line in self.lines
        )


class _Read(Struct, frozen=True, kw_only=True):
    """One message: its line, and whether that is more than a word about what could not be read."""

    line: Line | None
    readable: bool


def sees(assistant: AssistantSettings | None) -> bool:
    """Whether an assistant is shown pictures."""
    return assistant is not None and assistant.images and assistant.provider != "ansari"


def heavy(tenant: Tenant, opening: Opening) -> bool:
    """Whether files of what is asked fill memory from when it is read until it is answered."""
    kept = {"document", "image"} if sees(tenant.assistant) else {"document"}
    return any(message.kind in kept for message in opening.asked if not message.revoked)


def apology(texts: Texts, unread: Sequence[str]) -> str:
    """The tenant's sentence about messages of these kinds, none of which could be read."""
    own = {"image": texts.image, "audio": texts.audio, "video": texts.video}
    sentences = {own.get(kind) or texts.unsupported for kind in unread}
    return sentences.pop() if len(sentences) == 1 else texts.unsupported


def spoken(opening: Opening) -> str:
    """What the person says in words of their own: what tells their language. Numbers and names of files do not."""
    own = [message.body for message in opening.asked if message.kind in IN_OWN_WORDS and not message.revoked]
    return "\n\n".join(body for body in own if body.strip())


def newest(opening: Opening) -> str:
    """The provider's id of the newest message that is asked: the one that is read, and answered; "" where nobody knows it."""
    return next((message.provider_id for message in reversed(opening.asked) if not message.revoked), "")


def newest_at(opening: Opening) -> datetime:
    """When the newest message that is asked was written, as its provider says; of those that were taken back, where all were:
    what has been answered by then grows old all the same.
    """
    standing = [message.sent_at for message in opening.asked if not message.revoked]
    return max(standing or [message.sent_at for message in opening.asked], default=opening.now)


class Questions:
    """`hear` a turn's voice messages, then `read` all of its messages."""

    def __init__(self, files: Files, hearing: Hearing) -> None:
        self._files = files
        self._hearing = hearing

    async def hear(
        self, tenant: Tenant, channel: Channel, opening: Opening, notes: Notes, *, live: bool, deadline: float
    ) -> None:
        """In `opening` a voice message has its words from then on, or that it has none, as in every later opening.

        `notes`: of this turn. `deadline` (monotonic) is that of its answer; `live`: whether its person may still look at what
        they have written.

        Raises:
            DatabaseUnavailable: nobody knows whether what was heard of a voice message is kept.
            NoPlace: nobody has got round to it.
        """
        await self._hearing.hear(tenant, channel, opening, notes, live=live, deadline=deadline)

    @asynccontextmanager
    async def read(
        self, tenant: Tenant, channel: Channel, opening: Opening, *, live: bool, deadline: float
    ) -> AsyncIterator[Reading]:
        """What stands of `opening.asked`, for the tenant's assistant. Leaving the block lets go of the pictures.

        Raises:
            NoPlace: nobody has got round to its files.
        """
        asked, seen = opening.asked, sees(tenant.assistant)
        async with self._files.of(tenant, channel, asked, pictures=seen, live=live, deadline=deadline) as files:
            reads = [(each.kind, _read(each, files.get(n))) for n, each in enumerate(asked) if not each.revoked]
            lines = tuple(read.line for _, read in reads if read.line is not None)
            unread = tuple(kind for kind, read in reads if not read.readable and kind not in WORDED)
            for kind in unread:
                metrics.file("unread")
                log.info("not read", kind=kind, tenant=tenant.slug, correlation=opening.correlation)
            yield Reading(lines=lines if any(read.readable for _, read in reads) else (), unread=unread)


# --- words ---


def _read(message: Asked, file: File | None) -> _Read:
    fetched = file.fetched if file else None
    words = message.body.strip()
    if message.kind in WORDED:
        return _Read(line=Line("user", message.body) if words else None, readable=bool(words))
    if message.kind in PUT_INTO_WORDS:
        line = Line("user", f"{PUT_INTO_WORDS[message.kind]}\n{message.body}") if words else None
        return _Read(line=line, readable=bool(words))
    if message.kind == "audio":
        if words:
            return _Read(line=Line("user", words), readable=True)
    elif message.kind == "document":
        return _Read(line=_document(file, message.body), readable=True)
    elif fetched is not None:
        return _Read(line=_picture(words, fetched), readable=True)
    about = f"[{_named(message.kind)}, which cannot be read here.]"
    return _Read(line=Line("user", f"{about}\n{words}" if words else about), readable=False)


def _picture(words: str, file: Media) -> Line:
    if file.media_type not in media.IMAGES:
        return Line("user", words or UNSEEN)
    return Line("user", words or WORDLESS, (Image(media_type=file.media_type, data=file.data),))


def _document(file: File | None, body: str) -> Line:
    """A picture that was sent as a file is a picture, a short text is passed on whole; of all else the name and the kind."""
    said, fetched = (file.attachment, file.fetched) if file is not None else (Attachment(id=""), None)
    name = _line(said.filename)
    words = "" if body == said.filename else body.strip()
    if fetched is not None and fetched.media_type in media.IMAGES:
        return _picture(words or name, fetched)
    kind = _line(media.essence(said.media_type))
    called = " ".join(part for part in ("Document", name and f'"{name}"', kind and f"({kind})") if part)
    text = media.text_of(fetched.data) if fetched is not None and fetched.media_type == media.TEXT else None
    if text is None:
        about = f"[{called}: its content cannot be read here.]"
    elif len(text) > MOST_CHARACTERS:
        about = f"[{called}: its first {MOST_CHARACTERS} characters follow.]\n{text[:MOST_CHARACTERS]}"
    else:
        about = f"[{called}:]\n{text}"
    return Line("user", f"{words}\n\n{about}" if words else about)


def _line(said: str) -> str:
    return " ".join(said.split())[:MOST_OF_A_NAME]


def _named(kind: str) -> str:
    names = {"image": "A picture", "audio": "A voice message", "video": "A film", "sticker": "A sticker"}
    return names.get(kind, "Something")
