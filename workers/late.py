"""What comes too late: a turn before anybody is asked, and a finished answer that could not be sent. It sends nothing.

docs/lanes.md, "Late messages".
"""

from collections.abc import Sequence
from datetime import timedelta

import structlog

from app.alerts import alert
from app.directory import Channel, Tenant
from app.store.lanes import Claim
from app.store.overdue import Overdue
from app.store.settlements import Ending
from app.store.turns import Chunk, Opening
from workers import formatting
from workers.questions import newest_at

log = structlog.get_logger(__name__)

# What an apology stands before; a failure says that it is sorry already.
ANSWERS: tuple[Ending, ...] = ("answered", "intent", "told")
# Whatever else has words is as stale as an answer, but for a notice: that is never too late.
STALE: tuple[Ending, ...] = (*ANSWERS, "failed", "parked", "limited")


def too_late(channel: Channel, opening: Opening) -> bool:
    """Whether the answer comes later than the channel's own: asked again at each claim, since a channel may be held for days."""
    return channel.late != "answer" and opening.now - newest_at(opening) > timedelta(hours=channel.answer_within_hours)


def notice(tenant: Tenant, channel: Channel, opening: Opening) -> str:
    """What the person is told in place of an answer; "": nothing, or they were told since they wrote."""
    told = opening.noticed_at
    due = channel.late == "notice" and (told is None or newest_at(opening) > told)
    return tenant.texts.notice if due else ""


async def overdue(
    claim: Claim, tenant: Tenant, channel: Channel, opening: Opening, chunks: Sequence[Chunk]
) -> Overdue | None:
    """What becomes of a settled answer that comes too late by now; None: it is sent as it is.

    One that has begun, or may have, is ended: its beginning was in time. A person's text has no turn, and is never too late.
    """
    turn = opening.turn
    begun = any(chunk.state != "ready" or chunk.doubts for chunk in chunks) or chunks[0].no < 1
    if turn is None or begun or not too_late(channel, opening):
        return None
    sorry, instead = tenant.texts.apology, notice(tenant, channel, opening)
    apologises = channel.late == "apologise"
    words = await formatting.pieces(sorry if apologises else instead)
    if apologises and (not words or chunks[0].body.startswith(sorry)):
        return None
    return Overdue(
        claim=claim,
        turn_id=turn.id,
        seq=chunks[0].seq,
        outcomes=ANSWERS if apologises else STALE,
        words=words,
        aside=not apologises,
        notices=bool(instead),
        correlation=opening.correlation,
    )


def told_aside(claim: Claim, tenant: Tenant, opening: Opening, chunks: Sequence[Chunk]) -> None:
    """Tell the operator of an answer that was put aside, and is theirs to send now that its entry ends.

    Before that is committed: whoever has to end it again tells of it again.
    """
    if opening.turn is None or not any(chunk.late for chunk in chunks):
        return
    alert(
        log.error,
        "answer_too_late",
        "an answer could not be sent in time",
        tenant=tenant.slug,
        conversation=claim.conversation_id,
        turn=opening.turn.id,
        correlation=opening.correlation,
    )
