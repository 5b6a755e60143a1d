"""What a program changed in a clone: which names are new, gone, changed or renamed.

Calling sequence::

    before = manifest(clone)                      # right after the clone was made
    …                                             # the program works on it
    found = changes(before, clone, original)      # [Change("+", "a/new"), Change("R", "b", "old name of b"), …]

An object whose inode and change time are those of the manifest is unchanged, so only the rest is compared with the original:
kind, mode, owner, size, content, target and extended attributes.  Times alone are no change.  A rename is known by the inode;
the content must not have changed since.
"""

from __future__ import annotations

import os
import stat

from atomik._receipt import PlainValues
from atomik._system import kernel

from .fingerprint import content_digest
from .metadata import Metadata
from .walk import TreeWalk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from atomik._folder.directory import Directory

    Manifest = dict[str, os.stat_result]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class Change(PlainValues):
    """One name: ``change`` is "+" (new), "-" (removed), "M" (changed) or "R" (renamed from ``old``); ``path`` is relative,
    and a folder's ends with a slash."""

    __slots__ = __match_args__ = ("change", "path", "old")

    change: Literal["+", "-", "M", "R"]
    path: str
    old: str | None

    def __init__(self, change: Literal["+", "-", "M", "R"], path: str, old: str | None = None) -> None:
        self._set(change, path, old)

    def __str__(self) -> str:
        return f"{self.change} {self.path}" if self.old is None else f"{self.change} {self.old} -> {self.path}"


def manifest(directory: Directory) -> Manifest:
    """What lstat(2) says of everything below a folder, and of the folder itself (as "")."""
    found = {"": kernel.port.fstat(directory.fd)}
    with TreeWalk(directory, "read") as down:
        for entry in down.each():
            path = os.path.join("", *down.level.names(), entry.name)
            found[path] = kernel.port.lstat(entry.name, down.level.fd)
    return found


def changes(before: Manifest, clone: Directory, original: Directory) -> list[Change]:
    """What differs between a clone and its manifest, sorted by path."""
    after = manifest(clone)
    renamed = _renamed(before, after)
    old_names = set(renamed.values())
    found = [Change("-", _shown(path, before[path])) for path in before.keys() - after.keys() - old_names]
    for path, status in after.items():
        if path in renamed:
            old = renamed[path]
            if renamed.get(os.path.dirname(path)) != os.path.dirname(old):  # else it moved with its folder
                found.append(Change("R", _shown(path, status), _shown(old, status)))
        elif path not in before:
            found.append(Change("+", _shown(path, status)))
        elif _touched(before[path], status) and _differs(path, before[path], status, clone, original):
            found.append(Change("M", _shown(path, status)))
    return sorted(found, key=lambda each: each.path)


def between(old: Directory | None, new: Directory | None, path: str = "") -> list[Change]:
    """What differs between a folder and a changed copy of it, both at `path` for the answer; None stands for no folder."""
    before, after = ({} if folder is None else manifest(folder) for folder in (old, new))
    found = [Change("-", _shown(os.path.join(path, name), before[name])) for name in before.keys() - after.keys()]
    for name, status in after.items():
        if name not in before:
            found.append(Change("+", _shown(os.path.join(path, name), status)))
        elif old is None or new is None or not _may_differ(before[name], status):
            continue
        elif _differs(name, before[name], status, new, old):
            found.append(Change("M", _shown(os.path.join(path, name), status)))
    return found


def _may_differ(old: os.stat_result, new: os.stat_result) -> bool:
    """Whether a copy, which keeps times, may have been changed; folders are always asked for their attributes."""
    return stat.S_ISDIR(new.st_mode) or (old.st_mode, old.st_uid, old.st_gid, old.st_size, old.st_mtime_ns) != (
        new.st_mode, new.st_uid, new.st_gid, new.st_size, new.st_mtime_ns,
    )  # fmt: skip


def counts(found: Iterable[Change]) -> dict[str, int]:
    """How many of each."""
    kinds = [each.change for each in found]
    return {
        "new": kinds.count("+"),
        "removed": kinds.count("-"),
        "changed": kinds.count("M"),
        "renamed": kinds.count("R"),
    }


def _shown(path: str, status: os.stat_result) -> str:
    return os.path.join(path.rstrip("/") or ".", "") if stat.S_ISDIR(status.st_mode) else path


def _renamed(before: Manifest, after: Manifest) -> dict[str, str]:
    """New name → old name."""
    gone = {before[path].st_ino: path for path in sorted(before.keys() - after.keys(), reverse=True)}
    found: dict[str, str] = {}
    for path in sorted(after.keys() - before.keys()):
        old = gone.get(after[path].st_ino)
        if old is not None and _same_object(before[old], after[path]):
            found[path] = gone.pop(after[path].st_ino)
    return found


def _same_object(old: os.stat_result, new: os.stat_result) -> bool:
    """Whether a new name belongs to the object of an old one, and not to a later object with its inode number."""
    return (stat.S_IFMT(old.st_mode), old.st_size, old.st_mtime_ns) == (
        stat.S_IFMT(new.st_mode), new.st_size, new.st_mtime_ns,
    )  # fmt: skip


def _touched(old: os.stat_result, new: os.stat_result) -> bool:
    return (old.st_ino, old.st_ctime_ns, old.st_mtime_ns) != (new.st_ino, new.st_ctime_ns, new.st_mtime_ns)


def _differs(path: str, old: os.stat_result, new: os.stat_result, clone: Directory, original: Directory) -> bool:
    if (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) != (new.st_mode, new.st_uid, new.st_gid, new.st_rdev):
        return True
    if stat.S_ISLNK(new.st_mode):
        return kernel.port.readlink(path, clone.fd) != _link(path, original)
    if stat.S_ISREG(new.st_mode) and old.st_size != new.st_size:
        return True
    if stat.S_ISREG(new.st_mode) or stat.S_ISDIR(new.st_mode):
        return _content(path, clone) != _content(path, original)
    return False


def _link(path: str, folder: Directory) -> str | None:
    try:
        return kernel.port.readlink(path, folder.fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return None  # someone changed the original in the meantime


def _content(path: str, folder: Directory) -> tuple[bytes, dict[str, bytes]] | None:
    """The digest of a file's content (of a folder, nothing) and the extended attributes; None if it cannot be read."""
    port = kernel.port
    try:
        fd = port.open(path or ".", _READ, folder.fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return None
    try:
        return content_digest(fd), Metadata.held(fd, port.fstat(fd)).xattrs
    finally:
        port.close(fd)
