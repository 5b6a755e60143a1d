"""The system calls that `os` does not offer, bound with ctypes; loaded when first needed.

Only `kernel` imports this module.  It is apart because ctypes alone takes longer to import than the rest of
atomik: a program that imports atomik and writes nothing should not pay for it.

Where the C library has a wrapper it is used; otherwise syscall(2) with the number of the machine, so that
musl and an old glibc work too.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_HANDLE_FID = 0x200  # name_to_handle_at for comparison only; works on overlay (Linux 6.5)
MAX_HANDLE = 128

STATX_MNT_ID = 0x1000  # Linux 5.8
STATX_MNT_ID_UNIQUE = 0x4000  # Linux 6.8; never reused, unlike the other
STATX_IDENTITY = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x100  # type, mode, nlink, uid, gid, ino

# The numbers of calls newer than 5.1 are the same on every architecture; older ones are not.
_OPENAT2 = 437
_LISTXATTRAT = 465
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


def _bind(name: str) -> Callable[..., int]:
    """The C function, or syscall(2) in its place.

    Arguments are not declared, for ctypes converts declared ones at twice the price of the call.  So the callers pass
    what C takes as it is: int for int, bytes for names, and pointers made by `ctypes.byref`.
    """
    try:
        return getattr(_c, name)  # type: ignore[no-any-return]
    except AttributeError:
        return functools.partial(_c.syscall, _NUMBERS[name][os.uname().machine])


renameat2 = _bind("renameat2")
linkat = _bind("linkat")
fstatfs = _bind("fstatfs")
syncfs = _bind("syncfs")
_statx = _bind("statx")
_name_to_handle_at = _bind("name_to_handle_at")
_syscall: Callable[..., int] = _c.syscall

#: A buffer that the kernel writes to, and pointers into it.  It stays where it is, for nobody ever changes its size.
_Buffer = tuple[bytearray, Any, Any]


def _buffer(size: int, second: int = 0) -> _Buffer:
    """`size` bytes, with pointers to the first of them and to the one at `second`."""
    memory = bytearray(size)
    first, other = (ctypes.byref(ctypes.c_char.from_buffer(memory, at)) for at in (0, second))
    return memory, first, other


#: Buffers that no call is using: the kernel writes, without the lock of the interpreter, where nobody else may read.
_statuses: list[_Buffer] = []
_handles: list[_Buffer] = []


class Status(NamedTuple):
    """What statx(2) says about an object: what and where it is, and no times."""

    mask: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    major: int
    minor: int
    #: the id of the mount that it lies on, 0 where the kernel does not tell
    mount: int

    @property
    def dev(self) -> int:
        """``st_dev``."""
        return os.makedev(self.major, self.minor)

    @property
    def place_key(self) -> tuple[int, int, int]:
        """(st_dev, st_ino, mount id)."""
        return self.dev, self.ino, self.mount

    @property
    def unique_mount(self) -> bool:
        """Whether the mount's id is never given to another."""
        return self.mask & STATX_MNT_ID_UNIQUE != 0


#: the fields of ``struct statx`` that are in a `Look`
_STATX = struct.Struct("=I4xQIIIH2xQ88x8xIIQ")
_STATX_SIZE = 256
# Not the times: when those of a file have been asked for, Linux (6.13) gives it an exact time at its next change, and every
# later change on the machine a later one.  Where a filesystem lies in an image, that makes the image's inode change with
# every write to it, and each sync a twelfth dearer (ext4 in a loop device).
_WANTED = STATX_IDENTITY | STATX_MNT_ID | STATX_MNT_ID_UNIQUE
_new = tuple.__new__  # at half the price of calling the class


def statx(fd: int, name: bytes, flags: int) -> Status | None:
    """statx(2) of what matters here; None when it failed (see `errno`)."""
    try:
        held = _statuses.pop()
    except IndexError:
        held = _buffer(_STATX_SIZE)
    try:
        if _statx(fd, name, flags, _WANTED, held[1]) < 0:
            return None
        return _new(Status, _STATX.unpack_from(held[0]))
    finally:
        _statuses.append(held)


#: ``struct file_handle`` (handle_bytes, handle_type, f_handle) with room for the largest, and the mount id behind it
_HANDLE_SIZE = 8 + MAX_HANDLE
_BYTES = struct.Struct("=I")


def handle(fd: int, name: bytes, flags: int) -> bytes | None:
    """Type and handle of name_to_handle_at(2); None when it failed (see `errno`)."""
    try:
        held = _handles.pop()
    except IndexError:
        held = _buffer(_HANDLE_SIZE + 4, _HANDLE_SIZE)
    memory, at, mount_id = held
    try:
        _BYTES.pack_into(memory, 0, MAX_HANDLE)
        if _name_to_handle_at(fd, name, at, mount_id, flags) < 0:
            return None
        return bytes(memory[4 : 8 + _BYTES.unpack_from(memory)[0]])
    finally:
        _handles.append(held)


_HOW = struct.Struct("=QQQ")


@functools.cache
def _how(flags: int, mode: int, resolve: int) -> Any:
    """A pointer to a ``struct open_how``; nobody writes to it, so it is shared."""
    return ctypes.byref(ctypes.create_string_buffer(_HOW.pack(flags, mode, resolve), _HOW.size))


def openat2(dir_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """openat2(2), Linux 5.6; the C library has no wrapper."""
    return _syscall(_OPENAT2, dir_fd, path, _how(flags, mode, resolve), _HOW.size)


def listxattrat(dir_fd: int, name: bytes, flags: int) -> int:
    """listxattrat(2), Linux 6.13: how many bytes the names of the extended attributes take."""
    return _syscall(_LISTXATTRAT, dir_fd, name, flags, None, _NONE)


def start_writeback(fd: int) -> int:
    """sync_file_range(2) of all of the file, SYNC_FILE_RANGE_WRITE."""
    return _sync_file_range(fd, _ZERO, _ZERO, 2)


_sync_file_range = _bind("sync_file_range")
_ZERO = ctypes.c_int64(0)  # off_t, which may be wider than int
_NONE = ctypes.c_size_t(0)


class Statfs(ctypes.Structure):
    """``struct statfs``, of which only the magic number is read."""

    _fields_ = (("type", ctypes.c_long), ("_rest", ctypes.c_long * 31))


byref = ctypes.byref
