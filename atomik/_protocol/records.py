"""The bytes of a journal.  Pure: nothing here does I/O (docs/reference/journal-format.md is the same in words).

A journal is one *intent* record, followed later by at most one *outcome* record::

    record  := magic(4) version(u16) type(u16) length(u64) payload(length) digest(16)
    magic   := "AtmK"      type := 1 intent | 2 committed | 3 undone
    digest  := BLAKE2b-128 of everything in the record before it

All integers are little-endian.  A payload ends in zeros that make the record a multiple of 64 bytes long, so an outcome
(64 bytes) never crosses a sector: a power cut leaves all or nothing of it.  An outcome's payload is the transaction id,
so that one cannot end another's journal.  The intent names each folder by its path below a common ancestor *and* by its
identity, so that recovery can go from any one of them to the others, wherever the tree is mounted, and notices when a
path leads elsewhere; and the journal itself by its identity, so that a copy is not taken for a journal.  It may name a
coordinator, such as a database, which decides the outcome.

Version 2, the one that is written, added the coordinator and the exchange of two destinations; version 1 is still read.

`decode` accepts nothing doubtful: a torn intent is None ("nothing was swapped"), and anything that atomik would not
write raises `BadJournal`: names with a slash, ``..`` or NUL, slots without the id, numbers out of range, a newer version.
The digest detects torn and damaged records; it does not authenticate (the owner and mode of the file do).
Torn is what a power cut leaves of a new file: an end too early, or zeros from some byte or in some sector.  Other bytes
than were written are damage, and then it must not be concluded that nothing was swapped.
"""

from __future__ import annotations

import itertools
import struct

from atomik import _hidden_names
from atomik._system.hashes import blake2b
from atomik._typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

VERSION = 2
#: the versions that can be read
_KNOWN = (1, 2)
INTENT, COMMITTED, UNDONE = 1, 2, 3

_MAGIC = b"AtmK"
_HEAD = struct.Struct("<4sHHQ")
_DIGEST = 16
_ALIGN = 64
_SECTOR = 512
#: an intent is written in pieces of about so many bytes
_PIECE = 1 << 20
#: up to so many steps are made and encoded only once
_FEW = 1000
_COUNTS = struct.Struct("<II")
_STEP = struct.Struct("<BBHIIHHHHq")
_FOLDER = struct.Struct("<BHH")
_LENGTH = struct.Struct("<H")

HEAD_SIZE = _HEAD.size
#: An outcome record: head, transaction id, padding and digest.
OUTCOME_SIZE = _ALIGN
_OUTCOME_PAYLOAD = OUTCOME_SIZE - HEAD_SIZE - _DIGEST

#: How long the name of a coordinator may be, in bytes of UTF-8.
MAX_COORDINATOR = 255

#: How large a journal may be: half a million steps with long names.  What is larger is refused, not read.
MAX_SIZE = 512 * 1024 * 1024

#: in the order of their numbers; version 1 had the first three
OPS = ("create", "replace", "remove", "exchange")
_OPS_OF_1 = 3
KINDS = ("file", "folder", "symlink", "other")
_OPS = {op: number for number, op in enumerate(OPS)}
_KINDS = {kind: number for number, kind in enumerate(KINDS)}


class BadJournal(Exception):  # noqa: N818  callers turn it into JournalError
    """The bytes are not a valid journal; the message says why."""


class Folder(NamedTuple):
    """A folder that takes part: its path below the common ancestor, and its identity."""

    parts: tuple[str, ...]
    identity: bytes
    #: it has destinations (it is locked, and has the journal's well-known name); else it has only slots
    parent: bool


class StepRecord(NamedTuple):
    """A `Step` in bytes: folders by their number.  The slot of an exchange is a destination too, in a parent."""

    op: str
    kind: str
    allow_gap: bool
    dest_folder: int
    dest_name: str
    slot_folder: int
    slot_name: str
    new: bytes | None
    old: bytes | None
    order: int


#: The same without the names, which is enough for `encode`: a transaction makes one for each of its steps.
StepFields = tuple[str, str, bool, int, str, int, str, bytes | None, bytes | None, int]


class Intent(NamedTuple):
    """What a transaction is about to do."""

    txid: str
    folders: tuple[Folder, ...]
    steps: tuple[StepRecord, ...]
    #: the identity of the journal's own file
    journal: bytes = b""
    #: what decides the outcome; "" for the transaction itself
    coordinator: str = ""


class Journal(NamedTuple):
    """A decoded journal: the intent and how it ended (None: it did not)."""

    intent: Intent
    outcome: int | None
    #: where an outcome belongs, right after the intent.  One that is there already is written again in its place: a second
    #: one behind it could survive a power cut without the first, and contradict what recovery then decides
    end: int


def encode(
    txid: str,
    journal: bytes,
    folders: Sequence[Folder],
    steps: Callable[[], Iterable[StepFields]],
    count: int,
    coordinator: str = "",
    room: int = 0,
) -> Iterator[bytes | bytearray]:
    """The bytes of an intent in pieces, with `room` zeros behind it.  `steps` makes its `count` steps; if they are many, it
    is called twice, so that neither they nor the pieces exist all at once: a large transaction should not be in memory
    twice."""
    who = coordinator.encode()
    if len(who) > MAX_COORDINATOR:
        raise ValueError(f"the coordinator's name must not be longer than {MAX_COORDINATOR} bytes of UTF-8")
    out = bytearray(HEAD_SIZE)
    out += b"".join((txid.encode(), _LENGTH.pack(len(journal)), journal, _LENGTH.pack(len(who)), who))
    out += _COUNTS.pack(len(folders), count)
    for parts, identity, parent in folders:
        path = "/".join(parts).encode("utf-8", "surrogateescape")
        out += _FOLDER.pack(parent, len(path), len(identity)) + path + identity
    sizes, content = itertools.tee(_encoded(steps())) if count <= _FEW else (_encoded(steps()), _encoded(steps()))
    length = len(out) + sum(map(len, sizes))
    padding = -(length + _DIGEST) % _ALIGN
    _HEAD.pack_into(out, 0, _MAGIC, VERSION, INTENT, length + padding - HEAD_SIZE)
    digest = blake2b(digest_size=_DIGEST)
    for step in content:
        out += step
        if len(out) >= _PIECE:
            digest.update(out)
            yield out
            out = bytearray()
    out += bytes(padding)
    digest.update(out)
    yield out + digest.digest() + bytes(room)


def _encoded(steps: Iterable[StepFields]) -> Iterator[bytes]:
    """The bytes of each step."""
    pack, ops, kinds = _STEP.pack, _OPS, _KINDS
    for op, kind, allow_gap, dest_folder, dest_name, slot_folder, slot_name, new, old, order in steps:
        dest, slot = dest_name.encode("utf-8", "surrogateescape"), slot_name.encode("utf-8", "surrogateescape")
        new, old = new or b"", old or b""
        head = pack(
            ops[op], kinds[kind], allow_gap, dest_folder, slot_folder,
            len(dest), len(slot), len(new), len(old), order,
        )  # fmt: skip
        yield b"".join((head, dest, slot, new, old))


def encode_outcome(kind: int, txid: str) -> bytes:
    """The bytes of a commit mark (`COMMITTED`) or of the record that ends a rollback (`UNDONE`)."""
    body = _HEAD.pack(_MAGIC, VERSION, kind, _OUTCOME_PAYLOAD) + txid.encode().ljust(_OUTCOME_PAYLOAD, b"\0")
    return body + blake2b(body, digest_size=_DIGEST).digest()


def extent(head: bytes) -> int:
    """How many bytes of a file are worth reading, by its first `HEAD_SIZE`: the intent and room for the outcomes."""
    if len(head) < HEAD_SIZE:
        return HEAD_SIZE
    magic, version, kind, length = _HEAD.unpack(head)
    if magic != _MAGIC or version not in _KNOWN or kind != INTENT:  # it will be refused: no need to read more of it
        return HEAD_SIZE + _DIGEST
    return min(HEAD_SIZE + int(length) + _DIGEST, MAX_SIZE) + 16 * _ALIGN


def decode(data: bytes) -> Journal | None:
    """The journal in `data`; None when its intent is torn, so that nothing can have been swapped.

    Raises `BadJournal` for whatever atomik would not have written, and for a newer version.
    """
    first = _read_record(data, 0, (INTENT,))
    if first is None:
        return None
    version, _, payload, behind = first
    try:
        intent = _decode_intent(payload, version)
    except (struct.error, IndexError, ValueError) as exc:
        raise BadJournal(f"its intent is malformed ({exc})") from exc
    outcome, end = None, behind
    while (record := _read_record(data, end, (COMMITTED, UNDONE))) is not None:
        _, kind, payload, after = record
        if payload.rstrip(b"\0") != intent.txid.encode():
            raise BadJournal("a record after the intent does not belong to it")
        if outcome not in (None, kind):
            raise BadJournal("it says both committed and undone")
        outcome, end = kind, after
    return Journal(intent, outcome, behind)


def _read_record(data: bytes, at: int, kinds: tuple[int, ...]) -> tuple[int, int, bytes, int] | None:
    """(version, type, payload, end) of the record at `at`; None when it is absent or torn."""
    head = data[at : at + _HEAD.size]
    if not _MAGIC.startswith(head[:4].rstrip(b"\0")):
        raise BadJournal("it does not begin with the magic of atomik")
    if len(data) - at < _HEAD.size + _DIGEST:
        return None
    magic, version, kind, length = _HEAD.unpack(head)
    if magic == _MAGIC and version > VERSION:
        raise BadJournal(f"it has format version {version}, but this atomik knows only {VERSION}; use the newer one")
    if not any(data[at + _HEAD.size : at + _HEAD.size + _DIGEST]):
        return None  # space that was allocated and never written: a payload does not begin with zeros
    if magic != _MAGIC or version not in _KNOWN or kind not in kinds or length > MAX_SIZE:
        raise BadJournal("its header is damaged")
    end = at + _HEAD.size + length
    if len(data) < end + _DIGEST:
        if any(_fits(data[at:], size) for size in (len(data) - at, len(data) - at - _ALIGN)):
            raise BadJournal("its header is damaged")  # it is whole, only its length is wrong
        return None
    digest = blake2b(memoryview(data)[at:end], digest_size=_DIGEST).digest()
    if digest != data[end : end + _DIGEST]:
        if not _torn(data[at : end + _DIGEST], digest):
            raise BadJournal("its bytes are damaged")
        return None
    return version, kind, data[at + _HEAD.size : end], end + _DIGEST


def _fits(record: bytes, size: int) -> bool:
    """Whether this would be a good record, if its header gave `size` bytes for all of it."""
    length = size - _HEAD.size - _DIGEST
    head = record[:8] + max(length, 0).to_bytes(8, "little")
    body = head + record[_HEAD.size : _HEAD.size + length]
    return length > 0 and blake2b(body, digest_size=_DIGEST).digest() == record[size - _DIGEST : size]


def _torn(record: bytes, digest: bytes) -> bool:
    """Whether a power cut can have left this of a record: zeros at the end, or a sector that was never written."""
    kept = record[-_DIGEST:].rstrip(b"\0")
    if not kept or digest.startswith(kept):
        return True
    return any(not any(record[at : at + _SECTOR]) for at in range(0, len(record), _SECTOR))


class _Reader:
    """Takes fields off the front of a payload; a short one raises ValueError."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        if len(piece) != size:
            raise ValueError("it ends too early")
        self.at += size
        return piece

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))


def _decode_intent(payload: bytes, version: int) -> Intent:
    reader = _Reader(payload)
    txid = reader.take(16).decode()
    if not _hidden_names.is_txid(txid):
        raise ValueError("bad transaction id")
    journal = reader.take(reader.unpack(_LENGTH)[0])
    who = b"" if version == 1 else reader.take(reader.unpack(_LENGTH)[0])
    if len(who) > MAX_COORDINATOR:
        raise ValueError("the coordinator's name is too long")
    folder_count, step_count = reader.unpack(_COUNTS)
    folders = tuple(_decode_folder(reader) for _ in range(folder_count))
    ops = OPS[:_OPS_OF_1] if version == 1 else OPS
    steps = tuple(_decode_step(reader, txid, folders, ops) for _ in range(step_count))
    rest = payload[reader.at :]
    if len(rest) >= _ALIGN or any(rest):
        raise ValueError("bytes left over")
    return Intent(txid, folders, steps, journal, who.decode())


def _decode_folder(reader: _Reader) -> Folder:
    parent, path_length, identity_length = reader.unpack(_FOLDER)
    path = reader.take(path_length).decode(errors="surrogateescape")
    identity = reader.take(identity_length)
    parts = tuple(path.split("/")) if path else ()
    for part in parts:
        _check_name(part)
    return Folder(parts, identity, bool(parent))


def _decode_step(reader: _Reader, txid: str, folders: tuple[Folder, ...], ops: tuple[str, ...]) -> StepRecord:
    op, kind, allow_gap, dest_folder, slot_folder, dest_len, slot_len, new_len, old_len, order = reader.unpack(_STEP)
    dest = reader.take(dest_len).decode(errors="surrogateescape")
    slot = reader.take(slot_len).decode(errors="surrogateescape")
    new, old = reader.take(new_len) or None, reader.take(old_len) or None
    if max(dest_folder, slot_folder) >= len(folders):
        raise ValueError("a folder number out of range")
    name = ops[op]
    _check_destination(dest)
    if name != "exchange":
        if _hidden_names.parse(slot) != (_hidden_names.SLOT, _slot_id(folders[slot_folder], txid)):
            raise ValueError("a slot does not carry the id of its transaction or private folder")
    else:
        _check_destination(slot)
        if not folders[slot_folder].parent:
            raise ValueError("a destination is in a folder that has only slots")
    if (new is None) != (name == "remove") or (old is None) != (name == "create"):
        raise ValueError("identities do not fit the operation")
    return StepRecord(name, KINDS[kind], bool(allow_gap), dest_folder, dest, slot_folder, slot, new, old, order)


def _slot_id(folder: Folder, txid: str) -> str:
    """The id that slots in a folder carry: the transaction's, or that of the private folder of a resumable output."""
    kind, id = _hidden_names.parse(folder.parts[-1] if folder.parts else "") or ("", "")
    return id if kind == _hidden_names.RESUMABLE and not folder.parent else txid


def _check_destination(name: str) -> None:
    _check_name(name)
    if name.startswith(_hidden_names.PREFIX):
        raise ValueError(f"a destination has a name that is reserved for atomik: {name!r}")


def _check_name(name: str) -> None:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"a bad name: {name!r}")
