"""Statuses that are wrong, late, early or repeated, at the door: answered 200, kept, applied only where they are right.

The chunks are real ones: a person wrote, a worker sent, and a provider of this file took down the key that was sent.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import pytest
from aiohttp import web
from msgspec import Struct

import workers.main
from app.settings import Settings
from tests import cloud_bodies as cloud
from tests import receiving
from tests.cloud_bodies import Json
from tests.conftest import Database
from tests.receiving import KEY, Receiver, alerts

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

ALERTS = ("foreign_key", "foreign_channel", "chunk_failed", "chunk_parked", "quarantine")
PARTS = ["first " * 500, "second " * 300]
FILE = (
    receiving.META
    + receiving.OTHER
    + """
[tenants.noor]
name = "Noor"
intents = [{{ match = ["short"], reply = "The answer." }}, {{ match = ["long"], reply = "{long}" }}]
[tenants.noor.channels.main]
endpoint = "meta"
address = "1001"
base_url = "{url}"
token = "env:TOKEN"
[tenants.noor.channels.second]
endpoint = "meta"
address = "1002"
base_url = "{url}"
token = "env:TOKEN"
[tenants.amal]
name = "Amal"
[tenants.amal.channels.main]
endpoint = "other"
address = "2001"
base_url = "{url}"
token = "env:TOKEN"
"""
)


class Sent(Struct, frozen=True):
    """A POST that the provider took: our key, its own id, to whom."""

    key: str
    wamid: str
    to: str

    @property
    def chunk(self) -> UUID:
        return UUID(self.key.partition(":")[0])


class Provider:
    """Takes every text and says so once `answering` is set; with `deaf` it hangs up instead."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[Sent] = asyncio.Queue()
        self.count = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.deaf = False

    async def take(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked.get("status") == "read":
            return web.json_response({"success": True})
        self.count += 1
        sent = Sent(asked["biz_opaque_callback_data"], f"wamid.SENT{self.count}", asked["to"].lstrip("+"))
        self.taken.put_nowait(sent)
        await self.answering.wait()
        if self.deaf:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"messages": [{"id": sent.wamid}]})

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/{address}/messages", self.take)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


class Yard(Struct):
    """Two web processes and a worker on one database; the provider."""

    doors: list[Receiver]
    provider: Provider
    people: Any

    async def sent(self, word: str = "short") -> Sent:
        """Somebody new writes; what the provider was handed for them."""
        who = next(self.people)
        question = cloud.text(word, timestamp=str(int(time.time())), **{"from": who})
        assert (await self.doors[0].post(cloud.webhook(question))).status_code == 200
        async with asyncio.timeout(10):
            return await self.provider.taken.get()

    async def accepted(self, word: str = "short") -> Sent:
        """The same, once its acceptance is on record."""
        sent = await self.sent(word)
        await self.until("SELECT state = 'accepted' FROM chunks WHERE id = %s", sent.chunk)
        return sent

    async def report(
        self, *statuses: Json, address: str = "1001", endpoint: str = "meta", door: int = 0, times: int = 1
    ) -> None:
        """One webhook with these statuses, so often at once. Nothing but 200 will do."""
        body = cloud.webhook(address=address, statuses=list(statuses))
        answers = await asyncio.gather(*(self.doors[door].post(body, endpoint=endpoint) for _ in range(times)))
        assert [answer.status_code for answer in answers] == [200] * times

    def state(self, sent: Sent) -> tuple[str, str]:
        """The state of its chunk and of its first attempt."""
        [found] = self.doors[0].execute(
            "SELECT c.state, a.state FROM chunks c JOIN attempts a ON (a.tenant_id, a.chunk_id) = (c.tenant_id, c.id) "
            "WHERE c.id = %s AND a.n = 1",
            sent.chunk,
        )
        return found[0], found[1]

    def kept(self, sent: Sent) -> dict[str, bool]:
        """Each status that is kept of it, and whether it was applied."""
        return dict(self.doors[0].execute("SELECT status, applied FROM statuses WHERE chunk_id = %s", sent.chunk))

    def quarantined(self) -> set[bytes]:
        return {bytes(raw) for [raw] in self.doors[0].execute("SELECT raw FROM quarantine")}

    async def until(self, query: str, *values: object) -> None:
        """Return once the query's only value is true."""
        async with asyncio.timeout(10):
            while not self.doors[0].one(query, *values):
                await asyncio.sleep(0.01)

    async def at_rest(self) -> None:
        """Return once no lane has anything to do: whatever would be sent has been."""
        await self.until("SELECT bool_and(done_seq = head_seq AND owner IS NULL) FROM lanes")


def of(sent: Sent, said: str = "delivered", **more: Any) -> Json:
    """A status of this send; `more` replaces keys."""
    return cloud.status(sent.wamid, said, **({"recipient_id": sent.to, "biz_opaque_callback_data": sent.key} | more))


def raised() -> dict[str, float]:
    """How often somebody was called, for what matters here."""
    return {kind: alerts(kind) for kind in ALERTS}


@pytest.fixture
async def yard(database: Database, tmp_path: Path) -> AsyncIterator[Yard]:
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(Provider())
        await receiving.configure(database.url, tmp_path, FILE.format(url=provider.url, long="".join(PARTS)))
        doors = [
            await stack.enter_async_context(receiving.process(database.url, database.superuser_url)) for _ in range(2)
        ]
        stop = asyncio.Event()
        # Longer than any test: what is sent on is sent on for a status, never because time has passed.
        settings = Settings(database_url=database.url, secret_key=KEY, worker_metrics_port=0, order_wait_seconds=60.0)
        working = asyncio.create_task(workers.main.work(settings, stop))

        async def end() -> None:
            stop.set()
            await working

        stack.push_async_callback(end)
        yield Yard(doors, provider, (f"1555{n:07d}" for n in itertools.count()))


# --- whose it is ---


async def test_a_status_moves_only_what_its_sender_may_speak_for(yard: Yard) -> None:
    """Of an unknown chunk, from another tenant, for another channel, for a foreign address: kept, told, not applied.

    Nor do they open the gate for the second part, and what stands beside them in the webhook is applied.
    """
    sent, neighbour = await yard.accepted("long"), await yard.accepted()
    before = raised()
    stranger = of(sent, biz_opaque_callback_data=f"{uuid4()}:1")
    await yard.report(stranger, of(neighbour))
    await yard.report(of(sent, "read"), address="2001", endpoint="other")
    await yard.report(of(sent, "failed"), address="1002")
    forged = of(sent, "played")
    await yard.report(forged, address="2001")  # the endpoint meta has no such channel
    assert yard.state(sent) == ("accepted", "accepted")
    assert yard.state(neighbour) == ("delivered", "delivered")
    assert yard.kept(sent) == {"read": False, "failed": False}
    assert yard.quarantined() == {cloud.encode(forged)}
    gate = "SELECT run_at > qasid_now() FROM lanes JOIN chunks USING (tenant_id, conversation_id) WHERE id = %s"
    assert yard.doors[0].one(gate, sent.chunk)
    assert yard.provider.taken.empty()
    after = raised()
    assert {kind: after[kind] - before[kind] for kind in ALERTS if after[kind] != before[kind]} == {
        "foreign_key": 3,
        "foreign_channel": 1,
    }
    await yard.report(of(sent))
    async with asyncio.timeout(10):
        assert (await yard.provider.taken.get()).to == sent.to


async def test_a_key_of_a_wrong_form_is_nobodys(yard: Yard) -> None:
    """None, another system's, a broken one of ours, an attempt that never was: kept, nothing moves, no error."""
    sent = await yard.accepted()
    keys = [
        None,
        "",
        "order-17",
        '{"order": 17}',
        "\0",
        "🔑:1",
        ":1",
        f"{sent.chunk}",
        f"{sent.chunk}:",
        f"{sent.chunk}:one",
        f"{sent.chunk}:١",
        f"{sent.chunk}:1.0",
        f"{sent.chunk}:-1",
        f"{sent.chunk}:1:1",
        f" {sent.chunk}:1",
        f"{sent.chunk}:0",
        f"{sent.chunk}:2",
        f"{sent.chunk}:999999999",
        f"{sent.chunk}:99999999999999999999",
        f"{sent.chunk}:1" + "0" * 600,
        "x" * 100_000,
    ]
    for n, key in enumerate(keys):
        await yard.report(of(sent, timestamp=str(int(cloud.AT) + n), biz_opaque_callback_data=key))
    assert yard.state(sent) == ("accepted", "accepted")
    rows = yard.doors[0].execute("SELECT applied FROM statuses")
    assert rows == [(False,)] * len(keys)
    assert yard.quarantined() == set()
    # What is no string cannot be read as one: it is set aside.
    odd = [of(sent, biz_opaque_callback_data=value) for value in (17, 1.5, True, ["a"], {"a": 1})]
    for status in odd:
        await yard.report(status)
    assert yard.quarantined() == {cloud.encode(status) for status in odd}
    assert yard.state(sent) == ("accepted", "accepted")


# --- when it comes ---


async def test_a_status_before_the_posts_own_answer_stands(yard: Yard) -> None:
    """It is applied while the POST is under way; the answer takes nothing back, and nothing is sent twice."""
    for count, said in enumerate(("sent", "delivered", "played", "failed"), 1):
        yard.provider.answering.clear()
        sent = await yard.sent()
        assert yard.state(sent) == ("sending", "sending")
        await yard.report(of(sent, said))
        assert yard.state(sent) == (said, said)
        yard.provider.answering.set()
        await yard.at_rest()
        assert yard.state(sent) == (said, said)
        assert yard.doors[0].one("SELECT provider_id FROM attempts WHERE chunk_id = %s", sent.chunk) == sent.wamid
        assert yard.provider.count == count


async def test_a_status_spares_a_doubtful_chunk_its_second_send(yard: Yard) -> None:
    """Whether it comes before the connection breaks or after: what the provider has is not sent again."""
    yard.provider.deaf = True
    for count, (said, first) in enumerate(itertools.product(("sent", "read"), (True, False)), 1):
        yard.provider.answering.clear()
        sent = await yard.sent()
        if first:
            await yard.report(of(sent, said))
        yard.provider.answering.set()
        if not first:
            await yard.until("SELECT state = 'in_doubt' FROM chunks WHERE id = %s", sent.chunk)
            await yard.report(of(sent, said))
        await yard.at_rest()
        assert yard.state(sent) == (said, said)
        assert yard.provider.count == count


async def test_a_status_from_another_time_counts_unless_it_is_from_the_future(yard: Yard) -> None:
    """Nothing is ordered by the provider's time. One more than five minutes ahead is not believed, but kept."""
    now = int(time.time())
    for stamp in ("1", 1, "0000000001", str(now - 10**8), str(now + 200)):
        sent = await yard.accepted()
        await yard.report(of(sent, timestamp=stamp))
        assert yard.state(sent) == ("delivered", "delivered"), stamp
    late = await yard.accepted()
    await yard.report(of(late, "read", timestamp=str(now)), of(late, "sent", timestamp=str(now + 100)))
    assert yard.state(late) == ("read", "read")
    sent = await yard.accepted()
    future = [str(now + 1000), now + 10**6, "9" * 12, "9" * 400, 10**30]
    stamps = [*future, "0", 0, -1, "-1", "", "soon", "1e9", 1.5, None]
    odd = [of(sent, timestamp=stamp) for stamp in stamps]
    for status in odd:
        await yard.report(status)
    assert yard.quarantined() == {cloud.encode(status) for status in odd}
    assert yard.state(sent) == ("accepted", "accepted")
    await yard.report(of(sent))
    assert yard.state(sent) == ("delivered", "delivered")


# --- how often, and in what order ---

# What comes in one webhook, in this order, and what the chunk is then.
ORDERS: list[tuple[list[str], str]] = [
    (["read", "delivered", "sent"], "read"),
    (["played", "sent", "read", "delivered"], "played"),
    (["delivered", "delivered", "sent"], "delivered"),
    (["delivered", "failed"], "delivered"),
    (["failed", "delivered"], "delivered"),
    (["failed", "sent"], "failed"),
    (["sent", "failed", "failed"], "failed"),
    (["failed", "read", "failed", "sent"], "read"),
]


async def test_statuses_of_one_attempt_in_one_webhook_move_it_to_the_furthest(yard: Yard) -> None:
    """In any order, all of one second, and the whole again the other way round: one move, each kept once."""
    for words, state in ORDERS:
        sent = await yard.accepted()
        webhook = [of(sent, word) for word in words]
        await yard.report(*webhook)
        assert yard.state(sent) == (state, state), words
        kept = yard.kept(sent)
        assert set(kept) == set(words)
        assert kept[state]
        await yard.report(*webhook[::-1])
        assert yard.state(sent) == (state, state), words
        assert yard.kept(sent) == kept
    assert yard.doors[0].one("SELECT count(*) FROM statuses") == sum(len(set(words)) for words, _ in ORDERS)


async def test_a_failure_calls_somebody_once_however_often_it_is_reported(yard: Yard) -> None:
    """Twice in one webhook, thrice at once at both processes, beside `sent`: one failure, with the provider's code."""
    refused = [{"code": 131026, "title": "Message undeliverable"}]
    for together in (["failed"], ["failed", "failed"], ["sent", "failed"]):
        sent, before = await yard.accepted(), raised()
        webhook = [of(sent, word, errors=refused if word == "failed" else None) for word in together]
        await asyncio.gather(yard.report(*webhook, times=3), yard.report(*webhook[::-1], door=1, times=3))
        assert yard.state(sent) == ("failed", "failed")
        code = "SELECT c.code, a.code FROM chunks c JOIN attempts a ON a.chunk_id = c.id WHERE c.id = %s"
        assert yard.doors[0].execute(code, sent.chunk) == [(131026, 131026)]
        assert raised() == before | {"chunk_failed": before["chunk_failed"] + 1}, together


async def test_backwards_and_failed_after_delivered_are_kept_as_history(yard: Yard) -> None:
    """Each in a webhook of its own, the last first: only the first of them moves anything."""
    for first, later in {
        "delivered": ["sent", "failed", "delivered"],
        "played": ["read", "delivered", "failed"],
    }.items():
        sent, before = await yard.accepted(), raised()
        for word in (first, *later):
            await yard.report(of(sent, word))
            assert yard.state(sent) == (first, first)
        assert yard.kept(sent) == dict.fromkeys(later, False) | {first: True}
        assert raised() == before


async def test_a_webhook_three_times_at_once_at_two_processes_moves_once(yard: Yard) -> None:
    """Six deliveries race: all are answered 200, each status is kept once, and nothing is told twice."""
    several = [await yard.accepted() for _ in range(5)]
    before = raised()
    statuses = [of(sent, word) for word in ("read", "sent", "delivered") for sent in several]
    await asyncio.gather(yard.report(*statuses, times=3), yard.report(*statuses[::-1], door=1, times=3))
    assert {yard.state(sent) for sent in several} == {("read", "read")}
    assert yard.doors[0].one("SELECT count(*) FROM statuses") == len(statuses)
    assert all(yard.kept(sent)["read"] for sent in several)
    assert raised() == before


async def test_contrary_statuses_at_two_processes_end_in_one_state(yard: Yard) -> None:
    """`failed` at the one and `delivered` at the other: chunk and attempt agree, and what follows changes nothing."""
    several = [await yard.accepted() for _ in range(4)]
    for sent in several:
        await asyncio.gather(yard.report(of(sent, "failed")), yard.report(of(sent), door=1))
        end = yard.state(sent)
        assert end in {("failed", "failed"), ("delivered", "delivered")}
        await yard.report(of(sent, "failed"), of(sent, "sent"))
        assert yard.state(sent) == end


async def test_a_status_that_says_odd_things_besides_is_applied(yard: Yard) -> None:
    """Unknown members, a recipient who is somebody else, another provider id, U+0000 in a reason, a huge code."""
    odd: list[Json] = [
        {"recipient_id": "19998887777"},
        {"id": "wamid.of.another"},
        {"id": "x" * 10_000},
        {"pricing": None, "conversation": {"id": "a\0b"}, "new": [1, {"a": "\ud83d"}]},
        {"errors": []},
        {"errors": [{"code": 10**15, "title": "a\0b" * 500}]},
        {"errors": [{"code": -(2**31), "title": ""}, {"code": 2, "title": "x"}]},
    ]
    for more in odd:
        for said in ("delivered", "failed"):
            sent = await yard.accepted()
            await yard.report(of(sent, said, **more))
            assert yard.state(sent) == (said, said), more
    assert yard.quarantined() == set()


async def test_what_is_no_status_is_set_aside_beside_one_that_is(yard: Yard) -> None:
    """An unknown word, no id, no status at all: in quarantine as it came; the neighbours count."""
    sent = await yard.accepted()
    odd: list[Any] = [
        of(sent, "lost"),
        of(sent, ""),
        of(sent, "DELIVERED"),
        of(sent, id=""),
        of(sent, id="a\0b"),
        of(sent, id=None),
        of(sent, status=None),
        of(sent, status=["delivered"]),
        {},
        None,
        [],
        "delivered",
        17,
    ]
    await yard.report(*odd, of(sent, "read"), *odd)
    assert yard.state(sent) == ("read", "read")
    assert yard.quarantined() == {cloud.encode(item) for item in odd}
    assert yard.kept(sent) == {"read": True}
