"""Ansari's own backend as an assistant: it keeps the threads, we hand it a person's turn and take its answer.

`process` may not be repeated and its stream has no end mark. So the thread's length is committed before the call, and what
the thread holds beyond it says what became of the call: docs/wire-assistants.md, "Once in the thread".
"""

import asyncio
import codecs
import time
from collections.abc import Sequence
from hashlib import sha256

import httpx
import msgspec

from app import http
from app.assistants import Answer, Asking, Call, Line, Notes, Question, keeps
from app.assistants.ansari_thread import Place, Seen, bare, begin, look
from app.assistants.ansari_wire import Backend, NotTaken, listed
from app.assistants.composed import answer as composed
from app.assistants.lines import shown
from app.assistants.parts import Block, Cut, Draft, Part
from app.configuration import AssistantSettings
from app.errors import AssistantBusy, AssistantError, AssistantRefused, InDoubt
from app.retrying import FIRST_PAUSE, LONGEST_PAUSE, tried, watched
from app.text.storable import storable

TRIES = 4
# So much of the time, and at most so much (seconds), is kept for a look at the thread after a stream that stalled.
RESERVE, LONGEST_RESERVE = 0.1, 1.0
# Looks for a turn that is not in its thread, so far apart (seconds): a call whose fate we do not know may still arrive.
GRACE = (0.5, 1.0)
# How long the rest of a broken answer is waited for (seconds). The backend stops where its client is gone, but not while
# it translates citations, which is what it does when a stream is silent for long.
LINGER = 20.0


class _Unconfirmed(AssistantBusy):
    """Words came to an end, and nobody says whether that was all of them. Not to be asked again."""


class Ansari:
    """`app.assistants.Assistant` for the provider `ansari`. Of the settings, `system` and the limits are the backend's own."""

    async def ask(
        self,
        client: httpx.AsyncClient,
        settings: AssistantSettings,
        question: Question,
        *,
        deadline: float,
        notes: Notes,
        asking: Asking | None = None,
    ) -> Answer:
        """See the Protocol. The person's turn stands in their thread once, however often it is tried."""
        turn = _Turn(client, settings, question, notes, deadline)
        try:
            answer = await turn.answer(asking)
        except Cut as cut:
            answer = turn.composed(cut.part, ended=False)
        except AssistantBusy:
            if not turn.heard.strip():
                raise
            answer = msgspec.structs.replace(turn.said(turn.heard), partial=True)
        text, verbatim = listed(answer.text)
        return msgspec.structs.replace(answer, text=text, verbatim=verbatim)


class _Turn:
    """One turn being asked."""

    def __init__(
        self, client: httpx.AsyncClient, settings: AssistantSettings, question: Question, notes: Notes, deadline: float
    ) -> None:
        self.patience = deadline - time.monotonic()
        self._model = settings.model or "ansari"
        self._draft = self._began(None)
        self._words = _words(question.lines)
        self._shown = shown(settings, question)
        if not question.person or not self._words:
            raise AssistantRefused("the backend answers a person's words, and here are none, or nobody's")
        self._last = None if question.last is None else msgspec.convert(question.last, Place)
        self._until = deadline - http.EARLY
        self._deadline = deadline
        self._backend = Backend(client, settings, question.person, until=self._until)
        self._notes = notes
        # It lasts: in the thread the turn stays, whatever is said beside it meanwhile. Other words are another turn there.
        self._note = f"{keeps(settings)}{sha256(self._words.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        self._place: Place | None = None
        self._asked = False
        """Whether this turn may be in its thread already."""

    @property
    def heard(self) -> str:
        """What has been streamed of its answer."""
        return self._draft.text

    def said(self, text: str) -> Answer:
        """This text as the whole answer. The backend gives no reason to stop."""
        return self.composed(Part(blocks=(Block(text=text),), ending="whole", stopped="", model=self._model))

    def composed(self, part: Part, *, ended: bool = True) -> Answer:
        """The answer of this part alone. The backend counts no tokens: they are by estimate."""
        return composed([part], ended=ended, shown=self._shown)

    async def answer(self, asking: Asking | None) -> Answer:
        """Try until there is one. Raises as `Assistant.ask`; Cut for one that broke off, _Unconfirmed."""

        async def once() -> Answer:
            async with watched(asking) as call:
                return await self._try(call)

        return await tried(
            once,
            busy=AssistantBusy,
            final=(Cut, _Unconfirmed),
            deadline=self._deadline,
            tries=TRIES,
            what="whole answer",
            jitter=FIRST_PAUSE,
        )

    async def _try(self, call: Call | None) -> Answer:
        place = await self._begun()
        if self._asked and (found := await self._found(place)):
            return found
        ended = await self._listen(place, call)
        if self._draft.too_long:
            return self.composed(self._draft.shortened())
        if not self.heard.strip():
            raise AssistantBusy("an empty answer" if ended else "it broke off before its first word")
        return await self._whole(place, ended=ended)

    # --- the thread ---

    async def _begun(self) -> Place:
        """The thread of this turn and its length before, as committed: now, or by whoever tried it before us."""
        if self._place is None:
            try:
                kept = self._notes[self._note]
            except KeyError:
                place = await begin(self._backend, self._words, self._last)
                await self._notes.keep(self._note, msgspec.to_builtins(place), lasting=True)
                self._place = place
            else:
                self._place = msgspec.convert(kept, Place)
                self._asked = True
        return self._place

    async def _found(self, place: Place) -> Answer | None:
        """The answer from the thread, waited for if the turn is there. None: it is not, nor will be: it may be asked.

        Raises AssistantBusy at the deadline.
        """
        looks, pause = 0, FIRST_PAUSE
        while True:
            seen = await look(self._backend, place, self._words)
            if seen.gave_up:
                raise AssistantRefused("the backend took the question and failed to answer it; its log says why")
            if seen.there and seen.texts:
                return self.said("\n\n".join(seen.texts))
            if seen.there:
                await self._wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            elif looks < len(GRACE):
                await self._wait(GRACE[looks])
                looks += 1
            else:
                return None

    async def _wait(self, seconds: float) -> None:
        left = self._until - time.monotonic()
        await asyncio.sleep(max(0.0, min(seconds, left)))
        if left <= seconds:
            raise AssistantBusy("the backend did not answer in time, and may still")

    # --- the stream ---

    def _began(self, call: Call | None) -> Draft:
        draft = Draft(call)
        draft.model = self._model
        return draft

    async def _listen(self, place: Place, call: Call | None) -> bool:
        """Ask, and gather into the draft what comes, until it is too long. Whether the stream ended by itself, which need not be
        the answer's end.
        """
        reserve = min(RESERVE * self.patience, LONGEST_RESERVE)
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        before, self._asked = self._asked, True
        self._draft = self._began(call)
        try:
            async with self._backend.process(
                place.thread, self._words, seconds=self._until - reserve - time.monotonic()
            ) as response:
                async for piece in response:
                    self._draft.say(utf8.decode(piece))
                    if self._draft.too_long:
                        return False
                self._draft.say(utf8.decode(b"", final=True))  # half a character is none
        except NotTaken:
            self._asked = before
            raise
        except InDoubt as error:
            if not self.heard.strip():
                raise AssistantBusy(str(error)) from error
            return False
        return True

    async def _whole(self, place: Place, *, ended: bool) -> Answer:
        """What was heard, if the thread says that it is all; else what the thread has. Raises Cut if neither is whole,
        _Unconfirmed if what was heard may be.
        """
        until = min(self._until, time.monotonic() + LINGER)
        pause = FIRST_PAUSE
        heard = bare(self.heard)
        while True:
            try:
                seen = await look(self._backend, place, self._words)
            except AssistantError:  # the words in hand are worth more than the reason
                seen = Seen()
            if seen.gave_up:
                raise self._draft.cut("the backend failed in the midst of its answer; its log says why")
            stored = bare("".join(seen.texts))
            if seen.texts and heard.endswith(2 * stored):  # something between said it twice
                return self.said("\n\n".join(seen.texts))
            if seen.texts and heard.endswith(bare(seen.texts[-1])):
                return self.said(self.heard)
            if seen.texts and seen.there:
                if stored not in heard:  # it goes on where the stream broke off
                    return self.said("\n\n".join(seen.texts))
                if ended:
                    return self.said(self.heard)
            if time.monotonic() + pause >= until:
                if ended and not seen.there:
                    raise _Unconfirmed("the answer ended, and its thread does not say that this was all")
                raise self._draft.cut("the answer was cut, and is not in the thread")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _words(lines: Sequence[Line]) -> str:
    """What the person has said since they were last answered, as one message."""
    since: list[str] = []
    for line in reversed(lines):
        if line.role != "user":
            break
        since.append(storable(line.text).strip())
    return "\n\n".join(text for text in reversed(since) if text)
