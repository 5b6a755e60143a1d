"""What was written under a name of its own in the private folder, and what exists where nothing was written.

`path` and its companions, and the entries of a folder that stays, are made in the same way: they are written by name in a
private folder, and when that is complete each gets a slot (`Written.take`).  If nothing was written for a name, what exists
there is removed (`Gone`).
"""

from __future__ import annotations

import errno
import os
import stat

from atomik import errors
from atomik._folder.place import rename, set_mode
from atomik._protocol.publish import refuse_exdev
from atomik._system import kernel

from .item import Item, Operation, kind_of
from .removal import Removal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from atomik._folder.place import Place
    from atomik._system.libc import Status

    from .item import Found
    from .options import Options


class Written(Item):
    """An item whose content was written by name: a file, a folder, a link."""

    __slots__ = ("_there",)

    #: the kind of what was written; not set before it was taken
    _there: str

    slot_to_read = Item._finished_slot

    def step_kind(self) -> str:
        return getattr(self, "_there", "")

    def take(self, written: Place) -> None:
        """Give what was written a slot; it was listed, so it must be there."""
        found = written.status()
        if found is None:
            text = "what was written was removed from atomik's private folder"
            errors.fail(errors.ConflictError, errno.ENOENT, text, str(written), self.path)
        self._there = kind_of(found.mode)
        slot = self.workspace.slot(self.stage) if self.kept is None else self.kept.slot()
        mode = loosen(written, found)
        self.slot = slot  # before it exists: an interrupt may come right after the call
        self.bring(written, slot)
        self.complete(slot, mode)

    def bring(self, written: Place, slot: Place) -> None:
        """Move what was written into its slot."""
        try:
            rename(written, slot, 0)
        except OSError as exc:
            if kernel.errno_of(exc) != errno.EXDEV:
                raise
            refuse_exdev(slot, self.place, exc)

    def complete(self, slot: Place, mode: int | None) -> None:
        """Its final owner, attributes and mode; `mode` is restored where `take` had to change it."""
        try:
            fd = kernel.port.open(slot.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, slot.fd)
        except OSError as exc:
            if kernel.errno_of(exc) in (errno.ELOOP, errno.ENXIO):  # a symlink or a socket: nothing to set
                return
            raise
        try:
            if mode is not None:
                kernel.port.fchmod(fd, mode)
            self.finish(fd, self.present())
        finally:
            kernel.port.close(fd)


class Gone(Removal):
    """What exists at a name for which nothing was written: it goes, or to the name for the previous version.

    Made for each plan, where it is known to exist.  If others remove it first, there is nothing to do.
    """

    __slots__ = ("_missing",)

    @classmethod
    def at(cls, place: Place, of: Item, options: Options) -> Self:
        """What exists at `place`, which goes as a part of the item `of`."""
        made = cls(None, place, of.stage, of.workspace, options, of.order)
        made.slot = of.workspace.slot(of.stage)
        return made

    @property
    def content(self) -> bool:  # type: ignore[override]
        return self.backup is not None  # the previous version stays, so it must be durable too (P5)

    @property
    def changes(self) -> bool:  # type: ignore[override]
        return not getattr(self, "_missing", False)

    def find(self, found: dict[Place, Found | None], *, alone: bool) -> None:
        # Asked twice, because a "no such file" may be wrong.
        self._missing = self.expectation is None and not (self.place.status() or self.place.status())
        if self._missing:
            found[self.place] = None
        else:
            super().find(found, alone=alone)
            self.find_backup(found)

    def operation(self, *, alone: bool) -> Operation:
        going = super().operation(alone=alone)
        place = self.backup_place
        if place is None:
            return going
        return going._replace(op="move", place=place, other=self.place, overwrite=True)


def loosen(written: Place, found: Status) -> int | None:
    """The kernel lets nobody but root rename a folder that they may not write to into another one (its ".." would
    change).  The mode to give back, where it had to be changed."""
    if not kernel.is_folder(found.mode) or kernel.port.may_write(written.name, written.fd):
        return None
    return set_mode(written, stat.S_IMODE(found.mode) | stat.S_IRWXU)
