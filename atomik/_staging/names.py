"""Items without content of their own: a symlink, a removal, a move."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from attrs import define, field

from atomik import errors
from atomik._system import kernel

from .item import Item

if TYPE_CHECKING:
    import os

    from atomik._folder.directory import Place
    from atomik._protocol.step import Step


@define(eq=False)
class StagedSymlink(Item):
    """A symbolic link."""

    content = False

    def open(self, target: str) -> None:
        """Make the link in a slot."""
        slot = self.workspace.slot(self.stage)
        try:
            kernel.port.symlink(target, slot.name, slot.fd)
        except OSError as exc:
            raise errors.system_error(exc, "cannot stage the link", self.path) from exc
        self.slot = slot
        self.seal()

    def _seal(self) -> None:
        pass


def _kind_of(mode: int) -> str:
    return "folder" if kernel.is_folder(mode) else "file" if kernel.is_file(mode) else "other"


@define(eq=False)
class Removal(Item):
    """The destination goes: it is renamed into a slot, and deleted after the commit."""

    content = False
    _there: str = field(default="", init=False, repr=False)

    def open(self) -> None:
        """Reserve the slot."""
        self.slot = self.workspace.slot(self.stage)
        self.seal()

    def step_kind(self) -> str:
        return self._there

    def look(self) -> os.stat_result | None:
        found = self.place.stat()
        if found is None:
            text = "there is nothing to remove; pass missing_ok=True if that is fine"
            errors.fail(errors.MissingPathError, errno.ENOENT, text, self.path)
        self._there = _kind_of(found.st_mode)
        return found

    def steps(self) -> list[Step]:
        assert self.slot is not None
        return [self._step("remove", self.place, self.slot, None, self.check())]

    def _seal(self) -> None:
        pass

    def _drop(self) -> None:
        pass  # nothing was staged


@define(eq=False)
class Move(Item):
    """What stands at ``source`` goes to the destination: removed there, and published here out of the same slot.

    So each of the two names changes in one step, and undoing brings the object back to where it was.
    """

    content = False
    source: Place | None = field(default=None, init=False)
    _there: str = field(default="", init=False, repr=False)

    def take(self, source: Place) -> None:
        """Say what is to be moved; looked at now, and again under the locks."""
        self.source = source
        self._look()
        if self._there != "folder" and self.path.endswith("/"):
            text = "only a folder's name may end with a slash; drop it"
            errors.fail(errors.InvalidDestinationError, errno.EISDIR, text, self.path)

    def open(self) -> None:
        """Reserve the slot."""
        self.slot = self.workspace.slot(self.stage)
        self.seal()

    def _look(self) -> None:
        assert self.source is not None
        found = self.source.stat()
        if found is None:
            errors.fail(errors.MissingPathError, errno.ENOENT, "there is nothing to move", str(self.source), self.path)
        self._there = _kind_of(found.st_mode)
        if self._there == "folder":
            self._refuse_into_itself(found)
        directory = self.source.directory
        if directory.mount and kernel.port.statx(self.source.fd, self.source.name).mount != directory.mount:
            text = "a mount point cannot be moved; unmount it, or move what lies in it"
            errors.fail(errors.MountPointError, errno.EBUSY, text, str(self.source), self.path)

    def _refuse_into_itself(self, found: os.stat_result) -> None:
        if (found.st_dev, found.st_ino) in self.place.directory.ancestors():
            text = "cannot move a folder into itself; choose a destination outside it"
            errors.fail(errors.NestedDestinationError, errno.EINVAL, text, str(self.source), self.path)

    def step_kind(self) -> str:
        return self._there

    @property
    def one_step(self) -> bool:
        return False

    def places(self) -> tuple[Place, ...]:
        assert self.source is not None
        return self.source, self.place

    def steps(self) -> list[Step]:
        assert self.slot is not None
        assert self.source is not None
        self._look()
        moved = self.source.identity()
        old = self.check()
        steps = [
            self._step("remove", self.source, self.slot, None, moved),
            self._step("create" if old is None else "replace", self.place, self.slot, moved, old),
        ]
        if old is not None and self.options.keep is not None:
            steps.append(self._keep(old))
        return steps

    def _seal(self) -> None:
        pass

    def _drop(self) -> None:
        pass  # nothing was staged: the source stands where it stood
