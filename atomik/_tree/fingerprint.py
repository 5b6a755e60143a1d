"""A value that changes when anything in a folder tree changes: it shows whether the tree was changed since.

Calling sequence::

    folders = {}
    before = fingerprint(directory, folders=folders)       # 32 bytes; and 28 bytes for each folder, if wanted
    …
    if fingerprint(directory) != before:
        print(first_difference(directory, folders))        # "news/page"

It covers every name below `directory` and what lstat(2) says about it: type, mode, owner, group, inode, size, and the times
of its last change (mtime and ctime), as far as the clock of the filesystem tells two changes apart (about 4 ms before
Linux 6.13).  With ``digest`` it also covers the content of the files and the targets of the links.

Of the folder itself it covers all but its times, which a rename changes (on xfs and overlay the mtime too, because ".."
changes): so the value is the same after the tree was moved away.  Access times are left out, and so are atomik's own names
(``.atomik-…``).  What is on a mount in the tree is left out: only the name of the mount point counts.

On FUSE an inode number is the server's, which may forget and renumber at any time; it is left out there.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys

from atomik import errors
from atomik._hidden_names import PREFIX
from atomik._system import kernel
from atomik._system.hashes import blake2b

from .walk import Level, TreeWalk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from atomik._folder.directory import Directory

#: Where the parts of a folder's value begin: a hash of the folder itself, one of its entries, their number.
_ENTRIES, _COUNT = 8, 24
_CHUNK = 1 << 20
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
#: the part of a status that counts, after the name and its NUL
_STATUS = struct.Struct("=xIIIQQqq").pack
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
#: An entry was removed, or is of another kind than when it was listed.
_CHANGED = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO})


def fingerprint(directory: Directory, *, digest: bool = False, folders: dict[str, bytes] | None = None) -> bytes:
    """The value for the tree below an open folder, and for the folder itself.

    `folders` gets the path of every folder in it ("" for `directory`) with a value for what is directly in that one.

    Raises `AccessDeniedError` for a folder, or with `digest` a file, that may not be read.
    """
    whole = _new_hash(32)
    for path, own, _ in _walk(directory, digest=digest):
        whole.update(os.fsencode(path) + b"\0" + own)
        if folders is not None:
            folders[path] = own
    return whole.digest()


class Recorder:
    """The same value, computed during a walk through the tree for another purpose."""

    def __init__(self, directory: Directory) -> None:
        self.inodes = directory.fs.name != "fuse"
        self.folders: dict[str, bytes] = {}

    def entry(self, name: str, found: os.stat_result) -> bytes:
        """The bytes that stand for an entry that is not a folder."""
        return _entry(name, found, self.inodes)

    def folder(
        self, names: list[str], itself: os.stat_result, entries: list[tuple[str, bytes]], below: list[str]
    ) -> None:
        """A folder, by the names that lead to it: its status from before its entries, these, and the names of its folders."""
        entries += [(name, _entry(name, None, self.inodes)) for name in below]
        entries.sort()
        state = _new_hash(_COUNT - _ENTRIES, b"".join([told for _, told in entries]))
        self.folders["/".join(names)] = _value(itself, state, len(entries), top=not names)

    def value(self) -> bytes:
        whole = _new_hash(32)
        for path in sorted(self.folders, key=lambda path: path.split("/") if path else []):
            whole.update(os.fsencode(path) + b"\0" + self.folders[path])
        return whole.digest()


def _entry(name: str, found: os.stat_result | None, inodes: bool) -> bytes:
    """The bytes that stand for an entry; for a folder only its name, because the rest is in its own value."""
    if found is None:
        return os.fsencode(name) + b"/\0"
    inode = found.st_ino if inodes else 0
    return name.encode(_ENCODING, _ERRORS) + _STATUS(
        found.st_mode, found.st_uid, found.st_gid, inode, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


def _value(itself: os.stat_result, entries: blake2b, count: int, *, top: bool) -> bytes:
    times = (0, 0) if top else (itself.st_mtime_ns, itself.st_ctime_ns)
    own = _new_hash(_ENTRIES, b"%d %d %d %d %d" % (*_owner(itself), *times))
    return own.digest() + entries.digest() + count.to_bytes(4, "big")


def first_difference(directory: Directory, folders: dict[str, bytes], *, digest: bool = False) -> str | None:
    """The path, from `directory`, of something that differs from what `folders` was made of; None when nothing does.

    In a changed folder this is the entry that changed last; the folder itself when it has fewer entries than before, or when
    only its own mode, owner or time changed.
    """
    missing = dict.fromkeys(folders)
    found: str | None = None
    for path, own, newest in _walk(directory, digest=digest):
        missing.pop(path, None)
        before = folders.get(path)
        if before is None:  # a new folder: the one above it may only have another time
            return path
        if own != before and found is None:
            same_entries, fewer = own[_ENTRIES:] == before[_ENTRIES:], own[_COUNT:] < before[_COUNT:]
            found = path if same_entries or fewer else os.path.join(path, newest)
    return next(iter(missing), found)


def _walk(directory: Directory, *, digest: bool) -> Iterator[tuple[str, bytes, str]]:
    """(path, value of its own entries, name of the entry that changed last or "") of each folder, in a fixed order."""
    with TreeWalk(directory, "read") as down:
        while True:
            level = down.level
            if level.folders is None:
                own, newest = _Folder(down, level, digest=digest, inodes=directory.fs.name != "fuse").read()
                yield "/".join(level.names()), own, newest
            assert level.folders is not None
            if level.folders:
                _enter(down, level.folders.pop())
            elif down.depth:
                down.leave()
            else:
                return


def _enter(down: TreeWalk, name: str) -> None:
    try:
        down.enter_if_there(name)
    except errors.MountPointError as exc:  # what is on it does not belong to the tree
        if exc is not down.error:
            raise


class _Folder:
    """One folder whose entries are read."""

    def __init__(self, down: TreeWalk, level: Level, *, digest: bool, inodes: bool) -> None:
        self.down, self.level, self.digest, self.inodes = down, level, digest, inodes

    def read(self) -> tuple[bytes, str]:
        """The value of the entries; their folders are left in the level, and the name that changed last is returned."""
        port, fd = kernel.port, self.level.fd
        itself = port.fstat(fd)  # before the entries: a change in between makes the value stale, never wrong
        folders, newest, latest, told, inodes, digest, lstat = [], "", 0, [], self.inodes, self.digest, port.lstat
        names = sorted([name for entry in self.down.entries() if not (name := entry.name).startswith(PREFIX)])
        for name in names:
            try:
                found = lstat(name, fd)
            except OSError as exc:
                if kernel.errno_of(exc) != errno.ENOENT:
                    self.down.fail(exc, name)
                continue
            if kernel.is_folder(found.st_mode):
                folders.append(name)
                told.append(_entry(name, None, inodes))
                continue
            told.append(_entry(name, found, inodes))
            if digest:
                told.append(self._digest(name, found))
            if found.st_ctime_ns > latest:
                newest, latest = name, found.st_ctime_ns
        self.level.folders = folders[::-1]
        state = _new_hash(_COUNT - _ENTRIES)
        state.update(b"".join(told))
        return _value(itself, state, len(names), top=self.level.above is None), newest

    def _digest(self, name: str, found: os.stat_result) -> bytes:
        try:
            return self._content(name, found)
        except OSError as exc:
            if kernel.errno_of(exc) not in _CHANGED:
                self.down.fail(exc, name)
            return b""

    def _content(self, name: str, found: os.stat_result) -> bytes:
        port, above = kernel.port, self.level.fd
        if stat.S_ISLNK(found.st_mode):
            return os.fsencode(port.readlink(name, above)) + b"\0"
        if not stat.S_ISREG(found.st_mode):
            return b""  # not even opened: with a device or a FIFO that may have effects of its own
        fd = port.open(name, _FILE, above)
        try:
            return content_digest(fd)
        finally:
            port.close(fd)


def content_digest(fd: int) -> bytes:
    """BLAKE2b-256 of an open regular file; empty for anything else."""
    if not kernel.is_file(kernel.port.fstat(fd).st_mode):
        return b""
    state, at = _new_hash(32), 0
    while chunk := kernel.port.pread(fd, _CHUNK, at):
        state.update(chunk)
        at += len(chunk)
    return state.digest()


def _owner(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_mode, found.st_uid, found.st_gid


def _new_hash(size: int, data: bytes = b"") -> blake2b:
    return blake2b(data, digest_size=size)
