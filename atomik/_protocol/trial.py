"""Trying a filesystem before trusting it with anything of the user's.

FUSE servers and unknown filesystems may refuse the flags of renameat2, or (worse) ignore them: then an exchange is
reported as done while it destroyed the target.  Some show two names of one file as two files.  Scratch files in the
transaction's private folder tell; the answer is remembered by mount.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from atomik._folder.place import NO_FLAG, link, rename
from atomik._system import kernel

if TYPE_CHECKING:
    from atomik._folder.place import Place

LIES = "the filesystem says that it exchanged two files, and did not: overwriting would lose data; write elsewhere"


def try_names(first: Place, second: Place, third: Place) -> None:
    """Exchange two scratch files, rename one onto a free name, link one, and compare identities.

    The three places are free, private, and free again afterwards.
    """
    port, fs = kernel.port, first.directory.fs
    try:
        for place in (first, second):
            port.close(port.create(place.name, os.O_WRONLY, 0o600, place.fd))
        inodes = [_inode(first), _inode(second)]
        fs.exchange = _accepts(first, second, kernel.EXCHANGE)
        if fs.exchange and [_inode(second), _inode(first)] != inodes:
            fs.lies, fs.exchange, fs.noreplace = True, False, False
        _remove(second)
        if not fs.lies:
            fs.noreplace = _accepts(first, second, kernel.NOREPLACE)
        _remove(first)
        _remove(second)
        port.close(port.create(first.name, os.O_WRONLY, 0o600, first.fd))
        fs.links = None  # to be tried
        fs.links = link(first, third) and first.identity() == third.identity()
    finally:
        for place in (first, second, third):
            _remove(place)


def _accepts(src: Place, dst: Place, flag: int) -> bool:
    try:
        rename(src, dst, flag)
    except OSError as exc:
        if kernel.errno_of(exc) in NO_FLAG:
            return False
        raise
    return True


def _remove(place: Place) -> None:
    """A server that ignores flags may answer from its cache that a name exists which is gone: ENOENT is no error."""
    try:
        kernel.port.unlink(place.name, place.fd)
    except FileNotFoundError as exc:
        if kernel.errno_of(exc) is None:
            raise


def _inode(place: Place) -> int:
    found = place.status()
    return -1 if found is None else found.ino
