-- What a person has said of the breakers (docs/decisions/0020-degraded.md). Read by every process once a second.
CREATE TABLE breakers (
  dependency text PRIMARY KEY,   -- 'database', 'channel:noor/main', 'assistant:noor'
  forced text NOT NULL CHECK (forced IN ('open', 'closed')),
  at timestamptz NOT NULL
);
GRANT SELECT ON breakers TO qasid_courier, qasid_app;
GRANT INSERT, UPDATE, DELETE ON breakers TO qasid_app;
CREATE POLICY of_courier ON breakers TO qasid_courier USING (true);
CREATE POLICY of_installation ON breakers TO qasid_app USING (for_installation()) WITH CHECK (for_installation());
ALTER TABLE breakers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
