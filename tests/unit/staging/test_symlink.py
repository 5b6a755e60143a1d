"""Symlinks as outputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import atomik
from atomik import errors


@pytest.mark.parametrize("target", ["x", "no/where", "../up", "/abs", "with space\n", Path("p"), os.fsdecode(b"\xff")])
def test_symlink_says_what_it_was_told(folder: Path, target: Any) -> None:
    """The target is not looked at."""
    with atomik.transaction() as tx:
        tx.symlink("link", target)
    assert os.readlink("link") == os.fspath(target)


def test_symlink_replaces_anything_but_a_folder(folder: Path) -> None:
    """A file, another link; a folder is the wrong kind."""
    Path("file").touch()
    Path("link").symlink_to("old")
    Path("d").mkdir()
    with atomik.transaction(overwrite=True) as tx:
        tx.symlink("file", "1")
        tx.symlink("link", "2")
        with pytest.raises(errors.WrongKindError):
            tx.symlink("d", "3")
    assert (os.readlink("file"), os.readlink("link")) == ("1", "2")


@pytest.mark.parametrize("target", ["", "x\0y", "t" * 5000], ids=["empty", "NUL", "too long"])
def test_symlink_to_no_path(folder: Path, target: str) -> None:
    """What symlink(2) refuses, with the path of the link."""
    with atomik.transaction() as tx, pytest.raises((errors.AtomikOSError, ValueError)):
        tx.symlink("link", target)
    assert os.listdir() == []


@pytest.mark.parametrize("target", ["", "a\0b"])
def test_a_target_that_is_none(folder: Path, target: str) -> None:
    """The error is about the target, not about the name of the link."""
    with atomik.transaction() as tx, pytest.raises(errors.InvalidDestinationError, match="target"):
        tx.symlink("l", target)
