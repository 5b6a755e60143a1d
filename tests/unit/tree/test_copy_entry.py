"""One object copied under a new name: whatever it is, with all that it carries."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._tree.clone import clone, copy_entry
from atomik._tree.content import copy_content
from tests.support.trees import Before, Without, descriptors, held, kernel, make_small, mounts, tree_with_mount
from tests.support.users import NOBODY, root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Directory]:
    """The test's folder, held; no descriptor stays open."""
    with held(tmp_path) as folder:
        before = descriptors()
        yield folder
        assert descriptors() == before


def copied(here: Directory, name: str) -> list[str]:
    """Copy a name to "new"."""
    return copy_entry(Place(here, name), Place(here, "new"))


def seen(path: Path) -> tuple[object, ...]:
    """What a copy must have in common with its original."""
    found = path.lstat()
    what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found.st_mode, found.st_uid, found.st_gid, found.st_rdev, what, found.st_mtime_ns


def test_file(here: Directory, tmp_path: Path) -> None:
    """Content, mode and times of a file; it is a copy, no link."""
    (tmp_path / "old").write_text("content")
    (tmp_path / "old").chmod(0o640)
    os.utime(tmp_path / "old", ns=(1_000_000_001, 2_000_000_002))
    assert copied(here, "old") == []
    assert (tmp_path / "new").stat().st_ino != (tmp_path / "old").stat().st_ino
    assert seen(tmp_path / "new") == seen(tmp_path / "old")


def test_link_and_fifo(here: Directory, tmp_path: Path) -> None:
    """A link is copied, not followed; a FIFO is made, not opened."""
    (tmp_path / "link").symlink_to("nowhere")
    os.utime(tmp_path / "link", ns=(1, 2), follow_symlinks=False)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "fifo").chmod(0o604)
    for name in ("link", "fifo"):
        assert copied(here, name) == []
        assert seen(tmp_path / "new") == seen(tmp_path / name)
        (tmp_path / "new").unlink()


@root
def test_owners(here: Directory, tmp_path: Path) -> None:
    """Owner and set-id bits of a file, a folder and a link."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "folder", "link"):
        os.chown(tmp_path / name, NOBODY, 1234, follow_symlinks=False)
    (tmp_path / "file").chmod(0o6755)
    (tmp_path / "folder").chmod(0o2710)
    for name in ("file", "folder", "link"):
        assert copied(here, name) == []
        assert seen(tmp_path / "new")[:4] == seen(tmp_path / name)[:4]
        (tmp_path / "new").rmdir() if name == "folder" else (tmp_path / "new").unlink()


def test_folder(here: Directory, tmp_path: Path) -> None:
    """A folder with everything in it, its own mode and times, and one call of `progress` for each object."""
    make_small(tmp_path / "old")
    (tmp_path / "old").chmod(0o750)
    os.utime(tmp_path / "old", ns=(3, 4))
    told: list[int] = []
    assert copy_entry(Place(here, "old"), Place(here, "new"), told.append) == []
    names = sorted(os.path.relpath(path, tmp_path / "old") for path in (tmp_path / "old").rglob("*"))
    assert names == sorted(os.path.relpath(path, tmp_path / "new") for path in (tmp_path / "new").rglob("*"))
    assert told == [1] * (len(names) + 1)
    assert seen(tmp_path / "new")[:4] == seen(tmp_path / "old")[:4]
    assert (tmp_path / "new").stat().st_mtime_ns == 4
    assert (tmp_path / "new" / "file").stat().st_nlink == 2


def test_progress_of_a_clone(tmp_path: Path) -> None:
    """`clone` reports each object below the top, one by one."""
    make_small(tmp_path / "old")
    (tmp_path / "new").mkdir()
    told: list[int] = []
    with held(tmp_path / "old") as source, held(tmp_path / "new") as target:
        assert clone(source, target, told.append) == []
    assert told == [1] * len(list((tmp_path / "old").rglob("*")))


def test_missing_and_taken(here: Directory, tmp_path: Path) -> None:
    """Nothing to copy, and a name that is taken, are errors that name both paths."""
    (tmp_path / "old").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(errors.MissingPathError) as missing:
        copied(here, "missing")
    assert (missing.value.filename, missing.value.filename2) == (str(tmp_path / "missing"), str(tmp_path / "new"))
    (tmp_path / "new").touch()
    for name in ("old", "folder"):
        with pytest.raises(errors.AtomikOSError) as taken:
            copied(here, name)
        assert (taken.value.errno, taken.value.filename2) == (errno.EEXIST, str(tmp_path / "new"))


def test_changed_meanwhile(here: Directory, tmp_path: Path) -> None:
    """A file that becomes a FIFO, and a folder that goes, are conflicts."""
    (tmp_path / "old").touch()

    def swap() -> None:
        (tmp_path / "old").unlink()
        os.mkfifo(tmp_path / "old")

    with kernel(Before("open", 1, swap)), pytest.raises(errors.ConflictError):
        copied(here, "old")
    (tmp_path / "folder").mkdir()
    with kernel(Before("open", 1, (tmp_path / "folder").rmdir)), pytest.raises(errors.MissingPathError):
        copied(here, "folder")


@pytest.mark.parametrize("exception", [TimeoutError(errno.ENOENT, "alarm"), FileNotFoundError(errno.ENOENT, "alarm")])
def test_a_signal_handlers_exception_goes_on(here: Directory, tmp_path: Path, exception: OSError) -> None:
    """What a signal handler raises inside a call is not an answer of the kernel, whatever its class (I13)."""
    make_small(tmp_path / "old")

    def strike() -> None:
        raise exception

    for name in (
        "open",
        "create",
        "copy_range",
        "fchmod",
        "mkdir",
        "open_beneath",
        "listxattr",
        "link",
        "mknod",
        "futime",
    ):
        refusing = Before(name, 1, strike)
        refusing.__dict__["clone"] = Without("clone", errno.EOPNOTSUPP).clone
        with kernel(refusing), pytest.raises(type(exception)) as caught:
            copied(here, "old")
        assert caught.value is exception, name
        _remove(tmp_path / "new")


def _remove(path: Path) -> None:
    for one in sorted(path.rglob("*"), reverse=True):
        one.rmdir() if one.is_dir() and not one.is_symlink() else one.unlink()
    if path.exists():
        path.rmdir()


@mounts
def test_mount() -> None:
    """A mount in the tree is refused before anything is copied."""
    with tree_with_mount() as (folder, home, point):
        with pytest.raises(errors.MountPointError) as caught:
            copy_entry(Place(folder, "tree"), Place(folder, "new"))
        assert caught.value.filename == str(point)
        assert not (home / "new").exists()


def test_a_file_that_is_shorter_than_it_says(tmp_path: Path) -> None:
    """Files of /sys say 4096 bytes and hold fewer: the copy has no zeros after them."""
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    if not os.path.exists(path):
        pytest.skip("no such file in /sys here")
    with open(path, "rb") as one, (tmp_path / "copy").open("xb") as two:
        copy_content(one.fileno(), two.fileno())
    with open(path, "rb") as one:
        assert (tmp_path / "copy").read_bytes() == one.read()


def test_appended_while_it_is_copied(tmp_path: Path) -> None:
    """A copy holds what was there when it began."""
    (tmp_path / "old").write_bytes(b"x" * 100_000)

    def append() -> None:
        with (tmp_path / "old").open("ab") as file:
            file.write(b"more")

    before = Before("copy_range", 1, append)
    before.__dict__["clone"] = Without("clone", errno.EOPNOTSUPP).clone
    with (tmp_path / "old").open("rb") as one, (tmp_path / "new").open("xb") as two, kernel(before):
        copy_content(one.fileno(), two.fileno())
    assert (tmp_path / "new").stat().st_size == 100_000
