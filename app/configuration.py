"""The configuration file as a person writes it: its keys, their defaults, their bounds, and what fits with what.

Reads one TOML file and the secrets that it refers to. Knows no database: app/apply.py brings a `Configuration` into it.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from app.errors import ConfigurationError
from app.tables import Mistakes, Name, Reader, element
from app.text import assent
from app.text.matching import Pattern, normalise
from app.vault import Secret

FILE_BYTES = 4 * 1024 * 1024

Text = Annotated[str, Meta(pattern=r"\S", description="a text that is not empty")]
Prompt = Annotated[str, Meta(description="a text")]
Url = Annotated[
    str,
    Meta(
        pattern=r"\A[!-~]{1,2000}\Z",
        description="a URL like https://host/path, in ASCII without spaces",
        extra={"without_end": "/"},  # paths are put behind it
    ),
]
Language = Annotated[
    str, Meta(pattern=r"\A[a-z]{2,3}(-[A-Za-z0-9]{2,8})*\Z", description='a language code like "ar" or "en"')
]
Tokens = Annotated[int, Meta(ge=1, le=1_000_000, description="a whole number from 1 to 1,000,000")]
Messages = Annotated[int, Meta(ge=0, le=1_000, description="a whole number from 0 to 1,000")]
Limit = Annotated[int, Meta(ge=0, le=1_000_000, description="a whole number from 0 to 1,000,000")]
Tally = Annotated[int, Meta(ge=0, le=10**12, description="a whole number from 0 to 1,000,000,000,000")]
Calls = Annotated[int, Meta(ge=1, le=1_000, description="a whole number from 1 to 1,000")]
Seconds = Annotated[float, Meta(gt=0, le=3_600, description="a number above 0, at most 3,600")]
Hours = Annotated[float, Meta(gt=0, le=8_760, description="a number above 0, at most 8,760")]

Title = Annotated[str, Meta(pattern=r"\A\S[^\x00-\x1f\x7f]{0,199}\Z", description="one line of at most 200 characters")]
# All processes hold them in memory, and a model reads them with each question.
DOCUMENT_BYTES, DOCUMENTS, DOCUMENTS_BYTES = 256 * 1024, 20, 512 * 1024
File = Annotated[str, Meta(description="a reference, file:PATH, to a text", extra={"from_file": DOCUMENT_BYTES})]

EndpointKind = Literal["cloud", "evolution"]
InDoubt = Literal["resend", "park"]
Late = Literal["answer", "apologise", "notice", "store"]
Then = Literal["reply", "confirm", "hand_over", "stop", "start"]
Table = Literal["assistant", "translation", "transcription", "texts", "limits", "intents"]
YesThen = Literal["reply", "hand_over", "stop"]

# So long after a person's last message WhatsApp takes a text for them; then it is refused as 131047 (docs/wire-cloud.md).
WINDOW_HOURS = 24

# Patterns of a tenant, and stars in one of them: each message is compared with all.
MOST_PATTERNS, MOST_STARS = 500, 10
# Letters that a pattern must have besides its stars: with fewer it would take most of what people write.
LEAST_LETTERS = 2


class Endpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[endpoints.<slug>]`: a webhook URL and what its webhooks are verified with."""

    kind: EndpointKind
    secrets: tuple[Secret, ...]
    verify_token: Secret | None = None


class Document(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[tenants.<slug>.assistant.documents]]`: what the assistant answers from, word for word. Read at `qasid apply`."""

    title: Title
    text: File


class AssistantSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one assistant is asked. As `[tenants.<slug>.assistant.fallback]` it is another, asked when the first cannot answer:
    its `deadline_seconds` is what it gets of the first one's, at most half.
    """

    provider: Literal["anthropic", "openai", "ansari"]
    base_url: Url
    api_key: Secret
    model: Text | None = None
    system: Prompt = ""
    max_tokens: Tokens = 4096
    deadline_seconds: Seconds = 60.0
    history_messages: Messages = 20
    history_tokens: Limit = 8000
    images: bool = True
    documents: tuple[Document, ...] = ()


class Assistant(AssistantSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>.assistant]`: who answers. `history_…`: what it is shown of the session, whichever ends first.

    `deadline_seconds` is the whole turn's, but for what it waits for its place; the fallback's is part of it.
    """

    fallback: AssistantSettings | None = None


class Translation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>.translation]`: who translates citations, from `source` to `target`.

    `answers`: a person who writes in one of these languages is answered in it, and reads citations in it.
    `deadline_seconds`: for all translations of an answer together. `at_once`: per worker.
    """

    provider: Literal["assistant", "libretranslate", "none"] = "assistant"
    base_url: Url | None = None
    api_key: Secret | None = None
    source: Language = "ar"
    target: Language = "en"
    answers: tuple[Language, ...] = ()
    deadline_seconds: Seconds = 15.0
    at_once: Calls = 32


class Transcription(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>.transcription]`: who writes down voice messages, by OpenAI's `/audio/transcriptions`."""

    base_url: Url
    model: Text
    api_key: Secret | None = None
    deadline_seconds: Seconds = 30.0


class Texts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>.texts]`: what people read when the assistant cannot answer."""

    failure: Text = "Sorry, I could not answer just now. Please try again in a moment."
    location: Text = "Thank you for the location."
    unsupported: Text = "I can read text messages only, for now."
    partial: Text = "(This answer was cut short.)"
    apology: Text = "Sorry that this answer comes late."
    notice: Text = "Sorry, we could not answer your messages in time. Please write again if you still need an answer."
    limit: Text = "Sorry, I cannot answer any more messages today. Please write again tomorrow."
    sources: Text = "Sources"
    translated: Text = "Translation:"
    untranslated: Text = "(not translated)"
    image: Text | None = None
    audio: Text | None = None
    video: Text | None = None


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>.limits]`. None or 0: no limit. The loop brake (per minute) is on without this table."""

    messages_per_contact_per_day: Limit | None = None
    replies_per_conversation_per_minute: Limit = 20
    assistant_calls_at_once: Limit | None = None
    tokens_per_day: Tally | None = None


class Intent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[tenants.<slug>.intents]]`: a fixed reply to a whole text, or to a pattern, and what follows from it.

    app/text/matching.py says what is alike, app/assistants/intents.py what follows.
    """

    CALLED: ClassVar = ("match", "patterns")

    reply: Text
    match: tuple[Text, ...] = ()
    patterns: tuple[Text, ...] = ()
    then: Then = "reply"
    language: Language = "en"
    yes: Text | None = None
    no: Text | None = None
    yes_then: YesThen = "reply"
    pause_hours: Hours = 24.0


class Channel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>.channels.<slug>]`: one WhatsApp address, reached through an endpoint."""

    endpoint: Name
    address: Annotated[str, Meta(pattern=r"\A\S(.{0,254}\S)?\Z", description="a phone_number_id or an instance's name")]
    base_url: Url
    token: Secret
    enabled: bool = True
    session_gap_hours: Hours = 3.0
    answer_within_hours: Hours = 24.0
    late: Late = "store"


class Answering(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tables of a tenant that the database keeps as one value. None: not given."""

    assistant: Assistant | None = None
    translation: Translation | None = None
    transcription: Transcription | None = None
    texts: Texts | None = None
    limits: Limits | None = None
    intents: tuple[Intent, ...] | None = None


class Tenant(Answering, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tenants.<slug>]`: an organisation. A table that is not in the file is left as the database has it.

    `without` takes back those of before. A tenant may have no assistant: what its intents do not answer is answered with
    `texts.failure`.
    """

    name: Text
    enabled: bool = True
    in_doubt: InDoubt = "resend"
    without: tuple[Table, ...] = ()
    channels: dict[str, Channel] = {}


class Tables(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    endpoints: dict[str, Endpoint] = {}
    tenants: dict[str, Tenant] = {}


class Configuration(Struct, frozen=True, kw_only=True):
    """A file that was read and found right in itself. Warnings name keys that do not do what one would think."""

    path: Path
    endpoints: dict[str, Endpoint]
    tenants: dict[str, Tenant]
    warnings: tuple[str, ...]


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
    reader = Reader(path.parent, environ)
    found = reader.table(Tables, tables, "")
    if found is not None:
        _check(found, reader.mistakes)
    if found is not None and not found.endpoints and not found.tenants and not reader.mistakes:
        raise ConfigurationError(f"{path}: names no endpoint and no tenant.")
    reader.mistakes.stop(path)
    assert found is not None
    return Configuration(
        path=path, endpoints=found.endpoints, tenants=found.tenants, warnings=tuple(_warnings(found, tables))
    )


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
            _check_translation(tenant.translation, tenant.assistant, f"{place}.translation", mistakes)
        if tenant.transcription is not None:
            _check_url(tenant.transcription.base_url, f"{place}.transcription.base_url", mistakes)
        _check_intents(tenant.intents or (), f"{place}.intents", mistakes)
        for table in tenant.without:
            if getattr(tenant, table) is not None:
                mistakes.add(f"{place}.without", f"takes {table} back, and {place}.{table} stands in the file.")
        for name, channel in tenant.channels.items():
            here = f"{place}.channels.{name}"
            _check_url(channel.base_url, f"{here}.base_url", mistakes)
            first = addresses.setdefault((channel.endpoint, channel.address), here)
            if first != here:
                mistakes.add(f"{here}.address", f"is the address of {first} already, on the same endpoint.")


def _check_assistant(assistant: AssistantSettings, place: str, mistakes: Mistakes) -> None:
    _check_url(assistant.base_url, f"{place}.base_url", mistakes)
    if assistant.model is None and assistant.provider != "ansari":
        mistakes.add(f"{place}.model", f"is missing: {assistant.provider} needs it.")
    _check_documents(assistant.documents, f"{place}.documents", mistakes)
    if isinstance(assistant, Assistant) and assistant.fallback is not None:
        _check_assistant(assistant.fallback, f"{place}.fallback", mistakes)


def _check_documents(documents: tuple[Document, ...], place: str, mistakes: Mistakes) -> None:
    if len(documents) > DOCUMENTS:
        mistakes.add(place, f"must be {DOCUMENTS} documents at most.")
    if (size := sum(len(document.text.encode()) for document in documents)) > DOCUMENTS_BYTES:
        mistakes.add(place, f"must be {DOCUMENTS_BYTES // 1024} KiB together at most, and are {-(-size // 1024)} KiB.")
    titles: dict[str, str] = {}
    for n, document in enumerate(documents):
        first = titles.setdefault(document.title, f"{place}[{n}]")
        if first != f"{place}[{n}]":
            mistakes.add(f"{place}[{n}].title", f"is the title of {first} already: a citation names nothing else.")


def _check_translation(translation: Translation, assistant: Assistant | None, place: str, mistakes: Mistakes) -> None:
    if translation.base_url is not None:
        _check_url(translation.base_url, f"{place}.base_url", mistakes)
    elif translation.provider == "libretranslate":
        mistakes.add(f"{place}.base_url", "is missing: libretranslate needs it.")
    if translation.provider == "assistant":
        for key in ("base_url", "api_key"):
            if getattr(translation, key) is not None:
                mistakes.add(
                    f"{place}.{key}", 'is for libretranslate: set provider = "libretranslate", or take it away.'
                )
    if translation.provider == "assistant" and assistant is not None and assistant.provider == "ansari":
        mistakes.add(
            f"{place}.provider",
            'must be "libretranslate" or "none": ansari cannot be asked outside of people\'s threads.',
        )


# What we put behind a base URL, the longest first.
_ENDS = ("/v1/messages", "/messages", "/chat/completions", "/audio/transcriptions")


def _check_url(url: str, place: str, mistakes: Mistakes) -> None:
    """The operator's own URLs are the allowlist of hosts (docs/security.md, "Towards providers"): they must say plainly which
    host they mean.
    """
    try:
        parts = urlsplit(url)
        host = re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", parts.hostname or "")
        plain = parts.scheme in ("http", "https") and host is not None and parts.port != 0
        user = "@" in parts.netloc
    except ValueError:
        plain, user = False, False
    if user:
        mistakes.add(place, "must not have a user or password in it; secrets have keys of their own.")
    elif not plain or "\\" in url:
        mistakes.add(place, "must be http://HOST or https://HOST, with a port and a path if need be.")
    elif "?" in url or "#" in url:
        mistakes.add(place, "must not have a query or fragment: paths are put behind it.")
    elif end := next((end for end in _ENDS if parts.path.endswith(end)), None):
        mistakes.add(place, f"must end before {end}: that is put behind it.")


def _check_intents(intents: tuple[Intent, ...], place: str, mistakes: Mistakes) -> None:
    firsts: dict[tuple[str, str], tuple[str, tuple[object, ...]]] = {}
    for n, intent in enumerate(intents):
        here = element(place, n, Intent, intent)
        if not intent.match and not intent.patterns:
            mistakes.add(f"{here}.match", "must have one text at least.")
        for k, text in enumerate(intent.match):
            if bare := normalise(text):
                _check_once(firsts, ("match", bare), intent, f"{here}.match[{k}]", mistakes)
            else:
                mistakes.add(
                    f"{here}.match[{k}]", "is nothing but punctuation, space or tashkeel, which are not compared."
                )
        for k, text in enumerate(intent.patterns):
            pattern = Pattern(text)
            if pattern.letters < LEAST_LETTERS:
                mistakes.add(f"{here}.patterns[{k}]", f"must have {LEAST_LETTERS} letters at least besides its stars.")
            elif pattern.stars > MOST_STARS:
                mistakes.add(f"{here}.patterns[{k}]", f"must have {MOST_STARS} stars at most.")
            else:
                _check_once(firsts, ("pattern", pattern.name), intent, f"{here}.patterns[{k}]", mistakes)
        _check_then(intent, here, mistakes)
    if sum(len(intent.patterns) for intent in intents) > MOST_PATTERNS:
        mistakes.add(place, f"have more than {MOST_PATTERNS} patterns.")
    stops = [
        element(place, n, Intent, intent)
        for n, intent in enumerate(intents)
        if "stop" in (intent.then, intent.yes_then)
    ]
    if stops and not any(intent.then == "start" for intent in intents):
        mistakes.add(stops[0], 'stops answers, and no intent has then = "start", to want them again.')


def _check_once(
    firsts: dict[tuple[str, str], tuple[str, tuple[object, ...]]],
    alike: tuple[str, str],
    intent: Intent,
    here: str,
    mistakes: Mistakes,
) -> None:
    """Nothing is asked for in two ways that end differently."""
    ends = (intent.reply, intent.then, intent.yes, intent.no, intent.yes_then)
    first, others = firsts.setdefault(alike, (here, ends))
    if others[0] != intent.reply:
        mistakes.add(here, f"is the same as {first}, which has another reply.")
    elif others != ends:
        mistakes.add(here, f"is the same as {first}, from which something else follows.")


def _check_then(intent: Intent, place: str, mistakes: Mistakes) -> None:
    if intent.then == "confirm":
        for key, text in (("yes", intent.yes), ("no", intent.no)):
            if text is None:
                mistakes.add(f"{place}.{key}", f'is missing: an intent with then = "confirm" says it after a {key}.')
        if not assent.known(intent.language):
            mistakes.add(
                f"{place}.language",
                f"must be one whose words for yes and no are known: {', '.join(assent.LANGUAGES)}.",
            )
    elif intent.yes is not None or intent.no is not None or intent.yes_then != "reply":
        mistakes.add(f"{place}.then", 'must be "confirm", or there is nothing to say yes or no to.')


def _warnings(tables: Tables, written: dict[str, Any]) -> Iterator[str]:
    """One for each key that is kept, and does nothing or too little. `written`: the tables as they stand in the file."""
    for slug, endpoint in tables.endpoints.items():
        if endpoint.kind == "evolution":
            yield f'endpoints.{slug}.kind: "evolution" does nothing yet: webhooks of this endpoint are not read.'
    for slug, tenant in tables.tenants.items():
        place, theirs = f"tenants.{slug}", written["tenants"][slug]
        if tenant.assistant is not None:
            yield from _unused_of_assistant(tenant.assistant, f"{place}.assistant", theirs["assistant"])
        for n, intent in enumerate(tenant.intents or ()):
            if "pause_hours" in theirs["intents"][n] and "hand_over" not in (intent.then, intent.yes_then):
                here = element(f"{place}.intents", n, Intent, intent)
                yield f"{here}.pause_hours: does nothing: only a hand-over leaves the conversation to people."
        for name, channel in tenant.channels.items():
            if channel.late in ("apologise", "notice") and channel.answer_within_hours >= WINDOW_HOURS:
                yield (
                    f"{place}.channels.{name}.answer_within_hours: should be below {WINDOW_HOURS} with late = "
                    f'"{channel.late}": WhatsApp takes no text so long after a person\'s last message, so whoever did not '
                    "write again gets none."
                )


# Keys that say nothing to Ansari's backend, and why.
_NOT_FOR_ANSARI = {
    "documents": "it has sources of its own",
    "system": "it has instructions of its own",
    "max_tokens": "it bounds its answers itself",
}


def _unused_of_assistant(assistant: AssistantSettings, place: str, written: dict[str, Any]) -> Iterator[str]:
    if assistant.provider == "ansari":
        for key, why in _NOT_FOR_ANSARI.items():
            if written.get(key):
                yield f"{place}.{key}: does nothing with ansari: {why}."
        if written.get("images"):
            yield f"{place}.images: does nothing with ansari: it is never shown pictures."
    if isinstance(assistant, Assistant) and (fallback := assistant.fallback) is not None:
        theirs = written["fallback"]
        if "deadline_seconds" in theirs and fallback.deadline_seconds >= assistant.deadline_seconds:
            yield (
                f"{place}.fallback.deadline_seconds: is its share of {place}.deadline_seconds, and at most half of that "
                f"is kept for it: {assistant.deadline_seconds / 2:g}."
            )
        yield from _unused_of_assistant(fallback, f"{place}.fallback", theirs)
