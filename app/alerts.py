"""Calls a person: one line in the log and one count, under one name. docs/operations.md says of each what to do."""

from collections.abc import Callable

from app import metrics


def alert(tell: Callable[..., object], kind: str, event: str, /, **fields: object) -> None:
    """Count an alert of this kind, and tell of it. `tell`: the caller's own `log.error` or `log.warning`; `fields`: its keys."""
    metrics.alert(kind)
    tell(event, alert=kind, **fields)
