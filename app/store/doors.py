"""doors and disturbances: through which places statuses come in, and when some may last have been missed."""

from collections.abc import Sequence
from uuid import UUID

from app.db import Connection

# One statement, so that a door is never seen alive before what it missed is written. A place that was not alive until now
# missed whatever came for any endpoint. A chunk whose row is locked is just being moved: by whom knows more, or too late.
BEAT = """
WITH before AS (SELECT alive_until > qasid_now() AS alive FROM doors WHERE place = %(place)s),
anew AS MATERIALIZED (
  SELECT c.tenant_id, c.id FROM chunks c
  JOIN unnest(%(tenant_id)b::uuid[], %(chunk_id)b::uuid[]) AS m(tenant_id, id) USING (tenant_id, id)
  WHERE c.state IN ('sending', 'in_doubt') ORDER BY c.tenant_id, c.id FOR NO KEY UPDATE OF c SKIP LOCKED),
missed AS (
  UPDATE chunks c SET missed_at = qasid_now() FROM anew a WHERE (c.tenant_id, c.id) = (a.tenant_id, a.id)),
noted AS (
  INSERT INTO disturbances (endpoint_id, at)
  SELECT id, qasid_now() FROM endpoints WHERE %(all)s OR (SELECT alive FROM before) IS NOT TRUE ORDER BY id
  ON CONFLICT (endpoint_id) DO UPDATE SET at = greatest(disturbances.at, excluded.at))
INSERT INTO doors (place, beaten_at, alive_until)
VALUES (%(place)s, qasid_now(), qasid_now() + %(lease)s * interval '1 second')
ON CONFLICT (place) DO UPDATE SET beaten_at = excluded.beaten_at, alive_until = excluded.alive_until
"""

# What it refused while it was stopping comes again, elsewhere.
CLOSE = """
WITH gone AS (DELETE FROM doors WHERE place = %(place)s RETURNING place)
INSERT INTO disturbances (endpoint_id, at) SELECT id, qasid_now() FROM endpoints WHERE EXISTS (SELECT FROM gone) ORDER BY id
ON CONFLICT (endpoint_id) DO UPDATE SET at = greatest(disturbances.at, excluded.at)
"""

# A door that is gone for good: by now its provider has tried another. What it missed may have come in the meantime.
BURY = """
WITH gone AS (DELETE FROM doors WHERE alive_until < qasid_now() - %(after)s * interval '1 second' RETURNING place)
INSERT INTO disturbances (endpoint_id, at) SELECT id, qasid_now() FROM endpoints WHERE EXISTS (SELECT FROM gone) ORDER BY id
ON CONFLICT (endpoint_id) DO UPDATE SET at = greatest(disturbances.at, excluded.at)
"""


async def beat(
    conn: Connection, place: str, lease: float, missed: Sequence[tuple[UUID, UUID]], *, everything: bool
) -> None:
    """This place hears statuses for `lease` seconds more.

    Silence begins anew about the chunks `missed` (tenant, id), whose statuses could not be taken; with `everything`, about all.
    """
    chunks = {"tenant_id": [tenant for tenant, _ in missed], "chunk_id": [chunk for _, chunk in missed]}
    await conn.execute(BEAT, {"place": place, "lease": lease, "all": everything, **chunks})


async def close(conn: Connection, place: str) -> None:
    """An orderly farewell: nobody waits for this place any more."""
    await conn.execute(CLOSE, {"place": place})


async def bury(conn: Connection, after: float) -> None:
    """Forget doors that were not heard of for `after` seconds."""
    await conn.execute(BURY, {"after": after})
