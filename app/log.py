"""Logs of every process: one line an event, and only what may be shown.

Only the keys of `KNOWN` pass, each as its kind allows; other keys are dropped and their names noted. An exception shows
its type and frames, its words only where they are ours or the operating system's. It never shows a phone number: use
`fingerprint`. Files of ours take `structlog.get_logger(__name__)`, then log constant events with `KNOWN` keys;
tests/unit/test_log.py holds them to it.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO, cast
from uuid import UUID

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from app.errors import QasidError
from app.settings import Settings

Event = MutableMapping[str, Any]
Step = Callable[[Any, str, Event], Any]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NUMBERS: Final = _words(
    "ack_ms ai_ms db_ms fastpath_ms queue_ms send_ms applied attempt attempts bytes chunks code count days depth duplicates exit_code held ignored input_tokens items "
    "lanes lost messages milliseconds n output_tokens pid port quarantined retry_after rows seconds seq size sqlstate "
    "stored tokens turns version waiting"
)
IDS: Final = _words(
    "channel_id chunk chunk_id contact_id conversation conversation_id correlation endpoint_id job_id lane message_id "
    "operator_id tenant_id turn turn_id worker worker_id"
)
# Names that Qasid or its operators gave: slugs, states, settings, files. One word each.
WORDS: Final = _words(
    "alert assistant breaker channel client endpoint file function host kind level logger method migration model name "
    "operator outcome path pool process provider queue role setting signal stage state status step tenant verdict"
)
TEXTS: Final = _words("advice event reason timestamp")  # our own sentences
MARKS: Final = _words("contact sender to")  # what `fingerprint` made
ERRORS: Final = _words("error")  # an exception, or the name of its type
KNOWN: Final = NUMBERS | IDS | WORDS | TEXTS | MARKS | ERRORS

# Words of these builtin errors quote code, not data.
_ABOUT_CODE = (AttributeError, NameError, ImportError, TypeError, NotImplementedError)
# Other libraries' loggers whose finished messages are worth reading and quote no data; of all others only the template
# and WARNING upwards are shown, whatever QASID_LOG_LEVEL says.
_READABLE = {"_granian": logging.INFO, "psycopg.pool": logging.WARNING}

_UUID = r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"
_HIDDEN = re.compile(
    rf"(?P<uuid>{_UUID})"
    r"|://[^\s/@]*@"  # the user and password of a URL
    r"|(?i:\bbearer)\s+\S+"
    r"|\+?\d(?:[\s()-]{0,2}\d){6,}"  # a phone number, however it is written
    r"|\b(?=[\w+=-]*\d)(?=[\w+=-]*[A-Za-z])[\w+=-]{20,}"  # opaque: a token, a key, a provider's id
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FINGERPRINT = re.compile(r"[0-9a-f]{12}")

_ROOT = Path(__file__).resolve().parent.parent
_write_lock = threading.Lock()
_fingerprint_key = secrets.token_bytes(32)  # until `set_fingerprint_key`: of use within this process alone
_secrets: re.Pattern[str] | None = None
_known_secrets: set[str] = set()


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


def get(name: str) -> FilteringBoundLogger:
    """The logger that signs its lines with `name`: structlog's own `get_logger`, with a type."""
    return cast(FilteringBoundLogger, structlog.get_logger(name))


def set_fingerprint_key(key: bytes) -> None:
    """Derive the key of `fingerprint` from the directory's digest key, under a label of its own. Empty: there is none yet."""
    global _fingerprint_key
    if not key:
        return
    _fingerprint_key = hmac.digest(key, b"qasid log fingerprint", "sha256")


def fingerprint(phone: str) -> str:
    """Twelve hex digits that stand for a phone number in logs: the same number has the same, nobody can go back."""
    return hmac.new(_fingerprint_key, phone.encode(), hashlib.sha256).hexdigest()[:12]


def hide(values: Iterable[str | None]) -> None:
    """Never show these values again, wherever they turn up: passwords, keys, tokens. Shorter ones than 6 don't count."""
    global _secrets
    _known_secrets.update(value for value in values if value and len(value) >= 6)
    longest_first = sorted(_known_secrets, key=len, reverse=True)
    _secrets = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def describe(error: BaseException) -> str:
    """An error in one line, with its causes: the type, and its words where they cannot quote what people wrote."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(parts) < 5:
        seen.add(id(current))
        parts.append(_describe_one(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return " <- ".join(parts)


def _describe_one(error: BaseException) -> str:
    name = type(error).__qualname__
    if isinstance(error, BaseExceptionGroup):
        return f"{name}({', '.join(_describe_one(e) for e in error.exceptions[:5])})"
    if isinstance(error, (QasidError, *_ABOUT_CODE)):
        return f"{name}: {_clean(str(error))}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name}: {os.strerror(error.errno)}"
    if type(error).__module__.startswith("psycopg"):
        if state := getattr(error, "sqlstate", None):
            return f"{name} (SQLSTATE {state})"  # the server's words may quote a row
        if any(kind.__name__ == "OperationalError" for kind in type(error).__mro__):
            return f"{name}: {_clean(str(error).partition(chr(10))[0])}"  # no connection: libpq's words
    return name


def _frames(trace: TracebackType | None) -> list[str]:
    """Where it happened, outermost first: file, line, function; no source, no values."""
    found = []
    for frame in traceback.extract_tb(trace)[-20:]:
        path = Path(frame.filename)
        parts = path.parts
        if "site-packages" in parts:
            path = Path(*parts[parts.index("site-packages") + 1 :])
        elif path.is_relative_to(_ROOT):
            path = path.relative_to(_ROOT)
        found.append(f"{path}:{frame.lineno} {frame.name}")
    return found


def _clean(text: str, limit: int = 500) -> str:
    if _secrets is not None:
        text = _secrets.sub("***", text)
    text = _HIDDEN.sub(lambda m: m["uuid"] or "***", text)
    text = _CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode(), text)
    return text if len(text) <= limit else text[:limit] + "…"


def _value(key: str, value: object) -> object:
    """The value as the key's kind allows it, or `?`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_value(key, one) for one in list(value)[:50]]
    if isinstance(value, int | float) and key in NUMBERS | WORDS:
        # Three digits of a large number tell its size; all of them might be a phone number.
        return value if abs(value) < 10_000_000 else float(f"{value:.3g}")
    if key in IDS:
        return _id(value)
    if key in ERRORS:
        if isinstance(value, str) and value.isidentifier():
            return _clean(value)  # the name of its type
        return describe(value) if isinstance(value, BaseException) else "?"
    if isinstance(value, UUID | Path):
        value = str(value)
    if not isinstance(value, str):
        return "?"
    if key in NUMBERS:
        return value if re.fullmatch(r"[0-9A-Z]{5}", value) and key == "sqlstate" else "?"
    if key in MARKS:
        return value if _FINGERPRINT.fullmatch(value) else "?"
    if key in WORDS:
        return "?" if re.search(r"\s", value) else _clean(value, 200)
    return _clean(value)


def _id(value: object) -> str:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, str) and re.fullmatch(rf"{_UUID}|[0-9a-f]{{16}}|[0-9a-f]{{32}}", value):
        return value
    return "?"


class _Admit:
    """The gate: everything that is written has passed it."""

    def __init__(self, process: str) -> None:
        self.process = process

    def __call__(self, logger: Any, _method: str, event: Event) -> Event:
        event.setdefault("logger", getattr(logger, "name", None))
        raised = event.pop("exc_info", None)
        if raised is True:
            raised = sys.exc_info()[1]
        elif isinstance(raised, tuple):
            raised = raised[1]
        if isinstance(raised, BaseException):
            event.setdefault("error", raised)
        dropped = sorted(key for key in event if key not in KNOWN)
        line: dict[str, Any] = {
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": event.pop("level", "info"),
            "event": _value("event", event.pop("event", "")),
            "process": self.process,
        }
        line.update((key, _value(key, value)) for key, value in event.items() if key in KNOWN and key not in line)
        if dropped:
            line["dropped"] = [_clean(str(key), 50) for key in dropped[:20]]
        if isinstance(raised, BaseException):
            line["frames"] = [_clean(frame, 300) for frame in _frames(raised.__traceback__)]
        return line


class _Out:
    """Writes finished lines whole, whichever thread they come from."""

    def __init__(self, stream: TextIO, name: str = "") -> None:
        self.stream = stream
        self.name = name

    def msg(self, line: str) -> None:
        with _write_lock:
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
