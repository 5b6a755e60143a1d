"""`Transaction.exists` and `Transaction.open`: a transaction reads what it has written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

import atomik
from tests.support.state import left_in


def read(tx: atomik.Transaction, path: str) -> str:
    with tx.open(path) as f:
        text: str = f.read()
    return text


def test_what_is_there(folder: Path) -> None:
    """Untouched names are as on disk."""
    Path("a").write_text("a")
    with atomik.transaction() as tx:
        assert tx.exists("a")
        assert not tx.exists("b")
        assert not tx.exists("a/b")
        assert read(tx, "a") == "a"
        with pytest.raises(FileNotFoundError, match="b"):
            tx.open("b")
        with pytest.raises(IsADirectoryError):
            tx.open(".")


def test_staged_file_shows_what_was_flushed(folder: Path) -> None:
    """Open, closed, and when it got its slot because there are many."""
    Path("a").write_text("old")
    with atomik.transaction(overwrite=True) as tx:
        f = tx.file("a")
        f.write("new")
        assert read(tx, "a") == ""
        f.flush()
        assert read(tx, "a") == "new"
        f.write("er")
        f.close()
        assert read(tx, "a") == "newer"
        for number in range(20):
            tx.write_text(f"many-{number}", str(number))
        assert [read(tx, f"many-{number}") for number in range(20)] == [str(number) for number in range(20)]
        assert read(tx, "a") == "newer"
        assert Path("a").read_text() == "old"


def test_reading_does_not_move_the_writer(folder: Path) -> None:
    """The two have positions of their own."""
    with atomik.transaction() as tx:
        f = tx.file("a", "w+")
        f.write("one ")
        f.flush()
        read(tx, "a")
        f.write("two")
    assert Path("a").read_text() == "one two"


def test_bytes_and_text(folder: Path) -> None:
    with atomik.transaction() as tx:
        tx.write_bytes("a", b"\xc3\xa9\r\n")
        with tx.open("a", "rb") as f:
            assert f.read() == b"\xc3\xa9\r\n"
        with tx.open("a", newline="") as f:
            assert f.read() == "é\r\n"
            assert f.name == f"{folder}/a"
        with pytest.raises(ValueError, match=r"tx\.file"):
            tx.open("a", "w")


def test_removed_moved_exchanged(folder: Path) -> None:
    """Names are followed through all operations so far."""
    for name in "abcd":
        Path(name).write_text(name)
    with atomik.transaction() as tx:
        tx.remove("a")
        tx.move("b", "a")
        tx.move("a", "e")
        tx.exchange("c", "d")
        assert [tx.exists(name) for name in "abcde"] == [False, False, True, True, True]
        assert [read(tx, name) for name in "cde"] == ["d", "c", "b"]
        with pytest.raises(FileNotFoundError, match="removes it"):
            tx.open("b")
        tx.drop("e")
        assert read(tx, "a") == "b"


def test_backup(folder: Path) -> None:
    Path("a").write_text("old")
    with atomik.transaction(overwrite=True) as tx:
        tx.write_text("a", "new", backup="a.bak")
        assert (read(tx, "a"), read(tx, "a.bak")) == ("new", "old")
        tx.write_text("b", "new", backup="b.bak")
        assert not tx.exists("b.bak")


def test_inside_a_staged_folder(folder: Path) -> None:
    """Also where another folder exists at its name, and through a link; what was removed or moved has nothing inside."""
    for name in ("d", "gone"):
        Path(name).mkdir()
        Path(name, "old").touch()
    with atomik.transaction(overwrite=True) as tx:
        new = tx.folder("d")
        (new / "sub").mkdir()
        (new / "sub" / "x").write_text("x")
        assert read(tx, "d/sub/x") == "x"
        assert tx.exists("d/sub")
        assert not tx.exists("d/old")
        tx.move("gone", "here")
        assert tx.exists("here/old")
        assert not tx.exists("gone/old")
        tx.symlink("link", "d/sub")
        assert read(tx, "link/x") == "x"
        assert read(tx, "link/../sub/x") == "x"


def test_path_before_and_after_it_is_written(folder: Path) -> None:
    with atomik.transaction() as tx:
        with tx.path("a") as name:
            assert not tx.exists("a")
            name.write_text("by name")
            assert read(tx, "a") == "by name"
        assert read(tx, "a") == "by name"


def test_links(folder: Path) -> None:
    """A link counts itself; one that leads nowhere cannot be opened, and one in a circle is an error."""
    with atomik.transaction() as tx:
        tx.symlink("l", "target")
        assert tx.exists("l")
        with pytest.raises(FileNotFoundError):
            tx.open("l")
        tx.write_text("target", "t")
        assert read(tx, "l") == "t"
        tx.symlink("round", "round")
        with pytest.raises(atomik.AtomikError):
            tx.open("round")


def test_links_that_lead_in_a_circle(folder: Path) -> None:
    """Nothing is there, as os.path.exists says; to open it is an error."""
    Path("a").symlink_to("a")
    with atomik.transaction() as tx:
        assert tx.exists("a")
        assert not tx.exists("a/x")
        with pytest.raises(atomik.errors.AtomikOSError, match="loop"):
            tx.open("a")


def test_another_spelling(folder: Path) -> None:
    """Relative, absolute, through a link to the folder."""
    Path("real").mkdir()
    Path("way").symlink_to("real")
    with atomik.transaction() as tx:
        tx.write_text("way/a", "a")
        assert read(tx, "real/a") == read(tx, f"{folder}/way/a") == read(tx, "./way/../real/a") == "a"


def test_a_transaction_that_is_over(folder: Path) -> None:
    tx = atomik.transaction()
    tx.abort()
    with pytest.raises(atomik.errors.TransactionStateError):
        tx.exists("a")
    with pytest.raises(atomik.errors.TransactionStateError):
        tx.open("a")


class TestCopy:
    """`Transaction.copy`."""

    def test_file_and_metadata(self, folder: Path) -> None:
        Path("a").write_text("a")
        os.chmod("a", 0o640)
        os.utime("a", (1, 2))
        Path("b").write_text("old")
        with atomik.transaction() as tx:
            with pytest.raises(FileExistsError):
                tx.copy("a", "b")
            tx.copy("a", "b", overwrite=True)
            assert read(tx, "b") == "a"
            assert Path("b").read_text() == "old"
        found = os.stat("b")
        assert (Path("b").read_text(), stat.S_IMODE(found.st_mode), found.st_mtime) == ("a", 0o640, 2)
        assert tx.receipt is not None
        assert [(item.kind, item.op) for item in tx.receipt.items] == [("copy", "replace")]

    def test_tree_and_link(self, folder: Path) -> None:
        Path("d/sub").mkdir(parents=True)
        Path("d/sub/x").write_text("x")
        Path("d/l").symlink_to("nowhere")
        with atomik.transaction() as tx:
            tx.copy("d", "e")
            tx.copy("d/l", "l")
            tx.copy("d", "new/e", parents=True)
        assert Path("e/sub/x").read_text() == Path("new/e/sub/x").read_text() == "x"
        assert os.readlink("e/l") == os.readlink("l") == "nowhere"

    def test_what_is_staged(self, folder: Path) -> None:
        """A closed file, an entry of a staged folder, what was moved, a copy; not what is still being written."""
        Path("m").write_text("m")
        with atomik.transaction() as tx:
            f = tx.file("a")
            f.write("a")
            with pytest.raises(atomik.errors.TransactionStateError, match="close it"):
                tx.copy("a", "b")
            f.close()
            tx.copy("a", "b")
            tx.copy("b", "c")
            new = tx.folder("d")
            (new / "x").write_text("x")
            tx.copy("d/x", "x")
            tx.copy("d", "d2")
            tx.move("m", "n")
            tx.copy("n", "n2")
            with pytest.raises(FileNotFoundError, match="removes it"):
                tx.copy("m", "m2")
        found = {name: Path(name).read_text() for name in ("a", "b", "c", "x", "d/x", "d2/x", "n", "n2")}
        assert found == {"a": "a", "b": "a", "c": "a", "x": "x", "d/x": "x", "d2/x": "x", "n": "m", "n2": "m"}

    def test_what_replaces_what_is_staged(self, folder: Path) -> None:
        """The copy is no more open than its original will be, which gets its mode from what was staged before it (P8)."""
        Path("old").write_text("old")
        os.chmod("old", 0o600)
        with atomik.transaction(overwrite=True) as tx:
            tx.write_text("secret", "1", permissions=0o600)
            for number in range(2, 40):
                tx.write_text("secret", str(number))
            tx.copy("secret", "copy")
            tx.write_text("old", "1")
            tx.write_text("old", "2")
            tx.copy("old", "old copy")
        modes = {name: stat.S_IMODE(os.stat(name).st_mode) for name in os.listdir()}
        assert modes == {"secret": 0o600, "copy": 0o600, "old": 0o600, "old copy": 0o600}
        assert (Path("copy").read_text(), Path("old copy").read_text()) == ("39", "2")

    def test_refusals_leave_nothing(self, folder: Path) -> None:
        Path("d").mkdir()
        tx = atomik.transaction()
        with pytest.raises(FileNotFoundError, match="nothing to copy"):
            tx.copy("missing", "b")
        with pytest.raises(atomik.errors.NestedDestinationError):
            tx.copy("d", "d/e")
        tx.copy("d", "e")
        tx.abort()
        assert os.listdir() == ["d"]
        assert not left_in(folder)

    def test_expect_and_permissions(self, folder: Path) -> None:
        Path("a").write_text("a")
        with pytest.raises(atomik.errors.ConflictError), atomik.transaction() as tx:
            tx.copy("a", "b", expect=atomik.observe("a"))
        with atomik.transaction() as tx:
            tx.copy("a", "b", expect="absent", permissions=0o600)
        assert stat.S_IMODE(os.stat("b").st_mode) == 0o600


def test_expectations_of_removals_and_links(folder: Path) -> None:
    """They take ``expect=`` like the others."""
    Path("a").write_text("a")
    Path("b").write_text("b")
    seen = atomik.observe("a"), atomik.observe("b")
    Path("a").write_text("theirs")
    with pytest.raises(atomik.errors.ConflictError), atomik.transaction() as tx:
        tx.remove("a", expect=seen[0])
    with pytest.raises(atomik.errors.ConflictError), atomik.transaction() as tx:
        tx.symlink("a", "x", expect=seen[0])
    with atomik.transaction() as tx:
        tx.remove("a", expect=atomik.observe("a"))
        tx.symlink("b", "x", expect=seen[1])
    assert os.listdir() == ["b"]
    with pytest.raises(atomik.errors.ConflictError), atomik.transaction() as tx:
        tx.remove("b", expect=atomik.observe("b"))
        os.unlink("b")
        Path("b").write_text("theirs")
    assert Path("b").read_text() == "theirs"


def test_very_many_questions_and_copies(folder: Path) -> None:
    """Each goes on from what is known, and what is dropped is forgotten."""
    Path("x").write_text("1")
    with atomik.transaction(durable=False) as tx:
        for number in range(50):
            tx.copy("x" if not number else f"x{number - 1}", f"x{number}")
            assert tx.exists(f"x{number}")
        tx.drop("x49")
        assert not tx.exists("x49")
        tx.move("x48", "x49")
        assert (tx.exists("x48"), tx.exists("x49")) == (False, True)
        tx.drop("x49")
        assert (tx.exists("x48"), tx.exists("x49")) == (True, False)
    assert len(os.listdir()) == 50


def test_a_folder_that_stays_is_looked_at_each_time(folder: Path) -> None:
    """What is written into it, and what others put there, shows at once."""
    Path("d").mkdir()
    with atomik.transaction(overwrite=True) as tx:
        new = tx.folder("d", in_place=True)
        tx.write_text("other", "")
        assert not tx.exists("d/a")
        (new / "a").touch()
        Path("d/b").touch()
        assert (tx.exists("d/a"), tx.exists("d/b")) == (True, False)
