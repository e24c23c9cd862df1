-- Dead letters: what a person may list and replay (docs/decisions/0018-replay.md).

-- Where an item of a webhook stood, so that it can be put back there, and what became of it when it was.
ALTER TABLE quarantine
  ADD COLUMN id uuid NOT NULL DEFAULT uuidv7(),
  ADD COLUMN address text,                 -- that it named, if it could be read that far
  ADD COLUMN part text,                    -- message, echo, status, error, or the level at which it was cut out
  ADD COLUMN replayed_at timestamptz,      -- the last try
  ADD COLUMN verdict text CHECK (verdict IN ('stored', 'duplicate', 'quarantined')),
  ADD CONSTRAINT quarantine_id UNIQUE (id);

-- Which turns want a look, and which entries repeat one.
CREATE INDEX usage_dead ON usage (tenant_id, turn_id) WHERE outcome IN ('failed', 'parked');
CREATE INDEX outbox_replaying ON outbox (tenant_id, replays) WHERE replays IS NOT NULL;

-- A replay enters a lane as the app, for one tenant. What a person said, the app never makes up.
GRANT INSERT ON messages, outbox, chunks TO qasid_app;
CREATE POLICY ours_alone ON messages AS RESTRICTIVE FOR INSERT TO qasid_app WITH CHECK (direction = 'out');
