"""What stays where it is: unchanged destinations (``if_changed``), previous versions under a new name (``keep``)."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._tree import compare as _compare
from atomik.testing import CrashPoint, crash_points
from tests.support.kernels import Faulty, Recording, installed
from tests.support.state import identity, left_in, tree
from tests.support.users import no_devices

if TYPE_CHECKING:
    from collections.abc import Callable


def same(new: Path, old: Path, permissions: int | None = None) -> bool:
    first, second = Directory.open(str(new.parent)), Directory.open(str(old.parent))
    try:
        return _compare.same(Place(first, new.name), Place(second, old.name), permissions)
    finally:
        first.close()
        second.close()


def grow(top: Path) -> None:
    """A tree with something of every kind."""
    (top / "deep/er").mkdir(parents=True)
    (top / "deep/er/file").write_text("content")
    (top / "empty").mkdir()
    (top / "empty file").touch()
    (top / "link").symlink_to("deep/er/file")
    (top / "dangling").symlink_to("nowhere")
    (top / "script").write_text("#!/bin/sh\n")
    (top / "script").chmod(0o755)
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(top)  # a socket's path is short
        try:
            sock.bind("socket")
        finally:
            os.chdir(here)


DIFFERENCES: dict[str, Callable[[Path], Any]] = {
    "a byte deep down": lambda top: (top / "deep/er/file").write_text("contenT"),
    "a byte more": lambda top: (top / "deep/er/file").write_text("content."),
    "a name more": lambda top: (top / "deep/new").touch(),
    "a name less": lambda top: (top / "empty file").unlink(),
    "an empty folder less": lambda top: (top / "empty").rmdir(),
    "a renamed file": lambda top: (top / "deep/er/file").rename(top / "deep/er/File"),
    "a link's target": lambda top: ((top / "link").unlink(), (top / "link").symlink_to("./deep/er/file")),
    "a file for a link to the same": lambda top: ((top / "link").unlink(), (top / "link").write_text("content")),
    "a folder for a file": lambda top: ((top / "empty file").unlink(), (top / "empty file").mkdir()),
    "a file for a fifo": lambda top: ((top / "fifo").unlink(), (top / "fifo").touch()),
    "a permission bit": lambda top: (top / "script").chmod(0o644),
    "a folder's permissions": lambda top: (top / "deep").chmod(0o700),
}


class TestComparing:
    """`_compare`, apart from transactions."""

    def test_equal_trees(self, folder: Path) -> None:
        """Two trees made alike are the same, whatever their times."""
        grow(folder / "one")
        grow(folder / "two")
        os.utime(folder / "two/deep", (1, 1))
        assert same(folder / "one", folder / "two")

    @pytest.mark.parametrize("difference", DIFFERENCES)
    def test_different_trees(self, folder: Path, difference: str) -> None:
        """One difference anywhere is found, from either side."""
        grow(folder / "one")
        grow(folder / "two")
        DIFFERENCES[difference](folder / "two")
        assert not same(folder / "one", folder / "two")
        assert not same(folder / "two", folder / "one")

    def test_links_are_not_followed(self, folder: Path) -> None:
        """A link to an equal folder, or to an equal file, is not equal to it."""
        grow(folder / "one")
        (folder / "two").symlink_to("one")
        assert not same(folder / "one", folder / "two")
        assert not same(folder / "two", folder / "one")

    def test_large_files_in_pieces(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A difference in the last piece is found, although the first piece is equal."""
        monkeypatch.setattr(_compare, "_CHUNK", 1000)
        content = os.urandom(5500)
        for name, data in (("a", content), ("b", content), ("c", content[:-1] + bytes([content[-1] ^ 1]))):
            (folder / name).write_bytes(data)
        assert same(folder / "a", folder / "b")
        assert not same(folder / "a", folder / "c")

    def test_stops_at_the_first_difference(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If files differ at the start, only the start is read."""
        monkeypatch.setattr(_compare, "_CHUNK", 1000)
        (folder / "a").write_bytes(b"x" * 5000)
        (folder / "b").write_bytes(b"y" * 5000)
        with installed(Recording()) as kernel:
            assert not same(folder / "a", folder / "b")
        assert kernel.names().count("pread") == 2

    @pytest.mark.sweep
    def test_deeper_than_the_descriptors(self, folder: Path) -> None:
        """Trees deeper than the number of descriptors that is held open, and than PATH_MAX, are compared to the end."""
        try:
            for name in ("one", "two", "three"):
                here = folder / name
                here.mkdir()
                os.chdir(here)
                for _ in range(500):
                    os.mkdir("a-long-name")
                    os.chdir("a-long-name")
                Path("end").write_text("3" if name == "three" else "x")
            os.chdir(folder)
            assert same(folder / "one", folder / "two")
            assert not same(folder / "one", folder / "three")
        finally:
            os.chdir(folder)
            for name in ("one", "two", "three"):
                os.system(f"rm -rf {name}")

    def test_unreadable_counts_as_changed(self, folder: Path) -> None:
        """An error while reading makes a swap, never a wrong "equal"."""
        (folder / "a").write_text("x")
        (folder / "b").write_text("x")
        with installed(Faulty.every("pread", errno.EIO)):
            assert not same(folder / "a", folder / "b")
        assert not same(folder / "a", folder / "missing")

    def test_devices_by_number(self, folder: Path) -> None:
        """Two devices are equal when their numbers are."""
        if why := no_devices():
            pytest.skip(why)
        for name, number in (("a", 3), ("b", 3), ("c", 5)):
            os.mknod(folder / name, 0o20600, os.makedev(1, number))
        assert same(folder / "a", folder / "b")
        assert not same(folder / "a", folder / "c")


def write(path: str, text: str, **options: Any) -> atomik.Receipt:
    output = atomik.file(path, overwrite=True, **options)
    with output as file:
        file.write(text)
    assert output.receipt is not None
    return output.receipt


class TestIfChanged:
    """``if_changed=True`` in one-item writes and in transactions."""

    def test_equal_file_stays(self, folder: Path) -> None:
        """An equal file is not touched: same inode, same times; the receipt says "unchanged"."""
        write("a", "text")
        before = identity("a")
        receipt = write("a", "text", if_changed=True)
        assert identity("a") == before
        assert [(item.op, item.replaced, item.method) for item in receipt.items] == [("unchanged", False, "")]
        assert os.listdir() == ["a"]

    def test_changed_file_is_swapped(self, folder: Path) -> None:
        """A file that differs, or is not there, is published as without the option."""
        assert write("a", "text", if_changed=True).items[0].op == "create"
        assert write("a", "texT", if_changed=True).items[0].op == "replace"
        assert Path("a").read_text() == "texT"

    def test_permissions_count_when_asked_for(self, folder: Path) -> None:
        """Equal bytes with other permissions than requested are a change; without a request they are not."""
        write("a", "text", permissions=0o600)
        assert write("a", "text", if_changed=True).items[0].op == "unchanged"
        assert write("a", "text", if_changed=True, permissions=0o600).items[0].op == "unchanged"
        assert write("a", "text", if_changed=True, permissions=0o640).items[0].op == "replace"
        assert os.stat("a").st_mode & 0o777 == 0o640

    def test_link_is_no_file(self, folder: Path) -> None:
        """A link to an equal file is replaced, unless links are followed: then its target stays."""
        write("a", "text")
        os.symlink("a", "ln")
        assert write("ln", "text", if_changed=True, follow_symlinks=True).items[0].op == "unchanged"
        assert os.path.islink("ln")
        assert write("ln", "text", if_changed=True).items[0].op == "replace"
        assert not os.path.islink("ln")

    def test_folder(self, folder: Path) -> None:
        """An equal folder stays, its inode and all; one more name in it, and it is exchanged."""
        with atomik.folder("site") as new:
            grow(new)
        inode = os.stat("site").st_ino
        output = atomik.folder("site", overwrite=True, if_changed=True)
        with output as new:
            grow(new)
        assert output.receipt is not None
        assert output.receipt.items[0].op == "unchanged"
        assert os.stat("site").st_ino == inode
        output = atomik.folder("site", overwrite=True, if_changed=True)
        with output as new:
            grow(new)
            (new / "more").touch()
        assert output.receipt is not None
        assert output.receipt.items[0].op == "replace"
        assert os.path.exists("site/more")

    def test_path(self, folder: Path) -> None:
        """What another program wrote is compared too."""
        for expected in ("create", "unchanged"):
            output = atomik.path("data.bin", overwrite=True, if_changed=True)
            with output as name:
                name.write_bytes(b"data")
            assert output.receipt is not None
            assert output.receipt.items[0].op == expected

    def test_in_a_transaction(self, folder: Path) -> None:
        """Of several items only the changed ones are swapped; with none changed there is no journal at all."""

        def publish(second: str) -> tuple[list[str], list[str]]:
            with installed(Recording()) as kernel, atomik.transaction(overwrite=True) as tx:
                tx.file("a", if_changed=True).write("a")
                tx.file("b", if_changed=True).write(second)
                with tx.folder("c", if_changed=True) as c:
                    (c / "x").write_text("x")
            assert tx.receipt is not None
            return [item.op for item in tx.receipt.items], kernel.names()

        assert publish("b")[0] == ["create", "create", "create"]
        inodes = {name: os.stat(name).st_ino for name in "abc"}
        ops, calls = publish("b")
        assert ops == ["unchanged", "unchanged", "unchanged"]
        assert "rename" not in calls
        assert {name: os.stat(name).st_ino for name in "abc"} == inodes
        assert publish("B")[0] == ["unchanged", "replace", "unchanged"]
        assert {name: os.stat(name).st_ino for name in "ac"} == {name: inodes[name] for name in "ac"}

    def test_more_files_than_stay_open(self, folder: Path) -> None:
        """Files that gave up their descriptor before the commit are compared by their slot."""
        for expected in ("create", "unchanged"):
            with atomik.transaction(overwrite=True) as tx:
                for number in range(20):
                    with tx.file(f"f{number}", if_changed=True) as file:
                        file.write(str(number))
            assert tx.receipt is not None
            assert {item.op for item in tx.receipt.items} == {expected}

    def test_unchanged_is_made_durable(self, folder: Path) -> None:
        """What stays was perhaps written without a sync, so it gets one; with ``durable=False`` nothing is synced."""
        Path("a").write_text("text")  # by someone who did not sync
        with installed(Recording()) as kernel:
            receipt = write("a", "text", if_changed=True)
        synced = [os.fspath(path) for call in kernel.calls if call.name == "fsync" for path in call.paths]
        assert synced == [str(folder / "a"), str(folder)]
        assert receipt.durable
        with installed(Recording()) as kernel:
            write("a", "text", if_changed=True, durable=False)
        assert not {"fsync", "syncfs", "fdatasync"} & set(kernel.names())

    def test_failed_sync_of_the_unchanged(self, folder: Path) -> None:
        """If that sync fails the commit fails, and what was there is still there."""
        write("a", "text")
        with installed(Faulty.every("fsync", errno.EIO)), pytest.raises(atomik.errors.CommitError):
            write("a", "text", if_changed=True)
        assert Path("a").read_text() == "text"

    def test_expectation_comes_first(self, folder: Path) -> None:
        """A destination that is not what was expected is a conflict, even if its content is equal."""
        write("a", "text")
        seen = atomik.observe("a")
        write("a", "text")
        with pytest.raises(atomik.errors.ConflictError):
            write("a", "text", if_changed=True, expect=seen)

    def test_still_refuses_without_overwrite(self, folder: Path) -> None:
        """The option permits nothing: an existing file without overwrite stays refused."""
        write("a", "text")
        with pytest.raises(FileExistsError):
            atomik.file("a", if_changed=True)

    @pytest.mark.sweep
    def test_nothing_left_at_any_crash(self, folder: Path) -> None:
        """Killed at any call of an unchanged transaction, everything is as it was after recovery."""

        def prepare() -> None:
            shutil.rmtree(folder)
            folder.mkdir()
            os.chdir(folder)
            Path("a").write_text("a")
            Path("b").write_text("b")

        def publish() -> None:
            with atomik.transaction(overwrite=True) as tx:
                tx.file("a", if_changed=True).write("a")
                tx.file("b", if_changed=True).write("b")

        def check(point: CrashPoint) -> None:
            atomik.recover(folder)
            assert tree(folder) == expected
            assert not left_in(folder)

        prepare()
        expected = tree(folder)
        assert crash_points(publish, check, prepare=prepare) > 10


class TestKeep:
    """``backup=``: the previous version under another name, in the same transaction."""

    def test_name(self, folder: Path) -> None:
        """The object that was displaced itself has the new name, and the receipt says where."""
        write("a", "one")
        inode = os.stat("a").st_ino
        receipt = write("a", "two", backup="a.bak")
        assert (Path("a").read_text(), Path("a.bak").read_text()) == ("two", "one")
        assert os.stat("a.bak").st_ino == inode
        assert receipt.items[0].backup == str(folder / "a.bak")

    def test_callable(self, folder: Path) -> None:
        """A function gets the destination's path and says the name, or a whole path in the same folder."""
        write("a", "one")
        asked = []
        write("a", "two", backup=lambda path: asked.append(path) or "a.1")  # type: ignore[func-returns-value]
        write("a", "three", backup=lambda path: path + ".2")
        assert asked == [str(folder / "a")]
        assert [Path(name).read_text() for name in ("a", "a.1", "a.2")] == ["three", "one", "two"]

    def test_nothing_to_keep(self, folder: Path) -> None:
        """A new file has no previous version: an old backup stays as it is."""
        Path("a.bak").write_text("from long ago")
        receipt = write("a", "one", backup="a.bak")
        assert receipt.items[0].backup is None
        assert Path("a.bak").read_text() == "from long ago"

    def test_replaces_the_older_backup(self, folder: Path) -> None:
        """A backup that exists already is replaced, and deleted."""
        for text in ("one", "two", "three"):
            write("a", text, backup="a.bak")
        assert sorted(os.listdir()) == ["a", "a.bak"]
        assert (Path("a").read_text(), Path("a.bak").read_text()) == ("three", "two")

    def test_folder(self, folder: Path) -> None:
        """A whole folder is kept, and an older backup folder is replaced with everything in it."""
        for text in ("one", "two", "three"):
            with atomik.folder("site", overwrite=True, backup="site.old") as new:
                (new / text).write_text(text)
        assert (os.listdir("site"), os.listdir("site.old")) == (["three"], ["two"])
        assert sorted(os.listdir()) == ["site", "site.old"]

    def test_unchanged_keeps_the_backup(self, folder: Path) -> None:
        """With ``if_changed`` an equal content does not push the older version out of its backup."""
        write("a", "one")
        write("a", "two", backup="a.bak", if_changed=True)
        write("a", "two", backup="a.bak", if_changed=True)
        assert Path("a.bak").read_text() == "one"

    def test_move(self, folder: Path) -> None:
        """A move may keep what it displaces."""
        for name in ("src", "dest", "dest.bak"):
            Path(name).write_text(name)
        with atomik.transaction() as tx:
            tx.move("src", "dest", overwrite=True, backup="dest.bak")
        assert sorted(os.listdir()) == ["dest", "dest.bak"]
        assert (Path("dest").read_text(), Path("dest.bak").read_text()) == ("src", "dest")
        assert tx.receipt is not None
        assert tx.receipt.items[0].backup == str(folder / "dest.bak")

    @pytest.mark.parametrize("keep", ["", ".", "..", "sub/a.bak", "../a.bak", "/etc/a.bak", "a\0b", "n" * 256, "b/"])
    def test_bad_names(self, folder: Path, keep: str) -> None:
        """What is not a name, or is elsewhere, is refused when staged."""
        os.mkdir("sub")
        write("a", "one")
        with pytest.raises(atomik.errors.InvalidDestinationError):
            atomik.file("a", overwrite=True, backup=keep)
        assert Path("a").read_text() == "one"

    def test_empty_name_is_said_to_be_empty(self, folder: Path) -> None:
        """And not to end with a slash."""
        write("a", "one")
        with pytest.raises(atomik.errors.InvalidDestinationError, match="backup= is empty"):
            atomik.file("a", overwrite=True, backup="")

    def test_bytes(self, folder: Path) -> None:
        """As for every other path, bytes are accepted."""
        write("a", "one")
        with atomik.file("a", overwrite=True, backup=b"caf\xe9") as f:  # type: ignore[arg-type]
            f.write("two")
        assert sorted(os.listdir(b".")) == [b"a", b"caf\xe9"]

    def test_own_names_are_refused(self, folder: Path) -> None:
        """A backup cannot take a name that recovery would remove."""
        write("a", "one")
        with pytest.raises(atomik.errors.InvalidDestinationError):
            atomik.file("a", overwrite=True, backup=".atomik-0123456789abcdef-1")

    def test_itself(self, folder: Path) -> None:
        """The destination cannot be its own backup."""
        write("a", "one")
        with pytest.raises(atomik.errors.DuplicateDestinationError):
            atomik.file("a", overwrite=True, backup="a")

    def test_backup_is_a_name_as_any_other(self, folder: Path) -> None:
        """What follows in the transaction sees the backup there, as on disk: it needs ``overwrite``, and may move it on."""
        write("a", "one")
        with atomik.transaction() as tx:
            tx.file("a", overwrite=True, backup="b").write("two")
            with pytest.raises(atomik.errors.DuplicateDestinationError):
                tx.file("b")
            tx.move("b", "c")
            tx.file("b").write("new")
        assert [Path(name).read_text() for name in ("a", "b", "c")] == ["two", "new", "one"]

    def test_the_later_backup_under_one_name_wins(self, folder: Path) -> None:
        """A backup replaces an older one, as it would in a transaction of its own."""
        write("a", "a")
        write("b", "b")
        with atomik.transaction(overwrite=True) as tx:
            tx.file("a", backup="old").write("A")
            tx.file("b", backup="old").write("B")
        assert [Path(name).read_text() for name in ("a", "b", "old")] == ["A", "B", "b"]

    def test_given_up_backup_is_free_again(self, folder: Path) -> None:
        """A discarded item lets its backup's name go."""
        write("a", "a")
        with atomik.transaction(overwrite=True) as tx:
            with pytest.raises(RuntimeError), tx.file("a", backup="old"):
                raise RuntimeError
            tx.file("old").write("mine")
            tx.file("a").write("A")
        assert Path("old").read_text() == "mine"

    def test_backup_around_another_destination(self, folder: Path) -> None:
        """A backup that would displace a folder with another output inside is refused."""
        os.makedirs("site.old")
        os.mkdir("site")
        with atomik.transaction(overwrite=True) as tx:
            tx.file("site.old/note").write("note")
            with pytest.raises(atomik.errors.NestedDestinationError):
                tx.folder("site", backup="site.old")

    def test_backup_of_another_kind(self, folder: Path) -> None:
        """A folder is not displaced by the backup of a file: refused when staged, and again at the commit."""
        write("a", "one")
        os.mkdir("a.bak")
        with pytest.raises(atomik.errors.WrongKindError):
            atomik.file("a", overwrite=True, backup="a.bak")
        os.rmdir("a.bak")
        output = atomik.file("a", overwrite=True, backup="a.bak")
        os.mkdir("a.bak")
        with pytest.raises(atomik.errors.WrongKindError), output as file:
            file.write("two")
        assert Path("a").read_text() == "one"

    def test_undone_with_the_rest(self, folder: Path) -> None:
        """When a later item fails, destination and both backups are what they were, and nothing is left over."""
        for name in ("a", "a.bak", "src", "dest", "dest.bak"):
            Path(name).write_text(name)
        with atomik.folder("site") as new:
            (new / "x").touch()
        before = tree(folder)

        def publish() -> None:
            with atomik.transaction(overwrite=True) as tx:
                tx.file("a", backup="a.bak").write("new")
                with tx.folder("site", backup="site.old") as site:
                    (site / "y").touch()
                tx.move("src", "dest", backup="dest.bak")
                tx.file("last", overwrite=False).write("last")
                Path("last").write_text("theirs")

        with pytest.raises(FileExistsError):
            publish()
        Path("last").unlink()
        assert tree(folder) == before

    @pytest.mark.sweep
    def test_every_fault(self, folder: Path) -> None:
        """At whatever call the kernel fails: all old or all new, the backups with their destinations."""
        struck = 0
        for number in range(1, 500):
            prepare_kept(folder)
            kernel = Faulty.at(number, errno.EIO)
            failed = False
            with installed(kernel):
                try:
                    publish_kept()
                except atomik.AtomikError:
                    failed = True
            atomik.recover(folder)
            check_kept(folder, new=None if failed else True)
            if not kernel.struck:
                break
            struck += 1
        assert struck > 30
        assert not failed

    @pytest.mark.sweep
    def test_every_crash(self, folder: Path) -> None:
        """Killed at any call: after recovery everything is old or everything is new, backups included."""

        def check(point: CrashPoint) -> None:
            atomik.recover(folder)
            check_kept(folder, new=True if point.returned else None)

        assert crash_points(publish_kept, check, prepare=lambda: prepare_kept(folder)) > 60


OLD = {"a": "a", "a.bak": "older a", "b": "b", "src": "src", "dest": "dest", "dest.bak": "older dest"}
NEW = {"a": "new a", "a.bak": "a", "b": "new b", "b.bak": "b", "dest": "src", "dest.bak": "dest"}


def prepare_kept(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    os.chdir(folder)
    for name, text in OLD.items():
        Path(name).write_text(text)
    for name in ("site", "site.old"):
        os.mkdir(name)
        Path(name, name).write_text(name)


def publish_kept() -> None:
    with atomik.transaction(overwrite=True) as tx:
        tx.file("a", backup="a.bak").write("new a")
        tx.file("b", backup="b.bak").write("new b")
        tx.move("src", "dest", backup="dest.bak")
        with tx.folder("site", backup="site.old") as site:
            (site / "fresh").touch()


def check_kept(folder: Path, new: bool | None) -> None:
    assert not left_in(folder)
    files = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    folders = {path.name: os.listdir(path) for path in folder.iterdir() if path.is_dir()}
    if new is None:
        new = files == NEW
    assert files == (NEW if new else OLD)
    old_folders = {"site": ["site"], "site.old": ["site.old"]}
    assert folders == ({"site": ["fresh"], "site.old": ["site"]} if new else old_folders)
