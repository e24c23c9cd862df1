"""Somebody is called for what goes into quarantine: once for each item, by whichever way it came."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app import backlog
from app.replay import a_door
from app.settings import Settings
from app.spool import Record
from tests import cloud_bodies as cloud
from tests import receiving
from tests.cloud_bodies import Json
from tests.conftest import Database
from tests.receiving import KEY, THIRD, Receiver, alerts

pytestmark = pytest.mark.anyio

web = receiving.web

HOLOGRAM = {"type": "hologram"}


@contextmanager
def called() -> Iterator[list[Json]]:
    """The lines that say so, of what is done meanwhile; the alert is counted as often."""
    lines: list[Json] = []
    before = alerts("quarantine")
    with capture_logs() as logged:
        yield lines
    lines += [dict(line) for line in logged if line.get("alert") == "quarantine"]
    assert alerts("quarantine") - before == len(lines)


async def test_each_item_is_told_of_once_however_often_it_comes(web: Receiver) -> None:
    """Twice in one webhook, and again: its row counts, nobody is called again; for another item somebody is."""
    with called() as lines:
        for _ in range(3):
            assert (await web.post(cloud.webhook(HOLOGRAM, HOLOGRAM, cloud.text()))).status_code == 200
    assert [(line["event"], line["endpoint"]) for line in lines] == [("item set aside", "meta")]
    assert lines[0]["reason"] and lines[0]["correlation"]
    with called() as lines:
        assert (await web.post(cloud.webhook(HOLOGRAM), endpoint="other")).status_code == 200
        assert (await web.post(b"{")).status_code == 200
    assert sorted(line["endpoint"] for line in lines) == ["meta", "other"]


async def test_what_comes_by_the_spool_is_told_of_too(web: Receiver, database: Database) -> None:
    """As it is replayed, by a web process or by hand; with the correlation of when it came."""
    record = Record(
        endpoint_id=web.one("SELECT id FROM endpoints WHERE slug = 'meta'"),
        endpoint="meta",
        correlation="c17",
        received_at=time.time(),
        body=cloud.webhook(HOLOGRAM, cloud.text()),
    )
    settings = Settings(database_url=database.url, secret_key=KEY)
    with called() as lines:
        async with a_door(database.url, settings) as (_, ingest, directory):
            for _ in range(2):
                await backlog.take(record, directory, ingest)
    assert [(line["endpoint"], line["correlation"]) for line in lines] == [("meta", "c17")]


async def test_what_the_database_refuses_is_told_of_alike(web: Receiver) -> None:
    """A message and a status: one line each, of one event, with whose webhook it was."""
    web.execute("ALTER TABLE messages ADD CHECK (provider_id <> 'wamid.bad')")
    web.execute("ALTER TABLE statuses ADD CHECK (provider_id <> 'wamid.bad')")
    body = cloud.webhook(cloud.text(id="wamid.bad"), statuses=[cloud.status("wamid.bad")])
    with called() as lines:
        for _ in range(2):
            assert (await web.post(body)).status_code == 200
    assert [(line["event"], line["endpoint"], line["reason"]) for line in lines] == [
        ("item set aside", "meta", "the database refuses it: CheckViolation")
    ] * 2
    assert len({line["correlation"] for line in lines}) == 1


async def test_a_number_that_no_channel_has_calls_nobody(web: Receiver) -> None:
    """Meta's *Test* button, or a number whose channel is still to be applied: kept, and a line in the log."""
    with called() as lines:
        assert (await web.post(cloud.webhook(cloud.text(), address="3001"))).status_code == 200
    assert (lines, web.counts()) == ([], (0, 0, 1))


async def test_an_item_that_is_aside_for_another_reason_or_anew_is_told_of_again(
    web: Receiver, database: Database, tmp_path: Path
) -> None:
    """Its number is unknown, then the database refuses it; or it was brought in, and cannot be read once more."""
    body = cloud.webhook(cloud.text(), address="3001")
    assert (await web.post(body)).status_code == 200
    await receiving.configure(database.url, tmp_path, receiving.CONFIGURATION + THIRD)
    web.execute("ALTER TABLE messages ADD CHECK (kind <> 'text')")
    settings = Settings(database_url=database.url, secret_key=KEY)
    with called() as lines:
        async with a_door(database.url, settings) as (_, ingest, directory):
            record = Record(
                endpoint_id=web.one("SELECT id FROM endpoints WHERE slug = 'meta'"),
                endpoint="meta",
                correlation="c1",
                received_at=time.time(),
                body=body,
            )
            await backlog.take(record, directory, ingest)
    assert [line["reason"] for line in lines] == ["the database refuses it: CheckViolation"]
    assert (await web.post(cloud.webhook(HOLOGRAM))).status_code == 200
    web.execute("UPDATE quarantine SET verdict = 'stored', replayed_at = now()")
    with called() as lines:
        for _ in range(2):
            assert (await web.post(cloud.webhook(HOLOGRAM))).status_code == 200
    assert len(lines) == 1
