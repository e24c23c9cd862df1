"""The table of runs and sizes (FAULTS.md section 2), and what the processes are told. It runs nothing."""

from typing import Literal

from msgspec import Struct

from app.sandbox.faults import Chance, Fault, StatusFaults
from app.sandbox.numbers import Ladder
from tests.chaos import workload
from tests.chaos.workload import Shape

Policy = Literal["resend", "park"]

ENDPOINT = "chaos"
FAILURE = "The assistant could not answer."
PARTIAL = "(The assistant was cut short.)"
# As Fleet tells them to the processes (RIG.md).
SEND_TIMEOUT = 4.0
SILENCE = 3.0
ORDER_WAIT = 2.0
WORKERS = 2
# app/assistants/whole.py: tries of a call; calls that one answer is made of; characters that are worth sending.
ASSISTANT_TRIES, ANSWER_PARTS, SHORTEST = 4, 3, 80
# Characters of a stream after which it is read no further (app/assistants/parts.py).
LONGEST = 100_000
DRAIN_SECONDS = 120.0

# Per attempt. p, the chance that a send is accepted and its answer lost, is 0.245.
SENDS = (
    Chance(fault=Fault(kind="no_answer", seconds=60), chance=0.20),
    Chance(fault=Fault(kind="http_500_json"), chance=0.05),
    Chance(fault=Fault(kind="http_500_html"), chance=0.03),
    Chance(fault=Fault(kind="http_500_after_accept"), chance=0.02),
    Chance(fault=Fault(kind="rst_before_accept"), chance=0.025),
    Chance(fault=Fault(kind="rst_after_accept"), chance=0.025),
    Chance(fault=Fault(kind="http_429", seconds=(1, 5)), chance=0.02),
    Chance(fault=Fault(kind="slow", seconds=(1, 3)), chance=0.126),  # a fifth of the 63 % that are well
)
ANSWERS = (
    Chance(fault=Fault(kind="slow", seconds=(2, 8)), chance=0.10),
    Chance(fault=Fault(kind="http_429"), chance=0.025),
    Chance(fault=Fault(kind="http_529"), chance=0.025),
    Chance(fault=Fault(kind="cut"), chance=0.02),
    Chance(fault=Fault(kind="empty"), chance=0.01),
    Chance(fault=Fault(kind="max_tokens"), chance=0.02),
)
# The first echo: lognormal, median 150 ms, cut at half of the silence. A status not answered 200 comes again within it.
LADDER = Ladder(sent=0.15, delivered=0.2, read=0.4, sigma=0.8, cut=SILENCE / 2)
STATUS_REDELIVERY = (0.5, 1.0, 1.5)
INBOUND_REDELIVERY = (0.5, 1.0, 2.0, 4.0)
FOR_EVER = 1_000_000


class Run(Struct, frozen=True, kw_only=True):
    """What is different in a run. `stop` is how long all statuses are held back, as a share of the load's time."""

    name: str
    what: str
    provider_faults: bool = True
    answers: tuple[Chance, ...] = ANSWERS
    monkey: bool = True
    crashes: bool = False
    statuses: StatusFaults = StatusFaults(triple=0.1, reorder=0.2)
    stop: float = 0.0
    policies: tuple[Policy, ...] = ("resend",)


class Size(Struct, frozen=True, kw_only=True):
    """How much of it. `times` is how often each crash point is passed in run P; `seeds` how many runs a soak is.

    The provider's own faults outlast all others by `calm_after` seconds; invariant 4 is reckoned from their end.
    """

    shape: Shape
    times: int
    seeds: int = 1
    stop: float = 60.0
    calm_after: float = 15.0


RUNS = {
    run.name: run
    for run in (
        Run(name="A", what="every fault; each status comes in the end"),
        Run(
            name="B",
            what="every fault; one accepted send in a hundred never echoes a status",
            statuses=StatusFaults(drop=0.01, triple=0.1, reorder=0.2),
            policies=("resend", "park"),
        ),
        Run(name="C", what="every fault; statuses stop for a while", stop=0.4, policies=("resend", "park")),
        Run(name="E", what="no faults: the baseline for latency", provider_faults=False, monkey=False),
        Run(name="P", what="a kill at each crash point", monkey=False, crashes=True),
    )
}
SIZES = {
    # The last answers come half a minute after the last fault: more to one person would only take longer.
    "smoke": Size(shape=Shape(inbound=1_000, conversations=700, busiest=5, seconds=25), times=2, stop=10, calm_after=5),
    "full": Size(shape=Shape(inbound=10_000, conversations=2_000, busiest=40, seconds=300), times=3),
    "soak": Size(shape=Shape(inbound=10_000, conversations=2_000, busiest=40, seconds=300), times=50, seeds=12),
}
# Run P's people write for as long as it takes; one wave of them after the other. Enough that each crash point is soon
# reached, little enough that it is answered between two crashes.
WAVE = Shape(inbound=240, conversations=160, busiest=3, seconds=30, parts={1: 0.6, 2: 0.4})

_CONFIGURATION = """
[endpoints.{endpoint}]
kind = "cloud"
secrets = ["env:CHAOS_SECRET"]
verify_token = "env:CHAOS_SECRET"
"""
# No loop brake: its own run shows it. Nothing is too late: what is late is what is tested.
_TENANT = """
[tenants.{slug}]
name = "Tenant {slug}"
in_doubt = "{policy}"

[tenants.{slug}.assistant]
provider = "anthropic"
base_url = "{assistant_url}"
model = "sandbox"
api_key = "env:CHAOS_SECRET"
system = "You answer for {canary}."
history_messages = 4

[tenants.{slug}.texts]
failure = "{failure}"
partial = "{partial}"

[tenants.{slug}.limits]
replies_per_conversation_per_minute = 0

[tenants.{slug}.channels.main]
endpoint = "{endpoint}"
address = "{address}"
base_url = "{graph_url}"
token = "env:CHAOS_SECRET"
late = "answer"
"""


def configuration(seed: int, policy: Policy, *, assistant_url: str, graph_url: str) -> str:
    """What is given to `qasid apply`."""
    tenants = (
        _TENANT.format(
            slug=workload.tenant(number),
            policy=policy,
            assistant_url=assistant_url,
            canary=workload.canary(seed, workload.tenant(number)),
            failure=FAILURE,
            partial=PARTIAL,
            endpoint=ENDPOINT,
            address=workload.address(number),
            graph_url=graph_url,
        )
        for number in range(workload.TENANTS)
    )
    return _CONFIGURATION.format(endpoint=ENDPOINT) + "".join(tenants)
