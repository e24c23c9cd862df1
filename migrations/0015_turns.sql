-- What a turn knows of its session, and what a lane remembers of its person between two turns.

-- When the session that a turn belongs to began: decided once, as the turn is made. NULL: begun by a build of before.
ALTER TABLE turns ADD COLUMN session_at timestamptz;

ALTER TABLE lanes
  ADD COLUMN stopped_at timestamptz,       -- the person wants no answers since then, until they write a start word
  ADD COLUMN asking text,                  -- the intent whose question waits for a yes or a no
  ADD COLUMN noticed_at timestamptz,       -- when they were last told that what they wrote came too late
  ADD COLUMN limited_at timestamptz,       -- when they were last told that it is enough for a day
  ADD COLUMN paused_after bigint;          -- the pause binds the entries behind this one; NULL: all of them

ALTER TABLE usage DROP CONSTRAINT usage_outcome_check,
  ADD CHECK (outcome IN ('answered', 'intent', 'told', 'failed', 'late', 'left', 'revoked', 'parked', 'limited', 'stopped'));

-- How much a person wrote in a day is counted over all their conversations with a tenant.
CREATE INDEX conversations_of_contact ON conversations (tenant_id, contact_id);
