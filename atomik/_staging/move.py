"""`Transaction.move`: what exists at a source goes to the destination.

It is removed there and published here out of the same slot.  So each of the two names changes in one step, and undoing
brings the object back to where it was.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from atomik import errors
from atomik._folder.paths import absolute
from atomik._system import kernel

from . import checks, companions
from .item import Found, Item, Operation, kind_of, sync_place

if TYPE_CHECKING:
    from collections.abc import Callable

    from atomik._folder.place import Place
    from atomik._system.libc import Status

    from .intake import Intake
    from .options import ItemOptions, StrPath


def stage(
    intake: Intake, src: StrPath, dest: StrPath, overwrite: bool | None, *, order: int,
    backup: str | Callable[[str], str] | None,
) -> None:  # fmt: skip
    """Stage moving what exists at `src` to `dest`."""
    origin = absolute(src)
    with kernel.typed("cannot move", origin), intake.lock:
        intake.require_open()
        source = intake.workspace.locate(origin, folder=True, parents=False)
        options: ItemOptions = {"order": order, "preserve": "none", "backup": backup}
        item = intake.add(Move, dest, overwrite, None, options, lambda item: item.take(source))
        try:
            there = source.status()
            intake.workspace.destinations.register(
                source, None, there if there is not None and kernel.is_folder(there.mode) else None
            )
        except BaseException:
            intake.forget(item)
            raise
        item.registered = True
    intake.open(item, item.open)


class Move(Item):
    """What exists at ``source`` goes to the destination."""

    __slots__ = ("_there", "registered", "source")

    kind = "move"
    #: whoever wrote what is moved may not have synced it (P5)
    content = True

    def take(self, source: Place) -> None:
        """Say what is to be moved; looked at now, and again under the locks."""
        self.source = source
        #: whether the source is among the destinations
        self.registered = False
        self._there = ""
        self._look_at_source()
        if self._there != "folder" and self.path.endswith("/"):
            text = "only a folder's name may end with a slash; drop it"
            errors.fail(errors.InvalidDestinationError, errno.EISDIR, text, self.path)

    def open(self) -> None:
        """Reserve the slot."""
        self.slot = self.workspace.slot(self.stage)
        self.seal()

    def _look_at_source(self) -> Status:
        source = self.source
        found = source.status()
        if found is None:
            errors.fail(errors.MissingPathError, errno.ENOENT, "there is nothing to move", str(source), self.path)
        self._there = kind_of(found.mode)
        if self._there == "folder" and (found.dev, found.ino) in self.place.directory.ancestors():
            text = "cannot move a folder into itself; choose a destination outside it"
            errors.fail(errors.NestedDestinationError, errno.EINVAL, text, str(source), self.path)
        if found.mount != source.directory.mount:
            text = "a mount point cannot be moved; unmount it, or move what lies in it"
            errors.fail(errors.MountPointError, errno.EBUSY, text, str(source), self.path)
        checks.refuse_sticky(source.directory, found, str(source))
        return found

    def step_kind(self) -> str:
        return self._there

    def refuse_companions(self) -> None:
        companions.refuse_log(self.place, self.workspace, self.path)

    def places(self) -> tuple[Place, ...]:
        return self.source, self.place

    def folders_there(self) -> tuple[Place, ...]:
        return (*super().folders_there(), *((self.source,) if self._there == "folder" else ()))

    def find(self, *, alone: bool) -> dict[Place, Found | None]:
        self._look_at_source()
        return {self.source: Found(self._there, self.source.identity()), **super().find(alone=alone)}

    def operation(self, *, alone: bool) -> Operation:
        assert self.slot is not None
        options = self.options
        return Operation(
            "move", self.place, self.slot, None, -1, self.source, self.backup_place,
            options.overwrite, options.allow_gap, self.order,
        )  # fmt: skip

    def _sync_new(self) -> int:
        return sync_place(self.source)  # where it lies now

    def stands_already(self) -> bool:
        return False

    def _seal(self) -> None:
        pass

    def _drop(self) -> None:
        pass  # nothing was staged: the source is where it was
