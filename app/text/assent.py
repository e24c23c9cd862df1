"""The words for yes and no in the languages that a question may be asked back in. Pure, and short on purpose."""

from app.text.matching import normalise

# By language code: what says yes, then what says no, each a whole answer.
_WORDS = {
    "ar": ("نعم|اي|أي|ايوه|أيوه|ايوا|أجل|اجل|تمام|موافق|أكيد|اكيد|حسنا", "لا|كلا|لأ|لا شكرا|غير موافق"),
    "bn": ("হ্যাঁ|হাঁ|জি|জ্বি|ঠিক আছে", "না|জি না"),
    "de": ("ja|jawohl|klar|gerne|ok|okay", "nein|nee|ne|lieber nicht"),
    "en": ("yes|y|yeah|yep|yup|sure|ok|okay|yes please|please do", "no|n|nope|nah|no thanks|no thank you"),
    "es": ("sí|si|claro|vale|de acuerdo|ok", "no|no gracias"),
    "fa": ("بله|آره|بلی|باشه", "نه|خیر"),
    "fr": ("oui|ouais|d'accord|bien sûr|ok", "non|non merci"),
    "ha": ("eh|ee|i|na'am", "a'a|aa"),
    "hi": ("हाँ|हां|जी|जी हाँ|ठीक है", "नहीं|ना|जी नहीं"),
    "id": ("ya|iya|boleh|oke|ok", "tidak|nggak|enggak|jangan"),
    "it": ("sì|si|certo|va bene|ok", "no|no grazie"),
    "ms": ("ya|boleh|baik|ok", "tidak|tak|jangan"),
    "pt": ("sim|claro|está bem|ok", "não|nao|não obrigado|não obrigada"),
    "ru": ("да|ага|конечно|хорошо|ок", "нет|не надо|не нужно"),
    "so": ("haa|ha|waayahay", "maya|may"),
    "sw": ("ndiyo|ndio|sawa", "hapana|la"),
    "tr": ("evet|tamam|olur|peki", "hayır|hayir|yok|istemiyorum"),
    "ur": ("ہاں|جی|جی ہاں|ٹھیک ہے|haan|han|ji", "نہیں|نہ|جی نہیں|nahi|nahin"),
}
_EVERYWHERE = ("👍", "👎")
_SAID = {
    language: {normalise(word): yes for words, yes in ((f"{said}|{_EVERYWHERE[0]}", True), (f"{denied}|{_EVERYWHERE[1]}", False))
               for word in words.split("|")}
    for language, (said, denied) in _WORDS.items()
}  # fmt: skip

LANGUAGES = tuple(_WORDS)


def known(language: str) -> bool:
    """Whether there are words for yes and no in this language, whatever its region."""
    return language.partition("-")[0] in _WORDS


def assents(bare: str, language: str) -> bool | None:
    """Whether this text, which `normalise` has made, says yes or no in a language; None: neither."""
    return _SAID.get(language.partition("-")[0], {}).get(bare)
