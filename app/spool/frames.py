"""One webhook as the spool writes it down: a frame of a checked header and a sealed record. It reads and writes no file.

The seal binds a record to its segment's name and its number there, so none can be copied, moved or left out unnoticed; a
segment that is renamed does not open any more. The header has a checksum of its own: a damaged length swallows nothing.
"""

import struct
import zlib
from typing import NamedTuple
from uuid import UUID

import msgspec
from msgspec import Struct

from app.vault import Vault

MAGIC = b"\xf5Qs\x01"
_HEAD = struct.Struct(">4sIQ8s")  # magic, bytes of the sealed record, its number from 0, the key's id
_CHECK = struct.Struct(">I")  # CRC-32 of the head
HEADER_BYTES = _HEAD.size + _CHECK.size


class Record(Struct, frozen=True, kw_only=True):
    """An authentic webhook. `received_at` is in seconds since 1970, `body` as it came. Its `repr` shows no body."""

    endpoint_id: UUID
    endpoint: str
    correlation: str
    received_at: float
    body: bytes

    def __repr__(self) -> str:
        return f"Record({self.endpoint}, {self.correlation}, {len(self.body)} bytes)"


class Header(NamedTuple):
    """What stands before a sealed record."""

    sealed_bytes: int
    number: int
    key_id: str

    @property
    def frame_bytes(self) -> int:
        """The whole frame's length."""
        return HEADER_BYTES + self.sealed_bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def seal(vault: Vault, segment: str, number: int, record: Record) -> bytes:
    """The frame of a record, for this place of this segment and no other."""
    key_id, sealed = vault.seal_bytes(_encoder.encode(record), owner=_owner(segment), field=str(number))
    head = _HEAD.pack(MAGIC, len(sealed), number, key_id.encode())
    return head + _CHECK.pack(zlib.crc32(head)) + sealed


def header(data: bytes) -> Header | None:
    """The header that `data` begins with; None: there is none, or it is damaged."""
    if len(data) < HEADER_BYTES or not data.startswith(MAGIC):
        return None
    if zlib.crc32(data[: _HEAD.size]) != _CHECK.unpack_from(data, _HEAD.size)[0]:
        return None
    _, sealed_bytes, number, key_id = _HEAD.unpack_from(data)
    return Header(sealed_bytes, number, key_id.decode("ascii", "replace"))


def unseal(vault: Vault, segment: str, head: Header, sealed: bytes) -> Record | None:
    """The record of a frame; None: it is damaged, belongs to another place, or is none of ours.

    Raises:
        ConfigurationError: the vault does not have its key.
    """
    plain = vault.open_bytes(head.key_id, sealed, owner=_owner(segment), field=str(head.number))
    if plain is None:
        return None
    try:
        return _decoder.decode(plain)
    except msgspec.DecodeError:
        return None


def is_torn(data: bytes) -> bool:
    """Whether a writer that was cut short leaves this at a file's end: a frame's beginning, or a hole of zeros."""
    if not data.strip(b"\0"):
        return True
    if len(data) < HEADER_BYTES:
        return data[: len(MAGIC)] == MAGIC[: len(data)]
    head = header(data)
    return head is not None and len(data) < head.frame_bytes


def _owner(segment: str) -> str:
    return f"spool:{segment}"
