"""Outputs without content of their own: symlinks, removals, moves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from tests.kernels import Acting, Recording, installed
from tests.lab import mounts, namespace
from tests.lab.need import need
from tests.state import tree

if TYPE_CHECKING:
    from collections.abc import Callable


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


@pytest.mark.parametrize("make", ["file", "link", "dangling", "folder", "tree", "fifo"])
@pytest.mark.parametrize("others", [0, 1])
def test_removal(folder: Path, make: str, others: int) -> None:
    """Of anything; a link itself, and not what it leads to."""
    Path("target").mkdir()
    Path("target/precious").touch()
    actions: dict[str, Callable[[], object]] = {
        "file": lambda: Path("x").touch(),
        "link": lambda: Path("x").symlink_to("target"),
        "dangling": lambda: Path("x").symlink_to("nowhere"),
        "folder": lambda: Path("x").mkdir(),
        "tree": lambda: Path("x/a/b/c").mkdir(parents=True),
        "fifo": lambda: os.mkfifo("x"),
    }
    actions[make]()
    with atomik.transaction() as tx:
        tx.remove("x")
        for _ in range(others):
            tx.file("y")
        assert os.path.lexists("x")
    assert not os.path.lexists("x")
    assert os.listdir("target") == ["precious"]
    assert tx.receipt is not None
    assert tx.receipt.items[0].op == "remove"


def test_removal_of_nothing(folder: Path) -> None:
    """An error, unless missing_ok."""
    with atomik.transaction() as tx:
        with pytest.raises(errors.MissingPathError, match="missing_ok") as caught:
            tx.remove("x")
        tx.remove("x", missing_ok=True)
        tx.remove("no/such/folder/x", missing_ok=True)
        assert tx.items == ()
    assert caught.value.filename == str(folder / "x")


def test_removal_is_undone(folder: Path) -> None:
    """The same inode comes back."""
    Path("d/sub").mkdir(parents=True)
    before = os.stat("d").st_ino

    def fail(call: Any) -> None:
        if call.paths[1].endswith("/new"):
            raise OSError(5, "injected")

    with installed(Acting("rename", fail)), pytest.raises(errors.CommitError), atomik.transaction() as tx:
        tx.remove("d")
        tx.file("new")
    assert os.stat("d").st_ino == before
    assert os.listdir() == ["d"]


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
    """Only with overwrite, and only over the same kind; keep= holds on to what was there."""
    Path("a").write_text("a")
    Path("b").write_text("b")
    Path("d").mkdir()
    with atomik.transaction() as tx:
        with pytest.raises(errors.FileAlreadyExistsError):
            tx.move("a", "b")
        with pytest.raises(errors.WrongKindError):
            tx.move("a", "d", overwrite=True)
        tx.move("a", "b", overwrite=True, keep="b.old")
    assert {name: Path(name).read_text() for name in ("b", "b.old")} == {"b": "a", "b.old": "b"}
    assert sorted(os.listdir()) == ["b", "b.old", "d"]


def test_move_is_undone(folder: Path) -> None:
    """Both names are as they were."""
    Path("a").write_text("a")
    Path("b").write_text("b")
    before = tree(".")

    def fail(call: Any) -> None:
        if call.paths[1].endswith("/new"):
            raise OSError(5, "injected")

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
    with pytest.raises(errors.InvalidDestinationError, match="drop it") as caught, atomik.transaction() as tx:
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
    """A chain of moves through a third name is one transaction's business only if no name is used twice."""
    Path("a").write_text("a")
    Path("b").write_text("b")
    with atomik.transaction(overwrite=True) as tx:
        tx.move("a", "c")
        with pytest.raises(errors.DuplicateDestinationError):
            tx.move("b", "a")
        tx.abort()
    atomik.swap("a", "b")
    assert (Path("a").read_text(), Path("b").read_text()) == ("b", "a")


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
