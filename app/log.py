"""Logs of every process: one line an event, on stderr, and only what app/redaction.py lets through.

Files of ours take `structlog.get_logger(__name__)`, then log constant events with known keys; a key that is not known
is dropped and its name noted. Never a phone number: use `fingerprint`.
"""

import hashlib
import hmac
import logging
import secrets
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
import structlog

from app.redaction import KNOWN, clean, frames, hide, shown
from app.settings import Settings

__all__ = ["Seldom", "configure", "fingerprint", "hide", "set_fingerprint_key"]

Event = MutableMapping[str, Any]
Step = Callable[[Any, str, Event], Any]


# Other libraries' loggers whose finished messages are worth reading and quote no data; of all others only the template
# and WARNING upwards are shown, whatever QASID_LOG_LEVEL says.
_READABLE = {"_granian": logging.INFO, "psycopg.pool": logging.WARNING}

# What keeps happening is said once in this time (seconds).
SELDOM = 10.0
# It says at each try of each connection that there is none. Why, in the server's words, nobody else says: so not never.
_REPEATS = "psycopg.pool"

_write_lock = threading.Lock()
_fingerprint_key = secrets.token_bytes(32)  # until `set_fingerprint_key`: of use within this process alone


def configure(settings: Settings, *, process: str, stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging for this process: `web`, `worker`, `cli`.

    JSON lines, or a form for people when `settings.log_format` or, on `auto`, a terminal asks for it. To stderr.
    """
    out = stream or sys.stderr
    readable = settings.log_format == "console" or (settings.log_format == "auto" and out.isatty())
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    finish: list[Step] = [_Admit(process), _console(out) if readable else _json]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda name="qasid", *_: _Out(out, name),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Foreign(finish, out)]
    root.setLevel(logging.WARNING)
    for name in ("saq", "litestar", "_granian", "granian.access", "psycopg", "psycopg.pool", "aiohttp", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(_READABLE.get(name, logging.WARNING))
    logging.getLogger(_REPEATS).filters[:] = [] if level <= logging.DEBUG else [_Seldom()]


def set_fingerprint_key(key: bytes) -> None:
    """Derive the key of `fingerprint` from the directory's digest key, under a label of its own. Empty: none yet."""
    global _fingerprint_key
    if not key:
        return
    _fingerprint_key = hmac.digest(key, b"qasid log fingerprint", "sha256")


def fingerprint(phone: str) -> str:
    """Twelve hex digits that stand for a phone number in logs: the same number has the same, nobody can go back."""
    return hmac.new(_fingerprint_key, phone.encode(), hashlib.sha256).hexdigest()[:12]


class Seldom:
    """Tells whether it is time to say again what keeps happening."""

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def due(self) -> bool:
        """True at the first call, and at the first one of each `SELDOM` seconds after it."""
        if (now := time.monotonic()) < self._quiet_until:
            return False
        self._quiet_until = now + SELDOM
        return True


class _Seldom(logging.Filter):
    """Lets each template through once in `SELDOM` seconds, with the number of those that it held back since, `untold`."""

    def __init__(self) -> None:
        super().__init__()
        self._templates: dict[str, tuple[Seldom, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        seldom, untold = self._templates.get(record.msg, (Seldom(), 0))
        due = seldom.due()
        self._templates[record.msg] = seldom, 0 if due else untold + 1
        record.untold = untold
        return due


class _Admit:
    """The gate: everything that is written has passed it."""

    def __init__(self, process: str) -> None:
        self.process = process

    def __call__(self, logger: Any, _method: str, event: Event) -> Event:
        event.setdefault("logger", getattr(logger, "name", None))
        raised = event.pop("exc_info", None) if "exc_info" in event else None
        if raised is True:
            raised = sys.exc_info()[1]
        elif isinstance(raised, tuple):
            raised = raised[1]
        if isinstance(raised, BaseException):
            event.setdefault("error", raised)
        dropped = sorted(event.keys() - KNOWN) if not event.keys() <= KNOWN else ()
        line: dict[str, Any] = {
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": event.pop("level", "info"),
            "event": shown("event", event.pop("event", "")),
            "process": self.process,
        }
        line.update((key, shown(key, value)) for key, value in event.items() if key in KNOWN and key not in line)
        if dropped:
            line["dropped"] = [clean(str(key), 50) for key in dropped[:20]]
        if isinstance(raised, BaseException):
            line["frames"] = [clean(frame, 300) for frame in frames(raised.__traceback__)]
        return line


class _Out:
    """Writes finished lines whole, whichever thread they come from."""

    def __init__(self, stream: TextIO, name: str = "") -> None:
        self.stream = stream
        self.name = name

    def msg(self, line: str) -> None:
        # A full disk, or a reader who has left: what was done is done all the same, and its answer must go out.
        with _write_lock, suppress(OSError, ValueError):
            self.stream.write(line + "\n")
            self.stream.flush()

    debug = info = warning = error = critical = exception = log = msg


class _Foreign(logging.Handler):
    """Lines of other libraries, through the same gate."""

    def __init__(self, finish: list[Step], stream: TextIO) -> None:
        super().__init__()
        self.finish = finish
        self.out = _Out(stream)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            words = record.getMessage() if record.name in _READABLE else str(record.msg)
            line: Any = {
                **structlog.contextvars.get_contextvars(),
                "event": words.partition("\n")[0],
                "logger": record.name,
                "level": record.levelname.lower(),
                "exc_info": record.exc_info,
            }
            if untold := getattr(record, "untold", 0):
                line["count"] = untold
            for step in self.finish:
                line = step(None, record.levelname.lower(), line)
            self.out.msg(line)
        except Exception:  # noqa: BLE001  logging's own way out prints the record, unclean
            self.out.msg('{"level":"error","event":"a line of another library could not be written"}')


def _json(_logger: Any, _method: str, event: Event) -> str:
    return msgspec.json.encode(event).decode()


def _console(stream: TextIO) -> Callable[[Any, str, Event], str]:
    render = structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=0)

    def line(logger: Any, method: str, event: Event) -> str:
        frames = event.pop("frames", None)
        if frames:
            event["exception"] = "\n".join(f"    {frame}" for frame in frames)
        return str(render(logger, method, event))

    return line
