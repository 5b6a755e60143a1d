"""The system calls that `os` does not offer, bound with ctypes; loaded when first needed.

Only `kernel` imports this module: a program that imports atomik and writes nothing should not pay for it.  It builds on
`_ctypes`, the part of ctypes in C.  The part in Python makes dozens of classes, of which three are needed here, and takes
longer to load than any module of atomik.

Where the C library has a wrapper it is used; otherwise syscall(2) with the number of the machine, so that
musl and an old glibc work too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import sys
from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, _SimpleCData, byref, dlopen, get_errno, set_errno
from errno import ENOSYS

from atomik._typing import NamedTuple

from . import machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    #: A buffer that the kernel writes to, and pointers into it.  It never moves, because its size never changes.
    _Buffer = tuple[bytearray, Any, Any]

AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_HANDLE_FID = 0x200  # name_to_handle_at for comparison only; works on overlay (Linux 6.5)
MAX_HANDLE = 128

STATX_MNT_ID = 0x1000  # Linux 5.8
STATX_MNT_ID_UNIQUE = 0x4000  # Linux 6.8; never reused, unlike the other
STATX_IDENTITY = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x100  # type, mode, nlink, uid, gid, ino

MACHINE = os.uname().machine
_POINTER = struct.calcsize("P")
INTERFACE = machine.interface(MACHINE, _POINTER, getattr(sys.implementation, "_multiarch", ""))

FICLONE = machine.ioctl(INTERFACE, machine.WRITE, 0x94, 9, 4)
FS_IOC_FIEMAP = machine.ioctl(INTERFACE, machine.READ | machine.WRITE, ord("f"), 11, 32)
FS_IOC_FSGETXATTR = machine.ioctl(INTERFACE, machine.READ, ord("X"), 31, 28)


def xfs_geometry(size: int) -> int:
    """XFS_IOC_FSGEOMETRY_V1, with the bytes of its structure."""
    return machine.ioctl(INTERFACE, machine.READ, ord("X"), 100, size)


class _Char(_SimpleCData):  # type: ignore[type-arg]  # only type checkers take an argument
    _type_ = "c"


class _Long(_SimpleCData):  # type: ignore[type-arg]
    """An unsigned long; a size_t too, which is as wide on Linux."""

    _type_ = "L"


class _Wide(_SimpleCData):  # type: ignore[type-arg]
    """64 bits, as an off_t of the calls here."""

    _type_ = "q"


class _Function(CFuncPtr):
    """Returns an int."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    __name__: str


class _Library:
    """The C library, as ``ctypes.CDLL(None, use_errno=True)``."""

    _handle = dlopen(None)  # type: ignore[arg-type]  # as CDLL does

    def __getattr__(self, name: str) -> Any:
        function = _Function((name, self))  # type: ignore[arg-type]  # AttributeError if there is none
        function.__name__ = name
        return function


_c = _Library()
errno = get_errno


def _bind(*names: str) -> Callable[..., int]:
    """The first of the C functions that there is, or syscall(2) in its place.

    Argument types are not declared, because converting declared ones would double the time of a call.  So the callers pass
    what C takes as it is: int for int, bytes for names, and pointers made by `byref`.
    """
    for name in names:
        with contextlib.suppress(AttributeError):
            return getattr(_c, name)  # type: ignore[no-any-return]
    return _by_number(names[-1])


def _by_number(name: str) -> Callable[..., int]:
    """syscall(2); where the number is not known, what a kernel without the call would answer."""
    number = machine.number(name, INTERFACE)
    return _unknown if number is None else functools.partial(_c.syscall, number)


def _unknown(*_: object) -> int:
    set_errno(ENOSYS)
    return -1


renameat2 = _bind("renameat2")
renameat2_itself = _by_number("renameat2")
linkat = _bind("linkat")
# In a 32-bit process glibc's plain fstatfs fails with EOVERFLOW on a filesystem of 2^32 blocks (16 TiB) or more.
_fstatfs = _bind("fstatfs64", "fstatfs")
syncfs = _bind("syncfs")
_statx = _bind("statx")
_name_to_handle_at = _bind("name_to_handle_at")
flock = _bind("flock")
fchmodat2 = _by_number("fchmodat2")
_openat2 = _by_number("openat2")
_listxattrat = _by_number("listxattrat")
unshare = _bind("unshare")
_mount = _bind("mount")
_open_tree = _by_number("open_tree")
_move_mount = _by_number("move_mount")
_prctl = _bind("prctl")
#: musl has none
getdents64: Callable[..., int] | None = getattr(_c, "getdents64", None)
inotify_init1 = _bind("inotify_init1")
inotify_add_watch = _bind("inotify_add_watch")


def _buffer(size: int, second: int = 0) -> _Buffer:
    """`size` bytes, with pointers to the first of them and to the one at `second`."""
    memory = bytearray(size)
    first, other = (byref(_Char.from_buffer(memory, at)) for at in (0, second))
    return memory, first, other


#: Buffers that no call is using.  The kernel writes into them while the interpreter's lock is released, so no two calls may
#: share one.
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
    #: the id of its mount, 0 if unknown
    mount: int

    @property
    def dev(self) -> int:
        return os.makedev(self.major, self.minor)

    @property
    def place_key(self) -> tuple[int, int, int]:
        """(st_dev, st_ino, mount id)."""
        return self.dev, self.ino, self.mount

    def on_mount(self, mount: int) -> Status:
        """The same, with the id of the mount from elsewhere."""
        return self._replace(mount=mount, mask=self.mask | STATX_MNT_ID)

    @property
    def unique_mount(self) -> bool:
        """Whether the mount's id is never given to another."""
        return self.mask & STATX_MNT_ID_UNIQUE != 0


#: the fields of ``struct statx`` that are in a `Status`
_STATX = struct.Struct("=I4xQIIIH2xQ88x8xIIQ")
_unpack_status = _STATX.unpack_from
_STATX_SIZE = 256
# Not the times: once a program has asked for the times of a file, Linux (6.13) gives it an exact time at its next change, and
# later changes on the machine must get later times.  If a filesystem is in an image file, the image's inode then changes with
# every write to it, which makes each sync about 8 % slower (ext4 in a loop device).
_WANTED = STATX_IDENTITY | STATX_MNT_ID | STATX_MNT_ID_UNIQUE
_new = tuple.__new__  # in half the time of calling the class


def statx(fd: int, name: bytes, flags: int) -> Status | None:
    """statx(2) of what matters here; None when it failed (see `errno`)."""
    try:
        held = _statuses.pop()
    except IndexError:
        held = _buffer(_STATX_SIZE)
    try:
        if _statx(fd, name, flags, _WANTED, held[1]) < 0:
            return None
        return _new(Status, _unpack_status(held[0]))
    finally:
        _statuses.append(held)


def exists(fd: int, name: bytes) -> bool:
    """Whether statx(2) finds anything of that name (see `errno` for a no).  Its result is discarded."""
    return _statx(fd, name, AT_SYMLINK_NOFOLLOW, STATX_IDENTITY, _scratch) == 0


_scratch = _buffer(_STATX_SIZE)[1]


def plain_status(found: os.stat_result) -> Status:
    """What stat(2) says of the same, where statx(2) is refused."""
    return Status(
        STATX_IDENTITY, 0, found.st_nlink, found.st_uid, found.st_gid, found.st_mode, found.st_ino,
        os.major(found.st_dev), os.minor(found.st_dev), 0,
    )  # fmt: skip


#: ``struct file_handle`` (handle_bytes, handle_type, f_handle) with room for the largest, and the mount id behind it
_HANDLE_SIZE = 8 + MAX_HANDLE
_BYTES = struct.Struct("=I")
#: where in ``handle_bytes`` all of it is, because it is never more than `MAX_HANDLE`
_LOW_BYTE = 0 if sys.byteorder == "little" else 3


def handle(fd: int, name: bytes, flags: int) -> bytes | None:
    """Type and handle of name_to_handle_at(2); None when it failed (see `errno`)."""
    try:
        held = _handles.pop()
    except IndexError:
        held = _buffer(_HANDLE_SIZE + 4, _HANDLE_SIZE)
    memory, at, mount_id = held
    memory[_LOW_BYTE] = MAX_HANDLE
    try:
        if _name_to_handle_at(fd, name, at, mount_id, flags) < 0:
            return None
        return bytes(memory[4 : 8 + memory[_LOW_BYTE]])
    finally:
        _handles.append(held)


def mount_of(fd: int, name: bytes, flags: int) -> int | None:
    """The mount id of name_to_handle_at(2), which it returns even where the handle is too long (EOVERFLOW); None if it does
    not."""
    memory, at, mount_id = _buffer(_HANDLE_SIZE + 4, _HANDLE_SIZE)
    _BYTES.pack_into(memory, 0, MAX_HANDLE)
    _BYTES.pack_into(memory, _HANDLE_SIZE, _NO_MOUNT)
    _name_to_handle_at(fd, name, at, mount_id, flags)
    found: int = _BYTES.unpack_from(memory, _HANDLE_SIZE)[0]
    return None if found == _NO_MOUNT else found


_NO_MOUNT = 0xFFFFFFFF


_HOW = struct.Struct("=QQQ")


@functools.cache
def _how(flags: int, resolve: int) -> Any:
    """A pointer to a ``struct open_how`` without a mode; it is never written to, so it is shared."""
    memory, at, _ = _buffer(_HOW.size)
    _HOW.pack_into(memory, 0, flags, 0, resolve)
    return at


def openat2(dir_fd: int, path: bytes, flags: int, resolve: int) -> int:
    """openat2(2), Linux 5.6, of something that exists; the C library has no wrapper."""
    return _openat2(dir_fd, path, _how(flags, resolve), _HOW.size)


def listxattrat(dir_fd: int, name: bytes, flags: int) -> int:
    """listxattrat(2), Linux 6.13: how many bytes the names of the extended attributes take."""
    return _listxattrat(dir_fd, name, flags, None, _NONE)


def start_writeback(fd: int) -> int:
    return _sync_file_range(fd, _ZERO, _ZERO, 2)


def write_back(fd: int) -> int:
    return _sync_file_range(fd, _ZERO, _ZERO, 7)


_sync_file_range = _bind("sync_file_range")
_ZERO = _Wide(0)
_NONE = _Long(0)


_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
_PR_SET_PDEATHSIG, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER = 1, 23, 24, 36


def make_mounts_private() -> int:
    return _mount(None, b"/", None, _Long(_MS_REC | _MS_PRIVATE), None)


def mount_overlay(target: bytes, options: bytes, flags: int) -> int:
    return _mount(b"overlay", target, b"overlay", _Long(flags), options)


def copy_mount(path_fd: int) -> int:
    return _open_tree(path_fd, b"", _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)


def attach_mount(tree_fd: int, path_fd: int) -> int:
    return _move_mount(tree_fd, b"", path_fd, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)


def end_with_parent(signal: int) -> int:
    return _prctl(_PR_SET_PDEATHSIG, _Long(signal), _ZERO_LONG, _ZERO_LONG, _ZERO_LONG)


def may_gain(capability: int) -> int:
    return _prctl(_PR_CAPBSET_READ, _Long(capability), _ZERO_LONG, _ZERO_LONG, _ZERO_LONG)


def never_gain(capability: int) -> int:
    return _prctl(_PR_CAPBSET_DROP, _Long(capability), _ZERO_LONG, _ZERO_LONG, _ZERO_LONG)


def adopt_orphans() -> int:
    return _prctl(_PR_SET_CHILD_SUBREAPER, _Long(1), _ZERO_LONG, _ZERO_LONG, _ZERO_LONG)


_ZERO_LONG = _Long(0)

_STATFS_SIZE = 256
_MAGIC = struct.Struct("=I" if machine.magic_size(MACHINE, _POINTER) == 4 else "=Q")


def magic_of(fd: int) -> int | None:
    """``f_type`` of fstatfs(2); None when it failed (see `errno`)."""
    memory, at, _ = _buffer(_STATFS_SIZE)
    if _fstatfs(fd, at) < 0:
        return None
    return _MAGIC.unpack_from(memory)[0] & 0xFFFFFFFF  # type: ignore[no-any-return]
