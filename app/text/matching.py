"""When two texts are alike to an intent. Pure functions."""

import unicodedata

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
    bare = unicodedata.normalize("NFKC", _UNSEEN.sub("", folded))  # letters that a mark kept apart may join
    return str(_BREAKS.sub(" ", bare)).strip()
