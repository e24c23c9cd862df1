"""The configuration file as a person writes it: its keys, their defaults, their bounds, and what fits with what.

Reads one TOML file and the secrets that it refers to. Knows no database: app/apply.py brings a `Configuration` into it.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from app.assistants.intents import normalise
from app.errors import ConfigurationError
from app.vault import Secret

FILE_BYTES = 4 * 1024 * 1024
SECRET_BYTES = 64 * 1024

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z", description="letters, digits, - and _, at most 63")]
Text = Annotated[str, Meta(pattern=r"\S", description="a text that is not empty")]
Prompt = Annotated[str, Meta(description="a text")]
Url = Annotated[str, Meta(pattern=r"\A[!-~]{1,2000}\Z", description="a URL like https://host/path, in ASCII without spaces")]
Language = Annotated[str, Meta(pattern=r"\A[a-z]{2,3}(-[A-Za-z0-9]{2,8})*\Z", description='a language code like "ar" or "en"')]
Tokens = Annotated[int, Meta(ge=1, le=1_000_000, description="a whole number from 1 to 1,000,000")]
Messages = Annotated[int, Meta(ge=0, le=1_000, description="a whole number from 0 to 1,000")]
Limit = Annotated[int, Meta(ge=0, le=1_000_000, description="a whole number from 0 to 1,000,000")]
Seconds = Annotated[float, Meta(gt=0, le=3_600, description="a number above 0, at most 3,600")]
Hours = Annotated[float, Meta(gt=0, le=8_760, description="a number above 0, at most 8,760")]


class Endpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[endpoints.<slug>]`: a webhook URL and what its webhooks are verified with."""

    kind: Literal["cloud", "evolution"]
    secrets: tuple[Secret, ...]
    verify_token: Secret | None = None


class Fallback(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>.assistant.fallback]`: another assistant, asked when the first cannot answer."""

    provider: Literal["anthropic", "openai", "ansari"]
    base_url: Url
    api_key: Secret
    model: Text | None = None
    system: Prompt = ""
    max_tokens: Tokens = 4096
    deadline_seconds: Seconds = 60.0
    history_messages: Messages = 20
    history_tokens: Limit = 8000


class Assistant(Fallback, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>.assistant]`: who answers. `history_…`: how much of the session it is shown, whichever ends first."""

    fallback: Fallback | None = None


class Translation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>.translation]`: who translates citations."""

    provider: Literal["assistant", "libretranslate", "none"] = "assistant"
    base_url: Url | None = None
    api_key: Secret | None = None
    source: Language = "ar"
    target: Language = "en"


class Texts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>.texts]`: what people read when the assistant cannot answer."""

    failure: Text = "Sorry, I could not answer just now. Please try again in a moment."
    location: Text = "Thank you for the location."
    unsupported: Text = "I can read text messages only, for now."


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>.limits]`. None or 0: no limit. The loop brake (per minute) is on without this table."""

    messages_per_contact_per_day: Limit | None = None
    replies_per_conversation_per_minute: Limit = 20


class Intent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[tenants.<slug>.intents]]`: a fixed reply to a whole text (app/assistants/intents.py says what is alike)."""

    match: tuple[Text, ...]
    reply: Text


class Channel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>.channels.<slug>]`: one WhatsApp address, reached through an endpoint."""

    endpoint: Name
    address: Annotated[str, Meta(pattern=r"\A\S(.{0,254}\S)?\Z", description="a phone_number_id or an instance's name")]
    base_url: Url
    token: Secret
    enabled: bool = True
    session_gap_hours: Hours = 3.0
    answer_within_hours: Hours = 24.0
    late: Literal["answer", "apologise", "notice", "store"] = "store"


class Tenant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>]`: an organisation. A table that is None is not in the file, and is left as the database has it.

    A tenant may have no assistant: what its intents do not answer is answered with `texts.failure`.
    """

    name: Text
    enabled: bool = True
    in_doubt: Literal["resend", "park"] = "resend"
    assistant: Assistant | None = None
    translation: Translation | None = None
    texts: Texts | None = None
    limits: Limits | None = None
    intents: tuple[Intent, ...] | None = None
    channels: dict[str, Channel] = {}


class Tables(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    endpoints: dict[str, Endpoint] = {}
    tenants: dict[str, Tenant] = {}


class Configuration(Struct, frozen=True, kw_only=True):
    """A file that was read and found right in itself. Warnings name keys that do nothing yet."""

    path: Path
    endpoints: dict[str, Endpoint]
    tenants: dict[str, Tenant]
    warnings: tuple[str, ...]


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


def load(path: Path, environ: Mapping[str, str]) -> Configuration:
    """The file at `path`, its secrets resolved from `environ` and from files beside it.

    Raises:
        ConfigurationError: it cannot be read, or has mistakes: all that were found, none with a secret in it.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES + 1)
        if len(raw) > FILE_BYTES:
            raise ConfigurationError(f"{path}: larger than {FILE_BYTES // 1024**2} MiB; is it the right file?")
        tables = tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        reason = error if isinstance(error, tomllib.TOMLDecodeError) else "not a UTF-8 text that makes sense"
        raise ConfigurationError(f"{path}: not TOML: {reason}.") from None
    reader = _Reader(path.parent, environ)
    found = reader.table(Tables, tables, "")
    if found is not None:
        _check(found, reader.mistakes)
    if found is not None and not found.endpoints and not found.tenants and not reader.mistakes:
        raise ConfigurationError(f"{path}: names no endpoint and no tenant.")
    reader.mistakes.stop(path)
    assert found is not None
    return Configuration(
        path=path, endpoints=found.endpoints, tenants=found.tenants, warnings=tuple(_without_effect(found))
    )


S = TypeVar("S", bound=Struct)


class _Failed:
    """Stands for a value that is wrong, after its mistake was noted."""


FAILED = _Failed()


class _Reader:
    """Turns TOML's values into the Structs above. msgspec judges the values; the walk is ours, since msgspec stops at
    the first mistake and does not say which key of a table it is in.
    """

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
        if isinstance(raw, str) and "\0" in raw:
            return self._wrong(place, "has the character U+0000 in it, which PostgreSQL cannot store.")
        try:
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError:
            return self._wrong(place, f"must be {_described(kind)}.")

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
            source = missing = "the file that it names"
            try:
                with (self._folder / name).open("rb") as file:
                    text = file.read(SECRET_BYTES + 1).decode()
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not a text"
                return self._wrong(place, f"{source} cannot be read: {why}.")
            missing = f"{source} is empty."
        else:
            return self._wrong(place, "must be a reference, env:NAME or file:PATH; a secret never stands in this file.")
        text = text.strip()
        if not text:
            return self._wrong(place, missing)
        if len(text) > SECRET_BYTES or not text.isprintable():
            return self._wrong(place, f"{source} holds more than one line, or characters that no secret has.")
        return Secret(text)

    def _list(self, kind: Any, raw: object, place: str) -> tuple[Any, ...] | _Failed:
        if not isinstance(raw, list):
            return self._wrong(place, "must be a list.")
        values = tuple(self.value(kind, each, f"{place}[{n}]") for n, each in enumerate(raw))
        return FAILED if FAILED in values else values

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


def _join(place: str, key: str) -> str:
    """A key as TOML would write it."""
    shown = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else msgspec.json.encode(key).decode()
    return f"{place}.{shown}" if place else shown


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known are {', '.join(known)}."


def _described(kind: Any) -> str:
    if kind is bool:
        return "true or false"
    for each in getattr(kind, "__metadata__", ()):
        if isinstance(each, Meta) and each.description:
            return each.description
    raise NotImplementedError(kind)


def _check(tables: Tables, mistakes: Mistakes) -> None:
    """What no single value shows."""
    for slug, endpoint in tables.endpoints.items():
        if not endpoint.secrets:
            mistakes.add(f"endpoints.{slug}.secrets", "must name one secret at least.")
        if endpoint.kind == "cloud" and endpoint.verify_token is None:
            mistakes.add(f"endpoints.{slug}.verify_token", "is missing: an endpoint of kind cloud needs it.")
    addresses: dict[tuple[str, str], str] = {}
    for slug, tenant in tables.tenants.items():
        place = f"tenants.{slug}"
        if tenant.assistant is not None:
            _check_assistant(tenant.assistant, f"{place}.assistant", mistakes)
        if tenant.translation is not None:
            _check_translation(tenant.translation, f"{place}.translation", mistakes)
        _check_intents(tenant.intents or (), f"{place}.intents", mistakes)
        for name, channel in tenant.channels.items():
            here = f"{place}.channels.{name}"
            _check_url(channel.base_url, f"{here}.base_url", mistakes)
            first = addresses.setdefault((channel.endpoint, channel.address), here)
            if first != here:
                mistakes.add(f"{here}.address", f"is the address of {first} already, on the same endpoint.")


def _check_assistant(assistant: Fallback, place: str, mistakes: Mistakes) -> None:
    _check_url(assistant.base_url, f"{place}.base_url", mistakes)
    if assistant.model is None and assistant.provider != "ansari":
        mistakes.add(f"{place}.model", f"is missing: {assistant.provider} needs it.")
    if isinstance(assistant, Assistant) and assistant.fallback is not None:
        _check_assistant(assistant.fallback, f"{place}.fallback", mistakes)


def _check_translation(translation: Translation, place: str, mistakes: Mistakes) -> None:
    if translation.base_url is not None:
        _check_url(translation.base_url, f"{place}.base_url", mistakes)
    elif translation.provider == "libretranslate":
        mistakes.add(f"{place}.base_url", "is missing: libretranslate needs it.")


def _check_url(url: str, place: str, mistakes: Mistakes) -> None:
    """The operator's own URLs are the allowlist of hosts (SECURITY 6), so they must say plainly which host they mean."""
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        plain = False
    if not plain:
        mistakes.add(place, "must be http://HOST or https://HOST, with a port and a path if need be.")
    elif "@" in parts.netloc or "\\" in url:
        mistakes.add(place, "must not have a user or password in it; secrets have keys of their own.")
    elif "?" in url or "#" in url:
        mistakes.add(place, "must not have a query or fragment: paths are put behind it.")


def _check_intents(intents: tuple[Intent, ...], place: str, mistakes: Mistakes) -> None:
    replies: dict[str, tuple[str, str]] = {}
    for n, intent in enumerate(intents):
        if not intent.match:
            mistakes.add(f"{place}[{n}].match", "must have one text at least.")
        for k, text in enumerate(intent.match):
            here = f"{place}[{n}].match[{k}]"
            if not (bare := normalise(text)):
                mistakes.add(here, "is nothing but punctuation, space or tashkeel, which are not compared.")
                continue
            first, reply = replies.setdefault(bare, (here, intent.reply))
            if reply != intent.reply:
                mistakes.add(here, f"is the same as {first}, which has another reply.")


def _without_effect(tables: Tables) -> Iterator[str]:
    """A warning for each key that is kept and does nothing yet."""
    for slug, endpoint in tables.endpoints.items():
        if endpoint.kind == "evolution":
            yield f'endpoints.{slug}.kind: "evolution" does nothing yet: webhooks of this endpoint are not read.'
    for slug, tenant in tables.tenants.items():
        place = f"tenants.{slug}"
        if (assistant := tenant.assistant) is not None:
            if assistant.provider != "anthropic":
                yield f'{place}.assistant.provider: "{assistant.provider}" does nothing yet: people get texts.failure.'
            if assistant.fallback is not None:
                yield f"{place}.assistant.fallback: does nothing yet."
        if tenant.translation is not None and tenant.translation.provider != "none":
            yield f"{place}.translation: does nothing yet: citations stay as they are."
        if tenant.limits is not None:
            yield f"{place}.limits: does nothing yet: nothing is limited."
        for name, channel in tenant.channels.items():
            if channel.late in ("apologise", "notice"):
                yield f'{place}.channels.{name}.late: "{channel.late}" does nothing yet: it is like "store".'
