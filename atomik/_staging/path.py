"""What programs that open files by name write: a private folder for them to write in, and what they leave there."""

from __future__ import annotations

import errno
import os
import stat

from attrs import define, field

from atomik import errors
from atomik._folder.directory import Directory, Place
from atomik._folder.paths import NAME_MAX
from atomik._system import kernel
from atomik._tree import delete

from .item import Item


@define(eq=False)
class StagedProgram(Item):
    """A path for programs that open files by name; what they leave there is published, a file or a folder."""

    _work: Place | None = field(default=None, init=False, repr=False)
    #: the kind of what the program wrote; not known before
    _found: str = field(default="", init=False, repr=False)

    def open(self) -> str:
        """Make the private folder in which the program writes under the destination's own name."""
        work = self.workspace.slot(self.stage)
        try:
            kernel.port.mkdir(work.name, 0o700, work.fd)
        except OSError as exc:
            raise errors.system_error(exc, "cannot stage the path", self.path) from exc
        self._work = work
        return os.path.join(self.workspace.path_of(work), self.place.name)

    def step_kind(self) -> str:
        return self._found

    def _seal(self) -> None:
        assert self._work is not None
        work = Directory.open(self._work.name, self._work.fd, follow=False)
        try:
            inner = Place(work, self.place.name)
            found = inner.stat()
            if found is None:
                text = "nothing was written to the staged path; write the file before leaving the block"
                errors.fail(
                    errors.MissingPathError, errno.ENOENT, text, self.path, os.path.join(str(self._work), inner.name)
                )
            self._found = "folder" if kernel.is_folder(found.st_mode) else "file"
            self._refuse_open_database(work)
            slot = self.workspace.slot(self.stage)
            mode = self._loosen(inner, found)
            kernel.port.rename(inner.name, work.fd, slot.name, slot.fd, 0)
            self.slot = slot
            self._finish_at(slot, mode)
        finally:
            work.close()
        delete.delete_tree(self._work)  # what else the program left there is none of the output
        self._work = None

    def _refuse_open_database(self, work: Directory) -> None:
        for suffix in ("-wal", "-journal"):
            if len(os.fsencode(self.place.name + suffix)) > NAME_MAX:
                continue
            rest = work.stat(self.place.name + suffix)
            if rest is not None and rest.st_size:
                text = "the database is still open: its journal holds changes; close it before leaving the block"
                errors.fail(errors.ConflictError, errno.EBUSY, text, work.child(self.place.name + suffix))

    def _loosen(self, inner: Place, found: os.stat_result) -> int | None:
        """The kernel lets nobody but root rename a folder that he may not write to into another one (its ".." would
        change).  The mode to give back, where it had to be changed."""
        if self._found != "folder" or kernel.port.may_write(inner.name, inner.fd):
            return None
        fd = kernel.port.open(inner.name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, inner.fd)
        try:
            kernel.port.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(found.st_mode) | stat.S_IRWXU)
        finally:
            kernel.port.close(fd)
        return stat.S_IMODE(found.st_mode)

    def _finish_at(self, slot: Place, mode: int | None) -> None:
        try:
            fd = kernel.port.open(slot.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, slot.fd)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENXIO):  # a symlink or a socket: nothing to set
                return
            raise errors.system_error(exc, "cannot finish the staged path", self.path) from exc
        try:
            if mode is not None:
                kernel.port.fchmod(fd, mode)
            self.finish(fd)
        finally:
            kernel.port.close(fd)

    def _drop(self) -> None:
        if self._work is not None:
            delete.delete_tree(self._work)
        super()._drop()
