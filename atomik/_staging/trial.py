"""Trying a filesystem before trusting it with anything of the user's.

FUSE servers and unknown filesystems may refuse the flags of renameat2, or (worse) ignore them: then an exchange is
reported as done while it destroyed the target.  Two scratch files in the transaction's private folder tell; the answer
is remembered by mount.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from atomik import errors
from atomik._folder.directory import Directory, Place, rename
from atomik._protocol.step import NO_FLAG
from atomik._system import kernel

if TYPE_CHECKING:
    from .item import Item
    from .workspace import Workspace

LIES = "the filesystem says that it exchanged two files, and did not: overwriting would lose data; write elsewhere"


def flags(workspace: Workspace, stage: Directory, item: Item, overwriting: bool) -> None:
    """Make sure, before anything is written, that the item can be published here.

    Raises `UnsupportedFilesystemError` for a server that ignores the flags, and for folders where no flag works.
    """
    fs = stage.fs
    if not fs.trusted and fs.exchange is None:
        try_flags(workspace, stage)
    if fs.lies and overwriting and item.kind != "removal":  # to take away needs no flag: the slot's name is free
        errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, LIES, item.path)
    needed = fs.exchange if overwriting else fs.noreplace
    if item.step_kind() == "folder" and item.kind != "removal" and needed is False and not item.options.allow_gap:
        text = (
            "the filesystem cannot publish a folder in one step (it lacks the flags of renameat2); write to another "
            'one, or accept a moment of visibility with fallback="weaker"'
        )
        errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, text, item.path)


def try_flags(workspace: Workspace, stage: Directory) -> None:
    """Exchange two scratch files, rename one onto a free name, and look at the inodes."""
    port, fs = kernel.port, stage.fs
    first, second = (workspace.slot(stage) for _ in range(2))
    try:
        for place in (first, second):
            port.close(port.create(place.name, os.O_WRONLY, 0o600, place.fd))
        inodes = [_inode(place) for place in (first, second)]
        fs.exchange = _accepts(first, second, kernel.EXCHANGE)
        if fs.exchange and [_inode(second), _inode(first)] != inodes:
            fs.lies, fs.exchange, fs.noreplace = True, False, False
            return
        if second.stat() is not None:
            port.unlink(second.name, second.fd)
        fs.noreplace = _accepts(first, second, kernel.NOREPLACE)
    finally:
        for place in (first, second):
            if place.directory.exists(place.name):
                port.unlink(place.name, place.fd)


def _accepts(src: Place, dst: Place, flag: int) -> bool:
    try:
        rename(src, dst, flag)
    except OSError as exc:
        if exc.errno in NO_FLAG:
            return False
        raise
    return True


def _inode(place: Place) -> int:
    found = place.stat()
    return -1 if found is None else found.st_ino
