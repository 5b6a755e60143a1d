"""From a path to an open folder, once, and not by a way that somebody else has laid as a trap.

A program that writes into a folder in which others may create names can be led elsewhere: they put a symbolic link in
the place of a folder on the way.  A link that belongs to another user is therefore not followed into a folder of one's
own; and by root, not into any folder but the link owner's.  Links of root, or one's own, are followed as ever.

The common path has no link in it and costs one call (openat2 with RESOLVE_NO_SYMLINKS, Linux 5.6); the others are
walked component by component with descriptors, so that what was looked at is what is opened.
"""

from __future__ import annotations

import errno
import os
import stat

from . import _kernel, errors

_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_AT_FDCWD = -100
_PROC = 0x9FA0
#: as many links on one path as the kernel follows
_LINKS = 40


def open_folder(path: str) -> int:
    """A readable descriptor of the folder at `path`.

    Raises OSError as open(2), and `AccessDeniedError` for a link that must not be followed.
    """
    try:
        return _kernel.port.open_beneath(path, _FOLDER, _AT_FDCWD, _kernel.RESOLVE_NO_SYMLINKS)
    except OSError as exc:
        # ENOSYS before Linux 5.6; EPERM of a container's filter that does not know the call.
        if exc.errno not in (errno.ELOOP, errno.ENOSYS, errno.EPERM):
            raise
    owners: set[int] = set()
    note = _walk(path, owners)
    try:
        fd = _kernel.port.open(".", _FOLDER, note)
    finally:
        _kernel.port.close(note)
    try:
        _refuse_traps(path, owners, _kernel.port.fstat(fd).st_uid)
    except BaseException:
        _kernel.port.close(fd)
        raise
    return fd


def _refuse_traps(path: str, owners: set[int], owner: int) -> None:
    me = os.geteuid()
    for other in owners - {me, 0, owner}:
        if me == 0 or owner == me:
            text = (
                f"the path leads through a symbolic link of user {other} to a folder of user {owner}, which may be a trap; "
                "name the real path, or make the link your own"
            )
            errors.fail(errors.AccessDeniedError, errno.EACCES, text, path)


def _walk(path: str, owners: set[int]) -> int:
    """An O_PATH descriptor of what the path leads to; the owners of the links on the way are added to `owners`."""
    at = _start(path)
    rest = _components(path)
    links = 0
    try:
        while rest:
            name = rest.pop()
            found = _kernel.port.open(name, os.O_PATH | os.O_NOFOLLOW, at)
            try:
                status = _kernel.port.fstat(found)
                if not stat.S_ISLNK(status.st_mode):
                    at, found = found, at
                    continue
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if _kernel.port.filesystem_magic(at) == _PROC:  # /proc/self/fd/3: what it says is not where it leads
                    beyond = _kernel.port.open(name, os.O_PATH | os.O_DIRECTORY, at)
                    at, beyond = beyond, at
                    _kernel.port.close(beyond)
                    continue
                owners.add(status.st_uid)
                target = _kernel.port.readlink("", found)
            finally:
                _kernel.port.close(found)
            rest += _components(target)
            if target.startswith("/"):
                at, before = _start(target), at
                _kernel.port.close(before)
    except BaseException:
        _kernel.port.close(at)
        raise
    return at


def _start(path: str) -> int:
    return _kernel.port.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_DIRECTORY)


def _components(path: str) -> list[str]:
    """In reverse, to be taken from the end."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]
