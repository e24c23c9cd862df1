"""What bytes are is told by what they begin with, never by what they were said to be alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import media

BYTES = {
    "image/jpeg": b"\xff\xd8\xff\xe0" + bytes(16),
    "image/png": b"\x89PNG\r\n\x1a\n" + bytes(16),
    "image/gif": b"GIF89a" + bytes(16),
    "image/webp": b"RIFF\x10\0\0\0WEBPVP8 " + bytes(16),
    "audio/ogg": b"OggS\0\2" + bytes(16),
    "audio/mpeg": b"ID3\4" + bytes(16),
    "audio/mp4": b"\0\0\0\x18ftypM4A " + bytes(16),
    "audio/aac": b"\xff\xf1\x50" + bytes(16),
    "audio/amr": b"#!AMR\n" + bytes(16),
    "audio/wav": b"RIFF\x10\0\0\0WAVEfmt " + bytes(16),
    "audio/webm": b"\x1aE\xdf\xa3" + bytes(16),
    "video/mp4": b"\0\0\0\x18ftypmp42" + bytes(16),
    "application/pdf": b"%PDF-1.7\n",
    "text/plain": "Grüße, سلام 👋\r\n\ttwo".encode(),
}


@pytest.mark.parametrize("media_type", BYTES)
def test_each_type_is_told_by_its_beginning(media_type: str) -> None:
    """With parameters in what it was declared to be, and in whatever case."""
    assert media.type_of(BYTES[media_type], f"{media_type.upper()}; codecs=opus") == media_type


@pytest.mark.parametrize("media_type", BYTES)
@pytest.mark.parametrize("declared", ["image/jpeg", "audio/ogg", "video/mp4", "application/pdf"])
def test_no_family_passes_for_another(media_type: str, declared: str) -> None:
    """A page, a program or a film that is called a picture is none; a picture called by another picture's name is itself."""
    found = media.type_of(BYTES[media_type], declared)
    assert found is None or found.partition("/")[0] == declared.partition("/")[0]
    if media_type.partition("/")[0] == declared.partition("/")[0]:
        assert found == media_type or declared == "video/mp4"


@pytest.mark.parametrize(
    "data",
    [b"", b"<!DOCTYPE html><html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"MZ\x90", b"\x7fELF", b"PK\3\4"],
)
@pytest.mark.parametrize(
    "declared", ["image/jpeg", "image/svg+xml", "audio/ogg", "application/pdf", "application/zip", ""]
)
def test_what_we_do_not_take_is_nothing(data: bytes, declared: str) -> None:
    """Whatever it was declared to be."""
    assert media.type_of(data, declared) is None


@pytest.mark.parametrize("declared", ["text/plain", "text/csv", "text/markdown", "application/json", "application/xml"])
def test_a_text_is_what_is_declared_and_reads_as_one(declared: str) -> None:
    """UTF-8, and UTF-16 with its mark; a zero byte or half a character makes it something else."""
    for words in ("a,b\n1,2\n", "سلام"):
        assert media.type_of(words.encode(), declared) == "text/plain"
        assert media.text_of(words.encode("utf-16")) == words
        assert media.type_of(words.encode("utf-16"), declared) == "text/plain"
    assert media.type_of(b"a\0b", declared) is None
    assert media.type_of("é".encode("latin-1"), declared) is None


@given(st.binary(max_size=64), st.text(max_size=30))
def test_no_bytes_raise(data: bytes, declared: str) -> None:
    """And what is found is of the family that was declared, or a text."""
    found = media.type_of(data, declared)
    assert found in {None, "text/plain"} or str(found).partition("/")[0] == media.essence(declared).partition("/")[0]
