"""Answers wake-ups: SAQ's job `drain`. Whatever becomes of the job (lost, doubled, retried, aborted) changes nothing."""

from typing import Any
from uuid import UUID

from app import metrics
from workers.lane import Lanes


async def drain(context: dict[str, Any], *, lanes: list[str]) -> None:
    """Look for due lanes now; return once those that the wake-up names are worked off, so that SAQ's page shows who is

    being answered and since when.
    """
    metrics.wake_up("answered", len(lanes))
    room: Lanes = context["lanes"]
    await room.done(UUID(lane) for lane in lanes)
