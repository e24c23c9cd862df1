"""How long an answer's headers ask to be left alone: `Retry-After`, and Meta's account of the calls that were made.

It reads headers and decides nothing; what they ask for binds whom `cloud_codes.py` says.
"""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
import msgspec
from msgspec import Struct

# Longer than this a header does not bind us: one wrong figure would silence a number for days.
LONGEST = 3600.0

_SECONDS = re.compile(r"[0-9]+")


class _Usage(Struct):
    estimated_time_to_regain_access: float = 0.0  # minutes


_usage = msgspec.json.Decoder(dict[str, list[_Usage]])


def retry_after(headers: httpx.Headers) -> float:
    """Seconds, 0 to `LONGEST`, that `Retry-After` asks for: a number of them or a date (RFC 9110, 10.2.3).

    A date counts from the answer's own `Date`, if it has one: our clock may go wrong. Nonsense asks for nothing.
    """
    waits = (_wait(value.strip(), headers) for value in headers.get_list("retry-after"))
    return max((min(max(wait, 0.0), LONGEST) for wait in waits), default=0.0)


def _wait(value: str, headers: httpx.Headers) -> float:
    if _SECONDS.fullmatch(value):
        return float(value) if len(value) < 10 else LONGEST
    until = _date(value)
    if until is None:
        return 0.0
    return (until - (_date(headers.get("date", "")) or datetime.now(UTC))).total_seconds()


def _date(value: str) -> datetime | None:
    """One of HTTP's three forms of a date, all of them in GMT."""
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def regain_access(headers: httpx.Headers) -> float | None:
    """Seconds, up to `LONGEST`, until Meta lets the account call again; None where it does not say.

    `X-Business-Use-Case-Usage` lists, for each business, the use of each kind of call and "estimated time to regain
    access" in minutes; the longest of them counts. Source: Meta's page "Rate Limits", business use case limits.
    `X-App-Usage` names no time.
    """
    try:
        businesses = _usage.decode(headers.get("x-business-use-case-usage", ""))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    minutes = max((u.estimated_time_to_regain_access for usages in businesses.values() for u in usages), default=0.0)
    return min(minutes * 60.0, LONGEST) if minutes > 0 else None
