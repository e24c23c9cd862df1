"""People who write to the simulated WhatsApp and wait for their answers; Qasid, whole, on the other side.

The sandbox runs in this process, on the loop that `qasid sandbox` runs it on: its ledger is at hand, and steering it
costs no requests.
"""

import asyncio
import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator

from msgspec import Struct

from app.sandbox.assistant_calls import Pace
from app.sandbox.ledger import Arrival, Delivery
from app.sandbox.numbers import Number
from app.sandbox.people import Spoken
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from tests.bench.figures import BenchFailed
from tests.bench.installation import ADDRESS, Installation, say

HELLO = "hello"  # an intent of installation.CONFIGURATION
_QUESTION = re.compile(r"question (\d+)\b")


class Asked(Struct, frozen=True, kw_only=True):
    """A message and what became of it: its webhook's first POST, and the send that reached the provider."""

    person: str
    text: str
    delivery: Delivery
    answer: Arrival

    @property
    def ms(self) -> float:
        """From the webhook's start to the arrival of our send."""
        return (self.answer.t - self.delivery.t) * 1000


class People:
    """Everybody who writes in one bench. A question is never asked twice, so its answer tells which it belongs to."""

    def __init__(self, sandbox: Sandbox, installation: Installation, *, web: int, worker: int) -> None:
        """`web`, `worker`: their pids."""
        self.sandbox = sandbox
        self.at = installation
        self.web = web
        self.worker = worker
        self.asked: list[Asked] = []
        self._asked_of: Counter[str] = Counter()
        self.redelivered = 0
        self._questions = 0
        self._read = 0
        self._last: dict[str, Arrival] = {}

    def question(self) -> str:
        """A text that only the assistant can answer."""
        self._questions += 1
        return f"question {self._questions}"

    async def ask(self, person: str, text: str, *, patience: float = 30.0) -> Asked:
        """Write, and wait for the answer. One message of a person at a time.

        Raises BenchFailed: no answer came within `patience` seconds.
        """
        self._asked_of[person] += 1
        said = await self.sandbox.say(Spoken(phone_number_id=ADDRESS, sender=person, text=text, name="A person"))
        self.redelivered += said.status != 200  # the sandbox sends it again, as Meta does
        if not await self.sandbox.ledger.tally.reach(person, self._asked_of[person], patience):
            raise BenchFailed(f"a message was not answered within {patience:g} s")
        asked = Asked(person=person, text=text, delivery=said.deliveries[0], answer=self._latest[person])
        self.asked.append(asked)
        return asked

    @property
    def _latest(self) -> dict[str, Arrival]:
        """Each person's last message of ours, kept up by reading on where the last look ended."""
        arrivals = self.sandbox.ledger.arrivals
        for arrival in arrivals[self._read :]:
            if arrival.accepted:
                self._last[arrival.recipient] = arrival
        self._read = len(arrivals)
        return self._last

    async def ladders_climbed(self, *, patience: float = 30.0) -> float:
        """Wait until every status has come and moved its chunk to `read`; the time of the last one's acknowledgement.

        Raises BenchFailed: it was not so within `patience` seconds.
        """
        unread = "SELECT count(*) FROM chunks WHERE state <> 'read'"
        for _ in range(int(patience / 0.1)):
            if not self.sandbox.statuses.waiting and self.at.admin.execute(unread.encode()).fetchone() == (0,):
                return max(d.t + d.ack_ms / 1000 for d in self.sandbox.ledger.deliveries if d.kind == "statuses")
            await asyncio.sleep(0.1)
        raise BenchFailed(f"the statuses have not all had their effect within {patience:g} s")

    def check(self) -> None:
        """Raise BenchFailed unless every message was answered exactly once, its asker with the right words."""
        got: dict[str, list[str]] = defaultdict(list)
        for arrival in self.sandbox.ledger.arrivals:
            if not arrival.accepted or arrival.attempt:
                raise BenchFailed(f"a send was {arrival.outcome}, at attempt {arrival.attempt + 1}")
            got[arrival.recipient].append(arrival.text)
        if (counts := Counter({person: len(texts) for person, texts in got.items()})) != self._asked_of:
            wrong = sum(counts[p] != self._asked_of[p] for p in counts | self._asked_of)
            raise BenchFailed(f"{wrong} people were not answered as often as they asked")
        for asked in self.asked:
            wanted = _QUESTION.findall(asked.text)
            if sum(_QUESTION.findall(text) == wanted for text in got[asked.person]) < 1:
                raise BenchFailed("a question has no answer of its own")


@contextlib.asynccontextmanager
async def people(installation: Installation, *, pace: Pace) -> AsyncIterator[People]:
    """The sandbox, one number in it, `qasid web` and `qasid worker`, all of them ready."""
    async with running() as sandbox:
        installation.configure(provider_url=sandbox.url)
        web = installation.start_web()
        worker = installation.start_worker()
        sandbox.register(
            Number(
                phone_number_id=ADDRESS,
                webhook_url=installation.webhook_url,
                app_secret=installation.secret,
                token=installation.secret,
            )
        )
        sandbox.assistant.pace = pace
        say("first words …")
        everybody = People(sandbox, installation, web=web, worker=worker)
        for number in range(20):
            await everybody.ask(f"15559{number:06d}", everybody.question())
            await everybody.ask(f"15559{number:06d}", HELLO)
        yield everybody
