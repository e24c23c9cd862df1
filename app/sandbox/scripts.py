"""What the simulated assistant says: a pure function of the last user turn, so that a test can know it beforehand.

`answer()` is the oracle of the fault test; it reads no clock, no state and nothing said earlier.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import msgspec

PART_UNITS = 3980
_TOKEN = re.compile(r"tok#([A-Za-z0-9-]+)/([1-9][0-9]?)(?![0-9])")
_TAGGED = re.compile(r"<([\w-]+)>\s*(.*?)\s*</\1>", re.DOTALL)
_URDU = re.compile(r"[ٹڈڑںےہھ]")
_LATIN = re.compile(r"[A-Za-z]")
_CITE = re.compile(r"cite#([1-9][0-9]?)(?![0-9])")
_SENTENCE = re.compile(r"[^\s.!?؟][^.!?؟\n]*[.!?؟]?")
_ARABIC = re.compile(r"[\u0621-\u064a]")
_LETTERS = re.compile(r"[^\w\s]|[\u064b-\u0652\u0640]")
_ANSWERS = Path(__file__).parent / "answers"


class Citation(msgspec.Struct, frozen=True, kw_only=True, tag="char_location", tag_field="type"):
    """A citation as it stands in `citations_delta` (WIRE.md 1.5)."""

    cited_text: str
    document_index: int
    document_title: str
    start_char_index: int
    end_char_index: int


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A text block of an answer, with the citations that belong to it."""

    text: str
    citations: tuple[Citation, ...] = ()


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A document that came with the question, to be cited from."""

    title: str
    text: str


def answer(texts: Sequence[str], *, system: str = "", documents: Sequence[Document] = ()) -> tuple[Block, ...]:
    """The blocks of the answer to a turn of these user texts.

    `tok#<token>/<N>` in a text: `parts(token, N)`, for each token in turn. `cite#<N>`: N blocks, each with a citation: of
    the documents' sentences in turn, without documents in Arabic. A system prompt that begins with "Translate": the text,
    marked as translated; with "Name the language": `language` of it; both within the tag that the text stands in, if it
    stands in one. A few questions have answers of their own; all else is echoed, every text of the turn.
    """
    whole = "\n".join(texts)
    asked = system.lstrip().casefold()
    if asked.startswith(("translate", "name the language")):
        tagged = _TAGGED.fullmatch(whole)
        text = tagged[2] if tagged else whole
        said = f"[translated] {text}" if asked.startswith("translate") else language(text) or "none"
        return (Block(text=f"<{tagged[1]}>{said}</{tagged[1]}>" if tagged else said),)
    tokens = _TOKEN.findall(whole)
    if tokens:
        return (Block(text="\n\n".join(part for token, n in tokens for part in parts(token, int(n)))),)
    cited = _CITE.search(whole)
    if cited:
        return _cited(int(cited[1]), documents)
    if len(texts) == 1:
        resting = _RESTING.get(_normal(texts[0]))
        if resting is not None:
            return tuple(Block(text=text, citations=(_scripted(at),) if at >= 0 else ()) for text, at in resting)
        known = _KNOWN.get(_normal(texts[0]))
        if known is not None:
            return (Block(text=_read(known) if known.endswith(".md") else known),)
    return (Block(text=_echo(texts)),)


def language(text: str) -> str | None:
    """What a simulated engine takes a text for, by its letters: ur, ar, en, or nothing of these."""
    known = (("ur", _URDU), ("ar", _ARABIC), ("en", _LATIN))
    return next((code for code, letter in known if letter.search(text)), None)


def translation(text: str, target: str) -> str:
    """What the simulated translator makes of a text: of some sources a sentence, of all else `[target]` and the text."""
    return _TRANSLATIONS.get((target, text), f"[{target}] {text}")


def parts(token: str, n: int) -> list[str]:
    """The N paragraphs of the answer to `tok#<token>/<N>`: each begins with `<token>#<i>/<N>`.

    All but the last fill almost 4,000 UTF-16 units, so that a chunker with that limit makes N chunks of them, whether
    it cuts between paragraphs, sentences or words. Depending on the token they are English, Arabic or full of emoji.
    """
    filler = crc32(token.encode()) % len(_FILLERS)
    heads = [f"{token}#{i}/{n}" for i in range(1, n + 1)]
    return [head + _filled(filler, (PART_UNITS if i < n else 400) - len(head)) for i, head in enumerate(heads, 1)]


@lru_cache(maxsize=1024)  # the fault test asks for tens of thousands of parts, and reckons with as many
def _filled(filler: int, units: int) -> str:
    """Words of one of _FILLERS, each with a blank before it, of at most so many UTF-16 units."""
    words, said, length = _FILLERS[filler], list[str](), 0
    while True:
        word = " " + words[len(said) % len(words)]
        length += _units(word)
        if length > units:
            return "".join(said)
        said.append(word)


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _echo(texts: Sequence[str]) -> str:
    arabic = any(_ARABIC.search(text) for text in texts)
    if len(texts) == 1:
        return f"قلت: {texts[0]}" if arabic else f"You said: {texts[0]}"
    said = "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1))
    return f"قلت:\n\n{said}" if arabic else f"You said:\n\n{said}"


def _cited(n: int, documents: Sequence[Document]) -> tuple[Block, ...]:
    blocks = [Block(text="Here is what the sources say: ")]
    sources = _sentences(documents) if documents else [_scripted(at) for at in range(n)]
    for at in range(n):
        citations = (sources[at % len(sources)],) if sources else ()
        blocks.append(Block(text=f"point {at + 1}", citations=citations))
        blocks.append(Block(text="; " if at + 1 < n else "."))
    return tuple(blocks)


def _scripted(at: int) -> Citation:
    title, text = _SOURCES[at % len(_SOURCES)]
    return Citation(
        cited_text=text, document_index=at, document_title=title, start_char_index=0, end_char_index=len(text)
    )


def _sentences(documents: Sequence[Document]) -> list[Citation]:
    """What a document can be cited by, as it stands there."""
    return [
        Citation(
            cited_text=found[0],
            document_index=index,
            document_title=document.title,
            start_char_index=found.start(),
            end_char_index=found.end(),
        )
        for index, document in enumerate(documents)
        for found in _SENTENCE.finditer(document.text)
    ]


def _normal(text: str) -> str:
    return " ".join(_LETTERS.sub("", text).casefold().split())


def _read(name: str) -> str:
    if name not in _texts:
        _texts[name] = (_ANSWERS / name).read_text(encoding="utf-8").strip()
    return _texts[name]


_texts: dict[str, str] = {}
_GREETING = "Hello! I am the sandbox's assistant. Ask me, for example: *What are the pillars of Islam?*"
_GREETING_AR = "وعليكم السلام ورحمة الله وبركاته! أنا مساعد تجريبي. اسألني مثلًا: *ما هي أركان الإسلام؟*"
_KNOWN: dict[str, str] = {
    _normal(question): said
    for questions, said in [
        (("hi", "hello", "good morning"), _GREETING),
        (("السلام عليكم", "مرحبا"), _GREETING_AR),
        (("What are the pillars of Islam?", "What are the five pillars of Islam?"), "pillars_en.md"),
        (("ما هي أركان الإسلام؟", "ما أركان الإسلام؟"), "pillars_ar.md"),
        (("thanks", "thank you"), "You are welcome."),
        (("شكرا", "جزاك الله خيرا"), "وإياك، على الرحب والسعة."),
        (
            ("When are you open?", "What are your opening hours?"),
            "We are open:\n\n- **Sunday to Thursday**, 9:00 to 17:00\n- **Saturday**, 10:00 to 14:00",
        ),
    ]
    for question in questions
}
_SOURCES = (
    ("Sahih al-Bukhari 1", "إِنَّمَا الأَعْمَالُ بِالنِّيَّاتِ، وَإِنَّمَا لِكُلِّ امْرِئٍ مَا نَوَى"),
    ("Sahih Muslim 55", "الدِّينُ النَّصِيحَةُ"),
    ("Quran 94:6", "إِنَّ مَعَ الْعُسْرِ يُسْرًا"),
)
# Of these, what the simulated LibreTranslate knows; of all else it says what it was asked.
_TRANSLATIONS = {
    ("en", _SOURCES[0][1]): "Actions are but by intentions, and everyone shall have but what they intended.",
    ("en", _SOURCES[1][1]): "Religion is sincerity.",
    ("en", _SOURCES[2][1]): "Surely with hardship comes ease.",
}
# Questions whose answers rest on sources: each stretch of text with the number of its own, -1 for none.
_RESTING: dict[str, tuple[tuple[str, int], ...]] = {
    _normal("What do the sources say about intentions?"): (
        ("A deed counts by the **intention** behind it", 0),
        (", and to be sincere in it is what religion is about", 1),
        (". Whoever finds that hard has a promise", 2),
        (".", -1),
    ),
}
_FILLERS = (
    "The caravan left before dawn and the road was long but the letters were safe and dry.".split(),
    "خرجت القافلة قبل الفجر وكان الطريق طويلا ولكن الرسائل كانت محفوظة في مكان آمن.".split(),
    "A letter 📬 crosses the sea 🌊 by night 🌙 and the family 👨‍👩‍👧 reads it at home 🏡 in peace 🕊️.".split(),
)
