"""The bytes of a journal, what is made of damaged ones, and the files that hold them.

The hex dump in docs/reference/journal-format.md is made here: ``python -m tests.unit.protocol.test_journal`` prints it.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

import atomik
from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._hidden_names import JOURNAL_NAME
from atomik._protocol import journal as _journal
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
from tests.support.kernels import Acting, Recording, installed
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Iterator

TXID = "0123456789abcdef"
DOCUMENT = Path(__file__).parents[3] / "docs/reference/journal-format.md"

#: The example of the documentation: model.bin is new in "out", config.json is replaced there.
EXAMPLE = Intent(
    TXID,
    (Folder((), b"hD1", True), Folder((f".atomik-{TXID}",), b"hD2", False)),
    (
        StepRecord("create", "file", False, 0, "model.bin", 1, f".atomik-{TXID}-0", b"hN1", None, 0),
        StepRecord("replace", "file", False, 0, "config.json", 1, f".atomik-{TXID}-1", b"hN2", b"hO2", 0),
    ),
    journal=b"hJ",
)


# --- bytes -----------------------------------------------------------------------------------------------------------
names = some.text(some.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)
identities = some.binary(min_size=1, max_size=40)


@some.composite
def intents(draw: some.DrawFn) -> Intent:
    folder = some.builds(Folder, some.lists(names, max_size=3).map(tuple), identities, some.booleans())
    folders = draw(some.lists(folder, min_size=1, max_size=4))
    numbers = some.integers(0, len(folders) - 1)
    steps = []
    for at in range(draw(some.integers(0, 5))):
        op = draw(some.sampled_from(_records.OPS[:3]))
        steps.append(
            StepRecord(
                op, draw(some.sampled_from(_records.KINDS)), draw(some.booleans()), draw(numbers), draw(names),
                draw(numbers), f".atomik-{TXID}-{at}", None if op == "remove" else draw(identities),
                None if op == "create" else draw(identities), draw(some.integers(-(2**40), 2**40)),
            )
        )  # fmt: skip
    return Intent(TXID, tuple(folders), tuple(steps), draw(some.binary(max_size=40)))


@settings(max_examples=40)  # a sweep has more of them: test_records.test_round_trip
@given(intents(), some.sampled_from([None, COMMITTED, UNDONE]))
def test_what_is_written_is_read(intent: Intent, outcome: int | None) -> None:
    """An intent and its outcome come back as they went in, and records are multiples of 64 bytes."""
    data = encode_intent(intent)
    assert len(data) % 64 == 0
    behind = len(data)
    if outcome is not None:
        assert len(encode_outcome(outcome, TXID)) == 64
        data += encode_outcome(outcome, TXID)
    journal = decode(data)
    assert journal is not None
    assert (journal.intent, journal.outcome, journal.end) == (intent, outcome, behind)


def test_a_journal_torn_at_any_byte_says_that_nothing_was_swapped() -> None:
    """Its intent is durable before the first swap (I1), so one that is short, or ends in zeros, is not an intent."""
    data = encode_intent(EXAMPLE)
    for size in range(len(data)):
        assert decode(data[:size]) is None, f"cut at {size}"
        assert data[-1], "the last byte must not be a zero itself for what follows"
        assert decode(data[:size] + bytes(len(data) - size)) is None, f"zeros from {size}"


def test_a_journal_with_a_lost_sector_says_that_nothing_was_swapped() -> None:
    """Sectors reach the disk in any order."""
    many = tuple(
        StepRecord("create", "file", False, 0, f"{n}.txt", 1, f".atomik-{TXID}-{n}", b"hN%d" % n, None, 0)
        for n in range(99)
    )
    data = encode_intent(Intent(TXID, EXAMPLE.folders, many, b"hJ"))
    assert len(data) > 4096
    for at in range(0, len(data), 512):
        assert decode(data[:at] + bytes(512) + data[at + 512 :][: len(data) - at - 512]) is None, at


def test_an_outcome_torn_at_any_byte_is_none() -> None:
    """A transaction is committed when its whole mark is there, and not before."""
    intent, mark = encode_intent(EXAMPLE), encode_outcome(COMMITTED, TXID)
    for size in range(len(mark)):
        for tail in (b"", bytes(len(mark) - size)):
            journal = decode(intent + mark[:size] + tail)
            assert journal is not None
            assert (journal.outcome, journal.end) == (None, len(intent)), size


@pytest.mark.parametrize("outcome", [None, COMMITTED])
def test_a_changed_byte_is_damage_and_never_a_torn_write(outcome: int | None) -> None:
    """Nobody may conclude from a damaged journal that nothing was swapped, nor that it was committed, nor that it was not."""
    data = encode_intent(EXAMPLE) + (b"" if outcome is None else encode_outcome(outcome, TXID))
    for at in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            damaged = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
            with pytest.raises(BadJournal):
                decode(damaged)


def test_a_newer_format_is_refused() -> None:
    """And says so, whatever else is in it."""
    data = bytearray(encode_intent(EXAMPLE))
    struct.pack_into("<H", data, 4, _records.VERSION + 1)
    with pytest.raises(BadJournal, match="version 3, but this atomik knows only 2; use the newer one"):
        decode(bytes(data))


def step(
    op: str = "create", folder: int = 0, name: str = "x", slots: int = 1, slot: str = f".atomik-{TXID}-0", **ids: bytes
) -> Intent:
    """The example's folders, with this step."""
    return Intent(
        TXID, EXAMPLE.folders,
        (StepRecord(op, "file", False, folder, name, slots, slot, ids.get("new"), ids.get("old"), 0),),
    )  # fmt: skip


@pytest.mark.parametrize(
    "intent",
    [
        Intent("0123456789ABCDEF", EXAMPLE.folders, ()),
        *(Intent(TXID, (Folder(parts, b"h", True),), ()) for parts in (("..",), ("a", "", "b"), (".",), ("a\0",))),
        *(step(name=name, new=b"h") for name in ("/etc/passwd", "..", ".", "", "a/b", "a\0")),
        *(
            step(slot=slot, new=b"h")
            for slot in (
                "x",
                "../x",
                f".atomik-{TXID}",
                f".atomik-{TXID}-x",
                f".atomik-{TXID}-0/x",
                ".atomik-fedcba9876543210-0",
            )
        ),
        step(folder=2, new=b"h"),
        step(slots=9, new=b"h"),
        step(new=b"h", old=b"h"),
        step("remove", new=b"h", old=b"h"),
        step("replace", new=b"h"),
    ],
)
def test_what_atomik_would_not_write_is_refused(intent: Intent) -> None:
    """A checksum does not authenticate: names with a slash or "..", strange slots, numbers out of range."""
    with pytest.raises(BadJournal):
        decode(encode_intent(intent))


def test_an_outcome_of_another_transaction_is_refused() -> None:
    """And so are two that differ."""
    intent = encode_intent(EXAMPLE)
    with pytest.raises(BadJournal, match="does not belong"):
        decode(intent + encode_outcome(COMMITTED, "fedcba9876543210"))
    with pytest.raises(BadJournal, match="both"):
        decode(intent + encode_outcome(COMMITTED, TXID) + encode_outcome(UNDONE, TXID))


@given(some.binary(max_size=400))
def test_no_bytes_make_it_fail_in_another_way(data: bytes) -> None:
    """Whatever is in the file."""
    try:
        decode(data)
    except BadJournal:
        pass


@given(some.binary(max_size=300))
def test_no_payload_makes_it_fail_in_another_way(payload: bytes) -> None:
    """Also behind a good header and before a good checksum."""
    try:
        decode(record(_records.INTENT, payload))
    except BadJournal:
        pass


# --- files -----------------------------------------------------------------------------------------------------------
def publish(folder: Path) -> None:
    with atomik.transaction() as tx:
        tx.file(folder / "model.bin", "wb").write(b"1")
        tx.file(folder / "config.json").write("2")


def during(folder: Path, action: object) -> None:
    """Call `action` when the journal of a transaction is complete and its first swap is about to come."""
    once: list[int] = []

    def act(_: object) -> None:
        once.append(1)
        action()  # type: ignore[operator]

    with installed(Acting("rename", act, when=lambda call: not once)):
        publish(folder)
    assert once


def test_all_its_names_are_one_private_file(folder: Path) -> None:
    """One mark commits everywhere at once; nobody else may write to it."""
    seen: list[os.stat_result] = []
    during(folder, lambda: seen.extend(path.stat() for path in folder.rglob("*journal")))
    assert len(seen) == 2, "one in the parent, one in the private folder"
    assert len({(one.st_dev, one.st_ino) for one in seen}) == 1
    assert {(one.st_mode & 0o7777, one.st_nlink) for one in seen} == {(0o600, 2)}


def test_it_tells_what_is_to_be_done(folder: Path) -> None:
    """The intent on disk names what the transaction is about to do."""
    found: list[Intent] = []

    def look() -> None:
        journal = decode((folder / JOURNAL_NAME).read_bytes())
        assert journal is not None
        found.append(journal.intent)

    during(folder, look)
    (intent,) = found
    assert [(step.op, step.kind, step.dest_name) for step in intent.steps] == [
        ("create", "file", "model.bin"), ("create", "file", "config.json"),
    ]  # fmt: skip
    assert [entry.parent for entry in intent.folders] == [True, False]


def test_it_is_locked_by_its_owner(folder: Path) -> None:
    """Someone who finds it can see that its owner lives."""

    def look() -> None:
        directory = Directory.open(str(folder))
        try:
            loaded = _journal.load(Place(directory, JOURNAL_NAME))
            assert loaded is not None
            assert not _journal.lock(loaded[0])
            _journal.close(loaded[0])
        finally:
            directory.close()

    during(folder, look)


@pytest.mark.usefixtures("no_log")
def test_the_mark_follows_the_syncs_of_all_folders(folder: Path) -> None:
    """I1 and I2, by the order of the calls: content and journal, swaps, folders, mark."""
    with installed(Recording({"pwrite", "fsync", "rename", "unlink"})) as kernel:
        publish(folder)
    names = [call.name for call in kernel.calls]
    swaps = [at for at, call in enumerate(kernel.calls) if call.name == "rename"]
    writes = [at for at, name in enumerate(names) if name == "pwrite"]
    assert len(swaps) == len(writes) == 2
    assert writes[0] < swaps[0] < swaps[1] < writes[1]
    assert "fsync" in names[writes[0] : swaps[0]], "the journal is durable before the first swap"
    assert "fsync" in names[swaps[1] : writes[1]], "the swaps are durable before the mark"
    assert names[writes[1] + 1] == "fsync", "the mark is durable before anything else happens"
    assert "unlink" not in names[: writes[1] + 1]


def place_of(folder: Path) -> Iterator[Place]:
    directory = Directory.open(str(folder))
    try:
        yield Place(directory, JOURNAL_NAME)
    finally:
        directory.close()


@pytest.fixture
def place(folder: Path) -> Iterator[Place]:
    """Where a journal would lie."""
    yield from place_of(folder)
    (folder / JOURNAL_NAME).unlink(missing_ok=True)


@pytest.mark.leftovers("a file of that name that is none of ours")
def test_a_file_that_is_no_journal_is_left_alone(folder: Path) -> None:
    """It may be anybody's; a transaction says so and does nothing."""
    (folder / JOURNAL_NAME).write_text("a shopping list")
    with pytest.raises(
        errors.JournalError, match=r"does not begin with the magic of atomik; nothing was touched"
    ) as caught:
        publish(folder)
    assert caught.value.filename == str(folder / JOURNAL_NAME)
    assert caught.value.errno == errno.EBADMSG
    assert (folder / JOURNAL_NAME).read_text() == "a shopping list"
    assert os.listdir(folder) == [JOURNAL_NAME]


def test_of_a_large_file_only_the_head_is_read(place: Place, folder: Path) -> None:
    """A user who may rename a large file of ours to that name cannot make us read it."""
    with (folder / JOURNAL_NAME).open("wb") as film:
        film.write(os.urandom(16) + struct.pack("<Q", 300 << 20))
        film.truncate(400 << 20)
    with installed(Recording({"pread"})) as kernel, pytest.raises(errors.JournalError):
        _journal.load(place)
    assert sum(call.args[1] for call in kernel.calls) < 4096


# --- the documentation -----------------------------------------------------------------------------------------------
class Dump:
    """Bytes, explained field by field."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.lines = data, 0, list[str]()

    def field(self, size: int, meaning: str) -> None:
        for start in range(0, size, 8):
            row = self.data[self.at + start : self.at + min(start + 8, size)].hex(" ")
            self.lines.append(f"{self.at + start:04x}  {row:<23}  {'' if start else meaning}".rstrip())
        self.at += size

    def number(self, size: int, meaning: str) -> int:
        value = int.from_bytes(self.data[self.at : self.at + size], "little")
        self.field(size, f"{meaning}: {value}")
        return value

    def text(self, size: int, meaning: str) -> None:
        self.field(size, f"{meaning}: {self.data[self.at : self.at + size].decode()!r}")

    def head(self, meaning: str) -> int:
        self.field(4, f'magic "AtmK": {meaning}')
        self.number(2, "version")
        self.number(2, "type")
        return self.at + 8 + self.number(8, "length of the payload")

    def foot(self, end: int) -> None:
        self.field(end - self.at, "zeros, up to a multiple of 64")
        self.field(16, "BLAKE2b-128 of all of the record above")

    def folder(self, number: int) -> None:
        self.number(1, f"folder {number}: 1 a parent, 0 holds slots only")
        path, identity = self.number(2, "length of its path"), self.number(2, "length of its identity")
        self.text(path, "path from the common ancestor")
        self.text(identity, "its identity")

    def step(self, number: int) -> None:
        self.number(1, f"step {number}: 0 create, 1 replace, 2 remove, 3 exchange")
        self.number(1, "0 file, 1 folder, 2 symlink, 3 other")
        self.number(2, "1 the weaker method is allowed")
        self.number(4, "number of the destination's folder")
        self.number(4, "number of the slot's folder")
        fields = ("name of the destination", "name of the slot", "identity of the new", "identity of the old")
        sizes = [self.number(2, f"length of the {field}") for field in fields]
        self.number(8, "order")
        for size, field in zip(sizes, fields, strict=True):
            self.text(size, field)


def annotated() -> str:
    """The example's bytes, field by field."""
    dump = Dump(encode_intent(EXAMPLE) + encode_outcome(COMMITTED, TXID))
    end = dump.head("an intent")
    dump.text(16, "transaction id")
    dump.text(dump.number(2, "length of the journal's identity"), "the journal's identity")
    dump.number(2, "length of the coordinator's name")
    folders, steps = dump.number(4, "folders"), dump.number(4, "steps")
    for number in range(folders):
        dump.folder(number)
    for number in range(steps):
        dump.step(number)
    dump.foot(end)
    end = dump.head("the commit mark")
    dump.text(16, "transaction id")
    dump.foot(end)
    assert dump.at == len(dump.data)
    return "\n".join(dump.lines)


def test_the_documented_bytes_are_true() -> None:
    """docs/reference/journal-format.md shows what is written, byte for byte."""
    assert f"```text\n{annotated()}\n```" in DOCUMENT.read_text()


def test_nothing_of_it_is_left(folder: Path) -> None:
    """After a commit."""
    publish(folder)
    assert not left_in(folder)


if __name__ == "__main__":
    print(annotated())
