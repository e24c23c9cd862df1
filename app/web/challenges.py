"""Meta's verification of a webhook's URL: a GET without a signature, by one person in front of Meta's page."""

import hmac
import time
from urllib.parse import parse_qsl

from app import metrics
from app.directory import Endpoint

# Wrong tokens per endpoint and minute.
MOST_CHALLENGES = 10


class Challenges:
    """Answers them, and remembers the last minute's wrong tokens."""

    def __init__(self) -> None:
        self._wrong: dict[str, list[float]] = {}  # when, by endpoint (monotonic)

    def answer(self, endpoint: Endpoint, query: bytes) -> tuple[int, bytes, metrics.Webhook]:
        """HTTP status, body, and what the counter calls it: the challenge is echoed to whoever knows the verify token."""
        now = time.monotonic()
        recent = [at for at in self._wrong.get(endpoint.slug, []) if now - at < 60]
        if len(recent) >= MOST_CHALLENGES:
            return 429, b"Too many wrong tokens; wait a minute.", "refused"
        try:
            asked = dict(parse_qsl(query.decode("latin-1"), max_num_fields=20))
        except ValueError:
            asked = {}  # more fields than anybody has to ask with
        challenge = asked.get("hub.challenge", "")
        if (
            asked.get("hub.mode") != "subscribe"
            or not (challenge.isascii() and challenge.isdigit())
            or len(challenge) > 64
        ):
            return 400, b"This is the address for webhooks; a challenge is made of digits.", "challenge"
        token = asked.get("hub.verify_token", "").encode()
        if endpoint.verify_token is None or not hmac.compare_digest(token, endpoint.verify_token.encode()):
            self._wrong[endpoint.slug] = [*recent, now]
            return 403, b"The verify token does not fit.", "refused"
        return 200, challenge.encode(), "challenge"
