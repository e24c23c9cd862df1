-- What `qasid apply` writes: endpoints, tenants, channels. Secrets stand here sealed (app/vault.py), never in clear.

-- One row; `version` rises with every change, and every process asks for it once a second.
CREATE TABLE configuration (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  version bigint NOT NULL DEFAULT 0
);
INSERT INTO configuration DEFAULT VALUES;

-- Keys that Qasid made for itself: the one that digests of provider ids are made with is never rotated,
-- or redelivered messages would look new.
CREATE TABLE keys (
  name text PRIMARY KEY,
  sealed text NOT NULL
);

CREATE TABLE tenants (
  id uuid PRIMARY KEY DEFAULT uuidv7(),
  slug text NOT NULL UNIQUE,
  name text NOT NULL,
  enabled boolean NOT NULL DEFAULT true,
  in_doubt text NOT NULL DEFAULT 'resend' CHECK (in_doubt IN ('resend', 'park')),
  settings jsonb NOT NULL DEFAULT '{}'     -- assistant, translation, texts, limits, intents; secrets in it are sealed
);

CREATE TABLE endpoints (
  id uuid PRIMARY KEY DEFAULT uuidv7(),
  slug text NOT NULL UNIQUE,
  kind text NOT NULL CHECK (kind IN ('cloud', 'evolution')),
  secrets text[] NOT NULL,                 -- sealed; each of them verifies
  verify_token text,                       -- sealed
  -- When statuses may last have been missed: a web process started, or answered an authentic webhook other than 200.
  -- Silence about a chunk in doubt counts from here at the earliest.
  disturbed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE channels (
  tenant_id uuid NOT NULL REFERENCES tenants,
  id uuid NOT NULL DEFAULT uuidv7(),
  slug text NOT NULL,
  endpoint_id uuid NOT NULL REFERENCES endpoints,
  address text NOT NULL,                   -- phone_number_id, or the Evolution instance's name
  base_url text NOT NULL,
  token text NOT NULL,                     -- sealed
  enabled boolean NOT NULL DEFAULT true,
  session_gap_hours double precision NOT NULL DEFAULT 3,
  answer_within_hours double precision NOT NULL DEFAULT 24,
  late text NOT NULL DEFAULT 'store' CHECK (late IN ('answer', 'apologise', 'notice', 'store')),
  PRIMARY KEY (tenant_id, id),
  UNIQUE (tenant_id, slug),
  UNIQUE (endpoint_id, address)
);
