"""Going down and up a folder tree by descriptor: never through a link, never into a mount, never recursing.

Calling sequence::

    with TreeWalk(directory, "delete") as down:
        down.enter("sub")        # opens it beneath the present folder
        … down.level.fd …
        name = down.leave()      # back up; the name of the folder that was left

A `TreeWalk` remembers every level from the top, but holds only the deepest `HELD` of them open, so the depth of a tree
costs memory and no descriptors.  A level that was let go is opened again as the ".." of the level below it and must
then be the same folder on the same mount; if it was moved in the meantime that is a `ConflictError`, and nothing is
touched wherever ".." leads now.

``loosen`` is for trees that are ours to change: a folder that its owner may not read, search or write gets these
permissions for the owner when they are first missed; with ``restore`` the old mode comes back when it is left.

Errors are atomik's, with the whole path: only here is it known.
"""

from __future__ import annotations

import errno
import operator
import os
import stat

from atomik import errors
from atomik._folder.mounts import same_mount
from atomik._folder.place import chmod
from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn, Self

    from atomik._folder.directory import Directory

#: How many levels each `TreeWalk` holds open: a copy has two walks, and a program may be limited to 256 descriptors.
#: Going back up beyond them costs three calls for each level, but few trees are that deep: 5,000 files 16 levels deep are
#: copied and deleted in the same time with 12 as with 32.
HELD = 12

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_PATH = os.O_PATH | os.O_NOFOLLOW
_BENEATH = kernel.RESOLVE_NO_XDEV | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS | kernel.RESOLVE_BENEATH
_OWNER = stat.S_IRWXU
_name = operator.attrgetter("name")
#: Longer paths are opened in pieces (PATH_MAX is 4096).
_PIECE = 4000


class Level:
    """One folder on the way down.  ``fd`` is -1 while it is let go; ``folders`` are names still to be entered."""

    __slots__ = ("above", "fd", "folders", "key", "mode", "name", "tries")

    def __init__(self, name: str, above: Level | None, fd: int, mode: int | None = None) -> None:
        self.name, self.above, self.fd = name, above, fd
        self.folders: list[str] | None = None
        self.tries = 0
        self.mode = mode  # before it was loosened
        self.key: tuple[int, int, int] | None = None  # device, inode and mount, once it was let go

    def names(self) -> list[str]:
        """The names from the top to here, the top's own not among them."""
        names = []
        level = self
        while level.above is not None:
            names.append(level.name)
            level = level.above
        return names[::-1]


class TreeWalk:
    """The way from `top`, whose descriptor stays the caller's, down to the present level."""

    error: errors.AtomikOSError | None = None  # the last that it raised
    _lowest = 1  # the levels from here on are open
    _openat2 = True

    def __init__(self, top: Directory, action: str, *, loosen: bool = False, restore: bool = False) -> None:
        self.top, self.action, self.loosen, self.restore = top, action, loosen, restore
        self.levels = [Level("", None, top.fd)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        interrupt: BaseException | None = None
        while len(self.levels) > 1:
            try:
                level = self.levels.pop()
                if level.fd >= 0:
                    self._let_go(level)
            except BaseException as exc:  # noqa: BLE001  raised below, when all of them are closed
                # After an error there are levels left: the error counts, not failures while they are closed.
                if not isinstance(exc, OSError) or kernel.errno_of(exc) is None:
                    interrupt = exc
        if interrupt is not None:
            raise interrupt

    @property
    def level(self) -> Level:
        """Where we are."""
        return self.levels[-1]

    @property
    def depth(self) -> int:
        """0 at the top."""
        return len(self.levels) - 1

    def entries(self) -> Iterator[os.DirEntry[str]]:
        """What is in the present folder, as it is read."""
        try:
            with kernel.port.scandir(self.level.fd) as found:
                yield from found
        except OSError as exc:
            self.fail(exc)

    def names(self) -> list[str]:
        """The names of what is in the present folder."""
        try:
            with kernel.port.scandir(self.level.fd) as found:
                return list(map(_name, found))
        except OSError as exc:
            self.fail(exc)

    def each(self) -> Iterator[os.DirEntry[str]]:
        """Everything below the top, a folder before what is in it, with the way down at the folder that holds it.  A folder
        that is taken off ``level.folders`` is passed over."""
        while True:
            level = self.level
            if level.folders is None:
                level.folders = []
                for entry in self.entries():
                    if entry.is_dir(follow_symlinks=False):
                        level.folders.append(entry.name)
                    yield entry
            if level.folders:
                self.enter_if_there(level.folders.pop())
            elif self.depth:
                self.leave()
            else:
                return

    # --- saying where ------------------------------------------------------------------------------------------------
    def path(self, name: str = "", level: Level | None = None) -> str:
        """The path of `name` in a level (the present one), for messages."""
        names = (level or self.level).names()
        below = "/".join([*names, name] if name else names)  # os.path.join checks each, and there may be thousands
        return os.path.join(self.top.path, below) if below else self.top.path

    def fail(self, cause: OSError, name: str = "", level: Level | None = None) -> NoReturn:
        """Raise atomik's error for a call that failed on `name`; what did not come from the kernel is raised unchanged."""
        if kernel.errno_of(cause) is None:
            raise cause
        self.error = errors.system_error(cause, f"cannot {self.action}", self.path(name, level))
        raise self.error from cause

    def mount(self, name: str) -> NoReturn:
        """Raise the error for a mount that is in the way."""
        self.error = mount_error(self.action, self.path(name))
        raise self.error

    def moved(self, name: str = "", level: Level | None = None) -> NoReturn:
        """Raise the error for something that is not what it was a moment ago."""
        text = f"cannot {self.action}: someone moved or removed it in the meantime; read it again and repeat"
        self.error = errors.ConflictError(*errors.os_args(errno.EBUSY, text, self.path(name, level)))
        raise self.error

    # --- moving ------------------------------------------------------------------------------------------------------
    def enter(self, name: str) -> None:
        """Go down into the folder `name`.

        Raises `MountPointError` for a mount, plain NotADirectoryError or FileNotFoundError when it is no folder (any
        more; the caller knows what that means), and atomik's errors for the rest.
        """
        mode = None
        try:
            fd = self._open(name)
        except PermissionError as exc:
            if kernel.errno_of(exc) is None:
                raise
            fd, mode = self._open_loosened(name, exc)
        try:
            if len(self.levels) - self._lowest >= HELD:
                self._evict()
        except BaseException:
            kernel.port.close(fd)
            raise
        self.levels.append(Level(name, self.level, fd, mode=mode))

    def enter_if_there(self, name: str) -> None:
        """Go down into `name`, unless it is no folder any more."""
        try:
            self.enter(name)
        except (FileNotFoundError, NotADirectoryError) as exc:
            if kernel.errno_of(exc) is None:
                raise

    def leave(self) -> str:
        """Go back up; the name of the folder that was left."""
        self.hold_above()
        level = self.levels.pop()
        self._let_go(level)
        return level.name

    def hold_above(self) -> None:
        """Make sure that the way back up is open, before the present folder may lose its permissions."""
        at = len(self.levels) - 2
        above = self.levels[at]
        if above.fd >= 0:
            return
        port = kernel.port
        try:
            fd = port.open("..", _FOLDER, self.level.fd)
        except OSError as exc:
            self.fail(exc, level=above)
        try:
            if port.statx(fd).place_key != above.key:
                self.moved(level=above)
        except BaseException:
            port.close(fd)
            raise
        above.fd, self._lowest = fd, at

    def loosened(self) -> bool:
        """Give the owner all permissions on the level; False when that is not wanted, not allowed, or done already."""
        level = self.level
        if not self.loosen or level.above is None or level.mode is not None:
            return False
        mode = stat.S_IMODE(kernel.port.fstat(level.fd).st_mode)
        try:
            kernel.port.fchmod(level.fd, mode | _OWNER)
        except OSError as exc:
            if kernel.errno_of(exc) in (errno.EPERM, errno.EACCES):
                return False
            self.fail(exc)
        level.mode = mode
        return True

    def _open(self, name: str) -> int:
        port, above = kernel.port, self.level.fd
        if self._openat2:
            try:
                return port.open_beneath(name, _FOLDER, above, _BENEATH)
            except OSError as exc:
                # ENOSYS before Linux 5.6; EPERM, or EACCES, of a container's filter that does not know the call.
                number = kernel.errno_of(exc)
                if number not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
                    self._refused(exc, name)
                self._openat2 = number == errno.EACCES  # perhaps the folder is not searchable: the other call finds out
        try:
            fd = port.open(name, _FOLDER, above)
        except OSError as exc:
            self._refused(exc, name)
        return self._on_our_mount(fd, name)

    def _on_our_mount(self, fd: int, name: str) -> int:
        """For kernels that cannot check it while opening."""
        try:
            if not same_mount(kernel.port.statx(fd), self.top):
                self.mount(name)
        except BaseException:
            kernel.port.close(fd)
            raise
        return fd

    def _refused(self, exc: OSError, name: str) -> NoReturn:
        number = kernel.errno_of(exc)
        if number == errno.EXDEV:
            self.mount(name)
        if number in (errno.ELOOP, errno.ENOTDIR):  # a link, or anything else that is no folder
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.path(name)) from exc
        if number in (errno.EACCES, errno.EPERM, errno.ENOENT):
            raise exc
        self.fail(exc, name)

    def _open_loosened(self, name: str, cause: OSError) -> tuple[int, int | None]:
        """Open a folder that we may not read, or that is in one that we may not search."""
        if not self.loosen:
            self.fail(cause, name)
        try:
            if self.loosened():
                return self._open(name), None
        except PermissionError as exc:
            if kernel.errno_of(exc) is None:
                raise
        port = kernel.port
        try:
            path_fd = self._path_fd(name)
            try:
                mode = stat.S_IMODE(port.fstat(path_fd).st_mode)
                chmod(path_fd, mode | _OWNER, self.path(name))
                return port.open(".", _FOLDER, path_fd), mode
            finally:
                port.close(path_fd)
        except PermissionError as exc:
            self.fail(cause if kernel.errno_of(exc) is not None else exc, name)

    def _path_fd(self, name: str, above: int | None = None) -> int:
        """An O_PATH descriptor of the folder `name`, which needs no permission on it."""
        flags = _PATH | os.O_DIRECTORY
        at = self.level.fd if above is None else above
        if self._openat2:
            return kernel.port.open_beneath(name, flags, at, _BENEATH)
        return self._on_our_mount(kernel.port.open(name, flags, at), name)

    def reach(self, level: Level) -> int:
        """A new O_PATH descriptor of a level that was left, found by its names from the top."""
        fd = -1
        for piece in _pieces(level.names(), _PIECE if self._openat2 else 0):
            above = fd
            try:
                fd = self._path_fd(piece, self.top.fd if above < 0 else above)
            except OSError as exc:
                self.fail(exc, level=level)
            finally:
                if above >= 0:
                    kernel.port.close(above)
        return fd

    def _evict(self) -> None:
        """Let the uppermost open level go."""
        level = self.levels[self._lowest]
        level.key = kernel.port.statx(level.fd).place_key
        self._lowest += 1
        fd, level.fd = level.fd, -1
        kernel.port.close(fd)

    def _let_go(self, level: Level) -> None:
        fd, level.fd = level.fd, -1
        try:
            if self.restore and level.mode is not None:
                kernel.port.fchmod(fd, level.mode)
        finally:
            kernel.port.close(fd)


def _pieces(names: list[str], longest: int) -> Iterator[str]:
    """The path in pieces of at most `longest` bytes, or of one name."""
    piece, size = "", 0
    for name in names:
        length = len(os.fsencode(name)) + 1
        if piece and size + length > longest:
            yield piece
            piece, size = "", 0
        piece = f"{piece}/{name}" if piece else name
        size += length
    if piece:
        yield piece


def first_mount(folder: Directory, above: Directory) -> str | None:
    """The path of the first mount on or below a folder; None when there is none.

    Raises `AccessDeniedError` for a folder that may not be read.
    """
    if not same_mount(folder, above):
        return folder.path
    with TreeWalk(folder, "look for mounts") as down:
        try:
            for _ in down.each():
                pass
        except errors.MountPointError as exc:
            if exc is not down.error:
                raise
            return str(exc.filename)
    return None


def mount_error(action: str, path: str) -> errors.MountPointError:
    """The error for a mount that is in the way."""
    text = f"cannot {action}: it is a mount point; unmount it first"
    return errors.MountPointError(*errors.os_args(errno.EBUSY, text, path))
