"""The system calls that `os` does not offer, bound with ctypes; loaded when first needed.

Only `_kernel` imports this module.  It is apart because ctypes alone takes longer to import than the rest of
atomik: a program that imports atomik and writes nothing should not pay for it.

Where the C library has a wrapper it is used; otherwise syscall(2) with the number of the machine, so that
musl and an old glibc work too.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_HANDLE_FID = 0x200  # name_to_handle_at for comparison only; works on overlay (Linux 6.5)
MAX_HANDLE = 128

STATX_MNT_ID = 0x1000  # Linux 5.8
STATX_ATTR_APPEND = 0x20
STATX_MNT_ID_UNIQUE = 0x4000  # Linux 6.8; never reused, unlike the other
STATX_MOUNT = STATX_MNT_ID | STATX_MNT_ID_UNIQUE
STATX_BASIC = 0x7FF

OPEN_HOW = ctypes.c_uint64 * 3
_HOW_SIZE = ctypes.sizeof(OPEN_HOW)

# The numbers of calls newer than 5.1 are the same on every architecture; older ones are not.
_OPENAT2 = 437
_NUMBERS = {
    "renameat2": {
        "x86_64": 316, "i386": 353, "i686": 353, "aarch64": 276, "riscv64": 276, "loongarch64": 276,
        "armv7l": 382, "armv6l": 382, "ppc64le": 357, "s390x": 347,
    },
    "name_to_handle_at": {
        "x86_64": 303, "i386": 341, "i686": 341, "aarch64": 264, "riscv64": 264, "loongarch64": 264,
        "armv7l": 370, "armv6l": 370, "ppc64le": 345, "s390x": 335,
    },
    "statx": {
        "x86_64": 332, "i386": 383, "i686": 383, "aarch64": 291, "riscv64": 291, "loongarch64": 291,
        "armv7l": 397, "armv6l": 397, "ppc64le": 383, "s390x": 379,
    },
}  # fmt: skip

_c = ctypes.CDLL(None, use_errno=True)
errno = ctypes.get_errno


#: ``struct file_handle`` (handle_bytes, handle_type, f_handle) with room for the largest, and the mount id behind it
_HANDLE_SIZE = 8 + MAX_HANDLE
_HANDLE_MEMORY = _HANDLE_SIZE + 4
_BYTES = struct.Struct("=I")
#: Buffers that no call is using: the kernel writes, without the lock of the interpreter, where nobody else may read.
_handles: list[tuple[bytearray, int]] = []
_statuses: list[tuple[bytearray, int]] = []


def _buffer(size: int) -> tuple[bytearray, int]:
    """A buffer for a system call, and where it lies: it stays there, for nobody ever changes its size."""
    memory = bytearray(size)
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


def handle(fd: int, name: bytes, flags: int) -> bytes | None:
    """Type and handle of name_to_handle_at(2); None when it failed (see `errno`)."""
    try:
        held = _handles.pop()
    except IndexError:
        held = _buffer(_HANDLE_MEMORY)
    memory, at = held
    try:
        _BYTES.pack_into(memory, 0, MAX_HANDLE)
        if _name_to_handle_at(fd, name, at, at + _HANDLE_SIZE, flags) < 0:
            return None
        return bytes(memory[4 : 8 + _BYTES.unpack_from(memory)[0]])
    finally:
        _handles.append(held)


#: ``struct statx``: mask, attributes, nlink, mode, ino, device (major, minor), mount id; the rest is not read
_STATX = struct.Struct("=I4xQI8xH2xQ88x8xIIQ")
_STATX_SIZE = 256
_WANTED = STATX_BASIC | STATX_MNT_ID | STATX_MNT_ID_UNIQUE


def statx(fd: int, name: bytes, flags: int) -> tuple[int, ...] | None:
    """(mask, attributes, nlink, mode, ino, major, minor, mount id) of statx(2); None when it failed (see `errno`)."""
    try:
        held = _statuses.pop()
    except IndexError:
        held = _buffer(_STATX_SIZE)
    try:
        return None if _statx(fd, name, flags, _WANTED, held[1]) < 0 else _STATX.unpack_from(held[0])
    finally:
        _statuses.append(held)


class Statfs(ctypes.Structure):
    """``struct statfs``, of which only the magic number is read."""

    _fields_ = (("type", ctypes.c_long), ("_rest", ctypes.c_long * 31))


def _bind(name: str, *types: type) -> Callable[..., int]:
    """The C function, or syscall(2) in its place."""
    try:
        function = getattr(_c, name)
    except AttributeError:
        number = _NUMBERS[name][os.uname().machine]
        syscall = _c.syscall
        return lambda *args: int(syscall(ctypes.c_long(number), *(t(a) for t, a in zip(types, args, strict=True))))
    function.argtypes = types
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


_int, _name, _pointer = ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p

renameat2 = _bind("renameat2", _int, _name, _int, _name, ctypes.c_uint)
linkat = _bind("linkat", _int, _name, _int, _name, _int)
_name_to_handle_at = _bind("name_to_handle_at", _int, _name, _pointer, _pointer, _int)
_statx = _bind("statx", _int, _name, _int, ctypes.c_uint, _pointer)
fstatfs = _bind("fstatfs", _int, _pointer)
syncfs = _bind("syncfs", _int)
sync_file_range = _bind("sync_file_range", _int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


_how = functools.cache(OPEN_HOW)  # nobody writes to them, so they are shared
_openat2 = ctypes.CDLL(None, use_errno=True).syscall
_openat2.argtypes = (ctypes.c_long, _int, _name, _pointer, ctypes.c_size_t)
_openat2.restype = ctypes.c_long


def openat2(dir_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """openat2(2), Linux 5.6; the C library has no wrapper."""
    return int(_openat2(_OPENAT2, dir_fd, path, _how(flags, mode, resolve), _HOW_SIZE))


byref = ctypes.byref
