-- Two roles. Every connection takes one of them when it is made (app/db.py).
--   qasid_courier  carries messages for all tenants: ingest, statuses, lanes, answers, delivery, housekeeping.
--   qasid_app      acts for one tenant at a time (row-level security, the tenant set per transaction), or for the
--                  installation as a whole (operators, endpoints), never for both in one breath.
-- Roles belong to the cluster, so another database of it may have made them: hence the two caught errors.
DO $$
DECLARE r text;
BEGIN
  FOREACH r IN ARRAY ARRAY['qasid_courier', 'qasid_app'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT', r);
      EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
      END;
    END IF;
    -- A role that may create roles does not thereby may become them.
    IF NOT pg_has_role(current_user, r, 'SET') THEN
      EXECUTE format('GRANT %I TO CURRENT_USER WITH SET TRUE, INHERIT FALSE', r);
    END IF;
  END LOOP;
END $$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO qasid_courier, qasid_app;

-- The one clock. Leases, due times and ages are the database's; only a test may replace this function to shift time.
CREATE FUNCTION qasid_now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS 'SELECT now()';

-- Who qasid_app acts for: set_config('app.tenant', …, true) or set_config('app.installation', 'on', true), per transaction.
-- After SET LOCAL a setting reads '' rather than NULL, hence NULLIF.
CREATE FUNCTION current_tenant() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
  AS $$ SELECT NULLIF(current_setting('app.tenant', true), '')::uuid $$;
CREATE FUNCTION for_installation() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
  AS $$ SELECT coalesce(current_setting('app.installation', true), '') = 'on' $$;
