"""Moves: their source goes, their destination comes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import atomik
from atomik import errors
from tests.support.kernels import Acting, Answer, Recording, installed
from tests.support.lab import mounts, namespace
from tests.support.lab.need import need
from tests.support.state import tree


def test_move(folder: Path) -> None:
    """The object itself goes: same inode, nothing copied."""
    Path("a").write_text("a")
    Path("d/x").mkdir(parents=True)
    inodes = os.stat("a").st_ino, os.stat("d").st_ino
    Path("sub").mkdir()
    with atomik.transaction() as tx:
        tx.move("a", "sub/b")
        tx.move("d", "e")
    assert (os.stat("sub/b").st_ino, os.stat("e").st_ino) == inodes
    assert sorted(tree(".")) == ["e", "e/x", "sub", "sub/b"]
    assert tx.receipt is not None
    assert [item.op for item in tx.receipt.items] == ["move", "move"]


def test_move_over_something(folder: Path) -> None:
    """Only with overwrite, and only over the same kind; backup= holds on to what was there."""
    Path("a").write_text("a")
    Path("b").write_text("b")
    Path("d").mkdir()
    with atomik.transaction() as tx:
        with pytest.raises(errors.FileAlreadyExistsError):
            tx.move("a", "b")
        with pytest.raises(errors.WrongKindError):
            tx.move("a", "d", overwrite=True)
        tx.move("a", "b", overwrite=True, backup="b.old")
    assert {name: Path(name).read_text() for name in ("b", "b.old")} == {"b": "a", "b.old": "b"}
    assert sorted(os.listdir()) == ["b", "b.old", "d"]


def test_move_is_undone(folder: Path) -> None:
    """Both names are as they were."""
    Path("a").write_text("a")
    Path("b").write_text("b")
    before = tree(".")

    def fail(call: Any) -> None:
        if call.paths[1].endswith("/new"):
            raise Answer(5)

    with installed(Acting("rename", fail)), pytest.raises(errors.CommitError), atomik.transaction() as tx:
        tx.move("a", "b", overwrite=True)
        tx.file("new")
    assert tree(".") == before


def test_move_of_nothing(folder: Path) -> None:
    with atomik.transaction() as tx:
        with pytest.raises(errors.MissingPathError, match="nothing to move") as caught:
            tx.move("a", "b")
        tx.abort()
    assert (caught.value.filename, caught.value.filename2) == (str(folder / "a"), str(folder / "b"))


def test_source_goes_meanwhile(folder: Path) -> None:
    """A source that is gone at the commit is missed there, and the rest is not published."""
    Path("a").touch()
    with pytest.raises(errors.MissingPathError), atomik.transaction() as tx:
        tx.move("a", "b")
        tx.file("c")
        os.unlink("a")
    assert os.listdir() == []


def test_move_to_a_name_with_a_slash(folder: Path) -> None:
    """Only a folder may get one."""
    Path("file").touch()
    Path("d").mkdir()
    with pytest.raises(errors.InvalidDestinationError, match="remove the slash") as caught, atomik.transaction() as tx:
        tx.move("file", "new/")
    assert caught.value.filename == f"{folder}/new/"
    with atomik.transaction() as tx:
        tx.move("d", "new/")
    assert sorted(os.listdir()) == ["file", "new"]


def test_move_into_itself(folder: Path) -> None:
    """A folder cannot go into itself, also not by a symlinked path."""
    Path("d/sub").mkdir(parents=True)
    Path("link").symlink_to("d/sub")
    with atomik.transaction() as tx:
        for dest in ("d/x", "d/sub/x", "link/x"):
            with pytest.raises(errors.NestedDestinationError):
                tx.move("d", dest)
        tx.abort()


def test_move_to_itself(folder: Path) -> None:
    """Source and destination are the same name."""
    Path("a").touch()
    with atomik.transaction(overwrite=True) as tx:
        with pytest.raises(errors.DuplicateDestinationError):
            tx.move("a", "./a")
        tx.abort()
    assert os.listdir() == ["a"]


def test_two_names_change_places(folder: Path) -> None:
    """By a chain through a third name, or in one step; `atomik.swap` is that alone."""
    Path("a").write_text("a")
    Path("b").write_text("b")
    with atomik.transaction() as tx:
        tx.move("a", "c")
        tx.move("b", "a")
        tx.move("c", "b")
    assert (Path("a").read_text(), Path("b").read_text()) == ("b", "a")
    with atomik.transaction() as tx:
        tx.exchange("a", "b")
    assert (Path("a").read_text(), Path("b").read_text()) == ("a", "b")
    atomik.swap("a", "b")
    assert (Path("a").read_text(), Path("b").read_text()) == ("b", "a")


def test_a_backup_under_the_name_of_the_source(folder: Path) -> None:
    """What was at the destination would take the source's name, and that is an exchange: refused, with that cure."""
    Path("a").write_text("a")
    Path("b").write_text("b")
    with atomik.transaction(overwrite=True) as tx:
        with pytest.raises(errors.DuplicateDestinationError, match="exchange"):
            tx.move("a", "b", backup="a")
        tx.abort()
    assert (Path("a").read_text(), Path("b").read_text()) == ("a", "b")


def test_move_across_filesystems(folder: Path) -> None:
    need(namespace.missing_root())
    with mounts.mounted("tmpfs") as place, atomik.transaction() as tx:
        (place.folder / "a").touch()
        with pytest.raises(errors.CrossFilesystemError):
            tx.move(place.folder / "a", "a")
        tx.abort()


def test_move_of_a_mount_point(folder: Path) -> None:
    """What is mounted cannot be moved; it is named."""
    need(namespace.missing_root())
    source = folder.parent / "source"
    source.mkdir()
    with mounts.bind(source, folder / "d"), atomik.transaction() as tx:
        with pytest.raises(errors.MountPointError, match="mount"):
            tx.move("d", "e")
        tx.abort()


def test_each_name_changes_once(folder: Path) -> None:
    """P1 for a move: one rename takes the source away, one gives the destination; neither is ever half there."""
    Path("a").touch()
    with installed(Recording({"rename"})) as kernel, atomik.transaction() as tx:
        tx.move("a", "b")
    touched = [
        os.path.basename(path)
        for call in kernel.calls
        for path in call.paths
        if ".atomik" not in path.rsplit("/", 1)[1]
    ]
    assert touched == ["a", "b"]
