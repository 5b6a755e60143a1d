"""A held folder: how it is reached, and whether its path still leads there."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from atomik import errors
from atomik._folder import directory as directory_module
from atomik._folder.directory import Directory
from atomik._folder.paths import absolute, split
from atomik._folder.place import Place, chmod, set_mode
from atomik._folder.resolve import real
from atomik._system import forked, kernel
from tests.support.seccomp import needs_seccomp, refuse
from tests.support.state import descriptors, in_child
from tests.support.users import root

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

NOBODY = 65534


def publish(directory: Directory, name: str) -> None:
    """Something that needs the descriptor only."""
    os.close(kernel.port.create(name, os.O_WRONLY, 0o600, directory.fd))


@root
def test_the_folder_above_is_closed(folder: Path) -> None:
    """As for open(2): what is above the working folder does not matter; the path in messages is absolute."""
    Path("home/jane/sub").mkdir(parents=True)
    for name in ("home/jane", "home/jane/sub"):
        os.chmod(name, 0o777)
    os.chmod("home", 0o700)
    os.chdir("home/jane")

    def work() -> None:
        for path, shown in ((".", "/home/jane"), ("sub", "/home/jane/sub"), ("./sub/..", "/home/jane/./sub/..")):
            directory = Directory.open(path)
            assert directory.path.endswith(shown)
            publish(directory, path.replace("/", ":") + "x")
            assert directory.still_there()
            before = len(os.listdir("/proc/self/fd"))
            directory.close()
            assert len(os.listdir("/proc/self/fd")) == before - 2, "its own descriptor, and that of the working folder"
        moved = Directory.open("sub")
        os.chdir("/")
        assert moved.still_there(), "it starts from where the working folder was"
        with pytest.raises(errors.AccessDeniedError, match="may not search") as caught:
            Directory.open(absolute(str(folder / "home/jane/sub")))
        assert str(folder / "home").startswith(str(caught.value.filename)), "the uppermost one that is closed"

    in_child(work, become=NOBODY)


@root
def test_rights_that_go_later(folder: Path) -> None:
    """A daemon opens its folder as root and publishes as another user."""
    Path("home/jane").mkdir(parents=True)
    os.chmod("home/jane", 0o777)
    os.chmod("home", 0o700)
    os.chdir("home/jane")

    def work() -> None:
        directory = Directory.open(".")
        os.setgroups([])
        os.setresuid(NOBODY, NOBODY, NOBODY)
        assert directory.still_there()
        publish(directory, "x")

    in_child(work)


def test_a_working_folder_deeper_than_any_path(folder: Path) -> None:
    """Longer than PATH_MAX: relative paths work, and what moves away is noticed."""
    start = os.open(".", os.O_RDONLY)

    def work() -> None:
        for _ in range(30):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        os.mkdir("sub")
        for path in (".", "sub"):
            directory = Directory.open(path)
            publish(directory, "x")
            assert directory.still_there()
            assert directory.fs.name
            if path == "sub":
                os.rename("sub", "other")
                assert not directory.still_there()
                os.mkdir("sub")
                assert not directory.still_there()
            directory.close()

    in_child(work)
    os.fchdir(start)
    os.close(start)
    shutil.rmtree("d" * 200)


def test_a_working_folder_that_moved(folder: Path) -> None:
    """A relative path goes with it."""
    Path("a/sub").mkdir(parents=True)
    os.chdir("a")
    directory = Directory.open("sub")
    os.rename(folder / "a", folder / "b")
    assert directory.still_there()
    os.rename(folder / "b" / "sub", folder / "b" / "gone")
    assert not directory.still_there()
    directory.close()
    os.chdir(folder)


def test_a_working_folder_that_is_gone(folder: Path) -> None:
    """It is named as such."""
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir(folder / "gone")
    try:
        with pytest.raises(errors.AtomikOSError, match="current folder was deleted"):
            absolute("x")
    finally:
        os.chdir(folder)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("x", (".", "x")),
        ("./x", (".", "x")),
        ("a/x", ("a", "x")),
        ("/x", ("/", "x")),
        ("//x", ("/", "x")),
        ("/a//x", ("/a", "x")),
    ],
)
def test_split(path: str, parts: tuple[str, str]) -> None:
    """The parent of a relative path is relative."""
    assert split(path, folder=False) == parts


def test_where_it_lies_without_proc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path, links resolved, as long as that leads there."""
    os.makedirs("real/sub")
    os.symlink("real", "link")

    def no_proc(path: str, dir_fd: int | None = None) -> str:
        if path.startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, "no /proc", path)
        return os.readlink(path, dir_fd=dir_fd)

    directory = Directory.open("link/sub")
    monkeypatch.setattr(kernel.port, "readlink", no_proc, raising=False)
    assert directory.real_path() == os.path.realpath("real/sub")
    os.rename("real/sub", "real/moved")
    with pytest.raises(FileNotFoundError):
        directory.real_path()
    directory.close()


@pytest.mark.parametrize(
    "path",
    [
        "real/sub",
        "link/sub",
        "link/../x",
        "far",
        "far/sub/.",
        "./link//sub/",
        "missing/a/../b",
        "/",
        "//",
        "..",
        "ring",
        "ring/x",
        "file/x",
        "up",
    ],
)
def test_real(folder: Path, path: str) -> None:
    """As os.path.realpath, which would take a handler's error for an answer."""
    os.makedirs("real/sub")
    Path("file").touch()
    for name, target in (("link", "real"), ("far", f"{folder}/link"), ("up", "real/../link/sub"), ("ring", "ring")):
        os.symlink(target, name)
    assert real(path) == os.path.realpath(path)
    assert real(f"{folder}/{path}") == os.path.realpath(f"{folder}/{path}")


def test_real_in_a_handler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a handler raises goes on."""

    def handler(path: str, dir_fd: int | None = None) -> str:
        raise FileNotFoundError(errno.ENOENT, "from a handler", path)

    monkeypatch.setattr(kernel, "port", type("Port", (), {"readlink": staticmethod(handler)})())
    with pytest.raises(FileNotFoundError, match="from a handler"):
        real("x")


def test_a_handlers_error_is_no_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FileNotFoundError that did not come from the kernel says nothing about a name (I13)."""
    directory = Directory.open(".")

    def handler() -> None:
        raise FileNotFoundError(errno.ENOENT, "of a handler")

    real = os.stat

    def interrupted(*args: object, **kwargs: object) -> os.stat_result:
        handler()
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", interrupted)
    with pytest.raises(FileNotFoundError, match="of a handler"):
        directory.stat("x")
    monkeypatch.undo()
    directory.close()


@pytest.mark.parametrize("mode", [0o000, 0o300, 0o755])
def test_the_mode_of_a_folder_that_cannot_be_read(folder: Path, mode: int) -> None:
    """Through /proc; the former permissions come back."""
    os.mkdir("x", mode)
    directory = Directory.open(".")
    os.chmod("x", mode)
    assert set_mode(Place(directory, "x"), 0o711) == mode
    assert stat.S_IMODE(os.stat("x").st_mode) == 0o711
    directory.close()


@root
def test_modes_without_proc(folder: Path) -> None:
    """By fchmodat2(2), or by opening the folder."""

    def work() -> None:
        os.chroot(folder)
        os.chdir("/")
        os.mkdir("x")
        path_fd = os.open("x", os.O_PATH)
        chmod(path_fd, 0o700, "x")
        assert stat.S_IMODE(os.stat("x").st_mode) == 0o700

    in_child(work)


@root
@needs_seccomp
def test_modes_without_proc_and_fchmodat2(folder: Path) -> None:
    """The kernel before Linux 6.6, in a chroot."""

    def work() -> None:
        os.chroot(folder)
        os.chdir("/")
        os.mkdir("x")
        kernel.libc()
        refuse(errno.ENOSYS, "fchmodat2")
        path_fd = os.open("x", os.O_PATH)
        chmod(path_fd, 0o700, "x")
        assert stat.S_IMODE(os.stat("x").st_mode) == 0o700

    in_child(work)


# --- interrupted -------------------------------------------------------------------------------------------------------
def use(relative: str) -> None:
    """Open, lock and close a folder."""
    folder = Directory.open(relative)
    try:
        folder.lock(1.0)
    finally:
        try:
            folder.close()
        except Interrupted:
            folder.close()
            raise


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("moved", [False, True], ids=["usual", "held working folder"])
def test_interrupted_at_any_line(folder: Path, moved: bool) -> None:
    """No descriptor is lost, and so no lock: not in the midst of opening, and not in the midst of closing."""
    (folder / "was" / "sub").mkdir(parents=True)
    os.chdir(folder / "was")
    if moved:  # the absolute path leads elsewhere, so the working folder is held as well
        (folder / "was").rename(folder / "is")
    for number in range(1, 1_000):
        before = descriptors()
        struck = interrupted(number, lambda: use("sub"))
        assert descriptors() == before, number
        assert not forked.guarded, number
        if not struck:
            break
    assert number > 30


def interrupted(number: int, function: Callable[[], None]) -> bool:
    """Run it with an exception at the `number`-th line of the module; False when it has fewer."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != directory_module.__file__ or frame.f_code.co_name == "__del__":
            return None
        if event == "line":
            lines += 1
            if lines == number:
                sys.settrace(None)
                raise Interrupted
        return trace

    traced = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except Interrupted:
        return True
    finally:
        sys.settrace(traced)
    return False


def test_a_folder_that_was_forgotten_is_closed(folder: Path) -> None:
    """Only the process that opened it: in a child the number may belong to something else."""
    before = descriptors()
    held: list[Directory] = [Directory.open(str(folder))]
    fd = held[0].fd

    def forget() -> bool:
        os.close(fd)
        assert os.open(os.devnull, os.O_RDONLY) == fd
        held.clear()
        return fd in descriptors()

    assert in_child(forget)
    assert held
    held.clear()
    assert descriptors() == before
