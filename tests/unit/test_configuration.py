"""The configuration file: what it may say, what is assumed, and how each mistake is told."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from app.configuration import (
    Assistant,
    Channel,
    Configuration,
    Document,
    Endpoint,
    Intent,
    Limits,
    Tenant,
    Texts,
    Transcription,
    Translation,
    load,
)
from app.directory import answering
from app.errors import ConfigurationError
from app.text.assent import LANGUAGES
from app.vault import Secret

CANARY = "EAAGcanary0PX4ZCpsBA"
ENVIRON = {"APP_SECRET": "app-secret", "VERIFY": "verify", "KEY": "api-key", "TOKEN": "token", "EMPTY": ""}

ENDPOINT = """
[endpoints.meta]
kind = "cloud"
secrets = ["env:APP_SECRET"]
verify_token = "env:VERIFY"
"""
TENANT = """
[tenants.noor]
name = "Noor Clinic"
"""
ASSISTANT = """
[tenants.noor.assistant]
provider = "anthropic"
base_url = "https://api.anthropic.com/"
model = "claude-sonnet-4-5"
api_key = "env:KEY"
"""
CHANNEL = """
[tenants.noor.channels.main]
endpoint = "meta"
address = "106540352242922"
base_url = "https://graph.facebook.com/v23.0"
token = "env:TOKEN"
"""
WHOLE = ENDPOINT + TENANT + ASSISTANT + CHANNEL

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the file."""

    def write(text: str) -> Path:
        path = tmp_path / "qasid.toml"
        path.write_text(text)
        return path

    return write


def mistakes(path: Path) -> list[str]:
    """What `load` has to say, without the file's name."""
    with pytest.raises(ConfigurationError) as caught:
        load(path, ENVIRON)
    first, *rest = str(caught.value).split("\n  ")
    assert first.startswith(str(path))
    if rest:
        assert first == f"{path} has {len(rest)} mistakes:"
        return rest
    return [first.removeprefix(f"{path}: ")]


def test_a_file_with_what_is_required_has_the_contracts_defaults(write: Write) -> None:
    """What is not in the file is what DESIGN.md says; the URL loses the slash that paths bring."""
    path = write(WHOLE)
    assert load(path, ENVIRON) == Configuration(
        path=path,
        endpoints={"meta": Endpoint(kind="cloud", secrets=(Secret("app-secret"),), verify_token=Secret("verify"))},
        tenants={
            "noor": Tenant(
                name="Noor Clinic",
                enabled=True,
                in_doubt="resend",
                assistant=Assistant(
                    provider="anthropic",
                    base_url="https://api.anthropic.com",
                    api_key=Secret("api-key"),
                    model="claude-sonnet-4-5",
                    system="",
                    max_tokens=4096,
                    deadline_seconds=60,
                    history_messages=20,
                    history_tokens=8000,
                    fallback=None,
                ),
                channels={
                    "main": Channel(
                        endpoint="meta",
                        address="106540352242922",
                        base_url="https://graph.facebook.com/v23.0",
                        token=Secret("token"),
                        enabled=True,
                        session_gap_hours=3,
                        answer_within_hours=24,
                        late="store",
                    )
                },
            )
        },
        warnings=(),
    )
    assert Texts().failure == "Sorry, I could not answer just now. Please try again in a moment."
    assert Limits().replies_per_conversation_per_minute == 20


def test_every_key_of_the_contract_is_read(write: Write) -> None:
    """Each optional key has its place; those without effect say so."""
    found = load(
        write(
            ENDPOINT.replace('kind = "cloud"', 'kind = "evolution"')
            + TENANT
            + 'enabled = false\nin_doubt = "park"\nintents = [{ match = ["hi", "привет"], reply = "Hello" }]\n'
            + ASSISTANT
            + 'system = ""\nmax_tokens = 1\ndeadline_seconds = 0.5\nhistory_messages = 0\nhistory_tokens = 0\n'
            + ASSISTANT.replace("assistant]", "assistant.fallback]").replace('"anthropic"', '"openai"')
            + '[tenants.noor.translation]\nsource = "ar"\ntarget = "en-GB"\nanswers = ["ur"]\nat_once = 8\n'
            + '[tenants.noor.texts]\nlocation = "Thanks."\n'
            + "[tenants.noor.limits]\nmessages_per_contact_per_day = 200\nreplies_per_conversation_per_minute = 0\n"
            + CHANNEL
            + 'enabled = false\nlate = "notice"\nsession_gap_hours = 1\nanswer_within_hours = 12\n'
        ),
        ENVIRON,
    )
    noor = found.tenants["noor"]
    assert (noor.enabled, noor.in_doubt) == (False, "park")
    assert noor.intents == (Intent(match=("hi", "привет"), reply="Hello"),)
    assert noor.assistant is not None and noor.assistant.fallback is not None
    assert noor.assistant.deadline_seconds == 0.5 and noor.assistant.fallback.provider == "openai"
    assert noor.translation == Translation(
        provider="assistant", source="ar", target="en-GB", answers=("ur",), at_once=8, deadline_seconds=15.0
    )
    assert noor.texts == Texts(location="Thanks.")
    assert noor.limits == Limits(messages_per_contact_per_day=200, replies_per_conversation_per_minute=0)
    assert (noor.channels["main"].enabled, noor.channels["main"].late) == (False, "notice")
    assert found.warnings == (
        'endpoints.meta.kind: "evolution" does nothing yet: webhooks of this endpoint are not read.',
    )


def test_who_writes_down_voice_messages_is_named_by_url_and_model(write: Write) -> None:
    """A key is needed where they want one; the URL is the operator's word for a host, as every other."""
    table = '[tenants.noor.transcription]\nbase_url = "https://api.openai.com/v1/"\nmodel = "whisper-1"\n'
    found = load(write(WHOLE + table), ENVIRON).tenants["noor"].transcription
    assert found == Transcription(base_url="https://api.openai.com/v1", model="whisper-1")
    keyed = load(write(WHOLE + table + 'api_key = "env:AI_KEY"\n'), ENVIRON | {"AI_KEY": "sk-1"})
    assert keyed.tenants["noor"].transcription == Transcription(
        base_url="https://api.openai.com/v1", model="whisper-1", api_key=Secret("sk-1"), deadline_seconds=30
    )
    assert mistakes(write(WHOLE + table.replace("https:", "ftp:"))) == [f"tenants.noor.transcription.base_url: {URL}"]
    assert mistakes(write(WHOLE + table.replace("model", "modell"))) == [
        "tenants.noor.transcription.modell: unknown key; did you mean model?",
        "tenants.noor.transcription.model: is missing.",
    ]


REFERENCE = "must be a reference, env:NAME or file:PATH; a secret never stands in this file."
URL = "must be http://HOST or https://HOST, with a port and a path if need be."

# (what stands in WHOLE, what stands there instead, the mistakes)
WRONG = [
    ('kind = "cloud"', "", ["endpoints.meta.kind: is missing."]),
    ('kind = "cloud"', 'kind = "clowd"', ["endpoints.meta.kind: must be cloud or evolution."]),
    ('["env:APP_SECRET"]', "[]", ["endpoints.meta.secrets: must name one secret at least."]),
    ('["env:APP_SECRET"]', '"env:APP_SECRET"', ["endpoints.meta.secrets: must be a list."]),
    ('["env:APP_SECRET"]', f'["env:APP_SECRET", "{CANARY}"]', [f"endpoints.meta.secrets[1]: {REFERENCE}"]),
    (
        'verify_token = "env:VERIFY"',
        "",
        ["endpoints.meta.verify_token: is missing: an endpoint of kind cloud needs it."],
    ),
    ("[endpoints.meta]", "[endpoint.meta]", ["endpoint: unknown key; did you mean endpoints?"]),
    (
        "[endpoints.meta]",
        '[endpoints."a b"]',
        ['endpoints."a b": is no name: it must be letters, digits, - and _, at most 63.'],
    ),
    ('name = "Noor Clinic"', "", ["tenants.noor.name: is missing."]),
    ('name = "Noor Clinic"', 'name = " "', ["tenants.noor.name: must be a text that is not empty."]),
    (
        'name = "Noor Clinic"',
        'name = "a\\u0000b"',
        ["tenants.noor.name: has the character U+0000 in it, which PostgreSQL cannot store."],
    ),
    ('name = "Noor Clinic"', 'name = "N"\nenabled = "no"', ["tenants.noor.enabled: must be true or false."]),
    ('name = "Noor Clinic"', 'name = "N"\nin_doubt = "x"', ["tenants.noor.in_doubt: must be resend or park."]),
    ('name = "Noor Clinic"', 'name = "N"\ntexts = "x"', ["tenants.noor.texts: must be a table."]),
    (
        'name = "Noor Clinic"',
        'name = "N"\ntexts = {failure = ""}',
        ["tenants.noor.texts.failure: must be a text that is not empty."],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\nlimits = {replies_per_conversation_per_minute = -1}',
        ["tenants.noor.limits.replies_per_conversation_per_minute: must be a whole number from 0 to 1,000,000."],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\ntranslation = {provider = "libretranslate", source = "Arabic"}',
        ['tenants.noor.translation.source: must be a language code like "ar" or "en".'],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\ntranslation = {provider = "libretranslate"}',
        ["tenants.noor.translation.base_url: is missing: libretranslate needs it."],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\ntranslation = {base_url = "http://libre", api_key = "env:KEY"}',
        [
            'tenants.noor.translation.base_url: is for libretranslate: set provider = "libretranslate", or take it away.',
            'tenants.noor.translation.api_key: is for libretranslate: set provider = "libretranslate", or take it away.',
        ],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\ntranslation = {answers = ["ur", "Urdu"], at_once = 0}',
        [
            'tenants.noor.translation.answers[1]: must be a language code like "ar" or "en".',
            "tenants.noor.translation.at_once: must be a whole number from 1 to 1,000.",
        ],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\nintents = [{match = ["hi"], reply = "a"}, {match = ["Hi!"], reply = "b"}]',
        [
            'tenants.noor.intents[1] ("Hi!").match[0]: is the same as tenants.noor.intents[0] ("hi").match[0], '
            "which has another reply."
        ],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\nintents = [{match = ["?!"], reply = "a"}, {match = [], reply = "a"}]',
        [
            'tenants.noor.intents[0] ("?!").match[0]: is nothing but punctuation, space or tashkeel, which are not compared.',
            "tenants.noor.intents[1].match: must have one text at least.",
        ],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\nintents = [{patterns = ["* * *"], reply = "a"}, {patterns = ["a*b*c*d*e*f*g*h*i*j*k*l"], reply = "a"}]',
        [
            'tenants.noor.intents[0] ("* * *").patterns[0]: must have 2 letters at least besides its stars.',
            'tenants.noor.intents[1] ("a*b*c*d*e*f*g*h*i*j*k*l").patterns[0]: must have 10 stars at most.',
        ],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\nintents = [{patterns = ["* Price *"], reply = "a"}, {patterns = ["* «price» **"], reply = "b"}]',
        [
            'tenants.noor.intents[1] ("* «price» **").patterns[0]: is the same as '
            'tenants.noor.intents[0] ("* Price *").patterns[0], '
            "which has another reply."
        ],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\nintents = [{match = ["a"], reply = "x"}, {match = ["A"], reply = "x", then = "hand_over"}]',
        [
            'tenants.noor.intents[1] ("A").match[0]: is the same as tenants.noor.intents[0] ("a").match[0], '
            "from which something else follows."
        ],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\nintents = [{match = ["a"], reply = "Sure?", then = "confirm", language = "xx"}]',
        [
            'tenants.noor.intents[0] ("a").yes: is missing: an intent with then = "confirm" says it after a yes.',
            'tenants.noor.intents[0] ("a").no: is missing: an intent with then = "confirm" says it after a no.',
            'tenants.noor.intents[0] ("a").language: must be one whose words for yes and no are known: '
            f"{', '.join(LANGUAGES)}.",
        ],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\nintents = [{match = ["a"], reply = "x", yes = "y"}]',
        ['tenants.noor.intents[0] ("a").then: must be "confirm", or there is nothing to say yes or no to.'],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\nintents = [{match = ["stop"], reply = "Bye.", then = "stop"}]',
        ['tenants.noor.intents[0] ("stop"): stops answers, and no intent has then = "start", to want them again.'],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\nintents = [{match = ["hi"]}]',
        ['tenants.noor.intents[0] ("hi").reply: is missing.'],
    ),
    (
        'provider = "anthropic"',
        'provider = "anthropik"',
        ["tenants.noor.assistant.provider: must be anthropic or openai or ansari."],
    ),
    ('model = "claude-sonnet-4-5"', "", ["tenants.noor.assistant.model: is missing: anthropic needs it."]),
    (
        'model = "claude-sonnet-4-5"',
        'model = "m"\nmax_token = 5',
        ["tenants.noor.assistant.max_token: unknown key; did you mean max_tokens?"],
    ),
    (
        'model = "claude-sonnet-4-5"',
        'model = "m"\nmax_tokens = 0',
        ["tenants.noor.assistant.max_tokens: must be a whole number from 1 to 1,000,000."],
    ),
    (
        'model = "claude-sonnet-4-5"',
        'model = "m"\ndeadline_seconds = nan',
        ["tenants.noor.assistant.deadline_seconds: must be a number above 0, at most 3,600."],
    ),
    ('"env:KEY"', f'"{CANARY}"', [f"tenants.noor.assistant.api_key: {REFERENCE}"]),
    (
        '"env:KEY"',
        f'"env:{CANARY}"',
        ["tenants.noor.assistant.api_key: the environment variable that it names is not set."],
    ),
    (
        '"env:KEY"',
        '"env:EMPTY"',
        ["tenants.noor.assistant.api_key: the environment variable EMPTY is not set."],
    ),
    ('"env:TOKEN"', '"env:"', [f"tenants.noor.channels.main.token: {REFERENCE}"]),
    ('"env:TOKEN"', "5", [f"tenants.noor.channels.main.token: {REFERENCE}"]),
    (
        '"env:TOKEN"',
        '"file:absent"',
        ["tenants.noor.channels.main.token: the file that it names cannot be read: No such file or directory."],
    ),
    ('"https://graph.facebook.com/v23.0"', '"graph.facebook.com"', [f"tenants.noor.channels.main.base_url: {URL}"]),
    ('"https://graph.facebook.com/v23.0"', '"ftp://graph"', [f"tenants.noor.channels.main.base_url: {URL}"]),
    ('"https://graph.facebook.com/v23.0"', '"https:///v23.0"', [f"tenants.noor.channels.main.base_url: {URL}"]),
    ('"https://graph.facebook.com/v23.0"', '"https://a:99999"', [f"tenants.noor.channels.main.base_url: {URL}"]),
    (
        '"https://graph.facebook.com/v23.0"',
        f'"https://u:{CANARY}@graph"',
        [
            ("tenants.noor.channels.main.base_url: must not have a user or password in it; "
            "secrets have keys of their own.")
        ],
    ),
    (
        '"https://graph.facebook.com/v23.0"',
        '"https://graph?x=1"',
        ["tenants.noor.channels.main.base_url: must not have a query or fragment: paths are put behind it."],
    ),
    (
        '"https://graph.facebook.com/v23.0"',
        '"https://graph.facebook.com/v23.0/106540352242922/messages"',
        ["tenants.noor.channels.main.base_url: must end before /messages: that is put behind it."],
    ),
    (
        '"https://api.anthropic.com/"',
        '"https://api.anthropic.com/v1/messages/"',
        ["tenants.noor.assistant.base_url: must end before /v1/messages: that is put behind it."],
    ),
    (
        '"https://api.anthropic.com/"',
        '"https://api.openai.com/v1/chat/completions"',
        ["tenants.noor.assistant.base_url: must end before /chat/completions: that is put behind it."],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\ntranscription = {base_url = "https://api.openai.com/v1/audio/transcriptions", model = "m"}',
        ["tenants.noor.transcription.base_url: must end before /audio/transcriptions: that is put behind it."],
    ),
    (
        '"https://graph.facebook.com/v23.0"',
        '"https://gr aph"',
        ["tenants.noor.channels.main.base_url: must be a URL like https://host/path, in ASCII without spaces."],
    ),
    (
        'address = "106540352242922"',
        "address = 106540352242922",
        ["tenants.noor.channels.main.address: must be a phone_number_id or an instance's name."],
    ),
    (
        'address = "106540352242922"',
        'address = "1"\nanswer_within_hours = 0',
        ["tenants.noor.channels.main.answer_within_hours: must be a number above 0, at most 8,760."],
    ),
    (
        'address = "106540352242922"',
        'address = "1"\nlate = "ignore"',
        ["tenants.noor.channels.main.late: must be answer or apologise or notice or store."],
    ),
    (
        "[tenants.noor.channels.main]",
        "[tenants.noor.chanels.main]",
        ["tenants.noor.chanels: unknown key; did you mean channels?"],
    ),
    ('name = "Noor Clinic"', 'name = "N"\ncolour = 1', [
        ("tenants.noor.colour: unknown key; known are assistant, translation, transcription, texts, limits, intents, name, "
        "enabled, in_doubt, without, channels.")
    ]),
    (
        'name = "Noor Clinic"',
        'name = "N"\n[tenants.noor.intents]\nmatch = ["hi"]\nreply = "a"',
        ["tenants.noor.intents: must be a list: write [[tenants.noor.intents]], with double brackets."],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\nwithout = ["assistant", "channels"]',
        [
            "tenants.noor.without[1]: must be assistant or translation or transcription or texts or limits or intents.",
        ],
    ),
    (
        'name = "Noor Clinic"',
        'name = "N"\nwithout = ["assistant"]',
        ["tenants.noor.without: takes assistant back, and tenants.noor.assistant stands in the file."],
    ),
    ("[endpoints.meta]", "[[endpoints]]", ["endpoints: must be a table."]),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "told"), WRONG)
def test_a_mistake_is_told_with_its_key_its_reason_and_what_would_be_right(
    write: Write, right: str, wrong: str, told: list[str]
) -> None:
    """The whole error text, for each kind of mistake; a secret that stands in the file is not quoted."""
    assert right in WHOLE
    found = mistakes(write(WHOLE.replace(right, wrong)))
    assert found == told
    assert CANARY not in str(found)


def test_all_mistakes_are_told_at_once(write: Write) -> None:
    """One run names them all, those of single values and those of values beside each other."""
    second = CHANNEL.replace(".main]", ".second]")
    text = (WHOLE + second).replace('"env:KEY"', '"x"').replace('verify_token = "env:VERIFY"', "colour = 1")
    text += "\n[tenants.other]\nnam = 'x'\n" + second.replace("noor", "third") + "[tenants.third]\nname = 't'\n"
    assert mistakes(write(text)) == [
        "endpoints.meta.colour: unknown key; known are kind, secrets, verify_token.",
        f"tenants.noor.assistant.api_key: {REFERENCE}",
        "tenants.other.nam: unknown key; did you mean name?",
        "tenants.other.name: is missing.",
        "endpoints.meta.verify_token: is missing: an endpoint of kind cloud needs it.",
    ]


def test_an_address_is_one_channel_per_endpoint(write: Write) -> None:
    """Two channels of one endpoint cannot share an address; two endpoints may know the same one."""
    again = CHANNEL.replace(".main]", ".second]")
    assert mistakes(write(WHOLE + again)) == [
        (
            "tenants.noor.channels.second.address: is the address of tenants.noor.channels.main already, "
            "on the same endpoint."
        )
    ]
    load(write(WHOLE + again.replace('"meta"', '"other"')), ENVIRON)


def test_ansaris_backend_is_not_asked_to_translate(write: Write) -> None:
    """It answers in people's threads; libretranslate beside it, or none, is right."""
    ansari = WHOLE.replace('"anthropic"', '"ansari"') + "[tenants.noor.translation]\n"
    assert mistakes(write(ansari)) == [
        'tenants.noor.translation.provider: must be "libretranslate" or "none": '
        "ansari cannot be asked outside of people's threads."
    ]
    load(write(ansari + 'provider = "none"\n'), ENVIRON)


def test_a_secret_can_come_from_a_file_beside_the_configuration(write: Write, tmp_path: Path) -> None:
    """The path is relative to the configuration file; the line end is no part of the secret."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text(f"{CANARY}\n")
    found = load(write(WHOLE.replace("env:TOKEN", "file:secrets/token")), ENVIRON)
    assert found.tenants["noor"].channels["main"].token == CANARY
    assert CANARY not in repr(found)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file that it names is empty."),
        (f"{CANARY}\n{CANARY}\n".encode(), "the file that it names must hold one line of printable ASCII."),
        (b"\xff\xfe", "the file that it names cannot be read: it is not a text in UTF-8."),
        (b"x" * 100_000, "the file that it names must hold one line of printable ASCII."),
    ],
)
def test_a_file_that_holds_no_secret_is_refused(write: Write, tmp_path: Path, content: bytes, reason: str) -> None:
    """Empty, of two lines, binary or huge: the mistake is told, the content is not."""
    (tmp_path / "token").write_bytes(content)
    path = write(WHOLE.replace("env:TOKEN", "file:token"))
    assert mistakes(path) == [f"tenants.noor.channels.main.token: {reason}"]


DOCUMENTS = "[[tenants.noor.assistant.documents]]\n"


def test_documents_are_read_from_files_beside_the_configuration(write: Write, tmp_path: Path) -> None:
    """As they stand there, byte for byte, but for a byte order mark; in the order of the file; each assistant its own."""
    said = "\tإِنَّمَا الأَعْمَالُ\r\n\n  prices: 10\u00a0€ \n"
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_bytes(b"\xef\xbb\xbf" + said.encode())
    (tmp_path / "b").write_bytes(("é" * (128 * 1024)).encode())
    one = DOCUMENTS + 'title = "A"\ntext = "file:documents/a.txt"\n'
    two = DOCUMENTS + 'title = "السعر"\ntext = "file:b"\n'
    fallback = ASSISTANT.replace("assistant]", "assistant.fallback]") + two.replace("documents]", "fallback.documents]")
    noor = load(write(WHOLE + one + two + fallback), ENVIRON).tenants["noor"].assistant
    assert noor is not None and noor.fallback is not None
    b = Document(title="السعر", text="é" * (128 * 1024))
    assert noor.documents == (Document(title="A", text=said), b)
    assert noor.fallback.documents == (b,)


@pytest.mark.parametrize(
    ("text", "content", "mistake"),
    [
        ('title = "A"\ntext = "Our prices"', b"x", "text: must be a reference, file:PATH, to a text."),
        ('title = "A"\ntext = "env:KEY"', b"x", "text: must be a reference, file:PATH, to a text."),
        ('title = "A"\ntext = 5', b"x", "text: must be a reference, file:PATH, to a text."),
        ('title = "A"\ntext = "file:"', b"x", "text: must be a reference, file:PATH, to a text."),
        (
            'title = "A"\ntext = "file:b"',
            b"x",
            "text: the file {folder}/b cannot be read: No such file or directory.",
        ),
        (
            'title = "A"\ntext = "file:a"',
            b"a\xff",
            "text: the file {folder}/a cannot be read: it is not a text in UTF-8.",
        ),
        (
            'title = "A"\ntext = "file:a"',
            b"a\xc3",
            "text: the file {folder}/a cannot be read: it is not a text in UTF-8.",
        ),
        ('title = "A"\ntext = "file:a"', b"\xef\xbb\xbf \n", "text: the file {folder}/a is empty."),
        (
            'title = "A"\ntext = "file:a"',
            b"a\0b",
            "text: the file {folder}/a has U+0000 in it, which PostgreSQL cannot store.",
        ),
        ('title = "A"\ntext = "file:a"', b"x" * 262_145, "text: the file {folder}/a is larger than 256 KiB."),
        (
            'title = "A"\ntext = "file:a"',
            b"x" * 262_144 + "é".encode(),
            "text: the file {folder}/a is larger than 256 KiB.",
        ),
        ('title = "A"\ntext = "file:a"', b"x" * 9_000_000, "text: the file {folder}/a is larger than 256 KiB."),
        ('title = " "\ntext = "file:a"', b"x", "title: must be one line of at most 200 characters."),
        ('title = "a\\nb"\ntext = "file:a"', b"x", "title: must be one line of at most 200 characters."),
        (f'title = "{"t" * 201}"\ntext = "file:a"', b"x", "title: must be one line of at most 200 characters."),
        ('text = "file:a"', b"x", "title: is missing."),
        ('title = "A"\ntexts = "file:a"', b"x", "texts: unknown key; did you mean text?"),
    ],
)
def test_a_document_that_cannot_be_one_is_refused(
    write: Write, tmp_path: Path, text: str, content: bytes, mistake: str
) -> None:
    """A reference to a text of one's own, of a bounded size; what is wrong is told with its place."""
    (tmp_path / "a").write_bytes(content)
    found = mistakes(write(WHOLE + DOCUMENTS + text))
    assert f"tenants.noor.assistant.documents[0].{mistake.format(folder=tmp_path)}" in found


def test_documents_are_few_small_and_of_different_names(write: Write, tmp_path: Path) -> None:
    """They are in the memory of every process, and in every question."""
    (tmp_path / "a").write_text("x" * 200_000)
    every = [DOCUMENTS + f'title = "{n}"\ntext = "file:a"\n' for n in range(21)]
    place = "tenants.noor.assistant.documents"
    assert mistakes(write(WHOLE + "".join(every[:3]))) == [
        f"{place}: must be 512 KiB together at most, and are 586 KiB."
    ]
    (tmp_path / "a").write_text("x")
    assert mistakes(write(WHOLE + "".join(every))) == [f"{place}: must be 20 documents at most."]
    assert mistakes(write(WHOLE + every[0] + every[1] + every[0])) == [
        f"{place}[2].title: is the title of {place}[0] already: a citation names nothing else."
    ]


@pytest.mark.parametrize("provider", ["anthropic", "openai", "ansari"])
def test_every_provider_answers(write: Write, provider: str) -> None:
    """Nobody is told that one of them does nothing."""
    assert load(write(WHOLE.replace('"anthropic"', f'"{provider}"')), ENVIRON).warnings == ()


ANSARI = "tenants.noor.assistant.{}: does nothing with ansari: {}."


@pytest.mark.parametrize(
    ("table", "more", "warnings"),
    [
        (ASSISTANT.replace("anthropic", "ansari", 1), 'system = "x"\nimages = true\nmax_tokens = 4096\n', [
            ANSARI.format("system", "it has instructions of its own"),
            ANSARI.format("max_tokens", "it bounds its answers itself"),
            ANSARI.format("images", "it is never shown pictures"),
        ]),
        (ASSISTANT.replace("anthropic", "ansari", 1), 'system = ""\nimages = false\n', []),
        (ASSISTANT.replace("anthropic", "ansari", 1), DOCUMENTS + 'title = "A"\ntext = "file:a"\n', [
            ANSARI.format("documents", "it has sources of its own"),
        ]),
        (ASSISTANT, 'system = "x"\nimages = true\nmax_tokens = 4096\n', []),
        (ASSISTANT, ASSISTANT.replace("assistant]", "assistant.fallback]").replace("anthropic", "ansari", 1)
         + "max_tokens = 5\ndeadline_seconds = 60\n", [
            ("tenants.noor.assistant.fallback.deadline_seconds: is its share of tenants.noor.assistant.deadline_seconds, "
            "and at most half of that is kept for it: 30."),
            ANSARI.replace("assistant.", "assistant.fallback.").format("max_tokens", "it bounds its answers itself"),
        ]),
        (ASSISTANT, ASSISTANT.replace("assistant]", "assistant.fallback]"), []),
        (ASSISTANT, '[[tenants.noor.intents]]\nmatch = ["hours"]\nreply = "9 to 5"\npause_hours = 24\n', [
            'tenants.noor.intents[0] ("hours").pause_hours: does nothing: only a hand-over leaves the conversation to people.'
        ]),
        (ASSISTANT, '[[tenants.noor.intents]]\nmatch = ["agent"]\nreply = "Yes."\nthen = "hand_over"\npause_hours = 2\n', []),
    ],
)  # fmt: skip
def test_keys_that_do_nothing_are_told(
    write: Write, tmp_path: Path, table: str, more: str, warnings: list[str]
) -> None:
    """As the documentation promises, and what does something is not."""
    (tmp_path / "a").write_text("x")
    assert list(load(write(ENDPOINT + TENANT + CHANNEL + table + more), ENVIRON).warnings) == warnings


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ('late = "apologise"', True),
        ('late = "notice"\nanswer_within_hours = 24', True),
        ('late = "notice"\nanswer_within_hours = 23.5', False),
        ('late = "store"', False),
        ('late = "answer"', False),
        ("answer_within_hours = 100", False),
    ],
)
def test_words_for_late_messages_that_would_be_refused_are_told(write: Write, keys: str, told: bool) -> None:
    """What counts as late only outside of WhatsApp's window would be answered, paid for, and refused."""
    warnings = load(write(f"{WHOLE}{keys}\n"), ENVIRON).warnings
    assert [warning.split(":")[0] for warning in warnings] == ["tenants.noor.channels.main.answer_within_hours"] * told


def test_a_file_that_is_no_toml_is_refused_with_its_line(write: Write, tmp_path: Path) -> None:
    """Syntax, encoding, absence, emptiness: the error says which."""
    assert mistakes(write("[endpoints.meta\n")) == [
        "not TOML: Expected ']' at the end of a table declaration (at line 1, column 16)."
    ]
    path = tmp_path / "qasid.toml"
    path.write_bytes(b"\xff")
    assert mistakes(path) == ["not TOML: not a UTF-8 text that makes sense."]
    path.write_text("a = " + "[" * 100_000)
    assert mistakes(path) == ["not TOML: not a UTF-8 text that makes sense."]
    path.unlink()
    assert mistakes(path) == ["cannot be read: No such file or directory."]
    assert mistakes(write("")) == ["names no endpoint and no tenant."]


def test_the_structs_refuse_unknown_keys_by_themselves() -> None:
    """What the database keeps is decoded without the file's reader, and no more lenient."""
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"failure": "x", "falure": "y"}', type=Texts)


def test_settings_of_a_newer_build_are_told_with_what_to_do() -> None:
    """No older build reads them, and none applies a file over them: it is the process that has to change."""
    with pytest.raises(ConfigurationError, match=r"unknown field `unheard`.*upgrade this process\.$"):
        answering('{"unheard": 1}')
