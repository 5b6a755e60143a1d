"""Trying a filesystem before trusting it with a user's data.

FUSE servers and unknown filesystems may refuse the flags of renameat2, or (worse) ignore them: then an exchange is
reported as done while it destroyed the target.  Some show two names of one file as two files, and some give a file another
inode number with another name.  Scratch files in the transaction's private folder show it; the answer is remembered by mount.
"""

from __future__ import annotations

import os

from atomik._folder.place import NO_FLAG, link, rename
from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atomik._folder.place import Place

LIES = "the filesystem says that it exchanged two files, and did not: overwriting would lose data; write elsewhere"


def try_names(first: Place, second: Place, third: Place, fourth: Place) -> None:
    """Exchange two scratch files, rename one onto a free name, link another one, and compare identities.

    The places are free, private, and free again afterwards.  A name is used for one trial only: a server that ignores flags
    may answer from its cache that a name exists which is gone.
    """
    fs = first.directory.fs
    try:
        _make(first, b"1")
        _make(second, b"2")
        inodes = [_inode(first), _inode(second)]
        fs.exchange = _accepts(first, second, kernel.EXCHANGE)
        if fs.exchange and not _exchanged(first, second, inodes):
            fs.lies, fs.exchange, fs.noreplace = True, False, False
        _remove(second)
        if not fs.lies:
            before = _inode(first)
            fs.noreplace = _accepts(first, second, kernel.NOREPLACE)
            if not fs.noreplace:
                rename(first, second, 0)
            second.directory.names()  # which makes the kernel ask the server again
            fs.renumbers = _inode(second) != before
        _make(third, b"3")
        fs.links = None  # to be tried
        fs.links = link(third, fourth)
        fs.links_are_one = fs.links and third.identity() == fourth.identity()
    finally:
        for place in (first, second, third, fourth):
            _remove(place)


def _exchanged(first: Place, second: Place, inodes: list[int]) -> bool:
    """Whether it has happened.  Files are opened and read, and names listed, because the kernel's cache believes what the
    server said; only the server knows what it did."""
    if [_inode(second), _inode(first)] != inodes or [_read(first), _read(second)] != [b"2", b"1"]:
        return False
    return {first.name, second.name} <= set(first.directory.names())


def _make(place: Place, content: bytes) -> None:
    port = kernel.port
    fd = port.create(place.name, os.O_WRONLY, 0o600, place.fd)
    try:
        port.pwrite(fd, content, 0)
    finally:
        port.close(fd)


def _read(place: Place) -> bytes | None:
    port = kernel.port
    try:
        fd = port.open(place.name, os.O_RDONLY | os.O_NOFOLLOW, place.fd)
    except FileNotFoundError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return None
    try:
        return port.pread(fd, 8, 0)
    finally:
        port.close(fd)


def _accepts(src: Place, dst: Place, flag: int) -> bool:
    try:
        rename(src, dst, flag)
    except OSError as exc:
        if kernel.errno_of(exc) in NO_FLAG:
            return False
        raise
    return True


def _remove(place: Place) -> None:
    """What cannot be removed goes with the private folder."""
    try:
        kernel.port.unlink(place.name, place.fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise


def _inode(place: Place) -> int:
    found = place.status()
    return -1 if found is None else found.ino
