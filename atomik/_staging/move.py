"""`Transaction.move`: what exists at a source moves to the destination.

It is removed there and published here out of the same slot.  So each of the two names changes in one step, and undoing
brings the object back to where it was.
"""

from __future__ import annotations

import errno
import os

from atomik import errors
from atomik._folder.mounts import same_mount
from atomik._folder.paths import absolute
from atomik._system import kernel

from . import checks, companions
from .destinations import UNTOUCHED, Entry, key_of
from .existing import OfTwoNames
from .item import Found, Operation, kind_of, sync_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from atomik._folder.place import Place
    from atomik._system.libc import Status

    from .intake import Intake
    from .item import Item
    from .options import Expectation, ItemOptions, StrPath


def stage(
    intake: Intake, src: StrPath, dest: StrPath, overwrite: bool | None, *, order: int,
    backup: str | Callable[[str], str] | None, expect: Expectation,
) -> None:  # fmt: skip
    """Stage moving what exists at `src` to `dest`."""
    with kernel.typed("cannot move", absolute(src, "src")), intake.lock:
        intake.require_open()
        source = intake.workspace.locate(os.fsdecode(src), folder=True, parents=None)
        options: ItemOptions = {"order": order, "preserve": "none", "backup": backup, "expect": expect}
        item = intake.add(Move, dest, overwrite, None, options, lambda item: item.take(source))
        item.register(intake, Entry(item, None, None, key_of(item.displaced_source)))
    intake.open(item, item.open)


class Move(OfTwoNames):
    """What exists at ``other`` moves to the destination."""

    __slots__ = ("_origin", "_there", "displaced_source")

    kind = "move"

    def take(self, source: Place) -> None:
        """Name what will be moved: what exists there, or what the operations so far leave there."""
        self.name(source)
        if source == self.place:
            text = "source and destination are the same name, so there is nothing to move"
            errors.fail(errors.DuplicateDestinationError, errno.EEXIST, text, self.path)
        #: the status of a folder that moves away
        self.displaced_source: Status | None = None
        destinations = self.workspace.destinations
        leaves = destinations.leaves(source)
        #: what is there: what an item staged, or what exists at a name now
        self._origin = destinations.origin(source)
        self._there = leaves or ""
        if leaves == UNTOUCHED:
            found = self._look_at_source()
            self.displaced_source = found if self._there == "folder" else None
        elif leaves is None:
            text = "there is nothing to move: an earlier operation of this transaction removes it"
            errors.fail(errors.MissingPathError, errno.ENOENT, text, str(source), self.path)
        if self._there != "folder" and self.path.endswith("/"):
            text = "only the name of a folder may end with a slash; remove the slash"
            errors.fail(errors.InvalidDestinationError, errno.EISDIR, text, self.path)

    def choose_backup(self) -> None:
        super().choose_backup()
        if self.backup_place == self.other:
            text = "backup= names the source of the move; to exchange the two, use tx.exchange()"
            errors.fail(errors.DuplicateDestinationError, errno.EEXIST, text, str(self.other), self.path)

    def _look_at_source(self) -> Status:
        source = self.other
        found = source.status()
        if found is None:
            errors.fail(errors.MissingPathError, errno.ENOENT, "there is nothing to move", str(source), self.path)
        self._there = kind_of(found.mode)
        if self._there == "folder" and (found.dev, found.ino) in self.place.directory.ancestors():
            text = "cannot move a folder into itself; choose a destination outside it"
            errors.fail(errors.NestedDestinationError, errno.EINVAL, text, str(source), self.path)
        if not same_mount(found, source.directory):
            text = "a mount point cannot be moved; unmount it, or move what is in it"
            if not found.mount:
                text = "it is unknown whether it is a mount point, which cannot be moved; mount /proc, or allow statx"
            errors.fail(errors.MountPointError, errno.EBUSY, text, str(source), self.path)
        checks.refuse_sticky(source.directory, found, str(source))
        return found

    def step_kind(self) -> str:
        return self._there

    def origin(self) -> Item | Place | None:
        return self._origin

    def refuse_companions(self) -> None:
        companions.refuse_log(self.place, self.workspace, self.path)

    def folders_there(self) -> tuple[Place, ...]:
        return (*super().folders_there(), *((self.other,) if self.displaced_source is not None else ()))

    def find(self, found: dict[Place, Found | None], *, alone: bool) -> None:
        if self.other not in found:
            self._look_at_source()
            if self._there == "file":
                companions.refuse_left_log(self.other, self.workspace, self.path)
            found[self.other] = Found(self._there, self.other.identity())
        super().find(found, alone=alone)

    def operation(self, *, alone: bool) -> Operation:
        assert self.slot is not None
        options = self.options
        return Operation(
            "move", self.place, self.slot, None, -1, self.other, self.backup_place,
            options.overwrite, options.allow_gap, self.order,
        )  # fmt: skip

    def _sync_new(self) -> int:
        return sync_place(self.other)  # where it is now
