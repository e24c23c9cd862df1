"""usage, summed: what a tenant's turns have cost. It limits nobody."""

from uuid import UUID

from app.db import Connection

# By the primary key of usage: a turn's id rises with the time at which it was begun.
TOKENS = """
SELECT coalesce(sum(input_tokens + output_tokens), 0)::bigint FROM usage
WHERE tenant_id = %(tenant_id)s AND turn_id > (SELECT uuidv7(%(seconds)s * interval '-1 second'))
"""


async def tokens(conn: Connection, tenant_id: UUID, seconds: float) -> int:
    """Tokens of the tenant's turns that were begun within the last `seconds`, as far as they are settled."""
    row = await (await conn.execute(TOKENS, {"tenant_id": tenant_id, "seconds": seconds})).fetchone()
    assert row is not None
    return int(row[0])
