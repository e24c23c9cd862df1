"""A whole answer in its person's language, where the tenant wants that: which language it is, and the translation.

No memory: what a person was answered is theirs, and is kept with their turn alone. What must not change (quotations,
code, links, the numbers of sources) is the same after it, letter for letter, or the answer stands as it was.
"""

import httpx
import msgspec
import structlog
from msgspec import Struct

from app import tasks
from app.alerts import alert
from app.assistants import Answer, Notes
from app.crashpoints import crashpoint
from app.errors import TranslationError
from app.text.languages import may_be
from app.text.passages import masked, unmasked
from workers.citations import Round
from workers.formatting import apart

log = structlog.get_logger(__name__)

# So much of a text tells its language (characters).
TELLING = 1_000
LANGUAGE, ANSWER = "language", "answer_translated"


class Language(Struct, frozen=True, kw_only=True):
    """Which of the tenant's languages the person wrote in (None: none of them), and whether the answer is in it.

    `missed`: nobody could be asked, and letters say that the answer is not in theirs.
    """

    spoken: str | None = None
    met: bool = False
    missed: bool = False
    input_tokens: int = 0
    output_tokens: int = 0


class Told(Struct, frozen=True, kw_only=True):
    """The memo: what the engine takes one text for; not `known`: it did not say."""

    language: str | None = None
    known: bool = True
    input_tokens: int = 0
    output_tokens: int = 0


class Worded(Struct, frozen=True, kw_only=True):
    """The memo: the answer's text, in Markdown, in another language than it came, or None where it stands as it was."""

    text: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0


async def language(client: httpx.AsyncClient, round: Round, words: str, answer: Answer, notes: Notes) -> Language:
    """The engine's word for it, of each of the two a memo; nobody here guesses. Where it has none, nothing is translated, and
    the person is told so if there is no doubt that they read another language than theirs.

    Raises:
        DatabaseUnavailable: nobody knows whether it is kept.
    """
    if not words.strip():
        return Language()
    said, met = await tasks.both(
        _recognised(client, round, "words", words, notes), _recognised(client, round, "answer", answer.text, notes)
    )
    missed = False
    if not said.known or (said.language is not None and not met.known):
        _stands(round, "the engine could not be asked for the language")
        theirs_may_be = (
            [said.language] if said.language else [each for each in round.settings.answers if may_be(words, each)]
        )
        bare = await apart(len(answer.text), masked, answer.text, [citation.text for citation in answer.citations])
        missed = any(not may_be(bare.text, each) for each in theirs_may_be)
    # Not knowing what the answer is in is no reason to change it.
    spoken = said.language if met.known else None
    return Language(
        spoken=spoken,
        met=spoken is not None and met.language == spoken,
        missed=missed,
        input_tokens=said.input_tokens + met.input_tokens,
        output_tokens=said.output_tokens + met.output_tokens,
    )


async def _recognised(client: httpx.AsyncClient, round: Round, name: str, text: str, notes: Notes) -> Told:
    step = f"{LANGUAGE}/{name}"
    try:
        return msgspec.convert(notes[step], Told)
    except KeyError:
        pass
    told = Told(known=False)
    try:
        async with round.place(round.deadline):
            found = await round.translator.recognise(
                client, text[:TELLING], round.settings.answers, deadline=round.deadline
            )
        told = Told(language=found.language, input_tokens=found.input_tokens, output_tokens=found.output_tokens)
    except TranslationError as error:
        log.info("a language is not known", error=error, **round.of)
    except Exception:  # whatever it was, an answer does not fail for this
        log.exception("a language cannot be told", **round.of)
    await notes.keep(step, msgspec.to_builtins(told))
    crashpoint("answer.recognised")
    return told


async def worded(client: httpx.AsyncClient, round: Round, answer: Answer, notes: Notes) -> Worded:
    """The answer in the language of `round.target`.

    Raises:
        DatabaseUnavailable: nobody knows whether it is kept.
    """
    try:
        return msgspec.convert(notes[ANSWER], Worded)
    except KeyError:
        pass
    original = await apart(len(answer.text), masked, answer.text, [citation.text for citation in answer.citations])
    try:
        async with round.place(round.deadline):
            made = await round.translator.translate(
                client, original.text, source="auto", target=round.target, deadline=round.deadline
            )
        text = await apart(len(made.text), unmasked, made.text, original)
        said = Worded(text=text, input_tokens=made.input_tokens, output_tokens=made.output_tokens)
        reason = "a quotation, a link or the number of a source was lost, doubled or made up" if text is None else None
    except TranslationError as error:
        said, reason = Worded(), str(error)
    except Exception:  # as above
        log.exception("an answer cannot be translated", **round.of)
        said, reason = Worded(), "a mistake of ours"
    if reason is not None:
        _stands(round, reason)
    await notes.keep(ANSWER, msgspec.to_builtins(said))
    crashpoint("answer.worded")
    return said


def _stands(round: Round, reason: str) -> None:
    alert(log.warning, "untranslated", "an answer stands untranslated", reason=reason, **round.of)
