"""Bugs between a webhook's arrival and its rows. It plants none: see planting.py."""

from tests.chaos.planting import Mutant, Patch

_DOOR = "app/web/webhooks.py"

INBOUND = (
    Mutant(
        name="no-unique-key",
        breaks="ingest takes each delivery of a message for a new one",
        scene="busy",
        by=(1, 3),
        patches=(
            Patch(
                "app/store/inbox.py",
                """  INSERT INTO seen (tenant_id, channel_id, digest, message_id)
  SELECT DISTINCT ON (tenant_id, channel_id, digest) tenant_id, channel_id, digest, id
  FROM input JOIN free USING (tenant_id, conversation_id)
  ORDER BY tenant_id, channel_id, digest, ord
  ON CONFLICT DO NOTHING RETURNING message_id),
""",
                "  SELECT id AS message_id FROM input JOIN free USING (tenant_id, conversation_id)),\n",
            ),
        ),
    ),
    Mutant(
        name="200-before-commit",
        breaks="the door answers before the flush has been committed",
        scene="frozen",
        by=(1,),
        patches=(
            Patch(
                _DOOR,
                "                await self._ingest.take(directory, endpoint, items, correlation, arrived)\n",
                "                self._promised = asyncio.create_task(\n"
                "                    self._ingest.take(directory, endpoint, items, correlation, arrived)\n"
                "                )\n",
            ),
        ),
    ),
    Mutant(
        name="200-at-the-deadline",
        breaks="wait_for(…), then 'return True': the door answers 200 when its deadline has cancelled the ingest",
        scene="frozen",
        by=(1,),
        patches=(
            Patch(
                _DOOR,
                '                return 408, b"The body took too long.", "slow"\n',
                '                return 408, b"The body took too long.", "slow"\n'
                "            if isinstance(error, TimeoutError):\n"
                '                return 200, b"", "stored"\n',
            ),
        ),
    ),
    Mutant(
        name="404-when-a-look-up-fails",
        breaks="an endpoint that could not be looked up is taken for one that does not exist",
        scene="dark",
        by=(11,),
        patches=(
            Patch(
                _DOOR,
                '_Answered(503, b"Not ready: the configuration could not be read yet.", "unavailable")',
                '_Answered(404, b"No such endpoint.", "unknown")',
            ),
            Patch(
                _DOOR,
                '_Answered(503, b"Not ready: the configuration cannot be read.", "unavailable")',
                '_Answered(404, b"No such endpoint.", "unknown")',
            ),
        ),
    ),
    Mutant(
        name="flush-drops-strays",
        breaks="a flush drops the items that it cannot place, and they are answered 200",
        scene="busy",
        by=(1,),
        patches=(
            Patch(
                "app/ingest.py",
                "            await set_aside(conn, strays)\n",
                '            log.debug("dropped", rows=len(strays))\n',
            ),
        ),
    ),
    Mutant(
        name="flush-drops-what-comes-later",
        breaks="a message whose lane is held at that instant is not written in a later flush, and is answered 200",
        scene="held",
        by=(1,),
        patches=(
            Patch(
                "app/ingest.py",
                '            if verdict == "later":\n'
                "                await asyncio.sleep(wait)\n"
                "                wait = min(2 * wait, LATER_AT_MOST)\n"
                '            elif verdict == "gone" and arrival.person:\n',
                '            if verdict == "gone" and arrival.person:\n',
            ),
        ),
    ),
    Mutant(
        name="echo-answered",
        breaks="what the business wrote itself gets an entry in the lane",
        scene="busy",
        by=(9,),
        patches=(
            Patch(
                "app/messages.py",
                '        return self.direction == "in" and self.kind in ANSWERED\n',
                "        return self.kind in ANSWERED\n",
            ),
        ),
    ),
    Mutant(
        name="status-goes-back",
        breaks="a chunk takes the state of the last status that came",
        scene="busy",
        by=(8,),
        patches=(
            Patch(
                "app/store/statuses.py",
                "    AND CASE WHEN b.rank > 0 THEN b.rank > status_rank(c.state)\n",
                "    AND CASE WHEN b.rank > 0 THEN true\n",
            ),
        ),
    ),
)
