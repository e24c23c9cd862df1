"""Which stars, underscores and tildes may be markup: CommonMark's rule, but no sign of a sum is lost, and prefixes stick.

Owns the parser's rules for them; pairs nothing (markdown-it does), never writes WhatsApp's markup. A star that is no
markup stands as it is written, which at worst is not pretty; a sign that is taken for markup makes of 2*500 mg another dose.
"""

from itertools import islice

import regex
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.emphasis import tokenize as emphasis
from markdown_it.rules_inline.strikethrough import tokenize as strikethrough

# Letters of formulas. The others write words where a marker may stick to the next letter: an Arabic prefix, all Chinese.
_LATIN = r"\p{Latin}\p{Greek}µ\U0001D400-\U0001D7FF"
_OTHER = rf"[\w--[{_LATIN}\p{{N}}_]]"
_LETTER = r"[\w--[\p{N}_]]"
_NUMBER = r"(?:[-+−]?\.?\p{N}|[√\p{Sc}]|[%°]\w)"
_ENDS_OPERAND = r"[[\w\p{N})\]}%°!]--_]"


def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile("(?V1)" + pattern)


# Each of these is matched where a run of stars begins.
_OPERATOR = _compiled(
    rf"(?<={_ENDS_OPERAND})\*(?!\*)(?=[\w(--_]|{_NUMBER})"  # l*w*h, 2*500, (a+b)*3
    r"|(?<=[\p{Pe}|])\*(?!\*)(?=[\p{Ps}|\\])"  # [dose]*[weight], |a|*|b|
    r"|(?<=\p{Pe})\*(?!\*)(?=\p{N})|(?<=\p{N})\*(?!\*)(?=\p{Ps})"  # （5）*3*（2）
    r"|(?<=\p{N})\*(?=[ \t]+[\p{N}(])"  # 6* 2
    rf"|(?<=\p{{N}})\*\*(?!\*)(?=[{_LATIN}(]|{_NUMBER})"  # 2**10, 10**-3
    rf"|(?<=[{_LATIN})%])\*\*(?=\p{{N}})"  # x**2
    rf"|(?<=\([^\s()*]*\))\*\*(?=\(|[{_LATIN}](?!\w))"  # (a+b)**n; not 1)**A dose**
    r"|(?<=\p{N})\*{3,}(?=\p{N})"  # 4111****1111
    r"|(?<=/)\*{1,2}(?=[/.])"  # src/*/*.py
)
_SUFFIXED = _compiled(rf"\*++(?:{_OTHER}|{_LETTER}{{2}}|s(?!\w)|\W)")  # **2**nd, *ayah*s, **500**(mg); not **2**n
# و*الله*; not ط*نق**2: CommonMark's own rule against that knows only runs that might open and close.
_PREFIXED = _compiled(rf"(?<={_OTHER})\*(?={_LETTER})(?![^*\n]*+(?<=\S)\*\*(?!\*))")
_WITHIN_WORD = _compiled(rf"(?<=[{_LATIN}])\*\*(?=[{_LATIN}])")
_CLOSED_IN_WORD = _compiled(r"\*\*[^\s*]{2,}\*\*")  # un**frigging**believable; not x**n + y**n
# 500**mg**, B**12**: a pair that is alone in its word, and no number sticks to another. Not 2**n+3**n, 5**10**.
_ENDS_NUMBER_OR_NAME = _compiled(
    rf"(?<!\*[^\s*]*)(?:(?<=\p{{N}})\*\*(?=[{_LATIN}])|(?<!\p{{N}}\w*)(?<=[{_LATIN}])\*\*(?=\p{{N}}))"
    rf"[[\w/%.,:;!?]--_]+\*\*(?![\w*#\p{{S}}]|-\w|{_NUMBER}|[\p{{Ps}}\\])"
)
_SIGNS = r"[\p{Sc}\p{Pd}+−±~≈<>≤≥#@%٪]{1,2}"
_VARIABLE = r"(?<!\w)[\p{Arabic}--[وفبكل]]"  # a letter that stands alone, and is no prefix
_BEFORE_NUMBER = _compiled(rf"(?<={_OTHER})\*\*(?=\p{{N}}|(?<!{_VARIABLE}\*\*){_SIGNS}\w)")
# 每天**2**次, و**$5** و**-5**; not س**2 + ص**2 or س**-2 + ص**-2
_CLOSED_BEHIND_IT = _compiled(
    r"\*\*[^*\n]++(?<=\S)\*\*(?!\p{N}|(?<=(?<!\w)\p{L}\*\*)[-+−]\p{N})"
    r"|\*\*(?:[^*\n]++|(?<=\w)\*(?=\w))++(?<=[^\s*])\*\*(?![\w*#\\\p{Ps}\p{S}]|-)"  # 服**0.5g*2片**，
)
# It opens though a letter stands before and a sign behind: و**«الصبر»**; closes in the mirrored case: **النية:**هي
_QUOTES = r"\p{Pi}\p{Pf}\p{So}\"'`﴾﴿"
_OPENS = _compiled(rf"(?<={_LETTER})\*{{2,}}(?=[{_QUOTES}])|(?<={_OTHER}|\p{{Cf}})\*+(?=[{_QUOTES}\p{{Ps}}])")
_CLOSES = _compiled(
    r"(?<=[\p{Pf}\p{So}“‘\"'`:.!?=])\*{2,}(?=[\w--_])"
    rf"|(?<=%)\*{{2,}}(?={_LETTER})|(?<=[\p{{Sc}}+])\*{{2,}}(?={_OTHER})"
    rf"|(?<=[\p{{Po}}\p{{Pe}}\p{{Pf}}\p{{So}}“‘`﴾﴿--[*/\\#@&]])\*+(?={_OTHER}|\p{{Cf}})"
)
# What stands before a run that ends the word which the same run began.
_BEGUN = {n: _compiled(rf"(?r)(?<![[\w\p{{Pe}}\p{{Sc}}%٪‰°′″.*]--_])\*{{{n}}}[^\s*]+") for n in (1, 2, 3)}

_BETWEEN_NUMBERS = _compiled(r"(?<=\p{N})~~(?=\p{N})")
# As far as a name goes. Without a bound each underscore of a long word costs a look at all of it.
_WORD_BEFORE, _WORD_AFTER = _compiled(r"(?r)\w{1,64}"), _compiled(r"\w{1,64}")


def _flanks(src: str, start: int, end: int, opens: bool, closes: bool, *, within: bool) -> tuple[bool, bool]:
    """Whether the run of stars may open and close, given what CommonMark says; `within` others that opened last."""
    if _OPERATOR.match(src, start):
        begun = _BEGUN.get(end - start)
        ends_word = begun is not None and begun.match(src, 0, start) is not None
        begins = _PREFIXED.match(src, start) or (not within and _ENDS_NUMBER_OR_NAME.match(src, start))
        return bool(begins), ends_word and _SUFFIXED.match(src, start) is not None
    if _WITHIN_WORD.match(src, start):
        return _CLOSED_IN_WORD.match(src, start) is not None, _SUFFIXED.match(src, start) is not None
    if _BEFORE_NUMBER.match(src, start):
        return _CLOSED_BEHIND_IT.match(src, start) is not None, closes
    return opens or _OPENS.match(src, start) is not None, closes or _CLOSES.match(src, start) is not None


def _is_name(word: regex.Match[str] | None) -> bool:
    return word is not None and "_" in word.group().strip("_")


def stars_and_underscores(state: StateInline, silent: bool) -> bool:
    """markdown-it's rule for `*` and `_`, with what a run of them may do decided here."""
    src, start, known = state.src, state.pos, len(state.delimiters)
    if not emphasis(state, silent):
        return False
    first, *others = state.delimiters[known:]
    if src[start] == "*":
        last = next(
            (
                other
                for other in islice(reversed(state.delimiters), len(state.delimiters) - known, None)
                if other.marker == first.marker
            ),
            None,
        )
        within = last is not None and last.open  # **A = πr**2** is no r2
        first.open, first.close = _flanks(src, start, state.pos, first.open, first.close, within=within)
    elif first.length == 1:  # an underscore beside a name with others in it is its own: _id and user_id_
        first.open = first.open and not _is_name(_WORD_AFTER.match(src, start))
        first.close = first.close and not _is_name(_WORD_BEFORE.match(src, 0, state.pos))
    for delimiter in others:
        delimiter.open, delimiter.close = first.open, first.close
    return True


def tildes(state: StateInline, silent: bool) -> bool:
    """markdown-it's rule for `~~`; between two numbers it begins nothing."""
    src, start, known = state.src, state.pos, len(state.delimiters)
    if not strikethrough(state, silent):
        return False
    if _BETWEEN_NUMBERS.match(src, start):  # ~~50~~30 ends there
        for delimiter in state.delimiters[known:]:
            delimiter.open = False
    return True
