"""When two texts are alike to an intent. Pure functions."""

import unicodedata

import regex

# Arabic vowel signs and the marks of Quranic recitation, the tatweel that only stretches a word, and what cannot be seen:
# keyboards for right-to-left scripts put direction marks around a text.
UNSEEN = regex.compile(
    r"[\u0610-\u061A\u064B-\u065F\u0670\u06D6-\u06DC\u06DF-\u06E8\u06EA-\u06ED\u08CA-\u08FF\u0640"
    r"\p{Default_Ignorable_Code_Point}]+"
)
# What no script writes; to put it in order takes time that grows with the square of it (UAX #15 allows 30, too).
_TOO_MANY_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")
# Punctuation of any script; ~ and ` are symbols to Unicode, but WhatsApp's marks for struck and fixed-width text.
_BREAKS = regex.compile(r"[\p{P}\s~`]+")
_STARS = regex.compile(r"\*+")


def normalise(text: str) -> str:
    """`text` as intents compare it; the empty string never matches.

    In this order: compatibility forms are unified (NFKC) and case is folded; tashkeel, tatweel and invisible characters
    vanish; any run of punctuation and white space becomes one space, and none at either end. Symbols stay, so that an
    emoji can be matched; of the marks on one letter the first 30 count. Hence "  ¡Hola!! " is "hola", and "السَّلامُ عليكم"
    is "السلام عليكم".
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _few_marks(text)).casefold())
    bare = unicodedata.normalize("NFKC", _few_marks(UNSEEN.sub("", folded)))  # letters that a mark kept apart may join
    return str(_BREAKS.sub(" ", bare)).strip()


class Pattern:
    """A text with `*` in it, each for any run of characters, none too; alone between spaces, for any words.

    What stands between the stars is compared as `normalise` leaves it. Found from left to right, each piece once, so that
    the time is that of reading the text: no pattern can be slow.
    """

    __slots__ = ("_pieces", "name", "stars")

    def __init__(self, text: str) -> None:
        # Each word between spaces of its own, so that a star between two words may stand for none.
        words = (_framed(word) for word in text.split())
        whole = _STARS.sub("*", "".join(words))
        self._pieces = whole.split("*")
        self.stars = len(self._pieces) - 1
        self.name = " ".join(whole.split())
        """The pattern in the one form that all that mean the same have."""

    @property
    def letters(self) -> int:
        """Characters that are not a star's to say."""
        return sum(len(piece.replace(" ", "")) for piece in self._pieces)

    def matches(self, bare: str) -> bool:
        """Whether it is this text, which `normalise` has made."""
        text = f" {bare.replace(' ', '  ')} "
        first, *middle = self._pieces
        if not middle:
            return text == first
        last = middle.pop()
        at, end = len(first), len(text) - len(last)
        if at > end or not (text.startswith(first) and text.endswith(last)):
            return False
        for piece in middle:
            if (found := text.find(piece, at, end)) < 0:
                return False
            at = found + len(piece)
        return True


def _framed(word: str) -> str:
    pieces = [normalise(piece) for piece in word.split("*")]
    if not any(pieces):
        return "*" if "*" in word else ""
    return f" {'*'.join(pieces).replace(' ', '  ')} "


def _few_marks(text: str) -> str:
    return str(_TOO_MANY_MARKS.sub(r"\1", text))
