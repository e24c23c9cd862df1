"""Operators' passwords: Argon2id as argon2-cffi sets it (RFC 9106's low-memory profile). Never keeps or shows one.

Both functions take tens of milliseconds and 64 MiB: on an event loop, call them in a thread.
"""

import functools
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from app.errors import ConfigurationError

SHORTEST, LONGEST = 12, 1024

_hasher = PasswordHasher()


def hashed(password: str) -> str:
    """The password as it is stored.

    Raises:
        ConfigurationError: it is too short or too long.
    """
    if not SHORTEST <= len(password) <= LONGEST:
        raise ConfigurationError(f"A password has {SHORTEST} to {LONGEST} characters; this one has {len(password)}.")
    return _hasher.hash(password)


def generated() -> str:
    """A new password of 144 random bits."""
    return secrets.token_urlsafe(18)


def matches(stored: str | None, password: str) -> bool:
    """Whether the password is the stored one. With nothing stored it works as long, and says no."""
    if len(password) > LONGEST:
        return False
    try:
        return _hasher.verify(stored if stored is not None else _nobodys(), password) and stored is not None
    except (VerificationError, InvalidHashError):
        return False


@functools.cache
def _nobodys() -> str:
    return _hasher.hash(secrets.token_urlsafe(18))
