-- What becomes of an outbox entry: a turn, its steps, its chunks, their attempts, the statuses that come back.

-- The membership of a turn, fixed before any work. Insert-only.
CREATE TABLE turns (
  tenant_id uuid NOT NULL,
  id uuid NOT NULL DEFAULT uuidv7(),
  conversation_id uuid NOT NULL,
  first_seq bigint NOT NULL,
  last_seq bigint NOT NULL CHECK (last_seq >= first_seq),
  begun_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, id),
  UNIQUE (tenant_id, conversation_id, first_seq),
  FOREIGN KEY (tenant_id, conversation_id) REFERENCES lanes
);

-- The memo of each finished step, with the lane version it was made at. Insert-only.
CREATE TABLE steps (
  tenant_id uuid NOT NULL,
  turn_id uuid NOT NULL,
  step text NOT NULL,
  version bigint NOT NULL,
  result jsonb NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, turn_id, step, version),
  FOREIGN KEY (tenant_id, turn_id) REFERENCES turns
);

-- How a turn ended and what it cost: one row per settled turn. Insert-only.
CREATE TABLE usage (
  tenant_id uuid NOT NULL,
  turn_id uuid NOT NULL,
  outcome text NOT NULL CHECK (outcome IN ('answered', 'intent', 'told', 'failed', 'late', 'left', 'revoked', 'parked')),
  messages integer NOT NULL,
  chunks integer NOT NULL,
  input_tokens bigint NOT NULL DEFAULT 0,
  output_tokens bigint NOT NULL DEFAULT 0,
  model text,
  ai_ms double precision,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, turn_id),
  FOREIGN KEY (tenant_id, turn_id) REFERENCES turns
);

-- One WhatsApp text. docs/chunks.md draws its states.
CREATE TABLE chunks (
  tenant_id uuid NOT NULL,
  id uuid NOT NULL DEFAULT uuidv7(),
  conversation_id uuid NOT NULL,
  channel_id uuid NOT NULL,
  turn_id uuid,                            -- NULL: an operator's text
  seq bigint NOT NULL,                     -- the entry that is done when the last of its chunks is
  no integer NOT NULL,                     -- 1, 2, …
  body text NOT NULL,
  state text NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'sending', 'in_doubt', 'accepted', 'sent', 'delivered',
                                                       'read', 'played', 'failed', 'parked', 'cancelled')),
  attempt integer NOT NULL DEFAULT 0,      -- the number of the last attempt
  due_at timestamptz,                      -- ready, but not before
  accepted_at timestamptz,                 -- the bounded wait of the gate runs from here
  in_doubt_at timestamptz,
  code integer,                            -- the provider's, of the last refusal
  reason text,
  PRIMARY KEY (tenant_id, id),
  UNIQUE (tenant_id, conversation_id, seq, no),
  FOREIGN KEY (tenant_id, conversation_id) REFERENCES lanes,
  FOREIGN KEY (tenant_id, turn_id) REFERENCES turns
) WITH (fillfactor = 80);
-- What a chunk in doubt asks of its neighbours: does anybody else on this channel still wait for a first status?
CREATE INDEX chunks_unheard ON chunks (tenant_id, channel_id) WHERE state IN ('accepted', 'in_doubt');
CREATE INDEX chunks_dead ON chunks (tenant_id, id) WHERE state IN ('failed', 'parked');

-- One try to hand a chunk to the provider: the row is the intent, what is filled in later is the fact.
CREATE TABLE attempts (
  tenant_id uuid NOT NULL,
  chunk_id uuid NOT NULL,
  n integer NOT NULL,
  token bigint NOT NULL,                   -- the lane's, when the intent was committed
  state text NOT NULL DEFAULT 'sending' CHECK (state IN ('sending', 'never_left', 'refused', 'held', 'in_doubt', 'accepted', 'sent',
                                                         'delivered', 'read', 'played', 'failed')),
  provider_id text,
  code integer,
  reason text,
  begun_at timestamptz NOT NULL DEFAULT now(),
  ended_at timestamptz,
  heard_at timestamptz,                    -- when its first status came
  PRIMARY KEY (tenant_id, chunk_id, n),
  FOREIGN KEY (tenant_id, chunk_id) REFERENCES chunks
) WITH (fillfactor = 80);
CREATE INDEX attempts_heard ON attempts (heard_at) WHERE heard_at IS NOT NULL;

-- The raw history of what providers said of our messages, applied or not. A repeated status is one row.
CREATE TABLE statuses (
  tenant_id uuid NOT NULL,
  channel_id uuid NOT NULL,
  digest bytea NOT NULL,                   -- of (provider id, status, time)
  provider_id text NOT NULL,
  chunk_id uuid,                           -- as our key says, if it is one of ours
  attempt integer,
  status text NOT NULL,
  at timestamptz NOT NULL,                 -- the provider's time
  stored_at timestamptz NOT NULL DEFAULT now(),
  applied boolean NOT NULL,                -- it moved its attempt
  raw json NOT NULL,
  PRIMARY KEY (tenant_id, channel_id, digest),
  FOREIGN KEY (tenant_id, channel_id) REFERENCES channels
);
CREATE INDEX statuses_of_chunk ON statuses (tenant_id, chunk_id) WHERE chunk_id IS NOT NULL;

-- How far a chunk or an attempt has come, as a number that may only rise, and back.
CREATE FUNCTION status_rank(state text) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT CASE state WHEN 'accepted' THEN 2 WHEN 'sent' THEN 3 WHEN 'delivered' THEN 4 WHEN 'read' THEN 5 WHEN 'played' THEN 6
                    WHEN 'failed' THEN 9 ELSE 1 END $$;
CREATE FUNCTION status_name(rank integer) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT (ARRAY['sending', 'accepted', 'sent', 'delivered', 'read', 'played'])[rank] $$;
