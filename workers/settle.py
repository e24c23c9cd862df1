"""A turn's end: its answer is committed, its first chunk sent, the others as far as the gates allow. It makes no answer."""

import asyncio
from contextlib import nullcontext
from uuid import UUID, uuid4

import msgspec
import structlog

from app import metrics
from app.errors import DatabaseUnavailable
from app.log import fingerprint
from app.store.lanes import Release
from app.store.settlements import Settlement
from app.store.turns import Chunk, Turn
from workers import formatting
from workers.answering import Reply
from workers.commits import Commits
from workers.deliver import Delivery, Lane
from workers.opening import Opened, Openings
from workers.questions import newest
from workers.spending import Spent
from workers.typing import Silent, Typing

log = structlog.get_logger(__name__)


class Settling:
    """`settle` a turn with its reply."""

    def __init__(self, commits: Commits, openings: Openings, delivery: Delivery, typing: Typing | Silent) -> None:
        """`openings`: what remembers the conversation from here on. `typing`: who tells people that they were read."""
        self._commits = commits
        self._openings = openings
        self._delivery = delivery
        self._typing = typing

    async def settle(
        self,
        lane: Lane,
        found: Opened,
        turn: Turn,
        version: int | None,
        reply: Reply,
        spent: Spent,
        before: Chunk | None,
    ) -> Release | None:
        """Commit the answer, send its first chunk, and go on as far as the gates allow. None: what was asked has changed.

        `version`: that it was made at; None: it is settled at whatever stands. `before`: the last chunk that is done.

        Raises:
            DatabaseUnavailable: nobody knows what was committed; the lane is given back as it is.
        """
        pieces = [(uuid4(), piece) for piece in await formatting.pieces(reply.text)]
        # A gate may have opened while the assistant wrote: whoever opened it has made the lane due again.
        gate_open = before is None or before.opens_in <= 0
        wanted = bool(pieces) and gate_open
        with self._delivery.place(lane) if wanted else nullcontext() as call:
            settlement = Settlement(
                claim=lane.claim,
                version=version,
                turn=turn,
                outcome=reply.outcome,
                body=reply.text,
                pieces=pieces,
                send=call is not None,
                correlation=lane.correlation,
                input_tokens=spent.input_tokens,
                output_tokens=spent.output_tokens,
                model=reply.model,
                ai_ms=lane.watch.ai_ms or None,
                marks=reply.marks,
            )
            try:
                settled = await lane.watch.db(self._commits.settle(settlement))
            except (DatabaseUnavailable, asyncio.CancelledError):
                if call is not None:
                    self._delivery.disclaim(lane, pieces[0][0], 1)
                raise
            if settled.fence == "changed":
                return None
            if settled.fence in ("lost", "paused"):  # or not ours: whoever has the lane next sees how it stands
                return Release(claim=lane.claim, done_seq=None, again_in=0.0)
            metrics.turn(reply.outcome)
            if version is not None:
                self._openings.settled(lane.claim, found, turn, settled, reply.text)
            chunks = [_fresh(turn, no, id, body) for no, (id, body) in enumerate(pieces, 1)]
            send = call is not None and settled.fence == "sending"  # if the number may be sent from now
            if send and call is not None:
                state = await self._delivery.send(lane, chunks[0], 1, call)
                chunks[0] = msgspec.structs.replace(
                    chunks[0],
                    state=state,
                    attempt=1,
                    opens_in=self._delivery.order_wait if state in ("accepted", "sent") else 0.0,
                )
        if not pieces:
            release = Release(claim=lane.claim, done_seq=turn.last_seq)
        elif send and chunks[0].state in ("ready", "sending"):  # not now, or overtaken: the next opening tells
            release = Release(claim=lane.claim, done_seq=None, again_in=0.0)
        else:
            release = await self._delivery.entry(lane, before, chunks)
        if pieces and not reply.seen:  # behind the answer, so never in its way
            self._typing.read(lane.tenant, lane.channel, newest(found.opening))
        log.info(
            "turn",
            tenant=lane.tenant.slug,
            outcome=reply.outcome,
            correlation=lane.correlation,
            turn=turn.id,
            to=fingerprint(lane.to.value),
            messages=turn.last_seq - turn.first_seq + 1,
            chunks=len(pieces),
            input_tokens=spent.input_tokens,
            output_tokens=spent.output_tokens,
            **({} if found.stale_s is None else {"stale_s": round(found.stale_s, 1)}),
            **lane.watch.stages(fast=reply.outcome == "intent"),
        )
        return release


def _fresh(turn: Turn, no: int, id: UUID, body: str) -> Chunk:
    return Chunk(
        id=id,
        seq=turn.last_seq,
        no=no,
        body=body,
        state="ready",
        attempt=0,
        due_in=0.0,
        opens_in=0.0,
        refusals=0,
        holds=0,
        again=False,
        doubts=0,
        doubt_for=0.0,
        quiet_for=0.0,
        flowing=False,
    )
