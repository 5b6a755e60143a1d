"""A folder held open: the only way to reach what is in it.

`Directory.open(path)` resolves the path once.  From then on everything goes through the descriptor (I7): names are
single components, so a folder that is moved, or a parent that becomes a link, changes nothing of what we touch.

Calling sequence::

    folder = Directory.open("/data/out")
    folder.lock(60.0, shared=False)          # flock(2), see `lock`; close() drops it
    folder.still_there()                     # does the path still lead here?
    folder.identity("model.bin")             # bytes that name the object, or None
    folder.sync()
    folder.close()

`place.Place` is a name in a held folder; `lock` has the locks.

An *identity* is a ``bytes`` token: the file handle of name_to_handle_at(2),
which survives a remount and differs when an inode number is reused, or type and inode number where the filesystem
has no handles.  Two objects are the same exactly when their tokens are equal.
"""

from __future__ import annotations

import errno
import os
import stat

from atomik._system import descriptors, forked, kernel

from . import filesystem as _filesystem
from . import lock as _lock
from .paths import absolute
from .resolve import open_folder, real

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self, TypeVarTuple

    from .filesystem import Filesystem

    _Ts = TypeVarTuple("_Ts")

_OPEN = os.O_RDONLY | os.O_DIRECTORY
_APPEND_ONLY = 0x20  # STATX_ATTR_APPEND
#: errno of a path that leads elsewhere or nowhere
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


class Directory:
    """An open folder.

    ``path`` is the absolute path it was reached by, for messages and for `still_there`; ``place_key`` is (st_dev, st_ino,
    mount id), one tuple for all who use it as a key; ``mount`` is 0 if the id cannot be found out; ``append_only`` says that
    names can be added to it and never taken away (chattr +a).
    """

    __slots__ = ("_found", "_pid", "_token", "_way", "dev", "fd", "fs", "ino", "mount", "path", "place_key", "plain")

    def __init__(self, path: str, fd: int) -> None:
        self.path, self.fd, self._pid = path, fd, forked.me
        self._token: bytes | None = None
        #: of a relative path: where it starts (a descriptor of the working folder, or AT_FDCWD), and the path
        self._way: tuple[int, str] | None = None
        self._found = found = kernel.port.statx(fd)
        self.place_key = self.dev, self.ino, self.mount = os.makedev(found.major, found.minor), found.ino, found.mount
        #: nothing about it says who may replace what is in it
        self.plain = not (found.attributes & _APPEND_ONLY or found.mode & stat.S_ISVTX)
        #: its filesystem
        self.fs = _filesystem.of(fd, found)

    def __del__(self) -> None:
        """After an interrupt: a descriptor that is lost would keep its lock."""
        try:
            if self.fd >= 0:
                self._abandon()
        except AttributeError:
            pass  # stopped before it was made, or the interpreter ends

    def _abandon(self) -> None:
        if self._pid == forked.me:  # a forked child may have reused the number for something else
            self.close()

    def __repr__(self) -> str:
        return f"<Directory {self.path!r}>"

    @classmethod
    def open(cls, path: str, dir_fd: int | None = None, *, follow: bool = True) -> Directory:
        """Open the folder at `path` (see `resolve`); with `dir_fd` and without `follow`, a single name below it that must
        be a real folder.

        A relative path starts at the working folder itself: the folders above that may not be searchable, and its absolute
        path may be too long for the kernel.  Read permission is needed, because fsync and flock want a readable descriptor
        (EBADF on O_PATH).
        """
        if dir_fd is not None:
            return cls._held(path, kernel.port.open, path, _OPEN if follow else _OPEN | os.O_NOFOLLOW, dir_fd)
        folder = cls._held(path, open_folder, path)
        if path[:1] != "/":
            try:
                folder._describe()
            except BaseException:
                folder.close()
                raise
        return folder

    @classmethod
    def _held(cls, path: str, call: Callable[[*_Ts], int], *args: *_Ts) -> Directory:
        """The folder that `call` opens; `path` is what it is known by."""
        folder = cls.__new__(cls)  # before there is a descriptor, so that it has one owner at any moment
        folder.fd, folder._way = -1, None
        try:
            try:
                folder.fd = fd = call(*args)
            except OSError as exc:
                if kernel.errno_of(exc) != errno.EMFILE:
                    raise
                descriptors.make_room(0, path)
                return cls._held(path, call, *args)
            if fd >= descriptors.low:
                descriptors.hold(fd, path)
            folder.__init__(path, fd)  # type: ignore[misc]
        except BaseException:
            folder.close()
            raise
        return folder

    def _describe(self) -> None:
        """Find the absolute path of a relative one.  Where that does not lead here, hold the folder that it starts from."""
        relative = self.path
        self.path = absolute(relative).removesuffix("/.") or "/"
        self._way = kernel.AT_FDCWD, relative
        if self.path == relative or not self._leads_here(self.path, kernel.AT_FDCWD):
            self._way = kernel.port.open(".", os.O_PATH | os.O_DIRECTORY), relative

    @classmethod
    def reach(cls, start: Directory, path: str, resolve: int) -> Directory:
        """Open a folder by a path relative to an open one, resolved under the restrictions of openat2(2)."""
        shown = os.path.normpath(start.child(path))
        return cls._held(shown, kernel.port.open_beneath, path, _OPEN, start.fd, resolve)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reopened(self) -> Directory:
        """The same folder with a descriptor of its own; no path is resolved for it."""
        again = Directory.open(".", self.fd)
        again.path = self.path
        again._way = kernel.port.open(".", os.O_PATH | os.O_DIRECTORY, self.fd), "."
        return again

    @property
    def key(self) -> tuple[int, int]:
        """(st_dev, st_ino): the folder's identity while it is open, and its place in the order of locks (I8)."""
        return self.dev, self.ino

    @property
    def append_only(self) -> bool:
        """Whether names can be added to it and never taken away (chattr +a)."""
        return self._found.attributes & _APPEND_ONLY != 0

    @property
    def uid(self) -> int:
        return self._found.uid

    @property
    def sticky(self) -> bool:
        """Whether only their owners, and its own, may replace or remove the entries in it."""
        return bool(self._found.mode & stat.S_ISVTX)

    def child(self, name: str) -> str:
        """The path of a name in it, for messages."""
        return self.path + name if self.path[-1:] == "/" else f"{self.path}/{name}"

    def close(self) -> None:
        """Close the descriptor, which drops its lock.  It may be repeated, and must be after an interrupt."""
        fd, guarded = self.fd, forked.guarded
        try:
            # One line each: an interrupt comes before all of it, and nothing is lost, or after all.  In between, the lock
            # would be held and forgotten: a handler that publishes there would wait for itself.
            if fd in guarded: self.fd = -1; del guarded[fd]; kernel.port.close(fd)  # noqa: E701, E702  # fmt: skip
            elif fd >= 0: self.fd = -1; kernel.port.close(fd)  # noqa: E701, E702  # fmt: skip
        except BaseException as exc:
            self._close_again(fd, exc)
            raise
        finally:
            if fd >= descriptors.low:
                descriptors.let_go(fd)
            if self._way is not None:
                self._close_way(*self._way)

    def _close_again(self, fd: int, exc: BaseException) -> None:
        """`exc` came out of close(2).  If it is not the kernel's answer, it may have come before the call: then `fd` still
        leads here, and must not stay open, because it may hold a lock."""
        if (isinstance(exc, OSError) and kernel.errno_of(exc) is not None) or not hasattr(self, "mount"):
            return  # or it was stopped before anybody knew what it leads to, when it had no lock either
        try:
            now = kernel.port.fstat(fd)
        except OSError as closed:
            if kernel.errno_of(closed) is None:
                raise
            return
        if (now.st_dev, now.st_ino) == self.key:
            self.fd = -1
            forked.release(fd)
            kernel.port.close(fd)

    def _close_way(self, start: int, _: str) -> None:
        if start >= 0:
            self._way = None; kernel.port.close(start)  # noqa: E702  # fmt: skip

    def still_there(self) -> bool:
        """Whether the path still leads to this folder; a relative one from the working folder that it started from."""
        if self._way is None:
            return self._leads_here(self.path, kernel.AT_FDCWD, closed=False)
        start, relative = self._way
        return (start < 0 and self._leads_here(self.path, start)) or self._leads_here(relative, start, closed=False)

    def _leads_here(self, path: str, start: int, *, closed: bool = True) -> bool:
        """Whether a path leads to this folder; False if it is too long and, with `closed`, if a folder on it cannot be
        searched."""
        try:
            now = kernel.port.statx_path(path, start)
        except OSError as exc:
            if kernel.errno_of(exc) not in (_NOT_THERE | {errno.EACCES} if closed else _NOT_THERE):
                raise
            return False
        return now.ino == self.ino and now.minor == self._found.minor and now.major == self._found.major

    def real_path(self) -> str:
        """Where it is now according to the kernel, without links.

        Without /proc it is found by its path; FileNotFoundError when that does not lead here.
        """
        try:
            return kernel.port.readlink(f"/proc/self/fd/{self.fd}")
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number == errno.ENAMETOOLONG:
                return self.path
            if number not in kernel.NO_PROC:
                raise
        found = real(self.path)
        if not self._leads_here(found, kernel.AT_FDCWD):
            raise FileNotFoundError(
                errno.ENOENT, "the folder was moved, and without /proc its new path cannot be found", self.path
            )
        return found

    def ancestors(self) -> list[tuple[int, int]]:
        """(st_dev, st_ino) of itself and of every folder above it."""
        chain = [self.key]
        up = ".."
        while True:
            above = kernel.port.lstat(up, self.fd)
            if (above.st_dev, above.st_ino) == chain[-1]:
                return chain
            chain.append((above.st_dev, above.st_ino))
            up += "/.."

    def stat(self, name: str) -> os.stat_result | None:
        """lstat of a name in it, None where there is nothing."""
        try:
            return kernel.port.lstat(name, self.fd)
        except FileNotFoundError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return None

    def names(self) -> list[str]:
        with kernel.port.scandir(self.fd) as entries:
            return [entry.name for entry in entries]

    def exists(self, name: str) -> bool:
        """Whether there is anything of that name; a folder that cannot be searched is an error, not False."""
        return kernel.port.exists(name, self.fd)

    def identity(self, name: str) -> bytes | None:
        """The identity of what is at `name` ("" for the folder itself), None if nothing is there."""
        if name:
            return identify(self.fs, self.fd, name)
        if self._token is None:
            self._token = identify(self.fs, self.fd)  # it is the same for as long as the folder is open
        return self._token

    def sync(self) -> None:
        """fsync the folder: its names become durable.

        Some filesystems cannot sync a folder and say EINVAL (vfat over FUSE, old CIFS); there is nothing to wait
        for then.  EIO and the rest are never swallowed with it.
        """
        try:
            kernel.port.fsync(self.fd)
        except OSError as exc:
            if kernel.errno_of(exc) != errno.EINVAL:
                raise

    lock, try_lock, unlock = _lock.lock, _lock.try_lock, _lock.unlock


def open_as_given(path: str | os.PathLike[str], action: str) -> Directory:
    """The folder at a path as it was given, because the absolute one of a relative path may lead through a closed folder;
    `action` begins the message of an error."""
    given = os.fsdecode(path)
    with kernel.typed(action, absolute(given)):
        return Directory.open(given)


def identify(fs: Filesystem, fd: int, name: str = "") -> bytes | None:
    """The token of a name in the open folder `fd`, or of the open object itself; None where there is nothing."""
    port, flags = kernel.port, fs.handle_flags
    try:
        if flags is not None:
            try:
                return b"h" + port.handle(name, fd, flags)
            except OSError as exc:
                _handles_are_refused(fs, exc)
            if name:
                port.lstat(name, fd)  # asked twice: after a wrong "no such file" names of ours would stay
            if fs.handle_flags is not None:
                return b"h" + port.handle(name, fd, flags)
        found = port.lstat(name, fd) if name else port.fstat(fd)
        return b"i%d:%d" % (stat.S_IFMT(found.st_mode), found.st_ino)
    except FileNotFoundError as exc:
        if not name or kernel.errno_of(exc) is None:
            raise
        return None


def _handles_are_refused(fs: Filesystem, exc: OSError) -> None:
    """Return if the answer is that there is nothing, or that a filter refuses handles since the filesystem was asked;
    identities are inode numbers from then on.  Raise any other."""
    number = kernel.errno_of(exc)
    if number in kernel.SANDBOXED and kernel.sandboxed("name_to_handle_at") is not None:
        fs.handle_flags = None
    elif number != errno.ENOENT:
        raise exc
