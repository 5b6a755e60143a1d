"""Programs written for atomik 0.0.3, and for the packages of primitives, run unchanged.

Each test is such a program.  Where 0.0.3 was at fault (it left its temporary file behind, failed across filesystems,
could not overwrite a folder that was not there) the program gets what its author meant.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

import atomik
from atomik import Mode, file
from atomik import folder as atomic_folder
from atomik.errors import AtomikError, FileAlreadyExistsError, InvalidCrossDeviceError
from atomik.flags import Flag
from atomik.rename import rename
from tests.support.lab import mounts, namespace
from tests.support.lab.need import need


# --- atomik 0.0.3 ------------------------------------------------------------------------------------------------------
def test_text_is_the_default(folder: Path) -> None:
    with file("result.txt") as f:
        print("line", file=f)
    assert Path("result.txt").read_text() == "line\n"


def test_bytes(folder: Path) -> None:
    with file("result.bin", Mode.BYTES) as f:
        f.write(b"\x00\x01")
    assert Path("result.bin").read_bytes() == b"\x00\x01"


def test_positional_order(folder: Path) -> None:
    """file(file_name, mode, overwrite, tmp_dir) and folder(file_name, overwrite, tmp_dir)."""
    Path("tmp").mkdir()
    Path("x").write_text("old")
    Path("d").mkdir()
    with file("x", Mode.TEXT, True, "tmp") as f:
        f.write("new")
    with atomic_folder("d", True, Path("tmp")) as d:
        Path(d, "a").write_text("1")
    assert Path("x").read_text() == "new"
    assert os.listdir("d") == ["a"]
    assert os.listdir("tmp") == []


def test_keywords(folder: Path) -> None:
    """By their old names too."""
    with file(file_name="x", mode=Mode.BYTES, overwrite=False, tmp_dir=None) as f:  # type: ignore[call-overload]
        f.write(b"1")
    with atomic_folder(file_name="d", overwrite=False, tmp_dir=str(folder)) as d:  # type: ignore[call-arg]
        (d / "y").touch()
    rename(src_path="x", dst_path="z", flag=Flag.RENAME_NOREPLACE)  # type: ignore[call-arg]
    assert sorted(os.listdir()) == ["d", "z"]


def test_modes_are_strings(folder: Path) -> None:
    """Mode and Flag are str enums with these values."""
    assert (Mode.TEXT, Mode.BYTES) == ("TEXT", "BYTES")
    assert (Flag.RENAME, Flag.RENAME_NOREPLACE, Flag.RENAME_EXCHANGE) == ("REPLACE", "NO_REPLACE", "EXCHANGE")
    assert Mode("TEXT") is Mode.TEXT
    with file("x", "BYTES") as f:
        f.write(b"1")


def test_existing_file_is_not_overwritten(folder: Path) -> None:
    Path("x").write_text("precious")
    with pytest.raises(FileAlreadyExistsError, match="already exists"), file("x") as f:
        f.write("new")
    assert Path("x").read_text() == "precious"


def test_race_for_a_file(folder: Path) -> None:
    """It is created by someone else while the block runs."""
    with pytest.raises(FileAlreadyExistsError, match="already exists"), file("x") as f:
        Path("x").write_text("theirs")
        f.write("ours")
    assert Path("x").read_text() == "theirs"


def test_existing_folder_is_not_overwritten(folder: Path) -> None:
    Path("d").mkdir()
    Path("d/precious").touch()
    with pytest.raises(FileAlreadyExistsError), atomic_folder("d") as d:
        (d / "new").touch()
    assert os.listdir("d") == ["precious"]


def test_overwritten_folder(folder: Path) -> None:
    """Also one that was not there, which 0.0.3 could not do."""
    for name in ("1", "2"):
        with atomic_folder(folder / "d", overwrite=True) as d:
            assert isinstance(d, Path)
            with open(Path(d, name), "w") as f:
                f.write(name)
        assert os.listdir("d") == [name]


def test_exception_publishes_nothing(folder: Path) -> None:
    """And leaves nothing, which 0.0.3 did."""
    with pytest.raises(ZeroDivisionError), file("x") as f:
        f.write("half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), atomic_folder("d") as d:
        (d / "half").touch()
        raise ZeroDivisionError
    assert os.listdir() == []


def test_other_filesystem(folder: Path) -> None:
    """tmp_dir elsewhere is InvalidCrossDeviceError; without tmp_dir it works, which it did not."""
    need(namespace.missing_root())
    with mounts.mounted("tmpfs") as place:
        with pytest.raises(InvalidCrossDeviceError, match="st_dev"), file("x", tmp_dir=place.folder) as f:
            f.write("1")
        with pytest.raises(InvalidCrossDeviceError), atomic_folder("d", tmp_dir=str(place.folder)) as d:
            (d / "x").touch()
        with file(place.folder / "x") as f:
            f.write("1")
        assert os.listdir(place.folder) == ["x"]
    assert os.listdir() == []


def test_one_error_class_catches_all(folder: Path) -> None:
    """``except AtomikError`` around a write that cannot work."""
    Path("d").mkdir()
    for path in ("no/where/x", "d"):
        with pytest.raises(AtomikError), file(path, overwrite=True) as f:
            f.write("1")
    assert issubclass(FileAlreadyExistsError, AtomikError)
    assert issubclass(InvalidCrossDeviceError, AtomikError)
    assert str(FileAlreadyExistsError("made by a test double")) == "made by a test double"


def test_absolute_and_relative_paths(folder: Path) -> None:
    with file(str(folder / "abs")) as f:
        f.write("1")
    with file(Path("sub/../rel")) if os.path.isdir("sub") else file("rel") as f:
        f.write("1")
    assert sorted(os.listdir()) == ["abs", "rel"]


def test_folder_of_a_program(folder: Path) -> None:
    """The README's second example, with subfolders."""
    with atomic_folder("./results") as results:
        for number in range(3):
            sub = results / f"part{number}"
            sub.mkdir()
            (sub / "data.txt").write_text(str(number))
    assert sorted(path.read_text() for path in Path("results").glob("*/data.txt")) == ["0", "1", "2"]


def test_with_exit_stack(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        handles = [stack.enter_context(file(f"x{number}")) for number in range(3)]
        for handle in handles:
            handle.write("1")
    assert len(os.listdir()) == 3


def test_threads(folder: Path) -> None:
    def work(number: int) -> None:
        with file(f"x{number}") as f:
            f.write(str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {Path(f"x{number}").read_text() for number in range(8)} == set("01234567")


@pytest.mark.parametrize("flag", [Flag.RENAME, Flag.RENAME_NOREPLACE])
def test_rename(folder: Path, flag: Flag) -> None:
    Path("a").write_text("a")
    assert rename("a", "b", flag) is None
    assert Path("b").read_text() == "a"
    assert not os.path.exists("a")


def test_rename_flags(folder: Path) -> None:
    """No replacing by default, replacing and exchanging on request."""
    Path("a").write_text("a")
    Path("b").write_text("b")
    with pytest.raises(FileAlreadyExistsError):
        rename("a", "b")
    rename("a", "b", Flag.RENAME_EXCHANGE)
    assert (Path("a").read_text(), Path("b").read_text()) == ("b", "a")
    rename("a", "b", Flag.RENAME)
    assert os.listdir() == ["b"]
    with pytest.raises(AtomikError, match="No such file or directory"):
        rename("missing", "c")


def test_rename_across_filesystems(folder: Path) -> None:
    need(namespace.missing_root())
    Path("a").touch()
    with mounts.mounted("tmpfs") as place, pytest.raises(InvalidCrossDeviceError, match="Invalid cross-device link"):
        rename("a", str(place.folder / "a"))


def test_what_can_be_imported() -> None:
    """Every public name of 0.0.3."""
    namespace: dict[str, Any] = {}
    exec("from atomik import *", namespace)
    assert {"file", "folder", "Mode"} <= set(namespace)
    assert atomik.errors.AtomikError is AtomikError
    assert atomik.flags.Flag is Flag
    assert atomik.rename.rename is rename


# --- the packages of primitives ----------------------------------------------------------------------------------------
def test_swap_by_path_and_descriptor(folder: Path) -> None:
    """swap(first, second, *, first_dir_fd, second_dir_fd), with -100 for the current folder."""
    from atomik import swap

    for name in ("one", "two"):
        os.mkdir(name)
        Path(name, "x").write_text(name)
    swap("one/x", Path("two/x"))
    assert Path("one/x").read_text() == "two"
    fd = os.open("one", os.O_RDONLY | os.O_DIRECTORY)
    try:
        swap("x", "two/x", first_dir_fd=fd)
        swap(first="x", second="two/x", first_dir_fd=fd, second_dir_fd=-100)
    finally:
        os.close(fd)
    assert Path("one/x").read_text() == "two"
    with pytest.raises(FileNotFoundError) as caught:
        swap("one/x", "missing")
    assert caught.value.errno == 2


def test_exchange(folder: Path) -> None:
    """The other name of the same thing."""
    from atomik.rename import exchange

    Path("a").write_text("a")
    Path("d").mkdir()
    exchange("a", Path("d"))
    assert os.path.isdir("a")
    assert Path("d").read_text() == "a"


def test_the_bare_call(folder: Path) -> None:
    """renameat2(olddirfd, oldpath, newdirfd, newpath, flags)."""
    from atomik.rename import renameat2

    Path("a").write_text("a")
    Path("b").write_text("b")
    fd = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(FileExistsError):
            renameat2(fd, "a", fd, "b", 1)
        renameat2(fd, "a", fd, "b", 2)
        renameat2(olddirfd=fd, oldpath="a", newdirfd=fd, newpath="b")  # type: ignore[call-arg]
    finally:
        os.close(fd)
    assert {name: Path(name).read_text() for name in os.listdir()} == {"b": "b"}


def test_a_program_of_renameat2(folder: Path) -> None:
    """rename(oldpath, newpath, replace=, whiteout=), exchange(a, b), Flags; only the default of `replace` differs."""
    from atomik.flags import Flags
    from atomik.rename import exchange, renameat2

    Path("a").write_text("a")
    Path("b").write_text("b")
    with pytest.raises(OSError, match="exists") as caught:
        rename("a", "b", replace=False)
    assert caught.value.errno == 17
    exchange(a="a", b=Path("b"))  # type: ignore[call-arg]
    assert Path("a").read_text() == "b"
    rename(oldpath="a", newpath="b", replace=True, whiteout=False)  # type: ignore[call-arg]
    assert {name: Path(name).read_text() for name in os.listdir()} == {"b": "b"}
    fd = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        renameat2(fd, "b", fd, "c", Flags.RENAME_NOREPLACE)
        with pytest.raises(FileNotFoundError):
            renameat2(fd, "b", fd, "c", Flags.RENAME_EXCHANGE)
    finally:
        os.close(fd)


@pytest.mark.root
def test_whiteout(folder: Path) -> None:
    """What an overlay takes for "nothing here" stays at the source."""
    from atomik.flags import Flags
    from atomik.rename import renameat2

    Path("a").write_text("a")
    try:
        rename("a", "b", whiteout=True)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.EPERM):
            raise
        pytest.skip(f"the filesystem makes no whiteouts, or not for this user: {exc.strerror}")
    assert stat.S_ISCHR(os.lstat("a").st_mode)
    with pytest.raises(FileExistsError):
        rename("b", "a", replace=False, whiteout=True)
    renameat2(-100, "b", -100, "c", Flags.RENAME_WHITEOUT | Flags.RENAME_NOREPLACE)
    assert Path("c").read_text() == "a"
