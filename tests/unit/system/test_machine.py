"""The numbers of system calls on other machines."""

from __future__ import annotations

import _ctypes
import ctypes
import errno
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

import pytest

from atomik._system import kernel, machine
from atomik._system import libc as real


@pytest.mark.parametrize(
    ("name", "pointer", "renameat2", "openat2"),
    [
        ("x86_64", 8, 316, 437),
        ("x86_64", 4, 353, 437),  # a 32-bit program on a 64-bit kernel
        ("i586", 4, 353, 437),
        ("i686", 8, 316, 437),  # setarch i686
        ("aarch64", 8, 276, 437),
        ("aarch64_be", 8, 276, 437),
        ("aarch64", 4, 382, 437),
        ("armv8l", 4, 382, 437),
        ("armv8l", 8, 276, 437),
        ("armv7l", 4, 382, 437),
        ("ppc", 4, 357, 437),
        ("ppc64", 8, 357, 437),
        ("ppc64le", 8, 357, 437),
        ("ppc64le", 4, 357, 437),
        ("s390x", 8, 347, 437),
        ("mips", 4, 4351, 4437),
        ("mips64", 8, 5311, 5437),
        ("mips64", 4, 4351, 4437),
        ("riscv64", 8, 276, 437),
        ("riscv32", 4, 276, 437),
        ("loongarch64", 8, 276, 437),
        ("sparc64", 8, 345, 437),
        ("parisc64", 4, 337, 437),
        ("m68k", 4, 351, 437),
        ("alpha", 8, 510, 547),
    ],
)
def test_the_numbers_follow_machine_and_pointer(name: str, pointer: int, renameat2: int, openat2: int) -> None:
    """Of an old call, and of one of those that are the same nearly everywhere."""
    known = machine.interface(name, pointer)
    assert (machine.number("renameat2", known), machine.number("openat2", known)) == (renameat2, openat2)


def test_two_interfaces_of_32_bits() -> None:
    """x32 and n32 are recognised by Python's own name for them."""
    assert machine.interface("x86_64", 4, "x86_64-linux-gnux32") == "x32"
    assert machine.number("renameat2", machine.interface("mips64", 4, "mips64el-linux-gnuabin32")) == 6315


def test_here() -> None:
    """On this machine it is the number that the kernel takes."""
    number = machine.number("renameat2", machine.interface(os.uname().machine, ctypes.sizeof(ctypes.c_void_p)))
    assert number is not None
    assert real._c.syscall(number, -1, b"x", -1, b"x", 0) == -1
    assert ctypes.get_errno() == errno.EBADF


@pytest.mark.parametrize(
    ("name", "pointer", "swapped"),
    [
        ("x86_64", 8, False), ("i686", 4, False), ("aarch64", 8, False), ("armv7l", 4, False), ("s390x", 8, False),
        ("riscv64", 8, False), ("loongarch64", 8, False), ("m68k", 4, False), ("ppc64le", 8, True), ("ppc64", 8, True),
        ("ppc", 4, True), ("mips64", 8, True), ("mips", 4, True), ("sparc64", 8, True), ("alpha", 8, True),
        ("parisc64", 4, True),
    ],
)  # fmt: skip
def test_the_numbers_of_ioctl(name: str, pointer: int, *, swapped: bool) -> None:
    """As the headers of each machine have them: FICLONE, FS_IOC_FSGETXATTR, FS_IOC_FIEMAP, XFS_IOC_FSGEOMETRY_V1."""
    known = machine.interface(name, pointer)
    size = 108 if known == "i386" else 112
    found = [
        machine.ioctl(known, direction, ord(group), number, size)
        for direction, group, number, size in (
            (machine.WRITE, "\x94", 9, 4), (machine.READ, "X", 31, 28), (machine.READ | machine.WRITE, "f", 11, 32),
            (machine.READ, "X", 100, size),
        )
    ]  # fmt: skip
    geometry = size << 16 | 0x5864
    if swapped:
        assert found == [0x80049409, 0x401C581F, 0xC020660B, 0x40000000 | geometry]
    else:
        assert found == [0x40049409, 0x801C581F, 0xC020660B, 0x80000000 | geometry]


def test_the_sizes_of_structures() -> None:
    """What the kernel of this machine copies: a word for ``long long`` is aligned to 8 bytes, but on i386."""
    aligned = ctypes.alignment(ctypes.c_longlong)

    class Geometry(ctypes.Structure):
        _fields_ = (
            ("words", ctypes.c_uint32 * 8), ("blocks", ctypes.c_uint64 * 4), ("uuid", ctypes.c_char * 16),
            ("rest", ctypes.c_uint32 * 7),
        )  # fmt: skip

    class Flock64(ctypes.Structure):
        _fields_ = (
            ("kind", ctypes.c_short), ("whence", ctypes.c_short), ("start", ctypes.c_longlong),
            ("length", ctypes.c_longlong), ("pid", ctypes.c_int),
        )  # fmt: skip

    assert kernel._XFS_GEOMETRY.size == ctypes.sizeof(Geometry) == {4: 108, 8: 112}[aligned]
    assert kernel._FLOCK.size >= ctypes.sizeof(Flock64)
    start = Flock64(kind=1, start=7 << 40, length=9, pid=5)
    assert kernel._FLOCK.unpack(bytes(start).ljust(kernel._FLOCK.size, b"\0")) == (1, 0, 7 << 40, 9, 5)


@pytest.mark.parametrize(("name", "size"), [("s390x", 4), ("s390", 4), ("x86_64", 8)])
def test_f_type_of_statfs(name: str, size: int) -> None:
    """32 bits on s390x, where reading a word would take in the block size."""
    assert machine.magic_size(name, 8) == size


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The bindings on a machine that nobody knows, with a C library that has none of the newer wrappers."""
    uname = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*uname[:4], "brandnew")))

    class Old(_ctypes.CFuncPtr):
        """The functions of a C library without renameat2, statx and name_to_handle_at."""

        _flags_ = _ctypes.FUNCFLAG_CDECL

        def __new__(cls, where: Any) -> Any:
            if where[0] in ("renameat2", "statx", "name_to_handle_at"):
                raise AttributeError(where[0])
            return super().__new__(cls, where)

    monkeypatch.setattr(_ctypes, "CFuncPtr", Old)
    spec = importlib.util.find_spec("atomik._system.libc")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(kernel, "_c", module)
    return module


def test_an_unknown_machine_is_named(unknown: ModuleType, tmp_path: object) -> None:
    """ENOSYS with the machine's name for calls without a replacement; the others fall back."""
    port = kernel.Kernel()
    fd = os.open(str(tmp_path), os.O_RDONLY)
    try:
        os.mkdir("one", dir_fd=fd)
        with pytest.raises(OSError, match="brandnew") as caught:
            port.rename("one", fd, "two", fd, kernel.NOREPLACE)
        assert caught.value.errno == errno.ENOSYS
        port.rename("one", fd, "two", fd, 0)
        assert port.exists("two", fd)
        assert not port.exists("one", fd)
        assert port.statx(fd, "two").ino == os.stat("two", dir_fd=fd).st_ino
        assert port.statx(fd, "two").mount == port.statx(fd).mount != 0
        with pytest.raises(OSError, match="brandnew"):
            port.open_beneath("two", os.O_RDONLY, fd, kernel.RESOLVE_NO_SYMLINKS)
    finally:
        os.close(fd)
    assert sys.modules["atomik._system.libc"] is real


def test_large_filesystems_in_a_small_process() -> None:
    """glibc's plain fstatfs fails on 16 TiB and more in a process of 32 bits: the other one is bound if there is one."""
    libc = ctypes.CDLL(None)
    assert real._bind("fstatfs64", "fstatfs").__name__ == ("fstatfs64" if hasattr(libc, "fstatfs64") else "fstatfs")
    assert real._bind("no_such_function", "fstatfs").__name__ == "fstatfs"
    assert real._bind("no_such_function")() == -1
    assert real.errno() == errno.ENOSYS
