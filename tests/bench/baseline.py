"""What PostgreSQL itself can do: pgbench commits the rows of one text message at a time, as fast as eight clients can.

The same tables with their indexes, foreign keys and row-level security, the same role; one statement per commit, so
that no round trip is wasted. Its people are its own, as many as the webhooks'.
"""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tests.bench import load
from tests.bench.figures import BenchFailed
from tests.bench.meters import Admin

CLIENTS, THREADS = 8, 2

PEOPLE = """
WITH place AS (SELECT tenant_id, id AS channel_id FROM channels),
person AS (SELECT lpad(n::text, 12, '0') AS tail FROM generate_series(1, %(people)s) n),
contact AS (
  INSERT INTO contacts (tenant_id, id, name)
  SELECT tenant_id, ('00000000-0000-7000-8001-' || tail)::uuid, 'Person ' || tail FROM place, person RETURNING id),
identity AS (
  INSERT INTO identities (tenant_id, kind, value, contact_id)
  SELECT tenant_id, 'wa_id', '777' || tail, ('00000000-0000-7000-8001-' || tail)::uuid FROM place, person),
conversation AS (
  INSERT INTO conversations (tenant_id, id, channel_id, contact_id)
  SELECT tenant_id, ('00000000-0000-7000-8000-' || tail)::uuid, channel_id, ('00000000-0000-7000-8001-' || tail)::uuid
  FROM place, person RETURNING id)
INSERT INTO lanes (tenant_id, conversation_id, channel_id)
SELECT tenant_id, ('00000000-0000-7000-8000-' || tail)::uuid, channel_id FROM place, person
"""

# Doubled braces: the script is a format string. `seen` gets 16 random bytes, as an HMAC is.
SCRIPT = """\\set who random(1, {people})
\\set serial random(1, 1000000000)
WITH input AS (
  SELECT uuidv7() AS id,
         ('00000000-0000-7000-8000-' || lpad((:who)::text, 12, '0'))::uuid AS conversation_id,
         uuid_send(gen_random_uuid()) AS digest,
         'wamid.HBgLMTU1NTAwMDIyMjIVAgASGBQzb' || lpad((:serial)::text, 10, '0') AS provider_id),
lane AS (
  UPDATE lanes l SET head_seq = l.head_seq + 1, run_at = coalesce(l.run_at, qasid_now()) FROM input i
  WHERE (l.tenant_id, l.conversation_id) = ('{tenant}'::uuid, i.conversation_id) RETURNING l.head_seq),
fresh AS (
  INSERT INTO seen (tenant_id, channel_id, digest, message_id)
  SELECT '{tenant}'::uuid, '{channel}'::uuid, digest, id FROM input ON CONFLICT DO NOTHING),
stored AS (
  INSERT INTO messages (tenant_id, id, conversation_id, channel_id, direction, kind, provider_id, digest, sent_at, body,
                        correlation, ack_ms, raw)
  SELECT '{tenant}'::uuid, id, conversation_id, '{channel}'::uuid, 'in', 'text', provider_id, digest, now(), {body},
         '0123456789abcdef', 1.5, ({raw})::json FROM input)
INSERT INTO outbox (tenant_id, conversation_id, seq, kind, message_id)
SELECT '{tenant}'::uuid, i.conversation_id, lane.head_seq, 'answer', i.id FROM input i, lane;
"""


class Baseline:
    """Make it once a tenant and a channel exist, then `run` it."""

    def __init__(self, bin: Path, url: str, admin: Admin, folder: Path, *, people: int) -> None:
        self._pgbench = bin / "pgbench"
        self._url = urlsplit(url)
        self._script = folder / "message.pgbench"
        admin.execute(PEOPLE, {"people": people})
        place = admin.execute("SELECT tenant_id, id FROM channels").fetchone()
        assert place is not None  # `qasid apply` has just made it
        tenant, channel = place
        raw = msgspec.json.encode(
            {
                "from": load.person(0),
                "id": load.wamid("abc", 0),
                "timestamp": "1780000000",
                "text": {"body": load.TEXT},
                "type": "text",
            }
        ).decode()
        self._script.write_text(
            SCRIPT.format(people=people, tenant=tenant, channel=channel, body=_quoted(load.TEXT), raw=_quoted(raw))
        )

    def run(self, seconds: int) -> float:
        """Commits per second."""
        environ = {
            **os.environ,
            "PGHOST": self._url.hostname or "",
            "PGPORT": str(self._url.port),
            "PGUSER": self._url.username or "",
            "PGPASSWORD": self._url.password or "",
            "PGDATABASE": self._url.path.removeprefix("/"),
            "PGOPTIONS": "-c role=qasid_courier -c jit=off",
        }
        options = f"-n -M prepared -c {CLIENTS} -j {THREADS} -T {seconds} -f".split()
        command = [str(self._pgbench), *options, str(self._script)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=seconds + 60, check=False)
        rate = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
        if done.returncode or rate is None or "failed transactions: 0 " not in done.stdout:
            raise BenchFailed(f"pgbench: {done.stderr.strip()[-500:] or done.stdout}")
        return float(rate[1])


def _quoted(text: str) -> str:
    # pgbench takes a colon before a name for a variable of its own.
    return "E'" + text.replace("\\", "\\\\").replace("'", "''").replace(":", "\\x3a") + "'"
