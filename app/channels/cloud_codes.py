"""What the Cloud API's error codes mean for a send: what may be done, when, and whom the wait binds.

By `code`; the HTTP status decides two things only: 5xx is in doubt, and a 429's wait binds the whole number.
Source: Meta's page of error codes and pywa's list (pywa/errors.py); what to do about each is our reading.
"""

import httpx

from app.channels import PAIR_SECONDS
from app.channels.cloud_waits import regain_access
from app.errors import InDoubt, Refused, Scope
from app.retrying import retry_after

# The provider does not say whether it took the message.
UNKNOWN = frozenset({1, 2, 131000})
# A person has to mend the token, a permission, a payment or the account; until then every send would end the same way.
HELD = frozenset({0, 3, 10, 190, 368, 131031, 130497, 131042, 131044, 131045, *range(200, 300)})
# Busy, down or moving house: it will take the same message later.
BUSY = {4: 60.0, 80007: 60.0, 130429: 1.0, 131016: 5.0, 131057: 60.0, 133016: 60.0}
# Too many messages to this one recipient: 4ⁿ seconds, where one message in 6 s is allowed.
PAIR = 131056
# The limit of the number: about 80 messages a second, all of which its wait stops. So it grows little.
THROUGHPUT, THROUGHPUT_AT_MOST = 130429, 16.0
# The limits of the app and the account, which all numbers of a tenant share.
ACCOUNT = frozenset({4, 80007})


def refusal(
    code: int,
    message: str,
    attempt: int,
    *,
    status: int = 400,
    headers: httpx.Headers | None = None,
    pair_seconds: float = PAIR_SECONDS,
) -> Refused | InDoubt:
    """What an error answer with a Graph `code` says, the `attempt`-th of its kind (from 1). `message` is for the operator.

    No wait is shorter than the answer's `Retry-After`, and that one binds the whole number, as a 429 does by itself.
    But what a code says more exactly stands: too many to one person (131056, seen as 400 and as 429) is that
    person's affair, a limit of the account (4, 80007) the tenant's.
    """
    headers = headers or httpx.Headers()
    said = f"Graph error {code}: {message[:200]}"
    asked = retry_after(headers) or 0.0
    if code in UNKNOWN:
        return InDoubt(said, after=asked)
    scope: Scope = "channel" if code == THROUGHPUT or status == 429 or asked else "chunk"
    if code in HELD:
        wait = min(300.0, 10.0 * 2.0 ** min(attempt, 10))
        return Refused(said, code=code, then="hold", after=max(asked, wait), scope=scope)
    if code == PAIR:
        wait = 4.0 ** min(attempt, 5) * pair_seconds / PAIR_SECONDS
        return Refused(said, code=code, then="again", after=max(asked, wait), scope="chunk")
    if code in BUSY:
        most = THROUGHPUT_AT_MOST if code == THROUGHPUT else 300.0
        wait = min(most, BUSY[code] * 2.0 ** min(attempt - 1, 8))
        if code in ACCOUNT:
            scope, wait = "tenant", regain_access(headers) or wait
        return Refused(said, code=code, then="again", after=max(asked, wait), scope=scope)
    return Refused(said, code=code, then="dead", after=asked, scope=scope)
