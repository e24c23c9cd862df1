import psycopg, time
def test_x(cluster, template):
    with psycopg.connect(cluster.url, autocommit=True) as c:
        for strat in ("wal_log","file_copy","wal_log","file_copy"):
            t=time.time(); c.execute(f"CREATE DATABASE zz_{strat} TEMPLATE {template} STRATEGY {strat}"); a=time.time()-t
            t=time.time(); c.execute(f"DROP DATABASE zz_{strat} WITH (FORCE)"); b=time.time()-t
            print(strat, round(a,3), round(b,3))
