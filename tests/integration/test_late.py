"""Answers that were made in time, and could not be sent in time: a number that an operator mended hours later."""

import pytest

from app import db, dead
from app.errors import DatabaseUnavailable
from app.replay import Replayed, Replays
from app.sandbox.faults import Fault
from app.store.dead import Letter
from app.store.overdue import Overdue
from tests import tenants
from tests import world as shared
from tests.scripted import says
from tests.tenants import INTENTS, Script, configure, outcomes
from tests.world import ENVIRON, FAST, NUMBER, World, alerts, ladder
from workers.commits import Commits

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

world = shared.world
script = tenants.script

SORRY = "Sorry that this answer comes late."
NOTICE = "Sorry, we could not answer your messages in time. Please write again if you still need an answer."
LONG = "one " * 900 + "\n\n" + "two " * 900


async def number(world: World, late: str, token: str = "TOKEN") -> None:
    """The tenant's number as its operator has it: with an hour to answer in."""
    await configure(
        world,
        f'[tenants.noor.channels.main]\nendpoint = "meta"\naddress = "{NUMBER}"\nbase_url = "{world.sandbox.url}/graph/v23.0"\n'
        f'token = "env:{token}"\nanswer_within_hours = 1\nlate = "{late}"\n',
    )


async def held(world: World, late: str, *questions: str, within: int = 1) -> None:
    """Answered in time, and its number refuses the token: so many chunks wait."""
    await number(world, late)
    ladder(world, FAST, token="token-2")
    await world.worker()
    for question in questions or ("question",):
        await world.say(question)
    await world.until(
        "SELECT count(*) = %s AND bool_or(due_at > now() AND code = 190) FROM chunks WHERE state = 'ready'", within
    )


async def hours_pass(world: World, hours: int = 5) -> None:
    """What people wrote, they wrote so much earlier."""
    await world.act(f"UPDATE messages SET sent_at = sent_at - interval '{hours} hours' WHERE direction = 'in'")
    await world.act(f"UPDATE turns SET session_at = session_at - interval '{hours} hours'")


async def look(world: World) -> None:
    """The held lane is claimed as it would be within minutes, and is given back."""
    await world.act("UPDATE chunks SET due_at = now() WHERE due_at > now()")
    await world.act("DELETE FROM holds")
    await world.act("UPDATE lanes SET run_at = now() WHERE done_seq < head_seq")
    await world.until("SELECT bool_and(owner IS NULL AND (done_seq = head_seq OR run_at > now())) FROM lanes")


async def letters(world: World, within: float | None = None) -> list[Letter]:
    async with db.pool(world.url, "qasid_app", name="test", max_size=2) as pool:
        return [letter.row for letter in await dead.every(pool, within=within) if isinstance(letter.row, Letter)]


async def replay(world: World, reason: str = "too late") -> list[Replayed]:
    """What became of the letters of this reason."""
    async with (
        db.pool(world.url, "qasid_app", name="test", max_size=2) as pool,
        Replays(pool, world.url, world.settings()) as it,
    ):
        return [
            await it.replay(each)
            for each in await dead.every(pool)
            if isinstance(each.row, Letter) and each.row.reason == reason
        ]


async def test_with_store_an_answer_that_waited_too_long_is_left_to_the_operator(world: World, script: Script) -> None:
    """It is not sent, an alert and the dead letters tell of it, with its reason; replayed, the whole of it goes out at once."""
    before = alerts("answer_too_late")
    script(says(LONG))
    await held(world, "store", within=2)
    await hours_pass(world)
    await number(world, "store", "NEW")
    await world.at_rest()
    assert [line for line in world.lines() if line.accepted] == []
    assert alerts("answer_too_late") == before + 1
    [letter] = await letters(world)
    assert (letter.kind, letter.state, letter.reason, letter.doubtful) == ("chunk", "parked", "too late", False)
    [replayed] = await replay(world)
    assert replayed.done and replayed.words.endswith("with 1 more of its answer")
    assert " ".join(" ".join(await world.got(2)).split()) == " ".join(LONG.split())
    assert await letters(world) == []


async def test_with_notice_the_person_reads_one_notice_in_its_place(world: World) -> None:
    """One for all that they wrote before it, answered or not; the answer is left to the operator."""
    await held(world, "notice")
    for n in (2, 3):
        await world.say(f"question {n}")
    await hours_pass(world, 2)  # within one session: the assistant is shown what people read
    await look(world)
    await look(world)
    await number(world, "notice", "NEW")
    assert await world.got(1) == [NOTICE]
    assert await outcomes(world) == ["answered", "late"]
    assert [letter.reason for letter in await letters(world)] == ["too late"]
    await world.say("question 4")
    assert await world.got(2) == [NOTICE, "You said: question 4"]
    assert world.shown() == ["question\n\nquestion 2\n\nquestion 3", NOTICE, "question 4"]


async def test_the_assistant_is_not_shown_as_said_what_was_kept_back(world: World) -> None:
    """It is shown it once that was replayed, where it was read."""
    await held(world, "store")
    await hours_pass(world, 2)
    await look(world)
    await world.at_rest()
    await world.say("question 2")
    await world.until("SELECT count(*) = 1 FROM chunks WHERE state = 'ready' AND due_at > now() AND code = 190")
    await number(world, "store", "NEW")
    [second] = await world.got(1)
    assert world.shown() == ["question\n\nquestion 2"]
    await replay(world)
    assert await world.got(2) == [second, "You said: question"]
    await world.say("question 3")
    await world.got(3)
    assert world.shown() == ["question\n\nquestion 2", f"{second}\n\nYou said: question", "question 3"]


async def test_a_notice_that_nobody_got_is_replayed_without_the_answer(world: World) -> None:
    """They are two letters, each an operator's decision: the answer is not sent behind words that it came too late."""
    await held(world, "notice")
    await hours_pass(world)
    world.sandbox.faults.queue("send", [Fault(kind="graph_error", code=131047)])
    await number(world, "notice", "NEW")
    await world.at_rest()
    assert {(letter.no, letter.state, letter.code) for letter in await letters(world)} == {
        (0, "failed", 131047),
        (1, "parked", 190),
    }
    [failed] = [letter.reason for letter in await letters(world) if letter.no == 0]
    [replayed] = await replay(world, failed or "")
    assert replayed.done and "more of its answer" not in replayed.words
    assert await world.got(1) == [NOTICE]
    [replayed] = await replay(world)
    assert replayed.done
    assert await world.got(2) == [NOTICE, "You said: question"]
    assert await letters(world) == []


@pytest.mark.parametrize("late", ["store", "notice"])
async def test_a_letter_is_as_old_as_its_alert(world: World, late: str) -> None:
    """Of an answer that was tried hours ago, or never: it is a letter since it was kept back, and a notice has gone out."""
    before = alerts("answer_too_late")
    await held(world, late)
    await hours_pass(world)
    await world.act(
        "UPDATE attempts SET begun_at = begun_at - interval '5 hours', ended_at = ended_at - interval '5 hours'"
    )
    await world.act("UPDATE outbox SET entered_at = entered_at - interval '5 hours'")
    if late == "notice":
        await look(world)
        await world.act("UPDATE chunks SET due_at = due_at - interval '4 hours' WHERE state = 'parked'")
    await number(world, late, "NEW")
    await world.at_rest()
    assert alerts("answer_too_late") == before + 1
    assert [letter.reason for letter in await letters(world, within=600.0)] == ["too late"]


async def test_nobody_misses_the_alert_because_an_answer_of_the_database_was_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised where the entry ends, so whoever ends it raises it: the letter is listed from then on."""
    overtake = Commits.overtake

    async def lost(commits: Commits, wanted: Overdue) -> bool:
        if await overtake(commits, wanted):
            raise DatabaseUnavailable("its answer was lost")
        return False

    monkeypatch.setattr(Commits, "overtake", lost)
    before = alerts("answer_too_late")
    await held(world, "store")
    await hours_pass(world)
    await number(world, "store", "NEW")
    await world.at_rest()
    assert alerts("answer_too_late") == before + 1
    assert [letter.reason for letter in await letters(world)] == ["too late"]


async def test_a_notice_is_never_too_late_itself(world: World) -> None:
    """Settled for what came too late, and held for hours: the person reads it once, when the number is mended."""
    await number(world, "notice")
    ladder(world, FAST, token="token-2")
    await world.say("question")
    await hours_pass(world)
    await world.worker()
    await world.until("SELECT due_at > now() AND code = 190 FROM chunks WHERE state = 'ready'")
    await hours_pass(world)
    await look(world)
    await number(world, "notice", "NEW")
    assert await world.got(1) == [NOTICE]
    assert await letters(world) == []


@pytest.mark.parametrize("settled_late", [True, False])
async def test_a_notice_that_was_held_is_for_all_that_was_written_before_it_was_sent(
    world: World, settled_late: bool
) -> None:
    """Settled for what came too late, or put in an answer's place, and read five hours later: all read it once."""
    await number(world, "notice")
    ladder(world, FAST, token="token-2")
    await world.say("question")
    if settled_late:
        await hours_pass(world)
    await world.worker()
    await world.until("SELECT count(*) = 1 FROM chunks WHERE state = 'ready' AND due_at > now() AND code = 190")
    if not settled_late:
        await hours_pass(world)
        await look(world)
    await world.act("UPDATE lanes SET noticed_at = noticed_at - interval '6 hours'")
    await world.say("question 2")
    await hours_pass(world)
    await number(world, "notice", "NEW")
    assert await world.got(1) == [NOTICE]
    assert (await outcomes(world))[1:] == ["late"]
    await world.say("question 3")
    assert (await world.got(2))[1].endswith("question 3")


async def test_who_has_had_the_notice_is_told_nothing_twice(world: World) -> None:
    """What they wrote before it and was answered in time is left to the operator without another."""
    await held(world, "notice")
    await world.act("UPDATE lanes SET noticed_at = now()")
    await hours_pass(world)
    await number(world, "notice", "NEW")
    await world.at_rest()
    assert [line for line in world.lines() if line.accepted] == []
    assert [letter.reason for letter in await letters(world)] == ["too late"]


@pytest.mark.parametrize("question", ["question", "hi"])
async def test_with_apologise_the_apology_comes_first_and_once(world: World, question: str) -> None:
    """As a message of its own, however often the number is looked at before it is mended."""
    await held(world, "apologise", question)
    await hours_pass(world)
    await look(world)
    await look(world)
    await number(world, "apologise", "NEW")
    answer = "Hello! How can we help?" if question == "hi" else "You said: question"
    assert await world.got(2) == [SORRY, answer]
    assert await letters(world) == []


async def test_an_apology_of_which_nothing_can_be_seen_holds_up_no_answer(world: World) -> None:
    """There is nothing to send before it."""
    await configure(world, 'texts = { apology = "\\u200b" }')
    await held(world, "apologise", "hi")
    await hours_pass(world)
    await number(world, "apologise", "NEW")
    assert await world.got(1) == ["Hello! How can we help?"]


async def test_a_question_that_was_kept_back_is_answered_by_no_yes(world: World) -> None:
    """Nobody has read it: what is said next is taken as if nothing had been asked. Replayed, it is a question."""
    await configure(world, INTENTS)
    await held(world, "notice", "cancel")
    await hours_pass(world, 2)  # within one session
    await look(world)
    await number(world, "notice", "NEW")
    assert await world.got(1) == [NOTICE]
    await world.say("yes")
    assert (await world.got(2))[1] == "You said: yes"
    assert await outcomes(world) == ["intent", "answered"]


async def test_a_question_that_was_kept_back_and_replayed_is_one(world: World) -> None:
    """Its person reads it late, and the yes to it is understood."""
    await configure(world, INTENTS)
    await held(world, "store", "cancel")
    await hours_pass(world, 2)
    await look(world)
    await world.at_rest()
    assert [replayed.done for replayed in await replay(world)] == [True]
    await number(world, "store", "NEW")
    assert await world.got(1) == ["Cancel it?"]
    await world.say("yes")
    assert (await world.got(2))[1] == "Cancelled."


async def test_who_could_not_be_told_that_it_is_enough_is_told_the_next_time(world: World) -> None:
    """The sentence was kept back: once in 24 hours is once that they may read it."""
    await configure(world, "[tenants.noor.limits]\nmessages_per_contact_per_day = 1\n")
    await number(world, "store")
    await world.worker()
    await world.say("one")
    await world.got(1)
    ladder(world, FAST, token="token-2")
    await world.say("two")
    await world.until("SELECT count(*) = 1 FROM chunks WHERE state = 'ready' AND due_at > now() AND code = 190")
    await hours_pass(world)
    await look(world)
    await world.at_rest()
    ladder(world, FAST, token=ENVIRON["TOKEN"])
    await world.say("three")
    answers = await world.got(3)  # the refused one among them
    assert answers[1].startswith("Sorry, I cannot answer any more")
    assert await outcomes(world) == ["answered", "limited", "limited"]


async def test_an_answer_to_what_was_taken_back_grows_too_late_like_any(world: World) -> None:
    """It was made when the message still stood; the number is mended five hours later."""
    await number(world, "store")
    ladder(world, FAST, token="token-2")
    await world.worker()
    said = await world.say("question")
    await world.until("SELECT count(*) = 1 FROM chunks WHERE state = 'ready' AND due_at > now() AND code = 190")
    await world.say(kind="revoke", target=said.ids[0])
    await hours_pass(world)
    await look(world)
    await number(world, "store", "NEW")
    await world.at_rest()
    assert [line for line in world.lines() if line.accepted] == []
    assert [letter.reason for letter in await letters(world)] == ["too late"]


async def test_who_says_sorry_already_says_it_once(world: World, script: Script) -> None:
    """An answer that began with the apology when it was settled, and a failure."""
    await number(world, "apologise")
    ladder(world, FAST, token="token-2")
    script(says("late"), says(" "))
    await world.say("question")
    await hours_pass(world, 2)
    await world.worker()
    await world.until("SELECT count(*) = 1 FROM chunks WHERE due_at > now() AND code = 190")
    await hours_pass(world)
    await number(world, "apologise", "NEW")
    assert await world.got(1) == [f"{SORRY}\n\nlate"]
    ladder(world, FAST, token="token-3")
    await world.say("question")
    await world.until("SELECT count(*) = 1 FROM chunks WHERE due_at > now() AND code = 190")
    await hours_pass(world)
    ladder(world, FAST, token="token-2")
    await look(world)
    assert (await world.got(2))[1] == shared.FAILURE


@pytest.mark.parametrize("late", ["store", "notice", "apologise"])
async def test_an_answer_that_was_begun_in_time_is_ended(world: World, script: Script, late: str) -> None:
    """Its first part was read in time: nothing is put before the rest, and the rest is not kept back."""
    script(says(LONG))
    await number(world, late)
    world.sandbox.faults.queue("send", [Fault(kind="ok"), Fault(kind="graph_error", code=190)])
    await world.worker()
    await world.say("question")
    await world.until("SELECT count(*) = 1 FROM chunks WHERE state = 'ready' AND code = 190")
    await hours_pass(world)
    await look(world)
    assert len(await world.got(2)) == 2
    assert await world.rows("SELECT count(*) FROM chunks") == [(2,)]
    assert await letters(world) == []


async def test_a_persons_text_is_never_too_late(world: World) -> None:
    """An operator's replay of an old answer waits for its number, for hours, and goes out."""
    await held(world, "store")
    await hours_pass(world)
    await look(world)
    await world.at_rest()
    assert [replayed.done for replayed in await replay(world)] == [True]
    await world.until("SELECT count(*) = 1 FROM chunks WHERE due_at > now() AND code = 190")
    await world.act("UPDATE messages SET sent_at = sent_at - interval '5 hours'")
    await look(world)
    await number(world, "store", "NEW")
    assert await world.got(1) == ["You said: question"]
