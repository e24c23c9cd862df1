"""Fixed replies: what a tenant's intents answer without asking an assistant. Pure functions, no I/O.

Imports nothing of app, since the configuration's own checks need `normalise`.
"""

import unicodedata
from collections.abc import Mapping, Sequence

import regex

# Arabic vowel signs and the marks of Quranic recitation, the tatweel that only stretches a word, and what cannot be seen:
# keyboards for right-to-left scripts put direction marks around a text.
_UNSEEN = regex.compile(
    r"[\u0610-\u061A\u064B-\u065F\u0670\u06D6-\u06DC\u06DF-\u06E8\u06EA-\u06ED\u08CA-\u08FF\u0640"
    r"\p{Default_Ignorable_Code_Point}]+"
)
# Punctuation of any script; ~ and ` are symbols to Unicode, but WhatsApp's marks for struck and fixed-width text.
_BREAKS = regex.compile(r"[\p{P}\s~`]+")


def normalise(text: str) -> str:
    """`text` as intents compare it; the empty string never matches.

    In this order: compatibility forms are unified (NFKC) and case is folded; tashkeel, tatweel and invisible characters
    vanish; any run of punctuation and white space becomes one space, and none at either end. Symbols stay, so that an
    emoji can be matched. Hence "  ¡Hola!! " is "hola", and "السَّلامُ عليكم" is "السلام عليكم".
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return str(_BREAKS.sub(" ", _UNSEEN.sub("", folded))).strip()


def reply_for(intents: Mapping[str, str], texts: Sequence[str]) -> str | None:
    """The reply to a turn of these messages, or None if any of them is for the assistant.

    `intents` maps a normalised text to its reply. Different replies come in the order of the messages, each once,
    with an empty line between.
    """
    if not intents or not texts:
        return None
    replies: dict[str, None] = {}
    for text in texts:
        if (reply := intents.get(normalise(text))) is None:
            return None
        replies[reply] = None
    return "\n\n".join(replies)
