"""Says in lines for people what differs between two Structs of the configuration. Never shows a secret."""

from collections.abc import Iterator

from msgspec import Struct

from app.vault import Secret

SHOWN = 60


def differences(place: str, before: Struct, after: Struct) -> list[str]:
    """A line per field that differs, `place` before its name: `+` is new, `-` is gone, `~` is another."""
    return list(_lines(place, before, after))


def _lines(place: str, before: Struct, after: Struct) -> Iterator[str]:
    for name in after.__struct_fields__:
        old, new = getattr(before, name), getattr(after, name)
        here = f"{place}.{name}"
        if old == new:
            continue
        if isinstance(old, Struct) and isinstance(new, Struct):
            yield from _lines(here, old, new)
        elif isinstance(new, Struct):
            yield f"+ {here}"
        elif isinstance(old, Struct):
            yield f"- {here}"
        elif _is_secret(old) or _is_secret(new):
            yield f"~ {here}: changed"
        elif isinstance(old, tuple) or isinstance(new, tuple):
            yield f"~ {here}: replaced ({len(old or ())} → {len(new or ())})"
        else:
            yield f"~ {here}: {_shown(old)} → {_shown(new)}"


def _is_secret(value: object) -> bool:
    return isinstance(value, Secret) or (isinstance(value, tuple) and any(isinstance(v, Secret) for v in value))


def _shown(value: object) -> str:
    """A value in one short line."""
    if value is None or value == "":
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
