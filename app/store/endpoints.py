"""doors and disturbances: through which places statuses come in, and when some may last have been missed."""

from collections.abc import Sequence
from uuid import UUID

from app.db import Connection

# One statement, so that a door is never seen alive before what it missed is written. A place that was not alive until now
# missed whatever came for any endpoint.
BEAT = """
WITH before AS (SELECT alive_until > qasid_now() AS alive FROM doors WHERE place = %(place)s),
noted AS (
  INSERT INTO disturbances (endpoint_id, at)
  SELECT id, qasid_now() FROM endpoints WHERE id = ANY(%(ids)s) OR %(all)s OR (SELECT alive FROM before) IS NOT TRUE ORDER BY id
  ON CONFLICT (endpoint_id) DO UPDATE SET at = greatest(disturbances.at, excluded.at))
INSERT INTO doors (place, alive_until) VALUES (%(place)s, qasid_now() + %(lease)s * interval '1 second')
ON CONFLICT (place) DO UPDATE SET alive_until = excluded.alive_until
"""

CLOSE = "DELETE FROM doors WHERE place = %(place)s"

# A door that is gone for good: by now its provider has tried another. What it missed may have come in the meantime.
BURY = """
WITH gone AS (DELETE FROM doors WHERE alive_until < qasid_now() - %(after)s * interval '1 second' RETURNING place)
INSERT INTO disturbances (endpoint_id, at) SELECT id, qasid_now() FROM endpoints WHERE EXISTS (SELECT FROM gone) ORDER BY id
ON CONFLICT (endpoint_id) DO UPDATE SET at = greatest(disturbances.at, excluded.at)
"""


async def beat(conn: Connection, place: str, lease: float, missed: Sequence[UUID], *, everything: bool) -> None:
    """This place hears statuses for `lease` seconds more; those of `missed` (or of all endpoints) may not have come."""
    await conn.execute(BEAT, {"place": place, "lease": lease, "ids": sorted(missed), "all": everything})


async def close(conn: Connection, place: str) -> None:
    """An orderly farewell: nobody waits for this place any more."""
    await conn.execute(CLOSE, {"place": place})


async def bury(conn: Connection, after: float) -> None:
    """Forget doors that were not heard of for `after` seconds."""
    await conn.execute(BURY, {"after": after})
