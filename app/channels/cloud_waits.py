"""How long Meta's account of the calls that were made asks us to be left alone.

It reads a header and decides nothing; what that asks for binds whom `cloud_codes.py` says. `Retry-After`: app/retrying.py.
"""

import httpx
import msgspec
from msgspec import Struct

from app.retrying import LONGEST


class _Usage(Struct):
    estimated_time_to_regain_access: float = 0.0  # minutes


_usage = msgspec.json.Decoder(dict[str, list[_Usage]])


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
