-- SAQ's own tables at its schema version 3 (saq/queue/postgres_migrations.py of saq 0.26), so that no process makes them
-- at start-up. They carry wake-ups, no truth: app/wake.py lets their commits return before the disk has them.
CREATE TABLE saq_versions (version integer);
INSERT INTO saq_versions VALUES (3);
CREATE TABLE saq_jobs (
  key text PRIMARY KEY,
  lock_key serial NOT NULL,
  job bytea NOT NULL,
  queue text NOT NULL,
  status text NOT NULL,
  priority smallint NOT NULL DEFAULT 0,
  group_key text,
  scheduled bigint NOT NULL DEFAULT extract(epoch FROM now()),
  expire_at bigint
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX saq_jobs_status_queue_group_key_idx ON saq_jobs (status, queue, group_key);
CREATE INDEX saq_jobs_status_queue_priority_scheduled_idx ON saq_jobs (status, queue, priority, scheduled);
CREATE TABLE saq_stats (
  worker_id text PRIMARY KEY,
  stats jsonb,
  expire_at bigint,
  metadata jsonb,
  queue_key text
);
CREATE INDEX saq_stats_expire_at_idx ON saq_stats (expire_at);
CREATE INDEX saq_stats_queue_key_idx ON saq_stats (queue_key);
