-- Who may do what to which row. A table without a policy fails a test.

-- The courier: per table and command, nothing on operators, no writing of what `qasid apply` owns.
GRANT SELECT ON configuration, keys, tenants, endpoints, channels TO qasid_courier;
GRANT UPDATE (disturbed_at) ON endpoints TO qasid_courier;
GRANT SELECT, INSERT ON contacts, identities, conversations TO qasid_courier;
GRANT UPDATE (name) ON contacts TO qasid_courier;
GRANT UPDATE (merged_into) ON conversations TO qasid_courier;
GRANT SELECT, INSERT, DELETE ON seen TO qasid_courier;
GRANT SELECT, INSERT ON messages, outbox, turns, steps, usage TO qasid_courier;
GRANT SELECT, INSERT, UPDATE ON quarantine, chunks, attempts, statuses TO qasid_courier;
GRANT SELECT, INSERT, UPDATE ON lanes TO qasid_courier;
GRANT SELECT, INSERT, UPDATE, DELETE ON workers TO qasid_courier;
GRANT SELECT, INSERT, UPDATE, DELETE ON saq_jobs, saq_stats TO qasid_courier;
GRANT SELECT ON saq_versions TO qasid_courier;
GRANT USAGE ON SEQUENCE saq_jobs_lock_key_seq TO qasid_courier;

-- The app: configuration, operators, and reading a tenant's own rows.
GRANT SELECT, UPDATE ON configuration TO qasid_app;
GRANT SELECT, INSERT, UPDATE ON keys TO qasid_app;
GRANT SELECT, INSERT, UPDATE ON tenants, endpoints, channels, operators TO qasid_app;
GRANT DELETE ON operators TO qasid_app;
GRANT SELECT ON contacts, identities, conversations, messages, outbox, turns, steps, usage, chunks, attempts, statuses TO qasid_app;
GRANT SELECT, UPDATE ON lanes TO qasid_app;
GRANT UPDATE (due_at) ON chunks TO qasid_app;
GRANT SELECT ON quarantine TO qasid_app;

DO $$
DECLARE t text;
BEGIN
  -- Rows of a tenant.
  FOREACH t IN ARRAY ARRAY['channels', 'contacts', 'identities', 'conversations', 'seen', 'messages', 'lanes', 'outbox',
                           'turns', 'steps', 'usage', 'chunks', 'attempts', 'statuses'] LOOP
    EXECUTE format('CREATE POLICY of_tenant ON %I TO qasid_app USING (tenant_id = current_tenant()) '
                   'WITH CHECK (tenant_id = current_tenant())', t);
  END LOOP;
  CREATE POLICY of_tenant ON tenants TO qasid_app USING (id = current_tenant() OR for_installation())
    WITH CHECK (id = current_tenant() OR for_installation());
  -- Rows of the installation.
  FOREACH t IN ARRAY ARRAY['configuration', 'keys', 'endpoints', 'operators', 'quarantine'] LOOP
    EXECUTE format('CREATE POLICY of_installation ON %I TO qasid_app USING (for_installation()) '
                   'WITH CHECK (for_installation())', t);
  END LOOP;
  -- The courier works across tenants: its grants are its bounds.
  FOREACH t IN ARRAY ARRAY['configuration', 'keys', 'tenants', 'endpoints', 'channels', 'contacts', 'identities', 'conversations',
                           'seen', 'messages', 'quarantine', 'workers', 'lanes', 'outbox', 'turns', 'steps', 'usage', 'chunks',
                           'attempts', 'statuses', 'saq_jobs', 'saq_stats', 'saq_versions'] LOOP
    EXECUTE format('CREATE POLICY of_courier ON %I TO qasid_courier USING (true) WITH CHECK (true)', t);
  END LOOP;
  FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'migrations' LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
  END LOOP;
END $$;
