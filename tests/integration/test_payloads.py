"""Other projects' recorded and published webhooks: each is taken, and each of its items is found again.

They lie where PAYLOADS_DIR says; nothing of them is part of this project.
"""

import json
import os
from pathlib import Path

import pytest

from tests import cloud_bodies as cloud
from tests import receiving
from tests.conftest import Database

pytestmark = pytest.mark.anyio

FOLDER = os.environ.get("PAYLOADS_DIR")


def values(body: object) -> list[dict[str, object]]:
    """The values of a Cloud API webhook; none if it is something else."""
    match body:
        case {"entry": [*entries]}:
            return [change["value"] for entry in entries for change in entry["changes"]]
    return []


def recorded(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.json"))}


@pytest.mark.skipif(not FOLDER, reason="PAYLOADS_DIR is not set: there are no recorded payloads to take")
async def test_each_payload_is_taken_and_every_item_is_found(database: Database, tmp_path: Path) -> None:
    """Each number they name is a channel; each file is posted as it stands, and once more."""
    files = recorded(Path(str(FOLDER)))
    assert files, f"no *.json in PAYLOADS_DIR={FOLDER}"
    bodies = {name: json.loads(raw) for name, raw in files.items()}
    known = {v["metadata"]["phone_number_id"] for b in bodies.values() for v in values(b) if "metadata" in v}  # type: ignore[index]
    channels = [
        receiving.CHANNEL.format(tenant="noor", slug=f"c{n}", endpoint="meta", address=address)
        for n, address in enumerate(sorted(map(str, known)))
    ]
    await receiving.configure(
        database.url, tmp_path, receiving.META + '[tenants.noor]\nname = "Noor"\n' + "".join(channels)
    )
    async with receiving.process(database.url, database.superuser_url) as web:
        for name, raw in files.items():
            assert (await web.post(raw)).status_code == 200, name
            assert (await web.post(cloud.encode(bodies[name]))).status_code == 200, name
        before = web.counts()
        listed = [(kind, to, i) for b in bodies.values() if values(b) for kind, to, i in receiving.items_of(b)]
        messages = {(to, item["id"]) for kind, to, item in listed if kind == "messages"}
        assert before[0] == len(messages), "a kind that is in the wild is not read"
        for name, body in bodies.items():
            if values(body):
                assert web.unaccounted(cloud.encode(body)) == [], name
            else:  # another provider's: kept as it came
                assert web.one("SELECT count(*) FROM quarantine WHERE raw = %s", files[name]) == 1, name
            assert (await web.post(files[name])).status_code == 200
        assert web.counts() == before
