"""`Transaction.copy`: a copy of what exists at a source, with everything that can be kept of it, goes to the destination."""

from __future__ import annotations

import errno
import os

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.paths import absolute
from atomik._folder.place import Place
from atomik._folder.resolve import real
from atomik._system import kernel

from . import companions
from .folder import StagedFolder
from .item import Item, kind_of
from .view import Staged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atomik._system.libc import Status

    from .intake import Intake
    from .item import Found
    from .options import ItemOptions, StrPath


def stage(intake: Intake, src: StrPath, dest: StrPath, overwrite: bool | None, options: ItemOptions) -> None:
    """Stage a copy of what the transaction has at `src`."""
    full = absolute(src, "src")
    with kernel.typed("cannot copy", full), intake.lock:
        intake.require_open()
        source, held, staged = _locate(intake, src, full)
        try:
            chosen: ItemOptions = {"preserve": "none", **options}
            item = intake.add(Copy, dest, overwrite, None, chosen, lambda item: item.take(source, full))
            intake.open(item, item.open, source, staged if isinstance(staged, StagedFolder) else None)
        finally:
            if held is not None:
                held.close()


def _locate(intake: Intake, src: StrPath, full: str) -> tuple[Place, Directory | None, Item | None]:
    """The place where the content of `src` is now, its folder if that must be closed afterwards, and what has staged it."""
    view = Staged.of(intake)
    resolved = view.resolve(full, follow=False)
    view.refuse_below(resolved, full)
    if view.at_or_above(resolved) is None:
        if real(os.path.dirname(full)) == os.path.dirname(resolved):
            resolved = os.fsdecode(src)  # as it was given: its folder may be held already, by that path
        return intake.workspace.locate(resolved, folder=True, parents=None), None, None
    item = view.changes.get(resolved)
    if isinstance(item, Item):
        return item.slot_to_read(), None, item
    where = view.where(resolved, follow=False)
    if where is None:
        text = "there is nothing to copy: an earlier operation of this transaction removes it"
        errors.fail(errors.MissingPathError, errno.ENOENT, text, full)
    folder = Directory.open(os.path.dirname(where))
    return Place(folder, os.path.basename(where)), folder, None


class Copy(Item):
    """A copy of what exists at another name."""

    __slots__ = ("_logs", "_there")

    kind = "copy"

    def take(self, source: Place, full: str) -> None:
        """Name the source of the copy."""
        found: Status | None = source.status()
        if found is None:
            errors.fail(errors.MissingPathError, errno.ENOENT, "there is nothing to copy", full, self.path)
        self._there = kind_of(found.mode)
        #: what follows the source's name in the names of the logs that hold changes for it
        self._logs = companions.log_suffixes(source) if self._there == "file" else []
        if self._there != "folder" and self.path.endswith("/"):
            text = "only the name of a folder may end with a slash; remove the slash"
            errors.fail(errors.InvalidDestinationError, errno.EISDIR, text, self.path)
        if self._there == "folder" and (found.dev, found.ino) in self.place.directory.ancestors():
            text = "cannot copy a folder into itself; choose a destination outside it"
            errors.fail(errors.NestedDestinationError, errno.EINVAL, text, full, self.path)

    def open(self, source: Place, staged: StagedFolder | None) -> None:
        """Make the copy in a slot; `staged` is the folder that was staged at the source, if the source is its slot."""
        from atomik._tree.clone import copy_entry

        assert self.owner is not None
        slot = self.workspace.slot(self.stage)
        self.slot = slot  # before it exists: an interrupt may come right after the call
        counting = self.owner.counting("cloning")
        lost = copy_entry(source, slot, counting)
        if counting is not None:
            counting.finish()
        if slot.status() is None:
            text = "cannot copy a device or socket as this user; leave it out, or run as root"
            errors.fail(errors.AccessDeniedError, errno.EPERM, text, self.path)
        self.not_preserved = tuple(lost)
        if staged is not None:
            staged.finish_copy(slot)
        self.seal()

    def step_kind(self) -> str:
        return self._there

    def refuse_companions(self) -> None:
        companions.refuse_log(self.place, self.workspace, self.path)

    def find(self, found: dict[Place, Found | None], *, alone: bool) -> None:
        companions.refuse_half_copy(self._logs, self.place, self.workspace, self.path)
        super().find(found, alone=alone)

    def _seal(self) -> None:
        if self.options.permissions is not None:
            self.finish_slot()
