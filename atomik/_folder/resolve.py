"""From a path to an open folder, once, and not through a link that another user has placed as a trap.

A program that writes into a folder in which others may create names can be redirected: they replace a folder on the path
by a symbolic link.  Another user's link is therefore not followed into a folder of the present user; and root follows it
only into a folder of the link's owner.  Links of root, and the user's own, are followed as usual.

The common path has no link in it and costs one call (openat2 with RESOLVE_NO_SYMLINKS, Linux 5.6); the others are
walked component by component with descriptors, so that what was checked is what is opened.

* `open_folder(path)`: a folder, to work in.
* `open_path_fd(path)`: the same with O_PATH, for which no permission on the folder itself is needed.
* `follow(path)`: where a link at the end of the path leads.
* `is_private(path, key)`: whether others can make the path lead elsewhere, later, when a program uses it by name.
"""

from __future__ import annotations

import errno
import os
import stat

from atomik import errors
from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MODULE = type(errno)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_PROC = 0x9FA0
#: as many links on one path as the kernel follows
_LINKS = 40
_WALK = kernel.SANDBOXED | {errno.ELOOP}


def open_folder(path: str) -> int:
    """A readable descriptor of the folder at `path`.

    Raises OSError as open(2), and `AccessDeniedError` for a link that must not be followed.
    """
    if type(os) is not _MODULE:
        kernel.refuse_fake(path)
    try:
        return kernel.port.open_beneath(path, _FOLDER, kernel.AT_FDCWD, kernel.RESOLVE_NO_SYMLINKS)
    except OSError as exc:
        # EACCES: of a sandbox, or the walk finds out which folder on the way is closed.
        if kernel.errno_of(exc) not in _WALK:
            raise
    path_fd = open_path_fd(path)
    try:
        return kernel.port.open(".", _FOLDER, path_fd)
    finally:
        kernel.port.close(path_fd)


def open_path_fd(path: str) -> int:
    """An O_PATH descriptor of what is at `path`; raises like `open_folder`."""
    owners: set[int] = set()
    path_fd = _walk(path, owners)
    try:
        refuse_traps(path, owners, kernel.port.fstat(path_fd).st_uid)
    except BaseException:
        kernel.port.close(path_fd)
        raise
    return path_fd


def follow(path: str) -> tuple[str, set[int]]:
    """Where a link at `path` leads in the end, there or not, and the owners of the links on the way, for `refuse_traps`
    once it is known whose the folder is; anything else is left as it is.

    Raises OSError for links that lead in a circle, and `AccessDeniedError` for one that leads through a trap.
    """
    owners: set[int] = set()
    for _ in range(_LINKS):
        target = _link_at(path, owners)
        if target is None:
            return path, owners
        path = os.path.join(os.path.dirname(path), target)
        if os.path.basename(path.rstrip("/")) in ("", ".", ".."):  # no name, and so no link, at the end
            return real(path), owners
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def real(path: str) -> str:
    """The path without links and dots, as far as it exists.  os.path.realpath would take a signal handler's OSError for an
    answer (I13); so do os.path.isdir and its like."""
    found, links = "" if path[:1] == "/" else os.getcwd().rstrip("/"), 0
    parts = path.split("/")[::-1]
    while parts:
        part = parts.pop()
        if part == "..":
            found = found.rpartition("/")[0]
        elif part not in ("", "."):
            here = f"{found}/{part}"
            target = _target(here) if links < _LINKS else None
            if target is None:
                found = here
                continue
            links += 1
            parts += target.split("/")[::-1]
            if target[0] == "/":
                found = ""
    return found or "/"


def _target(path: str) -> str | None:
    try:
        return kernel.port.readlink(path)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return None


def _link_at(path: str, owners: set[int]) -> str | None:
    """What the link at `path` says; None for anything else."""
    head, name = os.path.split(path)
    if not name:
        return None
    try:
        above = open_path_fd(head)
        try:
            path_fd = kernel.port.open(name, os.O_PATH | os.O_NOFOLLOW, above)
        finally:
            kernel.port.close(above)
    except (FileNotFoundError, NotADirectoryError) as exc:
        if kernel.errno_of(exc) is None:
            raise
        return None
    try:
        status = kernel.port.fstat(path_fd)
        if not stat.S_ISLNK(status.st_mode):
            return None
        owners.add(status.st_uid)
        return kernel.port.readlink("", path_fd)
    finally:
        kernel.port.close(path_fd)


def is_private(path: str, key: tuple[int, int]) -> bool:
    """Whether `path` leads to the folder `key` (st_dev, st_ino) through folders in which nobody but root and this user
    can replace one of the names: not writable by others, or sticky."""
    safe = True

    def passed(folder: os.stat_result, at: int, entry: os.stat_result | None) -> None:
        nonlocal safe
        safe = safe and _is_closed(folder, at, entry)

    try:
        path_fd = _walk(path, set(), passed)
        try:
            end = kernel.port.fstat(path_fd)
            passed(end, path_fd, None)
        finally:
            kernel.port.close(path_fd)
    except OSError as exc:  # unknown, so better too careful
        if not kernel.is_failure(exc):
            raise
        return False
    return safe and (end.st_dev, end.st_ino) == key


def _is_closed(folder: os.stat_result, at: int, entry: os.stat_result | None) -> bool:
    us = (0, os.geteuid())
    if folder.st_uid not in us:
        return False
    others = folder.st_mode & stat.S_IWOTH
    if folder.st_mode & stat.S_IWGRP:  # with an ACL these bits are about more than the group
        others |= folder.st_gid != os.getegid() or _has_acl(at)
    if not others:
        return True
    return bool(folder.st_mode & stat.S_ISVTX) and (entry is None or entry.st_uid in us)


def _has_acl(path_fd: int) -> bool:
    try:
        return "system.posix_acl_access" in kernel.port.listxattr_of(f"/proc/self/fd/{path_fd}")
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return True


def refuse_traps(path: str, owners: set[int], owner: int) -> None:
    """Raise `AccessDeniedError` for a link that must not be followed into a folder of `owner`."""
    me = os.geteuid()
    for other in owners - {me, 0, owner}:
        if me == 0 or owner == me:
            text = (
                f"the path leads through a symbolic link of user {other} to a folder of user {owner}, which may be a trap; "
                "name the real path, or make the link your own"
            )
            errors.fail(errors.AccessDeniedError, errno.EACCES, text, path)


def _walk(
    path: str, owners: set[int], passed: Callable[[os.stat_result, int, os.stat_result | None], None] | None = None
) -> int:
    """An O_PATH descriptor of what the path leads to; the owners of the links on the way are added to `owners`.

    `passed` is told of each folder in which a name was looked up: its stat, its descriptor, and the stat of the entry.
    """
    at = _start(path)
    rest = _components(path)
    links = 0
    try:
        while rest:
            name = rest.pop()
            found = _step(name, at, path, rest)
            try:
                status = kernel.port.fstat(found)
                if passed is not None:
                    passed(kernel.port.fstat(at), at, status)
                if not stat.S_ISLNK(status.st_mode):
                    at, found = found, at
                    continue
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if kernel.port.filesystem_magic(at) == _PROC:  # /proc/self/fd/3: what it says is not where it leads
                    beyond = kernel.port.open(name, os.O_PATH | os.O_DIRECTORY, at)
                    at, beyond = beyond, at
                    kernel.port.close(beyond)
                    continue
                owners.add(status.st_uid)
                target = kernel.port.readlink("", found)
            finally:
                kernel.port.close(found)
            rest += _components(target)
            if target.startswith("/"):
                at, before = _start(target), at
                kernel.port.close(before)
    except BaseException:
        kernel.port.close(at)
        raise
    return at


def _step(name: str, at: int, path: str, rest: list[str]) -> int:
    """Open the next name; for a folder that may not be searched, the error names that folder."""
    try:
        return kernel.port.open(name, os.O_PATH | os.O_NOFOLLOW, at)
    except PermissionError as exc:
        if kernel.errno_of(exc) is None:
            raise
        try:
            closed = kernel.port.readlink(f"/proc/self/fd/{at}")
        except OSError as failed:
            if kernel.errno_of(failed) is None:
                raise
            behind = len("/".join([name, *reversed(rest)]))
            closed = path.rstrip("/")[:-behind].rstrip("/") or path
        text = f"the way to {path!r} leads through a folder that you may not search; ask for x permission on it"
        raise errors.AccessDeniedError(*errors.os_args(errno.EACCES, text, closed)) from exc


def _start(path: str) -> int:
    return kernel.port.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_DIRECTORY)


def _components(path: str) -> list[str]:
    """In reverse, to be taken from the end."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]
