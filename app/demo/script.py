"""The conversation that the demo plays, and what each person must get for it. Pure: it sends and reads nothing.

What must come is reckoned from the sandbox's own words (`app.sandbox.scripts.answer`) and the demo's configuration.
"""

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from app.sandbox import scripts
from app.text.chunks import split
from app.text.citations import Source, with_sources
from app.text.whatsapp import from_markdown

# What becomes of the place that the sandbox sends where nobody names one.
PLACE = "[Location]\n21.422500, 39.826200\nhttps://www.google.com/maps?q=21.422500,39.826200"


class Person(Struct, frozen=True, kw_only=True):
    """Somebody with WhatsApp; `number` is new at each start, so nobody has a past."""

    name: str
    number: str


class Says(Struct, frozen=True, kw_only=True):
    """One message: `kind` as the sandbox names it; `shown` is what the transcript says where there is no text.

    `words`: what Qasid asks where that is not its text; "" for a text, and for what nobody can read.
    """

    kind: str = "text"
    text: str = ""
    shown: str = ""
    words: str = ""


class Step(Struct, frozen=True, kw_only=True):
    """What one person sends, each message as soon as the last was acknowledged; `after` seconds into the scene.

    `whole`: the transcript has the answer to its last line.
    """

    person: Person
    says: tuple[Says, ...]
    after: float = 0.0
    whole: bool = False


class Scene(Struct, frozen=True, kw_only=True):
    """Steps of different people, played side by side."""

    title: str
    steps: tuple[Step, ...]


class Turn(Struct, frozen=True, kw_only=True):
    """So many messages, answered by these texts. `quoted`: the sources of the simulated assistant, as it told them, each of which
    must stand in them letter for letter, whatever Qasid's own code makes of it.
    """

    messages: int
    texts: tuple[str, ...]
    quoted: tuple[str, ...] = ()


Outcome = tuple[Turn, ...]


def people(*names: str) -> list[Person]:
    """People of these names with numbers that nobody has: +1 555 is not given to anyone."""
    first = secrets.randbelow(9_000_000)
    return [Person(name=name, number=f"1555{first + n:07d}") for n, name in enumerate(names)]


def scenes() -> list[Scene]:
    """The conversation."""
    amal, bilal, clara, dalia = people("Amal", "Bilal", "Clara", "Dalia")
    return [
        Scene(
            title="A greeting: an intent answers, no assistant is asked",
            steps=(Step(person=amal, says=(Says(text="السلام عليكم"),)),),
        ),
        Scene(
            title="Two questions with long answers at the same time, and a greeting that waits for neither",
            steps=(
                Step(person=amal, says=(Says(text="ما هي أركان الإسلام؟"),)),
                Step(person=bilal, says=(Says(text="What are the pillars of Islam?"),)),
                Step(person=clara, says=(Says(text="Hello!"),), after=0.3),
            ),
        ),
        Scene(
            title="A burst of three: the first is answered at once, what arrives meanwhile becomes one turn",
            steps=(
                Step(
                    person=bilal,
                    says=(
                        Says(text="Is the library open on Friday?"),
                        Says(text="After the prayer, I mean."),
                        Says(text="And may I bring my children?"),
                    ),
                ),
            ),
        ),
        Scene(
            title="An answer that rests on sources: quoted letter for letter, translated side by side, each once",
            steps=(Step(person=dalia, says=(Says(text="What do the sources say about intentions?"),), whole=True),),
        ),
        Scene(
            title="A location, which is asked in words, and a kind of message that nobody can read",
            steps=(
                Step(person=amal, says=(Says(kind="location", shown="[a location]", words=PLACE),)),
                Step(person=clara, says=(Says(kind="unsupported", text="poll", shown="[a poll]"),)),
            ),
        ),
    ]


def outcomes(step: Step, tenant: Mapping[str, Any]) -> list[Outcome]:
    """Every right way to answer the step: where a burst falls into turns is a matter of milliseconds.

    `tenant` is the tenant's table of demo.toml.
    """
    return [
        tuple(Turn(messages=len(group), texts=_texts(group, tenant), quoted=_quoted(group)) for group in groups)
        for groups in _groupings(step.says)
    ]


def _groupings(says: tuple[Says, ...]) -> Iterator[list[tuple[Says, ...]]]:
    """Every way to cut the messages into turns, their order kept."""
    if not says:
        yield []
    for size in range(1, len(says) + 1):
        for rest in _groupings(says[size:]):
            yield [says[:size], *rest]


def _quoted(group: tuple[Says, ...]) -> tuple[str, ...]:
    """What the simulated assistant quotes in its answer to them."""
    words = ["\n\n".join(each.words or each.text for each in group if each.kind == "text" or each.words)]
    return tuple(dict.fromkeys(cited.cited_text for block in scripts.answer(words) for cited in block.citations))


def _texts(group: tuple[Says, ...], tenant: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts that answer these messages as one turn."""
    words = [each.words or each.text for each in group if each.kind == "text" or each.words]
    if not words:
        return (tenant["texts"]["unsupported"],)
    if len(words) == 1:
        bare = words[0].casefold().rstrip("!")
        for intent in tenant["intents"]:
            if bare in intent["match"]:
                return (intent["reply"],)
    # Qasid hands the messages of a turn to the assistant as one, with an empty line between.
    said, sources = "", dict[str, Source]()
    for block in scripts.answer(["\n\n".join(words)]):
        said += block.text
        for cited in block.citations:
            translation = scripts.translation(cited.cited_text, tenant["translation"]["target"])
            source = Source(text=cited.cited_text, title=cited.document_title, translation=translation)
            sources.setdefault(cited.cited_text, source)
            said += f" [{list(sources).index(cited.cited_text) + 1}]"
    # The tenant's own words are those that every tenant has.
    words_of = {"heading": "Sources", "translation": "Translation:", "untranslated": "(not translated)"}
    return tuple(split(with_sources(from_markdown(said), list(sources.values()), **words_of)))
