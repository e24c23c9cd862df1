"""Others' collections of hard cases on the whole way: JSONTestSuite at the door, naughty strings there and back."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

import workers.main
from app.apply import Applied, apply
from app.errors import ConfigurationError
from app.sandbox import scripts
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from app.settings import Settings
from app.text.chunks import split
from app.text.whatsapp import from_markdown
from app.vault import Vault
from tests import cloud_bodies as cloud
from tests import receiving
from tests.conftest import Database
from tests.corpora import json_cases, naughty_strings, valid_json
from tests.receiving import ENVIRON, KEY, Receiver

pytestmark = pytest.mark.anyio

web = receiving.web

# --- JSONTestSuite ---------------------------------------------------------------------------------------------------


async def all_taken(web: Receiver, bodies: dict[str, bytes]) -> None:
    """Post each, some at once; every one must be answered 200."""
    names = list(bodies)
    for start in range(0, len(names), 20):
        some = names[start : start + 20]
        answers = await asyncio.gather(*(web.post(bodies[name]) for name in some))
        refused = {name: answer.status_code for name, answer in zip(some, answers, strict=True)}
        assert set(refused.values()) == {200}, refused


async def test_every_json_case_is_taken_and_kept_as_it_came(web: Receiver) -> None:
    """As a body, signed: 200 whether it is JSON or not, and its bytes are in quarantine, once however often they come."""
    cases = json_cases()
    await all_taken(web, cases)
    await all_taken(web, cases)
    kept = {bytes(raw): count for raw, count in web.execute("SELECT raw, count FROM quarantine")}
    assert set(kept) == set(cases.values())
    assert sum(kept.values()) == 2 * len(cases)
    assert web.counts() == (0, 0, len(kept))


async def test_no_json_case_within_a_message_loses_it_or_its_neighbour(web: Receiver) -> None:
    """Each is found: stored with the case in its `raw` where that is valid, else set aside with as little as can be cut."""
    bodies, ids = {}, {}
    for name, case in json_cases().items():
        odd, beside = cloud.text("salam", x="MARK"), cloud.text("beside it")
        bodies[name] = cloud.webhook(odd, beside).replace(b'"MARK"', case)
        ids[name] = odd["id"], beside["id"]
    await all_taken(web, bodies)
    stored = dict(web.execute("SELECT provider_id, raw::text FROM messages"))
    aside = b"\n".join(bytes(raw) for [raw] in web.execute("SELECT raw FROM quarantine"))
    for name, (odd, beside) in ids.items():
        for id in (odd, beside):
            assert id in stored or id.encode() in aside, name
        assert odd not in stored or beside in stored, f"{name}: the neighbour was held up"
    for name, case in valid_json().items():
        assert case.decode() in stored[ids[name][0]], name
        assert ids[name][0].encode() not in aside


# --- naughty strings -------------------------------------------------------------------------------------------------

CONFIGURATION = """
[tenants.noor]
name = "Noor"
texts = {{ unsupported = "Text only." }}
[tenants.noor.assistant]
provider = "anthropic"
base_url = "{url}/anthropic"
model = "claude-sonnet-4-5"
api_key = "env:TOKEN"
[tenants.noor.channels.main]
endpoint = "meta"
address = "1001"
base_url = "{url}/graph/v23.0"
token = "env:TOKEN"
[tenants.amal]
name = "Amal"
{intents}
[tenants.amal.channels.main]
endpoint = "meta"
address = "2001"
base_url = "{url}/graph/v23.0"
token = "env:TOKEN"
"""


def quoted(text: str) -> str:
    """A TOML string of this text."""
    return '"' + "".join(f"\\U{ord(letter):08x}" for letter in text) + '"'


def worded(strings: dict[str, str]) -> dict[str, str]:
    """Those that the configuration takes for a text: with something that is no white space."""
    return {name: text for name, text in strings.items() if text.strip()}


class Courier(msgspec.Struct):
    """The door, a worker behind it, and the sandbox that plays the provider and the assistant."""

    web: Receiver
    sandbox: Sandbox

    async def told(self, messages: Sequence[dict[str, Any]], names: dict[str, str], address: str) -> None:
        """Post these, ten to a webhook, and return once everything has been answered."""
        now = str(int(time.time()))  # what is a day old is answered no more
        for start in range(0, len(messages), 10):
            some = [m | {"timestamp": now} for m in messages[start : start + 10]]
            contacts = [{"wa_id": m["from"], "profile": {"name": names[m["from"]]}} for m in some]
            assert (await self.web.post(cloud.webhook(*some, address=address, contacts=contacts))).status_code == 200
        async with asyncio.timeout(30):
            while not self.web.one("SELECT bool_and(done_seq = head_seq AND owner IS NULL) FROM lanes"):
                await asyncio.sleep(0.05)

    @property
    def got(self) -> dict[str, str]:
        """What each recipient has read, all parts joined."""
        parts: dict[str, list[str]] = defaultdict(list)
        for line in self.sandbox.ledger.lines(accepted=True):
            parts[line.recipient].append(line.text)
        return {recipient: "".join(texts) for recipient, texts in parts.items()}


Started = Callable[[str], Awaitable[Courier]]


@pytest.fixture
async def start(database: Database, tmp_path: Path) -> AsyncIterator[Started]:
    """Starts a courier whose tenant amal has these intents."""
    async with AsyncExitStack() as stack:

        async def started(intents: str = "") -> Courier:
            sandbox = await stack.enter_async_context(running(port=0))
            text = receiving.META + CONFIGURATION.format(url=sandbox.url, intents=intents)
            await receiving.configure(database.url, tmp_path, text)
            web = await stack.enter_async_context(receiving.process(database.url, database.superuser_url))
            stop = asyncio.Event()
            # No status ever comes: the second part of a long answer does not wait for one.
            settings = Settings(
                database_url=database.url, secret_key=KEY, worker_metrics_port=0, order_wait_seconds=0.05
            )
            working = asyncio.create_task(workers.main.work(settings, stop))

            async def end() -> None:
                stop.set()
                await working

            stack.push_async_callback(end)
            return Courier(web, sandbox)

        yield started


def people(names: Iterable[str]) -> dict[str, str]:
    """A phone number for each name."""
    return {name: f"1555{n:07d}" for n, name in enumerate(names)}


async def test_naughty_strings_come_back_as_they_went_in(start: Started) -> None:
    """As text and as profile name: to the database, to the assistant, and, echoed, to the person, byte for byte.

    The last step formats: there the text is what `from_markdown` makes of the echo, for most of them the echo itself.
    """
    courier = await start("")
    strings = {name: text for name, text in naughty_strings().items() if text}
    number = people(strings)
    messages = [cloud.text(text, **{"from": number[name]}) for name, text in strings.items()]
    await courier.told(messages, {number[name]: text for name, text in strings.items()}, "1001")
    stored = {m["id"]: m["text"]["body"] for m in messages}
    assert dict(courier.web.execute("SELECT provider_id, body FROM messages WHERE direction = 'in'")) == stored
    named = dict(courier.web.execute("SELECT value, name FROM identities JOIN contacts c ON c.id = contact_id"))
    assert named == {number[name]: text[:200] for name, text in strings.items()}
    asked = {call.user for call in courier.sandbox.assistant.calls}
    assert asked == {(text,) for text in strings.values() if text.strip()}
    unchanged = 0
    for name, text in strings.items():
        echo = "".join(block.text for block in scripts.answer((text,))) if text.strip() else "Text only."
        formatted = from_markdown(echo)
        assert courier.got[number[name]] == formatted, name
        unchanged += formatted == echo and text in echo
    assert unchanged > len(strings) * 3 / 4


async def test_naughty_replies_reach_the_person_as_they_stand_in_the_file(start: Started) -> None:
    """A fixed reply is formatted by nobody: from `qasid apply` to the phone it stays byte for byte."""
    strings = worded(naughty_strings())
    number = people(strings)
    intents = [
        f"[[tenants.amal.intents]]\nmatch = [{quoted(f'say {number[name]}')}]\nreply = {quoted(text)}"
        for name, text in strings.items()
    ]
    courier = await start("\n".join(intents))
    messages = [cloud.text(f"say {number[name]}", **{"from": number[name]}) for name in strings]
    await courier.told(messages, dict.fromkeys(number.values(), "Ana"), "2001")
    # What shows nothing on a screen is no text to WhatsApp, and is not sent.
    expected = {number[name]: text for name, text in strings.items() if split(text)}
    assert courier.got == expected
    assert len(strings) - 10 < len(expected)


UNSTORABLE = {
    "U+0000": ("a\0b", "a\ufffdb", "ab"),
    "only U+0000": ("\0", "\ufffd", ""),
    "half a pair": ("x \ud83d", "x \ufffd", "x \ufffd"),
    "the other half": ("\ude00 x", "\ufffd x", "\ufffd x"),
    "two first halves": ("\ud83d\ud83d", "\ufffd\ufffd", "\ufffd\ufffd"),
    "the halves the wrong way round": ("\ude00\ud83d", "\ufffd\ufffd", "\ufffd\ufffd"),
    "a pair with half a one": ("\ud83d\ude00\ud83d", "😀\ufffd", "😀\ufffd"),
    "an escape of an escape": ("\\ud83d \\u0000", "\\ud83d \\u0000", "\\ud83d \\u0000"),
}


async def test_what_no_text_can_hold_becomes_the_replacement_character(start: Started) -> None:
    """Everywhere the same (docs/wire-cloud.md): U+FFFD for U+0000 in a text and for half a pair; U+0000 leaves a name."""
    courier = await start("")
    number = people(UNSTORABLE)
    messages = [cloud.text(text, **{"from": number[name]}) for name, (text, *_) in UNSTORABLE.items()]
    await courier.told(messages, {number[name]: text for name, (text, *_) in UNSTORABLE.items()}, "1001")
    identified = "SELECT value, name, body FROM identities i JOIN contacts c ON c.id = i.contact_id "
    inbound = "JOIN conversations v ON v.contact_id = c.id JOIN messages m ON m.conversation_id = v.id"
    stored = courier.web.execute(f"{identified}{inbound} WHERE direction = 'in'")
    assert {value: (body, name) for value, name, body in stored} == {
        number[name]: (body, profile) for name, (_, body, profile) in UNSTORABLE.items()
    }
    assert {call.user for call in courier.sandbox.assistant.calls} == {(body,) for _, body, _ in UNSTORABLE.values()}
    assert courier.got == {
        number[name]: from_markdown(f"You said: {body}") for name, (_, body, _) in UNSTORABLE.items()
    }
    assert courier.web.one("SELECT count(*) FROM quarantine") == 0
    kept = [raw for [raw] in courier.web.execute("SELECT raw::text FROM messages WHERE direction = 'in'")]
    assert sum("\\u0000" in raw for raw in kept) == 3  # what came is not lost: `raw` keeps it


async def applied(database: Database, folder: Path, text: str) -> Applied:
    path = folder / "qasid.toml"
    path.write_text(text)
    return await apply(database.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)


async def test_naughty_tenant_names_are_applied_as_they_stand(database: Database, tmp_path: Path) -> None:
    """Every name comes out of the database as the file has it, so a second apply finds nothing to change."""
    strings = worded(naughty_strings())
    text = "\n".join(f"[tenants.t{n}]\nname = {quoted(name)}" for n, name in enumerate(strings.values()))
    await applied(database, tmp_path, text)
    web = Receiver(None, database.superuser_url)  # type: ignore[arg-type]  # nobody asks it over HTTP
    names = dict(web.execute("SELECT slug, name FROM tenants"))
    assert names == {f"t{n}": name for n, name in enumerate(strings.values())}
    assert (await applied(database, tmp_path, text)).changes == ()


REFUSED = ["a\\u0000b", "\\ud83d", "\\ud83d\\ude00", " ", "", "\\u2028", "a\0b", "\x1b[31m"]


async def test_a_tenant_name_that_cannot_be_stored_is_refused_in_words(database: Database, tmp_path: Path) -> None:
    """U+0000, half a pair, blanks and raw control characters: nothing of the file is applied, and no traceback."""
    for name in REFUSED:
        with pytest.raises(ConfigurationError):
            await applied(database, tmp_path, f'[tenants.good]\nname = "Good"\n[tenants.bad]\nname = "{name}"')
    web = Receiver(None, database.superuser_url)  # type: ignore[arg-type]
    assert web.execute("SELECT FROM tenants") == []
