"""Which script a language is written in: what can be known of a text's language without guessing. Pure.

A text without one letter of its script is not in that language. That it has such letters says nothing: Arabic, Persian
and Urdu share theirs. Whoever must know more asks the translator (`app.translation.Translator.recognise`).
"""

import regex

# Unicode CLDR's likely scripts, of languages whose script is not Latin. What is not here may be any text.
_SCRIPTS = {
    "Arabic": "ar ckb fa ks ps sd ug ur",
    "Armenian": "hy",
    "Bengali": "as bn",
    "Cyrillic": "be bg kk ky mk mn ru tg uk",
    "Devanagari": "hi mr ne sa",
    "Ethiopic": "am ti",
    "Georgian": "ka",
    "Greek": "el",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Hangul": "ko",
    "Han": "zh",
    "Hebrew": "he yi",
    "Kannada": "kn",
    "Khmer": "km",
    "Lao": "lo",
    "Malayalam": "ml",
    "Myanmar": "my",
    "Oriya": "or",
    "Sinhala": "si",
    "Tamil": "ta",
    "Telugu": "te",
    "Thaana": "dv",
    "Thai": "th",
    "Tibetan": "bo",
}
_ANY = regex.compile(r"\p{L}")
_LETTER = {
    language: regex.compile(rf"\p{{Script={script}}}") for script, all in _SCRIPTS.items() for language in all.split()
}


def may_be(text: str, language: str) -> bool:
    """False: `text` has no letter of the script that `language` (a code like "ar") is written in, so it is in another.

    A code that names a script of its own ("pa-Arab", "az-Cyrl") may be any text with a letter in it.
    """
    primary, *rest = language.split("-")
    letter = None if any(len(part) == 4 for part in rest) else _LETTER.get(primary)
    return (letter or _ANY).search(text) is not None
