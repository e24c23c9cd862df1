"""Graph's errors as they stand on the wire (WIRE.md 1.2): titles, HTTP statuses, the JSON shape. No decisions."""

import os

import msgspec

TITLES: dict[int, str] = {
    1: "An unknown error occurred",
    2: "Service temporarily unavailable",
    4: "Application request limit reached",
    100: "Invalid parameter",
    190: "Invalid OAuth access token",
    80007: "Rate limit issues",
    130429: "Rate limit hit",
    131000: "Something went wrong",
    131008: "Required parameter is missing",
    131009: "Parameter value is not valid",
    131016: "Service unavailable",
    131026: "Message undeliverable",
    131047: "Re-engagement message",
    131048: "Spam rate limit hit",
    131049: "This message was not delivered to maintain healthy ecosystem engagement",
    131050: "User has stopped marketing messages",
    131051: "Unsupported message type",
    131056: "(Business Account, Consumer Account) pair rate limit hit",
    131057: "Account in maintenance mode",
    131031: "Account has been locked",
    131042: "Business eligibility payment issue",
    368: "Temporarily blocked for policies violations",
}
_STATUS: dict[int, int] = {190: 401, 10: 403, 1: 500, 2: 503, 131000: 500, 130429: 429, 80007: 429, 4: 429}
_TRANSIENT = frozenset({1, 2, 4, 80007, 130429, 131000, 131016, 131056, 131057})


def usual_status(code: int) -> int:
    """The HTTP status that usually comes with a code; 400 for most."""
    return _STATUS.get(code, 400)


def error_body(code: int, details: str = "") -> bytes:
    """The JSON of an error answer."""
    title = TITLES.get(code, "Unknown error")
    error: dict[str, object] = {
        "message": f"(#{code}) {title}",
        "type": "OAuthException",
        "code": code,
        "error_data": {"messaging_product": "whatsapp", "details": details or title},
        "is_transient": code in _TRANSIENT,
        "fbtrace_id": "A" + os.urandom(9).hex(),
    }
    return msgspec.json.encode({"error": error})
