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

from atomik import errors
from atomik._hidden_names import PREFIX
from atomik._system import kernel
from atomik._system.hashes import blake2b

from .walk import Level, TreeWalk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from atomik._folder.directory import Directory

#: Where the parts of a folder's value begin: a hash of the folder itself, one of its entries, their number.
_ENTRIES, _COUNT = 8, 24
_CHUNK = 1 << 20
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
#: the part of a status that counts: mode, owner, group, inode, size and times, the ctime last
_STATUS = struct.Struct("=IIIQQqq")
_pack = _STATUS.pack
#: the bytes that stand for a folder, besides its name: the rest is in its own value
_BELOW = bytes(_STATUS.size)
#: the bytes that stand for an entry that was removed after it was listed
_GONE = b"\xff" * _STATUS.size
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
    """The same value, computed during a walk through the tree for another purpose.

    ``entries`` gets everything in the present folder except folders: the name, and the bytes that stand for its status
    (`status`).
    """

    def __init__(self, directory: Directory) -> None:
        self.status = _status_of(directory)
        self.entries: dict[str, bytes] = {}
        self.folders: dict[str, bytes] = {}

    def folder(self, names: list[str], itself: os.stat_result, below: list[str]) -> None:
        """All of a folder's entries are known.  `names` lead to it, `itself` is its status from before its entries were read,
        and `below` are the names of its folders."""
        entries, self.entries = self.entries, {}
        entries.update(dict.fromkeys(below, _BELOW))
        self.folders["/".join(names)] = _value(itself, entries, [], top=not names)

    def value(self) -> bytes:
        whole = _new_hash(32)
        for path in sorted(self.folders, key=lambda path: path.split("/") if path else []):
            whole.update(os.fsencode(path) + b"\0" + self.folders[path])
        return whole.digest()


def _status_of(directory: Directory) -> Callable[[os.stat_result], bytes]:
    """What makes the bytes that stand for the status of an entry that is not a folder."""
    return _status_without_inode if directory.fs.name == "fuse" else _status


def _status(found: os.stat_result) -> bytes:
    return _pack(
        found.st_mode, found.st_uid, found.st_gid, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


def _status_without_inode(found: os.stat_result) -> bytes:
    return _pack(found.st_mode, found.st_uid, found.st_gid, 0, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _value(itself: os.stat_result, entries: dict[str, bytes], contents: list[bytes], *, top: bool) -> bytes:
    """The value of a folder: of its own status, the names in it, their statuses, and their contents."""
    times = (0, 0) if top else (itself.st_mtime_ns, itself.st_ctime_ns)
    own = _new_hash(_ENTRIES, b"%d %d %d %d %d" % (*_owner(itself), *times))
    names = sorted(entries)
    told = _new_hash(_COUNT - _ENTRIES, os.fsencode("\0".join(names)) + b"\0\0")
    told.update(b"".join(map(entries.__getitem__, names)))
    told.update(b"".join(contents))
    return own.digest() + told.digest() + len(names).to_bytes(4, "big")


def first_difference(directory: Directory, folders: dict[str, bytes], *, digest: bool = False) -> str | None:
    """The path, from `directory`, of something that differs from what `folders` was made of; None when nothing does.

    In a changed folder this is the entry that changed last; the folder itself when it has fewer entries than before, or when
    only its own mode, owner or time changed.
    """
    missing = dict.fromkeys(folders)
    found: str | None = None
    for path, own, folder in _walk(directory, digest=digest):
        missing.pop(path, None)
        before = folders.get(path)
        if before is None:  # a new folder: the one above it may only have another time
            return path
        if own != before and found is None:
            same_entries, fewer = own[_ENTRIES:] == before[_ENTRIES:], own[_COUNT:] < before[_COUNT:]
            found = path if same_entries or fewer else os.path.join(path, folder.newest())
    return next(iter(missing), found)


def _walk(directory: Directory, *, digest: bool) -> Iterator[tuple[str, bytes, _Folder]]:
    """Each folder, with its path and its value, in a fixed order."""
    status = _status_of(directory)
    with TreeWalk(directory, "read") as down:
        while True:
            level = down.level
            if level.folders is None:
                folder = _Folder(down, level, status, digest=digest)
                yield "/".join(level.names()), folder.read(), folder
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

    def __init__(
        self, down: TreeWalk, level: Level, status: Callable[[os.stat_result], bytes], *, digest: bool
    ) -> None:
        self.down, self.level, self.digest, self.status = down, level, digest, status
        self.entries: dict[str, bytes] = {}

    def read(self) -> bytes:
        """The value; the names of its folders are left in the level."""
        port, fd = kernel.port, self.level.fd
        itself = port.fstat(fd)  # before the entries: a change in between makes the value stale, never wrong
        entries, contents, folders = self.entries, [], []
        lstat, is_folder, status = port.lstat, kernel.is_folder, self.status
        for name in sorted(self.down.names()):
            if name.startswith(PREFIX):
                continue
            try:
                found = lstat(name, fd)
            except OSError as exc:
                if kernel.errno_of(exc) != errno.ENOENT:
                    self.down.fail(exc, name)
                entries[name] = _GONE
                continue
            if is_folder(found.st_mode):
                folders.append(name)
                entries[name] = _BELOW
                continue
            entries[name] = status(found)
            if self.digest:
                contents.append(self._digest(name, found))
        self.level.folders = folders[::-1]
        return _value(itself, entries, contents, top=self.level.above is None)

    def newest(self) -> str:
        """The name of the entry that changed last, "" if there is none; not a folder, of which only the name counts."""
        changed = {name: _STATUS.unpack(status)[-1] for name, status in self.entries.items()}
        latest = max(changed, key=changed.__getitem__, default="")
        return latest if latest and changed[latest] > 0 else ""

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
