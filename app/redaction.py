"""What a log line may show: the known keys, each by its kind, and which words of an error. It writes nothing itself.

An allow-list: whatever is not said here does not pass. tests/unit/test_log.py proves it.
"""

import functools
import os
import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final
from uuid import UUID

from app.errors import QasidError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NUMBERS: Final = _words(
    "ack_ms ai_ms db_ms fastpath_ms queue_ms send_ms translate_ms attempt attempts bytes chunks code count failed ignored "
    "input_tokens items lanes messages milliseconds output_tokens refused retry_after rows seconds segments seq size spooled "
    "stale stale_s tokens version webhooks"
)
IDS: Final = _words("chunk conversation correlation operator_id turn worker")
# Names that Qasid or its operators gave: slugs, states, settings, files. One word each.
WORDS: Final = _words(
    "alert breaker channel client endpoint file function kind level logger method name outcome path process setting state "
    "tenant verdict"
)
TEXTS: Final = _words("event reason timestamp")  # our own sentences
MARKS: Final = _words("to")  # what `fingerprint` made
ERRORS: Final = _words("error")  # an exception, or the name of its type
KNOWN: Final = NUMBERS | IDS | WORDS | TEXTS | MARKS | ERRORS
_COUNTED: Final = NUMBERS | WORDS
_SEVERAL: Final = (list, tuple, set, frozenset)
_SPACE = re.compile(r"\s")

# Words of these builtin errors quote code, not data.
_ABOUT_CODE = (AttributeError, NameError, ImportError, TypeError, NotImplementedError)
_UUID = r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"
_ID = re.compile(rf"{_UUID}|[0-9a-f]{{16}}|[0-9a-f]{{32}}")
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
_secrets: re.Pattern[str] | None = None
_known_secrets: set[str] = set()


def hide(values: Iterable[str | None]) -> None:
    """Never show these values again, wherever they turn up: passwords, keys, tokens. Those below 6 characters may."""
    global _secrets
    _known_secrets.update(value for value in values if value and len(value) >= 6)
    longest_first = sorted(_known_secrets, key=len, reverse=True)
    _secrets = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
    _clean_short.cache_clear()


def clean(text: str, limit: int = 500) -> str:
    """A text in one line, at most so long, without what looks like a secret or a phone number."""
    # Events, slugs and the names of loggers come again and again, on the hot path too.
    return _clean_short(text, limit) if len(text) < 100 else _clean(text, limit)


def _clean(text: str, limit: int) -> str:
    if len(text) > 8 * limit:
        text = text[: 8 * limit].rpartition(" ")[0] + " …"  # at a space: half a secret would not be known for one
    if _secrets is not None:
        text = _secrets.sub("***", text)
    text = _HIDDEN.sub(lambda m: m["uuid"] or "***", text)
    text = _CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode(), text)
    return text if len(text) <= limit else text[:limit] + "…"


_clean_short = functools.lru_cache(maxsize=4096)(_clean)


def shown(key: str, value: object) -> object:
    """The value of a known key as its kind allows it, or `?`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, _SEVERAL):
        return [shown(key, one) for one in list(value)[:50]]
    if isinstance(value, (int, float)) and key in _COUNTED:
        # Three digits of a large number tell its size; all of them might be a phone number.
        return value if abs(value) < 10_000_000 else float(f"{value:.3g}")
    if key in IDS:
        return _id(value)
    if key in ERRORS:
        if isinstance(value, str) and value.isidentifier():
            return clean(value)  # the name of its type
        return describe(value) if isinstance(value, BaseException) else "?"
    if isinstance(value, (UUID, Path)):
        value = str(value)
    if not isinstance(value, str) or key in NUMBERS:
        return "?"
    if key in MARKS:
        return value if _FINGERPRINT.fullmatch(value) else "?"
    if key in WORDS:
        return "?" if _SPACE.search(value) else clean(value, 200)
    return clean(value)


def _id(value: object) -> str:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    return "?"


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
        return f"{name}: {clean(str(error))}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name}: {os.strerror(error.errno)}"
    if type(error).__module__.startswith("psycopg"):
        if state := getattr(error, "sqlstate", None):
            return f"{name} (SQLSTATE {state})"  # the server's words may quote a row
        if any(kind.__name__ == "OperationalError" for kind in type(error).__mro__):
            return f"{name}: {clean(str(error).partition(chr(10))[0])}"  # no connection: libpq's words
    return name


def frames(trace: TracebackType | None) -> list[str]:
    """Where it happened, outermost first: file, line, function; no source, no values."""
    return [f"{shown_path(f.filename)}:{f.lineno} {f.name}" for f in traceback.extract_tb(trace)[-20:]]


def shown_path(filename: str) -> Path:
    """A source file as we name it: relative to the project, or to where packages are installed."""
    path = Path(filename)
    parts = path.parts
    if "site-packages" in parts:
        return Path(*parts[parts.index("site-packages") + 1 :])
    return path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path
