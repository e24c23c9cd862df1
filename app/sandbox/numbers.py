"""The WhatsApp numbers that the sandbox plays: where their webhooks go, how their statuses come.

It holds no traffic. It is also where the rule "loopback only" is written down.
"""

import base64
import ipaddress
import itertools
import os
import time
from functools import lru_cache
from urllib.parse import urlsplit

import msgspec

# Wall times that never step backwards: the ledger's order and its times must agree even if the clock is set.
_EPOCH = time.time() - time.monotonic()
_RUN = os.urandom(9)
_counter = itertools.count(1)


class NotLoopback(ValueError):
    """The sandbox talks to this machine only: 127.0.0.0/8, ::1 or localhost."""


class Ladder(msgspec.Struct, frozen=True, kw_only=True):
    """When the statuses of an accepted message come, in seconds after acceptance; None: that status never comes.

    With `sigma` > 0 one lognormal factor per message (median 1) stretches all its delays alike, so that their order
    stands; `cut` bounds each delay after that.
    """

    sent: float | None = 0.02
    delivered: float | None = 0.06
    read: float | None = 0.2
    sigma: float = 0.0
    cut: float | None = None


class Number(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `phone_number_id`.

    `token` None: any bearer token will do. `any_message_id`: take read receipts for messages that did not come from
    here (a bench that posts its own webhooks). `redelivery`: seconds before each further try of a webhook that was
    not answered 200, the last one repeated; `tries` bounds them all. `status_urls`: where statuses go instead of
    `webhook_url`, to each in turn, and redelivered likewise: the processes of one endpoint without a balancer.
    """

    phone_number_id: str
    webhook_url: str
    app_secret: str
    token: str | None = None
    ladder: Ladder = Ladder()
    display_phone_number: str = "15550001111"
    waba_id: str = "900000000000001"
    any_message_id: bool = False
    redelivery: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    tries: int = 60
    status_urls: tuple[str, ...] = ()


def now() -> float:
    """Unix time in seconds, carried forward by the monotonic clock."""
    return _EPOCH + time.monotonic()


def new_wamid() -> str:
    """A message id shaped like Meta's, unique over restarts."""
    return "wamid." + base64.b64encode(_RUN + next(_counter).to_bytes(6, "big")).decode()


def plain(recipient: str) -> str:
    """A recipient as the ledger names it: a phone number without plus and spaces, a BSUID as it is.

    A BSUID is a country code, a dot and an id ("US.123", WIRE.md 1.1).
    """
    if "." in recipient:
        return recipient
    return recipient.translate(_DROPPED) or recipient


_DROPPED = str.maketrans("", "", "+ -()")


@lru_cache(maxsize=1024)  # asked before every POST
def check_loopback(url: str) -> str:
    """Give `url` back if it is http(s) on this machine; raises NotLoopback."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not is_loopback(parts.hostname or ""):
        raise NotLoopback("a webhook's URL must be http(s)://127.x.x.x, [::1] or localhost")
    return url


def is_loopback(host: str) -> bool:
    """Whether a host, as written, is this machine. Names other than localhost are not: they could point anywhere."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address in _LOOPBACK4 if isinstance(address, ipaddress.IPv4Address) else address == _LOOPBACK6


_LOOPBACK4 = ipaddress.ip_network("127.0.0.0/8")
_LOOPBACK6 = ipaddress.ip_address("::1")
