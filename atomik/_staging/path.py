"""`Transaction.path`: a private folder for programs that open files by name, and what they leave there."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place, rename, set_mode
from atomik._protocol.resumable import WORK
from atomik._system import kernel

from . import companions
from .item import Item

if TYPE_CHECKING:
    from atomik._protocol.resumable import Settle
    from atomik._system.libc import Status

    from .intake import Intake
    from .options import ItemOptions, StrPath
    from .staged_path import StagedPath


def stage(
    intake: Intake, path: StrPath, overwrite: bool | None, tmp_dir: StrPath | None, settle: Settle | None,
    options: ItemOptions,
) -> StagedPath:  # fmt: skip
    """Stage a path for a program that opens files by name; with `settle` a resumable one."""
    if settle is not None:
        item = intake.add(StagedProgram, path, overwrite, tmp_dir, options, lambda item: item.settle(settle))
        return intake.hand_out(item, intake.open(item, item.resume, settle))
    item = intake.add(StagedProgram, path, overwrite, tmp_dir, options)
    return intake.hand_out(item, intake.open(item, item.open))


class StagedProgram(Item):
    """A path for programs that open files by name; what they leave there is published, a file or a folder."""

    __slots__ = ("_there", "_work")

    kind = "path"

    #: the private folder in which the program writes
    _work: Place | None
    #: the kind of what the program wrote; "" before
    _there: str

    def open(self) -> str:
        """Make the private folder in which the program writes under the destination's own name."""
        self._work = work = self.workspace.slot(self.stage)
        kernel.port.mkdir(work.name, 0o700, work.fd)
        return os.path.join(self.workspace.path_of(work), self.place.name)

    def resume(self, settle: Settle) -> str:
        """Go on with what an earlier run has left, or make the private folder where the next run finds it."""
        kept = self.keep(settle)
        self._work = work = kept.slot(WORK)
        made = work.status() is None
        if made:
            kernel.port.mkdir(work.name, 0o700, work.fd)
        inside = Directory.open(work.name, work.fd, follow=False)
        try:
            sealed = kept.slot().status()
            if sealed is not None:  # it was complete, but was not published
                self._loosen(kept.slot(), sealed)
                rename(kept.slot(), Place(inside, self.place.name), 0)
            with kernel.port.scandir(inside.fd) as entries:
                self.resumed = any(True for _ in entries)
        finally:
            inside.close()
        if made:
            kept.make_durable()
        return os.path.join(self.workspace.path_of(work), self.place.name)

    def step_kind(self) -> str:
        return getattr(self, "_there", "")

    def content_path(self) -> str:
        if self.slot is not None:
            return super().content_path()
        assert self._work is not None
        return os.path.join(self.workspace.path_of(self._work), self.place.name)

    def refuse_companions(self) -> None:
        companions.refuse_log(self.place, self.workspace, self.path)

    def _seal(self) -> None:
        assert self._work is not None
        work = Directory.open(self._work.name, self._work.fd, follow=False)
        try:
            inner = Place(work, self.place.name)
            found = inner.status()
            if found is None:
                text = "nothing was written to the staged path; write the file before leaving the block"
                errors.fail(
                    errors.MissingPathError, errno.ENOENT, text, self.path, os.path.join(str(self._work), inner.name)
                )
            self._there = "folder" if kernel.is_folder(found.mode) else "file"
            self._refuse_others(work)
            companions.refuse_open(inner, self.path)
            slot = self.workspace.slot(self.stage) if self.kept is None else self.kept.slot()
            mode = self._loosen(inner, found)
            self.slot = slot  # before it is there: an interrupt may come right behind the call
            kernel.port.rename(inner.name, work.fd, slot.name, slot.fd, 0)
            self._finish_at(slot, mode)
        finally:
            work.close()
        from atomik._tree.delete import delete_tree

        delete_tree(self._work)
        self._work = None

    def _refuse_others(self, work: Directory) -> None:
        """What else the program left may be data (the log of a database, the parts of a shapefile): it is not dropped in
        silence, and not published without being asked for."""
        with kernel.port.scandir(work.fd) as entries:
            others = sorted(entry.name for entry in entries if entry.name != self.place.name)
        if not others:
            return
        shown = ", ".join(repr(name) for name in others[:5]) + (" …" if len(others) > 5 else "")
        text = (
            f"the program left other files next to the staged path: {shown}; if a database is still open, close it before "
            "leaving the block; to publish several files, write them into tx.folder() or stage each with tx.path(); remove "
            "those that are not needed"
        )
        errors.fail(errors.ConflictError, errno.EBUSY, text, self.path, work.child(others[0]))

    def _loosen(self, inner: Place, found: Status) -> int | None:
        """The kernel lets nobody but root rename a folder that they may not write to into another one (its ".." would
        change).  The mode to give back, where it had to be changed."""
        if not kernel.is_folder(found.mode) or kernel.port.may_write(inner.name, inner.fd):
            return None
        return set_mode(inner, stat.S_IMODE(found.mode) | stat.S_IRWXU)

    def _finish_at(self, slot: Place, mode: int | None) -> None:
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

    def _drop(self) -> None:
        work = getattr(self, "_work", None)
        if work is not None and self.kept is None:
            from atomik._tree.delete import delete_tree

            delete_tree(work)
        super()._drop()
