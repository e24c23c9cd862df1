"""What was cut out of a webhook can be put back into one, from its bytes, its part and its address alone."""

from typing import Any

import pytest

from app.channels.cloud_quarantine import enveloped
from app.channels.cloud_webhook import items
from app.errors import Unreadable
from app.messages import Message, Status, Stray
from tests import cloud_bodies as cloud

UNREAD: list[Any] = [
    cloud.encode(cloud.envelope(cloud.value(messages=[{"type": "hologram"}]))),
    cloud.encode(cloud.envelope(cloud.value(message_echoes=[{"type": "hologram"}]))),
    cloud.encode(cloud.envelope(cloud.value(statuses=[{"status": "sold"}]))),
    cloud.encode(cloud.envelope(cloud.value(errors=[{"code": 1}]))),
    cloud.encode(cloud.envelope(cloud.value(messages="none"))),
    cloud.encode(cloud.envelope(cloud.value(statuses={}))),
    cloud.encode(cloud.envelope(cloud.value())),
    cloud.encode(cloud.envelope({"messages": [cloud.text()]})),
    cloud.encode({"entry": [{"changes": []}, {"changes": 1}, "x"]}),
    cloud.encode({"entry": []}),
    b'{"entry": [{"changes": [{"value": {"metadata": {"phone_number_id": "1"}, "messages": [{"a": "\xff"}]}}]}]}',
    b"{",
    b'"\\ud800"',
]


@pytest.mark.parametrize("body", UNREAD)
def test_what_was_unreadable_is_so_again_for_the_same_reason(body: bytes) -> None:
    """No part is lost on the way, none is added."""
    strays = items(body)
    assert strays
    for stray in strays:
        assert isinstance(stray, Stray)
        assert stray.part
        assert items(enveloped(stray.raw, stray.part, stray.address)) == [stray]


@pytest.mark.parametrize(
    ("part", "lists"),
    [("message", {"messages": [cloud.text("سلام")]}), ("echo", {"message_echoes": [cloud.echo(text={"body": "e"})]}),
     ("status", {"statuses": [cloud.status()]})],
)  # fmt: skip
def test_what_was_readable_is_the_same_item_again(part: str, lists: Any) -> None:
    """An item that only lacked its channel comes out as it went in."""
    [item] = items(cloud.encode(cloud.envelope(cloud.value('10"01', **lists))))
    assert isinstance(item, Message | Status)
    assert items(enveloped(item.raw, part, item.address)) == [item]


@pytest.mark.parametrize(("part", "address"), [(None, "1001"), ("message", None), ("contacts", "1001")])
def test_where_it_stood_is_not_guessed(part: str | None, address: str | None) -> None:
    """A row of an older build does not say: then it stays."""
    with pytest.raises(Unreadable):
        enveloped(b"{}", part, address)
