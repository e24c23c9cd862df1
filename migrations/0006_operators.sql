-- People who may log in.
CREATE TABLE operators (
  id uuid PRIMARY KEY DEFAULT uuidv7(),
  name text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 100),
  password text NOT NULL,                  -- Argon2id
  session integer NOT NULL DEFAULT 1,      -- rises when the password changes: sessions of an older number are over
  created_at timestamptz NOT NULL DEFAULT now()
);
