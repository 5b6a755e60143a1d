"""Whether what was staged equals what is there already, for ``if_changed=True``.

* `same(new, old, permissions)`: two places, with objects of any kind.
* `same_file(fd, old, permissions)`: a file that has no name yet, and a place.

Equal files have the same bytes; equal links the same target; equal folders the same names, and behind each name the
same type, permission bits and content, all the way down.  The permission bits of the top count only if the caller
asked for some; otherwise they are taken over from what is there.  Owner, times, extended attributes and hard links are
not compared.

Nothing is followed: no link, and no mount.  What cannot be read counts as changed, so the worst that happens is a swap
that was not needed.  Content is read in pieces, up to the first difference.
"""

from __future__ import annotations

import os
import stat

from atomik import errors
from atomik._folder.directory import Directory
from atomik._system import kernel

from .walk import TreeWalk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atomik._folder.place import Place

_CHUNK = 1 << 20
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def same(new: Place, old: Place, permissions: int | None = None) -> bool:
    """Whether `old` may stay because `new` is the same; `permissions` are those that were asked for, if any."""
    try:
        found = kernel.port.lstat(new.name, new.fd), kernel.port.lstat(old.name, old.fd)
        if not _same_permissions(found[1], permissions):
            return False
        if kernel.is_folder(found[0].st_mode) and kernel.is_folder(found[1].st_mode):
            with new.open() as ours, old.open() as theirs:
                return _same_trees(ours, theirs)
        return _same_entries(new.name, new.fd, old.fd, found, old.name)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return False


def same_file(fd: int, old: Place, permissions: int | None) -> bool:
    """The same for an open file."""
    try:
        found = kernel.port.lstat(old.name, old.fd)
        if not _same_permissions(found, permissions) or not kernel.is_file(found.st_mode):
            return False
        return _same_content(fd, kernel.port.fstat(fd), old.name, old.fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return False


def _same_permissions(old: os.stat_result, wanted: int | None) -> bool:
    return wanted is None or stat.S_IMODE(old.st_mode) == wanted


def _same_trees(new: Directory, old: Directory) -> bool:
    with TreeWalk(new, "compare") as ours, TreeWalk(old, "compare") as theirs:
        try:
            return _same_levels(ours, theirs)
        except errors.AtomikOSError as exc:  # it cannot be read
            if exc not in (ours.error, theirs.error):
                raise
            return False


def _same_levels(ours: TreeWalk, theirs: TreeWalk) -> bool:
    while True:
        level = ours.level
        if level.folders is None:
            level.folders = _compare_level(ours, theirs)
            if level.folders is None:
                return False
        if level.folders:
            name = level.folders.pop()
            ours.enter(name)
            theirs.enter(name)
        elif not ours.depth:
            return True
        else:
            ours.leave()
            theirs.leave()


def _compare_level(ours: TreeWalk, theirs: TreeWalk) -> list[str] | None:
    """The folders in the present level, which are still to be compared; None when there is a difference already."""
    names = set(ours.names())
    if names != set(theirs.names()):
        return None
    port, new_fd, old_fd = kernel.port, ours.level.fd, theirs.level.fd
    folders = []
    for name in names:
        found = port.lstat(name, new_fd), port.lstat(name, old_fd)
        if stat.S_ISLNK(found[0].st_mode) or stat.S_IMODE(found[0].st_mode) == stat.S_IMODE(found[1].st_mode):
            if kernel.is_folder(found[0].st_mode) and kernel.is_folder(found[1].st_mode):
                folders.append(name)
                continue
            if _same_entries(name, new_fd, old_fd, found, name):
                continue
        return None
    return folders


def _same_entries(
    name: str, new_fd: int, old_fd: int, found: tuple[os.stat_result, os.stat_result], old_name: str
) -> bool:
    """Whether two objects that are not both folders are the same; their permissions have been compared."""
    new, old = found
    port = kernel.port
    if stat.S_IFMT(new.st_mode) != stat.S_IFMT(old.st_mode):
        return False
    if stat.S_ISLNK(new.st_mode):
        return port.readlink(name, new_fd) == port.readlink(old_name, old_fd)
    if not kernel.is_file(new.st_mode):
        return new.st_rdev == old.st_rdev  # devices by their number; of FIFOs and sockets there is no more to compare
    if new.st_size != old.st_size:
        return False
    fd = port.open(name, _FILE, new_fd)
    try:
        return _same_content(fd, new, old_name, old_fd)
    finally:
        port.close(fd)


def _same_content(fd: int, new: os.stat_result, old_name: str, old_fd: int) -> bool:
    port = kernel.port
    other = port.open(old_name, _FILE, old_fd)
    try:
        old = port.fstat(other)
        if not kernel.is_file(old.st_mode) or old.st_size != new.st_size:
            return False
        if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino):
            return True  # a hard link of it
        at = 0
        while True:
            piece = port.pread(fd, _CHUNK, at)
            if port.pread(other, _CHUNK, at) != piece:
                return False
            if not piece:
                return True
            at += len(piece)
    finally:
        port.close(other)
