"""Every setting of a process: its name, type, default and meaning. Read once at start from the environment, never later.

An unknown `QASID_*` name is an error, since a setting that is misspelt is a setting that does not hold.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

from app.errors import ConfigurationError

PREFIX = "QASID_"
_HOST = re.compile(r"(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)+")

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings by their name without the prefix, in lower case."""

    database_url: str | None = None
    host: str = "127.0.0.1"
    port: Port = 8000
    sandbox_port: Port = 8001
    secret_key: str | None = None
    metrics_token: str | None = None
    spool_dir: Path | None = None
    spool_max_bytes: Annotated[int, Meta(ge=1_000_000)] = 1_000_000_000
    spool_max_seconds: Seconds = 86_400
    ack_deadline_seconds: Seconds = 1.0
    lease_seconds: Seconds = 15.0
    send_timeout_seconds: Seconds = 10.0
    order_wait_seconds: Seconds = 10.0
    in_doubt_seconds: Seconds = 30.0
    in_doubt_max_seconds: Seconds = 900.0
    pair_seconds: Seconds = 6.0
    media_hosts: str = "lookaside.fbsbx.com,*.fbcdn.net,*.whatsapp.net"
    worker_lanes: Annotated[int, Meta(ge=1, le=100_000)] = 2000
    session_cache_bytes: Annotated[int, Meta(ge=0)] = 64 * 1024 * 1024
    web_workers: Annotated[int, Meta(ge=1, le=64)] = 2
    worker_metrics_port: Port = 8002
    secure_cookies: bool = False
    state_dir: Path = field(default_factory=lambda: Path(".qasid"))
    log_level: str = "info"
    log_format: str = "auto"

    def __post_init__(self) -> None:
        if self.send_timeout_seconds >= self.lease_seconds:
            raise ConfigurationError(
                f"QASID_SEND_TIMEOUT_SECONDS ({self.send_timeout_seconds:g}) must be below QASID_LEASE_SECONDS "
                f"({self.lease_seconds:g}): a send may not outlive the lease that allows it."
            )
        if self.in_doubt_seconds > self.in_doubt_max_seconds:
            raise ConfigurationError("QASID_IN_DOUBT_SECONDS must not be above QASID_IN_DOUBT_MAX_SECONDS.")
        for host in self.media_host_names:
            if not _HOST.fullmatch(host):
                raise ConfigurationError(
                    f"QASID_MEDIA_HOSTS has {host!r} in it; it must be names like files.example.org or "
                    "*.example.org, in lower case, by commas."
                )
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigurationError(
                f"QASID_LOG_LEVEL is {self.log_level!r}; it must be debug, info, warning or error."
            )
        if self.log_format not in ("auto", "json", "console"):
            raise ConfigurationError(f"QASID_LOG_FORMAT is {self.log_format!r}; it must be auto, json or console.")

    @property
    def media_host_names(self) -> tuple[str, ...]:
        """`media_hosts`, one by one."""
        return tuple(host.strip() for host in self.media_hosts.split(",") if host.strip())


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings as the environment has them.

    An empty value counts as unset, so that `.env` files can leave a name blank.

    Raises:
        ConfigurationError: a name is unknown, or a value is not of its type or out of its range.
    """
    found = {
        name: value
        for name, value in (os.environ if environ is None else environ).items()
        if name.startswith(PREFIX) and value != ""
    }
    known = {PREFIX + f.upper() for f in Settings.__struct_fields__}
    if unknown := sorted(set(found) - known):
        raise ConfigurationError(f"Unknown setting {', '.join(unknown)}. Known are: {', '.join(sorted(known))}.")
    try:
        return msgspec.convert(
            {name.removeprefix(PREFIX).lower(): value for name, value in found.items()},
            Settings,
            strict=False,
            dec_hook=_decode,
        )
    except msgspec.ValidationError as error:
        text = str(error)
        if "`$." in text:
            reason, _, place = text.partition(" - at `$.")
            raise ConfigurationError(f"{PREFIX}{place.rstrip('`').upper()}: {reason}.") from None
        raise ConfigurationError(text) from None


def _decode(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)
