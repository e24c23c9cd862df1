"""Answers wake-ups: SAQ's job `drain`. Whatever becomes of the job (lost, doubled, retried, aborted) changes nothing."""

from typing import Any
from uuid import UUID

from app import metrics
from app.store.lanes import LaneId
from workers.lane import Lanes


async def drain(context: dict[str, Any], *, lanes: list[str]) -> None:
    """Look for due lanes now; return once those that the wake-up names are worked off.

    So SAQ's page shows who is being answered, and since when.
    """
    metrics.wake_up("answered", len(lanes))
    room: Lanes = context["lanes"]
    await room.done(_key(lane) for lane in lanes)


def _key(lane: str) -> LaneId:
    tenant, conversation = lane.split("/")
    return UUID(tenant), UUID(conversation)
