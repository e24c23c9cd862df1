"""Bugs in what is done while the database is of no use: breaker, prober, spool, cached sessions. It plants none."""

from tests.chaos.planting import Mutant, Patch

DEGRADED = (
    Mutant(
        name="breaker-never-opens",
        breaks="neither failed calls nor missed probes open the breaker of the database",
        scene="kept",
        by=(12,),
        patches=(
            Patch(
                "app/policies.py",
                "refusal=DatabaseOpen, failures=5, deadlines=2, slow=0.5, answers=3)",
                "refusal=DatabaseOpen, slow=0.5, answers=3)",
            ),
        ),
    ),
    Mutant(
        name="breaker-never-closes",
        breaks="good probes do not close the breaker: it waits for a person",
        scene="kept",
        by=(12,),
        patches=(
            Patch(
                "app/breaker.py",
                "            self._answers = self._answers + 1 if ok else 0\n",
                "            self._answers = 0\n",
            ),
        ),
    ),
    Mutant(
        name="prober-in-haste",
        breaks="each process probes the database five times a second",
        scene="kept",
        by=(12,),
        patches=(Patch("app/prober.py", "INTERVAL, PATIENCE = 1.0, 0.9\n", "INTERVAL, PATIENCE = 0.2, 0.9\n"),),
    ),
    Mutant(
        name="replay-takes-nothing",
        breaks="what is replayed from the spool counts as taken before anybody has taken it",
        scene="kept",
        by=(1, 8),
        patches=(
            Patch(
                "app/backlog.py",
                "        await take(record, watch.current, self._ingest)\n",
                '        log.debug("taken", endpoint=record.endpoint)\n',
            ),
        ),
    ),
    Mutant(
        name="spool-never-synced",
        breaks="a webhook counts as kept once it is written, synced or not",
        scene="suite",
        test="tests/unit/test_spool.py::test_nothing_is_kept_before_it_is_synced",
        patches=(
            Patch(
                "app/spool/segments.py", "            os.fsync(self._handle)\n", "            os.fstat(self._handle)\n"
            ),
        ),
    ),
    Mutant(
        name="segment-goes-with-the-rest",
        breaks="a segment of the spool is deleted though one of its webhooks was not taken",
        scene="suite",
        test="tests/unit/test_spool_replay.py::test_a_segment_stays_until_all_of_it_was_taken",
        patches=(
            Patch(
                "app/spool/replay.py",
                "report.foreign == foreign and report.taken == taken + handed\n",
                "report.foreign == foreign and report.taken >= taken and handed >= 0\n",
            ),
        ),
    ),
    Mutant(
        name="session-of-another-tenant",
        breaks="a remembered conversation is looked up without its tenant",
        scene="suite",
        test="tests/unit/test_session_memory.py::test_a_tenant_never_gets_anothers",
        patches=(
            Patch(
                "workers/sessions.py",
                "        session = self._sessions.get(lane)\n",
                "        lane = next((held for held in self._sessions if held[1] == lane[1]), lane)\n"
                "        session = self._sessions.get(lane)\n",
            ),
        ),
    ),
)
