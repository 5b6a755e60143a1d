"""One change of one name: the unit of a commit, of the journal, and of an undo.

A `Step` is one change of one name.  Before it, the slot holds the new object (nothing, for a removal); after it, the
destination holds the new object and the slot the displaced original::

    op        before: dest, slot     after: dest, slot      first method
    create    –      new             new    –               renameat2 NOREPLACE
    replace   old    new             new    old             renameat2 EXCHANGE
    remove    old    –               –      old             renameat2 NOREPLACE

Larger wishes are chains of steps that share a slot: a move is *remove* the source, then *create* (or *replace*) the
target out of the same slot; keeping the previous version is *replace*, then *create* its new name.
"""

from __future__ import annotations

import errno
import os
from enum import Enum

from attrs import define

from atomik._folder.directory import Place, rename
from atomik._system import kernel

#: errno values that say "this filesystem (or kernel) does not know the flag": EINVAL of FUSE, NFS and ZFS before 2.2,
#: ENOSYS before Linux 3.15, EOPNOTSUPP of some network filesystems.
NO_FLAG = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})

#: errno values of link(2) where it is no way: EPERM of filesystems without hard links and of fs.protected_hardlinks,
#: EOPNOTSUPP and ENOSYS of servers, EMLINK of an inode that has as many as it can.
NO_LINK = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK})

RENAMEAT2 = "renameat2"
LINKAT = "linkat"
LINK = "link"
RENAME = "rename"
GAP = "weaker"


class Undone(Enum):
    """What `undo` found."""

    UNTOUCHED = "untouched"  # the destination holds the original already
    UNDONE = "undone"  # it was brought back
    FOREIGN = "foreign"  # somebody else's object is there; it stays


@define
class Step:
    """One change of one name.  ``new`` and ``old`` are identities, None where there is nothing."""

    op: str
    kind: str
    dest: Place
    slot: Place
    new: bytes | None
    old: bytes | None = None
    order: int = 0
    method: str = ""
    allow_gap: bool = False
    #: the only step of its transaction: nothing after it can fail and want it undone
    alone: bool = False
    #: the mode that the new folder gets right before its swap, where its slot is no private place
    mode: int | None = None
    #: whoever asked would not mind that something stands there
    overwriting: bool = False

    @property
    def folder(self) -> bool:
        """Whether a folder takes part, so that hard links are no way."""
        return self.kind == "folder"

    def twin(self, suffix: str) -> Place:
        """A second private name beside the slot, for the methods and undos that need one."""
        return Place(self.slot.directory, f"{self.slot.name}-{suffix}")

    def slots(self) -> tuple[Place, ...]:
        """Every private name that this step may have left something at."""
        return self.slot, self.twin("old"), self.twin("new")


def same_kind(mode: int, kind: str) -> bool:
    """Whether an existing object may be replaced by one of `kind`: a folder by a folder, else by no folder."""
    return kernel.is_folder(mode) == (kind == "folder")


def put(src: Place, dst: Place, folder: bool) -> None:
    """Rename back onto a name that should be free, never replacing what came there meanwhile."""
    fs = dst.directory.fs
    if fs.noreplace is not False:
        try:
            rename(src, dst, kernel.NOREPLACE)
        except OSError as exc:
            if exc.errno not in NO_FLAG:
                raise
            fs.noreplace = False
        else:
            return
    if not folder and link(src, dst):
        kernel.port.unlink(src.name, src.fd)
        return
    if dst.directory.exists(dst.name):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(dst))
    rename(src, dst, 0)  # nothing better is left; of folders it replaces at most an empty one


def link(src: Place, dst: Place) -> bool:
    """Give a second name; False where the filesystem (or the kernel's fs.protected_hardlinks) will not."""
    try:
        kernel.port.link(src.name, src.fd, dst.name, dst.fd)
    except OSError as exc:
        if exc.errno not in NO_LINK:
            raise
        return False
    return True


def remove_empty(place: Place) -> bool:
    """Remove the empty folder that held a place for us; False when it is no empty folder."""
    try:
        kernel.port.rmdir(place.name, place.fd)
    except (FileExistsError, NotADirectoryError, FileNotFoundError):
        return False
    except OSError as exc:
        if exc.errno != errno.ENOTEMPTY:
            raise
        return False
    return True
