"""Whole trees by descriptor: delete one, make one durable, see whether a mount lies in one.

* `delete(place)` removes what stands there, file or tree; a missing place is no error.
* `delete_file(place)` the same where a tree can only be somebody else's: it is left alone.
* `sync(directory)` makes a tree's content and names durable, the folder itself included, its own name not.
* `has_foreign_mount(place)` names a mount on or below a place (from `_mounts`).

None of them follows a link, crosses a mount, recurses, or holds more than a fixed number of descriptors
(see `_descent`).  What can go wrong is an atomik error with the whole path: `MountPointError` for a mount in the way,
`ConflictError` when a folder is moved while we are in it, `AccessDeniedError` where even the owner's rights do not
suffice (another owner, a sticky folder, an immutable flag).

``progress`` is called with the number of objects done since the last call.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import define, field

from atomik import errors
from atomik._folder.directory import identify
from atomik._folder.mounts import has_foreign_mount
from atomik._system import kernel

from .walk import Level, TreeWalk, refuse_mount

if TYPE_CHECKING:
    from typing import Self

    from atomik._folder.directory import Directory
    from atomik._folder.place import Place

__all__ = ["delete", "delete_file", "has_foreign_mount", "sync"]

Progress = Callable[[int], None]

#: How often a folder is emptied again when entries keep appearing in it, or when the filesystem's listing skips
#: entries while others are deleted (some network filesystems do).
RESCANS = 16

#: How many files are open at once while their writeback is under way.  For 1,000 files of 4 KiB on ext4: one by one
#: 223 ms, 16 at once 124, 64 at once 109, 256 at once 92.
BATCH = 128

_FILE = os.O_NOFOLLOW | os.O_NONBLOCK


# --- delete ----------------------------------------------------------------------------------------------------------
def delete(place: Place, progress: Progress | None = None, *, known: bytes | None = None) -> None:
    """Remove what stands at `place`, file or folder tree; with `known`, a tree only if its top has this identity, for
    in a folder that others may write to another can take its place at any moment.

    Folders that their owner may not read, search or write are given these permissions first.  A mount in the tree is
    looked for before anything is deleted; one that comes meanwhile stops the deletion, with its content untouched.
    Entries that others add meanwhile are deleted as well, up to a limit (ENOTEMPTY then).
    """
    try:
        kernel.port.unlink(place.name, place.fd)
    except FileNotFoundError as exc:
        if place.stat() is None:
            return
        _refused(exc, "delete", str(place))
    except IsADirectoryError:
        _delete_tree(place, progress, known)
        return
    except OSError as exc:
        _refused(exc, "delete", str(place))
    if progress:
        progress(1)


def delete_file(place: Place) -> None:
    """Remove what stands at `place`, but no folder."""
    try:
        kernel.port.unlink(place.name, place.fd)
    except (FileNotFoundError, IsADirectoryError):
        pass
    except OSError as exc:
        _refused(exc, "delete", str(place))


def _delete_tree(place: Place, progress: Progress | None, known: bytes | None) -> None:
    if mount := has_foreign_mount(place):
        refuse_mount("delete", mount)
    with TreeWalk(place.directory, "delete", loosen=True) as down:
        down.level.folders = [place.name]
        while True:
            level = down.level
            if level.folders is None:
                level.folders = _delete_files(down, progress)
            if level.folders:
                _enter(down, level.folders.pop())
                if known is not None and level.above is None and down.depth:
                    if identify(place.directory.fs, down.level.fd) != known:
                        down.moved()
                    known = None
            elif not down.depth:
                return
            elif _delete_folder(down) and progress:
                progress(1)


def _delete_files(down: TreeWalk, progress: Progress | None) -> list[str]:
    """Unlink everything in the present folder but folders, whose names are returned."""
    level, folders, done = down.level, [], 0
    unlink, fd = kernel.port.unlink, level.fd
    for entry in down.entries():
        name = entry.name
        if entry.is_dir(follow_symlinks=False):
            folders.append(name)
            continue
        try:
            unlink(name, fd)
        except IsADirectoryError:  # replaced since it was listed
            folders.append(name)
            continue
        except OSError as exc:
            _again(down, exc, name, unlink, level)
        done += 1
        if progress and not done % 256:
            progress(256)
    if progress and done % 256:
        progress(done % 256)
    return folders


def _again(down: TreeWalk, cause: OSError, name: str, remove: Callable[[str, int], None], level: Level) -> None:
    """A removal failed: if it was for the permissions of the folder, give the owner all and repeat."""
    exc = cause
    if cause.errno == errno.EACCES and down.loosened():
        try:
            remove(name, level.fd)
        except OSError as second:
            exc = second
        else:
            return
    if not isinstance(exc, FileNotFoundError):
        _refused(exc, down.action, down.path(name, level))


def _enter(down: TreeWalk, name: str) -> None:
    """Go into a folder, or remove what has taken its place."""
    level = down.level
    try:
        down.enter(name)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        if not down.depth:  # the place itself: what stands there now is not what we were asked to delete
            down.moved(name)
        try:
            kernel.port.unlink(name, level.fd)
        except OSError as exc:
            _again(down, exc, name, kernel.port.unlink, level)


def _delete_folder(down: TreeWalk) -> bool:
    """Leave the present folder and remove it; back into it if something is in there (again)."""
    tries = down.level.tries
    name = down.leave()
    above = down.level
    try:
        kernel.port.rmdir(name, above.fd)
    except OSError as exc:
        if exc.errno in (errno.ENOTEMPTY, errno.EEXIST) and tries < RESCANS:
            _enter(down, name)
            if down.level is not above:
                down.level.tries = tries + 1
            return False
        _again(down, exc, name, kernel.port.rmdir, above)
    return True


def _refused(cause: OSError, action: str, path: str) -> None:
    if cause.errno == errno.EBUSY:
        refuse_mount(action, path)
    raise errors.system_error(cause, f"cannot {action}", path) from cause


# --- sync ------------------------------------------------------------------------------------------------------------
def sync(directory: Directory, progress: Progress | None = None) -> int:
    """fsync every regular file below `directory`, then every folder bottom-up, and `directory` itself.

    Returns the number of sync calls.  Writeback is started on many files before the first of them is waited for.
    A file or folder that its owner may not read gets that permission for the moment.  What vanishes meanwhile needs
    no sync.  A folder that cannot be synced at all (EINVAL, see `Directory.sync`) is passed over; any other failure
    is an error that names the path.
    """
    with TreeWalk(directory, "sync", loosen=True, restore=True) as down, _Batch(down, progress) as batch:
        while True:
            level = down.level
            if level.folders is None:
                level.folders = batch.add_files(level)
            if level.folders:
                try:
                    down.enter(level.folders.pop())
                except (FileNotFoundError, NotADirectoryError):
                    continue
            else:
                batch.sync_folder(level)
                if not down.depth:
                    break
                down.leave()
        batch.flush()
        return batch.count


@define
class _Batch:
    """Files whose writeback has begun, or is about to."""

    down: TreeWalk
    progress: Progress | None
    count: int = 0
    _files: list[tuple[int, str, Level]] = field(factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            kernel.port.close(self._files.pop()[0])

    def add_files(self, level: Level) -> list[str]:
        """Take the present folder's files; returns the names of its folders."""
        folders = []
        for entry in self.down.entries():
            if entry.is_file(follow_symlinks=False):
                self._add(entry.name, level)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
        return folders

    def _add(self, name: str, level: Level) -> None:
        try:
            fd = self._open(name, level)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # gone, or no file any more
                return
            self.down.fail(exc, name)
        self._files.append((fd, name, level))
        if len(self._files) >= BATCH:
            self.flush()

    def _open(self, name: str, level: Level) -> int:
        """A readable descriptor, also of a file that its owner may not read."""
        port = kernel.port
        try:
            return port.open(name, os.O_RDONLY | _FILE, level.fd)
        except OSError as exc:
            if exc.errno == errno.EMFILE and self._files:
                self.flush()
                return port.open(name, os.O_RDONLY | _FILE, level.fd)
            if exc.errno != errno.EACCES:
                raise
        if self.down.loosened():  # perhaps it was only the folder that may not be searched
            return self._open(name, level)
        path_fd = port.open(name, os.O_PATH | os.O_NOFOLLOW, level.fd)
        try:
            path, mode = f"/proc/self/fd/{path_fd}", stat.S_IMODE(port.fstat(path_fd).st_mode)
            port.chmod(path, mode | stat.S_IRUSR)
            try:
                return port.open(path, os.O_RDONLY | os.O_NONBLOCK)
            finally:
                port.chmod(path, mode)
        finally:
            port.close(path_fd)

    def flush(self) -> None:
        """Begin the writeback of all files at hand, then wait for each."""
        port = kernel.port
        if len(self._files) > 1:
            for fd, _, _ in self._files:
                try:
                    port.start_writeback(fd)
                except OSError:  # only a head start: fsync says what is the matter
                    break
        done = len(self._files)
        while self._files:
            fd, name, level = self._files[-1]
            try:
                port.fsync(fd)
            except OSError as exc:
                self.down.fail(exc, name, level)
            self._files.pop()
            port.close(fd)
        self._counted(done)

    def sync_folder(self, level: Level) -> None:
        """fsync the present folder."""
        try:
            kernel.port.fsync(level.fd)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                self.down.fail(exc)
        self._counted(1)

    def _counted(self, done: int) -> None:
        self.count += done
        if self.progress and done:
            self.progress(done)
