"""Copy a file or a folder tree as it is: content, links, modes, times, owners, attributes.

Calling sequence::

    lost = clone(src, dst)                    # fill an empty folder; what could not be kept: ["owner of a/b", …]
    lost = copy_entry(src_place, dst_place)   # make a file, link, FIFO or folder of a new name: ["owner", "owner of b"]

Content is shared where the filesystem can, else copied, holes as holes (see `content`).  Hard links within the tree
stay hard links.  Links are copied, never followed; a mount in a tree is refused before anything is copied
(`MountPointError`).  Nothing recurses, and the number of descriptors is fixed (see `walk`).

A copy is at no moment open to more users than its original (P8): it is made for its owner alone, and `metadata.apply`
opens it at the end.  `clone` leaves the metadata of `src` itself to the caller.

A source that vanishes or changes its kind in the meantime is a `ConflictError`.  The tree is not frozen: a file that is
being written is copied as it is at that moment.  Names that begin with ``.atomik-`` belong to a transaction in `src`;
they are left out, and listed.

One thread makes the copy.  Two, each with half of 10,000 files, take 0.8 (btrfs) and 1.2 (xfs) times as long on two idle
cores and twice the processor time, most of it for passing the interpreter's lock; on two busy cores 0.5 to 1.4 times as long.
Another may sync what was made so far (`sync.HeadStart`).

``progress`` is called once for each object, with 1.
"""

from __future__ import annotations

import errno
import os
import stat

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.mounts import mount_at_or_below
from atomik._folder.place import Place, is_no_link
from atomik._hidden_names import PREFIX
from atomik._system import kernel

from .content import Copier
from .metadata import ACL, DEFAULT_ACL, REFUSED, Metadata, Named, address, apply, closed
from .walk import Level, TreeWalk, mount_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import NoReturn, Self

    from .fingerprint import Recorder
    from .sync import HeadStart

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_PATH = os.O_PATH | os.O_NOFOLLOW
_WRITE = os.O_WRONLY
_SET_ID = stat.S_ISUID | stat.S_ISGID
#: The source is not what it was when it was listed.
_CHANGED = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ESTALE})


def clone(
    src: Directory, dst: Directory, progress: Callable[[int], None] | None = None, *, share: bool = False,
    leave_out: Collection[str] = (), seen: Recorder | None = None, ahead: HeadStart | None = None,
) -> list[str]:  # fmt: skip
    """Make the empty folder `dst` a copy of `src`, except for its entries `leave_out`; returns the names of what could not be
    kept.

    `seen` is told what there was, as it was before it was copied.

    With `share` the copy gets the same files, as hard links, where the kernel allows it: it will take the original's place.
    """
    _refuse_mounts(src)
    source, target = TreeWalk(src, "copy"), TreeWalk(dst, "copy", loosen=True)
    with source, target, _Clone(source, target, progress, share=share, leave_out=leave_out, seen=seen) as work:
        work.ahead = ahead
        work.run()
        return work.lost


def copy_entry(src: Place, dst: Place, progress: Callable[[int], None] | None = None) -> list[str]:
    """Make `dst`, which must not exist, a copy of what is at `src`; returns the names of what could not be kept.

    After an error, what was created so far stays at `dst`, for the caller to delete.
    """
    found = src.stat()
    if found is None:
        errors.fail(errors.MissingPathError, errno.ENOENT, "cannot copy: it does not exist", str(src), str(dst))
    with TreeWalk(dst.directory, "copy", loosen=True) as target:
        if not stat.S_ISDIR(found.st_mode):
            with TreeWalk(src.directory, "copy") as source, _Clone(source, target, progress) as work:
                work.copy_file(src.name, dst.name)
                return work.lost
        with _open_top(src) as top:
            _refuse_mounts(top)
            with TreeWalk(top, "copy") as source, _Clone(source, target, progress) as work:
                work.copy_folder(dst.name)
                return work.lost


def _open_top(src: Place) -> Directory:
    with kernel.typed("cannot copy", str(src)):
        return src.open()


def _refuse_mounts(src: Directory) -> None:
    if mount := mount_at_or_below(src):
        raise mount_error("copy", mount)


class _Clone:
    """One tree being copied."""

    #: is told how many objects were made
    ahead: HeadStart | None = None

    def __init__(
        self, source: TreeWalk, target: TreeWalk, progress: Callable[[int], None] | None, *, share: bool = False,
        leave_out: Collection[str] = (), seen: Recorder | None = None,
    ) -> None:  # fmt: skip
        self.source, self.target, self.progress, self.share, self.seen = source, target, progress, share, seen
        self.leave_out = leave_out  # names directly in the top that are not copied
        self.lost: list[str] = []
        self.content = Copier()
        self._folders: list[tuple[os.stat_result, Metadata]] = []
        self._first: dict[tuple[int, int], tuple[Level, str]] = {}  # of a source inode with several names
        self._from = self._to = -1  # the present folders of source and target
        #: of what we make in the present folder of the target; () if it gets more there, None until the first was made
        self._owner: tuple[int, int] | tuple[()] | None = None
        self._reached: tuple[Level, int] | None = None  # where the last hard link came from

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._reached:
            reached, self._reached = self._reached, None
            kernel.port.close(reached[1])

    def run(self) -> None:
        while True:
            level = self.source.level
            if level.folders is None:
                level.folders = self._copy_files()
            if level.folders:
                self._enter(level.folders.pop())
            elif self.source.depth:
                self._leave()
                self.source.leave()
            else:
                return

    def copy_folder(self, name: str) -> None:
        """Copy the top, under `name` below the target's top, and everything below it."""
        self._make_folder(name)
        self.run()
        self._leave()

    def copy_file(self, name: str, new_name: str) -> None:
        """Copy one file, link or other object that is no folder."""
        self._from, self._to = self.source.level.fd, self.target.level.fd
        found = kernel.port.lstat(name, self._from)
        try:
            (self._file if stat.S_ISREG(found.st_mode) else self._other)(name, new_name)
        except OSError as exc:
            self._fail(exc, name, new_name)
        self._count()

    # --- saying where ------------------------------------------------------------------------------------------------
    def _note(self, what: tuple[str, ...] | list[str], name: str = "") -> None:
        if not what:
            return
        names = [*self.source.level.names(), name] if name else self.source.level.names()
        where = " of " + "/".join(names) if names else ""
        self.lost += [one + where for one in what]

    def _fail(self, cause: OSError, name: str = "", new_name: str = "") -> NoReturn:
        number = kernel.errno_of(cause)
        if number is None:
            raise cause
        if number in _CHANGED:
            self.source.moved(name)
        paths = self.source.path(name), self.target.path(new_name or name)
        raise errors.system_error(cause, "cannot copy", *paths) from cause

    def _count(self) -> None:
        if self.progress:
            self.progress(1)

    # --- folders -----------------------------------------------------------------------------------------------------
    def _enter(self, name: str) -> None:
        try:
            self.source.enter(name)
        except (FileNotFoundError, NotADirectoryError) as exc:
            if kernel.errno_of(exc) is None:
                raise
            self.source.moved(name)
        self._make_folder(name)

    def _make_folder(self, name: str) -> None:
        """Make and enter a folder for the present one of the source."""
        port, fd = kernel.port, self.source.level.fd
        try:
            found = port.fstat(fd)
            self._folders.append((found, Metadata.held(fd, found)))
            port.mkdir(name, 0o700, self.target.level.fd)
            self.target.enter(name)
        except OSError as exc:
            self._fail(exc, "", name)
        try:
            if ~port.fstat(self.target.level.fd).st_mode & stat.S_IRWXU:  # a strange umask or default ACL
                self.target.loosened()
        except OSError as exc:
            self._fail(exc)

    def _leave(self) -> None:
        """Nothing more comes into this folder: now its times and permissions can be set."""
        found, metadata = self._folders.pop()
        self.target.hold_above()
        fd = self.target.level.fd
        try:
            _set_times(found, kernel.port.futime, fd)
            self._note(apply(fd, metadata, "all", same_content=True, path=self.target.path()))
        except OSError as exc:
            self._fail(exc)
        self.target.leave()
        self._count()

    def _copy_files(self) -> list[str]:
        """Copy all but folders, whose names are returned."""
        folders = []
        level, share, progress = self.source.level, self.share, self.progress
        leave_out = () if level.above else self.leave_out
        self._from, self._to = level.fd, self.target.level.fd
        itself = None if self.seen is None else kernel.port.fstat(level.fd)
        self._owner = None
        file, other = self._file, self._other
        made = 0
        for made, entry in enumerate(self.source.entries(), 1):  # noqa: B007  the last is their number
            name = entry.name
            if leave_out and name in leave_out:
                continue
            if name.startswith(PREFIX):
                self._note(["unfinished transaction"], name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(name)  # counted when it is left
                continue
            else:
                try:
                    if not (share and self._shared(name)):
                        (file if entry.is_file(follow_symlinks=False) else other)(name, name)
                except OSError as exc:
                    self._fail(exc, name)
            if progress:
                progress(1)
        if self.seen is not None and itself is not None:
            self.seen.folder(level.names(), itself, folders)
        if self.ahead is not None:
            self.ahead.more(made)
        return folders

    # --- files -------------------------------------------------------------------------------------------------------
    def _file(self, name: str, new_name: str) -> None:
        port, seen = kernel.port, self.seen
        fd = port.open(name, _READ, self._from)
        try:
            found = port.fstat(fd)
            if not kernel.is_file(found.st_mode):
                self.source.moved(name)
            if seen is not None:
                seen.entries[name] = seen.status(found)
            if found.st_nlink > 1 and self._linked(found, name, new_name):
                return
            new = port.create(new_name, _WRITE, 0o600, self._to)
            try:
                self.content.copy(fd, new, found)
                _set_times(found, port.futime, new)  # while it is ours: later it needs CAP_FOWNER
                if not self._dressed(fd, new, found):
                    self._dress_file(fd, new, found, name, new_name)
            finally:
                port.close(new)
        finally:
            port.close(fd)

    def _dress_file(self, fd: int, new: int, found: os.stat_result, name: str, new_name: str) -> None:
        """Owner, attributes and mode."""
        self._look_at(new)
        lost = apply(new, Metadata.held(fd, found), "all", same_content=True, path=self.target.path(new_name))
        self._note(lost, name)

    def _look_at(self, new: int) -> None:
        """See what the next objects in this folder need: where new ones get neither attributes nor ACLs, and the owner is
        right, only what their originals have."""
        if self._owner is None:
            made = kernel.port.fstat(new)
            self._owner = () if self._inherits() else (made.st_uid, made.st_gid)

    def _inherits(self) -> bool:
        try:
            return DEFAULT_ACL in kernel.port.listxattr(self._to)
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number not in REFUSED:
                raise
            return number not in (errno.ENOTSUP, errno.ENOSYS)

    def _dressed(self, fd: int, new: int, found: os.stat_result) -> bool:
        """Set the mode, the ACL, and attributes that mean nothing to the kernel.  False if there is more to set, or if the
        kernel refuses something."""
        if self._owner != (found.st_uid, found.st_gid) or found.st_mode & _SET_ID:
            return False
        port = kernel.port
        try:
            for name in port.listxattr(fd):
                if name == ACL:
                    port.setxattr(new, name, closed(port.getxattr(fd, name)))  # until its mode is set
                elif name.startswith("user."):
                    port.setxattr(new, name, port.getxattr(fd, name))
                else:
                    return False
            port.fchmod(new, found.st_mode & 0o7777)
        except OSError as exc:
            if kernel.errno_of(exc) not in REFUSED:
                raise
            return False
        return True

    def _shared(self, name: str) -> bool:
        """Whether the copy got the file itself; another user's file cannot be linked (fs.protected_hardlinks)."""
        try:
            kernel.port.link(name, self._from, name, self._to)
        except OSError as exc:
            if not is_no_link(kernel.errno_of(exc)):
                raise
            return False
        return True

    def _linked(self, found: os.stat_result, name: str, new_name: str) -> bool:
        """Whether the new name could be linked to a copy that is there already."""
        key = found.st_dev, found.st_ino
        if key in self._first:
            level, first = self._first[key]
            try:
                kernel.port.link(first, self._reach(level), new_name, self._to)
            except OSError as exc:
                if not is_no_link(kernel.errno_of(exc)):
                    raise
                self._note(["hard link"], name)
            else:
                return True
        self._first[key] = self.target.level, new_name
        return False

    def _reach(self, level: Level) -> int:
        if level.fd >= 0:  # above us, or where we are
            return level.fd
        if self._reached is None or self._reached[0] is not level:
            self._close()
            self._reached = level, self.target.reach(level)
        return self._reached[1]

    # --- the rest ----------------------------------------------------------------------------------------------------
    def _other(self, name: str, new_name: str) -> None:
        """A link, FIFO, socket or device: held with O_PATH, because none of them may be opened."""
        port, seen = kernel.port, self.seen
        fd = port.open(name, _PATH, self._from)
        try:
            found = port.fstat(fd)
            if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
                self.source.moved(name)
            if seen is not None:
                seen.entries[name] = seen.status(found)
            if found.st_nlink > 1 and self._linked(found, name, new_name):
                return
            if self._made(fd, found, name, new_name):
                _set_times(found, port.utime, new_name, self._to)
                if not self._is_dressed(fd, found):
                    self._dress(fd, found, name, new_name)
        finally:
            port.close(fd)

    def _made(self, fd: int, found: os.stat_result, name: str, new_name: str) -> bool:
        port, below = kernel.port, self._to
        if stat.S_ISLNK(found.st_mode):
            port.symlink(port.readlink("", fd), new_name, below)
            return True
        try:
            port.mknod(new_name, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev, below)
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number not in REFUSED or number == errno.ENOSPC:
                raise
            self._first.pop((found.st_dev, found.st_ino), None)
            self._note(["existence"], name)
            return False
        return True

    def _is_dressed(self, fd: int, found: os.stat_result) -> bool:
        """Whether nothing is to be set: a link has no mode, its owner is right, and the original has no attributes."""
        if self._owner != (found.st_uid, found.st_gid) or not stat.S_ISLNK(found.st_mode):
            return False
        try:
            return not kernel.port.listxattr_of(address(fd))
        except OSError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return False  # the thorough way finds out what it is

    def _dress(self, fd: int, found: os.stat_result, name: str, new_name: str) -> None:
        """Owner, attributes and mode of something that can only be named."""
        metadata = Metadata.held(fd, found, path_only=True)
        new = kernel.port.open(new_name, _PATH, self._to)
        try:
            self._look_at(new)
            target, path = Named(new, new_name, self._to), self.target.path(new_name)
            self._note(apply(target, metadata, "all", same_content=True, path=path), name)
        finally:
            kernel.port.close(new)


def _set_times(found: os.stat_result, call: Callable[..., None], target: int | str, *above: int) -> None:
    """Set the times of the original; where a sandbox refuses utimensat(2) altogether, the copy keeps its own."""
    try:
        call(target, (found.st_atime_ns, found.st_mtime_ns), *above)
    except OSError as exc:
        if kernel.errno_of(exc) not in kernel.SANDBOXED or kernel.sandboxed("utimensat") is None:
            raise
