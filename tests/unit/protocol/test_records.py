"""The journal's bytes: what is written is what is read; torn is nothing; hostile is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atomik._protocol import records as _records
from atomik._protocol.records import (
    COMMITTED,
    UNDONE,
    BadJournal,
    Folder,
    Intent,
    StepRecord,
    decode,
    encode_outcome,
)
from tests.support.journals import encode_intent, record

TXID = "0123456789abcdef"

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=[]), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and not name.startswith(".atomik-") and encodable(name)
)
identities = st.binary(min_size=1, max_size=140)


def encodable(name: str) -> bool:
    try:
        return name.encode(errors="surrogateescape").decode(errors="surrogateescape") == name
    except UnicodeEncodeError:
        return False


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    parts = st.lists(names, max_size=4).map(tuple)
    folders = tuple(draw(st.lists(st.builds(Folder, parts, identities, st.booleans()), min_size=1, max_size=4)))
    number = st.integers(0, len(folders) - 1)
    steps = [
        StepRecord(
            op,
            draw(st.sampled_from(_records.KINDS)),
            draw(st.booleans()),
            draw(number),
            draw(names),
            draw(number),
            f".atomik-{TXID}-{draw(st.integers(0, 10**10 - 1))}",
            None if op == "remove" else draw(identities),
            None if op == "create" else draw(identities),
            draw(st.integers(-(2**63), 2**63 - 1)),
        )
        for op in draw(st.lists(st.sampled_from(_records.OPS[:3]), max_size=5))
    ]
    return Intent(TXID, folders, tuple(steps))


@pytest.mark.sweep  # a plain run has test_journal.test_what_is_written_is_read
@settings(max_examples=150, deadline=None)
@given(intents(), st.sampled_from([None, COMMITTED, UNDONE]))
def test_round_trip(intent: Intent, outcome: int | None) -> None:
    """Whatever can be encoded is decoded to the same, with any outcome after it."""
    data = encode_intent(intent)
    behind = len(data)
    if outcome is not None:
        data += encode_outcome(outcome, TXID)
    journal = decode(data)
    assert journal is not None
    assert journal.intent == intent
    assert journal.outcome == outcome
    assert journal.end == behind
    assert _records.extent(data[: _records.HEAD_SIZE]) >= len(data)


SIMPLE = Intent(
    TXID,
    (Folder((), b"parent", parent=True), Folder(("sub", os_name := "\udcff"), b"private folder", parent=False)),
    (
        StepRecord("create", "file", False, 0, "new", 1, f".atomik-{TXID}-0", b"n", None, 0),
        StepRecord("replace", "folder", True, 0, os_name, 1, f".atomik-{TXID}-1", b"n", b"o", -5),
        StepRecord("remove", "other", False, 0, "gone", 1, f".atomik-{TXID}-2", None, b"o", 2**40),
    ),
)
DATA = encode_intent(SIMPLE)
MARK = encode_outcome(COMMITTED, TXID)


@pytest.mark.parametrize("few", [0, 1000])
def test_a_large_intent_is_made_in_pieces(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """They are the same bytes; zeros behind it are part of the last one, and not of the intent."""
    long = SIMPLE._replace(steps=SIMPLE.steps * 20)
    whole, count = encode_intent(long), len(long.steps)
    monkeypatch.setattr(_records, "_PIECE", 512)
    monkeypatch.setattr(_records, "_FEW", few)
    asked = []

    def steps() -> tuple[StepRecord, ...]:
        asked.append(count)
        return long.steps

    pieces = list(_records.encode(TXID, long.journal, long.folders, steps, count, room=64))
    assert len(asked) == (1 if few else 2)
    assert len(pieces) > 4
    assert b"".join(pieces) == whole + bytes(64)


def test_every_torn_intent_is_nothing() -> None:
    """Any prefix of an intent says that nothing was swapped, also when zeros follow (space that was never written).

    The header is in one sector, which is written whole or not at all.
    """
    for length in range(len(DATA)):
        assert decode(DATA[:length]) is None
        if length == 0 or length >= _records.HEAD_SIZE:
            assert decode(DATA[:length].ljust(len(DATA) + len(MARK), b"\0")) is None


def test_every_missing_sector_is_nothing() -> None:
    """Of a long intent any sector may be missing, because they are written in any order."""
    long = SIMPLE._replace(steps=SIMPLE.steps * 20)
    data = encode_intent(long)
    assert len(data) > 4 * 512
    for at in range(0, len(data), 512):
        holed = data[:at] + bytes(len(data[at : at + 512])) + data[at + 512 :]
        assert decode(holed) is None


def test_every_torn_outcome_is_none() -> None:
    """A prefix of the mark is not a mark, and the record's place stays where it was."""
    for length in range(len(MARK)):
        journal = decode(DATA + MARK[:length])
        assert journal is not None
        assert journal.outcome is None
        assert journal.end == len(DATA)
    zeros = decode(DATA + bytes(len(MARK)))
    assert zeros is not None
    assert zeros.outcome is None


def test_a_mark_lies_in_one_sector() -> None:
    """Wherever it is, no sector boundary runs through it."""
    for steps in range(30):
        start = len(encode_intent(SIMPLE._replace(steps=SIMPLE.steps * steps)))
        assert len(MARK) <= 64
        assert start % 512 + len(MARK) <= 512


def test_every_flipped_bit_is_noticed() -> None:
    """One bit anywhere: torn, or refused, but never another intent or another outcome."""
    whole = DATA + MARK
    for at in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            try:
                journal = decode(bytes(damaged))
            except BadJournal:
                continue
            assert journal is None or (at >= len(DATA) and journal.intent == SIMPLE and journal.outcome is None)
            assert journal is not None or at in range(8, 16), "damage was taken for nothing swapped"


def payload(
    folders: bytes = b"", steps: bytes = b"", counts: tuple[int, int] = (0, 0), txid: bytes = TXID.encode()
) -> bytes:
    return txid + struct.pack("<HHII", 0, 0, *counts) + folders + steps


def folder_bytes(path: bytes, identity: bytes = b"i") -> bytes:
    return b"\1" + struct.pack("<HH", len(path), len(identity)) + path + identity


def step_bytes(
    op: int = 0, kind: int = 0, dest: bytes = b"x", slot: bytes = f".atomik-{TXID}-0".encode(),
    new: bytes = b"n", old: bytes = b"", dest_folder: int = 0, slot_folder: int = 0,
) -> bytes:  # fmt: skip
    head = struct.pack(
        "<BBHIIHHHHq", op, kind, 0, dest_folder, slot_folder, len(dest), len(slot), len(new), len(old), 0
    )
    return head + dest + slot + new + old


ONE_FOLDER = folder_bytes(b"")
#: the intent of a version 1 journal with one folder, up to its one step
VERSION_1 = TXID.encode() + struct.pack("<HII", 0, 1, 1) + ONE_FOLDER


def one_step(**fields: object) -> bytes:
    return record(1, payload(ONE_FOLDER, step_bytes(**fields), (1, 1)))  # type: ignore[arg-type]


def test_the_forger_writes_as_we_do() -> None:
    """The helper above makes what `decode` accepts, or the test below would prove nothing."""
    journal = decode(one_step())
    assert journal is not None
    assert journal.intent.steps[0].dest_name == "x"


def test_version_1_is_still_read() -> None:
    """A journal of atomik 0.1.0: no coordinator, and no exchange of two destinations."""
    journal = decode(record(1, VERSION_1 + step_bytes(), version=1) + record(COMMITTED, TXID.encode(), version=1))
    assert journal is not None
    assert journal.intent.steps[0].dest_name == "x"
    assert journal.intent.coordinator == ""
    assert journal.outcome == COMMITTED


def test_recovery_writes_its_outcome_behind_version_1() -> None:
    """The record that this version appends ends a journal of version 1 as well."""
    journal = decode(record(1, VERSION_1 + step_bytes(), version=1) + encode_outcome(UNDONE, TXID))
    assert journal is not None
    assert journal.outcome == UNDONE


def test_the_slot_of_an_exchange_is_a_destination() -> None:
    """In a parent folder, under a name of the user's."""
    step = StepRecord("exchange", "folder", False, 0, "new", 0, os_name, b"n", b"o", 0)
    journal = decode(encode_intent(SIMPLE._replace(steps=(step,), coordinator="Datenbank ß")))
    assert journal is not None
    assert journal.intent.steps == (step,)
    assert journal.intent.coordinator == "Datenbank ß"


def test_the_coordinators_name_has_a_limit() -> None:
    """In bytes; it is said when it is written, not when it cannot be read."""
    decode(encode_intent(SIMPLE._replace(coordinator="ß" * 127)))
    with pytest.raises(ValueError, match="255 bytes"):
        encode_intent(SIMPLE._replace(coordinator="ß" * 128))


@pytest.mark.parametrize(
    "data",
    [
        b"not a journal at all, but some text that is long enough",
        record(COMMITTED, TXID.encode()),
        record(1, payload(), magic=b"AtmX"),
        record(1, payload(), version=3),
        record(1, payload(), version=0),
        record(1, b"x"),
        record(1, payload(txid=b"../../etc/passwd")),
        record(1, payload(txid=b"0123456789ABCDEF")),
        record(1, payload() + b"more"),
        record(1, payload(counts=(9, 0))),
        record(1, payload(counts=(2**32 - 1, 2**32 - 1))),
        record(1, payload(folder_bytes(b".."), counts=(1, 0))),
        record(1, payload(folder_bytes(b"a/../b"), counts=(1, 0))),
        record(1, payload(folder_bytes(b"/etc"), counts=(1, 0))),
        record(1, payload(folder_bytes(b"a//b"), counts=(1, 0))),
        record(1, payload(folder_bytes(b"a\0b"), counts=(1, 0))),
        one_step(dest=b""),
        one_step(dest=b".."),
        one_step(dest=b"."),
        one_step(dest=b"a/b"),
        one_step(dest=b"a\0"),
        one_step(slot=b"passwd"),
        one_step(slot=b".atomik-ffffffffffffffff-0"),
        one_step(slot=f".atomik-{TXID}-0/../x".encode()),
        one_step(slot=f".atomik-{TXID}-0\n".encode()),
        one_step(slot=f".atomik-{TXID}-".encode()),
        one_step(slot=b"\xff"),
        one_step(dest_folder=1),
        one_step(slot_folder=7),
        one_step(op=4),
        one_step(op=3, old=b"o"),
        one_step(op=3, old=b"o", slot=b".."),
        one_step(op=3, old=b"o", slot=b"a/b"),
        one_step(op=3, old=b"o", slot=b".atomik-journal"),
        one_step(op=3, slot=b"y"),
        one_step(op=3, old=b"o", slot=b"y", new=b""),
        one_step(dest=b".atomik-x"),
        record(1, payload(b"\0" + folder_bytes(b"")[1:], step_bytes(op=3, old=b"o", slot=b"y"), (1, 1))),
        record(1, TXID.encode() + struct.pack("<HH", 0, 300) + b"c" * 300 + struct.pack("<II", 0, 0)),
        record(1, TXID.encode() + struct.pack("<HH", 0, 1) + b"\xff" + struct.pack("<II", 0, 0)),
        record(1, VERSION_1 + step_bytes(op=3, old=b"o", slot=b"y"), version=1),
        one_step(kind=9),
        one_step(op=0, old=b"o"),
        one_step(op=0, new=b""),
        one_step(op=1),
        one_step(op=2),
        one_step() + record(COMMITTED, b"f" * 16),
        one_step() + record(1, payload()),
        one_step() + record(9, TXID.encode()),
        one_step() + record(COMMITTED, TXID.encode()) + record(UNDONE, TXID.encode()),
        one_step() + b"trailing text that nobody of ours wrote there",
    ],
    ids=lambda data: f"{len(data)} bytes",
)  # fmt: skip
def test_hostile_contents(data: bytes) -> None:
    """What atomik would not write is refused, with a right checksum too."""
    with pytest.raises(BadJournal):
        decode(data)


def test_length_that_lies() -> None:
    """A header that promises more than any journal has is refused, and asks nobody to read that much."""
    head = struct.pack("<4sHHQ", b"AtmK", 1, 1, 2**40)
    with pytest.raises(BadJournal):
        decode(head + b"x" * 100)
    assert decode(struct.pack("<4sHHQ", b"AtmK", 1, 1, 2**24) + b"x" * 100) is None
    assert _records.extent(head) <= _records.MAX_SIZE + 1024
    assert _records.extent(b"") == _records.HEAD_SIZE


def test_repeated_outcome_is_the_same_outcome() -> None:
    """An outcome written twice, after an interrupt, says the same."""
    journal = decode(DATA + MARK + MARK)
    assert journal is not None
    assert (journal.outcome, journal.end) == (COMMITTED, len(DATA))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    """Nothing but None and BadJournal comes of garbage."""
    for candidate in (data, DATA + data, record(1, data)):
        try:
            journal = decode(candidate)
        except BadJournal:
            continue
        assert journal is None or journal.intent == SIMPLE
