-- What "nothing twice" asks for under faults: who may be heard, what a number must wait for, entries that are no answers.

-- Forced policies hide every row from the owner too, who has to read and fill some here.
ALTER TABLE endpoints NO FORCE ROW LEVEL SECURITY;
ALTER TABLE channels NO FORCE ROW LEVEL SECURITY;
ALTER TABLE chunks NO FORCE ROW LEVEL SECURITY;
ALTER TABLE attempts NO FORCE ROW LEVEL SECURITY;

-- The doors that statuses come in by: one row per place (host and port), beaten by whichever web process serves there.
-- Silence about a chunk in doubt counts only while there is a door and none is missing (docs/chunks.md).
CREATE TABLE doors (
  place text PRIMARY KEY,
  beaten_at timestamptz NOT NULL,          -- silence is known of up to here
  alive_until timestamptz NOT NULL
);

-- When statuses of an endpoint may last have been missed. A table of its own, since `qasid apply` locks endpoints before
-- lanes, and statuses are applied under the lanes' locks.
CREATE TABLE disturbances (
  endpoint_id uuid PRIMARY KEY REFERENCES endpoints,
  at timestamptz NOT NULL
);
INSERT INTO disturbances SELECT id, disturbed_at FROM endpoints;
COMMENT ON COLUMN endpoints.disturbed_at IS 'until 0008: a later migration drops it, when no process of that build runs any more';

-- Until when nothing may be sent from a number: its provider has said so, to whichever worker asked.
CREATE TABLE holds (
  tenant_id uuid NOT NULL,
  channel_id uuid NOT NULL,
  until timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, channel_id),
  FOREIGN KEY (tenant_id, channel_id) REFERENCES channels
);

-- Whether statuses flow is asked of the attempts of an endpoint, the newest first. NULL: begun by a build of before.
ALTER TABLE attempts ADD COLUMN endpoint_id uuid;
UPDATE attempts a SET endpoint_id = h.endpoint_id
FROM chunks c JOIN channels h ON (h.tenant_id, h.id) = (c.tenant_id, c.channel_id)
WHERE (c.tenant_id, c.id) = (a.tenant_id, a.chunk_id);
CREATE INDEX attempts_of_endpoint ON attempts (endpoint_id, begun_at);
DROP INDEX attempts_heard;
DROP INDEX chunks_unheard;

-- A lane that was claimed three times without progress is worked on apart from others of its kind.
CREATE INDEX lanes_suspect ON lanes (run_at) WHERE run_at IS NOT NULL AND owner IS NULL AND attempts >= 3;

-- An entry 'send' has its chunks from the beginning: they are sent when the lane's head has come to it. A replay names
-- what it repeats: an entry the turn, a chunk the chunk.
ALTER TABLE outbox DROP CONSTRAINT outbox_kind_check, ADD CHECK (kind IN ('answer', 'send')), ADD COLUMN replays uuid;
ALTER TABLE chunks ADD COLUMN replays uuid,
  ADD COLUMN missed_at timestamptz;        -- when a status of it last came in a webhook that could not be taken
CREATE INDEX chunks_replaying ON chunks (tenant_id, replays) WHERE replays IS NOT NULL;

GRANT SELECT, INSERT, UPDATE, DELETE ON doors TO qasid_courier;
GRANT SELECT, INSERT, UPDATE ON disturbances, holds TO qasid_courier;
GRANT SELECT, UPDATE ON holds TO qasid_app;
CREATE POLICY of_courier ON doors TO qasid_courier USING (true) WITH CHECK (true);
CREATE POLICY of_courier ON disturbances TO qasid_courier USING (true) WITH CHECK (true);
CREATE POLICY of_courier ON holds TO qasid_courier USING (true) WITH CHECK (true);
CREATE POLICY of_tenant ON holds TO qasid_app USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
ALTER TABLE doors ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE disturbances ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE holds ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE endpoints FORCE ROW LEVEL SECURITY;
ALTER TABLE channels FORCE ROW LEVEL SECURITY;
ALTER TABLE chunks FORCE ROW LEVEL SECURITY;
ALTER TABLE attempts FORCE ROW LEVEL SECURITY;
