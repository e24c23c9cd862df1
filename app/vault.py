"""Seals secrets for the database and opens them again: AES-256-GCM under the keys of QASID_SECRET_KEY.

A sealed text opens only for the owner and field it was sealed for, so one that is copied to another row is worthless.
Never logs a secret, never puts one into an error.
"""

import base64
import binascii
import hashlib
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.errors import ConfigurationError
from app.settings import Settings

VERSION = "v1"
KEY_BYTES = 32
NONCE_BYTES = 12
KEY_FILE = "secret_key"
NEW_KEY = "`openssl rand -hex 32` makes one"


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
    """The keys: the first seals, all open. To rotate, put a new one in front, `qasid apply`, then take the old one away."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """`keys` are of 32 bytes each.

        Raises:
            ConfigurationError: there is none, or one is not of 32 bytes.
        """
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ConfigurationError(f"A vault needs keys of {KEY_BYTES} bytes; {NEW_KEY}.")
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._first = _key_id(keys[0])

    def __repr__(self) -> str:
        return f"Vault({', '.join(self._ciphers)})"

    @classmethod
    def parse(cls, text: str, *, source: str) -> Self:
        """A vault of the keys in `text`: hex, by commas. `source` is where they were read, for the error.

        Raises:
            ConfigurationError: a key is not 32 bytes in hex, or stands there twice. The message never quotes a key.
        """
        keys: list[bytes] = []
        for n, word in enumerate(text.split(","), start=1):
            try:
                key = binascii.unhexlify(word.strip())
            except ValueError:
                raise ConfigurationError(
                    f"{source}: key {n} is not hexadecimal; it must be {2 * KEY_BYTES} hex digits; {NEW_KEY}."
                ) from None
            if len(key) != KEY_BYTES:
                raise ConfigurationError(
                    f"{source}: key {n} has {len(key)} bytes; it must have {KEY_BYTES} ({2 * KEY_BYTES} hex digits); {NEW_KEY}."
                )
            if key in keys:
                raise ConfigurationError(f"{source}: key {n} stands there twice; take one away.")
            keys.append(key)
        return cls(keys)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The vault of QASID_SECRET_KEY; without it and without QASID_DATABASE_URL, of a key made once in the state folder.

        Raises:
            ConfigurationError: the key is missing beside a database of one's own, cannot be read, or is not a key.
        """
        if settings.secret_key is not None:
            return cls.parse(settings.secret_key, source="QASID_SECRET_KEY")
        if settings.database_url is not None:
            raise ConfigurationError(
                f"QASID_SECRET_KEY is not set, and QASID_DATABASE_URL is: what is in that database can only be opened with "
                f"the key it was sealed with. For a new database, {NEW_KEY}; keep it as safe as the database's backups."
            )
        place = settings.state_dir / KEY_FILE
        return cls.parse(_key_of(place), source=str(place))

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
            raise ConfigurationError(f"{field} of {owner} is not in the form that Qasid seals secrets in; apply it again.")
        if (cipher := self._ciphers.get(key_id)) is None:
            raise ConfigurationError(
                f"{field} of {owner} was sealed under key {key_id}, which is not in QASID_SECRET_KEY (there: "
                f"{', '.join(self._ciphers)}). Put that key back, behind the first; without it, apply the secret again."
            )
        try:
            blob = base64.b64decode(text, altchars=b"-_", validate=True)
            return Secret(cipher.decrypt(blob[:NONCE_BYTES], blob[NONCE_BYTES:], _bound_to(key_id, owner, field)).decode())
        except (InvalidTag, ValueError):
            raise ConfigurationError(
                f"{field} of {owner} does not open: it was sealed for another place or altered since. Apply it again."
            ) from None

    def is_current(self, sealed: str) -> bool:
        """Whether it is sealed under the first key, so that the others may go."""
        return sealed.startswith(f"{VERSION}.{self._first}.")


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"qasid key id\0" + key).hexdigest()[:8]


def _bound_to(key_id: str, owner: str, field: str) -> bytes:
    """The additional data: each part with its length before it, so that no two triples are written alike."""
    return b"".join(len(part).to_bytes(4) + part for part in (s.encode() for s in (VERSION, key_id, owner, field)))


def _key_of(place: Path) -> str:
    """The text of the key file, which is made if it is not there.

    It appears whole or not at all, by a hard link, and of two that make it at once the first one's key is everybody's.
    """
    try:
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = place.with_name(f".{KEY_FILE}.{secrets.token_hex(8)}")
            try:
                with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(secrets.token_hex(KEY_BYTES) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(draft, place)
                except FileExistsError:
                    pass  # another process was first: its key counts
            finally:
                draft.unlink(missing_ok=True)
            _keep_entry(place.parent)
        if place.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(f"{place} can be read by others than its owner: `chmod 600 {place}`.")
        return place.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text of hex digits"
        raise ConfigurationError(f"The key file {place} cannot be used: {reason}. Or set QASID_SECRET_KEY.") from None


def _keep_entry(folder: Path) -> None:
    """Make the new name in the folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
