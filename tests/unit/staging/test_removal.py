"""Removals as outputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from tests.support.kernels import Acting, Answer, installed

if TYPE_CHECKING:
    from collections.abc import Callable


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


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("durable", [True, False])
def test_what_others_remove_first(folder: Path, others: int, durable: bool) -> None:
    """With missing_ok there is nothing left to do; without it, that is an error at the commit, too."""
    for missing_ok in (True, False):
        Path("x").touch()
        tx = atomik.transaction(overwrite=True, durable=durable)
        tx.remove("x", missing_ok=missing_ok, expect=atomik.observe("x"))
        for _ in range(others):
            tx.write_text("y", "")
        os.unlink("x")
        if missing_ok:
            assert [each.op for each in tx.plan() if each.path.endswith("x")] == ["unchanged"]
            assert tx.commit().items[0].op == "unchanged"
        else:
            with pytest.raises(errors.MissingPathError):
                tx.commit()


def test_what_may_be_missing_in_a_folder_that_is_replaced(folder: Path) -> None:
    """It is looked for in the new folder, and refused there, although the old folder does not have it."""
    Path("d").mkdir()
    Path("d/old").touch()
    with atomik.transaction(overwrite=True) as tx:
        new = tx.folder("d")
        (new / "x").touch()
        with pytest.raises(errors.NestedDestinationError):
            tx.remove("d/x", missing_ok=True)
        tx.remove("d/y", missing_ok=True)
    assert os.listdir("d") == ["x"]


def test_removal_is_undone(folder: Path) -> None:
    """The same inode comes back."""
    Path("d/sub").mkdir(parents=True)
    before = os.stat("d").st_ino

    def fail(call: Any) -> None:
        if call.paths[1].endswith("/new"):
            raise Answer(5)

    with installed(Acting("rename", fail)), pytest.raises(errors.CommitError), atomik.transaction() as tx:
        tx.remove("d")
        tx.file("new")
    assert os.stat("d").st_ino == before
    assert os.listdir() == ["d"]
