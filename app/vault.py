"""Seals secrets for the database and opens them again: AES-256-GCM under the keys of QASID_SECRET_KEY.

A sealed text opens only for the owner and field it was sealed for, so one that is copied to another row is worthless.
Never logs a secret, never puts one into an error.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Literal, Self, TypeVar
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

from app.errors import ConfigurationError
from app.place import MAKE_ONE, secret_keys
from app.settings import Settings

VERSION = "v1"
KEY_BYTES = 32
NONCE_BYTES = 12

# Whom and what the key of digests is sealed for.
INSTALLATION = "installation"
DIGEST_FIELD = "keys.digest"

S = TypeVar("S", bound=Struct)


class Secret(str):
    """A text that its `repr` does not show. msgspec refuses to encode it unless a hook says how."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(…)"


class SecretBytes(bytes):
    """Bytes that their `repr` does not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "SecretBytes(…)"


class Vault:
    """The keys: the first seals, all open. To rotate: a new one in front, apply all files, the old one away."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """`keys` are of 32 bytes each.

        Raises:
            ConfigurationError: there is none, or one is not of 32 bytes.
        """
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ConfigurationError(f"A vault needs keys of {KEY_BYTES} bytes. {MAKE_ONE}")
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._first = _key_id(keys[0])

    def __repr__(self) -> str:
        return f"Vault({', '.join(self._ciphers)})"

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The vault of this installation's keys (app/place.py says where they are).

        Raises:
            ConfigurationError: a key is missing or is none.
        """
        return cls(secret_keys(settings))

    def seal(self, plain: str, *, owner: str, field: str) -> str:
        """`plain` as `v1.<key id>.<base64 of nonce, ciphertext, tag>`, under the first key."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._ciphers[self._first].encrypt(nonce, plain.encode(), _bound_to(self._first, owner, field))
        return f"{VERSION}.{self._first}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, *, owner: str, field: str) -> Secret:
        """What was sealed for this owner and field.

        Raises:
            ConfigurationError: it was sealed under a key that is not here, for another owner or field, or was altered.
        """
        version, _, rest = sealed.partition(".")
        key_id, _, text = rest.partition(".")
        if version != VERSION or not text:
            raise ConfigurationError(
                f"{field} of {owner} is not in the form that Qasid seals secrets in. {_without(field)}"
            )
        if (cipher := self._ciphers.get(key_id)) is None:
            raise ConfigurationError(
                f"{field} of {owner} was sealed under key {key_id}, which is not in QASID_SECRET_KEY (there: "
                f"{', '.join(self._ciphers)}). Put that key back, behind the first. If it is lost: {_without(field)}"
            )
        try:
            blob = base64.b64decode(text, altchars=b"-_", validate=True)
            return Secret(
                cipher.decrypt(blob[:NONCE_BYTES], blob[NONCE_BYTES:], _bound_to(key_id, owner, field)).decode()
            )
        except (InvalidTag, ValueError):
            raise ConfigurationError(
                f"{field} of {owner} does not open: it was sealed for another place or altered since. {_without(field)}"
            ) from None

    def is_current(self, sealed: str) -> bool:
        """Whether it is sealed under the first key, so that the others may go."""
        return sealed.startswith(f"{VERSION}.{self._first}.")

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys, eight hex digits each, that of the first in front."""
        return tuple(self._ciphers)

    def seal_bytes(self, plain: bytes, *, owner: str, field: str) -> tuple[str, bytes]:
        """The first key's id, to be kept beside it, and `plain` sealed under it: nonce, ciphertext, tag."""
        nonce = os.urandom(NONCE_BYTES)
        return self._first, nonce + self._ciphers[self._first].encrypt(
            nonce, plain, _bound_to(self._first, owner, field)
        )

    def open_bytes(self, key_id: str, sealed: bytes, *, owner: str, field: str) -> bytes | None:
        """What was sealed for this owner and field; None: it was altered, or sealed for another place.

        Raises:
            ConfigurationError: the key of this id is not here.
        """
        if (cipher := self._ciphers.get(key_id)) is None:
            raise ConfigurationError(
                f"{field} of {owner} was sealed under key {key_id}, which is not in QASID_SECRET_KEY (there: "
                f"{', '.join(self._ciphers)}). Put that key back, behind the first."
            )
        try:
            return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound_to(key_id, owner, field))
        except (InvalidTag, ValueError):
            return None


def owner_of(kind: Literal["tenant", "endpoint"], row_id: UUID) -> str:
    """Whom a row's secrets are sealed for."""
    return f"{kind}:{row_id}"


def token_field(channel_id: UUID) -> str:
    """What a channel's token is sealed as; its owner is the tenant."""
    return f"channels.{channel_id}.token"


def each_secret(value: S, change: Callable[[str, Secret], str], place: str = "") -> S:
    """The Struct with each Secret in it changed, in the Structs it holds as well. `change` is told the field's path."""
    changed: dict[str, object] = {}
    for name in value.__struct_fields__:
        inner = getattr(value, name)
        if isinstance(inner, Secret):
            changed[name] = Secret(change(place + name, inner))
        elif isinstance(inner, Struct):
            changed[name] = each_secret(inner, change, f"{place}{name}.")
    return msgspec.structs.replace(value, **changed)


def secrets_in(value: Struct) -> list[Secret]:
    """Every Secret that `each_secret` would change."""
    found: list[Secret] = []

    def note(_: str, secret: Secret) -> str:
        found.append(secret)
        return secret

    each_secret(value, note)
    return found


def _without(field: str) -> str:
    """What to do about a secret that cannot be had any more."""
    if field == DIGEST_FIELD:  # an apply does not make it anew while it is there
        return "docs/operations.md says what to do, under *If the key is lost*."
    return "Apply it again."


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"qasid key id\0" + key).hexdigest()[:8]


def _bound_to(key_id: str, owner: str, field: str) -> bytes:
    """The additional data: each part with its length before it, so that no two triples are written alike."""
    return b"".join(len(part).to_bytes(4) + part for part in (s.encode() for s in (VERSION, key_id, owner, field)))
