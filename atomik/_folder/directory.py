"""A folder held open: the only way to reach what lies in it.

`Directory.open(path)` resolves the path once.  From then on everything goes through the descriptor (I7): names are
single components, so a folder that is moved, or a parent that becomes a link, changes nothing of what we touch.

Calling sequence::

    folder = Directory.open("/data/out")
    folder.lock(deadline, shared=False)      # flock(2); the lock is the description's, so close() drops it
    folder.still_there()                     # does the path still lead here?
    folder.identity("model.bin")             # bytes that name the object, or None
    folder.sync()
    folder.close()

`Place` is a name in a held folder.  An *identity* is a ``bytes`` token: the file handle of name_to_handle_at(2),
which survives a remount and differs when an inode number is reused, or type and inode number where the filesystem
has no handles.  Two objects are the same exactly when their tokens are equal.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from atomik import errors
from atomik._hidden_names import JOURNAL_NAME as JOURNAL_NAME  # noqa: PLC0414  for modules that are being rewritten
from atomik._hidden_names import PREFIX as PREFIX  # noqa: PLC0414  for modules that are being rewritten
from atomik._system import forked, kernel

from . import filesystem as _filesystem
from .resolve import open_folder

if TYPE_CHECKING:
    from .filesystem import Filesystem

_OPEN = os.O_RDONLY | os.O_DIRECTORY
_APPEND_ONLY = 0x20  # STATX_ATTR_APPEND
_TRY_SHARED, _TRY_EXCLUSIVE = fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.LOCK_EX | fcntl.LOCK_NB

#: Seconds for which a reader lets a waiting writer go first.
GIVE_WAY = 1.0


class Directory:
    """An open folder.

    ``path`` is the absolute path it was reached by, for messages and for `still_there`; ``place_key`` is (st_dev, st_ino,
    mount id), one tuple for all who use it as a key; ``append_only`` says that names can be added to it and never taken
    away (chattr +a).
    """

    __slots__ = ("_found", "_fs", "append_only", "dev", "fd", "ino", "mount", "path", "place_key")

    def __init__(self, path: str, fd: int) -> None:
        self.path, self.fd = path, fd
        self._fs: Filesystem | None = None
        self._found = found = kernel.port.statx(fd)
        self.dev, self.ino, self.mount = self.place_key = found.place_key
        self.append_only = found.attributes & _APPEND_ONLY != 0

    def __repr__(self) -> str:
        return f"<Directory {self.path!r}>"

    @classmethod
    def open(cls, path: str, dir_fd: int | None = None, *, follow: bool = True) -> Directory:
        """Open the folder at `path` (see `_resolve`); with `dir_fd` and not `follow`, a single name below it that must
        be a real folder.

        Read permission is needed, for fsync and flock want a readable descriptor (EBADF on O_PATH).
        """
        if dir_fd is None:
            fd = open_folder(path)
        else:
            fd = kernel.port.open(path, _OPEN if follow else _OPEN | os.O_NOFOLLOW, dir_fd)
        try:
            return cls(path, fd)
        except BaseException:
            kernel.port.close(fd)
            raise

    @classmethod
    def reach(cls, start: Directory, path: str, resolve: int) -> Directory:
        """Open a folder by a path relative to an open one, resolved under the restrictions of openat2(2)."""
        port = kernel.port
        fd = port.open_beneath(path, _OPEN, start.fd, resolve)
        try:
            return cls(os.path.normpath(start.child(path)), fd)
        except BaseException:
            port.close(fd)
            raise

    @property
    def key(self) -> tuple[int, int]:
        """(st_dev, st_ino): the folder's identity while it is open, and its place in the order of locks (I8)."""
        return self.dev, self.ino

    @property
    def fs(self) -> Filesystem:
        """The filesystem it lies on."""
        if self._fs is None:
            self._fs = _filesystem.of(self.fd, self._found)
        return self._fs

    def child(self, name: str) -> str:
        """The path of a name in it, for messages."""
        return self.path + name if self.path[-1:] == "/" else f"{self.path}/{name}"

    def close(self) -> None:
        """Close the descriptor, which drops its lock; harmless when repeated."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            forked.release(fd)
            kernel.port.close(fd)

    def still_there(self) -> bool:
        """Whether the path still leads to this folder."""
        try:
            now = kernel.port.statx_path(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return now.ino == self.ino and now.minor == self._found.minor and now.major == self._found.major

    def real_path(self) -> str:
        """Where the kernel says that it lies now, without links."""
        return kernel.port.readlink(f"/proc/self/fd/{self.fd}")

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
        except FileNotFoundError:
            return None

    def exists(self, name: str) -> bool:
        """Whether there is anything of that name; a folder that cannot be asked is an error, not a no."""
        return kernel.port.exists(name, self.fd)

    def identity(self, name: str) -> bytes | None:
        """The token of what stands at `name` ("" for the folder itself), None where there is nothing."""
        return identify(self.fs, self.fd, name)

    def sync(self) -> None:
        """fsync the folder: its names become durable.

        Some filesystems cannot sync a folder and say EINVAL (vfat over FUSE, old CIFS); there is nothing to wait
        for then.  EIO and the rest are never swallowed with it.
        """
        try:
            kernel.port.fsync(self.fd)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise

    def lock(self, timeout: float, deadline: float | None = None, *, shared: bool = False) -> None:
        """Take the folder's flock, polling until `timeout` seconds have passed (or until `deadline`, when several
        folders share the time); `LockTimeoutError` then.

        Readers whose shared locks overlap would keep a writer out for ever, for flock(2) has no queue.  So a writer that
        waits says so, and a reader that comes later gives way, until the writer had its turn or `GIVE_WAY` is over (the
        reader may be one for whose end the writer waits: `reading` in `reading`).
        """
        operation = _TRY_SHARED if shared else _TRY_EXCLUSIVE
        deadline = time.monotonic() + timeout if deadline is None else deadline
        gives_way_until = time.monotonic() + GIVE_WAY if shared else 0.0
        pause, announced = 0.0005, False
        forked.guard(self.fd)
        try:
            while True:
                try:
                    kernel.port.flock(self.fd, operation)
                    if time.monotonic() >= min(gives_way_until, deadline) or not self._writer_is_waiting():
                        return
                    self.unlock()
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        text = f"another transaction (or somebody's flock) held the folder for {timeout:g} s"
                        text += "; wait, or raise lock_timeout"
                        raise errors.LockTimeoutError(*errors.os_args(errno.ETIMEDOUT, text, self.path)) from None
                    gives_way_until = 0.0  # somebody has his turn, so the next one is ours
                    announced = announced or (not shared and self._announce_writer(waiting=True))
                # Random, so that several waiters do not keep step with each other.
                time.sleep(max(0.0, min(deadline - time.monotonic(), pause * (0.5 + os.urandom(1)[0] / 256))))
                pause = min(pause * 2, 0.02)
        finally:
            if announced:
                self._announce_writer(waiting=False)

    def _announce_writer(self, *, waiting: bool) -> bool:
        """Tell readers that somebody waits for them to end, or not any more.  Where that cannot be told, luck decides."""
        with contextlib.suppress(OSError):
            kernel.port.announce_writer(self.fd, waiting)
        return waiting

    def _writer_is_waiting(self) -> bool:
        try:
            return kernel.port.writer_is_waiting(self.fd)
        except OSError:
            return False

    def try_lock(self, *, shared: bool = False) -> bool:
        """Take the lock if that needs no waiting."""
        forked.guard(self.fd)
        try:
            kernel.port.flock(self.fd, _TRY_SHARED if shared else _TRY_EXCLUSIVE)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        """Let go of the lock."""
        kernel.port.flock(self.fd, fcntl.LOCK_UN)


def identify(fs: Filesystem, fd: int, name: str = "") -> bytes | None:
    """The token of a name in the open folder `fd`, or of the open object itself; None where there is nothing."""
    port, flags = kernel.port, fs.handle_flags
    try:
        if flags is None:
            found = port.lstat(name, fd) if name else port.fstat(fd)
            return b"i%d:%d" % (stat.S_IFMT(found.st_mode), found.st_ino)
        try:
            return b"h" + port.handle(name, fd, flags)
        except FileNotFoundError:
            if name:
                port.lstat(name, fd)  # too much hangs on a no to believe the first one: names of ours would stay
        return b"h" + port.handle(name, fd, flags)
    except FileNotFoundError:
        if not name:
            raise
        return None


class Place(NamedTuple):
    """A name in a held folder.  A tuple, for there are two of them for each output and they serve as keys."""

    directory: Directory
    name: str

    def __str__(self) -> str:
        return self.directory.child(self.name)

    @property
    def fd(self) -> int:
        """The folder's descriptor."""
        return self.directory.fd

    def identity(self) -> bytes | None:
        """The token of what stands there."""
        return identify(self.directory.fs, self.directory.fd, self.name)

    def stat(self) -> os.stat_result | None:
        """lstat of what stands there."""
        return self.directory.stat(self.name)


def rename(src: Place, dst: Place, flags: int) -> None:
    """renameat2(2) between two places."""
    kernel.port.rename(src.name, src.directory.fd, dst.name, dst.directory.fd, flags)
