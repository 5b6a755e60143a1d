"""What `Transaction.plan` says is what the commit then does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import atomik
from atomik import errors


def plan(tx: atomik.Transaction) -> dict[str, tuple[str, str]]:
    """The operation and the kind, by name."""
    return {os.path.basename(each.path): (each.op, each.kind) for each in tx.plan()}


def test_if_changed(folder: Path) -> None:
    """What would not change is "unchanged", once it is complete."""
    Path("a").write_text("same")
    with atomik.transaction(overwrite=True) as tx:
        with tx.file("a", if_changed=True) as f:
            f.write("same")
            assert plan(tx) == {"a": ("replace", "file")}
        assert plan(tx) == {"a": ("unchanged", "file")}
        Path("a").write_text("changed")
        assert plan(tx) == {"a": ("replace", "file")}
        Path("a").unlink()
        assert plan(tx) == {"a": ("create", "file")}
    assert Path("a").read_text() == "same"


def test_the_kind_of_a_path(folder: Path) -> None:
    """What the program has written; until then what it will replace."""
    Path("d").mkdir()
    with atomik.transaction(overwrite=True) as tx:
        staged = tx.path("d")
        assert plan(tx) == {"d": ("replace", "folder")}
        new = tx.path("new")
        assert plan(tx)["new"] == ("create", "file")
        for each in (staged, new):
            each.mkdir()
        assert plan(tx) == {"d": ("replace", "folder"), "new": ("create", "folder")}
        staged.rmdir()
        staged.touch()
        with pytest.raises(errors.WrongKindError):
            tx.plan()
        tx.drop("d")
    assert Path("new").is_dir()


def test_the_kinds_of_an_exchange(folder: Path) -> None:
    """Each name gets the other's."""
    Path("a").touch()
    Path("b").mkdir()
    Path("c").symlink_to("nowhere")
    with atomik.transaction() as tx:
        tx.exchange("a", "b")
        assert plan(tx) == {"a": ("exchange", "folder"), "b": ("exchange", "file")}
        tx.exchange("b", "c")
        found = {name: kind for name, (_, kind) in plan(tx).items()}
    assert found == {"a": "folder", "b": "symlink", "c": "file"}
    assert (Path("a").is_dir(), Path("b").is_symlink(), Path("c").is_file()) == (True, True, True)


def test_the_kind_of_what_replaces_another_kind(folder: Path) -> None:
    """That of the new object."""
    Path("a").mkdir()
    with atomik.transaction() as tx:
        tx.remove("a")
        tx.write_text("a", "")
        assert plan(tx) == {"a": ("replace", "file")}


def test_a_destination_that_is_not_as_expected(folder: Path) -> None:
    """Is refused as by the commit, also a name that was only read."""
    for name in ("a", "b"):
        Path(name).write_text("1")
    seen = atomik.observe("a"), atomik.observe("b")
    with atomik.transaction() as tx:
        tx.write_text("a", "2", expect=seen[0])
        tx.expect("b", seen[1])
        tx.plan()
        for name in ("a", "b"):
            before = Path(name).read_bytes(), os.stat(name)
            Path(name).write_text("others")
            with pytest.raises(errors.ConflictError):
                tx.plan()
            Path(name).unlink()
            Path(name).write_bytes(before[0])
        tx.abort()


def test_a_staged_folder_that_is_gone(folder: Path) -> None:
    """An error of atomik, with the path."""
    Path("d").mkdir()
    with atomik.transaction() as tx:
        tx.folder("d", in_place=True).rmdir()
        with pytest.raises(errors.MissingPathError) as caught:
            tx.plan()
        assert caught.value.filename == str(folder / "d")
        tx.abort()


def test_an_output_that_failed(folder: Path) -> None:
    """It prevents the plan as it prevents the commit, until it is staged again or dropped."""
    Path("a").write_text("old")
    with atomik.transaction(overwrite=True) as tx:
        tx.write_text("b", "new")
        with pytest.raises(KeyError), tx.file("a") as f:
            f.write("half")
            raise KeyError
        with pytest.raises(errors.TransactionStateError, match="drop it"):
            tx.plan()
        tx.drop("a")
        with pytest.raises(errors.MissingPathError):
            tx.drop("a")
        assert plan(tx) == {"b": ("create", "file")}
    assert (Path("a").read_text(), Path("b").read_text()) == ("old", "new")
