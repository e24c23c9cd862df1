"""endpoints.disturbed_at: when statuses may last have been missed."""

from collections.abc import Sequence
from uuid import UUID

from app.db import Connection

DISTURBED = """
UPDATE endpoints SET disturbed_at = qasid_now() WHERE %(ids)s::uuid[] IS NULL OR id = ANY(%(ids)s)
"""


async def disturbed(conn: Connection, ids: Sequence[UUID] | None) -> None:
    """Statuses of these endpoints (None: of all) may have been missed until now: silence begins anew."""
    await conn.execute(DISTURBED, {"ids": None if ids is None else sorted(ids)})
