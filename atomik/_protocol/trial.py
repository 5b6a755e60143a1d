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


def try_names(first: Place, second: Place, third: Place, fourth: Place) -> None:
    """Exchange two scratch files, rename one onto a free name, link another, and see what came of it.

    Contents tell whether the exchange happened, for to open a file asks the server: a status may come from the kernel's own
    cache, which takes the server's word for it.  The places are free, private, and free again afterwards.
    """
    fs = first.directory.fs
    try:
        _make(first, b"1")
        _make(second, b"2")
        fs.exchange = _accepts(first, second, kernel.EXCHANGE)
        if fs.exchange and [_content(first), _content(second)] != [b"2", b"1"]:
            fs.lies, fs.exchange, fs.noreplace = True, False, False
        _remove(second)
        if not fs.lies:
            fs.noreplace = _accepts(first, second, kernel.NOREPLACE)
        _make(third, b"3")
        fs.links = None  # to be tried
        fs.links = link(third, fourth) and third.identity() == fourth.identity()
    finally:
        for place in (first, second, third, fourth):
            _remove(place)


def _make(place: Place, content: bytes) -> None:
    fd = kernel.port.create(place.name, os.O_WRONLY, 0o600, place.fd)
    try:
        kernel.port.write(fd, content)
    finally:
        kernel.port.close(fd)


def _content(place: Place) -> bytes:
    try:
        fd = kernel.port.open(place.name, os.O_RDONLY | os.O_NOFOLLOW, place.fd)
    except FileNotFoundError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return b""
    try:
        return kernel.port.pread(fd, 10, 0)
    finally:
        kernel.port.close(fd)


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
