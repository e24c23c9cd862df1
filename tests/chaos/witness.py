"""A witness in the run's own database: it writes down each intent that is taken under another token than its lane's.

Laid by the rig's superuser; the service cannot see it, nor does it change what the service does.
"""

from typing import LiteralString

import psycopg

_LAY: LiteralString = """
CREATE TABLE rig_stale (chunk uuid NOT NULL, n integer NOT NULL, token bigint NOT NULL, lane_token bigint NOT NULL,
                        owned boolean NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE FUNCTION rig_witness() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
  INSERT INTO rig_stale (chunk, n, token, lane_token, owned)
  SELECT NEW.chunk_id, NEW.n, NEW.token, l.token, l.owner IS NOT NULL
  FROM chunks c JOIN lanes l ON (l.tenant_id, l.conversation_id) = (c.tenant_id, c.conversation_id)
  WHERE (c.tenant_id, c.id) = (NEW.tenant_id, NEW.chunk_id) AND (l.owner IS NULL OR l.token <> NEW.token);
  RETURN NULL;
END $$;
CREATE TRIGGER rig_witness AFTER INSERT ON attempts FOR EACH ROW EXECUTE FUNCTION rig_witness();
"""


async def lay(url: str) -> None:
    """Into a migrated database, by its superuser's URL."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute(_LAY)
