"""What the Cloud API's error codes mean for a send. By `code` alone; the HTTP status decides one thing: 5xx is in doubt.

Source: Meta's page of error codes and pywa's list (pywa/errors.py); what to do about each is our reading.
"""

from app.errors import InDoubt, Refused

# The provider does not say whether it took the message.
UNKNOWN = frozenset({1, 2, 131000})
# A person has to mend the token, a permission, a payment or the account; until then every send would end the same way.
HELD = frozenset({0, 3, 10, 190, 368, 131031, 130497, 131042, 131044, 131045, *range(200, 300)})
# Busy, down or moving house: it will take the same message later.
BUSY = {4: 60.0, 80007: 60.0, 130429: 1.0, 131016: 5.0, 131057: 60.0, 133016: 60.0}
# Too many messages to this one recipient: 4ⁿ seconds.
PAIR = 131056


def refusal(code: int, message: str, attempt: int) -> Refused | InDoubt:
    """What an error answer with a Graph `code` says, the `attempt`-th of its kind (from 1). `message` is for the operator."""
    said = f"Graph error {code}: {message[:200]}"
    if code in UNKNOWN:
        return InDoubt(said)
    if code in HELD:
        return Refused(said, code=code, then="hold", after=min(300.0, 10.0 * 2.0 ** min(attempt, 10)))
    if code == PAIR:
        return Refused(said, code=code, then="again", after=4.0 ** min(attempt, 5))
    if code in BUSY:
        return Refused(said, code=code, then="again", after=min(300.0, BUSY[code] * 2.0 ** min(attempt - 1, 8)))
    return Refused(said, code=code, then="dead")
