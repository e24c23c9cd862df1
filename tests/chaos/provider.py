"""The simulated WhatsApp and assistant of one run, in the rig's own process, and the people who write to it.

It judges nothing: what it saw is handed to the checker.
"""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from time import monotonic

from app.sandbox.limits import Limits
from app.sandbox.numbers import Number, now
from app.sandbox.server import running
from app.sandbox.simulation import Sandbox
from app.sandbox.webhooks import Shipment
from tests.chaos import runs, workload
from tests.chaos.evidence import Asked
from tests.chaos.runs import Run
from tests.chaos.workload import Planned, Webhook

_TOKEN = re.compile(r"tok#([A-Za-z0-9-]+)/\d")


class Provider:
    """Enter it by `simulated`, `open` it once the webs are up, then let people write."""

    def __init__(self, sandbox: Sandbox, run: Run, seed: int, secret: str) -> None:
        self.sandbox = sandbox
        self.planned: list[Planned] = []
        self.asked: list[Asked] = []
        self._run = run
        self._secret = secret
        self._urls: tuple[str, ...] = ()
        self._acknowledged: set[str] = set()
        self._looked_at = 0
        self._canary = re.compile(rf"q{seed}ct\d\dz".encode())

    def open(self, urls: Sequence[str]) -> None:
        """Play the numbers; webhooks go to these URLs from now on."""
        self._urls = tuple(urls)
        for number in range(workload.TENANTS):
            self.sandbox.register(
                Number(
                    phone_number_id=workload.address(number),
                    webhook_url=urls[0],
                    app_secret=self._secret,
                    token=self._secret,
                    ladder=runs.LADDER,
                    redelivery=runs.STATUS_REDELIVERY,
                    tries=runs.FOR_EVER,
                    status_urls=self._urls,
                )
            )
        self.sandbox.meter.limits = Limits(pair=True, scale=100, throughput=80)
        if self._run.provider_faults:
            self.sandbox.faults.chances("send", runs.SENDS)
            self.sandbox.faults.chances("assistant", self._run.answers)
            self.sandbox.faults.statuses = self._run.statuses

    async def traffic(self, hooks: Iterable[Webhook]) -> None:
        """Post the webhooks, each at its time; returns with the last one's first try. Cancel it to end sooner.

        What it has not begun by then counts as never planned.
        """
        epoch, began = now(), monotonic()
        begun: set[str] = set()
        for hook in hooks:
            if (wait := began + hook.at - monotonic()) > 0:
                await asyncio.sleep(wait)
            for item in hook.items:  # two copies of one item may share a webhook
                if item.token not in begun:
                    begun.add(item.token)
                    self.planned.append(item)
                    self.sandbox.ledger.said(item.number, item.id)
                self.sandbox.meter.inbound(item.number, now())
            url, other = self._urls[hook.to % len(self._urls)], self._urls[(hook.to + 1) % len(self._urls)]
            parcel = Shipment(
                url=url,
                app_secret=self._secret,
                body=workload.body(hook, self.sandbox.numbers, epoch),
                kind="inbound",
                ids=tuple(item.token for item in hook.items),
                redelivery=runs.INBOUND_REDELIVERY,
                tries=runs.FOR_EVER,
                others=(other,),
            )
            self.sandbox.courier.spawn(self.sandbox.courier.first_try(parcel))

    def calm(self) -> None:
        """No more faults of sends and of the assistant. What never has a status goes on having none."""
        self.sandbox.faults.chances("send", ())
        self.sandbox.faults.chances("assistant", ())

    @property
    def acknowledged(self) -> int:
        """How many items were ever answered 200."""
        deliveries = self.sandbox.ledger.deliveries
        for delivery in itertools.islice(deliveries, self._looked_at, None):
            if delivery.kind == "inbound" and delivery.status == 200:
                self._acknowledged.update(delivery.ids)
        self._looked_at = len(deliveries)
        return len(self._acknowledged)

    @property
    def quiet(self) -> bool:
        """Every item was answered 200, and so was every status that was to come."""
        waiting = self.sandbox.courier.waiting or self.sandbox.statuses.waiting
        return not waiting and self.acknowledged == len(self.planned)

    def collect(self) -> None:
        """Keep what matters of the assistant's calls and let their bodies go: they are 24 kB each."""
        calls = self.sandbox.assistant.calls
        while calls:
            call = calls.popleft()
            self.asked.append(
                Asked(
                    t=call.t,
                    tokens=tuple(_TOKEN.findall("\n".join(call.question))),
                    outcome=call.outcome,
                    before=call.before,
                    said=call.said,
                    input_tokens=call.input_tokens,
                    output_tokens=call.output_tokens,
                    canaries=tuple(sorted({found.decode() for found in self._canary.findall(bytes(call.body))})),
                )
            )


@asynccontextmanager
async def simulated(run: Run, seed: int, secret: str) -> AsyncIterator[Provider]:
    """A provider that listens on a free port of loopback."""
    async with running(port=0, seed=seed) as sandbox:
        provider = Provider(sandbox, run, seed, secret)
        keeping = asyncio.create_task(_keep_collecting(provider))
        try:
            yield provider
        finally:
            keeping.cancel()


async def _keep_collecting(provider: Provider) -> None:
    while True:
        provider.collect()
        await asyncio.sleep(1.0)
