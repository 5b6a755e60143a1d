"""file(), folder(), path(), update(): one item each, and all of their options."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import State, errors
from tests.support.kernels import Recording, installed
from tests.support.state import identity, tree

if TYPE_CHECKING:
    from collections.abc import Callable


def test_file(folder: Path) -> None:
    """Nothing shows before the end of the block, all of it after."""
    with atomik.file("x") as f:
        f.write("content")
        assert os.listdir() == []
    assert Path("x").read_text() == "content"


def test_file_without_a_name_while_written(folder: Path) -> None:
    """P7: while it is written it has no name at all, not even a hidden one."""
    with atomik.file("x", "wb") as f:
        f.write(bytes(1 << 20))
        f.flush()
        assert os.listdir() == []


def test_folder(folder: Path) -> None:
    with atomik.folder("d") as d:
        (d / "sub").mkdir()
        (d / "sub/x").write_text("1")
        assert not os.path.exists("d")
    assert Path("d/sub/x").read_text() == "1"


def test_folder_over_a_non_empty_one(folder: Path) -> None:
    """All of the old one goes, all of the new one comes; who holds the old one open keeps it."""
    Path("d").mkdir()
    Path("d/old").write_text("old")
    fd = os.open("d", os.O_RDONLY)
    with atomik.folder("d", overwrite=True) as d:
        (d / "new").touch()
        assert os.listdir("d") == ["old"]
    assert os.listdir("d") == ["new"]
    assert os.fstat(fd).st_ino != os.stat("d").st_ino
    os.close(fd)


def test_empty_file_and_folder(folder: Path) -> None:
    with atomik.file("f"):
        pass
    with atomik.folder("d"):
        pass
    assert Path("f").read_bytes() == b""
    assert os.listdir("d") == []


def test_path(folder: Path) -> None:
    """The staged path keeps base name and extension, and is elsewhere."""
    with atomik.path("data.tar.gz") as name:
        assert name.name == "data.tar.gz"
        assert name.parent != folder
        assert not name.exists()
        subprocess.run(["sh", "-c", 'echo by a program > "$1"', "-", name], check=True)
    assert Path("data.tar.gz").read_text() == "by a program\n"


def test_path_for_zipfile_and_sqlite(folder: Path) -> None:
    with atomik.path("x.zip") as name, zipfile.ZipFile(name, "w") as z:
        z.writestr("a", "b")
    assert zipfile.ZipFile("x.zip").read("a") == b"b"
    for journal in ("wal", "delete"):
        with atomik.path("x.db", overwrite=True) as name, contextlib.closing(sqlite3.connect(name)) as db:
            db.execute(f"pragma journal_mode={journal}")
            db.execute("create table t (a)")
            db.execute("insert into t values (?)", (journal,))
            db.commit()
        with contextlib.closing(sqlite3.connect("x.db")) as db:
            assert db.execute("select a from t").fetchall() == [(journal,)]
        Path("x.db-wal").unlink(missing_ok=True)
        Path("x.db-shm").unlink(missing_ok=True)


def test_path_with_an_open_database(folder: Path) -> None:
    """A database that is still open would be published without its journal: refused."""
    with pytest.raises(errors.ConflictError, match="close it") as caught, atomik.path("x.db") as name:
        db = sqlite3.connect(name)
        db.execute("pragma journal_mode=wal")
        db.execute("create table t (a)")
        db.commit()
    db.close()
    assert caught.value.filename is not None
    assert caught.value.filename == str(folder / "x.db")
    assert "x.db-wal" in str(caught.value)
    assert os.listdir() == []


def test_path_to_a_folder(folder: Path) -> None:
    """A program may leave a folder as well."""
    with atomik.path("out") as name:
        name.mkdir()
        (name / "x").touch()
    assert os.listdir("out") == ["x"]


def test_path_drops_nothing_in_silence(folder: Path) -> None:
    """What a program leaves next to the path may be data: it is refused, with the names found and the cure."""
    wanted = pytest.raises(errors.ConflictError, match=r"'cache', 'x\.tmp'.*tx\.folder")
    with wanted as caught, atomik.path("x.log") as name:
        name.write_text("log")
        name.with_name("x.tmp").write_text("a part")
        name.with_name("cache").mkdir()
    assert caught.value.filename == str(folder / "x.log")
    assert os.listdir() == []
    with atomik.path("x.log") as name:
        name.write_text("log")
        name.with_name("x.tmp").write_text("rubbish")
        name.with_name("x.tmp").unlink()
    assert os.listdir() == ["x.log"]


def test_path_to_nothing(folder: Path) -> None:
    with pytest.raises(errors.MissingPathError, match="nothing was written"), atomik.path("x"):
        pass


def test_path_to_a_symlink(folder: Path) -> None:
    """A link that a program leaves is published as the link that it is."""
    with atomik.path("x") as name:
        name.symlink_to("nowhere")
    assert os.readlink("x") == "nowhere"


@pytest.mark.parametrize("shortcut", [atomik.file, atomik.folder, atomik.path])
def test_output(folder: Path, shortcut: Callable[..., Any]) -> None:
    """Without ``with``: output, commit() and abort(), transaction and receipt."""
    made = shortcut("x")
    assert made.receipt is None
    assert made.transaction.state is State.OPEN
    if shortcut is atomik.file:
        made.output.write("1")
    elif shortcut is atomik.path:
        made.output.write_text("1")
    receipt = made.commit()
    assert receipt is made.receipt
    assert receipt.items[0].path == str(folder / "x")
    with pytest.raises(errors.TransactionStateError), made:
        pass
    other = shortcut("y")
    other.abort()
    assert os.listdir() == ["x"]


@pytest.mark.parametrize("shortcut", [atomik.file, atomik.folder, atomik.path])
def test_exception_in_the_block(folder: Path, shortcut: Callable[..., Any]) -> None:
    with pytest.raises(KeyboardInterrupt), shortcut("x"):
        raise KeyboardInterrupt
    assert os.listdir() == []


def test_str_bytes_paths_and_trees(folder: Path) -> None:
    """A path may be str, bytes or PathLike, relative or absolute, and no text at all."""
    odd = os.fsdecode(b"\xff\n odd")
    for path in ("s", Path("p"), folder / "abs", odd, os.fsencode("b")):
        with atomik.file(path) as f:  # type: ignore[arg-type]
            f.write("1")
    assert sorted(os.listdir()) == sorted(["s", "p", "abs", odd, "b"])
    with atomik.transaction() as tx:
        tx.symlink("link", b"\xfe")  # type: ignore[arg-type]
    assert os.readlink(b"link") == b"\xfe"


def test_relative_path_is_decided_when_staged(folder: Path) -> None:
    """A change of the current folder in between changes nothing."""
    Path("elsewhere").mkdir()
    with atomik.file("x") as f:
        f.write("1")
        os.chdir("elsewhere")
    os.chdir(folder)
    assert sorted(os.listdir()) == ["elsewhere", "x"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000, 0o027])
def test_new_files_get_the_umask(folder: Path, mask: int) -> None:
    """0666 and 0777 without the umask, as everywhere else, by the kernel."""
    before = os.umask(mask)
    try:
        with atomik.transaction() as tx:
            tx.file("f")
            tx.folder("d")
            tx.path("p").touch()
        with atomik.file("g"):
            pass
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE(os.stat(name).st_mode) for name in "fdpg"}
    assert modes == {"f": 0o666 & ~mask, "g": 0o666 & ~mask, "p": 0o666 & ~mask, "d": 0o777 & ~mask}


def test_permissions(folder: Path) -> None:
    """permissions= decides, for new and for overwritten ones."""
    Path("old").touch()
    os.chmod("old", 0o600)
    for name in ("old", "new"):
        with atomik.file(name, overwrite=True, permissions=0o640):
            pass
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o640
    with atomik.folder("d", permissions=0o2750):
        pass
    assert stat.S_IMODE(os.stat("d").st_mode) == 0o2750


def test_overwriting_keeps_mode_and_attributes(folder: Path) -> None:
    """preserve="all" is the default; "mode" leaves the attributes, "none" both."""
    for preserve, mode, has in (("all", 0o604, True), ("mode", 0o604, False), ("none", 0o644, False)):
        Path("x").touch()
        os.chmod("x", 0o604)
        with contextlib.suppress(OSError):
            os.setxattr("x", "user.note", b"kept")
            with atomik.file("x", overwrite=True, preserve=preserve):  # type: ignore[arg-type]
                pass
            assert stat.S_IMODE(os.stat("x").st_mode) == mode & ~0o022 if preserve == "none" else mode
            assert ("user.note" in os.listxattr("x")) == has
        os.unlink("x")


def test_attributes_that_change_meanwhile(folder: Path) -> None:
    """chmod of the original while the new version is written is not lost."""
    for others in (0, 1):
        Path("x").write_text("old")
        os.chmod("x", 0o644)
        with atomik.transaction(overwrite=True) as tx:
            for _ in range(others):
                tx.file("y")
            with tx.file("x") as f:
                f.write("new")
            os.chmod("x", 0o600)
        assert stat.S_IMODE(os.stat("x").st_mode) == 0o600


def test_hard_links_keep_the_old_content(folder: Path) -> None:
    """The receipt counts the other names of the overwritten inode."""
    Path("x").write_text("old")
    os.link("x", "other")
    output = atomik.file("x", overwrite=True)
    with output as f:
        f.write("new")
    assert output.receipt is not None
    assert output.receipt.items[0].broken_links == 1
    assert Path("other").read_text() == "old"


def test_symlink_at_the_destination(folder: Path) -> None:
    """The link itself is replaced, unless follow_symlinks=True writes to its target, also a dangling one."""
    Path("sub").mkdir()
    Path("sub/target").write_text("old")
    Path("link").symlink_to("sub/target")
    with atomik.file("link", overwrite=True, follow_symlinks=True) as f:
        f.write("new")
    assert os.path.islink("link")
    assert Path("sub/target").read_text() == "new"
    with atomik.file("link", overwrite=True) as f:
        f.write("replaced")
    assert not os.path.islink("link")
    assert Path("sub/target").read_text() == "new"
    Path("dangling").symlink_to("sub/fresh")
    with atomik.file("dangling", follow_symlinks=True) as f:
        f.write("1")
    assert Path("sub/fresh").read_text() == "1"
    with pytest.raises(errors.FileAlreadyExistsError):
        atomik.file("dangling")


def test_followed_link_syncs_the_resolved_folder(folder: Path) -> None:
    """The folder that is made durable is the one that holds the target."""
    Path("sub").mkdir()
    Path("sub/target").touch()
    Path("link").symlink_to("sub/target")
    with installed(Recording({"fsync"})) as kernel, atomik.file("link", overwrite=True, follow_symlinks=True):
        pass
    assert str(folder / "sub") in kernel.calls[-1].paths
    assert all(str(folder) not in call.paths for call in kernel.calls)


def test_symlink_loop(folder: Path) -> None:
    """A link that leads to itself can be replaced, and not followed."""
    Path("a").symlink_to("b")
    Path("b").symlink_to("a")
    with pytest.raises(errors.AtomikOSError), atomik.file("a", overwrite=True, follow_symlinks=True) as f:
        f.write("1")
    with atomik.file("a", overwrite=True) as f:
        f.write("1")
    assert Path("a").read_text() == "1"


def test_parents(folder: Path) -> None:
    """parents=True makes what is missing, and removes it again if it fails."""
    with pytest.raises(ZeroDivisionError), atomik.file("a/b/c", parents=True):
        assert os.path.isdir("a/b")
        raise ZeroDivisionError
    assert os.listdir() == []
    with atomik.file("a/b/c", parents=True) as f:
        f.write("1")
    with atomik.folder("a/b/d/e", parents=True):
        pass
    assert sorted(tree(".")) == ["a", "a/b", "a/b/c", "a/b/d", "a/b/d/e"]


def test_made_parents_in_use_stay(folder: Path) -> None:
    """A folder into which someone put something in the meantime stays."""
    with pytest.raises(ZeroDivisionError), atomik.file("a/b/c", parents=True):
        Path("a/theirs").touch()
        raise ZeroDivisionError
    assert sorted(tree(".")) == ["a", "a/theirs"]


@pytest.mark.usefixtures("no_log")
def test_made_parents_are_durable(folder: Path) -> None:
    """Every folder that got a new entry is synced."""
    with installed(Recording({"fsync", "syncfs"})) as kernel, atomik.file("a/b/c", parents=True) as f:
        f.write("1")
    assert {path for call in kernel.calls for path in call.paths} >= {
        str(folder),
        str(folder / "a"),
        str(folder / "a/b"),
    }


def test_tmp_dir(folder: Path) -> None:
    """tmp_dir holds what is staged, and afterwards nothing."""
    Path("tmp").mkdir()
    Path("out").mkdir()
    for overwrite in (False, True):
        with atomik.file("out/x", overwrite=overwrite, tmp_dir="tmp") as f:
            f.write("1")
        with atomik.folder("out/d", overwrite=overwrite, tmp_dir="tmp") as d:
            assert d.is_relative_to(folder / "tmp")
    assert sorted(tree(".")) == ["out", "out/d", "out/x", "tmp"]


def test_keep(folder: Path) -> None:
    """backup= gives the previous version a name, in the same transaction; a function may choose it."""
    for content in ("1", "2", "3"):
        output = atomik.file("x", overwrite=True, backup="x.bak")
        with output as f:
            f.write(content)
    assert (Path("x").read_text(), Path("x.bak").read_text()) == ("3", "2")
    assert output.receipt is not None
    assert output.receipt.items[0].backup == str(folder / "x.bak")
    with atomik.folder("d", backup=lambda path: f"{path}.old"):
        pass
    assert sorted(os.listdir()) == ["d", "x", "x.bak"]
    Path("d/1").touch()
    with atomik.folder("d", overwrite=True, backup=lambda path: f"{path}.old"):
        pass
    assert os.listdir("d.old") == ["1"]


@pytest.mark.parametrize("keep", ["x", "sub/x.bak", "", "..", "a\0b", "n" * 256, ".atomik-1"])
def test_keep_that_is_no_name_here(folder: Path, keep: str) -> None:
    """The previous version stays in the same folder, under another name; said when staged."""
    Path("x").write_text("old")
    Path("sub").mkdir()
    with pytest.raises((errors.InvalidDestinationError, errors.DuplicateDestinationError)):
        atomik.file("x", overwrite=True, backup=keep)
    assert Path("x").read_text() == "old"


def test_if_changed(folder: Path) -> None:
    """Equal content leaves everything as it is, inode and times included."""
    with atomik.file("x") as f:
        f.write("same")
    before = identity("x")
    output = atomik.file("x", overwrite=True, if_changed=True)
    with output as f:
        f.write("same")
    assert identity("x") == before
    assert output.receipt is not None
    assert output.receipt.items[0].op == "unchanged"
    with atomik.file("x", overwrite=True, if_changed=True) as f:
        f.write("other")
    assert Path("x").read_text() == "other"


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"preserve": "owner"}, ValueError),
        ({"fallback": "any"}, TypeError),
        ({"expect": "present"}, ValueError),
        ({"overwrit": True}, TypeError),
        ({"durable": "maybe"}, ValueError),
        ({"lock_timeout": -1}, ValueError),
    ],
    ids=repr,
)
@pytest.mark.parametrize("shortcut", [atomik.file, atomik.folder, atomik.path])
def test_wrong_options(
    folder: Path, shortcut: Callable[..., Any], wrong: dict[str, Any], kind: type[Exception]
) -> None:
    """A misspelt option is an error at once, and names what is wrong."""
    with pytest.raises(kind, match=next(iter(wrong))):
        shortcut("x", **wrong)
    assert os.listdir() == []


def test_folder_base(folder: Path) -> None:
    """copy=True starts from what is there, or from nothing; a path from that folder."""
    with atomik.folder("d", copy=True) as d:
        (d / "1").write_text("one")
    with atomik.folder("d", overwrite=True, copy=True) as d:
        assert (d / "1").read_text() == "one"
        (d / "1").write_text("changed")
        (d / "2").touch()
        assert Path("d/1").read_text() == "one"
    assert Path("d/1").read_text() == "changed"
    with atomik.folder("e", base="d") as e:
        assert sorted(os.listdir(e)) == ["1", "2"]
    with pytest.raises(errors.MissingPathError):
        atomik.folder("f", base="nowhere")
    Path("file").touch()
    with pytest.raises(errors.WrongKindError):
        atomik.folder("f", base="file")
    assert sorted(os.listdir()) == ["d", "e", "file"]


def test_cleanup_of_a_displaced_tree(folder: Path) -> None:
    """Folders without permissions, and links out of the tree, in what is displaced: gone, and nothing outside touched."""
    Path("outside").mkdir()
    Path("outside/precious").touch()
    Path("d/closed/inner").mkdir(parents=True)
    Path("d/closed/inner/x").touch()
    Path("d/link").symlink_to("../outside")
    os.chmod("d/closed/inner", 0o555)
    os.chmod("d/closed", 0o000)
    with atomik.folder("d", overwrite=True):
        pass
    assert os.listdir("d") == []
    assert os.listdir("outside") == ["precious"]


def test_staged_folder_without_write_permission(folder: Path) -> None:
    """A user may make the staged folder read-only; it is published so."""
    for others in (0, 1):
        with atomik.transaction(overwrite=True) as tx:
            for _ in range(others):
                tx.file("y")
            d = tx.folder("d")
            (d / "x").touch()
            os.chmod(d, 0o555)
        assert stat.S_IMODE(os.stat("d").st_mode) & 0o222 == (0 if not others else os.stat("d").st_mode & 0o222)
        assert os.listdir("d") == ["x"]


def test_update(folder: Path) -> None:
    """Read, change, write; the file object starts at the beginning of a copy."""
    Path("x").write_text("1")
    with atomik.update("x") as f:
        number = int(f.read())
        f.seek(0)
        f.write(str(number + 1))
    assert Path("x").read_text() == "2"
    with atomik.update("x", "r+b") as f:
        assert f.read() == b"2"
    with pytest.raises(errors.MissingPathError), atomik.update("missing"):
        pass
    with pytest.raises(ValueError, match="mode"):
        atomik.update("x", "r")


@pytest.mark.parametrize("how", ["replaced", "in place", "removed", "same length and time"])
def test_update_that_would_lose_a_change(folder: Path, how: str) -> None:
    """Someone else's change in between is a conflict, and stays."""
    Path("x").write_text("old")
    times = os.stat("x")
    with pytest.raises(errors.ConflictError, match="repeat"), atomik.update("x") as f:
        f.write("new")
        if how == "replaced":
            Path("y").write_text("theirs")
            os.rename("y", "x")
        elif how == "removed":
            os.unlink("x")
        else:
            Path("x").write_text("THE" if how.startswith("same") else "theirs")
            if how.startswith("same"):
                os.utime("x", ns=(times.st_atime_ns, times.st_mtime_ns))
    expected = {"replaced": "theirs", "in place": "theirs", "same length and time": "THE"}
    assert {name: Path(name).read_text() for name in os.listdir()} == ({"x": expected[how]} if how in expected else {})


def test_update_follows_a_link_on_request(folder: Path) -> None:
    Path("target").write_text("1")
    Path("link").symlink_to("target")
    with atomik.update("link", follow_symlinks=True) as f:
        f.write("2")
    assert Path("target").read_text() == "2"
    assert os.path.islink("link")
