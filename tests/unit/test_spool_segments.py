"""A segment's file: what is read from one that was cut, damaged, reordered, or sealed under another key."""

import fcntl
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConfigurationError
from app.redaction import shown
from app.spool import Record, frames
from app.spool.frames import HEADER_BYTES
from app.spool.reader import Damaged, Finding, Foreign, Missing, Reader, Sound, Torn
from app.spool.segments import Segment
from app.vault import Vault
from tests.spooled import NEW, OLD, record

NAME = "2026.11.22.074322.000000.abcdef.spool"


RECORDS = [record(n, bytes([n]) * size) for n, size in enumerate((0, 1, 40, 7, 300))]


def claimed(path: Path, vault: Vault) -> Reader | None:
    """A reader that has the segment, if it can have it."""
    reader = Reader(path, vault)
    if reader.claim():
        return reader
    reader.close()
    return None


def written(records: list[Record], *, name: str = NAME, vault: Vault | None = None, first: int = 0) -> list[bytes]:
    """The frames of records, as a segment has them."""
    return [frames.seal(vault or Vault([OLD]), name, first + n, each) for n, each in enumerate(records)]


def findings(data: bytes, *, name: str = NAME, vault: Vault | None = None) -> list[Finding]:
    """What a reader finds in a segment of these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        reader = claimed(path, vault or Vault([OLD]))
        assert reader
        found = []
        while piece := reader.read():
            found += piece
        reader.close()
        return found


FRAMES = written(RECORDS)
DATA = b"".join(FRAMES)
STARTS = [sum(map(len, FRAMES[:n])) for n in range(len(FRAMES) + 1)]
SOUND = [Sound(each) for each in RECORDS]


@given(st.lists(st.binary(max_size=5_000), max_size=150))
def test_what_was_written_is_read_in_order(bodies: list[bytes]) -> None:
    """Any number of records, of any bytes: the same, once, in order, and nothing besides."""
    records = [record(n, body) for n, body in enumerate(bodies)]
    assert findings(b"".join(written(records))) == [Sound(each) for each in records]


@pytest.mark.parametrize("hole", [0, 1, 5_000])
def test_cut_at_any_byte_exactly_what_is_whole_before_it_is_read(hole: int) -> None:
    """Whatever lies at the end of a write that was cut short, or zeros that a file system left there, is no record."""
    for cut in range(len(DATA)):
        whole = max(n for n, start in enumerate(STARTS) if start <= cut)
        torn = cut - STARTS[whole]
        expected: list[Finding] = [*SOUND[:whole]]
        if torn:
            expected.append(Torn(torn))
        assert findings(DATA[:cut]) == expected
        if hole and not torn:
            assert findings(DATA[:cut] + bytes(hole)) == [*expected, Torn(hole)]


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_a_damaged_byte_costs_its_own_record_alone(place: int, change: int) -> None:
    """All others are read; of the damaged one all bytes are handed over as they are, and none is misread."""
    damaged = bytearray(DATA)
    damaged[place] ^= change
    victim = max(n for n, start in enumerate(STARTS[:-1]) if start <= place)
    raw = bytes(damaged[STARTS[victim] : STARTS[victim + 1]])
    assert findings(bytes(damaged)) == [*SOUND[:victim], Damaged(raw), *SOUND[victim + 1 :]]


def test_every_byte_of_a_header_counts() -> None:
    """The same for each byte of each header, one bit turned: a damaged length swallows nothing."""
    for victim, start in enumerate(STARTS[:-1]):
        for place in range(start, start + HEADER_BYTES):
            damaged = bytearray(DATA)
            damaged[place] ^= 0x80
            raw = bytes(damaged[start : STARTS[victim + 1]])
            assert findings(bytes(damaged)) == [*SOUND[:victim], Damaged(raw), *SOUND[victim + 1 :]]


@given(st.integers(0, len(RECORDS)), st.binary(min_size=1, max_size=200))
def test_strange_bytes_between_records_cost_none(where: int, strange: bytes) -> None:
    """Whatever was written between two frames is handed over alone."""
    found = findings(b"".join(FRAMES[:where]) + strange + b"".join(FRAMES[where:]))
    assert [each for each in found if isinstance(each, Sound)] == SOUND
    (rest,) = [each for each in found if not isinstance(each, Sound)]
    assert rest == Damaged(strange) or (where == len(RECORDS) and rest == Torn(len(strange)))


def test_what_is_larger_than_a_piece_is_found_behind_a_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search goes on over any distance, whichever place its windows end at."""
    large = written([record(0, b"x" * 3_000), record(1)])
    broken = b"\0" + large[0][1:]
    for window in (5, 64, len(broken) - 3, len(broken), len(broken) + 2):
        monkeypatch.setattr("app.spool.reader.SEARCH_BYTES", window)
        assert findings(broken + large[1]) == [Damaged(broken), Sound(record(1))]


def test_a_record_that_is_left_out_is_noticed() -> None:
    """From the front or the middle: so many are missing. (Behind the last one nobody can tell.)"""
    assert findings(b"".join(FRAMES[2:])) == [Missing(2, 0), *SOUND[2:]]
    assert findings(FRAMES[0] + FRAMES[3]) == [SOUND[0], Missing(2, 1), SOUND[3]]


def test_a_record_opens_in_its_own_place_alone() -> None:
    """Copied into another segment, or written a second time behind its place, it is damage and no record."""
    assert findings(DATA, name=NAME.replace("abcdef", "abcdee")) == [Damaged(DATA)]
    assert findings(FRAMES[0] + FRAMES[1] + FRAMES[0]) == [*SOUND[:2], Damaged(FRAMES[0])]


def test_a_record_that_was_sealed_with_another_key_under_this_ones_name_is_damage() -> None:
    """The key's id is no proof."""
    forged = written([record(0)], vault=Vault([NEW]))[0]
    ids = {key: Vault([key]).key_ids[0] for key in (OLD, NEW)}
    head = frames.header(forged)
    assert head and head.key_id == ids[NEW]
    sealed = forged[HEADER_BYTES:]
    assert frames.unseal(Vault([OLD]), NAME, head._replace(key_id=ids[OLD]), sealed) is None
    assert frames.unseal(Vault([NEW]), NAME, head, sealed) == record(0)


def test_a_record_of_a_key_that_is_not_here_is_no_damage() -> None:
    """It is told apart: with its key it can be read."""
    other = written([record(1)], vault=Vault([NEW]), first=1)[0]
    key_id = Vault([NEW]).key_ids[0]
    assert findings(FRAMES[0] + other + FRAMES[2]) == [SOUND[0], Foreign(key_id), SOUND[2]]
    assert findings(FRAMES[0] + other, vault=Vault([NEW, OLD])) == [SOUND[0], Sound(record(1))]
    with pytest.raises(ConfigurationError, match=f"sealed under key {key_id}, which is not in QASID_SECRET_KEY"):
        Vault([OLD]).open_bytes(key_id, b"", owner="o", field="f")


def test_nothing_of_a_body_shows() -> None:
    """Not on the disk, not in a repr."""
    secret = record(0, b"the patient's canary")
    assert b"canary" not in written([secret])[0]
    assert "canary" not in repr(secret)


def test_a_reader_hands_over_bounded_pieces(tmp_path: Path) -> None:
    """So many findings, or so many bytes and one record more."""
    path = tmp_path / NAME
    path.write_bytes(b"".join(written([record(n) for n in range(150)])))
    reader = claimed(path, Vault([OLD]))
    assert reader
    assert [len(reader.read()) for _ in range(4)] == [64, 64, 22, 0]
    reader.close()
    path.write_bytes(b"".join(written([record(n, bytes(600_000)) for n in range(5)])))
    reader = claimed(path, Vault([OLD]))
    assert reader
    assert [len(reader.read()) for _ in range(4)] == [2, 2, 1, 0]
    reader.close()


@pytest.mark.parametrize("deleted", [False, True])
def test_a_new_segment_that_a_replay_was_quicker_to_lock_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    """It is empty, so whoever replays deletes it, now or soon: another one is begun."""
    vault, real = Vault([OLD]), fcntl.flock
    readers = []

    def be_quicker(handle: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        (path,) = tmp_path.iterdir()
        reader = claimed(path, vault)
        assert reader
        if deleted:
            reader.delete()
            reader.close()
        else:
            readers.append(reader)
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", be_quicker)
    segment = Segment.begin(tmp_path, 1_000)
    for reader in readers:
        reader.delete()
        reader.close()
    assert list(tmp_path.iterdir()) == [segment.path]
    assert claimed(segment.path, vault) is None
    segment.close()


def test_a_segments_name_can_be_logged(tmp_path: Path) -> None:
    """The operator needs it: nothing in it looks like a phone number or a key."""
    for n in range(50):
        segment = Segment.begin(tmp_path, 1_800_000_000 + n * 1_234.56789)
        assert shown("file", segment.path.name) == segment.path.name
        segment.close()


def test_a_segment_belongs_to_one_at_a_time(tmp_path: Path) -> None:
    """While it is written or replayed nobody else has it; afterwards it is free, and an empty one is gone."""
    vault = Vault([OLD])
    segment = Segment.begin(tmp_path, 1_000.5)
    assert segment.path.name.startswith("1970.01.01.001640.500000.")
    segment.append(frames.seal(vault, segment.path.name, 0, record(0)), 1)
    assert claimed(segment.path, vault) is None
    segment.close()
    reader = claimed(segment.path, vault)
    assert reader
    assert claimed(segment.path, vault) is None
    reader.delete()
    reader.close()
    assert claimed(segment.path, vault) is None
    Segment.begin(tmp_path, 1_000.5).close()
    assert list(tmp_path.iterdir()) == []
