"""When two texts are alike to an intent. Pure functions."""

import unicodedata

import regex

# Arabic vowel signs and the marks of Quranic recitation, the tatweel that only stretches a word, and what cannot be seen:
# keyboards for right-to-left scripts put direction marks around a text.
_UNSEEN = regex.compile(
    r"[\u0610-\u061A\u064B-\u065F\u0670\u06D6-\u06DC\u06DF-\u06E8\u06EA-\u06ED\u08CA-\u08FF\u0640"
    r"\p{Default_Ignorable_Code_Point}]+"
)
# What no script writes; to put it in order takes time that grows with the square of it (UAX #15 allows 30, too).
_TOO_MANY_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")
# Punctuation of any script; ~ and ` are symbols to Unicode, but WhatsApp's marks for struck and fixed-width text.
_BREAKS = regex.compile(r"[\p{P}\s~`]+")


def normalise(text: str) -> str:
    """`text` as intents compare it; the empty string never matches.

    In this order: compatibility forms are unified (NFKC) and case is folded; tashkeel, tatweel and invisible characters
    vanish; any run of punctuation and white space becomes one space, and none at either end. Symbols stay, so that an
    emoji can be matched; of the marks on one letter the first 30 count. Hence "  ¡Hola!! " is "hola", and "السَّلامُ عليكم"
    is "السلام عليكم".
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _few_marks(text)).casefold())
    bare = unicodedata.normalize("NFKC", _few_marks(_UNSEEN.sub("", folded)))  # letters that a mark kept apart may join
    return str(_BREAKS.sub(" ", bare)).strip()


def _few_marks(text: str) -> str:
    return str(_TOO_MANY_MARKS.sub(r"\1", text))
