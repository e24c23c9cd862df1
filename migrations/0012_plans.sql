-- Plans that are right before PostgreSQL has met a row (docs/decisions/0022-plans-before-statistics.md).
--
-- A connection plans each statement once (plan_cache_mode, app/db.py), most likely while the tables are still empty, and
-- keeps the plan until autovacuum's first look, up to a minute later. Of a column that it knows nothing of, PostgreSQL
-- supposes 200 values, so that `tenant_id` alone, which begins nearly every index, seems to find one row at most, and any
-- index does: with a hundred messages a second, opening a lane then read all of its tenant's messages, for seconds.
-- Here it is told the worst: all rows are of one tenant, all attempts of one endpoint. What it counts itself replaces this.
SELECT pg_restore_attribute_stats(
         'schemaname', n.nspname::text, 'relname', c.relname::text, 'attname', a.attname::text, 'inherited', false,
         'null_frac', 0::real, 'avg_width', 16, 'n_distinct', 1::real)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
WHERE n.nspname = current_schema() AND c.relkind = 'r' AND a.attname IN ('tenant_id', 'endpoint_id')
  AND c.reltuples <= 0;  -- PostgreSQL has counted no row of it yet (pg_stats shows its owner nothing: row-level security)
