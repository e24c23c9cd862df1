"""Answers wake-ups: SAQ's job `drain`. Whatever becomes of the job (lost, doubled, retried, aborted) changes nothing."""

from typing import Any
from uuid import UUID

import structlog

from app import metrics
from app.store.lanes import LaneId
from workers.lane import Lanes

log = structlog.get_logger(__name__)


async def drain(context: dict[str, Any], /, **said: object) -> None:
    """Look for due lanes now; return once those that the wake-up names are worked off.

    So SAQ's page shows who is being answered, and since when. It only waits: who cancels it, cancels no turn. What it
    says beside `lanes`, or names there that is no lane, is told of and left.
    """
    named = said.pop("lanes", ())
    named = named if isinstance(named, list) else [named] if named else []
    lanes = [lane for lane in map(_key, named) if lane is not None]
    if said or len(lanes) < len(named):
        log.warning("a wake-up names what is no lane", ignored=len(said) + len(named) - len(lanes))
    metrics.wake_up("answered", len(lanes))
    room: Lanes = context["lanes"]
    await room.done(lanes)


def _key(lane: object) -> LaneId | None:
    try:
        tenant, conversation = str(lane).split("/")
        return UUID(tenant), UUID(conversation)
    except ValueError:
        return None
