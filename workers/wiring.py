"""How what answers turns is put together, out of rooms and clients that the worker opens and closes. It starts nothing."""

from collections.abc import Callable, Sequence

import httpx
from msgspec import Struct

from app import assistants
from app.assistants import Assistant
from app.directory import Watch
from app.translation.memory import Memory
from workers.answer import Turns
from workers.answering import Answering
from workers.asking import Asking
from workers.breakers import Breakers
from workers.commits import Commits
from workers.deliver import Delivery
from workers.fetching import Fetching
from workers.files import Files
from workers.hearing import Hearing
from workers.opening import Openings
from workers.places import Places
from workers.questions import Questions
from workers.replies import Replies
from workers.sessions import Sessions
from workers.settle import Settling
from workers.spending import Spending
from workers.translations import Translations
from workers.typing import SILENT, Silent, Typing


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
    memory: Memory,
    typing: Typing | Silent = SILENT,
    hosts: Sequence[str] = (),
    assistant: Callable[[str], Assistant] = assistants.assistant,
) -> Turns:
    """What works claimed lanes. `breakers`: those that `delivery` has. `hosts`: where files may lie. `assistant`: by its name."""
    spending = Spending(commits.pool)
    fetching = Fetching(directory, clients.files, clients.outside, hosts=hosts)
    places = Places()  # one for all that ask a tenant's assistants
    asking = Asking(clients.assistants, breakers, assistant=assistant)
    translations = Translations(memory, clients.assistants, breakers, places)
    questions = Questions(Files(fetching), Hearing(commits, fetching, clients.files, breakers))
    answering = Answering(commits, asking, places, questions, translations)
    replies = Replies(commits, spending, answering, typing)
    openings = Openings(commits, sessions)
    settling = Settling(commits, openings, delivery, typing)
    return Turns(commits, openings, delivery, directory, replies, settling, spending)
