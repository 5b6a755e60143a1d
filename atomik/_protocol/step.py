"""One change of one name: the unit of a commit, of the journal, and of an undo.

Before a `Step` the slot holds the new object (nothing, for a removal); after it the destination holds the new object and
the slot holds the displaced original::

    op        before: dest, slot     after: dest, slot      method tried first
    create    –      new             new    –               renameat2 NOREPLACE (linkat for a file without a name)
    replace   old    new             new    old             renameat2 EXCHANGE
    remove    old    –               –      old             renameat2 NOREPLACE
    exchange  old    new             new    old             renameat2 EXCHANGE, where the slot is a destination as well

Larger changes are chains of steps that share a slot: a move is *remove* the source, then *create* (or *replace*) the
target out of the same slot; keeping the previous version is *replace*, then *create* under its new name.
"""

from __future__ import annotations

import errno
import os
from enum import Enum
from typing import TYPE_CHECKING

from atomik._folder.directory import Place, rename
from atomik._system import kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

#: errno values that say "this filesystem (or kernel) does not know the flag": EINVAL of FUSE, NFS and ZFS before 2.2,
#: ENOSYS before Linux 3.15, EOPNOTSUPP of some network filesystems.
NO_FLAG = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})

#: errno values of link(2) that say something about these two names, or about space.  Any other refusal means "no hard links
#: here": EPERM of filesystems without them and of fs.protected_hardlinks, EOPNOTSUPP and ENOSYS of servers, EMLINK of an
#: inode that has as many as it can, EXDEV of Landlock, ERANGE of CryFS, EIO of rclone, EACCES of AppArmor.
ABOUT_NAMES = frozenset(
    {errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EROFS}
)

RENAMEAT2 = "renameat2"
LINKAT = "linkat"
LINK = "link"
RENAME = "rename"
GAP = "gap"


class Undone(Enum):
    """What `undo` found."""

    UNTOUCHED = "untouched"  # the destination holds the original already
    UNDONE = "undone"  # it was brought back
    FOREIGN = "foreign"  # somebody else's object is there; it stays


class Step:
    """One change of one name.

    ``op``, ``kind``, ``dest``, ``slot`` and ``order`` as in the journal; ``new`` and ``old`` are identities, None where
    there is nothing, or where one step alone does not need them.  ``fd`` is the new file where it has no name yet.
    ``overwriting``: the caller would not mind that something exists there.  ``alone``: the only step of its commit, so
    nothing after it can fail and want it undone.  ``mode``: the mode that the new folder gets right before its swap, where
    its slot is in a folder that others can enter.
    """

    __slots__ = (
        "allow_gap", "alone", "dest", "fd", "kind", "method", "mode", "new", "old", "op", "order", "overwriting", "slot",
    )  # fmt: skip

    def __init__(
        self, op: str, kind: str, dest: Place, slot: Place, new: bytes | None, old: bytes | None = None, order: int = 0,
        *, allow_gap: bool = False, overwriting: bool = False, fd: int = -1,
    ) -> None:  # fmt: skip
        self.op, self.kind, self.dest, self.slot = op, kind, dest, slot
        self.new, self.old, self.order = new, old, order
        self.allow_gap, self.overwriting, self.fd = allow_gap, overwriting, fd
        self.method, self.alone, self.mode = "", False, None

    method: str
    alone: bool
    mode: int | None

    def __repr__(self) -> str:
        return f"<Step {self.op} {self.dest}>"

    @property
    def folder(self) -> bool:
        """Whether a folder takes part, so that hard links cannot serve."""
        return self.kind == "folder"

    def twin(self, suffix: str) -> Place:
        """A second private name beside the slot, for the methods and undos that need one."""
        return Place(self.slot.directory, f"{self.slot.name}-{suffix}")

    def slots(self) -> tuple[Place, ...]:
        """Every private name at which this step may have left something."""
        return () if self.op == "exchange" else (self.slot, self.twin("old"), self.twin("new"))

    def free_twins(self) -> Iterator[Place]:
        """Private names that are free, the slot first."""
        number = 0
        place = self.slot
        while True:
            if place.identity() is None:
                yield place
            place = self.twin(f"new{number or ''}")
            number += 1


def same_kind(mode: int, kind: str) -> bool:
    """Whether an existing object may be replaced by one of `kind`: a folder by a folder, else by no folder."""
    return kernel.is_folder(mode) == (kind == "folder")


def rename_back(src: Place, dst: Place, *, folder: bool) -> None:
    """Rename back onto a name that should be free, never replacing what came there meanwhile."""
    fs = dst.directory.fs
    if fs.noreplace is not False:
        try:
            rename(src, dst, kernel.NOREPLACE)
        except OSError as exc:
            if kernel.errno_of(exc) not in NO_FLAG:
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
    if src.directory.fs.links is False:
        return False
    try:
        kernel.port.link(src.name, src.fd, dst.name, dst.fd)
    except OSError as exc:
        if kernel.errno_of(exc) in (None, *ABOUT_NAMES):
            raise
        return False
    return True


def remove_empty(place: Place) -> bool:
    """Remove the empty folder that held a place for us; False when it is no empty folder."""
    try:
        kernel.port.rmdir(place.name, place.fd)
    except OSError as exc:
        if kernel.errno_of(exc) not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT):
            raise
        return False
    return True
