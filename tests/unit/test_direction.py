"""The directions that a text leaves open, by the stack of UAX #9."""

import pytest

from app.text.direction import Directions, closed

LRI, RLI, FSI, PDI = "\u2066", "\u2067", "\u2068", "\u2069"
LRE, RLE, PDF, LRO, RLO = "\u202a", "\u202b", "\u202c", "\u202d", "\u202e"

OPEN = {
    "nothing": ("text", ""),
    "an isolate": (f"a{RLI}b", RLI),
    "an isolate that is closed": (f"a{RLI}b{PDI}c", ""),
    "an override within an isolate": (f"{LRI}a{RLO}b", LRI + RLO),
    "an isolate's end ends what it holds": (f"{LRI}a{RLO}b{PDI}", ""),
    "an override's end leaves an isolate": (f"{RLO}{LRI}a{PDF}", RLO + LRI),
    "ends of nothing": (f"{PDI}{PDF}a", ""),
    "an isolate's end without one leaves embeddings": (f"{LRE}a{PDI}", LRE),
    "the end of a line ends all": (f"{LRI}{RLE}{LRO}a\nb", ""),
    "U+2029 is the end of a paragraph": (f"{RLO}a\u2029b", ""),
    "U+2028 is not": (f"{RLO}a\u2028b", RLO),
    "deeper than any phone looks": (RLI * 1000, RLI * 125),
    "and back": (RLI * 1000 + PDI * 1000, ""),
    "embeddings deeper than any phone looks": (RLE * 1000 + PDF * 875, RLE * 125),
}


@pytest.mark.parametrize(("text", "opened"), OPEN.values(), ids=OPEN.keys())
def test_what_stays_open_is_known(text: str, opened: str) -> None:
    """Openers, outermost first, by the rules X1 to X8; in one step or in two."""
    assert Directions().after(text).opened == opened
    half = len(text) // 2
    assert Directions().after(text, 0, half).after(text, half).opened == opened


@pytest.mark.parametrize(("text", "opened"), OPEN.values(), ids=OPEN.keys())
def test_closing_closes_all_that_is_open(text: str, opened: str) -> None:
    """Behind the closing marks the paragraph's own direction holds again."""
    whole = closed(text)
    assert whole.startswith(text)
    assert len(whole) - len(text) in (len(opened), len(text))  # `len(text)`: all of a thousand
    assert Directions().after(whole).opened == ""
