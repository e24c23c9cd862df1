"""Where this installation's database and keys are: what the settings name, else what lies in the state folder."""

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from app.errors import ConfigurationError
from app.settings import Settings

KEY_FILE = "secret_key"
MAKE_ONE = "`openssl rand -hex 32` makes one"


def database_url(settings: Settings) -> str:
    """The URL of PostgreSQL. Starts the embedded one, and holds it until this process ends, if none is named.

    Raises:
        ConfigurationError: the embedded PostgreSQL cannot be used here.
    """
    if settings.database_url is not None:
        return settings.database_url
    from app import embedded  # neither it nor its package is needed where a database is named

    return embedded.ensure(settings.state_dir).url


def secret_keys(settings: Settings) -> tuple[bytes, ...]:
    """The keys of QASID_SECRET_KEY, 32 bytes each: the first encrypts, all decrypt.

    Without one, and beside the embedded database, a key is made once in the state folder: the two are kept or lost
    together. A database elsewhere outlives this folder, so there the key must be set.

    Raises:
        ConfigurationError: no key, or one that is not 32 bytes in hex, or stands there twice. It never quotes a key.
    """
    source = "QASID_SECRET_KEY"
    text = settings.secret_key
    if text is None:
        if settings.database_url is not None:
            raise ConfigurationError(
                f"{source} is not set, and QASID_DATABASE_URL is: what is in that database opens only with the key it "
                f"was sealed with. For a new database, {MAKE_ONE}; keep it as safe as the database's backups."
            )
        file = settings.state_dir / KEY_FILE
        source, text = str(file), _kept_key(file)
    words = [word.strip() for word in text.split(",")]
    for n, word in enumerate(words, 1):
        if not re.fullmatch(r"[0-9a-fA-F]{64}", word):
            raise ConfigurationError(f"{source}: key {n} of {len(words)} is not 32 bytes in hex; {MAKE_ONE}.")
        if word.lower() in (w.lower() for w in words[: n - 1]):
            raise ConfigurationError(f"{source}: key {n} stands there twice; take one away.")
    return tuple(bytes.fromhex(word) for word in words)


def _kept_key(file: Path) -> str:
    """The text of the key file, which is made if it is not there: whole, and for two that start at once the same."""
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_name(f".{KEY_FILE}.{secrets.token_hex(8)}")
            try:
                with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                    out.write(secrets.token_hex(32) + "\n")
                    out.flush()
                    os.fsync(out.fileno())
                with suppress(FileExistsError):  # another process was first: its key counts
                    os.link(draft, file)
            finally:
                draft.unlink(missing_ok=True)
            _keep_entry(file.parent)
        if file.stat().st_mode & 0o077:
            raise ConfigurationError(f"{file} can be read by others than its owner: `chmod 600 {file}`.")
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text of hex digits"
        raise ConfigurationError(f"The key file {file} cannot be used: {reason}. Or set QASID_SECRET_KEY.") from None


def _keep_entry(folder: Path) -> None:
    """Make the new name in the folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
