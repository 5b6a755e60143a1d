"""A transaction of atomik 0.1.0 died, and this version finds its journal: format version 1."""

from __future__ import annotations

import base64
import struct
import zlib
from hashlib import blake2b
from pathlib import Path

import pytest

import atomik
from atomik import errors
from atomik._protocol.records import COMMITTED, decode
from tests.crash.deaths import die_at
from tests.support.state import left_in

#: Written by atomik 0.1.0 in a transaction that replaced a/f and b/g, removed a/gone and created b/made.
WRITTEN = (
    "c-nI;$@OMrU}Si}$N&b3#)fG|X2yxhX(@&&CaH$J3>hF9%@e8&96G)~Sb%I0W@KdGWk>`|9dJ-(C_28N1T2&U7CHkI^3!fy!ypAxrLUJ*lAoKI"
    "t&46pSZ%>!RR&d&Bd@_~lklt60J>slZfh~rtqe>cmw+|$GQdC@E)#SiX1sS&Whh~~dm79+3v?*o8jj11V1pPKn6Vg`j?+LRuo-`W2FCUunhWOK"
    "1{xUCZkWJ?<U$spfegq7=I5p2G}8cV%pIUHLXE0i3`p)`0lNzUauZW<8)FPMhR0cz;k}Zc3X-mZjU_jm>u06qK9D#eG4t+n09|crN&"
)


def test_what_0_1_0_wrote() -> None:
    """Its own bytes, as they were on the disk."""
    journal = decode(zlib.decompress(base64.b85decode("".join(WRITTEN))))
    assert journal is not None
    assert journal.outcome is None
    intent = journal.intent
    assert [(step.op, step.dest_name) for step in intent.steps] == [
        ("replace", "f"), ("replace", "g"), ("remove", "gone"), ("create", "made"),
    ]  # fmt: skip
    assert [folder.parts[0] for folder in intent.folders] == ["a", "b", "a", "b"]
    assert (intent.coordinator, len(intent.txid)) == ("", 16)


def as_version_1(journal: Path) -> None:
    """Write the same journal as 0.1.0 would have, into the same file."""
    data = journal.read_bytes()
    length = struct.unpack_from("<Q", data, 8)[0]
    payload = data[16 : 16 + length]
    at = 16 + 2 + struct.unpack_from("<H", payload, 16)[0]
    assert payload[at : at + 2] == b"\0\0", "version 2 has the length of the coordinator's name here"
    rest = (payload[:at] + payload[at + 2 :]).rstrip(b"\0")
    rest += bytes(len(payload) - 2 - len(rest))
    rest += bytes(-(16 + len(rest) + 16) % 64)
    record = struct.pack("<4sHHQ", b"AtmK", 1, 1, len(rest)) + rest
    record += blake2b(record, digest_size=16).digest()
    journal.write_bytes(record)  # the inode stays
    assert decode(record) is not None


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
@pytest.mark.parametrize("mark", [False, True])
def test_it_is_recovered(folder: Path, nth: int, mark: bool) -> None:
    """Undone without a mark; finished with one."""
    for name in ("a", "b"):
        Path(name).mkdir()
    for name in ("a/f", "b/g", "a/gone"):
        Path(name).write_text("old")

    def work() -> None:
        with atomik.transaction(overwrite=True, durable=False) as tx:
            tx.file("a/f").write("new")
            tx.file("b/g").write("new")
            tx.remove("a/gone")
            tx.file("b/made").write("new")

    if mark:
        die_at(work, "pwrite", 2)
        data = Path("a/.atomik-journal").read_bytes()
        journal = decode(data)
        assert journal is not None
        assert journal.outcome == COMMITTED
    else:
        die_at(work, "rename", nth)
    as_version_1(Path("a/.atomik-journal"))
    if mark:
        record = struct.pack("<4sHHQ", b"AtmK", 1, 2, 32) + journal.intent.txid.encode().ljust(32, b"\0")
        with Path("a/.atomik-journal").open("ab") as file:
            file.write(record + blake2b(record, digest_size=16).digest())
    atomik.recover("b")
    found = {str(path): path.read_text() for name in "ab" for path in Path(name).iterdir()}
    old = {"a/f": "old", "b/g": "old", "a/gone": "old"}
    assert found == ({"a/f": "new", "b/g": "new", "b/made": "new"} if mark else old)
    assert not left_in(folder)


def test_a_newer_one_is_refused(folder: Path) -> None:
    """By the number of its version, and nothing is touched."""
    Path("f").write_text("old")

    def work() -> None:
        with atomik.transaction(overwrite=True, durable=False) as tx:
            tx.file("f").write("new")
            tx.file("g").write("new")

    die_at(work, "rename", 1)
    journal = Path(".atomik-journal")
    right = journal.read_bytes()
    journal.write_bytes(right[:4] + struct.pack("<H", 9) + right[6:])
    with pytest.raises(errors.JournalError, match="version 9"):
        atomik.recover(".")
    assert Path("f").read_text() == "new"
    journal.write_bytes(right)
    atomik.recover(".")
    assert Path("f").read_text() == "old"
