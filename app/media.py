"""What bytes are, by what they begin with: of the types that people send on WhatsApp. It believes no name and no header.

Sources: the file signatures of each format's own specification; docs/wire-cloud.md lists what is taken.
"""

import re

# Bytes at the beginning, and what they make it. Those that need more than that follow below.
_BEGINS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"OggS\0", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"#!AMR", "audio/amr"),
    (b"%PDF-", "application/pdf"),
)
# Of an ISO base media file, the brands of sound alone; any other is a film (or sound that its type must tell).
_SOUND_BRANDS = frozenset({b"M4A ", b"M4B "})
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")

IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
SOUNDS = frozenset({"audio/ogg", "audio/mpeg", "audio/mp4", "audio/aac", "audio/amr", "audio/wav", "audio/webm"})
PDF = "application/pdf"
TEXT = "text/plain"

# What a file is called when it is passed on: those who read sound go by its ending.
ENDINGS = {
    "audio/ogg": "ogg",
    "audio/mpeg": "mp3",
    "audio/mp4": "m4a",
    "audio/aac": "aac",
    "audio/amr": "amr",
    "audio/wav": "wav",
    "audio/webm": "webm",
}


def essence(declared: str) -> str:
    """A media type without its parameters, in lower case."""
    return declared.partition(";")[0].strip().lower()


def type_of(data: bytes, declared: str) -> str | None:
    """What `data` is, or None where that is nothing we take, or of another family than it was declared to be.

    Families are what stands before the slash. Only what was declared a text may be one: nearly anything is, to somebody.
    """
    what = essence(declared)
    if may_be_text(what) and text_of(data) is not None:
        return TEXT
    found = _by_content(data, what)
    return found if found is not None and found.partition("/")[0] == what.partition("/")[0] else None


def _by_content(data: bytes, declared: str) -> str | None:
    for begins, what in _BEGINS:
        if data.startswith(begins):
            return what
    riff = data[:4] == b"RIFF"
    if riff and data[8:12] == b"WEBP":
        return "image/webp"
    if riff and data[8:12] == b"WAVE":
        return "audio/wav"
    if data[4:8] == b"ftyp":
        sound = data[8:12] in _SOUND_BRANDS or declared.startswith("audio/")
        return "audio/mp4" if sound else "video/mp4"
    if data[:4] == b"\x1aE\xdf\xa3" and declared.startswith("audio/"):
        return "audio/webm"
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return "audio/aac"
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        return "audio/mpeg"
    return None


def may_be_text(declared: str) -> bool:
    """Whether what was declared to be this is worth a look: by `essence`."""
    return declared.startswith("text/") or declared in _TEXTS


_TEXTS = frozenset({"application/json", "application/xml", "application/x-ndjson", "application/csv"})


def text_of(data: bytes) -> str | None:
    """The words of a text file, in UTF-8, or in UTF-16 with its mark; None where it is none."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        words = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(words) else words
