"""`qasid apply` and the Directory on a real PostgreSQL: all or nothing, twice is once, secrets stay sealed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from msgspec import Struct

from app import db, directory
from app.apply import Applied, apply
from app.configuration import Document
from app.db import Pool
from app.directory import Directory, Watch
from app.errors import ConfigurationError, Unknown
from app.vault import Vault

pytestmark = pytest.mark.anyio

OLD, NEW = b"o" * 32, b"n" * 32
CANARY = "canary0PX4ZCpsBA"
ENVIRON = {name: f"{CANARY}{name}" for name in ("APP_SECRET", "APP_SECRET_2", "VERIFY", "KEY", "TOKEN", "OTHER")}

ENDPOINT = """
[endpoints.meta]
kind = "cloud"
secrets = ["env:APP_SECRET"]
verify_token = "env:VERIFY"
"""


def tenant(
    slug: str, *, address: str, model: str = "claude-sonnet-4-5", token: str = "env:TOKEN", more: str = ""
) -> str:
    """A tenant with an assistant and a channel; `more` are keys of the channel, or tables."""
    return f"""
[tenants.{slug}]
name = "Clinic {slug}"
intents = [{{ match = ["hi", "Привет!"], reply = "Hello" }}]
[tenants.{slug}.assistant]
provider = "anthropic"
base_url = "https://api.anthropic.com"
model = "{model}"
api_key = "env:KEY"
[tenants.{slug}.channels.main]
endpoint = "meta"
address = "{address}"
base_url = "https://graph.facebook.com/v23.0"
token = "{token}"
{more}
"""


BOTH = ENDPOINT + tenant("noor", address="1001") + tenant("amal", address="1002")


class Installation(Struct):
    """A database and a file to apply to it."""

    url: str
    path: Path
    vault: Vault

    async def apply(self, text: str, *, name: str = "qasid.toml") -> Applied:
        """Apply this text."""
        path = self.path / name
        path.write_text(text)
        return await apply(self.url, path, self.vault, ENVIRON)

    def courier(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection that sees all tenants."""
        return psycopg.connect(self.url, autocommit=True, options="-c role=qasid_courier")

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What the courier reads."""
        with self.courier() as conn:
            return conn.execute(query.encode(), values).fetchall()

    def everything(self) -> list[tuple[Any, ...]]:
        """All rows that apply may write, as text."""
        tables = ("configuration", "keys", "endpoints", "tenants", "channels")
        return [row for t in tables for row in self.rows(f"SELECT x::text FROM {t} x ORDER BY 1")]

    @asynccontextmanager
    async def pool(self) -> AsyncIterator[Pool]:
        """Connections as the courier."""
        async with db.pool(self.url, "qasid_courier", name="test", max_size=2) as pool:
            yield pool

    async def read(self) -> Directory:
        """The Directory of this moment."""
        async with self.pool() as pool, db.connection(pool) as conn:
            return await directory.read(conn, self.vault)


@pytest.fixture
def here(database: Any, tmp_path: Path) -> Installation:
    """An installation that nothing was applied to yet."""
    return Installation(database.url, tmp_path, Vault([OLD]))


async def test_what_was_applied_is_what_processes_know(here: Installation) -> None:
    """A file's values arrive in the Directory, secrets in clear, intents ready to look up."""
    applied = await here.apply(BOTH)
    assert applied.changes == (
        "+ key digest",
        "+ endpoint meta",
        "+ tenant noor",
        "+ channel noor.main",
        "+ tenant amal",
        "+ channel amal.main",
    )
    known = await here.read()
    meta = known.endpoint("meta")
    assert meta is not None and known.endpoint("absent") is None
    assert meta.secrets == (ENVIRON["APP_SECRET"].encode(),) and meta.verify_token == ENVIRON["VERIFY"]
    channel = known.channel_at(meta.id, "1001")
    assert channel is not None and channel.token == ENVIRON["TOKEN"]
    assert known.channel_at(meta.id, "1003") is None
    assert known.channels_elsewhere("1001") == (channel,) and known.channels_elsewhere("1003") == ()
    assert known.channel(channel.tenant_id, channel.id) is channel
    noor = known.tenant(channel.tenant_id)
    said = [noor.intents.of(text) for text in ("Hi", "привет", "bye")]
    assert noor.slug == "noor" and [intent and intent.reply for intent in said] == ["Hello", "Hello", None]
    assert noor.assistant is not None and noor.assistant.api_key == ENVIRON["KEY"]
    assert len(known.digest_key) == 32
    with pytest.raises(Unknown):
        known.tenant(channel.id)
    with pytest.raises(Unknown):
        known.channel(channel.id, channel.tenant_id)


async def test_applying_twice_changes_nothing(here: Installation) -> None:
    """Sealing is different each time, yet the same file writes no row, and no process reads anew."""
    await here.apply(BOTH)
    before = here.everything()
    assert (await here.apply(BOTH)).changes == ()
    assert here.everything() == before


async def test_changes_are_told_by_key_and_secrets_only_as_changed(here: Installation) -> None:
    """A line per changed key with both values; of a secret only that it is another."""
    await here.apply(BOTH)
    (version,) = here.rows("SELECT version FROM configuration")[0]
    applied = await here.apply(
        ENDPOINT.replace('["env:APP_SECRET"]', '["env:APP_SECRET", "env:APP_SECRET_2"]')
        + tenant("noor", address="1001", model="claude-opus-4-1", token="env:OTHER", more="session_gap_hours = 1.5")
        + '[tenants.noor.texts]\nfailure = "Later."'
    )
    assert applied.changes == (
        "~ endpoints.meta.secrets: changed",
        "~ tenants.noor.assistant.model: claude-sonnet-4-5 → claude-opus-4-1",
        "+ tenants.noor.texts",
        "~ tenants.noor.channels.main.token: changed",
        "~ tenants.noor.channels.main.session_gap_hours: 3 → 1.5",
    )
    assert here.rows("SELECT version FROM configuration") == [(version + 1,)]


async def test_documents_are_kept_with_the_tenant(here: Installation) -> None:
    """As they were when they were applied; a changed file is told of, one that is gone does no harm until the next apply."""
    file, said = here.path / "prices.txt", "إِنَّمَا\r\n10 \\u0000 \u202e€"
    file.write_bytes(said.encode())
    document = '[[tenants.noor.assistant.documents]]\ntitle = "Prices"\ntext = "file:prices.txt"\n'
    assert (await here.apply(BOTH + document)).changes
    assert (await here.apply(BOTH + document)).changes == ()
    (noor,) = [tenant for tenant in (await here.read()).tenants if tenant.slug == "noor"]
    assert noor.assistant is not None and noor.assistant.api_key == ENVIRON["KEY"]
    assert noor.assistant.documents == (Document(title="Prices", text=said),)
    file.write_text("11")
    assert (await here.apply(BOTH + document)).changes == ("~ tenants.noor.assistant.documents: replaced (1 → 1)",)
    file.unlink()
    with pytest.raises(ConfigurationError, match=r"documents\[0\]\.text: the file .*prices\.txt cannot be read"):
        await here.apply(BOTH + document)
    assert (await here.apply(BOTH)).changes == ("~ tenants.noor.assistant.documents: replaced (1 → 0)",)


async def test_what_the_file_does_not_name_stays(here: Installation) -> None:
    """Other tenants, channels and tables stay; lists are replaced whole; absent keys are their defaults again."""
    more = 'enabled = false\n[tenants.noor.texts]\nfailure = "Later."\nlocation = "Seen."'
    await here.apply(BOTH + tenant("sidra", address="1003"))
    await here.apply(ENDPOINT + tenant("noor", address="1001", more=more))
    applied = await here.apply(
        '[tenants.noor]\nname = "Clinic noor"\nintents = [{match = ["bye"], reply = "Bye"}]\n'
        '[tenants.noor.texts]\nfailure = "Later."\n'
    )
    assert applied.changes == (
        "~ tenants.noor.texts.location: Seen. → Thank you for the location.",
        "~ tenants.noor.intents: replaced (1 → 1)",
    )
    known = await here.read()
    ((tenant_id, channel_id, enabled),) = here.rows(
        "SELECT tenant_id, id, enabled FROM channels WHERE address = '1001'"
    )
    noor = known.tenant(tenant_id)
    assert noor.assistant is not None and noor.intents.of("bye") and not noor.intents.of("hi") and not enabled
    assert known.channel(tenant_id, channel_id).token == ENVIRON["TOKEN"]
    assert here.rows("SELECT count(*) FROM tenants") == [(3,)]
    assert (await here.apply(ENDPOINT + tenant("noor", address="1001"))).changes == (
        "~ tenants.noor.intents: replaced (1 → 1)",
        "~ tenants.noor.channels.main.enabled: false → true",
    )


async def test_what_stays_in_force_is_told_and_can_be_taken_back(here: Installation) -> None:
    """Whoever deletes a table from the file reads that it goes on working, and how to end it; that ends it for good."""
    voice = (
        '[tenants.noor.transcription]\nbase_url = "https://api.openai.com/v1"\nmodel = "whisper-1"\napi_key = "env:KEY"'
    )
    whole = ENDPOINT + tenant("noor", address="1001")
    assert (await here.apply(ENDPOINT + tenant("noor", address="1001", more=voice))).warnings == ()
    again = await here.apply(whole)
    told = (
        "tenants.noor: the database has transcription of an earlier file, which this one does not name: left in force. "
        'To take back: without = ["transcription"].'
    )
    assert (again.changes, again.warnings) == ((), (told,))
    name = 'name = "Clinic noor"'
    ended = await here.apply(whole.replace(name, f'{name}\nwithout = ["transcription"]'))
    assert (ended.changes, ended.warnings) == (("- tenants.noor.transcription",), ())
    assert here.rows("SELECT settings -> 'transcription' FROM tenants") == [(None,)]
    assert (await here.apply(whole)).warnings == ()


async def test_an_assistant_can_be_taken_back(here: Installation) -> None:
    """With whatever needs one told."""
    voice = '[tenants.noor.transcription]\nbase_url = "https://api.openai.com/v1"\nmodel = "whisper-1"'
    await here.apply(ENDPOINT + tenant("noor", address="1001", more=voice))
    applied = await here.apply('[tenants.noor]\nname = "Clinic noor"\nwithout = ["assistant", "intents"]\n' + voice)
    assert applied.changes == ("- tenants.noor.assistant", "~ tenants.noor.intents: replaced (1 → 0)")
    assert applied.warnings == (
        "tenants.noor: has no assistant: what no intent answers is answered with texts.failure.",
        "tenants.noor.transcription: does nothing without an assistant.",
    )


async def test_a_wrong_file_leaves_nothing(here: Installation) -> None:
    """A mistake anywhere in the file, and not even its right half is there; the next apply starts clean."""
    before = here.everything()
    with pytest.raises(ConfigurationError, match=r"tenants\.amal\.channels\.main\.token"):
        await here.apply(ENDPOINT + tenant("noor", address="1001") + tenant("amal", address="1002", token="env:ABSENT"))
    assert here.everything() == before
    await here.apply(BOTH)


async def test_an_endpoint_that_nobody_has_is_told_with_the_nearest(here: Installation) -> None:
    """A channel's endpoint may be in the file or in the database; all that lead nowhere are told at once."""
    await here.apply(ENDPOINT)
    before = here.everything()
    text = tenant("noor", address="1001") + tenant("amal", address="1002") + tenant("sidra", address="1003")
    wrong = text.replace('"meta"', '"mata"', 2).replace('"mata"', '"evo"', 1)
    with pytest.raises(ConfigurationError) as caught:
        await here.apply(wrong)
    assert str(caught.value).split("\n  ")[1:] == [
        "tenants.noor.channels.main.endpoint: there is no endpoint evo; there are meta.",
        "tenants.amal.channels.main.endpoint: there is no endpoint mata; did you mean meta?",
    ]
    assert here.everything() == before
    await here.apply(text)


async def test_nothing_is_ever_half_applied(here: Installation) -> None:
    """An address that the database refuses at the very end takes the whole file back."""
    await here.apply(ENDPOINT + tenant("noor", address="1001"))
    before = here.everything()
    with pytest.raises(ConfigurationError) as caught:
        await here.apply(tenant("amal", address="1002") + tenant("sidra", address="1001", more="enabled = false"))
    assert str(caught.value).endswith(
        "one of tenants.amal.channels.main.address, tenants.sidra.channels.main.address: "
        "is the address of another channel on that endpoint already."
    )
    assert here.everything() == before


async def test_addresses_can_change_hands_in_one_file(here: Installation) -> None:
    """Two tenants swap their numbers: the order of the file does not matter."""
    await here.apply(BOTH)
    applied = await here.apply(tenant("noor", address="1002") + tenant("amal", address="1001"))
    assert applied.changes == (
        "~ tenants.noor.channels.main.address: 1001 → 1002",
        "~ tenants.amal.channels.main.address: 1002 → 1001",
    )
    found = here.rows("SELECT t.slug, c.address FROM channels c JOIN tenants t ON t.id = c.tenant_id ORDER BY 1")
    assert found == [("amal", "1001"), ("noor", "1002")]


async def test_two_applies_at_once_follow_each_other(here: Installation) -> None:
    """Of five at the same time each sees what the one before it did: nothing is made twice, no change is lost."""
    texts = [ENDPOINT + tenant("noor", address="1001") + tenant(f"t{n}", address=f"2{n}") for n in range(5)]
    applied = await asyncio.gather(*(here.apply(text, name=f"{n}.toml") for n, text in enumerate(texts)))
    lines = [line for each in applied for line in each.changes]
    assert len(lines) == len(set(lines))
    assert set(lines) == {"+ key digest", "+ endpoint meta", "+ tenant noor", "+ channel noor.main"} | {
        f"+ {what} t{n}{end}" for n in range(5) for what, end in (("tenant", ""), ("channel", ".main"))
    }
    assert here.rows("SELECT version FROM configuration") == [(5,)]
    assert here.rows("SELECT count(*) FROM channels") == [(6,)]


async def test_no_secret_stands_in_the_database(here: Installation) -> None:
    """Every column that apply writes, searched as text: no secret of the file, nor the key of digests."""
    await here.apply(BOTH)
    digest_key = (await here.read()).digest_key
    dump = str(here.everything())
    assert "claude-sonnet-4-5" in dump
    assert CANARY not in dump and digest_key.hex() not in dump


async def test_a_sealed_secret_opens_for_no_other_tenant(here: Installation) -> None:
    """Whoever can write to the database can still not have one tenant's token used by another."""
    await here.apply(BOTH)
    ((token,),) = here.rows("SELECT token FROM channels WHERE address = '1001'")
    ((amal,),) = here.rows("SELECT tenant_id FROM channels WHERE address = '1002'")
    async with db.pool(here.url, "qasid_app", name="test", max_size=1) as pool, db.acting(pool, tenant=amal) as conn:
        assert (await conn.execute("UPDATE channels SET token = %s", (token,))).rowcount == 1
    with pytest.raises(ConfigurationError, match="does not open: it was sealed for another place or altered"):
        await here.read()
    assert (await here.apply(BOTH)).changes == ("~ tenants.amal.channels.main.token: changed",)
    assert (await here.read()).channels_elsewhere("1002")[0].token == ENVIRON["TOKEN"]


async def test_the_digest_key_stays_the_same_for_ever(here: Installation) -> None:
    """It is made once; a vault that cannot open it stops the apply rather than make another."""
    await here.apply(ENDPOINT)
    first = (await here.read()).digest_key
    await here.apply(BOTH)
    assert (await here.read()).digest_key == first
    here.vault = Vault([NEW])
    with pytest.raises(ConfigurationError, match="which is not in QASID_SECRET_KEY"):
        await here.apply(BOTH)


async def test_after_a_rotation_and_an_apply_the_old_key_may_go(here: Installation) -> None:
    """With a new key in front, an apply seals everything the file names anew; then the new key alone is enough."""
    await here.apply(BOTH)
    before = await here.read()
    here.vault = Vault([NEW, OLD])
    applied = await here.apply(BOTH)
    assert len(applied.changes) == 6 and all("sealed anew" in line for line in applied.changes)
    here.vault = Vault([NEW])
    after = await here.read()
    assert after.digest_key == before.digest_key
    assert after.endpoint("meta") == before.endpoint("meta")
    assert (await here.apply(BOTH)).changes == ()


async def test_the_app_sees_one_tenants_channels_and_no_others(here: Installation) -> None:
    """Row-level security: without a tenant no channel, with one its own, and apply leaves no scope behind."""
    await here.apply(BOTH)
    ids = dict(here.rows("SELECT slug, id FROM tenants"))
    count = "SELECT count(*) FROM channels"
    async with db.pool(here.url, "qasid_app", name="test", max_size=1) as pool:
        async with db.acting(pool) as conn:
            assert await (await conn.execute(count)).fetchone() == (0,)
        async with db.acting(pool, tenant=ids["noor"]) as conn:
            assert await (await conn.execute("SELECT address FROM channels")).fetchall() == [("1001",)]
            assert await (await conn.execute("SELECT slug FROM tenants")).fetchall() == [("noor",)]
            assert await (await conn.execute("SELECT * FROM keys")).fetchall() == []
        async with db.connection(pool) as conn:
            assert await (await conn.execute(count)).fetchone() == (0,)


LANE = """
WITH channel AS (SELECT tenant_id, id FROM channels WHERE address = %(address)s),
contact AS (INSERT INTO contacts (tenant_id) SELECT tenant_id FROM channel RETURNING tenant_id, id),
conversation AS (INSERT INTO conversations (tenant_id, channel_id, contact_id)
  SELECT c.tenant_id, c.id, p.id FROM channel c, contact p RETURNING tenant_id, id, channel_id),
lane AS (INSERT INTO lanes (tenant_id, conversation_id, channel_id, head_seq, done_seq, run_at, owner)
  SELECT tenant_id, id, channel_id, 1, %(done)s, now() + interval '1 hour', %(owner)s FROM conversation)
INSERT INTO chunks (tenant_id, conversation_id, channel_id, seq, no, body, state, due_at)
SELECT tenant_id, id, channel_id, 1, 1, 'x', %(state)s, now() + interval '1 hour' FROM conversation RETURNING id
"""
LANES = """
SELECT c.id, l.run_at <= now() + interval '2 seconds', c.due_at <= now() + interval '2 seconds'
FROM chunks c JOIN lanes l ON l.tenant_id = c.tenant_id AND l.conversation_id = c.conversation_id
"""


async def test_a_repaired_channel_is_tried_at_once(here: Installation) -> None:
    """A tenant's lanes become due when its channel changed, those at work too: not those done, or of another tenant."""
    await here.apply(BOTH)
    worker = "00000000-0000-0000-0000-000000000001"
    with here.courier() as conn:

        def lane(address: str = "1001", *, done: int = 0, owner: str | None = None, state: str = "ready") -> Any:
            values = {"address": address, "done": done, "owner": owner, "state": state}
            row = conn.execute(LANE, values).fetchone()
            assert row is not None
            return row[0]

        waiting, owned, done, in_doubt, other = (
            lane(), lane(owner=worker), lane(done=1), lane(state="in_doubt"), lane("1002")
        )  # fmt: skip
        await here.apply(BOTH)
        assert {row[1:] for row in conn.execute(LANES).fetchall()} == {(False, False)}
        await here.apply(BOTH.replace("env:TOKEN", "env:OTHER", 1))
        assert {row[0]: row[1:] for row in conn.execute(LANES).fetchall()} == {
            waiting: (True, True),
            owned: (True, True),
            done: (False, False),
            in_doubt: (True, False),
            other: (False, False),
        }


@pytest.mark.parametrize(
    ("right", "wrong", "woken"),
    [
        ('model = "claude-sonnet-4-5"', 'model = "other"', True),
        ('name = "Clinic noor"', 'name = "Clinic noor"\nenabled = false', True),
        ('name = "Clinic noor"', 'name = "Other"', False),
    ],
)
async def test_lanes_wake_for_what_may_have_held_them(here: Installation, right: str, wrong: str, woken: bool) -> None:
    """Assistant and `enabled` wake the tenant's lanes; a name does not."""
    await here.apply(BOTH)
    with here.courier() as conn:
        conn.execute(LANE, {"address": "1001", "done": 0, "owner": None, "state": "ready"})
        await here.apply(BOTH.replace(right, wrong, 1))
        assert [row[1:] for row in conn.execute(LANES).fetchall()] == [(woken, woken)]


async def test_a_running_process_learns_of_an_apply(here: Installation) -> None:
    """The Watch takes a new version up by itself, and a snapshot in use does not change under its user."""
    await here.apply(ENDPOINT)
    async with here.pool() as pool, Watch(pool, here.vault, interval=0.02) as watch:
        before = watch.current
        await here.apply(BOTH)
        async with asyncio.timeout(5):
            while watch.current.version == before.version:  # nothing announces a poll
                await asyncio.sleep(0.01)
        assert watch.current.channels_elsewhere("1001") and not before.channels_elsewhere("1001")


async def test_an_unknown_name_is_asked_for_at_once_and_once_for_all(here: Installation) -> None:
    """`refresh` does not wait for the poll; a hundred callers at once share one look, and looks are spaced."""
    await here.apply(ENDPOINT)
    async with here.pool() as pool, Watch(pool, here.vault, interval=0.5) as watch:
        await here.apply(ENDPOINT.replace("endpoints.meta", "endpoints.second"))
        statements = pool.get_stats().get("requests_num", 0)
        assert all(await asyncio.gather(*(watch.refresh() for _ in range(100))))
        assert watch.current.endpoint("second") is not None
        assert pool.get_stats()["requests_num"] - statements == 1
        now = asyncio.get_running_loop().time
        begun = now()
        assert await watch.refresh()
        assert now() - begun > 0.3


async def test_through_an_outage_the_last_snapshot_holds(here: Installation, database: Any) -> None:
    """With the database gone `current` stays and `refresh` says that it could not look; afterwards it goes on."""
    await here.apply(ENDPOINT)
    with psycopg.connect(database.superuser_url.rsplit("/", 1)[0] + "/postgres", autocommit=True) as conn:
        name = database.url.rsplit("/", 1)[1]
        async with here.pool() as pool, Watch(pool, here.vault, interval=0.02) as watch:
            conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            assert not await watch.refresh(patience=0.5)
            assert watch.current.endpoint("meta") is not None
            conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
            async with asyncio.timeout(20):
                while not await watch.refresh(patience=1):
                    pass


async def test_a_database_without_a_schema_is_told_so(cluster: Any, here: Installation) -> None:
    """The first apply before the first migrate names the step that is missing."""
    here.url = cluster.superuser_url
    with pytest.raises(ConfigurationError, match="run `qasid migrate`"):
        await here.apply(ENDPOINT)
