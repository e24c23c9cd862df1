-- Who writes, and what was written.

CREATE TABLE contacts (
  tenant_id uuid NOT NULL REFERENCES tenants,
  id uuid NOT NULL DEFAULT uuidv7(),
  name text NOT NULL DEFAULT '',
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, id)
);

-- One row per address that is known to be this person.
CREATE TABLE identities (
  tenant_id uuid NOT NULL,
  kind text NOT NULL CHECK (kind IN ('wa_id', 'bsuid', 'lid')),
  value text NOT NULL CHECK (length(value) BETWEEN 1 AND 256),
  contact_id uuid NOT NULL,
  PRIMARY KEY (tenant_id, kind, value),
  FOREIGN KEY (tenant_id, contact_id) REFERENCES contacts
);
CREATE INDEX identities_of_contact ON identities (tenant_id, contact_id);

CREATE TABLE conversations (
  tenant_id uuid NOT NULL,
  id uuid NOT NULL DEFAULT uuidv7(),
  channel_id uuid NOT NULL,
  contact_id uuid NOT NULL,
  merged_into uuid,                        -- the elder conversation of the same person, whose lane takes what comes now
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, id),
  UNIQUE (tenant_id, channel_id, contact_id),
  FOREIGN KEY (tenant_id, channel_id) REFERENCES channels,
  FOREIGN KEY (tenant_id, contact_id) REFERENCES contacts,
  FOREIGN KEY (tenant_id, merged_into) REFERENCES conversations
);

-- The only conflict target of ingest: one row per provider id that was ever taken. `digest` is an HMAC, so the row can
-- outlive an erasure and still recognise a redelivery; hence no foreign keys.
CREATE TABLE seen (
  tenant_id uuid NOT NULL,
  channel_id uuid NOT NULL,
  digest bytea NOT NULL,
  message_id uuid NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, channel_id, digest)
);
CREATE INDEX seen_by_age ON seen USING brin (at);

-- `raw` is json, not jsonb: what the provider sent stays byte for byte, U+0000 and long numbers included.
CREATE TABLE messages (
  tenant_id uuid NOT NULL,
  id uuid NOT NULL,
  conversation_id uuid NOT NULL,
  channel_id uuid NOT NULL,
  direction text NOT NULL CHECK (direction IN ('in', 'out', 'echo')),
  kind text NOT NULL,
  provider_id text,                        -- NULL for our answers: each of their chunks has its own
  digest bytea,                            -- of provider_id, as in `seen`
  refers_to bytea,                         -- digest of the message that an edit, revoke or reaction is about
  sent_at timestamptz NOT NULL,            -- the provider's time
  stored_at timestamptz NOT NULL DEFAULT now(),
  body text NOT NULL DEFAULT '',           -- what a person would read
  turn_id uuid,                            -- the turn that answered with this message (direction 'out')
  correlation text NOT NULL,               -- one id from the webhook to the last chunk
  ack_ms double precision,                 -- from the webhook's arrival to the flush that stored it, by the web's own clock
  raw json,
  PRIMARY KEY (tenant_id, id),
  FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations
);
CREATE INDEX messages_history ON messages (tenant_id, conversation_id, id);
CREATE INDEX messages_changes ON messages (tenant_id, conversation_id, refers_to) WHERE refers_to IS NOT NULL;

-- Authentic items that could not be read or placed: kept raw, counted, replayable.
CREATE TABLE quarantine (
  endpoint_id uuid NOT NULL REFERENCES endpoints,
  digest bytea NOT NULL,                   -- of the raw item
  reason text NOT NULL,
  raw bytea NOT NULL,
  count bigint NOT NULL DEFAULT 1,
  first_at timestamptz NOT NULL DEFAULT now(),
  last_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (endpoint_id, digest)
);
CREATE INDEX quarantine_by_time ON quarantine (last_at);
