"""What brings the spool in, where that needs no database."""

import asyncio
import errno
import os
from typing import Any, NoReturn, cast

import pytest
from structlog.testing import capture_logs

from app import backlog
from app.backlog import Backlog

pytestmark = pytest.mark.anyio


class Unreadable:
    """A spool whose folder has gone away."""

    holds_anything = True

    def __init__(self) -> None:
        self.tried = 0
        self.enough = asyncio.Event()

    async def replay(self, *_: object, **__: object) -> NoReturn:
        self.tried += 1
        if self.tried == 5:
            self.enough.set()
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


class Well:
    """A breaker that lets all through."""

    allows_writes = True


async def test_a_folder_that_cannot_be_read_is_told_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again for as long as that lasts; the log has it once in a while."""
    monkeypatch.setattr(backlog, "LOOK", 0.01)
    monkeypatch.setattr(backlog, "AGAIN", 0.01)
    each, unused = Unreadable(), cast(Any, None)
    with capture_logs() as lines:
        async with Backlog(cast(Any, each), cast(Any, Well()), lambda: cast(Any, Well()), unused, unused):
            async with asyncio.timeout(5):
                await each.enough.wait()
    assert [line["event"] for line in lines] == ["the spool cannot be read"]
