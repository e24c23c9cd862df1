"""Another try: after which statuses, and how long an answer's headers ask to wait before it."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
import stamina
from structlog.testing import capture_logs

from app.errors import AssistantBusy
from app.redaction import KNOWN
from app.retrying import LONGEST, passes, retry_after, tried

NOW = datetime(2026, 5, 1, 10, 0, 0, tzinfo=UTC)
SOON = NOW + timedelta(seconds=90)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("5", 5),
        ("007", 7),
        ("3600", 3600),
        ("3601", LONGEST),
        ("9" * 5000, LONGEST),
        (" 12 ", 12),
        ("Fri, 01 May 2026 10:01:30 GMT", 90),  # RFC 9110, 5.6.7: the form to send
        ("Friday, 01-May-26 10:01:30 GMT", 90),  # the two to understand
        ("Fri May  1 10:01:30 2026", 90),
        ("Fri, 01 May 2026 09:00:00 GMT", 0),  # over already
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST),
        ("Fri, 01 Foo 2026 10:01:30 GMT", None),
        ("Fri, 41 May 2026 10:01:30 GMT", None),
        ("-5", None),
        ("+5", None),
        ("1.5", 1.5),
        ("1e3", None),
        ("٥", None),
        ("5 s", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_read_as_http_has_it(value: str, seconds: float | None) -> None:
    """A number of seconds or a date, counted from the answer's own `Date`; an hour at most; nonsense says nothing."""
    headers = httpx.Headers({b"Retry-After": value.encode(), b"Date": format_datetime(NOW, usegmt=True).encode()})
    assert retry_after(headers) == seconds


def test_a_date_counts_from_our_clock_where_the_answer_has_none() -> None:
    """Without `Date`, or with one that is none."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=120), usegmt=True)
    for more in ({}, {"Date": "today"}):
        asked = retry_after(httpx.Headers({"Retry-After": later, **more}))
        assert asked is not None and 110 < asked <= 120


def test_of_two_retry_afters_the_longer_counts() -> None:
    """Something between us and the provider may add its own."""
    assert retry_after(httpx.Headers([("Retry-After", "5"), ("Retry-After", "9"), ("Retry-After", "x")])) == 9
    assert retry_after(httpx.Headers()) is None


@pytest.mark.parametrize(("value", "seconds"), [("1500", 1.5), ("9" * 400, LONGEST), ("soon", 7), ("", 7)])
def test_milliseconds_count_where_they_are_told(value: str, seconds: float) -> None:
    """OpenAI's own header says it finer than the standard's."""
    assert retry_after(httpx.Headers({"Retry-After-Ms": value, "Retry-After": "7"})) == seconds


@pytest.mark.parametrize(
    ("statuses", "may"),
    [
        ((408, 409, 425, 429), True),
        ((500, 501, 502, 503, 504, 520, 522, 523, 524, 525, 526, 527, 529, 530, 598), True),
        ((200, 204, 301, 302, 400, 401, 402, 403, 404, 410, 413, 415, 422, 451), False),
    ],
)
def test_what_fails_on_the_other_side_or_between_may_pass(statuses: tuple[int, ...], may: bool) -> None:
    """Whatever number a proxy has for it; what is said of the request itself does not."""
    assert {passes(status) for status in statuses} == {may}


@pytest.mark.anyio
async def test_another_try_is_told_in_one_line_of_our_own() -> None:
    """Which try it is, and why: in keys that the log lets through. What is not tried again has no line."""
    fates = [AssistantBusy("HTTP 503"), AssistantBusy("HTTP 429", retry_after=0.01), None]

    async def once() -> str:
        if (fate := fates.pop(0)) is not None:
            raise fate
        return "here"

    with capture_logs() as lines, stamina.set_testing(True, attempts=3, cap=True):
        assert await tried(once, busy=AssistantBusy, deadline=time.monotonic() + 5, tries=3, what="answer") == "here"
    assert lines == [
        {"event": "asked again", "log_level": "info", "attempt": n, "reason": f"no answer yet: HTTP {status}"}
        for n, status in ((2, 503), (3, 429))
    ]
    assert {"attempt", "reason"} <= KNOWN
