"""Nothing that must stay private reaches a log line, whatever is logged and however."""

import ast
import io
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import psycopg
import pytest
import structlog
from msgspec import Struct

from app import alerts, log, redaction
from app.errors import ConfigurationError, Refused
from app.settings import Settings
from workers.stopwatch import Stopwatch

PHONE = "4915123456789"
PHONES = [PHONE, f"+{PHONE}", "+49 151 2345-6789", "(0151) 23456789", "0049 151 23 45 67 89"]
TEXT = "canary what a person wrote"
SECRET = "canary-s3cret-4f9b2c71d0aa"
REGISTERED = "canaryplain"  # nothing about it looks like a secret

LEVELS = ("debug", "info", "warning", "error", "critical", "exception")

Lines = Callable[[], list[str]]


@pytest.fixture(params=["json", "console"])
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    """Logs at debug level in this form; returns the lines so far."""
    stream = io.StringIO()
    before = structlog.get_config()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log.configure(Settings(log_level="debug", log_format=request.param), process="test", stream=stream)
    log.hide([REGISTERED, None, "abc"])
    yield lambda: stream.getvalue().splitlines()
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


def assert_clean(lines: Lines) -> None:
    """Some lines were written, and no canary is in any."""
    text = "\n".join(lines())
    assert text
    assert "canary" not in text
    digits = "".join(c for c in text.replace("2026", "") if c.isdigit() or c == "\n")
    assert "23456789" not in digits
    assert "1234567" not in digits


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "value", [TEXT, SECRET, REGISTERED, {"text": TEXT}, [TEXT, SECRET], SECRET.encode(), *PHONES, int(PHONE)]
)
def test_keys_that_are_not_known_are_dropped_and_named(lines: Lines, level: str, value: object) -> None:
    """An unknown key loses its value; its name stays, so that somebody adds it to KNOWN or takes it out."""
    getattr(structlog.get_logger("a"), level)("something happened", body=value, apikey=value)
    assert_clean(lines)
    assert "apikey" in lines()[0]
    assert "something happened" in lines()[0]


@pytest.mark.parametrize("key", sorted(redaction.KNOWN))
@pytest.mark.parametrize(
    "value", [SECRET, REGISTERED, SECRET.encode(), {"text": TEXT}, [SECRET], *PHONES, int(PHONE), float(PHONE)]
)
def test_known_keys_show_no_secret_and_no_phone_number(lines: Lines, key: str, value: object) -> None:
    """Every known key takes only what its kind allows, and no kind allows these."""
    if key == "event":
        structlog.get_logger("a").info(value)
    else:
        structlog.get_logger("a").info("something happened", **{key: value})
    assert_clean(lines)


@pytest.mark.parametrize("key", sorted(redaction.KNOWN - redaction.TEXTS))
def test_known_keys_but_for_our_own_sentences_show_no_text(lines: Lines, key: str) -> None:
    """What a person wrote has spaces, or is no name, number or id: it passes no key but the constant ones."""
    structlog.get_logger("a").info("something happened", **{key: TEXT})
    assert_clean(lines)


def test_what_is_bound_to_the_context_passes_the_same_gate(lines: Lines) -> None:
    """Context variables are merged before the gate, for lines of other libraries too."""
    correlation = uuid.uuid4()
    with structlog.contextvars.bound_contextvars(body=TEXT, correlation=correlation, tenant=PHONE):
        structlog.get_logger("a").info("ours")
        logging.getLogger("saq").warning("theirs")
    assert_clean(lines)
    assert [str(correlation) in line for line in lines()] == [True, True]


def raised(error: BaseException) -> BaseException:
    """The error with frames and a cause, as one meets it."""
    try:
        try:
            raise KeyError(TEXT, PHONE)
        except KeyError as cause:
            raise error from cause
    except BaseException as met:  # noqa: BLE001
        return met


@pytest.mark.parametrize(
    "error",
    [
        ValueError(TEXT),
        RuntimeError(SECRET),
        UnicodeDecodeError("utf-8", TEXT.encode(), 0, 1, TEXT),
        psycopg.errors.UniqueViolation(f"Key (value)=({PHONE}) already exists. {TEXT}"),
        psycopg.OperationalError(f'connection to "postgresql://qasid:{SECRET}@db/x" failed\nDETAIL: {TEXT}'),
        OSError(2, "No such file", f"/var/{TEXT}"),
        ConfigurationError(f"Bearer {SECRET} of +{PHONE} is wrong"),
        Refused(f"token {SECRET}", code=190, then="hold"),
        ExceptionGroup(TEXT, [ValueError(TEXT), ExceptionGroup(TEXT, [KeyError(PHONE)])]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_show_their_type_and_where_but_not_what_they_quote(lines: Lines, error: BaseException) -> None:
    """A traceback is frames without source or values; words come only from errors that quote no data."""
    met = raised(error)
    structlog.get_logger("a").error("failed", exc_info=met)
    structlog.get_logger("a").error("failed", error=met)
    logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: %s", TEXT, exc_info=met)
    assert_clean(lines)
    text = "\n".join(lines())
    assert text.count(type(error).__name__) >= 3
    assert "KeyError" in text
    assert "tests/unit/test_log.py" in text


@pytest.mark.parametrize("name", ["saq", "httpx", "aiohttp.access", "litestar", "psycopg", "asyncio", "unheard.of"])
def test_other_libraries_show_their_templates_and_not_what_they_fill_in(lines: Lines, name: str) -> None:
    """Below WARNING nothing; from WARNING the message's template, its first line alone."""
    logger = logging.getLogger(name)
    logger.debug("body %s", TEXT)
    logger.info("body %s", TEXT)
    assert lines() == []
    logger.warning("Error in job %s\n%s", TEXT, PHONE, extra={"body": TEXT, "apikey": SECRET})
    assert_clean(lines)
    assert "Error in job %s" in lines()[0]


def test_a_pool_that_cannot_connect_says_so_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of a kind in a while, with how many were held back since; at debug level each of them."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pool, before = logging.getLogger("psycopg.pool"), structlog.get_config()

    def said(level: Literal["info", "debug"]) -> list[tuple[str, int | None]]:
        stream = io.StringIO()
        log.configure(Settings(log_level=level, log_format="json"), process="web", stream=stream)
        for seconds in (0.0, 1.0, 1.0, log.SELDOM):
            now[0] += seconds
            pool.warning("error connecting in %r: %s", "courier", "refused")
            pool.warning("discarding closed connection: %s", "c") if seconds == 0.0 else None
        return [(line["event"], line.get("count")) for line in map(json.loads, stream.getvalue().splitlines())]

    refused, discarded = "error connecting in 'courier': refused", "discarding closed connection: c"
    try:
        assert said("info") == [(refused, None), (discarded, None), (refused, 2)]
        assert said("debug") == [(refused, None), (discarded, None), *[(refused, None)] * 3]
    finally:
        structlog.configure(**before)
        pool.filters.clear()


def test_no_value_can_begin_a_line_of_its_own(lines: Lines) -> None:
    """CR, LF and other control characters stand escaped, in every place that a value may get to."""
    forged = 'x\r\n{"level":"critical"}\x1b[2J\u2028y'
    structlog.get_logger(forged).warning(forged, reason=forged, path=forged, **{forged: 1})
    logging.getLogger(forged).warning(forged)
    assert len(lines()) == 2
    assert not any(c in line for line in lines() for c in "\r\u2028")
    assert not any("\x1b[2J" in line for line in lines())


def test_a_huge_value_is_cut_before_it_is_searched(lines: Lines) -> None:
    """A megabyte of what the patterns half match takes no time, and its secrets do not show by being cut."""
    began = time.monotonic()
    for filling in ("a-", "1-", "+", "x " * 1999 + REGISTERED):
        structlog.get_logger("a").warning(filling * (1_000_000 // len(filling)))
    assert time.monotonic() - began < 2
    assert_clean(lines)


def test_a_fingerprint_is_the_same_for_the_same_number_and_key_alone() -> None:
    """Equal numbers have equal marks, keys separate installations, and the gate takes the mark but not the number."""
    log.set_fingerprint_key(b"k" * 32)
    first = log.fingerprint(PHONE)
    assert first == log.fingerprint(PHONE) != log.fingerprint(PHONE + "0")
    assert len(first) == 12
    log.set_fingerprint_key(b"l" * 32)
    assert log.fingerprint(PHONE) != first
    second = log.fingerprint(PHONE)
    log.set_fingerprint_key(b"")  # no configuration was applied yet: a known key would let anybody go back
    assert log.fingerprint(PHONE) == second


def test_json_lines_are_whole_and_say_who_speaks() -> None:
    """Each line is an object with time, level, event, process and logger; numbers stay numbers, ids stay ids."""
    stream = io.StringIO()
    before = structlog.get_config()
    log.configure(Settings(log_format="json"), process="web", stream=stream)
    chunk = uuid.uuid4()
    structlog.get_logger("app.lane").info("sent", chunk=chunk, attempt=2, seconds=0.25, failed=True, to="0" * 12)
    structlog.get_logger("app.lane").debug("not shown at info")
    structlog.configure(**before)
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("+00:00")
    assert line == {
        "level": "info", "event": "sent", "process": "web", "logger": "app.lane", "chunk": str(chunk), "attempt": 2,
        "seconds": 0.25, "failed": True, "to": "0" * 12,
    }  # fmt: skip


class Said(Struct, frozen=True):
    """A call of a logger, or of `alert` with one: where, the texts that it is given, its keys (None: of a `**`)."""

    place: str
    texts: list[ast.expr]
    keys: list[str | None]


def said() -> list[Said]:
    """Each call of a logger in our sources. `tell` is one of its methods, which app/alerts.py gets from its callers."""
    root = Path(__file__).parents[2]
    found = []
    for file in [*(root / "app").rglob("*.py"), *(root / "workers").rglob("*.py")]:
        if file == Path(alerts.__file__):
            continue
        for node in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            called, texts = ast.unparse(node.func), node.args
            if called == "alert":
                called, texts = ast.unparse(texts[0]), texts[2:]
            if called == "tell" or re.fullmatch(rf"(log|logger)\.({'|'.join(LEVELS)})", called):
                place = f"{file.relative_to(root)}:{node.lineno}"
                found.append(Said(place, texts, [keyword.arg for keyword in node.keywords]))
    return found


def test_our_own_lines_are_constant_sentences_with_known_keys() -> None:
    """Every log call of app/ and workers/ has a constant event and known keys; what `**` brings, the gate judges."""
    wrong = []
    for line in said():
        event = line.texts[0] if len(line.texts) == 1 else None
        if not (isinstance(event, ast.Constant) and isinstance(event.value, str)):
            wrong.append(f"{line.place}: the event is not one constant text")
        wrong += [f"{line.place}: key {key}" for key in line.keys if key not in {*redaction.KNOWN, "exc_info", None}]
    assert not wrong
    assert len(said()) > 5


def test_each_known_key_is_logged_by_somebody() -> None:
    """What nobody logs any more leaves the list: else it would pass, one day, for something else."""
    every_line = {"timestamp", "level", "event", "process", "logger"}
    brought = {"alert", "refused", "spooled", "stale", "stale_s", *Stopwatch().stages(fast=True)}  # by a `**`
    assert redaction.KNOWN - every_line - brought - {key for line in said() for key in line.keys} == set()
