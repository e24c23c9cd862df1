"""How what answers turns is put together, out of rooms and clients that the worker opens and closes. It starts nothing."""

from collections.abc import Sequence

import httpx
from msgspec import Struct

from app.directory import Watch
from workers.answer import Turns
from workers.answering import Answering
from workers.asking import Asking
from workers.breakers import Breakers
from workers.commits import Commits
from workers.deliver import Delivery
from workers.questions import Questions
from workers.replies import Replies
from workers.sessions import Sessions
from workers.spending import Spending
from workers.typing import Typing


class Clients(Struct, frozen=True, kw_only=True):
    """Who is asked over HTTP. `outside` alone may be led by URLs that came in data: it reaches public addresses only."""

    assistants: httpx.AsyncClient
    files: httpx.AsyncClient
    outside: httpx.AsyncClient


def turns(
    commits: Commits,
    delivery: Delivery,
    directory: Watch,
    sessions: Sessions,
    breakers: Breakers,
    clients: Clients,
    *,
    typing: Typing | None = None,
    hosts: Sequence[str] = (),
) -> Turns:
    """What works claimed lanes. `breakers`: those that `delivery` has. `hosts`: where files may lie."""
    spending = Spending(commits.pool)
    questions = Questions(commits, directory, clients.files, clients.outside, hosts=hosts)
    answering = Answering(commits, spending, Asking(clients.assistants, breakers), questions)
    return Turns(commits, delivery, directory, sessions, Replies(spending, answering, typing), typing)
