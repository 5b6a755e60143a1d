"""Copy a folder tree into an empty folder, as it is: content, links, modes, times, owners, attributes.

Calling sequence::

    lost = clone(src, dst)       # what could not be kept: ["owner of a/b", …]

Content is shared where the filesystem can, else copied, holes as holes (see `_content`).  Hard links within the tree
stay hard links.  Links are copied, never followed; a mount in `src` is refused before anything is copied
(`MountPointError`).  Nothing recurses, and the number of descriptors is fixed (see `_descent`).

`dst` must be out of others' reach until the clone is done (a slot in the private folder is): a copy gets its permission bits
before its owner.  The metadata of `src` itself is the caller's to put on `dst`.

A source that vanishes or changes its kind meanwhile is a `ConflictError`.  Nobody freezes the tree: files that are
being written are copied as they are at that moment.  Names that begin with ``.atomik-`` belong to a transaction in
`src`; they are left out, and listed.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NoReturn

from attrs import define, field

from atomik import errors
from atomik._folder.directory import Directory
from atomik._hidden_names import PREFIX
from atomik._folder.mounts import mount_at_or_below
from atomik._system import kernel

from .content import Copier, copy_content
from .metadata import ACL, REFUSED, Metadata, address, apply
from .walk import Level, TreeWalk, refuse_mount

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["clone", "copy_content"]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_NOTE = os.O_PATH | os.O_NOFOLLOW
#: The filesystem, or this one inode (EMLINK), can have no further hard link.
_NO_LINK = frozenset({errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EXDEV})
#: The source is not what it was when it was listed.
_CHANGED = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ESTALE})


def clone(src: Directory, dst: Directory, progress: Callable[[int], None] | None = None) -> list[str]:
    """Make the empty folder `dst` a copy of `src`; returns the names of what could not be kept.

    `progress` is called with the number of objects copied since the last call.
    """
    if mount := mount_at_or_below(src):
        refuse_mount("copy", mount)
    with TreeWalk(src, "copy") as source, TreeWalk(dst, "copy", loosen=True) as target:
        work = _Clone(source, target, progress, bare=not _xattrs(dst.fd))
        try:
            work.run()
        finally:
            work.close()
        return work.lost


@define(eq=False)
class _Clone:
    """One tree being copied.

    ``bare`` says that the new folders have no attributes, hence no default ACL: then new files inherit none.
    """

    source: TreeWalk
    target: TreeWalk
    progress: Callable[[int], None] | None
    bare: bool
    lost: list[str] = field(factory=list)
    content: Copier = field(factory=Copier)
    _folders: list[tuple[os.stat_result, Metadata]] = field(factory=list)
    _first: dict[tuple[int, int], tuple[Level, str]] = field(factory=dict)  # of a source inode with several names
    _reached: tuple[Level, int] | None = None  # where the last hard link came from

    def close(self) -> None:
        """Close what was kept open."""
        if self._reached:
            kernel.port.close(self._reached[1])
            self._reached = None

    def run(self) -> None:
        """Copy everything."""
        while True:
            level = self.source.level
            if level.folders is None:
                level.folders = self._copy_files()
            if level.folders:
                self._enter(level.folders.pop())
            elif self.source.depth:
                self._leave()
            else:
                return

    # --- saying where ------------------------------------------------------------------------------------------------
    def _note(self, what: tuple[str, ...] | list[str], name: str = "") -> None:
        where = os.path.join(*self.source.level.names(), name) if name else os.path.join(*self.source.level.names())
        self.lost += [f"{one} of {where}" for one in what]

    def _fail(self, cause: OSError, name: str = "") -> NoReturn:
        if cause.errno in _CHANGED:
            self.source.moved(name)
        paths = self.source.path(name), self.target.path(name)
        raise errors.system_error(cause, "cannot copy", *paths) from cause

    # --- folders -----------------------------------------------------------------------------------------------------
    def _enter(self, name: str) -> None:
        port = kernel.port
        try:
            self.source.enter(name)
        except (FileNotFoundError, NotADirectoryError):
            self.source.moved(name)
        fd = self.source.level.fd
        try:
            found = port.fstat(fd)
            self._folders.append((found, Metadata.held(fd, found)))
            port.mkdir(name, 0o700, self.target.level.fd)
            self.target.enter(name)
            if ~port.fstat(self.target.level.fd).st_mode & stat.S_IRWXU:  # a strange umask or default ACL
                self.target.loosened()
        except errors.AtomikError:
            raise
        except OSError as exc:
            self._fail(exc)

    def _leave(self) -> None:
        """Nothing more comes into this folder: now its times and permissions can be set."""
        found, metadata = self._folders.pop()
        self.target.hold_above()
        fd = self.target.level.fd
        try:
            self._note(apply(fd, metadata, "all", same_content=True))
            kernel.port.futime(fd, (found.st_atime_ns, found.st_mtime_ns))
        except OSError as exc:
            self._fail(exc)
        self.target.leave()
        self.source.leave()
        if self.progress:
            self.progress(1)

    def _copy_files(self) -> list[str]:
        """Copy all but folders, whose names are returned."""
        folders = []
        for entry in self.source.entries():
            name = entry.name
            if name.startswith(PREFIX):
                self._note(["unfinished transaction"], name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(name)  # counted when it is left
                continue
            else:
                try:
                    (self._file if entry.is_file(follow_symlinks=False) else self._other)(name)
                except errors.AtomikError:
                    raise
                except OSError as exc:
                    self._fail(exc, name)
            if self.progress:
                self.progress(1)
        return folders

    # --- files -------------------------------------------------------------------------------------------------------
    def _file(self, name: str) -> None:
        port, below = kernel.port, self.target.level.fd
        fd = port.open(name, _READ, self.source.level.fd)
        try:
            found = port.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                self.source.moved(name)
            if found.st_nlink > 1 and self._linked(found, name):
                return
            new = port.create(name, os.O_WRONLY, found.st_mode & 0o777, below)
            try:
                self.content.copy(fd, new, found)
                self._finish(fd, new, found, name)
            finally:
                port.close(new)
        finally:
            port.close(fd)

    def _finish(self, fd: int, new: int, found: os.stat_result, name: str) -> None:
        port = kernel.port
        now = port.fstat(new)
        same = (now.st_uid, now.st_gid, now.st_mode) == (found.st_uid, found.st_gid, found.st_mode)
        if not (self.bare and same) or _xattrs(fd):
            self._note(apply(new, Metadata.held(fd, found), "all", same_content=True), name)
        port.futime(new, (found.st_atime_ns, found.st_mtime_ns))

    def _linked(self, found: os.stat_result, name: str) -> bool:
        """Whether the new name could be linked to a copy that is there already."""
        key = found.st_dev, found.st_ino
        if key in self._first:
            level, first = self._first[key]
            try:
                kernel.port.link(first, self._reach(level), name, self.target.level.fd)
            except OSError as exc:
                if exc.errno not in _NO_LINK:
                    raise
                self._note(["hard link"], name)
            else:
                return True
        self._first[key] = self.target.level, name
        return False

    def _reach(self, level: Level) -> int:
        if level.fd >= 0:  # above us, or where we are
            return level.fd
        if self._reached is None or self._reached[0] is not level:
            self.close()
            self._reached = level, self.target.reach(level)
        return self._reached[1]

    # --- the rest ----------------------------------------------------------------------------------------------------
    def _other(self, name: str) -> None:
        """A link, FIFO, socket or device: noted with O_PATH, for none of them may be opened."""
        port = kernel.port
        fd = port.open(name, _NOTE, self.source.level.fd)
        try:
            found = port.fstat(fd)
            if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
                self.source.moved(name)
            if found.st_nlink > 1 and self._linked(found, name):
                return
            if self._made(fd, found, name):
                self._dress(fd, found, name)
        finally:
            port.close(fd)

    def _made(self, fd: int, found: os.stat_result, name: str) -> bool:
        port, below = kernel.port, self.target.level.fd
        if stat.S_ISLNK(found.st_mode):
            port.symlink(port.readlink("", fd), name, below)
            return True
        try:
            port.mknod(name, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev, below)
        except OSError as exc:
            if exc.errno not in REFUSED or exc.errno == errno.ENOSPC:
                raise
            self._first.pop((found.st_dev, found.st_ino), None)
            self._note(["existence"], name)
            return False
        return True

    def _dress(self, fd: int, found: os.stat_result, name: str) -> None:
        """Owner, attributes, mode and times of something that can only be named."""
        port, below = kernel.port, self.target.level.fd
        metadata = Metadata.held(fd, found, path_only=True)
        lost = ["xattr " + one for one in metadata.unread]
        new = port.open(name, _NOTE, below)
        try:
            mode, ids = metadata.mode, (found.st_uid, found.st_gid)
            now = port.fstat(new)
            if (now.st_uid, now.st_gid) != ids and _refused(port.lchown, name, *ids, below):
                lost.append("owner")
                mode &= 0o777
            if ACL not in metadata.xattrs and not self.bare and ACL in port.listxattr_of(address(new)):
                port.removexattr_of(address(new), ACL)  # inherited from the folder
            for one, value in metadata.xattrs.items():
                if _refused(port.setxattr_of, address(new), one, value):
                    lost.append("xattr " + one)
            if not stat.S_ISLNK(found.st_mode) and _refused(port.chmod, address(new), mode):
                lost.append("mode")
        finally:
            port.close(new)
        port.utime(name, (found.st_atime_ns, found.st_mtime_ns), below)
        self._note(lost, name)


def _refused(call: Callable[..., None], *args: object) -> bool:
    try:
        call(*args)
    except OSError as exc:
        if exc.errno not in REFUSED:
            raise
        return True
    return False


def _xattrs(fd: int) -> list[str]:
    """The names; "*" when they cannot be listed, which is not the same as having none."""
    try:
        return kernel.port.listxattr(fd)
    except OSError as exc:
        if exc.errno not in REFUSED:
            raise
        return [] if exc.errno == errno.ENOTSUP else ["*"]
