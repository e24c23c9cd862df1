"""What the database did not take is at hand, within bounds."""

from app.unkept import OVERHEAD, Unkept


def test_what_is_held_is_at_hand_until_it_is_dropped() -> None:
    """The last that was held under a key; nothing of it is counted behind that."""
    unkept: Unkept[str] = Unkept()
    unkept.hold("a", b"1")
    unkept.hold("a", b"22")
    unkept.hold("b", b"")
    assert (unkept.get("a"), unkept.get("b"), unkept.get("c")) == (b"22", b"", None)
    assert unkept.bytes == 2 * OVERHEAD + 2
    for key in "abc":
        unkept.drop(key)
    assert unkept.all() == [] and unkept.bytes == 0


def test_beyond_its_bound_the_oldest_is_let_go_of() -> None:
    """Counted in bytes; what was held anew is young; what is larger than the bound is not held."""
    unkept: Unkept[int] = Unkept(3 * (OVERHEAD + 10))
    for key in (1, 2, 3, 1, 4):
        unkept.hold(key, b"x" * 10)
    assert [key for key, _ in unkept.all()] == [3, 1, 4]
    unkept.hold(5, b"x" * 11)
    assert [key for key, _ in unkept.all()] == [4, 5]  # one byte too many for three
    unkept.hold(6, b"x" * 4 * OVERHEAD)
    assert unkept.all() == [] and unkept.bytes == 0
