"""Every metric of Qasid, declared here and nowhere else, and how a process shows them.

One function counts one thing; it remembers the series of each label, since `labels()` takes a lock each time.

Several web processes behind one port share what they count through PROMETHEUS_MULTIPROC_DIR (`qasid web` sets it, to a
fresh folder, when QASID_WEB_WORKERS is above 1). Workers never share: each has a port of its own.
"""

import functools
import hmac
import ipaddress
import os
import re
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args
from weakref import WeakKeyDictionary
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, ThreadingWSGIServer, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from app.breaker import STANDS_OPEN, Breaker, State
from app.errors import ConfigurationError

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, that nobody reads

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1, 2.5, 5, 10, 30, 60)
_LAGS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 500)
_OUTAGES = (1, 2, 5, 10, 20, 45, 90, 300, 900, 3600)

_Metric = TypeVar("_Metric", Counter, Histogram, Gauge)

# What labels tell apart; docs/operations.md has each of them.
Webhook = Literal[
    "stored",
    "spooled",
    "unreadable",
    "refused",
    "unavailable",
    "overloaded",
    "too_large",
    "slow",
    "challenge",
    "method",
    "unknown",
    "unserved",
]
WakeUp = Literal["rung", "lost", "answered"]
Fallback = Literal["answered", "failed"]
Spooled = Literal["kept", "refused", "replayed"]
Session = Literal["hit", "miss", "stale"]
Translation = Literal["made", "remembered", "failed"]
File = Literal["read", "transcribed", "busy", "refused", "forbidden", "unread"]
Typing = Literal["shown", "failed", "dropped"]


def _by_label(metric: _Metric) -> Callable[..., _Metric]:
    return functools.cache(metric.labels)


_webhooks = _by_label(Counter("qasid_webhooks", "Webhooks answered", ["endpoint", "outcome"]))
_items = _by_label(Counter("qasid_items", "Webhook items by what became of them", ["verdict"]))
_flush_rows = _by_label(Histogram("qasid_flush_rows", "Rows in one commit", ["batch"], buckets=_ROWS))
_flush_seconds = _by_label(Histogram("qasid_flush_seconds", "Duration of one commit", ["batch"], buckets=_SECONDS))
_statuses = _by_label(Counter("qasid_statuses", "Statuses of our messages", ["status", "result"]))
_wake_ups = _by_label(Counter("qasid_wake_ups", "Wake-ups", ["result"]))
_woken_lanes = _by_label(Counter("qasid_woken_lanes", "Lanes that wake-ups named", ["result"]))
_turns = _by_label(Counter("qasid_turns", "Turns settled", ["outcome"]))
_limited = _by_label(Counter("qasid_limited", "Turns and calls that met a limit of their tenant's", ["limit"]))
_fallbacks = _by_label(Counter("qasid_fallbacks", "Turns that went on to the second assistant", ["result"]))
_sends = _by_label(Counter("qasid_sends", "Attempts to hand a chunk to the provider", ["outcome"]))
_stages = _by_label(Histogram("qasid_stage_seconds", "Duration of a stage", ["stage"], buckets=_SECONDS))
_alerts = _by_label(Counter("qasid_alerts", "What a person should look at", ["kind"]))
_breaker_opened = _by_label(Counter("qasid_breaker_opened", "Breakers that opened by themselves", ["dependency"]))
_breaker_open_seconds = _by_label(
    Histogram("qasid_breaker_open_seconds", "How long a breaker stood open", ["dependency"], buckets=_OUTAGES)
)
# The highest of all web processes: each has breakers of its own, and one that is open shall show. The most recent would
# hide it behind another that has just closed, and `max` would show a killed process's for ever.
_breaker_states = Gauge("qasid_breaker_state", "1: in this state", ["dependency", "state"], multiprocess_mode="livemax")
_breakers_forced = Gauge("qasid_breaker_forced", "1: held by a person", ["dependency"], multiprocess_mode="livemax")
_breaker_state, _breaker_forced = _by_label(_breaker_states), _by_label(_breakers_forced)
_sessions = _by_label(Counter("qasid_sessions", "Turns by where their conversation came from", ["result"]))
_translations = _by_label(Counter("qasid_translations", "Texts to translate by what became of them", ["result"]))
_files = _by_label(Counter("qasid_files", "Files that people sent, by what became of them", ["result"]))
_typing = _by_label(Counter("qasid_typing", "Read receipts, with or without typing", ["result"]))
_session_bytes = Gauge("qasid_session_bytes", "Conversations kept in memory", multiprocess_mode="livesum")
_lanes_held = Gauge("qasid_lanes_held", "Lanes that this process holds", multiprocess_mode="livesum")
_spooled = _by_label(Counter("qasid_spooled", "Webhooks that the database could not take", ["result"]))
_spool_bytes = Gauge("qasid_spool_bytes", "Bytes in the spool's folder", multiprocess_mode="livemax")
_spool_records = Gauge("qasid_spool_records", "Webhooks in the spool", multiprocess_mode="livemax")
_spool_oldest = Gauge("qasid_spool_oldest_seconds", "Age of the spool's oldest segment", multiprocess_mode="livemax")
_spool_corrupt = Gauge("qasid_spool_corrupt", "Files set aside as damaged", multiprocess_mode="livemax")
_spool_unreadable = Gauge(
    "qasid_spool_unreadable", "Files of the spool that the disk refuses", multiprocess_mode="livemax"
)
_spool_refuses = Gauge("qasid_spool_refuses", "1: the spool takes no webhooks", multiprocess_mode="livemax")
_loop_lag = Histogram("qasid_loop_lag_seconds", "How late the event loop comes", buckets=_LAGS)
_loop_blocked = Counter("qasid_loop_blocked", "Times that the event loop was held up, and where is known")


def webhook(endpoint: str, outcome: Webhook) -> None:
    """A webhook, or a challenge, was answered.

    `endpoint` is a slug of the directory, else "unknown": a stranger's URLs must not make series.
    """
    _webhooks(endpoint, outcome).inc()


def item(verdict: str) -> None:
    """An item of a webhook got a verdict: stored, duplicate, quarantined, later, gone."""
    _items(verdict).inc()


def flush(batch: str, rows: int, seconds: float) -> None:
    """A batch of so many rows was committed: ingest, statuses, the spool's, or one of the worker's (open, memo, settle, …)."""
    _flush_rows(batch).observe(rows)
    _flush_seconds(batch).observe(seconds)


def status(status: str, result: str) -> None:
    """A provider said something of a message of ours: applied, or kept without effect."""
    _statuses(status, result).inc()


def wake_up(result: WakeUp, lanes: int = 1) -> None:
    """What became of a wake-up that names so many lanes."""
    _wake_ups(result).inc()
    _woken_lanes(result).inc(lanes)


def wake_up_unnamed() -> None:
    """A lane woke that no wake-up will name: too many did. Workers find it all the same."""
    _woken_lanes("unnamed").inc()


def turn(outcome: str) -> None:
    """A turn was settled, with an outcome of the table `usage`."""
    _turns(outcome).inc()


def limited(limit: str) -> None:
    """A turn or a call met a limit, by the name of its key: it is not answered by the assistant, or waits."""
    _limited(limit).inc()


def fallback(result: Fallback) -> None:
    """The second assistant was asked."""
    _fallbacks(result).inc()


def send(outcome: str) -> None:
    """An attempt ended: accepted, refused, held, never_left, in_doubt."""
    _sends(outcome).inc()


def stage(name: str, seconds: float) -> None:
    """A stage of a message's way took so long: ack, queue, db, ai, translate, send, fastpath."""
    _stages(name).observe(seconds)


def spooled(result: Spooled) -> None:
    """A webhook that the database could not take was kept, refused, or later replayed."""
    _spooled(result).inc()


def spool(*, bytes: int, records: int, oldest: float, corrupt: int, unreadable: int, refuses: bool) -> None:
    """How the spool stands; every process that shares its folder sees the same. `oldest`: seconds."""
    _spool_bytes.set(bytes)
    _spool_records.set(records)
    _spool_oldest.set(oldest)
    _spool_corrupt.set(corrupt)
    _spool_unreadable.set(unreadable)
    _spool_refuses.set(refuses)


def alert(kind: str) -> None:
    """Something that a person should look at: see `app.alerts`, which logs it too."""
    _alerts(kind).inc()


def breaker(breaker: Breaker, before: State, *, kind: str | None = None) -> None:
    """A breaker has changed: fit for its `on_change`. Call it once at the start, too, so that there is something to see.

    `kind`: it is one of many (channel, assistant, …), as many as there are tenants. Then it has series of its own only while
    it is not closed, or is held; what is counted is counted for all of its kind together. Not for processes that share.
    """
    name, state = breaker.name, breaker.state
    if kind is None:
        for each in get_args(State):
            _breaker_state(name, each).set(each == state)
        _breaker_forced(name).set(breaker.forced is not None)
    else:
        _show(breaker)
    _breaker_opened(kind or name).inc(breaker.opened - _openings.get(breaker, 0))
    _openings[breaker] = breaker.opened
    if before in STANDS_OPEN and state not in STANDS_OPEN:
        _breaker_open_seconds(kind or name).observe(breaker.stood_open)


def forget_breaker(breaker: Breaker) -> None:
    """One of many is gone: so are its series."""
    _hide(breaker.name)


def _show(breaker: Breaker) -> None:
    _hide(breaker.name)
    if breaker.state != "closed" or breaker.forced is not None:
        _breaker_states.labels(breaker.name, breaker.state).set(1)
    if breaker.forced is not None:
        _breakers_forced.labels(breaker.name).set(1)


def _hide(name: str) -> None:
    for state in get_args(State):
        _breaker_states.remove(name, state)
    _breakers_forced.remove(name)


# How often each is counted to have opened.
_openings: WeakKeyDictionary[Breaker, int] = WeakKeyDictionary()


def lanes_held(lanes: int) -> None:
    """This process holds so many lanes now."""
    _lanes_held.set(lanes)


def session(result: Session) -> None:
    """A turn had its conversation so far: from memory (hit), from the database (miss), from memory without knowing (stale)."""
    _sessions(result).inc()


def translation(result: Translation) -> None:
    """A text was translated (made), or had been before (remembered), or stands as it was (failed)."""
    _translations(result).inc()


def file(result: File) -> None:
    """What became of a file that came with a message."""
    _files(result).inc()


def typing(result: Typing) -> None:
    """A person was told that their message was read, or that an answer is on its way."""
    _typing(result).inc()


def session_bytes(size: int) -> None:
    """So many bytes of conversations are kept in memory."""
    _session_bytes.set(size)


def loop_lag(seconds: float) -> None:
    """The event loop came so much later than asked."""
    _loop_lag.observe(seconds)


def loop_blocked() -> None:
    """Something held the event loop up, and it is known where. Whoever calls this logs it too, though not each time."""
    _loop_blocked.inc()


def render() -> bytes:
    """All metrics in Prometheus' text format: this process's, or those of all that share PROMETHEUS_MULTIPROC_DIR."""
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not shared:
        return generate_latest(REGISTRY)
    for file in Path(shared).glob("gauge_live*.db"):
        # A killed process leaves its gauges behind.
        if (pid := re.search(r"_(\d+)\.db$", file.name)) and not Path(f"/proc/{pid[1]}").exists():
            mark_process_dead(int(pid[1]), shared)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry, shared)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def may_read(token: str | None, *, authorization: str | None, client: str | None, forwarded: bool) -> bool:
    """Whether a request may read the metrics: by the bearer token, or where none is set, from this machine.

    `client` is the socket's address. `forwarded`: a proxy says that it speaks for somebody else, so its own address,
    on this machine too, says nothing.
    """
    if token:
        given = (authorization or "").encode()
        return hmac.compare_digest(given, b"Bearer " + token.encode())
    if forwarded or client is None:
        return False
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def serve_worker_metrics(host: str, port: int, token: str | None = None) -> Callable[[], None]:
    """Serve /metrics of this process from a thread of its own, and return what stops it. Port 0: serve nothing.

    Raises:
        ConfigurationError: the port is taken, or the host is not ours.
    """
    if port == 0:
        return lambda: None

    def answer(environ: dict[str, Any], start: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
        status, body = HTTPStatus.OK, b""
        if environ["PATH_INFO"] != "/metrics" or environ["REQUEST_METHOD"] != "GET":
            status = HTTPStatus.NOT_FOUND
        elif not may_read(
            token,
            authorization=environ.get("HTTP_AUTHORIZATION"),
            client=environ.get("REMOTE_ADDR"),
            forwarded="HTTP_X_FORWARDED_FOR" in environ or "HTTP_FORWARDED" in environ,
        ):
            status = HTTPStatus.FORBIDDEN
        else:
            body = render()
        start(f"{status.value} {status.phrase}", [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(body)))])
        return [body]

    try:
        server = make_server(host, port, answer, ThreadingWSGIServer, handler_class=_Silent)
    except OSError as error:
        raise ConfigurationError(
            f"The worker's metrics cannot be served at {host}:{port} ({error.strerror}). Give each worker a "
            f"QASID_WORKER_METRICS_PORT of its own, or 0 for none."
        ) from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop


class _Silent(WSGIRequestHandler):
    """Answers without a log line for each request."""

    timeout = 5  # seconds that a client may take to say what it wants

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
