"""messages, as what was said aloud: the words of a voice message, once somebody has written them down."""

from uuid import UUID

from app.db import Connection

# Of a message that has none yet: whoever was first has said what it says, for every history that was read since.
KEEP = """
UPDATE messages SET body = %(words)s
WHERE (tenant_id, id) = (%(tenant_id)s, %(message_id)s) AND kind = 'audio' AND body = ''
"""


async def keep(conn: Connection, tenant_id: UUID, message_id: UUID, words: str) -> None:
    """Let a voice message say these words from now on."""
    await conn.execute(KEEP, {"tenant_id": tenant_id, "message_id": message_id, "words": words})
