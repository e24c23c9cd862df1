"""What is read out of the Cloud API's webhooks: every item, every odd shape, and nothing that raises."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.channels import Attachment
from app.channels.cloud_webhook import MOST_ITEMS, attachment, items
from app.messages import ANSWERED, KINDS, Identity, Item, Key, Message, Status, Stray
from tests import cloud_bodies as cloud

PHONE = Identity("wa_id", cloud.PERSON)
BSUID = Identity("bsuid", "US.123")
AT = datetime.fromtimestamp(int(cloud.AT), UTC)


def only(body: bytes) -> Item:
    [item] = items(body)
    return item


def only_message(*messages: cloud.Json, **lists: Any) -> Message:
    item = only(cloud.webhook(*messages, **lists))
    assert isinstance(item, Message), item
    return item


def only_status(status: cloud.Json) -> Status:
    item = only(cloud.webhook(statuses=[status]))
    assert isinstance(item, Status), item
    return item


def only_stray(body: bytes) -> Stray:
    item = only(body)
    assert isinstance(item, Stray), item
    return item


def kinds(body: bytes) -> list[str]:
    return [type(item).__name__ for item in items(body)]


# --- each kind ------------------------------------------------------------------------------------------------------

READ = {
    "text": (None, "hi"),
    "image": (None, "a caption"),
    "audio": (None, ""),
    "video": (None, "a film"),
    "document": (None, "letter.pdf"),
    "sticker": (None, ""),
    "location": (
        None,
        "Kaaba\nMakkah\n21.422500, 39.826200\nhttps://www.google.com/maps?q=21.422500,39.826200",
    ),
    "contacts": (None, "Ana Bey\n+1 5"),
    "interactive": (None, "Yes"),
    "button": (None, "Tapped"),
    "reaction": ("wamid.OUT", "👍"),
    "edit": ("wamid.A", "better"),
    "revoke": ("wamid.A", ""),
    "unsupported": (None, ""),
    "system": (None, "a new number"),
}


def test_every_kind_has_a_fixture() -> None:
    """A kind that is added to KINDS is tested here, or this fails."""
    assert set(READ) == set(cloud.CONTENTS) == KINDS


@pytest.mark.parametrize("kind", READ)
def test_each_kind_is_read_with_what_a_person_would_read(kind: str) -> None:
    """Kind, id, time, person, words, what it refers to, and its own bytes."""
    sent = cloud.message(kind)
    got = only_message(sent, contacts=[{"profile": {"name": "Ana"}, "wa_id": cloud.PERSON}])
    assert (got.kind, got.direction, got.provider_id, got.sent_at) == (kind, "in", sent["id"], AT)
    assert (got.address, got.identities, got.name) == ("1001", (PHONE,), "Ana")
    assert (got.refers_to, got.body) == READ[kind]
    assert json.loads(got.raw) == sent
    assert got.answered == (kind in ANSWERED)
    assert got.changes_history == (kind in ("edit", "revoke"))


@pytest.mark.parametrize("said", ["sent", "delivered", "read", "played", "failed"])
def test_each_status_is_read(said: str) -> None:
    """Id, status, time, our key, and its own bytes."""
    key = "0198c0de-0000-7000-8000-000000000001:3"
    sent = cloud.status("wamid.OUT", said, biz_opaque_callback_data=key)
    got = only_status(sent)
    assert (got.provider_id, got.status, got.at, str(got.key)) == ("wamid.OUT", said, AT, key)
    assert json.loads(got.raw) == sent


def test_a_failed_status_tells_code_and_reason() -> None:
    """The first of its errors is what the operator reads."""
    got = only_status(cloud.status("wamid.X", "failed", errors=[{"code": 131026, "title": "Message undeliverable"}]))
    assert (got.code, got.reason) == (131026, "Message undeliverable")


@pytest.mark.parametrize("key", ["", "x", "0198c0de-0000-7000-8000-000000000001", '{"a":1}', "x" * 600, "١:١"])
def test_a_foreign_key_is_no_key_and_the_status_is_read(key: str) -> None:
    """Other software's callback data is none of ours; an object comes back as a JSON string."""
    assert only_status(cloud.status("wamid.X", biz_opaque_callback_data=key)).key is None


@given(chunk=st.uuids(), attempt=st.integers(1, 999_999_999))
def test_our_key_comes_back_as_it_went(chunk: Any, attempt: int) -> None:
    """`str` and `parse` are each other's inverse."""
    assert Key.parse(str(Key(chunk, attempt))) == Key(chunk, attempt)


def test_errors_of_the_provider_are_kept() -> None:
    """`value.errors` alone is an item like any other: it goes to quarantine."""
    error = {"code": 130429, "title": "Rate limit hit"}
    stray = only_stray(cloud.webhook(errors=[error]))
    assert (json.loads(stray.raw), stray.address) == (error, "1001")


def test_an_echo_belongs_to_whom_it_was_sent_to() -> None:
    """What the business wrote itself changes history and asks for no answer."""
    sent = cloud.echo(text={"body": "from the shop"}, to_user_id="US.123")
    got = only(cloud.encode(cloud.envelope(cloud.value(message_echoes=[sent]), field="smb_message_echoes")))
    assert isinstance(got, Message)
    assert (got.direction, got.identities, got.body) == ("echo", (PHONE, BSUID), "from the shop")
    assert not got.answered
    assert got.changes_history


def test_one_webhook_with_everything_in_it_gives_every_item_in_order() -> None:
    """entries × changes × (messages, echoes, statuses, errors)."""
    one = cloud.value("1", messages=[cloud.text("a"), cloud.text("b")], statuses=[cloud.status()], errors=[{"code": 1}])
    two = cloud.value("2", message_echoes=[cloud.echo(text={"body": "c"})], statuses=[cloud.status(), cloud.status()])
    three = cloud.value("3", messages=[cloud.text("d")])
    body = cloud.envelope(one, two)
    body["entry"] += cloud.envelope(three)["entry"]
    got = items(cloud.encode(body))
    assert [item.address for item in got] == ["1"] * 4 + ["2"] * 3 + ["3"]
    assert [item.body for item in got if isinstance(item, Message)] == ["a", "b", "c", "d"]
    assert [type(item) for item in got] == [Message, Message, Status, Stray, Message, Status, Status, Message]


# --- the traps --------------------------------------------------------------------------------------------------------


def test_a_person_without_a_phone_number_is_a_person() -> None:
    """`from` absent or empty: the business-scoped id stands alone."""
    for sender in (None, ""):
        got = only_message(cloud.text(**{"from": sender, "from_user_id": "US.123"}))
        assert got.identities == (BSUID,)


def test_a_contact_adds_the_other_address_and_the_name() -> None:
    """Found by either address, in whatever order contacts stand."""
    contacts = [
        {"wa_id": "15550009999", "user_id": "US.999", "profile": {"name": "Other"}},
        {"wa_id": cloud.PERSON, "user_id": "US.123", "profile": {"name": "Ana", "username": "ana"}},
    ]
    by_number = only_message(cloud.text(), contacts=contacts)
    by_id = only_message(cloud.text(**{"from": None, "from_user_id": "US.123"}), contacts=contacts)
    assert by_number.identities == by_id.identities == (PHONE, BSUID)
    assert by_number.name == by_id.name == "Ana"


def test_a_strangers_contact_lends_nothing() -> None:
    """A contact without either address of the sender names somebody else."""
    got = only_message(cloud.text(), contacts=[{"profile": {"name": "Nobody"}}, {"wa_id": None, "user_id": None}])
    assert (got.identities, got.name) == ((PHONE,), "")


def test_a_system_message_comes_without_contacts() -> None:
    """user_changed_number names the new number, and its sender is the old one."""
    got = only_message(cloud.message("system"))
    assert (got.identities, got.answered) == ((PHONE,), False)


@pytest.mark.parametrize("emoji", [{}, {"emoji": ""}, {"emoji": None}])
def test_a_reaction_is_taken_away_by_an_empty_or_absent_emoji(emoji: cloud.Json) -> None:
    """Both shapes occur."""
    got = only_message(cloud.message("reaction", reaction={"message_id": "wamid.OUT", **emoji}))
    assert (got.refers_to, got.body) == ("wamid.OUT", "")


FILES = ["image", "audio", "video", "document", "sticker"]


@pytest.mark.parametrize("kind", FILES)
def test_the_file_of_a_message_is_told_by_its_json(kind: str) -> None:
    """Id, type, digest, name and caption, as the provider sends them."""
    content = cloud.CONTENTS[kind]
    assert attachment(cloud.encode(cloud.message(kind))) == Attachment(
        id=content["id"],
        media_type=content["mime_type"],
        sha256=content.get("sha256", ""),
        filename=content.get("filename", ""),
        caption=content.get("caption", ""),
    )


def test_an_edit_brings_a_file_of_its_own() -> None:
    """Or none: then the message has the one that it had."""
    new = {"type": "image", "image": {"id": 79}}
    edit = cloud.message("edit", edit={"original_message_id": "wamid.A", "message": new})
    assert attachment(cloud.encode(edit)) == Attachment(id="79")
    assert attachment(cloud.encode(cloud.message("edit"))) is None


@pytest.mark.parametrize("kind", sorted(KINDS - set(FILES)))
def test_what_comes_without_a_file_has_none(kind: str) -> None:
    """Whatever else it brings."""
    assert attachment(cloud.encode(cloud.message(kind))) is None


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[", b'{"image": 7}', b'{"image": {}}', b'{"image": {"id": null}}', b"\xff", b"[" * 100_000]
)
def test_a_file_that_cannot_be_read_is_none(raw: bytes) -> None:
    """Nothing raises: the message is asked without it."""
    assert attachment(raw) is None


def test_a_card_is_worth_no_less_for_what_makes_no_sense_in_it() -> None:
    """Name, company, numbers and addresses, a line each; what cannot be read of it is left out."""
    whole = {
        "name": {"formatted_name": "Amal Haddad"},
        "org": {"company": "Noor"},
        "phones": [{"phone": "+1 555 000 3333", "wa_id": "15550003333"}, {"wa_id": "15550004444"}],
        "emails": [{"email": "amal@example.org"}],
    }
    broken = {"name": {"formatted_name": "Ben"}, "org": 7, "phones": {"phone": 1}, "emails": [{"email": 5}]}
    body = only_message(cloud.message("contacts", contacts=[whole, broken, {}])).body
    assert body == "Amal Haddad\nNoor\n+1 555 000 3333\n15550004444\namal@example.org\n\nBen"


def test_cards_are_bounded_in_number_and_length() -> None:
    """A message of a thousand cards is no prompt of a megabyte."""
    card = {"name": {"formatted_name": "A"}, "phones": [{"phone": str(n)} for n in range(100)]}
    body = only_message(cloud.message("contacts", contacts=[card] * 100)).body
    assert len(body.split("\n\n")) == 20 and all(len(each.split("\n")) <= 8 for each in body.split("\n\n"))


@pytest.mark.parametrize(("caption", "says"), [({"caption": "better"}, "better"), ({"caption": ""}, ""), ({}, "")])
def test_an_edit_may_be_of_a_caption(caption: dict[str, str], says: str) -> None:
    """The new one counts; without any, the old one was removed."""
    new = {"type": "image", "image": {"id": "1", **caption}, "context": {"id": "M0"}}
    got = only_message(cloud.message("edit", edit={"original_message_id": "wamid.A", "message": new}))
    assert (got.refers_to, got.body) == ("wamid.A", says)


NOTHING_NEW: dict[str, dict[str, Any]] = {
    "no content": {},
    "null": {"message": None},
    "nothing in it": {"message": {}},
    "no words": {"message": {"type": "text", "text": {"body": ""}}},
    "a kind without words": {"message": {"type": "unsupported", "unsupported": {}}},
    "another kind": {"message": {"type": "location", "location": {"latitude": 1.0, "longitude": 2.0}}},
    "no caption possible": {"message": {"type": "audio", "audio": {"id": "1"}}},
}


@pytest.mark.parametrize("new", NOTHING_NEW.values(), ids=NOTHING_NEW)
def test_an_edit_into_what_cannot_be_read_takes_no_words_away(new: dict[str, Any]) -> None:
    """It is set aside as it came, and the original stands."""
    message = cloud.message("edit", edit={"original_message_id": "wamid.A", **new})
    stray = only_stray(cloud.webhook(message))
    assert (stray.part, stray.reason) == ("message", "message: an edit into what cannot be read")
    assert json.loads(stray.raw) == message


def test_an_interactive_message_without_its_body_is_a_message() -> None:
    """It comes with value.errors 131000: somebody wrote something, and an error is reported besides."""
    body = cloud.webhook(cloud.message("interactive", interactive=None), errors=[{"code": 131000, "title": "…"}])
    assert kinds(body) == ["Message", "Stray"]


def test_a_list_reply_reads_as_its_title() -> None:
    """As a button's does."""
    reply = {"type": "list_reply", "list_reply": {"id": "r1", "title": "Tuesday", "description": "d"}}
    assert only_message(cloud.message("interactive", interactive=reply)).body == "Tuesday"


def test_failed_media_and_unsupported_kinds_are_messages_with_errors() -> None:
    """`errors` inside a message takes nothing away."""
    errors = [{"code": 131051, "title": "Message type unknown", "error_data": {"details": "…"}}]
    assert only_message(cloud.message("image", errors=errors)).body == "a caption"
    assert only_message(cloud.message("unsupported", unsupported=None, errors=errors)).answered


@pytest.mark.parametrize("more", [{"referral": {"source_type": "ad"}}, {"context": {"frequently_forwarded": True}}])
def test_what_nobody_asks_for_does_no_harm(more: cloud.Json) -> None:
    """Referrals, contexts and keys that are yet to be invented stay in `raw`."""
    got = only_message(cloud.text("hi", **more))
    assert (got.body, json.loads(got.raw).keys() >= more.keys()) == ("hi", True)


@pytest.mark.parametrize("stamp", [int(cloud.AT), cloud.AT])
def test_a_time_is_a_number_or_a_string(stamp: int | str) -> None:
    """Unix seconds in both."""
    assert only_message(cloud.text(timestamp=stamp)).sent_at == AT
    assert only_status(cloud.status(timestamp=stamp)).at == AT


def test_the_dashboards_test_button_is_read() -> None:
    """Entry id 0, an id without `wamid.`, an old time: a message, of a channel that nobody has."""
    body = cloud.envelope(cloud.value("123456123", messages=[cloud.text(id="ABGGFlA5Fpa", timestamp="1504902988")]))
    body["entry"][0]["id"] = "0"
    got = only(cloud.encode(body))
    assert isinstance(got, Message)
    assert (got.provider_id, got.address) == ("ABGGFlA5Fpa", "123456123")


@pytest.mark.parametrize(("ahead", "kind"), [(240, Message), (600, Stray)])
def test_an_item_from_the_future_is_not_believed(ahead: int, kind: type) -> None:
    """Five minutes are a clock's error, more are a forgery's."""
    stamp = str(int((datetime.now(UTC) + timedelta(seconds=ahead)).timestamp()))
    assert isinstance(only(cloud.webhook(cloud.text(timestamp=stamp))), kind)


def test_u0000_stays_in_the_raw_item_alone() -> None:
    """PostgreSQL's text knows none: the body shows a replacement, the name none at all."""
    got = only_message(cloud.text("a\0b"), contacts=[{"wa_id": cloud.PERSON, "profile": {"name": "A\0na"}}])
    assert (got.body, got.name) == ("a\N{REPLACEMENT CHARACTER}b", "Ana")
    assert b"\\u0000" in got.raw


@pytest.mark.parametrize("half", ["\ud83d", "\udc4d", "\udc4d\ud83d", "\\\ud83d", "\ud83d\ud83d\udc4d"])
def test_half_a_surrogate_pair_loses_nobodys_message(half: str) -> None:
    """JSON allows it, no text can hold it: it is replaced, and the rest of the webhook is read as ever."""
    body = cloud.webhook(cloud.text(f"a{half}b"), cloud.text("👍 \\ud83d"), statuses=[cloud.status()])
    broken, whole, status = items(body)
    assert isinstance(broken, Message)
    assert broken.body == f"a{half}b".encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert isinstance(whole, Message)
    assert whole.body == "👍 \\ud83d"
    assert isinstance(status, Status)


def test_bytes_that_are_no_utf8_take_only_their_own_item() -> None:
    """Also where nobody reads them: PostgreSQL would, and refuse the whole batch."""
    good = cloud.webhook(cloud.text("MARK", extra="x"), cloud.text("good"), statuses=[cloud.status(extra="x")])
    for mark in (b"MARK", b'"extra":"x', b'"extra"'):
        bad = good.replace(mark, mark[:-1] + b"\xed\xa0\x80" + mark[-1:])
        got = items(bad)
        assert isinstance(got[0], Stray)
        assert isinstance(got[1], Message)
        for item in got:
            if not isinstance(item, Stray):
                item.raw.decode()


def test_digits_without_end_are_no_time_and_no_code() -> None:
    """4,000 digits pass msgspec: they are bounded here."""
    digits = b"9" * 4000
    for key in (b'"timestamp":"1780000000"', b'"timestamp":1780000000'):
        body = cloud.webhook(cloud.text(timestamp=cloud.AT if b':"' in key else int(cloud.AT)), cloud.text())
        mangled = body.replace(key, b'"timestamp":' + digits, 1)
        assert mangled != body
        assert kinds(mangled) == ["Stray", "Message"]
    body = cloud.webhook(statuses=[cloud.status("wamid.X", "failed", errors=[{"code": 424242}])])
    status = only(body.replace(b"424242", digits))
    assert isinstance(status, Status)
    assert status.code is None


@pytest.mark.parametrize("depth", [100, 2_000, 100_000])
def test_deep_nesting_is_no_crash(depth: int) -> None:
    """Beyond what the parser follows, the body is kept as it came."""
    body = cloud.webhook(cloud.text(deep="DEEP")).replace(b'"DEEP"', b"[" * depth + b"]" * depth)
    [item] = items(body)
    assert isinstance(item, Message) or item.raw == body


def test_a_long_id_is_an_id_and_a_long_address_is_not() -> None:
    """Ids are digested, so their length is free; addresses are looked up, so theirs is bounded."""
    long = "wamid." + "x" * 9_000
    assert only_message(cloud.text(id=long)).provider_id == long
    only_stray(cloud.webhook(cloud.text(**{"from": "1" * 257})))


BAD: dict[str, Any] = {
    "null": None,
    "number": 17,
    "string": "x",
    "empty": {},
    "list": [],
    "no id": {**cloud.text(), "id": ""},
    "id is a number": cloud.text(id=17),
    "unknown type": cloud.text(type="hologram"),
    "no type": cloud.text(type=None),
    "text is null": {**cloud.text(), "text": None},
    "text is a string": cloud.message(text="hi"),
    "body is a list": cloud.message(text={"body": ["hi"]}),
    "nobody": cloud.text(**{"from": None}),
    "sender with U+0000": cloud.text(**{"from": "1\0002"}),
    "sender is a number": cloud.text(**{"from": 15550002222}),
    "time in words": cloud.text(timestamp="yesterday"),
    "time with a sign": cloud.text(timestamp="-1"),
    "time is zero": cloud.text(timestamp="0"),
    "Arabic digits": cloud.text(timestamp="١٧٨٠٠٠٠٠٠٠"),
    "location of words": cloud.message("location", location={"latitude": "north", "longitude": 1}),
    "no location": {**cloud.message("location"), "location": None},
    "reaction to nothing": cloud.message("reaction", reaction={}),
    "edit of nothing": cloud.message("edit", edit=None),
    "revocation of nothing": cloud.message("revoke", revoke=None),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_message_stands_alone(bad: Any) -> None:
    """Its bytes go to quarantine; those before and behind it are read."""
    first, stray, last, status = items(cloud.webhook(cloud.text("a"), bad, cloud.text("b"), statuses=[cloud.status()]))
    assert isinstance(first, Message)
    assert isinstance(last, Message)
    assert (first.body, last.body) == ("a", "b")
    assert isinstance(status, Status)
    assert isinstance(stray, Stray)
    assert (stray.raw, stray.address) == (cloud.encode(bad), "1001")


@pytest.mark.parametrize(
    "bad",
    [
        {**cloud.status(), "id": ""},
        cloud.status("a\0b"),
        cloud.status("x", "warped"),
        cloud.status("x", "sent\0"),
        cloud.status(timestamp=None),
        cloud.status(biz_opaque_callback_data={"a": 1}),
        cloud.status(errors={"code": 1}),
        None,
    ],
)
def test_a_bad_status_stands_alone(bad: Any) -> None:
    """As a bad message does. And what is said of it quotes nothing of it."""
    message, stray, good = items(cloud.webhook(cloud.text(), statuses=[bad, cloud.status()]))
    assert isinstance(message, Message)
    assert isinstance(good, Status)
    assert isinstance(stray, Stray)
    assert stray.raw == cloud.encode(bad)
    assert "warped" not in stray.reason
    assert "\0" not in stray.reason


@pytest.mark.parametrize("confused", [{"id": "x"}, "x", 17, True, [[1]], [None]])
@pytest.mark.parametrize("part", ["statuses", "errors", "message_echoes", "contacts"])
def test_a_confused_part_of_a_value_takes_no_messages_along(part: str, confused: Any) -> None:
    """A dict or a string where a list should be is set aside alone."""
    got = items(cloud.webhook(cloud.text("a"), cloud.text("b"), **{part: confused}))
    assert [item.body for item in got if isinstance(item, Message)] == ["a", "b"]
    strays = [item for item in got if isinstance(item, Stray)]
    assert len(strays) == (0 if part == "contacts" else 1)


@pytest.mark.parametrize("nothing", [None, []])
def test_null_is_as_good_as_absent(nothing: Any) -> None:
    """Some serialisers write null for an empty list."""
    body = cloud.webhook(cloud.text(), statuses=nothing, errors=nothing, contacts=nothing)
    assert kinds(body) == ["Message"]
    assert kinds(cloud.webhook(messages=None, statuses=[cloud.status()])) == ["Status"]


@pytest.mark.parametrize(
    "contact", [None, "Ana", {"profile": None}, {"profile": {"name": None}}, {"wa_id": 17}, {"profile": []}]
)
def test_a_contact_that_cannot_be_read_costs_a_name_and_no_message(contact: Any) -> None:
    """The next contact counts all the same."""
    good = {"wa_id": cloud.PERSON, "profile": {"name": "Ana"}}
    assert only_message(cloud.text(), contacts=[contact, good]).name == "Ana"


def test_a_change_or_entry_that_says_nothing_we_know_is_kept_beside_its_neighbours() -> None:
    """Nothing is dropped without a trace: calls, account updates and empty entries are kept raw."""
    call = cloud.value(calls=[{"id": "c1"}])
    update = {"event": "VERIFIED_ACCOUNT"}
    body = cloud.envelope(cloud.value(messages=[cloud.text()]), call, update)
    body["entry"] += [{"id": "1", "changes": []}, {"id": "2"}, None, "x"]
    first, *rest = items(cloud.encode(body))
    assert isinstance(first, Message)
    assert [json.loads(item.raw) for item in rest] == [
        {"field": "messages", "value": call},
        {"field": "messages", "value": update},
        {"id": "1", "changes": []},
        {"id": "2"},
        None,
        "x",
    ]
    assert all(isinstance(item, Stray) for item in rest)


@pytest.mark.parametrize(
    "body", [b"", b" ", b"{}", b"[]", b"null", b"hi", b'{"entry":[]}', b'{"entry":null}', b'{"entry":0}', b"\xff\xfe{}"]
)
def test_a_body_without_an_item_is_one_stray(body: bytes) -> None:
    """All of it is kept, as it came."""
    assert only_stray(body).raw == body


def test_a_body_of_countless_items_is_one_item() -> None:
    """Of 4 MiB, half a million zeros could be made: they are no provider's, and are not taken apart."""
    most = cloud.encode(cloud.envelope(cloud.value(messages=[0] * MOST_ITEMS)))
    assert len(items(most)) == MOST_ITEMS
    for more in (
        cloud.envelope(cloud.value(messages=[0] * (MOST_ITEMS + 1))),
        cloud.envelope(cloud.value(messages=[0] * MOST_ITEMS), cloud.value(messages=[0])),
        {"entry": [0] * (MOST_ITEMS + 1)},
    ):
        assert len(items(cloud.encode(more))) == 1


# --- anything at all ------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
VALID = cloud.envelope(
    cloud.value(
        messages=[cloud.message(kind) for kind in sorted(KINDS)],
        statuses=[cloud.status("wamid.X", "failed", errors=[{"code": 1, "title": "t"}])],
        message_echoes=[cloud.echo(text={"body": "x"})],
        errors=[{"code": 2}],
        contacts=[{"wa_id": cloud.PERSON, "user_id": "US.1", "profile": {"name": "Ana"}}],
    ),
    cloud.value("1002", messages=[cloud.text("other")]),
)


def places(body: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a JSON document."""
    inner = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


PLACES = places(VALID)


def sound(body: bytes) -> list[Item]:
    """What holds for any body: at least one item, each with bytes that came, none that PostgreSQL cannot store."""
    got = items(body)
    assert got
    for item in got:
        assert item.raw in body
        if isinstance(item, Message):
            item.raw.decode()
            assert "\0" not in item.body + item.name + "".join(i.value for i in item.identities)
        elif isinstance(item, Status):
            item.raw.decode()
            assert "\0" not in item.provider_id + item.reason
    return got


@given(st.binary(max_size=200))
def test_no_bytes_raise(body: bytes) -> None:
    """Whatever comes is at least one item."""
    sound(body)


@given(JSON)
@settings(max_examples=200)
def test_no_json_raises(body: Any) -> None:
    """In the place of a body, an entry, a change, a value, and each of its lists."""
    for whole in (
        body,
        {"entry": body},
        {"entry": [body]},
        {"entry": [{"changes": [body]}]},
        cloud.envelope(body),
        *(cloud.envelope(cloud.value(**{part: body})) for part in ("messages", "statuses", "errors", "metadata")),
    ):
        sound(cloud.encode(whole))


@given(place=st.sampled_from(PLACES), new=JSON)
@settings(max_examples=300)
def test_one_mangled_place_costs_no_more_than_its_own_item(place: tuple[Any, ...], new: Any) -> None:
    """Any JSON in place of any part of a valid body: all the other changes' items, and all other items, are read."""
    body = json.loads(json.dumps(VALID))
    if not place:
        sound(cloud.encode(new))
        return
    inner = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    got = sound(cloud.encode(body))
    if place[:3] == ("entry", 0, "changes") and place[3:4] == (0,):
        assert any(isinstance(item, Message) and item.body == "other" for item in got)
    if place[4:5] == ("value",) and place[5:6] in (("messages",), ("statuses",)) and len(place) > 6:
        whole = items(cloud.encode(VALID))
        assert len(got) == len(whole)
        assert sum(was.raw != now.raw for was, now in zip(whole, got, strict=True)) <= 1


@given(at=st.integers(0, len(cloud.encode(VALID)) - 1), new=st.binary(max_size=3), cut=st.integers(0, 5))
@settings(max_examples=300)
def test_no_mangled_byte_raises(at: int, new: bytes, cut: int) -> None:
    """Bytes changed, put in, cut out or cut off anywhere in a valid body."""
    valid = cloud.encode(VALID)
    for body in (valid[:at] + new + valid[at + cut :], valid[:at]):
        items(body)
        assert items(body)
