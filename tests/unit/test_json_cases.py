"""JSONTestSuite against the decoder and the reader of webhooks: what it accepts, what it raises, what is cut out."""

from collections import Counter

import msgspec
import pytest

from app.channels.cloud import CloudAPI
from app.channels.cloud_webhook import UNREADABLE
from app.messages import Message, Stray
from tests import cloud_bodies as cloud
from tests.corpora import json_cases, valid_json

MARK = b'"MARK"'


def outcome(body: bytes) -> str:
    """What msgspec says of it."""
    try:
        msgspec.json.decode(body)
    except UNREADABLE as error:
        return type(error).__name__
    return "accepted"


def test_the_suite_is_whole_and_the_decoder_does_what_we_rely_on() -> None:
    """All valid cases are accepted, no invalid one is, and each refusal is one of the errors that the reader catches."""
    found = Counter((name[0], outcome(body)) for name, body in json_cases().items())
    assert {kind: count for (letter, kind), count in found.items() if letter == "y"} == {"accepted": 95}
    invalid = {kind: count for (letter, kind), count in found.items() if letter == "n"}
    assert invalid == {"DecodeError": 185, "UnicodeDecodeError": 1, "RecursionError": 2}
    assert sum(count for (letter, _), count in found.items() if letter == "i") == 35


def test_no_case_is_read_as_anything_but_one_stray_with_its_bytes() -> None:
    """As a body each is no webhook, valid or not: it is set aside whole, as it came."""
    for name, body in json_cases().items():
        [item] = CloudAPI().decode(body)
        assert isinstance(item, Stray), name
        assert item.raw == body, name


@pytest.mark.parametrize("place", ["member", "text", "neighbour"])
def test_no_case_within_a_webhook_raises(place: str) -> None:
    """Wherever a case stands in a webhook, something is found: the message, what stands for it, or the whole body."""
    members = {"member": {"x": "MARK"}, "text": {"text": "MARK"}, "neighbour": {}}[place]
    messages = [cloud.message(**members), *(["MARK"] if place == "neighbour" else [])]
    body = cloud.webhook(messages=messages)
    for name, case in json_cases().items():
        assert CloudAPI().decode(body.replace(MARK, case)), name


def test_a_valid_case_as_an_unknown_member_is_carried_along() -> None:
    """What we do not know of a message holds nothing up, and stays in `raw` byte for byte."""
    body = cloud.webhook(cloud.text("salam", x="MARK"))
    for name, case in valid_json().items():
        [item] = CloudAPI().decode(body.replace(MARK, case))
        assert isinstance(item, Message), name
        assert item.body == "salam"
        assert case in item.raw, name
