"""The port: one method, one system call; and the ways around what a C library or a sandbox lacks."""

from __future__ import annotations

import ctypes
import errno
import inspect
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik._system import kernel as _kernel
from atomik._system import libc as _libc
from atomik._system.kernel import MUTATING, Kernel
from tests.support.kernels import ALL, Recording, installed

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def here(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_every_method_says_which_call_it_is() -> None:
    """A docstring that names the system call, for every method of the port; or a comment over what is a call of `os`."""
    bound = {name: said for said, name in re.findall(r"#: (.+)\n    (\w+) = staticmethod", inspect.getsource(Kernel))}
    for name in ALL:
        doc = bound.get(name) or inspect.getdoc(getattr(Kernel, name)) or ""
        assert re.search(r"\([0-9]\)|\(2\)|O_TMPFILE|EEXIST|FICLONE|FS_IOC", doc), name


def test_mutating_names_methods() -> None:
    """Each name there is a method; those that only look are not among them."""
    assert MUTATING <= ALL
    assert not MUTATING & {
        "open",
        "close",
        "lstat",
        "fstat",
        "stat",
        "handle",
        "exists",
        "scandir",
        "readlink",
        "pread",
    }


#: What `os` offers to change something; only the port may use it.
CHANGES = re.compile(
    r"\bos\.(open|mkdir|makedirs|rmdir|unlink|remove|rename|replace|link|symlink|mknod|mkfifo|truncate|ftruncate|chmod|"
    r"fchmod|chown|fchown|lchown|utime|fsync|fdatasync|sync|write|pwrite|setxattr|removexattr|sendfile|copy_file_range)\("
)
#: These, and the port itself, do not go through it: they start programs, or write into what is staged as its user does.
OTHERS = ("_system/", "cli/", "fsspec/", "testing.py")


def test_nobody_else_makes_system_calls() -> None:
    """No module below the doors changes anything but through the port."""
    package = Path(str(atomik.__file__)).parent
    for source in package.rglob("*.py"):
        name = str(source.relative_to(package))
        if not name.startswith(OTHERS):
            code = [line.split("#")[0] for line in source.read_text().splitlines()]
            found = [line for line in code if CHANGES.search(line) and "os.devnull" not in line]
            assert found == [], name


def test_errors_of_ctypes_carry_errno_and_names(here: int) -> None:
    """As those of `os` do: the right builtin class, and both names."""
    port = Kernel()
    with pytest.raises(FileNotFoundError) as caught:
        port.rename("a", here, "b", here, 0)
    assert (caught.value.filename, caught.value.filename2) == ("a", "b")
    for call in (
        lambda: port.handle("missing", here, 0),
        lambda: port.statx(here, "missing"),
        lambda: port.open_beneath("missing", os.O_RDONLY, here, 0),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert caught.value.filename == "missing"
    for call in (
        lambda: port.syncfs(-1),
        lambda: port.start_writeback(-1),
        lambda: port.filesystem_magic(-1),
    ):
        with pytest.raises(OSError, match="Bad file descriptor") as failed:
            call()
        assert failed.value.errno == errno.EBADF


def test_without_the_wrapper_of_the_c_library(here: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """musl and an old glibc have no renameat2: syscall(2) does the same."""

    class Bare:
        """A C library with nothing but syscall(2)."""

        syscall = _libc._c.syscall

    with monkeypatch.context() as patch:
        patch.setattr(_libc, "_c", Bare)
        bound = _libc._bind("renameat2")
    Path("a").write_text("a")
    Path("b").write_text("b")
    assert bound(here, b"a", here, b"b", 2) == 0
    assert Path("a").read_text() == "b"
    assert bound(here, b"missing", here, b"b", 0) == -1
    assert _libc.errno() == errno.ENOENT


def test_a_no_is_an_answer_and_an_error_is_none(here: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether something exists: also a dangling link; who cannot be asked raises, with the name."""
    Path("there").touch()
    os.symlink("nowhere", "dangling")
    port = Kernel()
    assert [port.exists(name, here) for name in ("there", "dangling", "missing")] == [True, True, False]
    monkeypatch.setattr(_libc, "_statx", refused(errno.EIO))
    with pytest.raises(OSError, match="there") as failed:
        port.exists("there", here)
    assert failed.value.errno == errno.EIO


def refused(number: int) -> Any:
    """A binding of `_libc` that fails with this errno."""

    def call(*args: object) -> int:
        ctypes.set_errno(number)
        return -1

    return call


def test_attributes_are_seen_by_old_and_new_kernels(here: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By listxattrat(2), and where there is none, or a filter forbids it, through /proc; errors name the file."""
    Path("bare").touch()
    Path("with").touch()
    os.symlink("with", "link")
    os.setxattr("with", "user.x", b"1")
    port = Kernel()
    for calls in (_libc.listxattrat, refused(errno.ENOSYS), refused(errno.EPERM)):
        monkeypatch.setattr(_libc, "listxattrat", calls)
        assert port.has_xattrs("with", here)
        assert not port.has_xattrs("link", here)
        if not os.listxattr("bare"):
            assert not port.has_xattrs("bare", here)
        with pytest.raises(FileNotFoundError, match="missing"):
            port.has_xattrs("missing", here)
    monkeypatch.setattr(_libc, "listxattrat", refused(errno.EIO))
    with pytest.raises(OSError, match="bare") as failed:
        port.has_xattrs("bare", here)
    assert failed.value.errno == errno.EIO


def _no_proc(src: str, *args: Any, **kwargs: Any) -> None:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), src)


@pytest.mark.parametrize("without", ["nothing", "AT_EMPTY_PATH", "/proc"])
def test_an_unnamed_file_gets_a_name(here: int, monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    """By AT_EMPTY_PATH, if this user may, or through /proc, if that is mounted; a name that is taken stays."""
    port = Kernel()
    port.statx(here)  # loads the bindings
    if without == "AT_EMPTY_PATH":
        monkeypatch.setattr(_libc, "linkat", refused(errno.ENOENT))
    elif without == "/proc":
        monkeypatch.setattr(os, "link", _no_proc)
    fd = port.open_tmpfile(here, os.O_RDWR, 0o600)
    try:
        try:
            port.link_fd(fd, "x", here)
        except OSError as exc:
            assert (without, exc.errno) == ("/proc", errno.ENOENT)  # noqa: PT017  before Linux 6.10, without the capability
        else:
            assert os.stat("x").st_ino == os.fstat(fd).st_ino
            with pytest.raises(FileExistsError):
                port.link_fd(fd, "x", here)
    finally:
        os.close(fd)


def test_descriptors_are_closed_on_exec(here: int) -> None:
    """No descriptor of ours reaches a program that the user starts."""
    Path("x").touch()
    port = Kernel()
    for fd in (
        port.open("x", os.O_RDONLY, here),
        port.open_beneath("x", os.O_RDONLY, here, _kernel.RESOLVE_BENEATH),
        port.open_tmpfile(here, os.O_RDWR, 0o600),
        port.create("y", os.O_RDWR, 0o600, here),
    ):
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_create_does_not_follow(here: int) -> None:
    """A dangling link at the name is EEXIST, and its target is not made."""
    os.symlink("target", "x")
    with pytest.raises(FileExistsError):
        Kernel().create("x", os.O_RDWR, 0o600, here)
    assert os.listdir() == ["x"]


def test_open_beneath_stays_beneath(here: int) -> None:
    Path("sub").mkdir()
    os.symlink("..", "sub/up")
    port = Kernel()
    beneath = _kernel.RESOLVE_BENEATH
    for path, how in (("..", beneath), ("sub/up", _kernel.RESOLVE_NO_SYMLINKS), ("/", beneath)):
        with pytest.raises(OSError, match=r"Invalid cross-device link|Too many levels"):
            port.open_beneath(path, os.O_RDONLY, here, how)


def test_install_gives_back_the_former(folder: Path) -> None:
    """Kernels can be stacked, and the first is back at the end."""
    real = _kernel.port
    with installed(Recording()) as outer, installed(Recording()) as inner:
        with atomik.file("x"):
            pass
        assert inner.under is outer
    assert _kernel.port is real
    assert outer.names() == inner.names() != []


def test_close_all_closes_whatever_arrives() -> None:
    """Every descriptor, although an exception arrives at two of the calls; the last one is raised."""
    fds = [os.open("/", os.O_RDONLY) for _ in range(4)]
    arriving = [KeyboardInterrupt("first"), None, OSError("second"), None]

    class Interrupted(_kernel.Kernel):
        def close(self, fd: int) -> None:  # type: ignore[override]
            os.close(fd)
            if (exc := arriving.pop(0)) is not None:
                raise exc

    before = _kernel.install(Interrupted())
    try:
        with pytest.raises(OSError, match="second") as caught:
            _kernel.close_all(list(fds))
    finally:
        _kernel.install(before)
    assert isinstance(caught.value.__context__, KeyboardInterrupt)
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_thread_that_ended_tells_nothing() -> None:
    """Its file in /proc can be opened, and a moment later it cannot be read."""

    class Ended(Kernel):
        def pread(self, *_: object) -> bytes:  # type: ignore[override]
            raise OSError(errno.ESRCH, "ended")

    with installed(Ended()):
        assert _kernel.told("/proc/self/comm") == b""
