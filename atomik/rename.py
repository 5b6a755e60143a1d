"""Bare system calls: one renameat2(2) each, with both paths in the error.

They do not sync: fsync the parents yourself, or use `atomik.file` and so on.  Names are passed as bytes, so names that are
not valid UTF-8 work.  Descriptors of folders are accepted wherever a path may be relative.
"""

from __future__ import annotations

import errno
import os
from operator import index

from . import errors as _errors
from ._system import kernel
from .flags import Flag, formerly

__all__ = ["exchange", "rename", "renameat2", "swap"]

StrOrBytesPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_BITS = {Flag.RENAME: 0, Flag.RENAME_NOREPLACE: kernel.NOREPLACE, Flag.RENAME_EXCHANGE: kernel.EXCHANGE}


@formerly(src_path="src", dst_path="dst", oldpath="src", newpath="dst")
def rename(
    src: StrOrBytesPath,
    dst: StrOrBytesPath,
    flag: Flag = Flag.RENAME_NOREPLACE,
    *,
    src_dir_fd: int | None = None,
    dst_dir_fd: int | None = None,
    replace: bool | None = None,
    whiteout: bool = False,
) -> None:
    """Rename `src` to `dst`; by default without replacing anything.

    :param src: what to rename: str, bytes or path; a relative one starts from the open folder `src_dir_fd`, if given.
    :param dst: the new name, on the same filesystem; a relative one starts from `dst_dir_fd`, if given.
    :param flag: `Flag.RENAME_NOREPLACE`, `Flag.RENAME` (replace, as rename(2)) or `Flag.RENAME_EXCHANGE`.
    :param int src_dir_fd: the descriptor of an open folder.
    :param int dst_dir_fd: the descriptor of an open folder.
    :param replace: for programs written for the package renameat2: true is `Flag.RENAME`, false `Flag.RENAME_NOREPLACE`.
    :param whiteout: leave a whiteout of an overlay at `src` (RENAME_WHITEOUT; needs CAP_MKNOD).
    :raises atomik.errors.InvalidDestinationError: a NUL in a name, or a name that is too long.
    :raises atomik.errors.FileAlreadyExistsError: `dst` exists (EEXIST, or ENOTEMPTY for a folder).
    :raises atomik.errors.CrossFilesystemError: two filesystems or mounts (EXDEV); ``devices`` has both ``st_dev``.
    :raises atomik.errors.UnsupportedFilesystemError: the filesystem or kernel lacks the flag (EINVAL, ENOSYS).
    :raises atomik.errors.MissingPathError: `src`, a parent, or for an exchange `dst`, is missing (ENOENT).
    :raises atomik.errors.AtomikOSError: everything else, with errno; all of them have ``filename`` and ``filename2``.

    Guarantee: one system call, so no observer sees an intermediate state.  Limit: no sync.  Source: renameat2(2), Linux 3.15;
    support by filesystem in the documentation under "capabilities".
    """
    renameat2(
        kernel.AT_FDCWD if src_dir_fd is None else src_dir_fd,
        src,
        kernel.AT_FDCWD if dst_dir_fd is None else dst_dir_fd,
        dst,
        _BITS[Flag(flag) if replace is None else Flag.RENAME if replace else Flag.RENAME_NOREPLACE] | whiteout << 2,
    )


@formerly(olddirfd="src_dir_fd", oldpath="src", newdirfd="dst_dir_fd", newpath="dst")
def renameat2(src_dir_fd: int, src: StrOrBytesPath, dst_dir_fd: int, dst: StrOrBytesPath, flags: int = 0) -> None:
    """The system call as it is.

    :param int src_dir_fd: the open folder from which a relative `src` starts; -100 (AT_FDCWD): the current folder.
    :param src: what to rename: str, bytes or path object.
    :param int dst_dir_fd: the same for `dst`.
    :param dst: the new name.
    :param int flags: bits: 1 NOREPLACE, 2 EXCHANGE, 4 WHITEOUT.

    Raises like `rename`.  Source: renameat2(2), Linux 3.15.
    """
    source, target = os.fsdecode(src), os.fsdecode(dst)
    try:
        kernel.port.rename(source, index(src_dir_fd), target, index(dst_dir_fd), int(flags))
    except OSError as exc:
        if kernel.errno_of(exc) is None:  # of a signal handler
            raise
        raise _translate(exc, source, src_dir_fd, target, dst_dir_fd, int(flags)) from None
    except ValueError as exc:  # a NUL in a name
        _errors.fail(_errors.InvalidDestinationError, errno.EINVAL, f"cannot rename: {exc}", source, target)


@formerly(a="first", b="second")
def swap(
    first: StrOrBytesPath,
    second: StrOrBytesPath,
    *,
    first_dir_fd: int | None = None,
    second_dir_fd: int | None = None,
) -> None:
    """Exchange what is at two paths, in one step: files, folders and links, in any combination; both must exist.

    :param first, second: str, bytes or path object, on the same filesystem; a relative one starts from `first_dir_fd` or
        `second_dir_fd`, descriptors of open folders, if given.

    No observer sees one of them missing.  One renameat2(2) with RENAME_EXCHANGE (Linux 3.15) and no sync.
    Raises like `rename`.  `atomik.swap` first makes sure that the filesystem does not ignore the flag.  ``exchange`` is
    the same function.
    """
    rename(first, second, Flag.RENAME_EXCHANGE, src_dir_fd=first_dir_fd, dst_dir_fd=second_dir_fd)


exchange = swap


def _translate(exc: OSError, src: str, src_fd: int, dst: str, dst_fd: int, flags: int) -> _errors.AtomikOSError:
    if exc.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP) and flags in _BITS.values() and flags:
        text = f"cannot rename: {exc.strerror}"
        if exc.strerror == os.strerror(exc.errno):  # else the port has said what it is: a sandbox, or the machine
            text += "; the filesystem lacks the flag, or one path is inside the other"
        return _errors.UnsupportedFilesystemError(*_errors.os_args(exc.errno, text, src, dst))
    if exc.errno in (errno.EEXIST, errno.ENOTEMPTY):  # ENOTEMPTY: a folder with something in it
        text = f"cannot rename: the target already exists ({exc.strerror}); use Flag.RENAME_EXCHANGE to swap the two"
        return _errors.FileAlreadyExistsError(*_errors.os_args(exc.errno, text, src, dst))
    error = _errors.system_error(exc, "cannot rename", src, dst)
    if isinstance(error, _errors.CrossFilesystemError):
        error.devices = (_device(src, src_fd), _device(os.path.dirname(dst) or ".", dst_fd))
    return error


def _device(path: str, dir_fd: int) -> int:
    try:
        return kernel.port.lstat(path, None if dir_fd == kernel.AT_FDCWD else dir_fd).st_dev
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return -1
