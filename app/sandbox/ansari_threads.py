"""The accounts and threads of the simulated ansari-backend, in memory. It answers nobody itself."""

import asyncio
import uuid
from collections.abc import Callable

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A row as `history` shows it: the first text of its content, or the content of a row without one."""

    id: str
    role: str
    content: str | list[dict[str, object]]


class Thread(msgspec.Struct, kw_only=True):
    """A person's thread. `updated`: the order of the last writes."""

    id: str
    person: str
    title: str
    rows: list[Row] = []
    updated: int = 0


class Threads:
    """Who is registered, and what was said. `key`: the only API key that is taken; None: any."""

    def __init__(self) -> None:
        self._timers: list[asyncio.TimerHandle] = []
        self.clear()

    def clear(self) -> None:
        """Forget all, and what was still to be stored."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self.key: str | None = None
        self.people: dict[str, str] = {}
        """Their preferred language, by phone number."""
        self.registered = 0
        """How often an account was made, of the same person too: the backend does not mind."""
        self.threads: dict[str, Thread] = {}
        self._writes = 0

    def register(self, person: str, language: str) -> str:
        """Make an account; its id."""
        self.people[person] = language
        self.registered += 1
        return uuid.uuid4().hex[:24]

    def begin(self, person: str, title: str) -> Thread:
        """A new thread."""
        thread = Thread(id=uuid.uuid4().hex[:24], person=person, title=title, updated=self._write())
        self.threads[thread.id] = thread
        return thread

    def last(self, person: str) -> Thread | None:
        """The one that was last written to."""
        return max(
            (each for each in self.threads.values() if each.person == person), key=lambda it: it.updated, default=None
        )

    def get(self, thread_id: str, person: str) -> Thread | None:
        """The thread, if it is this person's."""
        thread = self.threads.get(thread_id)
        return thread if thread is not None and thread.person == person else None

    def add(self, thread: Thread, role: str, content: str | list[dict[str, object]]) -> None:
        """One more row."""
        thread.rows.append(Row(id=uuid.uuid4().hex[:24], role=role, content=content))
        thread.updated = self._write()

    def later(self, seconds: float, write: Callable[[], None]) -> None:
        """Write after so long, whoever has gone meanwhile."""
        self._timers.append(asyncio.get_running_loop().call_later(seconds, write))

    def said(self, person: str, role: str = "user") -> list[str]:
        """All that was said in words in this person's threads by one role, thread after thread."""
        rows = (row for each in self.threads.values() if each.person == person for row in each.rows)
        return [row.content for row in rows if row.role == role and isinstance(row.content, str)]

    def _write(self) -> int:
        self._writes += 1
        return self._writes
