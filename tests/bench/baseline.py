"""What PostgreSQL itself can do: pgbench commits the rows of one text message at a time, as fast as eight clients can.

The same tables with their indexes, foreign keys and row-level security, the same role, one message per commit. Its
people are its own, as many as the webhooks'.
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

# Doubled braces: the scripts are format strings. `:body` and `:raw` are variables, hence parameters: like any client,
# pgbench has to send what is to be stored. A digest is 16 random bytes, as an HMAC is.
_DRAW = """\\set who random(1, {people})
\\set a random(1, 9000000000000000000)
\\set b random(1, 9000000000000000000)
"""
_MESSAGE = """INSERT INTO messages (tenant_id, id, conversation_id, channel_id, direction, kind, provider_id, digest, sent_at,
                      body, correlation, ack_ms, raw)"""
_VALUES = """'in', 'text', 'wamid.HBgLMTU1NTAwMDIyMjIVAgASGBQz' || :a, int8send(:a) || int8send(:b), now(), :body,
       '0123456789abcdef', 1.5, (:raw)::json"""
_PERSON = "('00000000-0000-7000-8000-' || lpad((:who)::text, 12, '0'))::uuid"

# One transaction per message, as a service without group commit writes it: the line that the bound is drawn at.
TRANSACTION = f"""{_DRAW}BEGIN;
INSERT INTO seen (tenant_id, channel_id, digest, message_id)
VALUES ('{{tenant}}', '{{channel}}', int8send(:a) || int8send(:b), uuidv7())
ON CONFLICT DO NOTHING RETURNING message_id AS id \\gset
UPDATE lanes SET head_seq = head_seq + 1, run_at = coalesce(run_at, qasid_now())
WHERE tenant_id = '{{tenant}}' AND conversation_id = {_PERSON} RETURNING head_seq \\gset
{_MESSAGE}
VALUES ('{{tenant}}', (:id)::uuid, {_PERSON}, '{{channel}}', {_VALUES});
INSERT INTO outbox (tenant_id, conversation_id, seq, kind, message_id)
VALUES ('{{tenant}}', {_PERSON}, :head_seq, 'answer', (:id)::uuid);
COMMIT;
"""

# The same rows by one statement written for the purpose: a harder line, shown besides. No round trip is wasted in it.
STATEMENT = f"""{_DRAW}WITH fresh AS (
  INSERT INTO seen (tenant_id, channel_id, digest, message_id)
  VALUES ('{{tenant}}', '{{channel}}', int8send(:a) || int8send(:b), uuidv7())
  ON CONFLICT DO NOTHING RETURNING message_id AS id),
lane AS (
  UPDATE lanes l SET head_seq = l.head_seq + 1, run_at = coalesce(l.run_at, qasid_now()) FROM fresh
  WHERE (l.tenant_id, l.conversation_id) = ('{{tenant}}', {_PERSON}) RETURNING l.head_seq),
stored AS (
  {_MESSAGE}
  SELECT '{{tenant}}', id, {_PERSON}, '{{channel}}', {_VALUES} FROM fresh)
INSERT INTO outbox (tenant_id, conversation_id, seq, kind, message_id)
SELECT '{{tenant}}', {_PERSON}, lane.head_seq, 'answer', fresh.id FROM fresh, lane;
"""


class Baseline:
    """Make it once a tenant and a channel exist, then `run` it."""

    def __init__(self, bin: Path, url: str, admin: Admin, folder: Path, *, people: int) -> None:
        self._pgbench = bin / "pgbench"
        self._url = urlsplit(url)
        self._folder = folder
        admin.execute(PEOPLE, {"people": people})
        place = admin.execute("SELECT tenant_id, id FROM channels").fetchone()
        assert place is not None  # `qasid apply` has just made it
        tenant, channel = place
        self._variables = {
            "body": load.TEXT,
            "raw": msgspec.json.encode(
                {
                    "from": load.person(0),
                    "id": load.wamid("abc", 0),
                    "timestamp": "1780000000",
                    "text": {"body": load.TEXT},
                    "type": "text",
                }
            ).decode(),
        }
        self._names = {"people": people, "tenant": tenant, "channel": channel}

    def run(self, script: str, seconds: int) -> float:
        """Commits per second of TRANSACTION or STATEMENT."""
        file = self._folder / "message.pgbench"
        file.write_text(script.format(**self._names))
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
        variables = [word for name, value in self._variables.items() for word in ("-D", f"{name}={value}")]
        command = [str(self._pgbench), *variables, *options, str(file)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=seconds + 60, check=False)
        rate = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
        if done.returncode or rate is None or "failed transactions: 0 " not in done.stdout:
            raise BenchFailed(f"pgbench: {done.stderr.strip()[-500:] or done.stdout}")
        return float(rate[1])
