"""What must hold for any input of a parser: each target takes bytes, and raises when it does not hold.

A parser may accept its input, or refuse it with its own error.  Any other exception is a finding.  What it accepts must be
within its own rules, and must come back the same when it is written again and parsed again.

Random bytes are almost never JSON, and never have a good checksum.  So the first byte of an input chooses between the bytes
as they are and something that is built from them: a record with the right header and checksum, a document, a list of
arguments that exist.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

from atomik import _hidden_names
from atomik._api import changeset
from atomik._protocol import records
from atomik.cli import commands
from tests.support.journals import encode_intent

Target = Callable[[bytes], None]


# --- the journal -------------------------------------------------------------------------------------------------------
def journal(data: bytes) -> None:
    """`records.decode` gives a journal, None, or `BadJournal`; a journal is the same when it is encoded again."""
    data = _journal(data)
    try:
        found = records.decode(data)
    except records.BadJournal:
        return
    if found is None:
        return
    intent = found.intent
    again = records.decode(encode_intent(intent))
    assert again is not None
    assert again.intent == intent
    assert found.end <= len(data)
    read = records.decode(data[: records.extent(data[: records.HEAD_SIZE])])  # what `journal.load` would have read
    assert read is not None
    assert read.intent == intent
    for step in intent.steps:
        _check_step(step, intent)


def _check_step(step: records.StepRecord, intent: records.Intent) -> None:
    names = [step.dest_name, step.slot_name, *(part for folder in intent.folders for part in folder.parts)]
    assert not any(name in ("", ".", "..") or "/" in name or "\0" in name for name in names)
    assert not step.dest_name.startswith(_hidden_names.PREFIX)
    if step.op != "exchange":
        assert _hidden_names.parse(step.slot_name) == (_hidden_names.SLOT, intent.txid)
    assert max(step.dest_folder, step.slot_folder) < len(intent.folders)


def _journal(data: bytes) -> bytes:
    """The bytes themselves, or as the payload of an intent, with an outcome after it or without."""
    how, rest = data[:1], data[1:]
    if how < b"\x40":
        return rest
    outcome = b""
    if how >= b"\xa0":
        outcome = records.encode_outcome(records.COMMITTED if how < b"\xd0" else records.UNDONE, "0123456789abcdef")
    return _sealed(rest, 1 if how[0] & 1 else 2) + outcome


def _sealed(payload: bytes, version: int) -> bytes:
    payload += bytes(-(records.HEAD_SIZE + len(payload) + 16) % 64)
    body = b"AtmK" + version.to_bytes(2, "little") + b"\1\0" + len(payload).to_bytes(8, "little") + payload
    return body + blake2b(body, digest_size=16).digest()


# --- change sets -------------------------------------------------------------------------------------------------------
def change_set(data: bytes) -> None:
    """`changeset.parse` gives changes or `ChangeSetError`; changes are the same when they are written again."""
    try:
        found = changeset.parse(_document(data))
    except changeset.ChangeSetError:
        return
    for change in found:
        _check_change(change)
    assert changeset.parse(json.dumps({"changes": [_as_json(change) for change in found]}).encode()) == found


def _check_change(change: changeset.Change) -> None:
    for field in ("path", "from", "to"):
        names = change.fields.get(field, ("ok",))
        assert names
        assert not any(name in ("", ".", "..") or "/" in name or "\0" in name for name in names)
        assert not any(name.startswith(_hidden_names.PREFIX) for name in names)
    if "target" in change.fields:
        above = "/".join(change.fields["path"][:-1])
        assert not os.path.normpath(os.path.join("/root", above, change.fields["target"])).startswith(("/..", "//"))
        assert (os.path.normpath(os.path.join("/root", above, change.fields["target"])) + "/").startswith("/root/")


def _as_json(change: changeset.Change) -> dict[str, Any]:
    found: dict[str, Any] = {"op": change.op}
    for field, value in change.fields.items():
        if field in ("path", "from", "to"):
            value = "/".join(value)
        elif field == "base64":
            value = base64.b64encode(value).decode()
        elif isinstance(value, bytes):
            value = value.decode()
        elif field == "mode":
            value = f"{value:04o}"
        found[changeset._CALLED.get(field, field)] = value
    return found


_OPS = [*changeset.OPERATIONS, "delete"]
_KEYS = "path from to text base64 mode overwrite expect old new count target op".split()
_VALUES: list[Any] = [
    "a", "a/b", "../a", "a/..", "/a", "", ".", "0644", "YQ==", "absent", "any", "sha256:" + "0" * 64, ".atomik-x", "\udc80",
    True, False, None, 1, 0, -1, 1.5, [], {}, "é", "a\0b",
]  # fmt: skip


def _document(data: bytes) -> bytes:
    """The bytes themselves, or a document of changes that they choose."""
    how, rest = data[:1], data[1:]
    if how < b"\x80":
        return rest
    changes = []
    for piece in rest.split(b"\n"):
        change: dict[str, Any] = {"op": _OPS[piece[0] % len(_OPS)]} if piece else {}
        for word in piece[1:].split(b"\t"):
            if word:
                key = _KEYS[word[0] % len(_KEYS)]
                change[key] = _value(word[1:])
        changes.append(change)
    return json.dumps({"changes": changes}).encode()


def _value(word: bytes) -> Any:
    return _VALUES[word[0] % len(_VALUES)] if len(word) == 1 else os.fsdecode(word)


# --- the command line --------------------------------------------------------------------------------------------------
def command_line(data: bytes) -> None:
    """The command line is understood, or a `UsageError`, or asks for help; what is understood is within the rules."""
    arguments = _arguments(data)
    try:
        known = commands._parse(list(arguments))
    except commands.UsageError:
        return
    except SystemExit as exc:
        if exc.code:  # else --help or --version
            raise AssertionError(f"it exits with {exc.code}") from exc
        return
    assert known.name in commands._COMMANDS
    timeout = getattr(known, "lock_timeout", 0.0)
    assert timeout >= 0
    assert 0 <= (getattr(known, "mode", None) or 0) <= 0o7777
    if known.name == "run":
        assert known.program == list(arguments[arguments.index("--") + 1 :])
        assert known.program
        assert (known.inside is None) != (not known.outputs)


_WORDS = """write run apply swap recover doctor a b -- - --json --mode 0640 9 --follow-symlinks --if-changed --backup
--dry-run --overwrite --no-durable --parents --allow-gap --lock-timeout 1 nan -1 inf --file --folder --stdout --stderr --in
--overwrite-changes --background refuse wait kill --keep-on-failure --root --schema --recursive --discard --help --version
--file=x --mode=777 --lock-timeout=0 -h --js""".split()


def _arguments(data: bytes) -> list[str]:
    """The bytes between zeros as they are, or words that they choose."""
    how, rest = data[:1], data[1:]
    if how < b"\x60":
        return [os.fsdecode(word) for word in rest.split(b"\0")]
    return [_WORDS[byte % len(_WORDS)] for byte in rest]


TARGETS: dict[str, Target] = {"journal": journal, "change-set": change_set, "command-line": command_line}


# --- where to begin ----------------------------------------------------------------------------------------------------
def seeds(name: str) -> Iterator[bytes]:
    """Inputs that are accepted, from which a fuzzer begins."""
    if name == "journal":
        yield from _journals()
    elif name == "change-set":
        for op in changeset.OPERATIONS:
            change = {
                "op": op,
                "path": "a/b",
                "text": "t",
                "old": "x",
                "new": "y",
                "from": "c",
                "to": "d",
                "target": "../e",
            }
            required, one_of, _ = changeset.OPERATIONS[op]
            keys = {"op", *required, *one_of[:1]}
            yield b"\0" + json.dumps({"changes": [{k: v for k, v in change.items() if k in keys}]}).encode()
        yield b"\x80" + bytes([0]) + b"\0a/b\t\3x\n" + bytes([5]) + b"\0a\t\x0bb"
    else:
        for line in ("write a --overwrite", "run --file a -- b {a}", "run --in a -- b", "apply - --root a", "swap a b"):
            yield b"\0" + line.replace(" ", "\0").encode()
            yield b"\x60" + bytes(_WORDS.index(word) if word in _WORDS else 6 for word in line.split())


def _journals() -> Iterator[bytes]:
    txid = "0123456789abcdef"
    private = f".atomik-{txid}"
    folders = (
        records.Folder((), b"hA", parent=True),
        records.Folder((private,), b"hB", parent=False),
        records.Folder(("b",), b"hC", parent=True),
    )
    steps = tuple(
        records.StepRecord(op, "file", False, 0, f"d{number}", 1, _hidden_names.slot_name(txid, number), new, old, 0)
        for number, (op, new, old) in enumerate(
            (("create", b"n", None), ("replace", b"n", b"o"), ("remove", None, b"o"))
        )
    )
    swap = records.StepRecord("exchange", "folder", False, 0, "x", 2, "y", b"1", b"2", 0)
    for intent in (
        records.Intent(txid, folders, (*steps, swap), b"j"),
        records.Intent(txid, folders[:2], steps[:1], b"j", "database"),
    ):
        whole = encode_intent(intent)
        payload = whole[records.HEAD_SIZE : -16]
        yield b"\0" + whole
        yield b"\x42" + payload
        yield b"\xa2" + payload
        yield b"\xd2" + payload
