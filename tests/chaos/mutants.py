"""The bugs that are planted on purpose (FAULTS.md 5): what each breaks, its text, and what may find it.

These are on the way out; inbound_mutants.py has those on the way in, degraded_mutants.py those of a database that is away,
answer_mutants.py those of what the assistant says; planting.py plants, hunt.py looks whether they are found.
docs/mutants.md is this list with its last findings.
"""

from tests.chaos.answer_mutants import ANSWERS
from tests.chaos.degraded_mutants import DEGRADED
from tests.chaos.inbound_mutants import INBOUND
from tests.chaos.planting import Mutant, Patch

_FENCE = "CASE WHEN l.owner IS DISTINCT FROM %(worker)s OR l.token <> i.token THEN 'lost'\n"
_FENCES = (
    Patch("app/store/chunks.py", _FENCE, "CASE WHEN %(worker)s::uuid IS NULL THEN 'lost'\n"),
    Patch("app/store/settlements.py", _FENCE, "CASE WHEN %(worker)s::uuid IS NULL THEN 'lost'\n"),
)
_DELIVER = "workers/deliver.py"

OUTBOUND = (
    Mutant(
        name="resend-on-timeout",
        breaks="an answer that was lost counts as never left, and is sent again at once",
        scene="busy",
        by=(3,),
        patches=(
            Patch(
                _DELIVER,
                '            return fact(attempt="in_doubt", chunk="in_doubt", reason=_plain(error), '
                "due_in=error.after, holds=holds)\n",
                '            return fact(attempt="never_left", chunk="ready", reason=_plain(error), holds=holds)\n',
            ),
        ),
    ),
    Mutant(
        name="silence-at-once",
        breaks="what is in doubt is sent again without waiting for a status",
        scene="busy",
        by=(3,),
        patches=(
            Patch(
                _DELIVER,
                "        patience = self._settings.in_doubt_seconds\n",
                "        patience = 0.0 * self._settings.in_doubt_seconds\n",
            ),
            Patch(_DELIVER, "        if quiet <= 0 and chunk.flowing:\n", "        if quiet <= 0:\n"),
        ),
    ),
    Mutant(
        name="intent-after-post",
        breaks="the intent is committed when the POST is over",
        scene="busy",
        by=(3, 10),
        patches=(
            Patch(
                _DELIVER,
                "    async def send(self, lane: Lane, chunk: Chunk, n: int, call: Call) -> str:\n",
                "    async def send(self, lane: Lane, chunk: Chunk, n: int, call: Call, fact: Fact | None = None) -> str:\n",
            ),
            Patch(
                _DELIVER,
                "        fact = await self._attempt(lane, key, chunk, call)\n",
                "        fact = fact or await self._attempt(lane, key, chunk, call)\n",
            ),
            Patch(
                _DELIVER,
                "                    permission = await self._intend(lane, chunk.id, n + 1)\n",
                "                    fact = await self._attempt(lane, Key(chunk.id, n + 1), chunk, call)\n"
                "                    permission = await self._intend(lane, chunk.id, n + 1)\n",
            ),
            Patch(
                _DELIVER,
                "                        state = await self.send(lane, chunk, n + 1, call)\n",
                "                        state = await self.send(lane, chunk, n + 1, call, fact)\n",
            ),
            Patch("workers/settle.py", "        wanted = bool(pieces) and gate_open\n", "        wanted = False\n"),
        ),
    ),
    Mutant(
        name="retry-after-ignored",
        breaks="nobody reads Retry-After",
        scene="busy",
        by=(7,),
        patches=(
            Patch(
                "app/retrying.py",
                "    return max((min(max(wait, 0.0), LONGEST) for wait in waits), default=None)\n",
                "    return None\n",
            ),
        ),
    ),
    Mutant(
        name="only-the-lane-waits",
        breaks="Retry-After binds the lane that was refused, not the number",
        scene="busy",
        by=(7,),
        patches=(
            Patch(
                _DELIVER,
                '                holds=error.scope if error.scope != "chunk" and error.after else None,\n',
                "                holds=None,\n",
            ),
        ),
    ),
    Mutant(
        name="chunks-concurrently",
        breaks="the parts of an answer are sent beside each other",
        scene="busy",
        by=(2, 3),
        patches=(
            Patch(
                _DELIVER,
                "        seq = chunks[-1].seq\n        opens_in = ",
                '        if len(chunks) > 1 and all(chunk.state == "ready" for chunk in chunks):\n'
                "            await asyncio.gather(*(self.entry(lane, None, [chunk]) for chunk in chunks))\n"
                "            return Release(claim=lane.claim, done_seq=None, again_in=0.0)\n"
                "        seq = chunks[-1].seq\n        opens_in = ",
            ),
        ),
    ),
    Mutant(
        name="gate-not-minded",
        breaks="a part is sent as soon as the one before was accepted, delivered or not",
        scene="busy",
        by=(2, 3),
        patches=(
            Patch(
                _DELIVER,
                "                if (wait := max(opens_in, chunk.due_in)) > 0:\n",
                "                if (wait := chunk.due_in) > 0:\n",
            ),
        ),
    ),
    # --- who may ---
    Mutant(
        name="fence-open",
        breaks="neither owner nor token is checked where an intent is committed",
        scene="suite",
        test="tests/integration/test_lanes.py::test_who_lost_the_lane_can_neither_settle_nor_intend",
        patches=_FENCES,
    ),
    Mutant(
        name="may-leave-not-asked",
        breaks="a worker that stood still for longer than its lease goes on with the POST",
        scene="blocked",
        by=(3,),
        patches=(
            Patch(
                _DELIVER,
                "                may_leave=lambda: self._lanes.may_send() and not self._held_for(lane) and call.stands,\n",
                "                may_leave=None,\n",
            ),
        ),
    ),
    Mutant(
        name="dead-never-buried",
        breaks="the lanes of a dead worker stay its own",
        scene="dying",
        by=(4,),
        patches=(Patch("workers/lane.py", "freed := await lanes.bury(conn)", "freed := 0"),),
    ),
    Mutant(
        name="never-disowned",
        breaks="lanes whose claim or release got no answer stay with a worker that does not know of them",
        scene="dying",
        by=(4,),
        patches=(
            Patch(
                "workers/lane.py",
                "        if self._strays:\n",
                "        if self._strays and self._stopping:\n",
            ),
        ),
    ),
    Mutant(
        name="release-forgets",
        breaks="a lane that is given back keeps only the wait that its worker asks for",
        scene="busy",
        by=(4,),
        patches=(
            Patch(
                "app/store/lanes.py",
                "THEN least(l.run_at, qasid_now() + h.again_in * interval '1 second')\n",
                "THEN qasid_now() + h.again_in * interval '1 second'\n",
            ),
            Patch(
                "app/store/lanes.py",
                "                    WHEN l.head_seq > greatest(l.done_seq, h.done_seq) THEN least(l.run_at, qasid_now()) END\n",
                "                    END\n",
            ),
        ),
    ),
    # --- what silence says ---
    Mutant(
        name="flow-not-asked",
        breaks="silence counts although the provider sends no statuses at all",
        scene="mute",
        by=(3,),
        patches=(Patch(_DELIVER, "        if quiet <= 0 and chunk.flowing:\n", "        if quiet <= 0:\n"),),
    ),
    Mutant(
        name="late-counts-as-heard",
        breaks="a status that was held up shows that statuses flow, though others held up with it are on their way",
        scene="suite",
        test="tests/integration/test_chunks.py::test_statuses_that_were_held_up_let_silence_wait_for_the_rest",
        patches=(
            Patch(
                "app/store/turns.py",
                " OR (heard_at - begun_at > half AND heard_at > qasid_now() - 2 * half)",
                "",
            ),
        ),
    ),
    Mutant(
        name="flow-of-before",
        breaks="statuses that came before an outage show that they flow after it",
        scene="suite",
        test="tests/integration/test_chunks.py::test_what_flowed_before_the_silence_says_nothing_of_it",
        patches=(Patch("app/store/turns.py", " AND a.begun_at > silence.since AND a.heard_at", " AND a.heard_at"),),
    ),
    Mutant(
        name="doors-not-minded",
        breaks="silence counts although no web process is there to hear",
        scene="suite",
        test="tests/integration/test_chunks.py::test_silence_counts_only_while_every_door_is_open",
        patches=(
            Patch(
                "app/store/turns.py",
                "(SELECT CASE WHEN bool_and(alive_until > qasid_now()) THEN min(beaten_at) END FROM doors)",
                "qasid_now()",
            ),
        ),
    ),
    # --- narrow windows, which the state machine walks into ---
    Mutant(
        name="fact-without-token",
        breaks="a fact speaks for whatever attempt has its number, be it another claim's",
        scene="suite",
        test="tests/integration/test_chunks.py::test_a_fact_speaks_for_the_attempt_of_its_own_claim_alone",
        patches=(
            Patch(
                "app/store/chunks.py",
                "FROM input i JOIN attempts a USING (tenant_id, chunk_id, n, token) ORDER",
                "FROM input i JOIN attempts a USING (tenant_id, chunk_id, n) ORDER",
            ),
            Patch(
                "app/store/chunks.py",
                "  WHERE (a.tenant_id, a.chunk_id, a.n, a.token) = (i.tenant_id, i.chunk_id, i.n, i.token)),\n",
                "  WHERE (a.tenant_id, a.chunk_id, a.n) = (i.tenant_id, i.chunk_id, i.n)),\n",
            ),
        ),
    ),
    Mutant(
        name="orphan-is-ready",
        breaks="a send whose worker is gone counts as never begun, not as in doubt",
        scene="machine",
        patches=(
            Patch(
                "app/store/turns.py",
                "  UPDATE chunks c SET state = 'in_doubt', in_doubt_at = qasid_now()\n",
                "  UPDATE chunks c SET state = 'ready', in_doubt_at = NULL\n",
            ),
        ),
    ),
    Mutant(
        name="lease-by-the-local-clock",
        breaks="a worker's lease ends by its own wall clock, others judge it by theirs",
        scene="machine",
        patches=(
            Patch(
                "app/store/lanes.py",
                "VALUES (%(worker)s, qasid_now() + %(lease)s * interval '1 second')\n",
                "VALUES (%(worker)s, to_timestamp(%(lease)s))\n",
            ),
            Patch(
                "app/store/lanes.py",
                "UPDATE workers SET alive_until = qasid_now() + %(lease)s * interval '1 second'\n",
                "UPDATE workers SET alive_until = to_timestamp(%(lease)s)\n",
            ),
            Patch(
                "app/store/lanes.py",
                '    await conn.execute(REGISTER, {"worker": worker, "lease": lease})\n',
                "    import time\n\n"
                '    await conn.execute(REGISTER, {"worker": worker, "lease": time.time() + lease})\n',
            ),
            Patch(
                "app/store/lanes.py",
                '    result = await conn.execute(BEAT, {"worker": worker, "lease": lease})\n',
                "    import time\n\n"
                '    result = await conn.execute(BEAT, {"worker": worker, "lease": time.time() + lease})\n',
            ),
        ),
    ),
)

MUTANTS = (*INBOUND, *OUTBOUND, *DEGRADED, *ANSWERS)
