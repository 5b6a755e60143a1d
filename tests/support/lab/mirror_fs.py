"""The server behind :mod:`tests.support.lab.passthrough`: one method for each request, done on the real folder."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
import time
from typing import TYPE_CHECKING

from tests.support.lab import fuse_wire, linux
from tests.support.lab.fuse import FileSystem
from tests.support.lab.fuse_wire import ROOT_NODE, Request, Valid
from tests.support.lab.mirror_nodes import Node, NodeTable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_NOT_PASSED_ON = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_DIRECT | os.O_TRUNC
_NANO = 10**9


class Renames(enum.Enum):
    """What the server does when a rename comes with flags."""

    HONOURS = "honours"
    """As the kernel's own filesystems do."""
    REJECTS = "rejects"
    """EINVAL for any flag."""
    IGNORES = "ignores"
    """A plain rename, and success: an exchange destroys what stood at the target."""


class MirrorFileSystem(FileSystem):
    """The folder ``source``, served with the given rename behaviour; the kernel may believe each name for ``seconds``."""

    def __init__(self, source: Path, renames: Renames, seconds: int = 0) -> None:
        self._renames, self._seconds = renames, seconds
        self._nodes = NodeTable(source)
        self._listings: dict[int, list[tuple[int, int, bytes]]] = {}

    def descriptors(self) -> Iterable[int]:
        return (self._nodes[ROOT_NODE].fd,)

    def close(self) -> None:
        """In the parent: let go of the source once the server has its own copy."""
        os.close(self._nodes[ROOT_NODE].fd)

    # --- nodes ---------------------------------------------------------------

    def lookup(self, request: Request) -> bytes:
        return self._entry(request.node, request.name())

    def forget(self, request: Request) -> None:
        (lookups,) = request.unpack(fuse_wire.FORGET_IN)
        self._nodes.forget(request.node, lookups)

    def batch_forget(self, request: Request) -> None:
        (count,) = request.unpack(fuse_wire.BATCH_FORGET_IN)
        rest = request.rest(fuse_wire.BATCH_FORGET_IN)
        for number in range(count):
            self._nodes.forget(*fuse_wire.FORGET_ONE.unpack_from(rest, number * fuse_wire.FORGET_ONE.size))

    def getattr(self, request: Request) -> bytes:
        return _attr_reply(os.stat(self._nodes[request.node].fd))

    def setattr(self, request: Request) -> bytes:
        node = self._nodes[request.node]
        valid, _, size, atime, mtime, atime_ns, mtime_ns, mode, uid, gid = request.unpack(fuse_wire.SETATTR_IN)
        if valid & Valid.SIZE:
            os.truncate(node.path, size)
        if valid & (Valid.UID | Valid.GID):
            os.chown(node.path, uid if valid & Valid.UID else -1, gid if valid & Valid.GID else -1)
        if valid & Valid.MODE:  # after chown, which takes set-id bits away
            os.chmod(node.path, stat.S_IMODE(mode))
        if valid & (Valid.ATIME | Valid.MTIME):
            before = os.stat(node.fd)
            new_atime = time.time_ns() if valid & Valid.ATIME_NOW else atime * _NANO + atime_ns
            new_mtime = time.time_ns() if valid & Valid.MTIME_NOW else mtime * _NANO + mtime_ns
            times = (
                new_atime if valid & Valid.ATIME else before.st_atime_ns,
                new_mtime if valid & Valid.MTIME else before.st_mtime_ns,
            )
            os.utime(node.path, ns=times)
        return _attr_reply(os.stat(node.fd))

    def statfs(self, request: Request) -> bytes:
        found = os.statvfs(self._nodes[request.node].fd)
        return fuse_wire.STATFS_OUT.pack(
            found.f_blocks,
            found.f_bfree,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
            found.f_bsize,
            found.f_namemax,
            found.f_frsize,
        )

    # --- names ---------------------------------------------------------------

    def mknod(self, request: Request) -> bytes:
        mode, device = request.unpack(fuse_wire.MKNOD_IN)
        name, parent = request.name(fuse_wire.MKNOD_IN), self._nodes[request.node]
        os.mknod(name, mode, fuse_wire.unpack_device(device), dir_fd=parent.fd)
        return self._made(request, parent, name)

    def mkdir(self, request: Request) -> bytes:
        (mode,) = request.unpack(fuse_wire.MKDIR_IN)
        name, parent = request.name(fuse_wire.MKDIR_IN), self._nodes[request.node]
        os.mkdir(name, stat.S_IMODE(mode), dir_fd=parent.fd)
        return self._made(request, parent, name)

    def symlink(self, request: Request) -> bytes:
        name, target = request.names()
        parent = self._nodes[request.node]
        os.symlink(target, name, dir_fd=parent.fd)
        return self._made(request, parent, name)

    def link(self, request: Request) -> bytes:
        (node,) = request.unpack(fuse_wire.LINK_IN)
        name, parent = request.name(fuse_wire.LINK_IN), self._nodes[request.node]
        # Following the magic link leads to the node itself, even if that is a symlink.
        os.link(self._nodes[node].path, name, dst_dir_fd=parent.fd, follow_symlinks=True)
        return self._entry(request.node, name)

    def readlink(self, request: Request) -> bytes:
        return os.fsencode(os.readlink("", dir_fd=self._nodes[request.node].fd))

    def unlink(self, request: Request) -> None:
        os.unlink(request.name(), dir_fd=self._nodes[request.node].fd)

    def rmdir(self, request: Request) -> None:
        os.rmdir(request.name(), dir_fd=self._nodes[request.node].fd)

    def rename(self, request: Request) -> None:
        (folder,) = request.unpack(fuse_wire.RENAME_IN)
        self._rename(request.node, folder, request.names(fuse_wire.RENAME_IN), 0)

    def rename2(self, request: Request) -> None:
        folder, flags = request.unpack(fuse_wire.RENAME2_IN)
        if flags and self._renames is Renames.REJECTS:
            raise OSError(errno.EINVAL, "no rename flags here")
        if self._renames is Renames.IGNORES:
            flags = 0
        self._rename(request.node, folder, request.names(fuse_wire.RENAME2_IN), flags)

    def _rename(self, source: int, target: int, names: list[bytes], flags: int) -> None:
        old, new = names
        linux.renameat2(old, new, flags, source_folder=self._nodes[source].fd, target_folder=self._nodes[target].fd)

    # --- files ---------------------------------------------------------------

    def open(self, request: Request) -> bytes:
        (flags,) = request.unpack(fuse_wire.OPEN_IN)
        return fuse_wire.OPEN_OUT.pack(self._open(request.node, flags), 0)

    def create(self, request: Request) -> bytes:
        flags, mode = request.unpack(fuse_wire.CREATE_IN)
        name, parent = request.name(fuse_wire.CREATE_IN), self._nodes[request.node]
        flags = flags & ~_NOT_PASSED_ON | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags & os.O_EXCL
        try:
            handle = os.open(name, flags | os.O_EXCL, stat.S_IMODE(mode), dir_fd=parent.fd)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            handle = os.open(name, flags, dir_fd=parent.fd)
            entry = self._entry(request.node, name)
        else:
            entry = self._made(request, parent, name)
        return entry + fuse_wire.OPEN_OUT.pack(handle, 0)

    def read(self, request: Request) -> bytes:
        handle, offset, size = request.unpack(fuse_wire.READ_IN)
        return os.pread(handle, size, offset)

    def write(self, request: Request) -> bytes:
        handle, offset, size = request.unpack(fuse_wire.WRITE_IN)
        written = os.pwrite(handle, request.rest(fuse_wire.WRITE_IN)[:size], offset)
        return fuse_wire.WRITE_OUT.pack(written)

    def fallocate(self, request: Request) -> None:
        handle, offset, length, mode = request.unpack(fuse_wire.FALLOCATE_IN)
        if mode:
            raise OSError(errno.EOPNOTSUPP, "only plain allocation")
        os.posix_fallocate(handle, offset, length)

    def flush(self, request: Request) -> None:
        """A descriptor was closed: the real one stays until RELEASE."""

    def release(self, request: Request) -> None:
        (handle,) = request.unpack(fuse_wire.RELEASE_IN)
        os.close(handle)

    def fsync(self, request: Request) -> None:
        handle, flags = request.unpack(fuse_wire.FSYNC_IN)
        if flags & fuse_wire.FSYNC_DATA_ONLY:
            os.fdatasync(handle)
        else:
            os.fsync(handle)

    # --- folders -------------------------------------------------------------

    def opendir(self, request: Request) -> bytes:
        return fuse_wire.OPEN_OUT.pack(self._open(request.node, os.O_RDONLY | os.O_DIRECTORY), 0)

    def readdir(self, request: Request) -> bytes:
        handle, offset, size = request.unpack(fuse_wire.READ_IN)
        if offset == 0:  # the first look, or rewinddir
            self._listings[handle] = _listing(self._nodes[request.node].path)
        reply = b""
        for place, (inode, kind, name) in enumerate(self._listings[handle][offset:], offset + 1):
            record = fuse_wire.pack_dirent(inode, place, kind, name)
            if len(reply) + len(record) > size:
                break
            reply += record
        return reply

    def fsyncdir(self, request: Request) -> None:
        self.fsync(request)

    def releasedir(self, request: Request) -> None:
        (handle,) = request.unpack(fuse_wire.RELEASE_IN)
        self._listings.pop(handle, None)
        os.close(handle)

    # --- extended attributes -------------------------------------------------

    def setxattr(self, request: Request) -> None:
        size, flags = request.unpack(fuse_wire.SETXATTR_IN)
        name = request.name(fuse_wire.SETXATTR_IN)
        value = request.rest(fuse_wire.SETXATTR_IN)[len(name) + 1 :][:size]
        os.setxattr(self._nodes[request.node].path, name, value, flags)

    def getxattr(self, request: Request) -> bytes:
        value = os.getxattr(self._nodes[request.node].path, request.name(fuse_wire.GETXATTR_IN))
        return _sized(request, value)

    def listxattr(self, request: Request) -> bytes:
        names = os.listxattr(self._nodes[request.node].path)
        return _sized(request, b"".join(os.fsencode(name) + b"\0" for name in names))

    def removexattr(self, request: Request) -> None:
        os.removexattr(self._nodes[request.node].path, request.name())

    # --- what they share -----------------------------------------------------

    def _open(self, number: int, flags: int) -> int:
        return os.open(self._nodes[number].path, flags & ~_NOT_PASSED_ON | os.O_CLOEXEC)

    def _made(self, request: Request, parent: Node, name: bytes) -> bytes:
        """Give a new object to whoever asked for it, and reply with its entry."""
        inherits_group = os.stat(parent.fd).st_mode & stat.S_ISGID
        if request.uid or request.gid:
            group = -1 if inherits_group else request.gid
            os.chown(name, request.uid, group, dir_fd=parent.fd, follow_symlinks=False)
        return self._entry(request.node, name)

    def _entry(self, parent: int, name: bytes) -> bytes:
        number, found = self._nodes.find(parent, name)
        return fuse_wire.pack_entry(number, fuse_wire.pack_attr(found), self._seconds)


def _attr_reply(found: os.stat_result) -> bytes:
    return fuse_wire.ATTR_OUT.pack(0, 0, 0) + fuse_wire.pack_attr(found)


def _listing(path: str) -> list[tuple[int, int, bytes]]:
    """Inode, file type and name of everything in a folder, the two dots first."""
    own = os.stat(path).st_ino
    found = [(own, stat.S_IFDIR >> 12, b"."), (own, stat.S_IFDIR >> 12, b"..")]
    with os.scandir(path) as entries:
        for entry in entries:
            # One that vanishes in the meantime has no type to ask for: 0 says "unknown".
            kind = 0
            with contextlib.suppress(FileNotFoundError):
                kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode) >> 12
            found.append((entry.inode(), kind, os.fsencode(entry.name)))
    return found


def _sized(request: Request, value: bytes) -> bytes:
    """The reply to a question for an attribute: its length when asked with size 0, else the value."""
    (size,) = request.unpack(fuse_wire.GETXATTR_IN)
    if size == 0:
        return fuse_wire.GETXATTR_OUT.pack(len(value))
    if len(value) > size:
        raise OSError(errno.ERANGE, "attribute longer than the room for it")
    return value
