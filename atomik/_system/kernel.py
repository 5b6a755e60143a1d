"""The port to the kernel: every system call that atomik makes is one method here, and nothing else is.

The rest of the package calls ``kernel.port.METHOD(…)``.  Tests replace the port by another `Kernel` (`install`): one
that records, one that fails the n-th call, one that dies at it.  So "fail at every call" is a loop, and a call
that bypasses the port is a bug (a test in tests/crash compares with strace).

A method does one thing: the call, with descriptors and names as given.  If it fails, it raises an `OSError` with errno and
names.  It has no policy, retries nothing (except after EINTR, PEP 475) and translates nothing; the callers decide what an
errno means (`errno_of`), and may use `typed` to make it one of atomik's errors.  `MUTATING` names the methods that change
something on disk or in the lock table.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat as _stat
import struct
import sys
import time
from _thread import allocate_lock

from atomik.errors import AtomikError, UnsupportedFilesystemError, os_args, system_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType, TracebackType
    from typing import Any, NoReturn

    from .libc import Status

if not hasattr(os, "O_PATH"):
    raise ImportError("atomik needs os.O_PATH, which this Python does not have (PyPy): use CPython 3.11 or later")

NOREPLACE = 1
EXCHANGE = 2

AT_FDCWD = -100

RESOLVE_NO_XDEV = 1
RESOLVE_NO_MAGICLINKS = 2
RESOLVE_NO_SYMLINKS = 4
RESOLVE_BENEATH = 8

_MOUNT_TOLD = 0x1000 | 0x4000  # STATX_MNT_ID, STATX_MNT_ID_UNIQUE

#: errno of a path in /proc that is not there, or closed by AppArmor or Landlock
NO_PROC = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM})

MUTATING = frozenset(
    """
    open_tmpfile create mkdir mknod link link_fd symlink rename unlink rmdir
    write pwrite truncate clone copy_range fsync fdatasync syncfs start_writeback write_back flock announce_writer pin
    fchmod fchown lchown chmod fchmodat2 setxattr removexattr setxattr_of removexattr_of utime futime
    """.split()  # noqa: SIM905  thirty quoted words are harder to read
)

_CLOEXEC = os.O_CLOEXEC
_CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

#: errno of a folder that is open, and cannot be opened again
_NOT_AGAIN = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ESTALE})

#: ``struct fiemap`` (start, length, flags, mapped, count, reserved): whether a file has extents; none is returned
_NO_EXTENTS = struct.pack("=QQLLLL", 0, 2**64 - 1, 0, 0, 0, 0)

#: ``struct xfs_fsop_geom_v1``, padded to the alignment of a long long, which is 4 on i386; the tenth number is rtblocks
_XFS_GEOMETRY = struct.Struct("@8I4Q16s2Ii4I0Q")

#: ``struct fsxattr``: flags, two words about extents, the project id, one more
_FSXATTR = struct.Struct("=IIIII8x")
_PROJECT_INHERITED = 0x200

#: errno of an ioctl(2) that the filesystem, or a filter, does not have
_NO_IOCTL = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EACCES})

_c: ModuleType | None = None


def libc() -> Any:
    """The ctypes bindings, imported when first needed (see there)."""
    global _c  # noqa: PLW0603  loaded once, when first needed
    if _c is None:
        from atomik._system import libc as module

        _c = module
    return _c


#: ``name.encode(_ENCODING, _ERRORS)`` is what os.fsencode makes of a str, at a third of the time.
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


#: How a seccomp filter, or a kernel that is too old, answers a call that it does not let pass.
SANDBOXED = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})

#: The same from the C library: glibc turns ENOSYS of renameat2 with flags into EINVAL.
_MISSING = SANDBOXED | {errno.EINVAL}

#: A descriptor that is never open: every kernel that has the call says EBADF.
_NO_FD = 0x7FFFFFFF


def sandboxed(call: str) -> str | None:
    """Why a sandbox, or the kernel's age, keeps this process from making a system call at all, in words for an error; None
    if the call reaches the kernel, so that its answer is about the file.

    The call is made with a descriptor that is not open; `_HARMLESS` has the calls that can be tried.
    """
    c = libc()
    try:
        if _HARMLESS[call](c) == -1:
            raise OSError(c.errno(), "")
    except OSError as exc:
        number = errno_of(exc)
        if number is None:
            raise
        if number == errno.ENOSYS and c.INTERFACE is None:
            return f"atomik does not know the number of {call} on this machine ({c.MACHINE})"
        if number in _MISSING:
            return f"a sandbox or seccomp filter refuses {call}, or the kernel is too old for it"
    return None


def _rename_plainly(c: Any) -> None:
    """Either call will do, see `Kernel.rename`."""
    if c.renameat2_itself(_NO_FD, b"x", _NO_FD, b"x", 0) < 0 and c.errno() in SANDBOXED:
        os.rename("x", "x", src_dir_fd=_NO_FD, dst_dir_fd=_NO_FD)


_HARMLESS: dict[str, Callable[[Any], object]] = {
    "O_TMPFILE": lambda _: os.open(".", os.O_TMPFILE | os.O_RDWR, dir_fd=_NO_FD),
    "utimensat": lambda _: os.utime("x", dir_fd=_NO_FD),
    "mkdirat": lambda _: os.mkdir("x", dir_fd=_NO_FD),
    "renameat": _rename_plainly,
    "unlinkat": lambda _: os.unlink("x", dir_fd=_NO_FD),
    "newfstatat": lambda _: os.stat("x", dir_fd=_NO_FD, follow_symlinks=False),
    "fcntl": lambda _: fcntl.fcntl(_NO_FD, fcntl.F_GETFL),
    "getdents64": lambda c: c.getdents64 and c.getdents64(_NO_FD, None, 0),
    "pread64": lambda _: os.pread(_NO_FD, 1, 0),
    "pwrite64": lambda _: os.pwrite(_NO_FD, b"x", 0),
    "lseek": lambda _: os.lseek(_NO_FD, 0, os.SEEK_CUR),
    "fsync": lambda _: os.fsync(_NO_FD),
    "openat2": lambda c: c.openat2(_NO_FD, b"x", 0, 0),
    "renameat2": lambda c: c.renameat2(_NO_FD, b"x", _NO_FD, b"x", NOREPLACE),
    "linkat": lambda c: c.linkat(_NO_FD, b"x", _NO_FD, b"x", 0),
    "syncfs": lambda c: c.syncfs(_NO_FD),
    "sync_file_range": lambda c: c.write_back(_NO_FD),
    "flock": lambda c: c.flock(_NO_FD, fcntl.LOCK_UN),
    "name_to_handle_at": lambda c: -1 if c.handle(_NO_FD, b"x", 0) is None else 0,
}


#: Without these a private folder could be made and not be removed, or recovery not do its work.
_NEEDED = (
    "mkdirat",
    "unlinkat",
    "renameat",
    "newfstatat",
    "fcntl",
    "getdents64",
    "pread64",
    "pwrite64",
    "lseek",
    "fsync",
)


@functools.cache
def refused_calls() -> str:
    """Which of the calls that everything needs is refused by a sandbox, in words for an error; "" if none is."""
    return next((why for call in _NEEDED if (why := sandboxed(call))), "")


def fsync_is_ignored() -> bool:
    """Whether a seccomp filter answers fsync(2) without syncing, as ``systemd-nspawn --suppress-sync`` does."""
    try:
        os.fsync(_NO_FD)
    except OSError as exc:
        if errno_of(exc) is None:
            raise
        return False
    return True


def sleep(seconds: float) -> None:
    """clock_nanosleep(2); where a sandbox refuses it, futex(2): a lock that nobody releases."""
    try:
        time.sleep(seconds)
    except OSError as exc:
        if errno_of(exc) not in SANDBOXED:
            raise
        lock = allocate_lock()
        lock.acquire()
        lock.acquire(timeout=seconds)


def end_with(parent: int, signal: int) -> None:
    """In a child, after everything that changes its credentials: get the signal when `parent`, which forked it, dies."""
    port.end_with_parent(signal)
    if os.getppid() != parent:  # it died before the kernel knew
        os._exit(125)


def _raise(names: tuple[str, ...], call: str = "") -> NoReturn:
    """Raise the `OSError` of the ctypes call that just failed."""
    c = libc()
    number = c.errno()
    text = os.strerror(number)
    if call and number in _MISSING and (why := sandboxed(call)):
        number, text = errno.ENOSYS, why  # so that all fallbacks treat it as a missing call
    elif number == errno.ENOSYS and c.INTERFACE is None:
        text += f"; atomik does not know the numbers of system calls on this machine ({c.MACHINE})"
    if len(names) == 2:
        raise OSError(number, text, names[0], None, names[1])
    raise OSError(number, text, *names)


#: ``struct flock`` of a program with large files: kind, whence, start, length, process id
_FLOCK = struct.Struct("@hhqqi4x")
#: the byte of an open folder on which readers that have pinned it hold read locks; writers that wait have the others
_PINNED = 0


class Kernel:
    """The real kernel.  ``dir_fd`` is always an open folder; names are single components unless said otherwise."""

    __slots__ = ("__dict__",)

    # --- opening -------------------------------------------------------------------------------------------------
    def open(self, path: str, flags: int, dir_fd: int | None = None) -> int:
        """openat(2) of something that exists; close-on-exec, like all descriptors here."""
        return os.open(path, flags | _CLOEXEC, dir_fd=dir_fd)

    def open_beneath(self, path: str, flags: int, dir_fd: int, resolve: int) -> int:
        """openat2(2) with restrictions on how the path may be resolved (Linux 5.6)."""
        c = _c or libc()
        while (fd := c.openat2(dir_fd, path.encode(_ENCODING, _ERRORS), flags | os.O_CLOEXEC, resolve)) < 0:
            if c.errno() not in (errno.EINTR, errno.EAGAIN):  # EAGAIN: a rename raced with the resolution
                _raise((path,), "openat2")
        return fd  # type: ignore[no-any-return]

    def open_tmpfile(self, dir_fd: int, flags: int, mode: int) -> int:
        """An unnamed file in the folder (O_TMPFILE, Linux 3.11); the kernel applies umask and default ACLs."""
        try:
            return os.open(".", os.O_TMPFILE | flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)
        except PermissionError as exc:
            if errno_of(exc) is None or (why := sandboxed("O_TMPFILE")) is None:
                raise
            raise OSError(errno.ENOSYS, why) from exc

    def create(self, name: str, flags: int, mode: int, dir_fd: int) -> int:
        """A new named file; EEXIST when the name is taken, also by a dangling link."""
        return os.open(name, flags | _CREATE, mode, dir_fd=dir_fd)

    #: close(2).  Writeback errors are not reported here, but by `fsync`.
    close = staticmethod(os.close)

    # --- names ---------------------------------------------------------------------------------------------------
    def mkdir(self, name: str, mode: int, dir_fd: int | None) -> None:
        """mkdirat(2)."""
        os.mkdir(name, mode, dir_fd=dir_fd)

    def mknod(self, name: str, mode: int, device: int, dir_fd: int) -> None:
        """mknodat(2), for FIFOs, sockets and devices in a cloned tree."""
        os.mknod(name, mode, device, dir_fd=dir_fd)

    def symlink(self, target: str, name: str, dir_fd: int) -> None:
        """symlinkat(2)."""
        os.symlink(target, name, dir_fd=dir_fd)

    def link(self, src: str, src_fd: int, dst: str, dst_fd: int) -> None:
        """linkat(2); a symlink gets a second name itself."""
        os.link(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd, follow_symlinks=False)

    def link_fd(self, fd: int, dst: str, dst_fd: int) -> None:
        """Give an unnamed file a name: linkat(2) with AT_EMPTY_PATH, which needs the rights that the file was opened with
        (Linux 6.10) or CAP_DAC_READ_SEARCH; else through /proc, which takes half as long again."""
        c = _c or libc()
        if c.linkat(fd, b"", dst_fd, dst.encode(_ENCODING, _ERRORS), c.AT_EMPTY_PATH) < 0:
            if c.errno() != errno.ENOENT:
                _raise((dst,), "linkat")
            # Passing dst_dir_fd makes CPython call linkat with AT_SYMLINK_FOLLOW; plain link() would give EXDEV.
            os.link(f"/proc/self/fd/{fd}", dst, dst_dir_fd=dst_fd, follow_symlinks=True)

    def rename(self, src: str, src_fd: int, dst: str, dst_fd: int, flags: int) -> None:
        """renameat2(2) (Linux 3.15) with 0, `NOREPLACE` or `EXCHANGE`; without flags renameat(2) serves as well."""
        if "\0" in src or "\0" in dst:  # C would take the name to end there, and rename something else
            raise ValueError("embedded null character")
        c = _c or libc()
        names = src_fd, src.encode(_ENCODING, _ERRORS), dst_fd, dst.encode(_ENCODING, _ERRORS), flags
        if c.renameat2(*names) >= 0:
            return
        if not flags and c.errno() in SANDBOXED:  # glibc called renameat(2): a filter may refuse one and not the other
            if c.renameat2_itself(*names) >= 0:
                return
            if c.errno() in SANDBOXED:
                os.rename(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)
                return
        _raise((src, dst), "renameat2")

    def rename_to_itself(self, name: str, dir_fd: int) -> None:
        """renameat(2) of a name to the same one, which changes nothing and is no event: Landlock answers as it would to its
        removal."""
        Kernel.rename(self, name, dir_fd, name, dir_fd, 0)

    def unlink_folder(self, name: str, dir_fd: int) -> None:
        """unlinkat(2) of a folder of ours as if it were a file, which is EISDIR; Landlock answers as it would to the removal
        of a file."""
        os.unlink(name, dir_fd=dir_fd)

    def unlink(self, name: str, dir_fd: int) -> None:
        """unlinkat(2) of anything but a folder."""
        os.unlink(name, dir_fd=dir_fd)

    def rmdir(self, name: str, dir_fd: int | None) -> None:
        """unlinkat(2) of an empty folder."""
        os.rmdir(name, dir_fd=dir_fd)

    # --- content -------------------------------------------------------------------------------------------------
    #: write(2); may be short.
    write = staticmethod(os.write)

    #: pwrite(2); may be short.
    pwrite = staticmethod(os.pwrite)

    #: pread(2).
    pread = staticmethod(os.pread)

    #: ftruncate(2).
    truncate = staticmethod(os.ftruncate)

    def clone(self, dst_fd: int, src_fd: int) -> None:
        """FICLONE, ioctl_ficlonerange(2): share all extents (btrfs, xfs with reflink, bcachefs …)."""
        fcntl.ioctl(dst_fd, (_c or libc()).FICLONE, src_fd)

    def has_extents(self, fd: int) -> bool:
        """FS_IOC_FIEMAP: whether a file has a map to blocks of a device; overlayfs asks the filesystem below it, and one that
        lives in memory has none."""
        try:
            fcntl.ioctl(fd, (_c or libc()).FS_IOC_FIEMAP, _NO_EXTENTS)
        except OSError as exc:
            if errno_of(exc) not in _NO_IOCTL:
                raise
            return False
        return True

    def project(self, fd: int) -> tuple[int, bool] | None:
        """FS_IOC_FSGETXATTR: the project id, and whether a folder passes it on; None where there are none."""
        try:
            found = fcntl.ioctl(fd, (_c or libc()).FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
        except OSError as exc:
            if errno_of(exc) not in _NO_IOCTL:
                raise
            return None
        flags, _, _, project, _ = _FSXATTR.unpack(found)
        return project, bool(flags & _PROJECT_INHERITED)

    #: copy_file_range(2) (Linux 4.5; across filesystems since 5.3): source, target, count, and the offsets in both.
    copy_range = staticmethod(os.copy_file_range)

    #: lseek(2), with SEEK_DATA and SEEK_HOLE for sparse files.
    seek = staticmethod(os.lseek)

    # --- durability ----------------------------------------------------------------------------------------------
    #: fsync(2): the file or folder, with what is needed to find it.
    fsync = staticmethod(os.fsync)

    #: fdatasync(2): content, and metadata only as far as reading the content needs it (its size).
    fdatasync = staticmethod(os.fdatasync)

    def syncfs(self, fd: int) -> None:
        """syncfs(2): the whole filesystem; reports writeback errors since Linux 5.8."""
        if libc().syncfs(fd) < 0:
            _raise((), "syncfs")

    def start_writeback(self, fd: int) -> None:
        """sync_file_range(2), SYNC_FILE_RANGE_WRITE: start, do not wait.  A head start, never a guarantee."""
        if libc().start_writeback(fd) < 0:
            _raise(())

    def has_realtime(self, fd: int) -> bool | None:
        """XFS_IOC_FSGEOMETRY_V1, ioctl_xfs_fsgeometry(2): whether there is a realtime section; None if unknown."""
        geometry = bytearray(_XFS_GEOMETRY.size)
        try:
            fcntl.ioctl(fd, (_c or libc()).xfs_geometry(len(geometry)), geometry)
        except OSError as exc:
            if errno_of(exc) is None:
                raise
            return None
        return bool(_XFS_GEOMETRY.unpack(geometry)[9])

    def write_back(self, fd: int) -> None:
        """sync_file_range(2), SYNC_FILE_RANGE_WRITE_AND_WAIT: the content was given to the device, and an error of writeback
        is reported.  It may still be in the device's cache, and the metadata needed to find it may be only in memory.  It is
        durable after the next sync that forces the filesystem's log, on filesystems where that is known
        (`Filesystem.one_log`).  WB_SYNC_ALL since Linux 5.2."""
        if libc().write_back(fd) < 0:
            _raise((), "sync_file_range")

    #: flock(2); with LOCK_NB it raises BlockingIOError while another process holds the lock.
    flock = staticmethod(fcntl.flock)

    def announce_writer(self, fd: int, ticket: int) -> None:
        """fcntl(2), F_OFD_SETLK (Linux 3.15): a read lock on one byte of an open folder.  It delays nobody, is independent
        of flock(2), and ends with the descriptor; `writer_is_waiting` and `earlier` see it.  The byte's offset is the
        `ticket`, a moment in time; 0 removes the lock."""
        kind, length = (fcntl.F_RDLCK, 1) if ticket else (fcntl.F_UNLCK, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, int(ticket), length, 0))

    def writer_is_waiting(self, fd: int) -> bool:
        """fcntl(2), F_OFD_GETLK: whether another writer has announced itself."""
        return self.earlier(fd, 0, 0) is not None

    def earlier(self, fd: int, first: int, end: int) -> int | None:
        """fcntl(2), F_OFD_GETLK: another writer's ticket, from `first` on and before `end` (0: no end); usually the first
        writer's."""
        first = max(first, _PINNED + 1)
        return self._locked(fd, first, end and end - first)

    def _locked(self, fd: int, first: int, length: int) -> int | None:
        """The first byte of another holder's read lock in that range."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, length, 0)
        kind, _, at, _, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
        return None if kind == fcntl.F_UNLCK else at

    def pin(self, fd: int) -> None:
        """fcntl(2), F_OFD_SETLK: a read lock on an open folder that says "this version is being read".  It delays nobody, and
        ends with the last copy of the descriptor."""
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _PINNED, 1, 0))

    def is_pinned(self, fd: int) -> bool:
        """fcntl(2), F_OFD_GETLK: whether the folder is pinned through another descriptor."""
        return self._locked(fd, _PINNED, 1) is not None

    # --- attributes ----------------------------------------------------------------------------------------------
    #: fchmod(2).
    fchmod = staticmethod(os.fchmod)

    #: fchown(2); -1 leaves an id as it is.
    fchown = staticmethod(os.fchown)

    def lchown(self, name: str, uid: int, gid: int, dir_fd: int) -> None:
        """fchownat(2) that does not follow a link."""
        os.chown(name, uid, gid, dir_fd=dir_fd, follow_symlinks=False)

    def utime(self, name: str, ns: tuple[int, int], dir_fd: int) -> None:
        """utimensat(2) that does not follow a link."""
        os.utime(name, ns=ns, dir_fd=dir_fd, follow_symlinks=False)

    def futime(self, fd: int, ns: tuple[int, int]) -> None:
        """futimens(3): (access, modification) in nanoseconds."""
        os.utime(fd, ns=ns)

    def fchmodat2(self, path_fd: int, mode: int) -> None:
        """fchmodat2(2) (Linux 6.6) of what a descriptor holds, also one that was opened with O_PATH."""
        c = _c or libc()
        if c.fchmodat2(path_fd, b"", mode, c.AT_EMPTY_PATH) < 0:
            _raise(())

    #: chmod(2) of ``/proc/self/fd/N``: what can be opened with O_PATH only, which fchmod(2) refuses (EBADF).
    chmod = staticmethod(os.chmod)

    #: flistxattr(2).
    listxattr = staticmethod(os.listxattr)

    #: fgetxattr(2).
    getxattr = staticmethod(os.getxattr)

    #: fsetxattr(2).
    setxattr = staticmethod(os.setxattr)

    #: fremovexattr(2).
    removexattr = staticmethod(os.removexattr)

    #: listxattr(2) of ``/proc/self/fd/N``, for an O_PATH descriptor; with one of a link, the link's own.
    listxattr_of = staticmethod(os.listxattr)

    #: getxattr(2), in the same way.
    getxattr_of = staticmethod(os.getxattr)

    #: setxattr(2), in the same way.
    setxattr_of = staticmethod(os.setxattr)

    #: removexattr(2), in the same way.
    removexattr_of = staticmethod(os.removexattr)

    def has_xattrs(self, name: str, dir_fd: int) -> bool:
        """listxattrat(2) (Linux 6.13), else llistxattr(2) through /proc, else flistxattr(2): whether it has any; of a
        link, the link's own."""
        c = _c or libc()
        size = c.listxattrat(dir_fd, name.encode(_ENCODING, _ERRORS), c.AT_SYMLINK_NOFOLLOW)
        if size < 0:
            if c.errno() not in SANDBOXED:
                _raise((name,))
            try:
                return bool(os.listxattr(f"/proc/self/fd/{dir_fd}/{name}", follow_symlinks=False))
            except OSError as exc:
                if errno_of(exc) not in NO_PROC:
                    raise
            return _has_xattrs_when_opened(name, dir_fd)
        return bool(size)

    # --- looking -------------------------------------------------------------------------------------------------
    #: fstat(2).
    fstat = staticmethod(os.fstat)

    def lstat(self, name: str, dir_fd: int | None) -> os.stat_result:
        """fstatat(2) that does not follow a link."""
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)

    #: stat(2) of a whole path, links followed.
    stat = staticmethod(os.stat)

    def exists(self, name: str, dir_fd: int) -> bool:
        """statx(2): is there anything of that name, also a dangling link?  A folder that cannot be searched is an error, not
        False; faccessat(2) would be quicker, but `os.access` returns False for all errors, even if a filter forbids it."""
        c = _c or libc()
        if c.exists(dir_fd, name.encode(_ENCODING, _ERRORS)):
            return True
        number = c.errno()
        if number in SANDBOXED:
            try:
                os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            except FileNotFoundError as exc:
                if errno_of(exc) is None:
                    raise
                return False
            return True
        if number != errno.ENOENT:
            _raise((name,))
        return False

    def may_write(self, name: str, dir_fd: int) -> bool:
        """faccessat(2), AT_EACCESS: may the effective user write to it?"""
        return os.access(name, os.W_OK, dir_fd=dir_fd, effective_ids=True)

    def readlink(self, name: str, dir_fd: int | None = None) -> str:
        """readlinkat(2)."""
        return os.readlink(name, dir_fd=dir_fd)

    @contextlib.contextmanager
    def scandir(self, fd: int) -> Iterator[Iterator[os.DirEntry[str]]]:
        """getdents64(2) of an open folder, as it is now; the entries are good inside the block.

        So the folder is opened again: some FUSE servers (disorderfs) list forever what was there when it was opened.  Where
        that is refused (without search permission, or when the folder is gone), it is read from the beginning: btrfs lists
        what was there at the last rewind."""
        fresh = fd
        try:
            try:
                fresh = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            except OSError as exc:
                if errno_of(exc) not in _NOT_AGAIN:
                    raise
                os.lseek(fd, 0, os.SEEK_SET)
            with os.scandir(fresh) as entries:
                yield entries
        finally:
            if fresh != fd:
                os.close(fresh)

    def statx(self, fd: int, name: str = "") -> Status:
        """statx(2) of an open object (AT_EMPTY_PATH), or of a name in an open folder (AT_SYMLINK_NOFOLLOW); without times
        (see `libc`).

        Where a sandbox refuses it, fstatat(2).  Where it has no mount id (before Linux 5.8), name_to_handle_at(2) or
        /proc/self/fdinfo tells it."""
        c = _c or libc()
        found: Status | None = c.statx(fd, name.encode(_ENCODING, _ERRORS), 0x100 if name else 0x1000)
        if found is not None and found[0] & _MOUNT_TOLD:
            return found
        if found is None:
            if c.errno() not in SANDBOXED:
                _raise((name,))
            plain = os.stat(name, dir_fd=fd, follow_symlinks=False) if name else os.fstat(fd)
            found = c.plain_status(plain)
        mount = _mount_of(fd, name)
        return found if mount is None else found.on_mount(mount)

    def statx_path(self, path: str, dir_fd: int) -> Status:
        """statx(2) of a whole path, links followed; its mount id only if statx returns it."""
        c = _c or libc()
        found: Status | None = c.statx(dir_fd, path.encode(_ENCODING, _ERRORS), 0)
        if found is None:
            if c.errno() not in SANDBOXED:
                _raise((path,))
            found = c.plain_status(os.stat(path, dir_fd=None if dir_fd == AT_FDCWD else dir_fd))
        return found

    def filesystem_magic(self, fd: int) -> int:
        """fstatfs(2): the type of the filesystem."""
        found: int | None = libc().magic_of(fd)
        if found is None:
            _raise(())
        return found

    def handle(self, name: str, dir_fd: int, flags: int) -> bytes:
        """name_to_handle_at(2), unprivileged: type and handle; AT_HANDLE_FID in `flags`."""
        c = _c or libc()
        found: bytes | None = c.handle(dir_fd, name.encode(_ENCODING, _ERRORS), flags if name else flags | 0x1000)
        if found is None:
            _raise((name,))
        return found

    def watch(self, path: str, events: int) -> int:
        """inotify_init1(2) and inotify_add_watch(2): a descriptor that returns the events of a folder, and never blocks."""
        c = _c or libc()
        fd: int = c.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            _raise(())
        if c.inotify_add_watch(fd, path.encode(_ENCODING, _ERRORS), events) < 0:
            try:
                _raise((path,))
            finally:
                os.close(fd)
        return fd

    #: read(2).
    read = staticmethod(os.read)

    # --- a child that is about to become a program (see `namespace`) ---------------------------------------------
    #: fchdir(2).
    fchdir = staticmethod(os.fchdir)

    #: chdir(2).
    chdir = staticmethod(os.chdir)

    def unshare(self, flags: int) -> None:
        """unshare(2): CLONE_NEWNS, CLONE_NEWUSER."""
        if libc().unshare(flags) < 0:
            _raise(())

    def make_mounts_private(self) -> None:
        """mount(2) of "/", MS_REC | MS_PRIVATE: what is mounted from now on stays in this mount namespace."""
        if libc().make_mounts_private() < 0:
            _raise(())

    def copy_mount(self, path_fd: int) -> int:
        """open_tree(2), OPEN_TREE_CLONE (Linux 5.2): a detached mount of the folder that a descriptor holds."""
        fd: int = libc().copy_mount(path_fd)
        if fd < 0:
            _raise(())
        return fd

    def attach_mount(self, tree_fd: int, path_fd: int) -> None:
        """move_mount(2) (Linux 5.2): attach a detached mount to the folder that a descriptor holds."""
        if libc().attach_mount(tree_fd, path_fd) < 0:
            _raise(())

    def mount_overlay(self, lower: int, upper: int, work: int, options: str) -> None:
        """mount(2) of an overlay over its own lower layer, with that one's restrictions; all three by their descriptors, for
        paths may hold what the options mean otherwise."""
        layers = f"lowerdir=/proc/self/fd/{lower},upperdir=/proc/self/fd/{upper},workdir=/proc/self/fd/{work},{options}"
        flags = os.fstatvfs(lower).f_flag & (
            os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
        )  # the numbers are those of MS_NOSUID …
        if libc().mount_overlay(b"/proc/self/fd/%d" % lower, layers.encode(), flags) < 0:
            _raise(())

    def end_with_parent(self, signal: int) -> None:
        """prctl(2), PR_SET_PDEATHSIG: the signal that this process gets when its parent dies."""
        if libc().end_with_parent(signal) < 0:
            _raise(())

    def bounding_set(self) -> list[int]:
        """prctl(2), PR_CAPBSET_READ: the capabilities(7) that a program executed by user 0 gets."""
        return [number for number in range(64) if libc().may_gain(number) == 1]

    def bound(self, capabilities: list[int]) -> None:
        """prctl(2), PR_CAPBSET_DROP: all but these leave that set for good."""
        for number in set(self.bounding_set()).difference(capabilities):
            if libc().never_gain(number) < 0:
                _raise(())

    def adopt_orphans(self) -> None:
        """prctl(2), PR_SET_CHILD_SUBREAPER (Linux 3.4): descendants whose parent died become children of this process."""
        if libc().adopt_orphans() < 0:
            _raise(())


def _mount_of(fd: int, name: str) -> int | None:
    """The id of the mount on which something is, if statx(2) does not return it."""
    c = libc()
    flags = 0 if name else c.AT_EMPTY_PATH
    for more in (0, c.AT_HANDLE_FID):
        found: int | None = c.mount_of(fd, name.encode(_ENCODING, _ERRORS), flags | more)
        if found is not None:
            return found
    path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd) if name else fd
    try:
        return _mount_in_fdinfo(path_fd)
    finally:
        if name:
            os.close(path_fd)


def _mount_in_fdinfo(fd: int) -> int | None:
    """``mnt_id`` of /proc/PID/fdinfo (Linux 3.15)."""
    try:
        info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        if errno_of(exc) not in NO_PROC:
            raise
        return None
    try:
        lines = os.read(info, 4096).split(b"\n")
    finally:
        os.close(info)
    return next((int(line[7:]) for line in lines if line.startswith(b"mnt_id:")), None)


def _has_xattrs_when_opened(name: str, dir_fd: int) -> bool:
    mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    if not is_file(mode) and not is_folder(mode):  # to open it might have effects
        raise OSError(errno.ENOSYS, "neither listxattrat nor /proc is there to ask for its attributes", name)
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return bool(os.listxattr(fd))
    finally:
        os.close(fd)


port: Kernel = Kernel()

#: where the package's code says that it is: what was compiled elsewhere, and has no source any more, keeps that path
_PACKAGE = os.path.dirname(os.path.dirname(Kernel.open.__code__.co_filename)) + os.sep
#: the package's code, and that of the context managers in between
_OURS = (_PACKAGE, contextlib.contextmanager.__code__.co_filename)
#: what passes through these was raised by a function of the program: they make no call of the kernel
_OF_THE_PROGRAM = frozenset({_PACKAGE + "_progress.py", _PACKAGE + "_events.py"})


def errno_of(exc: OSError) -> int | None:
    """The errno of the kernel's own answer; None for what something else raised, such as a signal handler (I13).

    CPython runs a signal handler when the C call returns, inside whatever ``try`` surrounds the call, so a handler's
    TimeoutError or FileNotFoundError arrives where the kernel's would.  The kernel's answer is raised by the call itself:
    the innermost frame is the package's, or that of the object that was put in the port's place.
    """
    trace, inside = exc.__traceback__, False
    if trace is None or exc.errno is None or isinstance(exc, AtomikError):
        return None
    while trace.tb_next is not None:
        file = trace.tb_frame.f_code.co_filename
        if file in _OF_THE_PROGRAM:
            return None
        inside = file.startswith(_PACKAGE)
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    if code.co_filename in _OF_THE_PROGRAM:  # a function in C
        return None
    if code.co_filename.startswith(_PACKAGE) or isinstance(trace.tb_frame.f_locals.get("self"), Kernel):
        return exc.errno
    replaced = (getattr(method, "__code__", None) for method in vars(port).values())
    return exc.errno if inside and code in replaced else None


def is_failure(exc: OSError) -> bool:
    """Whether something failed, as the kernel or atomik says; False for what a signal handler or another function of the
    program raised (I13), even if that is an error of atomik: it may call atomik itself."""
    return errno_of(exc) is not None or (isinstance(exc, AtomikError) and not _is_of_the_program(exc))


def _is_of_the_program(exc: BaseException) -> bool:
    """Whether it passed through a frame that is not the package's."""
    trace = exc.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file in _OF_THE_PROGRAM or not file.startswith(_OURS):
            return True
        trace = trace.tb_next
    return False


def came_from_elsewhere(exc: BaseException) -> bool:
    """Whether an exception that was caught around one call of C was raised by something else, such as a signal handler: for
    calls that raise no errno."""
    return exc.__traceback__ is not None and exc.__traceback__.tb_next is not None


def is_no_thread(exc: RuntimeError) -> bool:
    """Whether it is what ``Thread.start`` says where there are no more threads, or the interpreter is about to end, and not
    what a signal handler raised in it (I13)."""
    return str(exc).startswith(("can't start new thread", "can't create new thread"))


def came_from_import(exc: BaseException) -> bool:
    """Whether the innermost frame is that of an import, and not one of a signal handler."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith("<frozen importlib")


def close_all(fds: list[int]) -> None:
    """Close all of them, the last first, whatever exceptions arrive; the last one is raised at the end."""
    try:
        while fds:
            port.close(fds.pop())
    finally:
        if fds:
            close_all(fds)


def told(path: str, size: int = 64) -> bytes:
    """The content of a small file in /proc or /sys; empty if it cannot be read, as when the thread that it is about has
    ended (ESRCH)."""
    try:
        fd = port.open(path, os.O_RDONLY)
        try:
            return port.pread(fd, size, 0)
        finally:
            port.close(fd)
    except OSError as exc:
        if errno_of(exc) is None:
            raise
        return b""


class typed:  # noqa: N801  used like a function; one made by `contextlib.contextmanager` takes twice as many calls
    """Turn the kernel's answers in the block into atomik's errors, which say what was tried and with which path; what a
    signal handler raised goes on unchanged (I13)."""

    __slots__ = ("_action", "_path")

    def __init__(self, action: str, path: str) -> None:
        self._action, self._path = action, path

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(exc, OSError) and errno_of(exc) is not None:
            raise system_error(exc, self._action, self._path) from exc


def install(kernel: Kernel) -> Kernel:
    """Replace the present kernel by `kernel`, for tests; returns the one it replaces."""
    global port
    before, port = port, kernel
    return before


#: What a ``st_mode`` is of, in C: for each file it is asked several times.
is_folder, is_file, is_link = _stat.S_ISDIR, _stat.S_ISREG, _stat.S_ISLNK


def is_device(mode: int) -> bool:
    """Whether a ``st_mode`` is that of a block or character device."""
    return _stat.S_ISBLK(mode) or _stat.S_ISCHR(mode)


_MODULE = type(errno)


def refuse_fake(path: str | None = None) -> None:
    """pyfakefs replaces the module `os` by objects of its own, everywhere.  Half of our calls would go to its files in
    memory and half to the real disk, and what is imported in that time would keep the fake forever."""
    if type(os) is not _MODULE:
        text = (
            "a test has replaced the module os by a fake (pyfakefs), but atomik calls the kernel and cannot write to "
            "files in memory; use pytest's tmp_path in tests that call atomik, or pause the fake (fs.pause())"
        )
        raise UnsupportedFilesystemError(*os_args(errno.ENOSYS, text, path))
