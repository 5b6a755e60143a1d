"""The primitives: one system call, descriptors, any name, both paths in the error."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from atomik.flags import Flag
from atomik.rename import exchange, rename, renameat2, swap
from tests.support.kernels import Faulty, installed
from tests.support.lab import mounts, namespace
from tests.support.lab.need import need

if TYPE_CHECKING:
    from collections.abc import Callable


def make(name: str, kind: str = "file") -> None:
    if kind == "file":
        Path(name).write_text(name)
    elif kind == "folder":
        Path(name).mkdir()
        Path(name, name).touch()
    else:
        Path(name).symlink_to(f"to-{name}")


def is_(name: str, origin: str, kind: str) -> bool:
    """Whether what is at `name` is what `make(origin, kind)` made."""
    path = Path(name)
    if kind == "file":
        return path.is_file() and path.read_text() == origin
    if kind == "folder":
        return os.listdir(path) == [origin]
    return os.readlink(path) == f"to-{origin}"


KINDS = ["file", "folder", "symlink"]


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_swap_exchanges_any_pair(folder: Path, first: str, second: str) -> None:
    """Files, non-empty folders and links, in every pairing."""
    make("a", first)
    make("b", second)
    assert swap("a", "b") is None
    assert is_("a", "b", second)
    assert is_("b", "a", first)
    assert exchange is swap
    assert atomik.swap("a", "b") is None
    assert is_("a", "a", first)


@pytest.mark.parametrize("kind", KINDS)
def test_rename_replaces_nothing_by_default(folder: Path, kind: str) -> None:
    """The default flag fails with both paths in the error."""
    make("a", kind)
    make("b", kind)
    with pytest.raises(errors.FileAlreadyExistsError, match="already exists") as caught:
        rename("a", "b")
    assert (caught.value.filename, caught.value.filename2) == ("a", "b")
    assert is_("a", "a", kind)
    assert is_("b", "b", kind)
    rename("a", "c")
    assert is_("c", "a", kind)


def test_rename_that_replaces(folder: Path) -> None:
    """Flag.RENAME is rename(2): a file replaces a file, a folder an empty folder only."""
    make("a")
    make("b")
    rename("a", "b", Flag.RENAME)
    assert is_("b", "a", "file")
    make("d", "folder")
    Path("empty").mkdir()
    rename("d", "empty", Flag.RENAME)
    assert is_("empty", "d", "folder")
    make("e", "folder")
    with pytest.raises(errors.FileAlreadyExistsError) as caught:
        rename("e", "empty", Flag.RENAME)
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)


@pytest.mark.parametrize("flag", ["EXCHANGE", Flag.RENAME_EXCHANGE])
def test_flags_by_value(folder: Path, flag: Any) -> None:
    """The flag's value does as well as the flag."""
    make("a")
    make("b")
    rename("a", "b", flag)
    assert is_("a", "b", "file")


@pytest.mark.parametrize(
    "pair", [(b"a", "b"), (Path("a"), b"b"), ("a", Path("b")), (os.fsencode("a"), os.fsencode("b"))], ids=repr
)
def test_str_bytes_and_paths(folder: Path, pair: tuple[Any, Any]) -> None:
    """All kinds of path, mixed."""
    make("a")
    rename(*pair)
    assert is_("b", "a", "file")


def test_names_that_are_no_text(folder: Path) -> None:
    """Any bytes but "/" and NUL, in the names and in the error."""
    odd = b"\xff\xfe\n"
    open(odd, "w").close()
    make("b")
    swap(odd, "b")
    assert Path(os.fsdecode(odd)).read_text() == "b"
    with pytest.raises(errors.FileAlreadyExistsError) as caught:
        rename("b", odd)
    assert os.fsencode(caught.value.filename2) == odd


def test_folder_descriptors(folder: Path) -> None:
    """Relative paths start from the descriptors; absolute ones do not care."""
    for name in ("one", "two"):
        os.mkdir(name)
        Path(name, "x").write_text(name)
    one, two = (os.open(name, os.O_RDONLY) for name in ("one", "two"))
    try:
        swap("x", "x", first_dir_fd=one, second_dir_fd=two)
        assert Path("one/x").read_text() == "two"
        rename("x", "y", src_dir_fd=one, dst_dir_fd=two)
        assert sorted(os.listdir("two")) == ["x", "y"]
        rename("two/y", "z", dst_dir_fd=one)
        renameat2(one, "z", -100, "moved", 1)
        assert Path("moved").read_text() == "two"
        with pytest.raises(errors.FileAlreadyExistsError):
            renameat2(-100, "moved", two, b"x", 1)
    finally:
        os.close(one)
        os.close(two)


@pytest.mark.parametrize(
    ("action", "kind", "number"),
    [
        (lambda: rename("missing", "b"), errors.MissingPathError, errno.ENOENT),
        (lambda: rename("a", "no/where"), errors.MissingPathError, errno.ENOENT),
        (lambda: swap("a", "missing"), errors.MissingPathError, errno.ENOENT),
        (lambda: rename("a", "d", Flag.RENAME), errors.WrongKindError, errno.EISDIR),
        (lambda: rename("a/x", "b"), errors.WrongKindError, errno.ENOTDIR),
        (lambda: rename("d", "d/x"), errors.AtomikOSError, errno.EINVAL),
        (lambda: swap("d", "d/d"), errors.AtomikOSError, errno.EINVAL),
        (lambda: rename("a", "x" * 256), errors.InvalidDestinationError, errno.ENAMETOOLONG),
        (lambda: rename("a", "b\0"), errors.InvalidDestinationError, errno.EINVAL),
        (lambda: renameat2(-100, "a", -100, "b", 3), errors.AtomikOSError, errno.EINVAL),
        (lambda: rename("a", "b", src_dir_fd=99), errors.AtomikOSError, errno.EBADF),
    ],
)
def test_errors_with_both_paths(
    folder: Path, action: Callable[[], None], kind: type[errors.AtomikOSError], number: int
) -> None:
    """Each cause its class; both paths always there; nothing changed."""
    make("a")
    make("d", "folder")
    with pytest.raises(kind) as caught:
        action()
    assert caught.value.errno == number
    assert caught.value.filename
    assert caught.value.filename2
    assert is_("a", "a", "file")
    assert is_("d", "d", "folder")


@pytest.mark.parametrize("flag", ["NOREPLACE", "EXCHANGE"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS], ids=["EINVAL", "ENOSYS"])
def test_filesystem_without_the_flag(folder: Path, flag: str, number: int) -> None:
    """What an old filesystem or kernel says is turned into UnsupportedFilesystemError; the plain rename is not."""
    make("a")
    make("b")
    with installed(Faulty.every("rename", number)):
        with pytest.raises(errors.UnsupportedFilesystemError, match="lacks the flag"):
            rename("a", "b" if flag == "EXCHANGE" else "c", Flag[f"RENAME_{flag}"])
        with pytest.raises(errors.AtomikOSError) as caught:
            rename("a", "c", Flag.RENAME)
    assert not isinstance(caught.value, errors.UnsupportedFilesystemError)


def test_other_filesystem(folder: Path) -> None:
    """EXDEV tells both devices, whether the paths were given by name or by descriptor."""
    need(namespace.missing_root())
    make("a")
    with mounts.mounted("tmpfs") as place:
        devices = (os.stat("a").st_dev, os.stat(place.folder).st_dev)
        with pytest.raises(errors.CrossFilesystemError, match="Invalid cross-device link") as caught:
            rename("a", place.folder / "b")
        assert caught.value.devices == devices
        fd = os.open(place.folder, os.O_RDONLY)
        try:
            with pytest.raises(errors.CrossFilesystemError) as caught:
                rename("a", "b", dst_dir_fd=fd)
        finally:
            os.close(fd)
        assert caught.value.devices == devices


def test_whiteout_bit_reaches_the_kernel(folder: Path) -> None:
    """renameat2() passes any bits on; RENAME_WHITEOUT leaves a 0,0 device where the filesystem knows it."""
    make("a")
    try:
        renameat2(-100, "a", -100, "b", 4)
    except errors.AtomikOSError as exc:
        assert exc.errno in (errno.EINVAL, errno.EPERM)  # noqa: PT017  either answer is the filesystem's
    else:
        assert os.stat("a").st_rdev == 0
        assert is_("b", "a", "file")


def test_errno_of_others_is_not_taken_for_ours(folder: Path) -> None:
    """A stale errno in the thread does not show up in a call that succeeds."""
    ctypes.set_errno(errno.EIO)
    make("a")
    rename("a", "b")
    assert os.listdir() == ["b"]


def test_a_descriptor_is_a_number(tmp_path: Path) -> None:
    """Anything else is refused before it can be taken for one by C, where None would be the standard input."""
    for wrong in ("3", None, 1.0):
        with pytest.raises(TypeError):
            renameat2(wrong, "a", -100, "b")  # type: ignore[arg-type]
