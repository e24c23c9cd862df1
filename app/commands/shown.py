"""The breakers that a process on this machine shows: asked of its own /metrics, told to whoever typed `qasid breaker`."""

from msgspec import Struct

from app.settings import Settings

PATIENCE = 2.0  # seconds that a process may take to show its metrics


class Seen(Struct, frozen=True):
    """A breaker as one process shows it; `state` names several where server processes behind one port differ."""

    dependency: str
    state: str
    held: bool
    opened: int | None
    """By itself, since the process began; of several server processes all together. None: not counted for this one alone."""


def shown(settings: Settings, port: int) -> list[Seen] | str:
    """The breakers that a process on this machine shows at this port, or in words why it shows none."""
    import httpx

    if port == 0:
        return "not asked, since QASID_WORKER_METRICS_PORT is 0."
    # An address to listen at need not be one to ask at.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.host, settings.host)  # noqa: S104
    at = f"{f'[{host}]' if ':' in host else host}:{port}"
    headers = {b"Authorization": b"Bearer " + settings.metrics_token.encode()} if settings.metrics_token else {}
    try:
        # No proxy from the environment: it is this machine that is asked.
        answer = httpx.get(f"http://{at}/metrics", headers=headers, timeout=PATIENCE, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"does not answer at {at} ({type(error).__name__})."
    if answer.status_code == 403:
        return f"does not show its metrics at {at}: is QASID_METRICS_TOKEN the one that it was started with?"
    if answer.status_code != 200:
        return f"answers HTTP {answer.status_code} at {at}."
    try:
        return read(answer.text) or f"answers at {at}, and shows no breaker: an older build?"
    except ValueError:
        return f"what answers at {at} shows no metrics."


def read(text: str) -> list[Seen]:
    """The breakers in a page of metrics. Raises ValueError: it is no such page."""
    from prometheus_client.parser import text_string_to_metric_families

    states: dict[str, list[str]] = {}
    held: set[str] = set()
    opened: dict[str, int] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.labels.get("dependency", "")
            if sample.name == "qasid_breaker_state" and sample.value:
                states.setdefault(name, []).append(sample.labels["state"])
            elif sample.name == "qasid_breaker_forced" and sample.value:
                held.add(name)
            elif sample.name == "qasid_breaker_opened_total":
                opened[name] = int(sample.value)
    return [Seen(name, " / ".join(sorted(states[name])), name in held, opened.get(name)) for name in sorted(states)]
