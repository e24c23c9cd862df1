"""The door for webhooks on a real PostgreSQL: whom it lets in, and where every single item is found afterwards."""

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from app import log
from app.settings import Settings
from app.vault import Vault, owner_of, token_field
from app.web import webhooks
from tests import cloud_bodies as cloud
from tests import receiving
from tests.conftest import Database
from tests.receiving import ENVIRON, Receiver, alerts

pytestmark = pytest.mark.anyio

web = receiving.web

LIMIT = 4 * 1024 * 1024
CHALLENGE = {"hub.mode": "subscribe", "hub.challenge": "1158201444", "hub.verify_token": ENVIRON["VERIFY"]}
NOTHING = (0, 0, 0)


# --- the door -------------------------------------------------------------------------------------------------------


async def test_the_challenge_is_echoed_to_whoever_knows_the_token(web: Receiver) -> None:
    """As text/plain, without any signature."""
    answer = await web.http.get("/webhooks/meta", params=CHALLENGE)
    assert (answer.status_code, answer.text) == (200, "1158201444")
    assert answer.headers["content-type"].startswith("text/plain")


ODD: list[tuple[dict[str, str], int]] = [
    ({"hub.verify_token": "wrong"}, 403),
    ({"hub.verify_token": "пароль"}, 403),
    ({"hub.verify_token": "\udcff"}, 403),
    ({"hub.verify_token": ""}, 403),
    ({"hub.challenge": "<script>"}, 400),
    ({"hub.challenge": "١٢٣"}, 400),
    ({"hub.challenge": ""}, 400),
    ({"hub.challenge": "1" * 65}, 400),
    ({"hub.mode": "unsubscribe"}, 400),
    ({str(n): "x" for n in range(30)}, 400),
]


async def test_nothing_else_is_echoed(web: Receiver) -> None:
    """Digits only, for the right token only, and no question is too odd for an answer."""
    for change, status in ODD:
        query = "&".join(
            f"{key}={''.join(f'%{byte:02x}' for byte in text.encode('utf-8', 'surrogateescape'))}"
            for key, text in {**CHALLENGE, **change}.items()
        )
        answer = await web.http.get(f"/webhooks/meta?{query}")
        assert answer.status_code == status, change
        assert "1158201444" not in answer.text
        assert "script" not in answer.text


async def test_wrong_tokens_are_counted_per_endpoint(web: Receiver) -> None:
    """After ten within a minute the right one waits too; another endpoint does not."""
    for _ in range(10):
        assert (await web.http.get("/webhooks/meta", params={**CHALLENGE, "hub.verify_token": "x"})).status_code == 403
    assert (await web.http.get("/webhooks/meta", params=CHALLENGE)).status_code == 429
    assert (await web.http.get("/webhooks/other", params=CHALLENGE)).status_code == 200


async def test_no_signature_but_the_right_one_over_these_bytes_opens_the_door(web: Receiver) -> None:
    """Each digit of it counts, and its form; what does not fit leaves no row."""
    body = cloud.webhook(cloud.text("salam 👍"))
    right = cloud.signature(body, ENVIRON["META"])
    flipped = [right[:n] + ("0" if right[n] != "0" else "1") + right[n + 1 :] for n in range(7, 71)]
    assert len(set(flipped)) == 64
    forged = [
        *flipped,
        "",
        "sha256=",
        right.upper(),
        "sha256=" + right[7:].upper(),
        right[7:],
        right + "0",
        right[:-1],
        "sha1=" + hashlib.sha1(body).hexdigest(),
        cloud.signature(body, ENVIRON["OTHER"]),
        cloud.signature(body, ""),
        cloud.signature(json.dumps(json.loads(body)).encode(), ENVIRON["META"]),
        cloud.signature(
            json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":")).encode(), "meta-secret"
        ),
    ]
    for signature in forged:
        assert (await web.post(body, signature=signature)).status_code == 403, signature
    for headers in (
        [],
        [("x-hub-signature", "sha1=" + hashlib.sha1(body).hexdigest())],
        [("x-hub-signature-256", right)] * 2,
        [("x-hub-signature-256", right), ("x-hub-signature-256", flipped[0])],
        [("x-hub-signature-256", f"{right}, {right}")],
    ):
        assert (await web.http.post("/webhooks/meta", content=body, headers=headers)).status_code == 403, headers
    assert (await web.post(body + b" ", signature=right)).status_code == 403
    assert web.counts() == NOTHING


async def test_each_live_secret_verifies_raw_bytes(web: Receiver) -> None:
    """Two while one is rotated; emoji raw or escaped, any spacing: what counts is what came."""
    escaped, spaced = (
        cloud.webhook(cloud.text("👍 ‏سلام")),
        json.dumps(cloud.envelope(cloud.value(messages=[cloud.text()]))),
    )
    raw = json.dumps(cloud.envelope(cloud.value(messages=[cloud.text("👍")])), ensure_ascii=False).encode()
    for body in (escaped, raw, spaced.encode(), b" " + escaped + b"\r\n"):
        for secret in (ENVIRON["META"], ENVIRON["META_OLD"]):
            assert (await web.post(body, secret=secret)).status_code == 200
    assert sorted(web.execute("SELECT body FROM messages")) == [("hi",), ("👍",), ("👍 ‏سلام",)]


async def test_an_endpoint_that_does_not_exist_is_404_and_other_methods_are_405(web: Receiver) -> None:
    """Whatever is signed."""
    body = cloud.webhook(cloud.text())
    slugs = ("nobody", "META", "meta/", "%6deta", "meta%00", "x" * 2000, "")
    answers = await asyncio.gather(*(web.http.post(f"/webhooks/{slug}", content=body) for slug in slugs))
    assert [answer.status_code for answer in answers] == [404] * len(slugs)
    for method in ("PUT", "DELETE", "PATCH", "HEAD"):
        assert (await web.http.request(method, "/webhooks/meta")).status_code == 405
    assert web.counts() == NOTHING


async def test_an_endpoint_works_from_the_moment_it_is_applied(
    web: Receiver, database: Database, tmp_path: Path
) -> None:
    """The first webhook is not refused because this process has not heard of its endpoint yet."""
    new = receiving.META.replace("meta", "brandnew")
    more = receiving.CHANNEL.format(tenant="noor", slug="third", endpoint="brandnew", address="3001")
    await receiving.configure(database.url, tmp_path, new + '[tenants.noor]\nname = "Noor"\n' + more)
    body = cloud.webhook(cloud.text(), address="3001")
    assert (await web.post(body, endpoint="brandnew", secret=ENVIRON["META"])).status_code == 200
    assert web.unaccounted(body, "brandnew") == []
    assert web.counts() == (1, 0, 0)


async def test_a_body_is_bounded(web: Receiver) -> None:
    """4 MiB are taken, a byte more is not, whether its length is announced or not."""
    body = b"x" * LIMIT
    assert (await web.post(body)).status_code == 200
    assert (await web.post(body + b"x")).status_code == 413

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * (1024 * 1024)

    signature = cloud.signature(b"x" * (5 * 1024 * 1024), ENVIRON["META"])
    answer = await web.http.post("/webhooks/meta", content=pieces(), headers={"x-hub-signature-256": signature})
    assert answer.status_code == 413
    assert web.counts() == (0, 0, 1)


async def test_a_body_that_does_not_end_is_left(web: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """After BODY_PATIENCE; others are answered meanwhile."""
    monkeypatch.setattr(webhooks, "BODY_PATIENCE", 0.3)
    begun = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        begun.set()
        await asyncio.Event().wait()

    slow = asyncio.create_task(web.http.post("/webhooks/meta", content=pieces()))
    await begun.wait()
    assert (await web.post(cloud.webhook(cloud.text()))).status_code == 200
    assert not slow.done()
    assert (await slow).status_code == 408


# --- the items --------------------------------------------------------------------------------------------------------


async def test_every_item_of_a_webhook_with_everything_in_it_is_found_again(web: Receiver) -> None:
    """Two entries, three changes, each kind, statuses, echoes, errors, an unknown kind, an unknown number."""
    one = cloud.value(
        "1001",
        messages=[*(cloud.message(kind) for kind in cloud.CONTENTS), cloud.message("hologram")],
        statuses=[
            cloud.status(cloud.fresh(), said) for said in ("sent", "delivered", "read", "played", "failed", "lost")
        ],
        errors=[{"code": 130429, "title": "Rate limit hit"}],
        contacts=[{"wa_id": cloud.PERSON, "profile": {"name": "Ana"}}],
    )
    two = cloud.value(
        "1002", messages=[cloud.text("to the other number")], message_echoes=[cloud.echo(text={"body": "e"})]
    )
    three = cloud.value("9999", messages=[cloud.text("to nobody")], statuses=[cloud.status()])
    whole = cloud.envelope(one, two)
    whole["entry"] += cloud.envelope(three)["entry"]
    body = cloud.encode(whole)
    assert len(web.unaccounted(body)) == 27
    assert (await web.post(body)).status_code == 200
    assert web.unaccounted(body) == []
    assert web.counts() == (len(cloud.CONTENTS) + 2, 5, 5)
    assert web.one("SELECT count(DISTINCT contact_id) FROM conversations") == 1  # one person, two channels
    assert web.one("SELECT count(*) FROM contacts WHERE name = 'Ana'") == 1
    entered = "SELECT array_agg(kind ORDER BY seq) FROM outbox JOIN lanes USING (tenant_id, conversation_id)"
    assert web.execute(f"{entered} GROUP BY conversation_id ORDER BY count(*)") == [(["answer"],), (["answer"] * 11,)]
    assert web.execute("SELECT version FROM lanes ORDER BY 1") == [(1,), (2,)]  # an echo; an edit and a revocation
    for raw, text in web.execute("SELECT raw->>'id', provider_id FROM messages"):
        assert raw == text


async def test_a_redelivery_changes_nothing(web: Receiver) -> None:
    """Nor do other bytes around the same message: the id counts."""
    message, status = cloud.text(), cloud.status()
    bodies = [
        cloud.webhook(message, statuses=[status]),
        cloud.webhook(message, contacts=[{"wa_id": cloud.PERSON}], statuses=[status]),
        cloud.webhook(cloud.text("other words", id=message["id"])),
        cloud.webhook(message, message, message, statuses=[status, status]),
    ]
    for body in bodies:
        assert (await web.post(body)).status_code == 200
    assert web.counts() == (1, 1, 0)
    assert web.execute("SELECT head_seq, version FROM lanes") == [(1, 0)]
    assert web.one("SELECT body FROM messages") == "hi"


async def test_what_cannot_be_read_is_kept_once_and_counted(web: Receiver) -> None:
    """One row per endpoint and raw item, however often it comes, within one webhook or in many."""
    item = {"type": "hologram"}
    for _ in range(3):
        assert (await web.post(cloud.webhook(item, item))).status_code == 200
    assert (await web.post(cloud.webhook(item), endpoint="other")).status_code == 200
    assert sorted(web.execute("SELECT count, raw FROM quarantine")) == [
        (1, cloud.encode(item)),
        (6, cloud.encode(item)),
    ]


async def test_an_endpoint_speaks_for_no_channel_of_another(web: Receiver) -> None:
    """Its secret opens its own door only: the item is kept under it, somebody is called, neighbours go on."""
    before = alerts("foreign_channel")
    theirs, ours = cloud.text("for amal"), cloud.text("for noor")
    body = cloud.encode(
        cloud.envelope(
            cloud.value("2001", messages=[theirs], statuses=[cloud.status("wamid.T")]), cloud.value(messages=[ours])
        )
    )
    assert (await web.post(body)).status_code == 200
    assert alerts("foreign_channel") == before + 2
    assert web.unaccounted(body) == []
    assert web.counts() == (1, 0, 2)
    assert web.execute("SELECT DISTINCT t.slug FROM messages JOIN tenants t ON t.id = tenant_id") == [("noor",)]
    for table in ("contacts", "identities", "conversations", "seen", "lanes", "outbox"):
        assert web.execute(f"SELECT DISTINCT slug FROM {table} JOIN tenants t ON t.id = tenant_id") == [("noor",)]
    assert web.execute("SELECT DISTINCT e.slug FROM quarantine JOIN endpoints e ON e.id = endpoint_id") == [("meta",)]


async def test_two_tenants_whose_ids_are_equal_share_nothing(web: Receiver, database: Database) -> None:
    """The same channel id, contact, conversation and provider id: each tenant gets its own rows."""
    same, vault = uuid4(), Vault([bytes.fromhex(receiving.KEY)])
    for tenant, channel in web.execute("SELECT tenant_id, id FROM channels WHERE slug = 'main'"):
        token = vault.seal("EAAG", owner=owner_of("tenant", tenant), field=token_field(same))
        web.execute(
            "UPDATE channels SET id = %s, token = %s WHERE (tenant_id, id) = (%s, %s)", same, token, tenant, channel
        )
        web.execute("INSERT INTO contacts (tenant_id, id) VALUES (%s, %s)", tenant, same)
        web.execute("INSERT INTO identities VALUES (%s, 'wa_id', %s, %s)", tenant, cloud.PERSON, same)
        web.execute(
            "INSERT INTO conversations (tenant_id, id, channel_id, contact_id) VALUES (%s, %s, %s, %s)",
            *(tenant, same, same, same),
        )
        web.execute(
            "INSERT INTO lanes (tenant_id, conversation_id, channel_id) VALUES (%s, %s, %s)", tenant, same, same
        )
    web.execute("UPDATE configuration SET version = version + 1")
    async with receiving.process(database.url, database.superuser_url) as fresh:
        message, status = cloud.text(), cloud.status()
        noor = cloud.webhook(message, cloud.text(), statuses=[status])
        amal = cloud.webhook(message, address="2001", statuses=[status])
        answers = await asyncio.gather(*(fresh.post(*w) for w in [(noor,)] * 3), fresh.post(amal, endpoint="other"))
        assert {answer.status_code for answer in answers} == {200}
    per_tenant = "SELECT t.slug, count(*) FROM {} JOIN tenants t ON t.id = tenant_id GROUP BY 1 ORDER BY 1"
    assert web.execute(per_tenant.format("messages")) == [("amal", 1), ("noor", 2)]
    assert web.execute(per_tenant.format("outbox")) == [("amal", 1), ("noor", 2)]
    assert web.execute(per_tenant.format("statuses")) == [("amal", 1), ("noor", 1)]
    assert web.execute(per_tenant.format("conversations")) == [("amal", 1), ("noor", 1)]
    assert web.execute("SELECT head_seq FROM lanes ORDER BY 1") == [(1,), (2,)]


async def test_twenty_redeliveries_at_once_to_two_processes_store_one(web: Receiver, database: Database) -> None:
    """Of people nobody knew either: one conversation each, every message once, seqs without a gap."""
    people = [f"1555000{n:04d}" for n in range(8)]
    bodies = [cloud.webhook(*(cloud.text(f"{n}", **{"from": who}) for n in range(5) for who in people))]
    bodies += [cloud.webhook(cloud.text("lone", **{"from": who})) for who in people]
    async with receiving.process(database.url, database.superuser_url) as other:
        posts = [process.post(body) for _ in range(10) for body in bodies for process in (web, other)]
        answers = await asyncio.gather(*posts)
    # A webhook that met its lanes held all the time may have been told to come again; it does.
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert [(await web.post(body)).status_code for body in bodies] == [200] * len(bodies)
    assert web.counts() == (48, 0, 0)
    assert web.one("SELECT count(*) FROM contacts") == len(people)
    assert web.execute("SELECT head_seq FROM lanes") == [(6,)] * len(people)
    seqs = web.execute("SELECT array_agg(seq ORDER BY seq) FROM outbox GROUP BY conversation_id")
    assert seqs == [([1, 2, 3, 4, 5, 6],)] * len(people)
    assert web.one("SELECT count(DISTINCT message_id) FROM outbox") == 48


async def test_what_only_postgresql_refuses_holds_up_nobody(web: Receiver) -> None:
    """It is found among its neighbours of one flush and kept raw, once; they are stored."""
    web.execute("ALTER TABLE messages ADD CHECK (provider_id <> 'wamid.bad')")
    web.execute("ALTER TABLE statuses ADD CHECK (provider_id <> 'wamid.bad')")
    bad = [cloud.text(id="wamid.bad"), cloud.text(id="wamid.\0")]
    worse, stray = cloud.status("wamid.bad"), {"type": "hologram"}
    bodies = [
        cloud.webhook(cloud.text(**{"from": f"1555{n}"}), statuses=[cloud.status(f"wamid.{n}")]) for n in range(30)
    ]
    bodies.insert(7, cloud.webhook(bad[0], stray))
    bodies.insert(19, cloud.webhook(bad[1], cloud.text("beside it"), statuses=[worse, cloud.status("wamid.good")]))
    answers = await asyncio.gather(*map(web.post, bodies))
    assert {answer.status_code for answer in answers} == {200}
    for body in bodies:
        assert web.unaccounted(body) == []
    assert web.counts() == (31, 31, 4)
    assert sorted(web.execute("SELECT raw, count FROM quarantine")) == sorted(
        (cloud.encode(item), 1) for item in (*bad, worse, stray)
    )


# --- statuses -------------------------------------------------------------------------------------------------------


def chunk(web: Receiver, *, state: str = "sending", waiting: bool = True) -> UUID:
    """A chunk in the lane of noor's only message so far, with its first attempt in this state."""
    [[tenant, conversation, channel]] = web.execute("SELECT tenant_id, conversation_id, channel_id FROM lanes")
    new = uuid4()
    web.execute(
        "INSERT INTO chunks (tenant_id, id, conversation_id, channel_id, seq, no, body, state, attempt) "
        "VALUES (%s, %s, %s, %s, 1, (SELECT count(*) + 1 FROM chunks), 'x', %s, 1)",
        *(tenant, new, conversation, channel, state),
    )
    web.execute(
        "INSERT INTO attempts (tenant_id, chunk_id, n, token, state) VALUES (%s, %s, 1, 1, %s)", tenant, new, state
    )
    due = "now() + interval '1 hour'" if waiting else "NULL"
    web.execute(f"UPDATE lanes SET run_at = {due}")
    return new


def said(web: Receiver, of: UUID) -> tuple[str, str]:
    """The state of a chunk and of its first attempt."""
    [found] = web.execute(
        "SELECT c.state, a.state FROM chunks c JOIN attempts a ON (a.tenant_id, a.chunk_id) = (c.tenant_id, c.id) "
        "WHERE c.id = %s AND a.n = 1",
        of,
    )
    return found[0], found[1]


async def report(web: Receiver, of: UUID, *words: str, address: str = "1001", endpoint: str = "meta") -> None:
    """One webhook with a status for each word, a second apart."""
    statuses = [
        cloud.status("wamid.OUT", word, timestamp=str(int(cloud.AT) + n), biz_opaque_callback_data=f"{of}:1")
        for n, word in enumerate(words)
    ]
    assert (await web.post(cloud.webhook(address=address, statuses=statuses), endpoint=endpoint)).status_code == 200


@pytest.fixture
async def known(web: Receiver) -> Receiver:
    """The web process, after noor's first message."""
    assert (await web.post(cloud.webhook(cloud.text()))).status_code == 200
    return web


async def test_statuses_move_a_chunk_forward_only(known: Receiver) -> None:
    """In whatever order they come, in one webhook or several, repeated or not; each is kept once."""
    orders = [
        ("sent", "delivered", "read"),
        ("read", "delivered", "sent"),
        ("delivered", "read", "delivered", "sent"),
        ("read",),
    ]
    for words in orders:
        together, apart = chunk(known), chunk(known)
        await report(known, together, *words)
        await report(known, together, *words)
        for n in range(len(words)):
            await report(known, apart, *words[: n + 1])
        assert said(known, together) == said(known, apart) == ("read", "read")
        kept = "SELECT count(*) FROM statuses WHERE chunk_id = %s"
        assert known.one(kept, together) == known.one(kept, apart) == len(words)
    backwards = chunk(known)
    await report(known, backwards, "delivered")
    await report(known, backwards, "delivered", "sent")
    applied = known.execute("SELECT status, applied FROM statuses WHERE chunk_id = %s ORDER BY at", backwards)
    assert applied == [("delivered", True), ("sent", False)]


async def test_failed_is_final_and_never_overrides_delivered(known: Receiver) -> None:
    """It wins over sending, accepted and sent; what was delivered was delivered."""
    table = {
        ("failed",): "failed",
        ("sent", "failed"): "failed",
        ("failed", "sent"): "failed",
        ("delivered", "failed"): "delivered",
        ("read", "failed"): "read",
    }
    for words, state in table.items():
        together, apart = chunk(known), chunk(known)
        await report(known, together, *words)
        for n in range(len(words)):
            await report(known, apart, *words[: n + 1])
        assert said(known, apart) == (state, state), words
        assert said(known, together) == (state, state), words


async def test_a_status_makes_the_lane_that_waits_for_it_due(known: Receiver) -> None:
    """Delivered opens the gate; sent does not, unless the chunk was in doubt."""
    due = "SELECT run_at <= qasid_now() FROM lanes"
    for state, word, opens in (
        ("accepted", "sent", False),
        ("accepted", "delivered", True),
        ("in_doubt", "sent", True),
        ("sent", "failed", True),
    ):
        await report(known, chunk(known, state=state), word)
        assert known.one(due) is opens, (state, word)


async def test_a_status_for_what_is_not_its_channels_moves_nothing(known: Receiver) -> None:
    """An unknown chunk, another tenant's, another channel's of the same tenant: kept, told, not applied."""
    before, ours = alerts("foreign_key"), chunk(known)
    await report(known, uuid4(), "delivered")
    await report(known, ours, "delivered", address="2001", endpoint="other")
    await report(known, ours, "read", address="1002")
    assert said(known, ours) == ("sending", "sending")
    assert known.execute("SELECT t.slug, c.slug, applied FROM statuses s JOIN tenants t ON t.id = s.tenant_id "
                         "JOIN channels c ON c.id = s.channel_id ORDER BY 1, 2") == [
        ("amal", "main", False),
        ("noor", "main", False),
        ("noor", "second", False),
    ]  # fmt: skip
    assert alerts("foreign_key") == before + 3
    assert known.one("SELECT run_at > qasid_now() FROM lanes")
    await report(known, ours, "delivered")
    assert said(known, ours) == ("delivered", "delivered")


# --- bodies that want to be a 500 -----------------------------------------------------------------------------------

ITEM = '{"from":"1","id":"wamid.N","timestamp":"1780000000","type":"text","text":{"body":"hi"},"x":%s}'
NASTY = [
    *("[1,]", "[,1]", "[1 true]", "[a]", '["": 1]', "[", "]", "[[]", "{]", "{", '{"a"}', '{"a":}', '{"a" b}'),
    *("{1:1}", "{'a':0}", '{"a":1,}', '{"a":1 "b":2}', '{,"a":1}', "{}}", '{"a":1}#', "nul", "tru", "True", "NaN"),
    *(
        "Infinity",
        "-Infinity",
        "-",
        "--1",
        "+1",
        "01",
        "-01",
        "1.",
        ".1",
        "1.e1",
        "1e",
        "1e+",
        "0x1",
        "1_000",
        "1e9999",
    ),
    *(
        "-1e9999",
        "9" * 4301,
        "9" * 20,
        "1." + "0" * 5000 + "1",
        '"',
        '"\\',
        '"\\x"',
        '"\\u12"',
        '"\\uD83D"',
        '"\\uDC4D"',
    ),
    *(
        '"\\uD83D\\uD83D"',
        '"\t"',
        '"\n"',
        '"\x00"',
        '"\\u0000"',
        '"\x7f"',
        '"a" "b"',
        "// x",
        "/**/1",
        "\ufeff1",
        "\u00a01",
    ),
    *(
        "[" * 600 + "]" * 600,
        "[" * 90_000,
        '{"a":' * 60_000,
        "[" * 60_000 + "]" * 60_000,
        '{"a":1,"a":2}',
        '{"":0}',
        '""',
    ),
    *("null", "-0", "1E400", '"' + "\\u0000" * 500 + '"'),
]
NASTY_BYTES = [
    *(
        b'"\xff"',
        b'"\xc0\xaf"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\xe2\x82"',
        b"\xff\xfe1\x00",
        b"\x00",
        b"\x1b",
    ),
]


async def test_no_body_is_answered_5xx(web: Receiver) -> None:
    """As the body itself, and within an item: 200, and its bytes are kept or its message is stored."""
    cases = [text.encode() for text in NASTY] + NASTY_BYTES
    assert len(cases) > 70
    beside = cloud.text("beside it")
    for case in cases:
        messages = cloud.encode([beside]).replace(b"]", b"," + ITEM.encode().replace(b"%s", case) + b"]")
        for body in (case, cloud.webhook(messages=["MARK"]).replace(b'["MARK"]', messages)):
            answer = await web.post(body)
            assert answer.status_code == 200, body[:300]
    stored = web.execute("SELECT provider_id FROM messages ORDER BY 1")
    assert stored == [(beside["id"],), ("wamid.N",)]
    whole = {bytes(raw) for [raw] in web.execute("SELECT raw FROM quarantine")}
    assert set(cases) <= whole


async def test_a_storm_of_nonsense_delays_no_message(web: Receiver) -> None:
    """A thousand unreadable items in one webhook, as many as Meta sends at most, and a message right behind it."""
    storm = asyncio.create_task(web.post(cloud.webhook(messages=[{"n": n} for n in range(1_000)])))
    await asyncio.sleep(0)
    assert (await web.post(cloud.webhook(cloud.text()))).status_code == 200
    assert (await storm).status_code == 200
    assert web.counts() == (1, 0, 1_000)


async def test_nobody_logs_what_people_write(web: Receiver) -> None:
    """Neither words, nor numbers, nor what could not be read."""
    printed = io.StringIO()
    log.configure(Settings(log_level="debug"), process="web", stream=printed)
    words = ["KanarienvogelA", "KanarienvogelB", "15557778888"]
    bad = cloud.status("wamid.X", words[1])
    body = cloud.webhook(cloud.text(words[0], **{"from": words[2]}), {"type": words[1]}, statuses=[bad])
    assert (await web.post(body)).status_code == 200
    assert (await web.post(body, endpoint="other")).status_code == 200
    assert (await web.post(body, signature="sha256=0")).status_code == 403
    assert '"event":"webhook"' in printed.getvalue()
    for word in (*words, *ENVIRON.values()):
        assert word not in printed.getvalue()


async def test_a_log_that_cannot_be_written_costs_no_webhook(web: Receiver) -> None:
    """What is committed is answered 200, be the disk full or the reader of our lines gone."""
    gone = io.StringIO()
    log.configure(Settings(log_level="debug"), process="web", stream=gone)
    gone.close()
    assert (await web.post(cloud.webhook(cloud.text(), {}))).status_code == 200
    assert web.counts() == (1, 0, 1)


async def test_answers_carry_no_words_of_the_database(web: Receiver) -> None:
    """Short fixed sentences, whatever happened."""
    web.execute("ALTER TABLE seen RENAME TO unseen")
    answer = await web.post(cloud.webhook(cloud.text()))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "seen" not in answer.text
    web.execute("ALTER TABLE unseen RENAME TO seen")
