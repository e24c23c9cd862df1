-- The translation memory: what was translated once for a tenant is not asked for again, by whichever worker.
--
-- The text itself is not kept, only its hash. Insert-only. What people wrote and were answered never comes here.
CREATE TABLE translations (
  tenant_id uuid NOT NULL REFERENCES tenants,
  digest bytea NOT NULL,                   -- SHA-256 of the text, in UTF-8
  source text NOT NULL,                    -- languages
  target text NOT NULL,
  engine text NOT NULL,                    -- which translator, with its model
  body text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, digest, source, target, engine)
);
GRANT SELECT, INSERT ON translations TO qasid_courier;
GRANT SELECT ON translations TO qasid_app;
CREATE POLICY of_courier ON translations TO qasid_courier USING (true) WITH CHECK (true);
CREATE POLICY of_tenant ON translations TO qasid_app USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
ALTER TABLE translations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- As 0012 says: until PostgreSQL has counted for itself, all rows are of one tenant.
SELECT pg_restore_attribute_stats(
         'schemaname', current_schema()::text, 'relname', 'translations', 'attname', 'tenant_id', 'inherited', false,
         'null_frac', 0::real, 'avg_width', 16, 'n_distinct', 1::real);
