-- Who is to be answered next, and by whom. docs/lanes.md tells how these rows move.

-- A worker's lease: one row beats for all of its lanes.
CREATE TABLE workers (
  id uuid PRIMARY KEY,
  alive_until timestamptz NOT NULL
);

-- The lane row is the one fence: ownership, token, pause and version are tested in the UPDATE of this row, nowhere else.
-- Invariant: while done_seq < head_seq a lane has an owner or a finite run_at.
CREATE TABLE lanes (
  tenant_id uuid NOT NULL,
  conversation_id uuid NOT NULL,
  channel_id uuid NOT NULL,
  head_seq bigint NOT NULL DEFAULT 0,      -- last seq given out
  done_seq bigint NOT NULL DEFAULT 0,      -- last seq settled
  run_at timestamptz,                      -- when it is due; NULL: nothing to do until somebody sets it
  owner uuid,                              -- the worker that has it
  token bigint NOT NULL DEFAULT 0,         -- + 1 at each claim
  version bigint NOT NULL DEFAULT 0,       -- + 1 when what an answer rests on changes (edit, revoke, echo)
  paused_until timestamptz,
  attempts integer NOT NULL DEFAULT 0,     -- claims since the last progress
  PRIMARY KEY (tenant_id, conversation_id),
  FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX lanes_due ON lanes (run_at) WHERE run_at IS NOT NULL AND owner IS NULL;
CREATE INDEX lanes_owned ON lanes (owner) WHERE owner IS NOT NULL;

-- One durable intent in a lane, gapless per lane, insert-only.
CREATE TABLE outbox (
  tenant_id uuid NOT NULL,
  conversation_id uuid NOT NULL,
  seq bigint NOT NULL,
  kind text NOT NULL CHECK (kind = 'answer'),
  message_id uuid NOT NULL,                -- made in the same statement, and gone with an erasure
  entered_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, conversation_id, seq),
  FOREIGN KEY (tenant_id, conversation_id) REFERENCES lanes
);
