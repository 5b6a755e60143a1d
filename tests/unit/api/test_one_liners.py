"""`atomik.write_text`, `write_bytes` and `edit`."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

import atomik


def test_write(folder: Path) -> None:
    """They return the receipt, and refuse what exists."""
    receipt = atomik.write_text("a", "é\n", permissions=0o600)
    assert [(item.path, item.op) for item in receipt.items] == [(f"{folder}/a", "create")]
    assert Path("a").read_bytes() == b"\xc3\xa9\n"
    assert stat.S_IMODE(os.stat("a").st_mode) == 0o600
    with pytest.raises(FileExistsError):
        atomik.write_bytes("a", b"new")
    assert atomik.write_bytes("a", b"new", overwrite=True).items[0].op == "replace"
    assert json.loads(json.dumps(receipt.as_dict()))["items"][0]["path"] == f"{folder}/a"


def test_wrong_data(folder: Path) -> None:
    """Text where bytes belong is a TypeError, and nothing is there."""
    with pytest.raises(TypeError):
        atomik.write_bytes("a", "text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        atomik.write_text("a", b"bytes")  # type: ignore[arg-type]
    assert os.listdir() == []


def test_edit(folder: Path) -> None:
    """Line endings stay, the mode too; what is equal is left alone."""
    Path("a").write_bytes(b"one\r\ntwo\n")
    os.chmod("a", 0o640)
    assert atomik.edit("a", str.upper).items[0].op == "replace"
    assert Path("a").read_bytes() == b"ONE\r\nTWO\n"
    assert stat.S_IMODE(os.stat("a").st_mode) == 0o640
    assert atomik.edit("a", lambda data: data[:3], binary=True).items[0].op == "replace"
    assert Path("a").read_bytes() == b"ONE"
    before = os.stat("a")
    assert atomik.edit("a", str.upper).items[0].op == "unchanged"
    assert os.stat("a").st_ino == before.st_ino


def test_edit_repeats_after_a_conflict(folder: Path) -> None:
    """With the new content; and gives up in the end."""
    Path("a").write_text("1")
    seen: list[str] = []

    def change(text: str) -> str:
        seen.append(text)
        if len(seen) < 3:
            Path("a").write_text(f"theirs {len(seen)}")
        return text + "!"

    atomik.edit("a", change)
    assert seen == ["1", "theirs 1", "theirs 2"]
    assert Path("a").read_text() == "theirs 2!"
    calls: list[str] = []

    def always(text: str) -> str:
        calls.append(text)
        Path("a").write_text(f"theirs {len(calls)}")
        return text + "!"

    with pytest.raises(atomik.errors.ConflictError):
        atomik.edit("a", always, attempts=2)
    assert Path("a").read_text() == "theirs 2"


def test_edit_that_fails(folder: Path) -> None:
    """What the function raises goes on, a conflict of its own too; nothing is changed."""
    Path("a").write_text("1")
    calls: list[str] = []

    def fail(text: str) -> str:
        calls.append(text)
        raise atomik.errors.ConflictError("mine")

    with pytest.raises(atomik.errors.ConflictError, match="mine"):
        atomik.edit("a", fail)
    assert calls == ["1"]
    calls.clear()
    with pytest.raises(
        atomik.errors.ConflictError, match="mine"
    ):  # so does what another function of the program raises
        atomik.edit("a", str.upper, backup=fail)
    assert len(calls) == 1
    with pytest.raises(TypeError, match="must return str, not NoneType"):
        atomik.edit("a", lambda text: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(FileNotFoundError):
        atomik.edit("missing", str.upper)
    with pytest.raises(ValueError, match="attempts"):
        atomik.edit("a", str.upper, attempts=0)
    assert Path("a").read_text() == "1"
    assert os.listdir() == ["a"]
