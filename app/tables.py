"""Turns TOML's tables into Structs and notes every mistake on the way. Knows no key of the configuration.

msgspec judges the values; the walk is ours, since msgspec stops at the first mistake and does not say which key of a
table it is in.
"""

import codecs
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from app.errors import ConfigurationError
from app.vault import Secret

SECRET_BYTES = 64 * 1024
# Characters of what a person knows an element of a list by.
SHOWN = 40

Name = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z", description="letters, digits, - and _, at most 63")
]


class Mistakes(list[str]):
    """What is wrong with a file, a line each: `key.path: reason`."""

    def add(self, place: str, reason: str) -> None:
        self.append(f"{place}: {reason}")

    def stop(self, path: Path) -> None:
        """Raise a ConfigurationError that tells all of them, if there are any."""
        if len(self) == 1:
            raise ConfigurationError(f"{path}: {self[0]}")
        if self:
            raise ConfigurationError("\n  ".join([f"{path} has {len(self)} mistakes:", *self]))


S = TypeVar("S", bound=Struct)


class _Failed:
    """Stands for a value that is wrong, after its mistake was noted."""


FAILED = _Failed()


class Reader:
    """Reads one file; `folder` is where it lies, for `file:` references, `environ` is for `env:` references."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.mistakes = Mistakes()
        self._folder = folder
        self._environ = environ

    def table(self, kind: type[S], raw: object, place: str) -> S | None:
        """The table, or None if it is not to be had; what is wrong in it is noted either way."""
        if not isinstance(raw, dict):
            self.mistakes.add(place, "must be a table.")
            return None
        fields = {f.name: f for f in msgspec.structs.fields(kind)}
        for key in raw:
            if key not in fields:
                self.mistakes.add(_join(place, key), _unknown(key, list(fields)))
        values: dict[str, Any] = {}
        whole = True
        for name, field in fields.items():
            if name in raw:
                values[name] = self.value(field.type, raw[name], _join(place, name))
                whole &= values[name] is not FAILED
            elif field.required:
                self.mistakes.add(_join(place, name), "is missing.")
                whole = False
        return kind(**values) if whole else None

    def value(self, kind: Any, raw: object, place: str) -> Any:
        """The value as `kind`, or FAILED."""
        origin, inner = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            return self.value(next(k for k in inner if k is not NoneType), raw, place)
        if kind is Secret:
            return self.secret(raw, place)
        if origin is Literal:
            if raw in inner and isinstance(raw, str):
                return raw
            return self._wrong(place, f"must be {' or '.join(inner)}.")
        if origin is tuple:
            return self._list(inner[0], raw, place)
        if origin is dict:
            return self._tables(inner[1], raw, place)
        if isinstance(kind, type) and issubclass(kind, Struct):
            return self.table(kind, raw, place) or FAILED
        if most := (_meta(kind).extra or {}).get("from_file"):
            return self.text(raw, place, most)
        if isinstance(raw, str) and "\0" in raw:
            return self._wrong(place, "has the character U+0000 in it, which PostgreSQL cannot store.")
        try:
            found = msgspec.convert(raw, kind)
        except msgspec.ValidationError:
            return self._wrong(place, f"must be {_described(kind)}.")
        end = (_meta(kind).extra or {}).get("without_end")
        return found.rstrip(end) if end else found

    def secret(self, raw: object, place: str) -> Secret | _Failed:
        """What the reference leads to. A value that is no reference may be the secret itself, so it is never quoted."""
        scheme, _, name = raw.partition(":") if isinstance(raw, str) else ("", "", "")
        if scheme == "env" and name:
            text = self._environ.get(name, "")
            # A token behind `env:` by mistake does not look like this.
            named = name if re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name) else "that it names"
            source = f"the environment variable {named}"
            missing = f"{source} is not set."
        elif scheme == "file" and name:
            source = "the file that it names"
            found = self._file(name, SECRET_BYTES, place, source)
            if isinstance(found, _Failed):
                return found
            text = found
            missing = f"{source} is empty."
        else:
            return self._wrong(place, "must be a reference, env:NAME or file:PATH; a secret never stands in this file.")
        text = text.strip()
        if not text:
            return self._wrong(place, missing)
        if len(text) > SECRET_BYTES or not (text.isascii() and text.isprintable()):
            return self._wrong(place, f"{source} must hold one line of printable ASCII.")
        return Secret(text)

    def text(self, raw: object, place: str, most: int) -> str | _Failed:
        """The whole text that `file:PATH` leads to, of at most so many bytes, as it stands there but for a byte order mark.

        Unlike a secret's its path is told, wherever it is wrong.
        """
        scheme, _, name = raw.partition(":") if isinstance(raw, str) else ("", "", "")
        if scheme != "file" or not name:
            return self._wrong(place, "must be a reference, file:PATH, to a text.")
        source = f"the file {self._folder / name}"
        found = self._file(name, most, place, source)
        if isinstance(found, _Failed):
            return found
        found = found.removeprefix("\ufeff")
        if len(found.encode()) > most:
            return self._wrong(place, f"{source} is larger than {most // 1024} KiB.")
        if "\0" in found:
            return self._wrong(place, f"{source} has U+0000 in it, which PostgreSQL cannot store.")
        if not found.strip():
            return self._wrong(place, f"{source} is empty.")
        return found

    def _file(self, name: str, most: int, place: str, source: str) -> str | _Failed:
        """The text of a file beside this one; of one that is larger, more than `most` bytes."""
        try:
            with (self._folder / name).open("rb") as file:
                raw = file.read(most + 8)  # with a byte order mark before, and half a character at the end
            return codecs.getincrementaldecoder("utf-8")().decode(raw, final=len(raw) <= most)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not a text in UTF-8"
            return self._wrong(place, f"{source} cannot be read: {why}.")

    def _list(self, kind: Any, raw: object, place: str) -> tuple[Any, ...] | _Failed:
        if not isinstance(raw, list):
            advice = f": write [[{place}]], with double brackets" if isinstance(raw, dict) else ""
            return self._wrong(place, f"must be a list{advice}.")
        values = tuple(self.value(kind, each, element(place, n, kind, each)) for n, each in enumerate(raw))
        return FAILED if any(each is FAILED for each in values) else values

    def _tables(self, kind: type[Struct], raw: object, place: str) -> dict[str, Any] | _Failed:
        if not isinstance(raw, dict):
            return self._wrong(place, "must be a table.")
        values = {}
        for slug, each in raw.items():
            try:
                msgspec.convert(slug, Name)
            except msgspec.ValidationError:
                self.mistakes.add(_join(place, slug), f"is no name: it must be {_described(Name)}.")
            values[slug] = self.table(kind, each, _join(place, slug))
        return {slug: each for slug, each in values.items() if each is not None}

    def _wrong(self, place: str, reason: str) -> _Failed:
        self.mistakes.add(place, reason)
        return FAILED


def element(place: str, n: int, kind: Any, each: object) -> str:
    """The place of one of a list: its number, from zero, and what a person knows it by, where its kind has `CALLED`, keys
    that say so: the first text of the first of them that it has.
    """
    for key in getattr(kind, "CALLED", ()):
        value = each.get(key) if isinstance(each, dict) else getattr(each, key, None)
        first = next(iter(value), None) if isinstance(value, list | tuple) else value
        if isinstance(first, str):
            return f"{place}[{n}] ({msgspec.json.encode(first[:SHOWN]).decode()})"
    return f"{place}[{n}]"


def _join(place: str, key: str) -> str:
    """A key as TOML would write it."""
    shown = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else msgspec.json.encode(key).decode()
    return f"{place}.{shown}" if place else shown


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known are {', '.join(known)}."


def _described(kind: Any) -> str:
    return "true or false" if kind is bool else _meta(kind).description or str(kind)


def _meta(kind: Any) -> Meta:
    return next((each for each in getattr(kind, "__metadata__", ()) if isinstance(each, Meta)), Meta())
