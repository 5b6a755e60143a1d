"""Operations about one name, one after the other: each starts from what the earlier ones leave, whatever exists now."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize(
    "earlier",
    [
        lambda tx: tx.remove("a"),
        lambda tx: tx.move("x", "a"),
        lambda tx: tx.write_text("x", "new", backup="a"),
        lambda tx: tx.exchange("x", "a"),
        lambda tx: tx.write_text("a", "other"),
        lambda tx: tx.symlink("a", "x"),
    ],
    ids=["remove", "move", "backup", "exchange", "file", "symlink"],
)
def test_if_changed_compares_with_what_will_be_there(
    folder: Path, earlier: Callable[[atomik.Transaction], None], single: bool
) -> None:
    """What exists now may equal the new content, but it is not what is replaced."""
    Path("a").write_text("same")
    Path("x").write_text("other")
    with atomik.transaction(overwrite=True, durable=single) as tx:
        earlier(tx)
        tx.write_text("a", "same", if_changed=True)
        planned = {os.path.basename(each.path): each.op for each in tx.plan()}
    assert Path("a").read_text() == "same"
    assert not Path("a").is_symlink()
    assert planned["a"] == "replace"


@pytest.mark.parametrize("mode", ["a", "r+"])
@pytest.mark.parametrize("where", ["staged", "moved", "copied", "path", "backup"])
def test_a_file_starts_from_what_the_transaction_has(folder: Path, mode: str, where: str) -> None:
    """The modes "a" and "r+" lose nothing that an earlier operation has put there."""
    Path("log").write_text("on disk ")
    Path("other").write_text("1")
    Path("log").chmod(0o640)
    with atomik.transaction(overwrite=True) as tx:
        if where == "staged":
            tx.write_text("log", "1")
        elif where == "moved":
            tx.move("other", "log")
        elif where == "copied":
            tx.copy("other", "log")
        elif where == "path":
            tx.path("log").write_text("1")
            tx.items[0].seal()  # type: ignore[attr-defined]
        else:
            tx.write_text("other", "new", backup="log")
        with tx.file("log", mode) as f:
            f.seek(0, os.SEEK_END)
            f.write("2")
    assert Path("log").read_text() == "12"


def test_a_file_after_a_removal_starts_empty(folder: Path) -> None:
    """Or does not start at all."""
    Path("log").write_text("1")
    with atomik.transaction() as tx:
        tx.remove("log")
        with pytest.raises(errors.MissingPathError):
            tx.file("log", "r+")
        with tx.file("log", "a") as f:
            f.write("2")
    assert Path("log").read_text() == "2"


def test_what_is_still_being_written_is_no_start(folder: Path) -> None:
    """A copy would have only a part of it."""
    with atomik.transaction(overwrite=True) as tx:
        first = tx.file("log")
        with pytest.raises(errors.TransactionStateError, match="still being written"):
            tx.file("log", "a")
        first.write("1")
        first.close()
        with tx.file("log", "a") as f:
            f.write("2")
    assert Path("log").read_text() == "12"


@pytest.mark.parametrize("earlier", ["staged", "moved", "removed"])
def test_a_clone_starts_from_what_the_transaction_has(folder: Path, earlier: str) -> None:
    """copy=True."""
    for name in ("d", "other"):
        Path(name).mkdir()
        Path(name, name).touch()
    with atomik.transaction(overwrite=True) as tx:
        if earlier == "staged":
            (tx.folder("d") / "staged").touch()
        elif earlier == "moved":
            tx.move("other", "d")
        else:
            tx.remove("d")
        (tx.folder("d", copy=True) / "new").touch()
    assert sorted(os.listdir("d")) == sorted(
        {"staged": ["new", "staged"], "moved": ["new", "other"]}.get(earlier, ["new"])
    )


def test_a_base_is_what_the_transaction_has(folder: Path) -> None:
    """base= may name a staged folder, and no removed one."""
    Path("old").mkdir()
    with atomik.transaction() as tx:
        (tx.folder("first") / "a").touch()
        (tx.folder("second", base="first") / "b").touch()
        tx.remove("old")
        with pytest.raises(errors.MissingPathError, match="removes it"):
            tx.folder("third", base="old")
    assert sorted(os.listdir("second")) == ["a", "b"]


@pytest.mark.parametrize(
    "copy", [lambda tx: tx.copy("d", "e"), lambda tx: tx.folder("e", base="d")], ids=["copy", "base"]
)
def test_a_copy_does_not_miss_what_changes_inside(folder: Path, copy: Callable[[atomik.Transaction], None]) -> None:
    """Refused, because the copy is made at once, from the disk."""
    Path("d").mkdir()
    Path("d/x").touch()
    with atomik.transaction() as tx:
        tx.remove("d/x")
        with pytest.raises(errors.NestedDestinationError, match="copy it before"):
            copy(tx)
    assert not Path("e").exists()


def test_a_name_for_a_version_that_is_missing(folder: Path) -> None:
    """The name was looked at, but nothing changes it: what exists there has its own mode to hand on (P8)."""
    Path("new").touch()
    Path("secret").touch()
    Path("secret").chmod(0o600)
    with atomik.transaction(overwrite=True) as tx:
        tx.move("new", "b", backup="secret")  # nothing is at b
        tx.write_text("secret", "word")
    assert stat.S_IMODE(Path("secret").stat().st_mode) == 0o600


def test_a_previous_version_that_others_remove(folder: Path) -> None:
    """Then nothing gets its name, and the file that exists there hands its mode on (P8)."""
    for name in ("a", "secret"):
        Path(name).touch()
    Path("secret").chmod(0o600)
    with atomik.transaction(overwrite=True) as tx:
        tx.write_text("a", "new", backup="secret")
        tx.write_text("secret", "word")
        Path("a").unlink()
    assert stat.S_IMODE(Path("secret").stat().st_mode) == 0o600


def test_an_exchange_of_what_was_changed_cannot_be_expected(folder: Path) -> None:
    """As for every other operation."""
    for name in ("a", "b"):
        Path(name).touch()
    with atomik.transaction(overwrite=True) as tx:
        expected: list[Any] = [atomik.observe("a"), "absent"]
        tx.write_text("a", "new")
        for each in expected:
            with pytest.raises(errors.ConflictError, match="earlier operation"):
                tx.exchange("a", "b", expect=each)


def test_an_earlier_kind_is_known_once_it_is_written(folder: Path) -> None:
    """Of a path, also one that replaces a folder: so nothing of another kind is put over it, here or at the commit."""
    Path("d").mkdir()
    Path("f").touch()
    with atomik.transaction(overwrite=True) as tx:
        tx.path("a").write_text("a file")
        tx.path("d").mkdir()
        with pytest.raises(errors.WrongKindError, match="puts a file"):
            tx.folder("a")
        with pytest.raises(errors.WrongKindError, match="puts a folder"):
            tx.file("d")
        with pytest.raises(errors.WrongKindError, match="not a folder"):
            tx.move("d", "f")
    assert Path("a").read_text() == "a file"


@pytest.mark.parametrize("earlier", [lambda tx: None, lambda tx: tx.move("private", "d")], ids=["present", "moved"])
def test_a_copy_of_a_staged_folder_is_as_closed_as_it_will_be(
    folder: Path, earlier: Callable[[atomik.Transaction], None]
) -> None:
    """Although the folder gets its mode only when it is complete (P8)."""
    for name in ("d", "private"):
        Path(name).mkdir(mode=0o700)
    with atomik.transaction(overwrite=True) as tx:
        earlier(tx)
        (tx.folder("d") / "secret").touch()
        tx.copy("d", "copy")
    assert [stat.S_IMODE(os.stat(name).st_mode) for name in ("d", "copy")] == [0o700, 0o700]


def test_a_folder_that_stays_is_what_will_be_there(folder: Path) -> None:
    """Not where a link leads that the transaction has replaced."""
    Path("d").mkdir()
    Path("b").symlink_to("d")
    Path("to-b").symlink_to("b")
    with atomik.transaction(overwrite=True) as tx:
        tx.write_text("b", "a file")
        for name in ("b", "to-b"):
            with pytest.raises(errors.NestedDestinationError, match="write into what it has staged"):
                tx.folder(name, in_place=True)
        tx.folder("d", in_place=True)


@pytest.mark.parametrize("earlier", ["link", "removal", "move", "another"])
def test_a_link_is_followed_as_it_will_be(folder: Path, earlier: str) -> None:
    """follow_symlinks=True writes to the target that the link has for the transaction."""
    for name in ("old", "new"):
        Path(name).write_text(name)
    Path("l").symlink_to("old")
    Path("m").symlink_to("new")
    with atomik.transaction(overwrite=True) as tx:
        if earlier == "link":
            tx.symlink("l", "new")
        elif earlier == "removal":
            tx.remove("l")
        elif earlier == "move":
            tx.move("m", "l")
        else:
            tx.write_text("x", "")
        tx.write_text("l", "through", follow_symlinks=True)
    written = {"link": "new", "removal": "l", "move": "new", "another": "old"}[earlier]
    assert [
        name for name in ("old", "new", "l") if Path(name).read_text() == "through" and not Path(name).is_symlink()
    ] == [written]
